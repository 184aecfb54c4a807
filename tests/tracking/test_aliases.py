from __future__ import annotations

import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, closing
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from steps.errors import LedgerError, TrackingError, UserError
from steps.tracking import aliases, lease, reader, store
from steps.tracking.aliases import Entry
from steps.tracking.store import Store
from tests import topology
from tests.tracking import made, servers

ROOT = Path(__file__).resolve().parents[2]
MODEL = "headstart-toys"
VERSIONS = 5
# Moves the champion to and fro, in a process of its own.
MOVER = """
import sys
from steps.tracking import aliases, store
with store.opened() as opened:
    for number in sys.argv[1:]:
        aliases.promote(opened, "headstart-toys", number, why=f"to {number}")
"""
# Writes an entry and dies before an alias moves, with the lease in its hands.
DYING = """
import os
from steps.tracking import aliases, store
aliases._point = lambda *arguments: os._exit(9)
with store.opened() as opened:
    aliases.promote(opened, "headstart-toys", "2", why="the last words")
"""


@pytest.fixture(autouse=True)
def _clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HEADSTART_WHO", "tester")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Store]:
    made.store(tmp_path)
    with store.opened() as found:
        _register(found)
        yield found


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose ledger has four promotions."""
    folder = tmp_path_factory.mktemp("four")
    with chdir(folder):
        made.store(folder)
        with store.opened() as found:
            _register(found)
            for number in ("1", "2", "3", "4"):
                aliases.promote(found, MODEL, number, why="")
    return folder


def _register(opened: Store) -> None:
    opened.client.create_registered_model(MODEL)
    experiment = opened.client.create_experiment("toys")
    run = opened.client.create_run(experiment)
    for _ in range(VERSIONS):
        opened.client.create_model_version(MODEL, f"{run.info.artifact_uri}/model", run.info.run_id)


def _numbers(entries: list[Entry]) -> list[int]:
    return [one.number for one in entries]


def _sql(statement: str, *values: object) -> None:
    with closing(sqlite3.connect("mlflow/mlflow.db")) as connection:
        connection.execute(statement, values)
        connection.commit()


def _run_of(number: int) -> str:
    with closing(sqlite3.connect("mlflow/mlflow.db")) as connection:
        query = "SELECT run_uuid FROM tags WHERE key = 'headstart.entry' AND value = ?"
        ((found,),) = connection.execute(query, (str(number),)).fetchall()
    return str(found)


def _process(script: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


# ----------------------------------------------------------------------------------------------------- moves


def test_every_move_is_written_down_and_made(opened: Store) -> None:
    first = aliases.promote(opened, MODEL, "1", why="the first", evidence={"tests": ["aa", "bb"]})
    assert (first.number, first.who, first.what, first.previous) == (1, "tester", "promote", "0" * 64)
    assert aliases.current(opened, MODEL) == {"champion": "1"}
    refused = aliases.keep(opened, MODEL, "2", why="worse", evidence={"tests": ("aa",), "p": float("nan")})
    assert refused.evidence == {"tests": ["aa"], "p": None}
    assert aliases.current(opened, MODEL) == {"champion": "1", "challenger": "2"}
    second = aliases.promote(opened, MODEL, "2", why="by hand", who="Ann")
    assert second.after == aliases.current(opened, MODEL) == {"champion": "2", "previous": "1"}
    third = aliases.rollback(opened, MODEL, why="angry customers")
    assert third.after == aliases.current(opened, MODEL) == {"champion": "1", "previous": "2"}
    assert aliases.rollback(opened, MODEL, why="and back").after == second.after
    found = aliases.history(opened, MODEL)
    assert [one.what for one in found] == ["promote", "keep", "promote", "rollback", "rollback"]
    assert found[2].who == "Ann"
    assert [one.previous for one in found[1:]] == [one.sha256 for one in found[:-1]]
    assert (aliases.looks(opened, MODEL, "aa"), aliases.looks(opened, MODEL, "bb")) == (2, 1)
    assert aliases.settle(opened, MODEL) is None
    assert [one.name for one in opened.client.search_registered_models()] == [MODEL]


def test_what_is_so_already_is_not_written_again(opened: Store) -> None:
    first = aliases.promote(opened, MODEL, "1", why="the first")
    assert aliases.promote(opened, MODEL, "1", why="once more") == first
    refused = aliases.keep(opened, MODEL, "2", why="worse", evidence={"tests": ["aa"]})
    assert aliases.keep(opened, MODEL, "2", why="worse", evidence={"tests": ["aa"]}) == refused
    assert _numbers(aliases.history(opened, MODEL)) == [1, 2]
    assert aliases.keep(opened, MODEL, "2", why="worse", evidence={"tests": ["bb"]}).number == 3


def test_nothing_moves_over_another_champion_than_was_compared_with(opened: Store) -> None:
    aliases.promote(opened, MODEL, "1", why="the first", over=None)
    aliases.promote(opened, MODEL, "2", why="a rival", over="1")
    with pytest.raises(
        aliases.MovedError, match="is version 2 by now; version 3 was compared with version 1"
    ):
        aliases.promote(opened, MODEL, "3", why="too late", over="1")
    assert aliases.current(opened, MODEL) == {"champion": "2", "previous": "1"}
    assert len(aliases.history(opened, MODEL)) == 2


def test_there_is_no_way_back_to_nothing(opened: Store) -> None:
    with pytest.raises(UserError, match="there never was a champion"):
        aliases.rollback(opened, MODEL, why="")
    aliases.promote(opened, MODEL, "3", why="")
    with pytest.raises(UserError, match=r"champion were: version 3; `headstart promote headstart-toys@N`"):
        aliases.rollback(opened, MODEL, why="")
    with pytest.raises(UserError, match="has no version 99"):
        aliases.promote(opened, MODEL, "99", why="")
    with pytest.raises(UserError, match="no registered model headstart-none"):
        aliases.promote(opened, "headstart-none", "1", why="")
    aliases.promote(opened, MODEL, "4", why="")
    opened.client.delete_registered_model_alias(MODEL, "previous")
    with pytest.raises(UserError, match="champion were: version 3, 4;"):
        aliases.rollback(opened, MODEL, why="")
    assert [one.what for one in aliases.history(opened, MODEL)] == ["promote", "promote", "found"]
    assert aliases.lost_champion(opened, MODEL) is None


def test_a_registry_older_than_the_ledger_is_taken_as_it_is(opened: Store) -> None:
    opened.client.set_registered_model_alias(MODEL, "champion", "3")
    found = aliases.settle(opened, MODEL)
    assert found is not None
    assert (found.what, found.before, found.after) == ("found", {}, {"champion": "3"})
    assert aliases.promote(opened, MODEL, "4", why="").after == {"champion": "4", "previous": "3"}


@pytest.mark.survives(
    "registry",
    "the clock jumps back an hour between two promotions",
    how="the clock of the second entry is an hour before the first",
    held="order by number, the way back leads to the right version",
)
def test_the_order_is_that_of_the_numbers_when_the_clock_jumps_back(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    aliases.promote(opened, MODEL, "1", why="")

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(UTC) - timedelta(hours=1)

    monkeypatch.setattr(aliases, "datetime", Earlier)
    aliases.promote(opened, MODEL, "2", why="an hour before")
    found = aliases.history(opened, MODEL)
    assert _numbers(found) == [1, 2]
    assert found[1].time < found[0].time
    assert aliases.rollback(opened, MODEL, why="").after["champion"] == "1"


# --------------------------------------------------------------------------------------- moved by other hands


@pytest.mark.survives(
    "registry",
    "alias moved by hand",
    how="the alias `champion` set in MLflow",
    held="told by history, written down as found",
)
def test_an_alias_that_was_moved_by_hand_is_told_and_written_down(opened: Store) -> None:
    aliases.promote(opened, MODEL, "1", why="")
    aliases.promote(opened, MODEL, "2", why="")
    opened.client.set_registered_model_alias(MODEL, "champion", "4")
    look = aliases.look(opened, MODEL)
    assert look.by_hand == "changed outside of Headstart: champion version 2 → version 4"
    assert aliases.lost_champion(opened, MODEL) is None
    found = aliases.settle(opened, MODEL)
    assert found is not None
    assert (found.what, found.after) == ("found", {"champion": "4", "previous": "1"})
    assert aliases.look(opened, MODEL).by_hand is None


@pytest.mark.survives(
    "registry",
    "alias deleted by hand",
    how="the alias `champion` removed in MLflow",
    held="the ledger knows the last champion, it is told, one command sets it again",
)
def test_a_champion_whose_alias_was_deleted_by_hand_is_known(opened: Store) -> None:
    aliases.promote(opened, MODEL, "1", why="")
    last = aliases.promote(opened, MODEL, "2", why="")
    opened.client.delete_registered_model_alias(MODEL, "champion")
    assert aliases.lost_champion(opened, MODEL) == last
    aliases.settle(opened, MODEL)
    assert aliases.lost_champion(opened, MODEL) == last
    back = aliases.rollback(opened, MODEL, why="")
    assert back.after == aliases.current(opened, MODEL) == {"champion": "1", "previous": "2"}
    assert aliases.lost_champion(opened, MODEL) is None


# ------------------------------------------------------------------------------------------------ broken off


def test_a_move_that_was_broken_off_is_completed(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    aliases.promote(opened, MODEL, "1", why="")
    with monkeypatch.context() as patch:
        patch.setattr(aliases, "_point", _stopped)
        with pytest.raises(KeyboardInterrupt):
            aliases.promote(opened, MODEL, "2", why="")
    assert aliases.current(opened, MODEL) == {"champion": "1"}
    look = aliases.look(opened, MODEL)
    assert not look.moved
    assert look.by_hand is None
    done = aliases.settle(opened, MODEL)
    assert done is not None
    assert (done.number, done.what) == (2, "promote")
    assert aliases.current(opened, MODEL) == {"champion": "2", "previous": "1"}
    assert aliases.settle(opened, MODEL) is None
    assert _numbers(aliases.history(opened, MODEL)) == [1, 2]


def test_a_move_to_a_version_that_is_gone_is_completed_as_far_as_can_be(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    aliases.promote(opened, MODEL, "1", why="")
    with monkeypatch.context() as patch:
        patch.setattr(aliases, "_point", _stopped)
        with pytest.raises(KeyboardInterrupt):
            aliases.promote(opened, MODEL, "2", why="")
    opened.client.delete_model_version(MODEL, "2")
    assert aliases.promote(opened, MODEL, "3", why="").after["champion"] == "3"
    assert [one.what for one in aliases.history(opened, MODEL)] == ["promote", "promote", "found", "promote"]


def _stopped(*arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.survives(
    "registry",
    "killed between ledger and alias",
    how="the process exits at once after its entry was written, with the lease in its hands",
    held="the next command takes the lease over and completes the move",
)
@pytest.mark.flow
def test_a_holder_that_was_killed_is_taken_over_at_once_and_its_move_completed(opened: Store) -> None:
    aliases.promote(opened, MODEL, "1", why="")
    dying = _process(DYING)
    assert dying.wait(timeout=60) == 9
    assert f"{MODEL}.lease" in [one.name for one in opened.client.search_registered_models()]
    assert aliases.current(opened, MODEL) == {"champion": "1"}
    started = time.monotonic()
    aliases.promote(opened, MODEL, "3", why="")
    assert time.monotonic() - started < 5
    assert [(one.number, one.why) for one in aliases.history(opened, MODEL)] == [
        (1, ""), (2, "the last words"), (3, ""),
    ]  # fmt: skip
    assert aliases.current(opened, MODEL) == {"champion": "3", "previous": "2"}
    assert [one.name for one in opened.client.search_registered_models()] == [MODEL]


@pytest.mark.flow
def test_two_processes_at_once_make_one_order(opened: Store) -> None:
    movers = [_process(MOVER, *numbers) for numbers in ("2343", "5454")]
    for mover in movers:
        _, told = mover.communicate(timeout=120)
        assert mover.returncode == 0, told
    _check_order(opened, 1)


def _check_order(opened: Store, at_least: int) -> None:
    found = aliases.history(opened, MODEL)
    assert _numbers(found) == list(range(1, len(found) + 1))
    assert len(found) > at_least
    assert all(one.before == before.after for before, one in itertools.pairwise(found))
    assert {one.what for one in found} == {"promote"}
    assert found[-1].after == aliases.current(opened, MODEL)


# ----------------------------------------------------------------------------------------------- the lease


def _held_elsewhere(opened: Store) -> None:
    tags = {
        lease.TOKEN: "theirs",
        lease.HOLDER: "Bob@far",
        lease.NODE: "far",
        lease.PROCESS: "1 1",
        lease.BEAT: "0",
    }
    opened.client.create_registered_model(f"{MODEL}.lease", tags=tags)


def test_a_lease_without_a_beat_is_taken_over(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SECONDS", 0.5)
    _held_elsewhere(opened)
    started = time.monotonic()
    aliases.promote(opened, MODEL, "1", why="")
    assert time.monotonic() - started > 0.5
    assert [one.name for one in opened.client.search_registered_models()] == [MODEL]


@pytest.mark.survives(
    "registry",
    "clocks that disagree about a lease",
    how="a holder on another machine that beats, and a clock that stands still",
    held="nobody takes it over",
)
def test_a_lease_that_beats_is_left_alone(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SECONDS", 0.5)
    monkeypatch.setattr(lease, "PATIENCE", 1.5)
    # What no wall clock says may matter here.
    monkeypatch.setattr(time, "time", lambda: 0.0)
    _held_elsewhere(opened)
    stop = threading.Event()

    def beat() -> None:
        for count in range(1000):
            if stop.wait(0.1):
                return
            _sql(
                "UPDATE registered_model_tags SET value = ? WHERE key = ? AND name = ?",
                str(count), lease.BEAT, f"{MODEL}.lease",
            )  # fmt: skip

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(TrackingError, match="held by Bob@far"):
            aliases.promote(opened, MODEL, "1", why="")
    finally:
        stop.set()
        thread.join()
    assert aliases.current(opened, MODEL) == {}


def test_who_lost_the_lease_writes_no_more_and_takes_nothing_away(opened: Store) -> None:
    with lease.held(opened, MODEL) as mine:
        found = lease._look(opened, mine.name)
        assert found is not None
        lease._break(lease.Lease(opened, mine.name, "another"), found)
        _held_elsewhere(opened)
        with pytest.raises(TrackingError, match="was taken over"):
            mine.hold()
        # Who comes late to break the same lease finds that it was broken.
        lease._break(lease.Lease(opened, mine.name, "a third"), found)
    left = lease._look(opened, f"{MODEL}.lease")
    assert left is not None
    assert left.tags[lease.TOKEN] == "theirs"


def test_of_two_entries_with_one_number_the_second_is_taken_back(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    aliases.promote(opened, MODEL, "1", why="")
    whole = aliases._add
    rivals = iter(["2"])

    def late(found: Store, entry: Entry, text: str) -> str:
        """A rival that lost its lease without notice writes first."""
        for version in rivals:
            theirs = json.loads(text) | {"after": {"champion": version, "previous": "1"}, "why": "a rival's"}
            line = json.dumps(theirs, sort_keys=True, separators=(",", ":"))
            whole(found, Entry(**theirs, sha256=sha256(line.encode()).hexdigest()), line)
        return whole(found, entry, text)

    monkeypatch.setattr(aliases, "_add", late)
    aliases.promote(opened, MODEL, "3", why="mine")
    found = aliases.history(opened, MODEL)
    assert [(one.number, one.why) for one in found] == [(1, ""), (2, "a rival's"), (3, "mine")]
    assert found[2].before == found[1].after
    assert aliases.current(opened, MODEL) == {"champion": "3", "previous": "2"}


# ------------------------------------------------------------------------------------------------- tampering


def _edit(number: int, change: Callable[[dict[str, Any]], None], *, covered: bool) -> None:
    """Change an entry in the database; `covered`: its own hash too."""
    run_id = _run_of(number)
    with closing(sqlite3.connect("mlflow/mlflow.db")) as connection:
        query = "SELECT value FROM tags WHERE run_uuid = ? AND key = 'headstart.ledger'"
        said = json.loads(connection.execute(query, (run_id,)).fetchone()[0])
    change(said)
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    update = "UPDATE tags SET value = ? WHERE run_uuid = ? AND key = ?"
    _sql(update, text, run_id, "headstart.ledger")
    if covered:
        _sql(update, sha256(text.encode()).hexdigest(), run_id, "headstart.ledger_sha256")


def _drop(number: int, *, head: bool = False) -> None:
    """Remove an entry from the database, and with `head` what the registered model tells of it."""
    run_id = _run_of(number)
    if head:
        _sql("DELETE FROM registered_model_tags")
    _sql("DELETE FROM tags WHERE run_uuid = ?", run_id)
    _sql("DELETE FROM runs WHERE run_uuid = ?", run_id)


def _rewrite(from_number: int, to_number: int) -> None:
    """Change an entry and all hashes after it, as a thorough forger would; the head of the ledger too."""
    previous = None
    for number in range(from_number, to_number + 1):

        def change(said: dict[str, Any], previous: str | None = previous) -> None:
            said["why"] = "forged"
            said["previous"] = previous or said["previous"]

        _edit(number, change, covered=True)
        with closing(sqlite3.connect("mlflow/mlflow.db")) as connection:
            query = "SELECT value FROM tags WHERE run_uuid = ? AND key = 'headstart.ledger_sha256'"
            previous = connection.execute(query, (_run_of(number),)).fetchone()[0]
    _sql("UPDATE registered_model_tags SET value = ? WHERE key = ?", f"{to_number} {previous}", aliases.HEAD)


def _said(said: dict[str, Any]) -> None:
    said["who"] = "somebody else"


@pytest.mark.survives(
    "registry",
    "ledger edited, cut off or rewritten",
    how="eleven changes of the database: entries, hashes, tags, runs, the experiment",
    held="the entry is named, exit code 2, nothing moves",
)
@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (lambda: _edit(2, _said, covered=False), "entry 2 was changed after it was written"),
        (lambda: _edit(2, _said, covered=True), "entry 3 does not follow entry 2"),
        (lambda: _edit(4, _said, covered=True), "entry 4 is not the one that was written"),
        (lambda: _rewrite(2, 4), "entry 2 is not the one this clone saw"),
        (lambda: _drop(2), "entry 2 is missing"),
        (lambda: _drop(4), "entry 4 is missing: the end was cut off"),
        (lambda: _drop(4, head=True), "entry 4 is missing: the ledger was cut off"),
        (lambda: _sql("UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?", _run_of(3)),
         "entry 3 was deleted; restore it: `mlflow runs restore"),
        (lambda: _sql("DELETE FROM tags WHERE key = 'headstart.ledger' AND run_uuid = ?", _run_of(1)),
         "entry 1 was changed"),
        (lambda: _sql("UPDATE tags SET value = 9 WHERE key = ? AND run_uuid = ?", aliases.NUMBER, _run_of(4)),
         "entry 4 is missing"),
        (lambda: _sql("UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = ?", aliases.DECISIONS),
         "was deleted in MLflow; restore it: `mlflow experiments restore"),
    ],
)  # fmt: skip
def test_a_ledger_that_was_tampered_with_is_told_and_moves_nothing(
    four: Path, tamper: Callable[[], object], told: str
) -> None:
    shutil.copytree(four, ".", dirs_exist_ok=True)
    tamper()
    with store.opened() as opened:
        _check_told(opened, told)


def _check_told(opened: Store, told: str) -> None:
    for move in (
        lambda: aliases.history(opened, MODEL),
        lambda: aliases.promote(opened, MODEL, "5", why=""),
        lambda: aliases.rollback(opened, MODEL, why=""),
    ):
        with pytest.raises(LedgerError) as found:
            move()
        message = str(found.value)
        assert told in message
        assert "\n" not in message
    look = aliases.look(opened, MODEL)
    assert str(look.broken) == message
    assert _numbers(list(look.entries)) == list(range(1, len(look.entries) + 1))
    assert aliases.current(opened, MODEL)["champion"] == "4"
    assert [one.name for one in opened.client.search_registered_models()] == [MODEL]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda: _edit(2, _said, covered=False),
        lambda: _rewrite(2, 4),
        lambda: _drop(3),
        lambda: _drop(4, head=True),
        lambda: _sql("UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?", _run_of(3)),
    ],
)
def test_a_ledger_is_put_back_as_this_clone_saw_it(four: Path, tamper: Callable[[], object]) -> None:
    shutil.copytree(four, ".", dirs_exist_ok=True)
    with store.opened() as opened:
        whole = aliases.history(opened, MODEL)
        assert aliases.mend(opened, MODEL) is None
    tamper()
    with store.opened() as opened:
        with pytest.raises(LedgerError, match="`headstart history headstart-toys --mend` puts it back"):
            aliases.history(opened, MODEL)
        told = aliases.mend(opened, MODEL)
        assert told is not None
        assert (told.what, told.number, told.before) == ("found", 5, told.after)
        assert aliases.history(opened, MODEL) == [*whole, told]
        assert aliases.rollback(opened, MODEL, why="").after["champion"] == "3"


def test_without_a_copy_nothing_is_put_back(four: Path) -> None:
    shutil.copytree(four, ".", dirs_exist_ok=True)
    _edit(2, _said, covered=False)
    copy = aliases.witness_file(MODEL)
    copy.write_text(copy.read_text().replace('"why": ""', '"why": "forged"'))
    with store.opened() as opened:
        with pytest.raises(LedgerError, match="does not hold itself: its entry 1 was changed"):
            aliases.mend(opened, MODEL)
        copy.unlink()
        with pytest.raises(LedgerError, match="this clone has no copy to put it back from"):
            aliases.mend(opened, MODEL)


def test_a_registry_made_anew_has_a_ledger_of_its_own(opened: Store, tmp_path: Path) -> None:
    aliases.promote(opened, MODEL, "1", why="")
    aliases.promote(opened, MODEL, "2", why="")
    saw = aliases.witness_file(MODEL)
    assert len(saw.read_text().splitlines()) == 2
    _sql("DELETE FROM tags")
    _sql("DELETE FROM runs WHERE experiment_id = (SELECT experiment_id FROM experiments WHERE name = ?)",
         aliases.DECISIONS)  # fmt: skip
    opened.client.delete_registered_model(MODEL)
    opened.client.create_registered_model(MODEL)
    opened.client.create_model_version(MODEL, f"{tmp_path}/nothing")
    assert aliases.promote(opened, MODEL, "1", why="anew").number == 1
    assert aliases.look(opened, MODEL).seen == 1
    assert len(saw.read_text().splitlines()) == 3


def test_a_damaged_copy_of_the_ledger_is_told(opened: Store) -> None:
    aliases.promote(opened, MODEL, "1", why="")
    with aliases.witness_file(MODEL).open("a") as stream:
        stream.write('{"half')
    with pytest.raises(LedgerError, match="is damaged"):
        aliases.history(opened, MODEL)
    aliases.witness_file(MODEL).unlink()
    assert len(aliases.history(opened, MODEL)) == 1


# ---------------------------------------------------------------------------------------------- hostile words


HOSTILE = (
    "<script>alert(1)</script> | [x](javascript:y) `z` **b**\n\r\x1b[31mred\x1b]0;title\x07\u202e"
    + "é" * 10_000
)


def test_any_words_are_kept_as_they_are_and_shown_without_their_marks(opened: Store) -> None:
    written = aliases.promote(opened, MODEL, "1", why=HOSTILE, who="<b>\x1b[1m", evidence={"note": HOSTILE})
    (found,) = aliases.history(opened, MODEL)
    assert found == written
    assert found.why == found.evidence["note"] == HOSTILE
    with reader.reading("") as (fast, _):
        assert aliases.history(fast, MODEL) == [written]
    note = opened.client.get_run(_run_of(1)).data.tags["mlflow.note.content"]
    assert len(note) < 3000
    assert "\\<script\\>alert(1)\\</script\\> \\| \\[x\\](javascript:y) \\`z\\` \\*\\*b\\*\\*" in note
    assert all(one.isprintable() for line in note.splitlines() for one in line)


# ------------------------------------------------------------------------------------------------ on a server


@pytest.mark.long
def test_a_server_keeps_the_ledger_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.store(tmp_path)
    database = tmp_path / "mlflow/mlflow.db"
    arguments = ["server", "--backend-store-uri", f"sqlite:///{database}", "--workers", "1"]
    arguments += ["--artifacts-destination", str(tmp_path / "files")]
    with servers.mlflow_process(arguments, tmp_path, "/health", {}) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with store.opened() as opened:
            _register(opened)
            aliases.promote(opened, MODEL, "1", why=HOSTILE)
            movers = [_process(MOVER, *numbers) for numbers in ("2343", "5454")]
            for mover in movers:
                _, told = mover.communicate(timeout=120)
                assert mover.returncode == 0, told
            _check_order(opened, 2)
            assert [one.name for one in opened.client.search_registered_models()] == [MODEL]
            aliases.rollback(opened, MODEL, why="")
            slow = aliases.look(opened, MODEL)
            with reader.reading("") as (fast, _):
                assert aliases.look(fast, MODEL) == slow
            _edit(2, _said, covered=False)
            with pytest.raises(LedgerError, match="entry 2 was changed"):
                aliases.history(opened, MODEL)


@pytest.mark.long
@pytest.mark.survives(
    "registry",
    "two promotions at once",
    how="several processes promote in turns, on SQLite, a server, PostgreSQL, beside a dead holder's lease",
    held="one order, every move in the ledger, the aliases as the last one says",
)
def test_postgresql_grants_the_lease_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with topology.postgres() as server:
        login = f"{topology.USER}:{server.password}@127.0.0.1:{server.port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+psycopg2://{login}/mlflow")
        with store.opened() as opened:
            _register(opened)
            aliases.promote(opened, MODEL, "1", why="the first")
            _held_elsewhere(opened)
            started = time.monotonic()
            takers = [_process(MOVER, *numbers) for numbers in ("2343", "5454", "3525")]
            for taker in takers:
                _, told = taker.communicate(timeout=240)
                assert taker.returncode == 0, told
            assert time.monotonic() - started > lease.SECONDS
            _check_order(opened, 3)
            assert [one.name for one in opened.client.search_registered_models()] == [MODEL]
            with reader.reading("") as (slow, _):
                assert aliases.look(slow, MODEL) == aliases.look(opened, MODEL)
