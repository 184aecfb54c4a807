"""The alias ledger: which version was champion, since when, by whom and why.

MLflow keeps no history of its aliases. So every move is first written as an entry, then made. An entry is a
run of the MLflow experiment `headstart/decisions`, so it can be read in MLflow's own pages, on any backend.
It holds the SHA-256 of the entry before it: who changes or removes one breaks the chain from there on. That
the end was not cut off is known from the number and hash of the last entry on the registered model, and from
a copy that each clone keeps of what it saw.

An entry's run is unfinished until the aliases have moved. So a move that was broken off between the two is
completed by whoever comes next, and aliases that differ from the last finished entry were changed by hand.
Order is by number; the times are told and never trusted.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from steps import artifacts
from steps.errors import LedgerError, TrackingError, UserError
from steps.tracking import lease, store
from steps.tracking.lease import Lease
from steps.tracking.once import once
from steps.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import RegisteredModel

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
ALIASES = (PREVIOUS, CHAMPION, CHALLENGER)
What = Literal["promote", "keep", "rollback", "found"]

DECISIONS = "headstart/decisions"
MODEL, NUMBER, LEDGER, LEDGER_SHA = (
    f"headstart.{name}" for name in ("model", "entry", "ledger", "ledger_sha256")
)
WITHDRAWN, HEAD = "headstart.withdrawn", "headstart.ledger_head"
START = "0" * 64
# The longest text that every backend takes as a tag; more goes on in `headstart.ledger.1`, and so on.
PIECE = 5000
SHOWN = 1000
TRIES = 5
# Over whatever version is champion now.
ANY = ""
# MLflow's ViewType.ALL, which is no reason to import mlflow.
EVERY_VIEW = 3


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Attributes:
        model: the registered model's name.
        number: from 1 on, without gaps.
        time: when it was written by the writer's clock, ISO, UTC.
        who: wrote it.
        what: a promotion, a refusal by the gate, a way back, or a change by hand that was found later.
        before: version of each alias before the move.
        after: version of each alias after it.
        why: as it was said; any text.
        evidence: what the decision rests on; any JSON value.
        previous: SHA-256 of the entry before, zeros for the first.
        sha256: of this entry.
    """

    model: str
    number: int
    time: str
    who: str
    what: What
    before: dict[str, str]
    after: dict[str, str]
    why: str
    evidence: dict[str, Any]
    previous: str
    sha256: str


@dataclass(frozen=True)
class _Row:
    """An entry with the run that holds it."""

    entry: Entry
    run_id: str
    moved: bool


@dataclass(frozen=True)
class Look:
    """All that a model's ledger and registry say now.

    Attributes:
        entries: of the ledger, as far as the chain holds.
        aliases: as the registry has them.
        moved: the last entry's move was carried out; what was broken off is completed by the next writer.
        seen: of the entries, how many this clone had a copy of before.
        broken: where the chain does not hold.
    """

    entries: tuple[Entry, ...]
    aliases: dict[str, str]
    moved: bool
    seen: int
    broken: LedgerError | None

    @property
    def by_hand(self) -> str | None:
        """How the aliases differ from the ledger, in words; None where they agree, or a move is under way."""
        said = self.entries[-1].after if self.entries else {}
        if not self.moved or self.broken or said == self.aliases or not self.entries:
            return None
        return _found_why(said, self.aliases)


class MovedError(TrackingError):
    """The champion is another one than was compared with; compare again."""


class _ContendedError(Exception):
    """Another writer had the same number."""


# -------------------------------------------------------------------------------------------------- looking


def current(opened: Store, model: str) -> dict[str, str]:
    """The version each of our aliases points to now, as the registry has it; those that are not set lack."""
    found = _registered(opened, model)
    return {} if found is None else _aliases(found)


def history(opened: Store, model: str) -> list[Entry]:
    """All entries of a model, from the first, after the whole chain was checked.

    Raises:
        LedgerError: an entry was changed, removed or cannot be read; the message names it.
    """
    return [row.entry for row in _rows(opened, model, _registered(opened, model))]


def look(opened: Store, model: str) -> Look:
    """The ledger and the aliases, also where the chain does not hold."""
    found = _registered(opened, model)
    rows: list[_Row] = []
    broken: LedgerError | None = None
    known = 0
    try:
        known = 0 if found is None else len(_witnessed(model, found))
        _read(opened, model, found, rows)
    except LedgerError as error:
        broken = error
    entries = tuple(row.entry for row in rows)
    moved = not rows or rows[-1].moved
    return Look(entries, {} if found is None else _aliases(found), moved, min(known, len(rows)), broken)


def looks(opened: Store, model: str, test_sha256: str) -> int:
    """How many decisions rest on a frozen test set, by its digest.

    Raises:
        LedgerError: as `history`.
    """
    return sum(test_sha256 in (one.evidence.get("tests") or ()) for one in history(opened, model))


def lost_champion(opened: Store, model: str) -> Entry | None:
    """The last entry that had a champion, where the registry has none now; else None.

    Raises:
        LedgerError: as `history`.
    """
    if CHAMPION in current(opened, model):
        return None
    return next((one for one in reversed(history(opened, model)) if CHAMPION in one.after), None)


# --------------------------------------------------------------------------------------------------- moving


def promote(
    opened: Store,
    model: str,
    version: str,
    *,
    why: str,
    evidence: Mapping[str, Any] | None = None,
    who: str | None = None,
    over: str | None = ANY,
) -> Entry:
    """Make a version the champion; the champion before becomes `previous`.

    Where the version is the champion already, nothing is written, and its entry is given.

    Args:
        opened: the store.
        model: the registered model's name.
        version: that becomes champion.
        why: what people read later.
        evidence: what it rests on, as JSON takes it; `tests` lists digests of frozen test sets.
        who: acts; None takes HEADSTART_WHO or user@host.
        over: the champion it was compared with, None for none; nothing moves where another is it by now.

    Raises:
        UserError: there is no such version.
        MovedError: another version has become champion.
        LedgerError: the ledger was tampered with.
        TrackingError: others hold the aliases for too long.
    """

    def plan(rows: list[_Row], before: dict[str, str]) -> dict[str, Any] | Entry:
        _require(opened, model, version)
        if over != ANY and over != before.get(CHAMPION):
            raise MovedError(
                f"the champion of {model} is {_one(before.get(CHAMPION))} by now; "
                f"version {version} was compared with {_one(over)}"
            )
        if before.get(CHAMPION) == version:
            return next(row.entry for row in reversed(rows) if row.entry.after.get(CHAMPION) == version)
        after = before | {CHAMPION: version}
        if CHAMPION in before:
            after[PREVIOUS] = before[CHAMPION]
        elif after.get(PREVIOUS) == version:
            del after[PREVIOUS]
        return _said(model, "promote", before, _without_challenger(after), why, evidence, who)

    return _change(opened, model, plan)


def keep(
    opened: Store,
    model: str,
    version: str,
    *,
    why: str,
    evidence: Mapping[str, Any] | None = None,
    who: str | None = None,
) -> Entry:
    """Write down that a version was refused: it becomes `challenger`, the champion stays.

    The same refusal is written once, however often it is told one after the other.

    Args:
        opened: the store.
        model: the registered model's name.
        version: that was refused.
        why: what people read later.
        evidence: what it rests on, as JSON takes it; `tests` lists digests of frozen test sets.
        who: acts; None takes HEADSTART_WHO or user@host.

    Raises:
        UserError: there is no such version.
        LedgerError: the ledger was tampered with.
        TrackingError: others hold the aliases for too long.
    """

    def plan(rows: list[_Row], before: dict[str, str]) -> dict[str, Any] | Entry:
        _require(opened, model, version)
        said = _said(model, "keep", before, before | {CHALLENGER: version}, why, evidence, who)
        last = rows[-1].entry if rows else None
        if last is not None and all(
            getattr(last, name) == said[name] for name in ("what", "after", "why", "evidence")
        ):
            return last
        return said

    return _change(opened, model, plan)


def rollback(opened: Store, model: str, *, why: str, who: str | None = None) -> Entry:
    """Make the version before the champion again; twice is there and back.

    Args:
        opened: the store.
        model: the registered model's name.
        why: what people read later.
        who: acts; None takes HEADSTART_WHO or user@host.

    Raises:
        UserError: there is none before, or it is gone.
        LedgerError: the ledger was tampered with.
        TrackingError: others hold the aliases for too long.
    """

    def plan(rows: list[_Row], before: dict[str, str]) -> dict[str, Any] | Entry:
        if PREVIOUS not in before:
            raise UserError(_no_previous(model, rows))
        _require(opened, model, before[PREVIOUS])
        after = before | {CHAMPION: before[PREVIOUS]}
        had = before.get(CHAMPION) or _last_champion(rows)
        del after[PREVIOUS]
        if had is not None and had != after[CHAMPION]:
            after[PREVIOUS] = had
        return _said(model, "rollback", before, _without_challenger(after), why, None, who)

    return _change(opened, model, plan)


def settle(opened: Store, model: str) -> Entry | None:
    """Complete a move that was broken off, and write down a change by hand.

    Returns:
        The entry that was completed or written; None where ledger and aliases agree.

    Raises:
        LedgerError: the ledger was tampered with.
        TrackingError: others hold the aliases for too long.
    """
    found = _registered(opened, model)
    rows = _rows(opened, model, found)
    if found is None or _agree(rows, _aliases(found)):
        return None
    with lease.held(opened, model) as held:
        found = _registered(opened, model)
        rows = _rows(opened, model, found)
        if found is None or _agree(rows, _aliases(found)):
            return None
        return _settle(held, model, rows, _aliases(found))[-1].entry


def _change(
    opened: Store, model: str, plan: Callable[[list[_Row], dict[str, str]], dict[str, Any] | Entry]
) -> Entry:
    """Make ledger and aliases agree, then write and do what is planned upon them.

    Args:
        opened: the store.
        model: the registered model's name.
        plan: from the ledger and the aliases, a new entry but for its place, or an old one: then nothing is
            to do.
    """
    for _ in range(TRIES):
        with contextlib.suppress(_ContendedError), lease.held(opened, model) as held:
            rows, before = _settled(held, model)
            planned = plan(rows, before)
            return planned if isinstance(planned, Entry) else _write(held, rows, planned).entry
        time.sleep(random.uniform(0, 1))
    raise TrackingError(f"others keep moving the aliases of {model}; try again later")


def mend(opened: Store, model: str) -> Entry | None:
    """Put a ledger that does not hold back as this clone saw it, and write down that this was done.

    Entries that are not what this clone saw are taken out of the ledger; their runs stay among MLflow's
    deleted ones. No alias moves.

    Returns:
        The entry that tells of it; None where the ledger holds.

    Raises:
        LedgerError: this clone has no copy, or one that does not hold itself.
        TrackingError: others hold the aliases for too long.
    """
    with lease.held(opened, model) as held:
        found, broken = _registered(opened, model), look(opened, model).broken
        if found is None or broken is None:
            return None
        copied = _copied(model, found)
        if not copied:
            raise LedgerError(
                f"{broken}; this clone has no copy to put it back from, try one that has moved it"
            )
        put_back = _put_back(held, model, copied)
        opened.client.set_registered_model_tag(model, HEAD, f"{len(copied)} {copied[-1].sha256}")
        rows = _rows(opened, model, _registered(opened, model))
        why = f"put back from the copy of a clone: {len(copied)} entries, of which {put_back or 'none'} anew"
        said = _said(model, "found", copied[-1].after, _aliases(found), why, None, None)
        return _write(held, rows, said).entry


def _put_back(held: Lease, model: str, copied: list[Entry]) -> str:
    """Take out what is not in the copy, write what is missing; gives the numbers of these."""
    client, left = held.opened.client, {one.number: one for one in copied}
    for run in _search(held.opened, model):
        held.hold()
        number, active = run.data.tags.get(NUMBER, ""), run.info.lifecycle_stage != "deleted"
        entry = left.get(int(number)) if number.isdecimal() else None
        same = entry is not None and _text(run.data.tags) == _canonical(entry)
        if entry is not None and same and active and run.data.tags.get(LEDGER_SHA) == entry.sha256:
            del left[entry.number]
            continue
        if not active:
            client.restore_run(run.info.run_id)
        client.set_tag(run.info.run_id, WITHDRAWN, "true")
        client.delete_run(run.info.run_id)
    for entry in left.values():
        held.hold()
        _finish(held, entry, _add(held.opened, entry, _canonical(entry)))
    return ", ".join(map(str, left))


def _copied(model: str, found: RegisteredModel) -> list[Entry]:
    """This clone's copy, after its own chain was checked."""
    entries = [Entry(**one) for one in _witnessed(model, found)]
    previous = START
    for number, one in enumerate(entries, 1):
        digest = sha256(_canonical(one).encode()).hexdigest()
        if (one.number, one.previous, one.sha256) != (number, previous, digest):
            raise LedgerError(f"{witness_file(model)} does not hold itself: its entry {number} was changed")
        previous = one.sha256
    return entries


def _canonical(entry: Entry) -> str:
    """What an entry's hash is taken of."""
    said = asdict(entry)
    del said["sha256"]
    return _text_of(said)


def _text_of(said: Mapping[str, Any]) -> str:
    return json.dumps(said, sort_keys=True, separators=(",", ":"))


def _agree(rows: list[_Row], aliases: dict[str, str]) -> bool:
    if not rows:
        return not aliases
    return rows[-1].moved and rows[-1].entry.after == aliases


def _settled(held: Lease, model: str) -> tuple[list[_Row], dict[str, str]]:
    """The ledger and the aliases, after they were made to agree."""
    found = _registered(held.opened, model)
    if found is None:
        raise UserError(f"MLflow has no registered model {model}; `headstart run` makes one")
    rows, aliases = _rows(held.opened, model, found), _aliases(found)
    if not _agree(rows, aliases):
        rows = _settle(held, model, rows, aliases)
    return rows, dict(rows[-1].entry.after) if rows else {}


def _settle(held: Lease, model: str, rows: list[_Row], aliases: dict[str, str]) -> list[_Row]:
    if rows and not rows[-1].moved:
        last = rows[-1]
        there = {name: one for name, one in last.entry.after.items() if _exists(held.opened, model, one)}
        _point(held, model, aliases, there)
        _finish(held, last.entry, last.run_id)
        rows, aliases = [*rows[:-1], _Row(last.entry, last.run_id, moved=True)], there
        if there == last.entry.after:
            return rows
    before = rows[-1].entry.after if rows else {}
    why = _found_why(before, aliases) if rows else "the aliases were there before the ledger"
    return [*rows, _write(held, rows, _said(model, "found", before, aliases, why, None, None))]


def _found_why(before: dict[str, str], after: dict[str, str]) -> str:
    told = [
        f"{name} {_one(before.get(name))} → {_one(after.get(name))}"
        for name in ALIASES
        if before.get(name) != after.get(name)
    ]
    return f"changed outside of Headstart: {', '.join(told)}"


def _one(version: str | None) -> str:
    return "none" if version is None else f"version {version}"


def _without_challenger(after: dict[str, str]) -> dict[str, str]:
    """The aliases of a move; what has become champion challenges nobody."""
    same = after.get(CHALLENGER) == after[CHAMPION]
    return {name: one for name, one in after.items() if not (same and name == CHALLENGER)}


def _last_champion(rows: list[_Row]) -> str | None:
    return next((row.entry.after[CHAMPION] for row in reversed(rows) if CHAMPION in row.entry.after), None)


def _no_previous(model: str, rows: list[_Row]) -> str:
    were = list(dict.fromkeys(row.entry.after[CHAMPION] for row in rows if CHAMPION in row.entry.after))
    told = f"champion were: version {', '.join(were)}" if were else "there never was a champion"
    return (
        f"{model} has no version with the alias {PREVIOUS!r} to go back to; {told}; "
        f"`headstart promote {model}@N` makes version N champion"
    )


# -------------------------------------------------------------------------------------------------- writing


def _said(
    model: str,
    what: What,
    before: dict[str, str],
    after: dict[str, str],
    why: str,
    evidence: Mapping[str, Any] | None,
    who: str | None,
) -> dict[str, Any]:
    """An entry but for its place in the chain."""
    return {
        "model": model,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": who or lease.who(),
        "what": what,
        "before": before,
        "after": after,
        "why": why,
        # As it will be read again: a tuple is a list then, and what is no number is null.
        "evidence": json.loads(json.dumps(dict(evidence or {})), parse_constant=lambda name: None),
    }


def _write(held: Lease, rows: list[_Row], said: dict[str, Any]) -> _Row:
    """Write an entry and do what it says.

    The lease lets one write at a time. Should it have been lost without notice, two entries have one number;
    whoever sees that takes its own back before anything has moved.

    Raises:
        _ContendedError: so it was; look again.
    """
    held.hold()
    model, number = said["model"], len(rows) + 1
    whole = said | {"number": number, "previous": rows[-1].entry.sha256 if rows else START}
    text = _text_of(whole)
    entry = Entry(**whole, sha256=sha256(text.encode()).hexdigest())
    run_id = _add(held.opened, entry, text)
    if len(_search(held.opened, model, number)) > 1:
        held.opened.client.set_tag(run_id, WITHDRAWN, "true")
        held.opened.client.delete_run(run_id)
        raise _ContendedError
    held.opened.client.set_registered_model_tag(model, HEAD, f"{number} {entry.sha256}")
    if entry.what != "found":
        held.hold()
        _point(held, model, entry.before, entry.after)
    _finish(held, entry, run_id)
    row = _Row(entry, run_id, moved=True)
    found = _registered(held.opened, model)
    if found is not None:
        _witness(found, [*(one.entry for one in rows), entry])
    return row


def _add(opened: Store, entry: Entry, text: str) -> str:
    pieces = {
        LEDGER if at == 0 else f"{LEDGER}.{at // PIECE}": text[at : at + PIECE]
        for at in range(0, len(text), PIECE)
    }
    tags = pieces | {
        MODEL: entry.model,
        NUMBER: str(entry.number),
        LEDGER_SHA: entry.sha256,
        "headstart.kind": "decision",
        "mlflow.note.content": note(entry),
        "mlflow.user": entry.who[:PIECE],
    }
    name = f"{entry.what} {entry.model} {entry.after.get(CHAMPION, '')}".strip()
    experiment_id = _experiment(opened)
    return once(
        lambda: str(opened.client.create_run(experiment_id, tags=tags, run_name=name).info.run_id),
        lambda: _written(opened, entry),
    )


def _written(opened: Store, entry: Entry) -> str | None:
    """The run that holds an entry; None where it was not written."""
    runs = _search(opened, entry.model, entry.number)
    return next((str(run.info.run_id) for run in runs if run.data.tags.get(LEDGER_SHA) == entry.sha256), None)


def _experiment(opened: Store) -> str:
    from mlflow.exceptions import MlflowException

    found = opened.client.get_experiment_by_name(DECISIONS)
    if found is not None:
        return str(found.experiment_id)
    root = store.artifact_root(opened.uri)
    location = None if root is None else (root / "decisions").as_uri()
    try:
        return str(opened.client.create_experiment(DECISIONS, location))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another model's first entry, in this moment
            raise
        found = opened.client.get_experiment_by_name(DECISIONS)
        assert found is not None
        return str(found.experiment_id)


def note(entry: Entry) -> str:
    """An entry in a few lines of markdown, as MLflow shows it above the run; no text of others is a mark."""
    lines = [f"**{entry.what}** by {_plain(entry.who)}, {entry.time}", "", _plain(entry.why), ""]
    lines += ["| alias | before | after |", "|---|---|---|"]
    lines += [
        f"| {name} | {entry.before.get(name, '-')} | {entry.after.get(name, '-')} |"
        for name in (CHAMPION, CHALLENGER, PREVIOUS)
    ]
    return "\n".join(lines)


def _plain(text: str) -> str:
    short = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    short = short if len(short) <= SHOWN else f"{short[:SHOWN]}…"
    return re.sub(r"([\\`*_\[\]<>|#~!&])", r"\\\1", short)


def _point(held: Lease, model: str, before: dict[str, str], after: dict[str, str]) -> None:
    """Let the aliases be as they are to be; `previous` first, so that the way back is there in time."""
    for name in ALIASES:
        if name in after and before.get(name) != after[name]:
            held.opened.client.set_registered_model_alias(model, name, after[name])
    for name in ALIASES:
        if name in before and name not in after:
            held.opened.client.delete_registered_model_alias(model, name)


def _finish(held: Lease, entry: Entry, run_id: str) -> None:
    held.opened.client.set_terminated(run_id, "FINISHED")


def _require(opened: Store, model: str, version: str) -> None:
    if not _exists(opened, model, version):
        raise UserError(
            f"{model} has no version {version}; `headstart history {model}` lists those there were"
        )


def _exists(opened: Store, model: str, version: str) -> bool:
    try:
        opened.client.get_model_version(model, version)
    except Exception as error:
        return not store.is_absent(error)
    return True


# ------------------------------------------------------------------------------------------------- checking


def _registered(opened: Store, model: str) -> RegisteredModel | None:
    try:
        return opened.client.get_registered_model(model)
    except Exception as error:
        store.is_absent(error)
        return None


def _aliases(found: RegisteredModel) -> dict[str, str]:
    return {name: str(found.aliases[name]) for name in ALIASES if name in found.aliases}


def _search(opened: Store, model: str, number: int | None = None) -> list[Run]:
    """The runs of a model's entries, deleted ones too, but for those that were taken back.

    Raises:
        LedgerError: the experiment was deleted.
    """
    experiment = opened.client.get_experiment_by_name(DECISIONS)
    if experiment is None:
        return []
    if experiment.lifecycle_stage == "deleted":
        raise LedgerError(
            f"the experiment {DECISIONS}, which holds the ledger of every model, was deleted in MLflow; "
            f"restore it: `mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        )
    wanted = f"tags.`{MODEL}` = '{model}'" + (f" AND tags.`{NUMBER}` = '{number}'" if number else "")
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = opened.client.search_runs(
            [experiment.experiment_id], wanted, EVERY_VIEW, max_results=1000, page_token=token
        )
        runs += [run for run in page if WITHDRAWN not in run.data.tags]
        token = page.token
        if not token:
            return runs


def _rows(opened: Store, model: str, found: RegisteredModel | None) -> list[_Row]:
    """The chain, checked from end to end; what is new in it is remembered in this clone.

    Raises:
        LedgerError: it does not hold.
    """
    rows: list[_Row] = []
    _read(opened, model, found, rows)
    return rows


def _read(opened: Store, model: str, found: RegisteredModel | None, rows: list[_Row]) -> None:
    """Append the chain to `rows`, entry by entry, so far as it holds.

    Raises:
        LedgerError: it does not hold.
    """
    by_number: dict[str, list[Run]] = {}
    for run in _search(opened, model):
        by_number.setdefault(run.data.tags.get(NUMBER, ""), []).append(run)
    for number in range(1, _last_number(by_number) + 1):
        runs = by_number.get(str(number), [])
        rows.append(_row(model, number, runs, rows[-1].entry.sha256 if rows else START))
    entries = [row.entry for row in rows]
    if found is not None:
        _check_head(model, entries, found)
        _check_witness(model, entries, found)
        _witness(found, entries)


def _last_number(by_number: Mapping[str, list[Run]]) -> int:
    return max((int(one) for one in by_number if one.isdecimal()), default=0)


def _row(model: str, number: int, runs: list[Run], previous: str) -> _Row:
    if not runs:
        raise _broken(model, number, "is missing: it was removed from MLflow, or its tags were")
    if len(runs) > 1:
        ids = ", ".join(run.info.run_id for run in runs)
        raise _broken(model, number, f"is there {len(runs)} times (runs {ids}); delete what is not yours")
    run = runs[0]
    if run.info.lifecycle_stage == "deleted":
        raise _broken(
            model, number, f"was deleted; restore it: `mlflow runs restore --run-id {run.info.run_id}`"
        )
    tags, text = run.data.tags, _text(run.data.tags)
    digest = sha256(text.encode()).hexdigest()
    if digest != tags.get(LEDGER_SHA):
        raise _broken(model, number, f"was changed after it was written (run {run.info.run_id})")
    try:
        entry = Entry(**json.loads(text), sha256=digest)
    except (ValueError, TypeError):
        raise _broken(model, number, f"cannot be read (run {run.info.run_id})") from None
    if (entry.model, entry.number) != (model, number):
        raise _broken(model, number, f"says that it is entry {entry.number} of {entry.model}")
    if entry.previous != previous:
        raise _broken(model, number, f"does not follow entry {number - 1}: one of the two was changed")
    return _Row(entry, run.info.run_id, moved=run.info.status != "RUNNING")


def _text(tags: Mapping[str, str]) -> str:
    pieces, at = [tags.get(LEDGER, "")], 1
    while f"{LEDGER}.{at}" in tags:
        pieces.append(tags[f"{LEDGER}.{at}"])
        at += 1
    return "".join(pieces)


def _broken(model: str, number: int, what: str) -> LedgerError:
    return LedgerError(
        f"the ledger of {model} does not hold: entry {number} {what}; nothing is moved until it does. "
        f"`headstart history {model} --mend` puts it back as this clone saw it, in {witness_file(model)}"
    )


def _check_head(model: str, entries: list[Entry], found: RegisteredModel) -> None:
    number, _, digest = found.tags.get(HEAD, "").partition(" ")
    if not number.isdecimal() or int(number) == 0:
        return
    if int(number) > len(entries):
        raise _broken(model, int(number), "is missing: the end was cut off")
    if entries[int(number) - 1].sha256 != digest:
        raise _broken(model, int(number), "is not the one that was written")


# --------------------------------------------------------------------------------- what this clone has seen


def witness_file(model: str) -> Path:
    """This clone's copy of a model's ledger; only ever added to, outside of DVC's care."""
    return Path(".headstart/aliases") / f"{urllib.parse.quote(model, safe='')}.jsonl"


def _witnessed(model: str, found: RegisteredModel) -> list[dict[str, Any]]:
    """What this clone saw of this very registered model, entry by entry; one made anew has nothing."""
    path = witness_file(model)
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [one["entry"] for one in lines if one["registered"] == found.creation_timestamp]
    except (ValueError, TypeError, KeyError):
        raise LedgerError(
            f"{path} is damaged; it is this clone's copy of the ledger of {model}: remove it, and the ledger "
            "in MLflow is copied anew"
        ) from None


def _check_witness(model: str, entries: list[Entry], found: RegisteredModel) -> None:
    for at, saw in enumerate(_witnessed(model, found)):
        if at >= len(entries):
            raise _broken(model, at + 1, "is missing: the ledger was cut off or rewritten")
        if entries[at].sha256 != saw["sha256"]:
            raise _broken(model, at + 1, "is not the one this clone saw: the ledger was rewritten")


def _witness(found: RegisteredModel, entries: list[Entry]) -> None:
    """Remember what is new; what another registered model of this name had stays."""
    if not entries:
        return
    path, model = witness_file(entries[0].model), entries[0].model
    known = len(_witnessed(model, found))
    if known >= len(entries):
        return
    new = [{"registered": found.creation_timestamp, "entry": asdict(one)} for one in entries[known:]]
    before = path.read_text("utf-8") if path.exists() else ""
    with artifacts.new_file(path) as partial:
        partial.write_text(before + "".join(f"{json.dumps(one, sort_keys=True)}\n" for one in new), "utf-8")
