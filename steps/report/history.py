"""What earlier comparisons of an experiment said: one JSON line each, added when the result changes.

The history belongs to no stage, so it may hold the time, which comparison.json must not: the same inputs
give the same comparison on any day.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from steps import artifacts
from steps.errors import HeadstartError

FOLDER = Path(".headstart/history")


def file_of(experiment: str, folder: Path = FOLDER) -> Path:
    """Where an experiment's history lies."""
    # No name leads out of the folder.
    return folder / f"{quote(experiment, safe='')}.jsonl"


def record(comparison: Mapping[str, Any], when: datetime, path: Path) -> bool:
    """Add the comparison to the history, unless it is what the last line tells already.

    Two processes take turns. A line that a killed process left half-written is taken away first.

    Args:
        comparison: as in comparison.json.
        when: the time, with its zone.
        path: the history, `.jsonl`; made when missing.

    Returns:
        Whether a line was added.

    Raises:
        HeadstartError: a line of the history is not JSON.
    """
    assert when.tzinfo is not None, "a time without a zone is no time"
    path.parent.mkdir(parents=True, exist_ok=True)
    line = entry_of(comparison, when)
    with path.open("a+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        found = stream.read()
        whole = found[: found.rfind(b"\n") + 1]
        earlier = _parse(whole, path)
        if earlier and earlier[-1]["identity"] == line["identity"]:
            return False
        stream.truncate(len(whole))
        stream.write(json.dumps(line, sort_keys=True).encode("ascii") + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    return True


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines, oldest first; none when there is no history yet.

    Raises:
        HeadstartError: a line is not JSON.
    """
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return []
    return _parse(found[: found.rfind(b"\n") + 1], path)


def entry_of(comparison: Mapping[str, Any], when: datetime) -> dict[str, Any]:
    """One line of the history: when, which comparison, the best arm, and the verdict."""
    best = next(arm for arm in comparison["arms"] if arm["arm"] == comparison["best_arm"])
    verdict = comparison["verdict"]
    return {
        "time": when.astimezone(UTC).isoformat(timespec="seconds"),
        "identity": identity(comparison),
        "metric": comparison["metric"]["name"],
        "best_arm": comparison["best_arm"],
        **{key: best[key] for key in ("mean", "ci_low", "ci_high")},
        "verdict": {key: verdict[key] for key in ("call", "arm", "difference", "ci_low", "ci_high")},
    }


def identity(comparison: Mapping[str, Any]) -> str:
    """SHA-256 of the whole comparison."""
    return artifacts.sha256_json(comparison)


def _parse(whole: bytes, path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise HeadstartError(
                f"{path}, line {number} is not JSON ({error}); delete that line or the file"
            ) from None
    return lines
