"""What a model server was asked and what it said, kept for `headstart monitor`.

Whoever records only puts it into a queue; a thread writes files of many requests each, whole or not at all.
When the queue is full, or the disk, what comes is dropped and counted: an answer never waits for it.
"""

from __future__ import annotations

import base64
import binascii
import logging
import queue
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from steps import artifacts, outputs
from steps.errors import DiskFullError
from steps.kinds import Kind

FOLDER = Path(".headstart/recorded")
TIME, VERSION, SAID = "time", "version", "said"
# A file is written after so long, or with so much, whichever comes first.
FLUSH_SECONDS, FLUSH_BYTES = 10.0, 16 * 2**20
# What may wait to be written.
QUEUE_BYTES = 64 * 2**20
GIB = 2**30

log = logging.getLogger("headstart.serve")


@dataclass(frozen=True)
class Kept:
    """A request with its answer."""

    time: str
    version: str
    asked: pd.DataFrame
    said: pd.DataFrame
    size: int


class Recorder:
    """Keeps requests in files of `.headstart/recorded/<experiment>/<day>/`.

    Args:
        experiment: whose model is asked.
        kind: of its task.
        limit_bytes: of all files of the experiment; the oldest go first.

    Attributes:
        dropped: requests that were not kept.
        written: rows that are in files.
    """

    def __init__(self, experiment: str, kind: Kind, limit_bytes: int) -> None:
        self.folder, self.kind, self.limit_bytes = FOLDER / experiment, kind, limit_bytes
        self.dropped = self.written = 0
        self._held, self._lock = 0, threading.Lock()
        self._queue: queue.SimpleQueue[Kept | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def add(self, version: str, asked: pd.DataFrame, said: pd.DataFrame) -> None:
        """Keep a request; returns at once."""
        size = sum(len(value) for name in asked.columns for value in asked[name])
        with self._lock:
            if self._held + size > QUEUE_BYTES:
                self.dropped += 1
                return
            self._held += size
        self._queue.put(Kept(datetime.now(UTC).isoformat(timespec="seconds"), version, asked, said, size))

    def close(self) -> None:
        """Write what is left, and end."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        held: list[Kept] = []
        deadline: float | None = None
        while True:
            one = _next(self._queue, deadline)
            if isinstance(one, Kept):
                held.append(one)
                deadline = deadline or _now() + FLUSH_SECONDS
            ends = one is None
            if held and (ends or one is _LATE or sum(item.size for item in held) >= FLUSH_BYTES):
                self._write(held)
                held, deadline = [], None
            if ends:
                return

    def _write(self, held: list[Kept]) -> None:
        try:
            rows = [row for one in held for row in _rows(one, self.kind)]
            day = self.folder / held[0].time[:10]
            stamp = datetime.now(UTC).strftime("%H%M%S")
            with artifacts.new_file(day / f"{stamp}-{uuid.uuid4().hex[:12]}.parquet") as partial:
                _table(rows, self.kind).to_parquet(partial, index=False, compression="zstd")
            self.written += len(rows)
            self._make_room()
        except (OSError, DiskFullError) as error:
            self.dropped += len(held)
            log.error("%d requests were not recorded: %s", len(held), error)
        finally:
            with self._lock:
                self._held -= sum(one.size for one in held)

    def _make_room(self) -> None:
        files = sorted(self.folder.glob("*/*.parquet"), key=lambda path: (path.parent.name, path.name))
        sizes = {path: path.stat().st_size for path in files}
        total = sum(sizes.values())
        for path in files[:-1]:
            if total <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= sizes[path]
            with suppress(OSError):  # other files are in it
                path.parent.rmdir()


_LATE = object()


def _now() -> float:
    return datetime.now(UTC).timestamp()


def _next(waiting: queue.SimpleQueue[Kept | None], deadline: float | None) -> Kept | object | None:
    """The next request; None at the end, `_LATE` at the deadline."""
    try:
        return waiting.get(timeout=None if deadline is None else max(0.0, deadline - _now()))
    except queue.Empty:
        return _LATE


def _rows(one: Kept, kind: Kind) -> Iterator[dict[str, Any]]:
    answers = one.said.to_dict(orient="records")
    for asked, said in zip(one.asked.to_dict(orient="records"), answers, strict=True):
        contents = {name: _content(asked[name], kind) for name in kind.columns}
        yield {TIME: one.time, VERSION: one.version, **contents, SAID: outputs.as_json(said)}


def _content(value: str, kind: Kind) -> str | bytes:
    if kind.content == "text":
        return value
    with suppress(binascii.Error, ValueError):
        return base64.b64decode("".join(value.rpartition(",")[2].split()))
    return b""


def _table(rows: list[dict[str, Any]], kind: Kind) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[TIME, VERSION, *kind.columns, SAID])
