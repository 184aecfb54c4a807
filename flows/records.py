"""What each night did: one small file a night, from which the next nights see what has happened before.

A record is written when a night has found something to do, and again when it is over. A night that was
killed has left the first of the two, which says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from steps import artifacts

FOLDER = Path(".headstart/nightly")
# How many nights back is looked.
NIGHTS = 120
# What an experiment's night may come to.
FAILED = ("failed", "unpublished", "broken off")
WELL = ("promoted", "refused", "same", "nothing", "drift")

Record = dict[str, Any]


def new(now: datetime) -> Record:
    """An empty record with its number and its name; the number counts up also where the clock goes back."""
    number = 1 + max((one["number"] for one in recent()), default=0)
    name = now.astimezone(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    while path_of({"name": name}).exists():
        name = f"{name.partition('.')[0]}.{number}"
    return {"number": number, "name": name, "began": now.astimezone(UTC).isoformat(), "experiments": {}}


def path_of(record: Record) -> Path:
    """Where a record lies."""
    return FOLDER / f"{record['name']}.json"


def write(record: Record) -> Path:
    """Write a record, whole or not at all."""
    path = path_of(record)
    artifacts.write_json(path, record)
    return path


def recent(nights: int = NIGHTS) -> list[Record]:
    """The last nights, the newest first, by their numbers; what cannot be read is no record."""
    found = []
    for path in sorted(FOLDER.glob("*.json"), reverse=True)[:nights]:
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(path.read_text("utf-8"))
            found.append((int(record["number"]), record))
    return [record for _, record in sorted(found, key=lambda pair: pair[0], reverse=True)]


def failed_before(records: Iterable[Record], experiment: str) -> int:
    """How many nights in a row, up to the last, an experiment failed."""
    count = 0
    for record in records:
        outcome = _outcome(record, experiment)
        if outcome in WELL:
            break
        count += outcome in FAILED
    return count


def stopped_before(records: Iterable[Record]) -> int:
    """How many nights in a row, up to the last, stopped before any experiment."""
    return sum(1 for _ in takewhile(lambda record: bool(record.get("failed")), records))


def told_of(records: Iterable[Record], experiment: str, drift: Record) -> bool:
    """Whether a night has told of this drift already."""
    return any(_of(record, experiment).get("drift") == mark(drift) for record in records)


def mark(drift: Record) -> str:
    """What a drift is known by: the inputs it was found in."""
    return str(drift.get("inputs_sha256") or drift.get("time"))


def had_cause(records: Iterable[Record], experiment: str, kind: str) -> bool:
    """Whether the last night that looked at an experiment had a cause of this kind."""
    last = next(filter(None, (_of(record, experiment) for record in records)), {})
    return any(cause["kind"] == kind for cause in last.get("causes", ()))


def built_anew(records: Iterable[Record], experiment: str) -> datetime | None:
    """When a night last built an experiment anew, though nothing had changed, and it came out well."""
    for record in records:
        found = _of(record, experiment)
        if found.get("anew") and found.get("outcome") in WELL:
            return datetime.fromisoformat(record["began"])
    return None


def _outcome(record: Record, experiment: str) -> str | None:
    """What became of an experiment; of all where the night itself failed; None where it was not looked at."""
    if record.get("failed"):
        return "failed"
    outcome = _of(record, experiment).get("outcome")
    return None if outcome is None else str(outcome)


def _of(record: Record, experiment: str) -> Record:
    found = record.get("experiments", {}).get(experiment)
    return found if isinstance(found, dict) else {}


def in_a_row(count: int) -> str:
    """How often, as people say it: nothing for the first time."""
    words: Sequence[str] = ("", "", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return "" if count < 2 else f"{words[count] if count < len(words) else count} nights in a row"
