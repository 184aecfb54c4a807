"""One run at a time in a clone, and no leftovers of one that was killed."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from steps.errors import BusyError

LOCK_FILE = Path(".headstart/run.lock")
# Every process of a run inherits this, so that leftovers of a killed run can be told from others.
RUN_VARIABLE = "HEADSTART_RUN_ID"
# As `steps.artifacts` names what is not whole yet, with the pid of its writer.
HALF_WRITTEN = re.compile(r"\..+\.(?:partial|old)-(\d+)(?:\..+)?")


@contextmanager
def one_run(**about: str) -> Iterator[dict[str, Any]]:
    """Hold the clone for this process; the kernel lets go when the process ends, however it ends.

    Args:
        about: what is noted of this run beside its pid, e.g. its flow run.

    Yields:
        What the last holder noted, where it was killed; nothing where it ended by itself.

    Raises:
        BusyError: another run holds it; the message says which and since when.
    """
    with _locked() as stream:
        before = read_holder(stream)
        _end_leftovers(before.get("run"))
        _remove_half_written()
        run = os.environ.setdefault(RUN_VARIABLE, uuid.uuid4().hex)
        holder = {"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "run": run}
        _write(stream, holder | about)
        try:
            yield before
        finally:
            _write(stream, {})


def check_free() -> dict[str, Any]:
    """Look whether a run could start now.

    Returns:
        What the last holder noted, where it was killed; nothing where it ended by itself.

    Raises:
        BusyError: another run holds the clone.
    """
    with _locked() as stream:
        return read_holder(stream)


@contextmanager
def _locked() -> Iterator[IO[str]]:
    LOCK_FILE.parent.mkdir(parents=True, exist_ok=True)
    with LOCK_FILE.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = read_holder(stream)
            who = f"pid {holder.get('pid', 'unknown')}, since {holder.get('since', 'just now')}"
            raise BusyError(
                f"another run is going on in this clone ({who}); "
                "wait for it, stop it with Ctrl-C, or use a second clone"
            ) from None
        yield stream


def read_holder(stream: IO[str]) -> dict[str, Any]:
    """What the holder of a locked file wrote down: nothing while it starts or stops."""
    stream.seek(0)
    try:
        held = json.loads(stream.read() or "{}")
    except ValueError:  # its holder was killed while it wrote
        return {}
    return held if isinstance(held, dict) else {}


def _write(stream: IO[str], holder: dict[str, Any]) -> None:
    stream.seek(0)
    stream.truncate()
    stream.write(json.dumps(holder) if holder else "")
    stream.flush()


def _end_leftovers(run: str | None) -> None:
    """Kill what a run started that died without cleaning up: it would write beside the new run."""
    if run is None or run == os.environ.get(RUN_VARIABLE):
        return
    import psutil

    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(RUN_VARIABLE) == run:
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=5)


def _remove_half_written() -> None:
    """Remove the folders and files that killed steps were writing; a live process keeps its own."""
    import psutil

    for pattern in ("data/.*", "work/.*", "work/*/.*", "work/*/arms/.*", "reports/.*", "reports/*/.*"):
        for path in Path().glob(pattern):
            written_by = HALF_WRITTEN.fullmatch(path.name)
            if written_by is None or psutil.pid_exists(int(written_by[1])):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
