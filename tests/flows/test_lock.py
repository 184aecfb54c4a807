from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import lock
from steps.errors import BusyError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(lock.RUN_VARIABLE, raising=False)
    return tmp_path


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the clone, with a child of its own."""
    code = """
        import os, subprocess, sys, time
        os.environ["HEADSTART_RUN_ID"] = "first"
        from flows.lock import one_run
        with one_run():
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            print(child.pid, flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def child_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_the_second_run_is_told_who_runs(holder: subprocess.Popen[str]) -> None:
    child = child_of(holder)
    with pytest.raises(
        BusyError, match=rf"another run is going on in this clone \(pid {holder.pid}, since 20"
    ):
        lock.check_free()
    with pytest.raises(BusyError), lock.one_run():
        pass
    os.kill(child, signal.SIGKILL)


@pytest.mark.survives(
    "processes",
    "a run is killed and its training lives on",
    how="SIGKILL to the holder of the clone",
    held="the next run ends the orphan before it starts",
)
def test_a_killed_holder_never_blocks_and_its_children_are_ended(holder: subprocess.Popen[str]) -> None:
    child = child_of(holder)
    holder.kill()
    holder.wait()
    with lock.one_run():
        status = Path(f"/proc/{child}/status")
        assert not status.exists() or "State:\tZ" in status.read_text()


def test_a_run_that_ended_leaves_nothing_to_end() -> None:
    with lock.one_run(flow_run="abc") as former:
        assert former == {}
        assert str(os.getpid()) in lock.LOCK_FILE.read_text()
        assert '"flow_run": "abc"' in lock.LOCK_FILE.read_text()
    assert lock.LOCK_FILE.read_text() == ""
    assert lock.check_free() == {}


def test_what_a_killed_run_noted_is_told_to_the_next(holder: subprocess.Popen[str]) -> None:
    os.kill(child_of(holder), signal.SIGKILL)
    holder.kill()
    holder.wait()
    assert lock.check_free()["pid"] == holder.pid
    with lock.one_run() as former:
        assert (former["pid"], former["run"]) == (holder.pid, "first")
    assert lock.check_free() == {}


def test_a_record_that_was_half_written_is_no_obstacle() -> None:
    lock.LOCK_FILE.parent.mkdir()
    lock.LOCK_FILE.write_text('{"pid": 12')
    with lock.one_run():
        pass


def test_what_killed_steps_were_writing_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    arms = tmp_path / "work/digits/arms"
    of_ended = [f".full.partial-{ended.pid}", f".full.old-{ended.pid}"]
    others = [f".head.partial-{os.getpid()}", ".hidden"]
    for name in of_ended + others:
        (arms / name).mkdir(parents=True)
    split = tmp_path / f"work/digits/.split.parquet.partial-{ended.pid}.parquet"
    split.touch()
    with lock.one_run():
        assert not split.exists()
        assert sorted(path.name for path in arms.iterdir()) == sorted(others)
