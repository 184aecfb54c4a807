"""release: make a version champion by hand, go back to the one before, and tell what was champion when.

No DVC stage: it touches the outside world. Every move is written to the alias ledger first.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from steps import entry
from steps.errors import UserError
from steps.tracking import aliases, download, naming, reader, registry, store
from steps.tracking.aliases import CHALLENGER, CHAMPION, PREVIOUS, Entry, Look
from steps.tracking.store import Store

ADVICE = "nothing was moved that `headstart history` does not tell; look at MLFLOW_TRACKING_URI"
# A pipe has no width: lines must not be folded at 80.
PIPE_WIDTH = 200
# What people say in a line or two; evidence belongs into the run.
WHY_LIMIT = 2000
STYLES = {"promote": "green", "rollback": "yellow", "found": "yellow", "keep": ""}


def promote(reference: str, why: str) -> None:
    """Make a version the champion, after its bytes were compared with what was registered.

    Args:
        reference: `EXPERIMENT@ALIAS`, or a model's full name and a number.
        why: the reason, for the ledger.

    Raises:
        UserError: there is no such version, or it is the champion already.
        TrackingError: its files are gone or differ; nothing was moved.
        LedgerError: the ledger was tampered with.
    """
    _check_why(why)
    download.require_store()
    with store.opened(ADVICE) as opened:
        version = naming.version_of(opened, reference)
        done = _settle(opened, version.model)
        if done is not None and done.what == "promote" and done.after[CHAMPION] == version.number:
            _say_moved(done)  # by this very command, given before
            return
        if aliases.current(opened, version.model).get(CHAMPION) == version.number:
            raise UserError(f"version {version.number} of {version.model} is the champion already")
        files = registry.verify(version)
        told = (
            "older than the list of its files, not compared"
            if files is None
            else f"{files} files as registered"
        )
        entry.say(f"{version.model}: version {version.number}: {told}")
        _say_moved(aliases.promote(opened, version.model, version.number, why=why))


def rollback(model: str, why: str) -> None:
    """Make the champion before the champion again.

    Args:
        model: a registered model, or the name of its experiment.
        why: the reason, for the ledger.

    Raises:
        UserError: there is no champion before.
        LedgerError: the ledger was tampered with.
    """
    _check_why(why)
    download.require_store()
    with store.opened(ADVICE) as opened:
        name = naming.model_of(opened, model)
        done = _settle(opened, name)
        # A way back that was broken off is the one that is asked for again: a second would undo it.
        if done is None or done.what != "rollback":
            done = aliases.rollback(opened, name, why=why)
        _say_moved(done)


def history(model: str, as_json: bool = False) -> None:
    """Print the ledger of a model: who moved its aliases when, from where to where, and why.

    Args:
        model: a registered model, or the name of its experiment.
        as_json: one JSON object and nothing else.

    Raises:
        LedgerError: it was tampered with; printed is what holds.
    """
    with reader.reading("look at MLFLOW_TRACKING_URI") as (opened, _):
        name = naming.model_of(opened, model)
        found = aliases.look(opened, name)
    if as_json:
        said = {"model": name, "aliases": found.aliases, "entries": [asdict(one) for one in found.entries]}
        holds = {"holds": found.broken is None, "seen": found.seen, "moved": found.moved}
        entry.say(json.dumps(said | holds | {"by_hand": found.by_hand}, sort_keys=True))
    else:
        _show(name, found)
    if found.broken is not None:
        raise found.broken


def mend(model: str) -> None:
    """Put a ledger that was tampered with back as this clone saw it.

    Args:
        model: a registered model, or the name of its experiment.

    Raises:
        LedgerError: this clone has no copy of it.
    """
    download.require_store()
    with store.opened(ADVICE) as opened:
        name = naming.model_of(opened, model)
        found = aliases.mend(opened, name)
    told = (
        "the ledger holds, nothing to mend" if found is None else f"{found.why} (entry {found.number} tells)"
    )
    entry.say(f"{name}: {told}")


def _check_why(why: str) -> None:
    if len(why) > WHY_LIMIT:
        raise UserError(f"--why has {len(why):,} characters; say it in at most {WHY_LIMIT:,}")


def _settle(opened: Store, model: str) -> Entry | None:
    """Complete what was broken off; gives and tells it."""
    found = aliases.settle(opened, model)
    if found is not None:
        what = f"entry {found.number}, {found.what}: {clean(found.why)}"
        entry.say(f"{model}: completed the ledger: {what}")
    return found


def _say_moved(found: Entry) -> None:
    before = found.before.get(CHAMPION)
    now = f"version {found.after[CHAMPION]} is champion"
    told = f"; before it was version {before}" if before else ""
    entry.say(f"{found.model}: {now}{told} (entry {found.number} of the ledger)")


# ------------------------------------------------------------------------------------------------- the table


def short(who: str) -> str:
    """Who, with as much of a flow run's id as tells it apart; `--json` has all of it."""
    return re.sub(r"\(flow run ([0-9a-f]{8})-[0-9a-f-]+\)", r"(\1)", who)


def _show(model: str, found: Look) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH, force_terminal=False)
    if found.entries:
        console.print(table(found.entries))
        console.print()
    for line in notes(model, found):
        console.print(Text(line), soft_wrap=not console.is_terminal)


def table(entries: tuple[Entry, ...]) -> Table:
    """A line for each entry; the reasons are folded, nothing of them steers the terminal."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    shown.add_column("#", justify="right", no_wrap=True)
    shown.add_column("when (UTC)", no_wrap=True)
    shown.add_column("who", overflow="fold", max_width=20)
    shown.add_column("what", no_wrap=True)
    shown.add_column("champion", no_wrap=True)
    shown.add_column("why", overflow="fold", min_width=24)
    for one in entries:
        when = clean(one.time)[:16].replace("T", " ")
        cells = (str(one.number), when, short(clean(one.who)), one.what, moved(one), clean(one.why) or "-")
        shown.add_row(*map(Text, cells), style=STYLES[one.what])
    return shown


def moved(one: Entry) -> str:
    """What became of the champion: `3 → 4`, `3` where it stayed, with the version that was refused."""
    before, after = one.before.get(CHAMPION, "none"), one.after.get(CHAMPION, "none")
    if one.what == "keep":
        return f"{after}, not {one.after[CHALLENGER]}"
    return after if before == after else f"{before} → {after}"


def notes(model: str, found: Look) -> list[str]:
    """What is to be known beside the table."""
    lines = []
    if found.broken is None:
        count = len(found.entries)
        whole = f"The chain of {count} entr{'y' if count == 1 else 'ies'} holds"
        seen = f"{whole}; {found.seen} of them this clone had seen before."
        lines.append(seen if count else f"{model} has no entries yet.")
    lines.append(f"Now: {_told(found.aliases)}.")
    if not found.moved:
        lines.append("The last move was broken off, or is under way; the next command completes it.")
    if found.by_hand:
        lines.append(f"Since the last entry: {found.by_hand}. The next move writes it down.")
    return lines


def _told(now: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {now.get(name, 'none')}" for name in (CHAMPION, PREVIOUS, CHALLENGER))


def clean(text: str) -> str:
    """Text on one line, without signs that would steer a terminal."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())


# ------------------------------------------------------------------------------------------ the command line


def main() -> int:
    """Run `python -m steps.release promote|rollback|history ...`."""
    parser = argparse.ArgumentParser(prog="python -m steps.release", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("promote")
    one.add_argument("reference")
    one.add_argument("--why", default="by hand")
    one = commands.add_parser("rollback")
    one.add_argument("model")
    one.add_argument("--why", default="by hand")
    one = commands.add_parser("history")
    one.add_argument("model")
    one.add_argument("--json", action="store_true", dest="as_json")
    one.add_argument("--mend", action="store_true")
    given = parser.parse_args()
    work: dict[str, Callable[[], None]] = {
        "promote": lambda: promote(given.reference, given.why),
        "rollback": lambda: rollback(given.model, given.why),
        "history": lambda: mend(given.model) if given.mend else history(given.model, given.as_json),
    }
    return entry.guarded(work[given.command])


if __name__ == "__main__":
    sys.exit(main())
