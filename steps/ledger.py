"""Every time a model was scored on a test split: a ledger that is only ever added to.

A test split is worn out by use: whoever looks often enough finds a model that is good on it by chance (Dwork
et al., The Reusable Holdout, 2015). So each look is written down, outside of DVC, which would forget it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, BinaryIO

import pandas as pd

from steps import artifacts


def test_sha256(rows: pd.DataFrame) -> str:
    """SHA-256 of which contents with which labels or targets are tested; the order does not matter.

    Args:
        rows: of the test split, with `sha256`, `label` and `target`.
    """
    known = rows[["sha256", "label", "target"]].itertuples(index=False, name=None)
    lines = sorted(" ".join(part for part in row if isinstance(part, str)) for row in known)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def record(experiment: str, tested: str, models: Iterable[str]) -> None:
    """Write down that these models were scored on a test split.

    Args:
        experiment: its name.
        tested: digest of the split, by `test_sha256`.
        models: a name for each, in which its weights or settings are hashed: the same model scored again
            is a line again, but no new model.
    """
    path = artifacts.ledger_file(experiment)
    path.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lines = [json.dumps({"time": now, "test_sha256": tested, "model": model}) + "\n" for model in models]
    with path.open("a+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        _end_the_line(stream)
        stream.write("".join(lines).encode())


def _end_the_line(stream: BinaryIO) -> None:
    """What a killed process wrote half becomes a line of its own, so that it spoils no other."""
    size = stream.seek(0, os.SEEK_END)
    if size:
        stream.seek(size - 1)
        if stream.read(1) != b"\n":
            stream.write(b"\n")


def looks(experiment: str, tested: str) -> dict[str, int]:
    """How often this test split was used.

    Returns:
        `scored`: lines of it in the ledger; `models`: how many different models these were.
    """
    path = artifacts.ledger_file(experiment)
    lines: list[dict[str, Any]] = []
    if path.exists():
        lines = [line for line in map(_read, path.read_text("utf-8").splitlines()) if line is not None]
    models = [line["model"] for line in lines if line["test_sha256"] == tested]
    return {"scored": len(models), "models": len(set(models))}


def _read(line: str) -> dict[str, Any] | None:
    """A line of the ledger; None of what a killed process wrote half, before it scored anything."""
    try:
        found: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None
    return found
