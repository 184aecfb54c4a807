from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from rich.console import Console

from steps import release
from steps.errors import LedgerError, TrackingError, UserError
from steps.tracking import aliases, store
from tests.tracking import made, toymodel
from tests.tracking.toymodel import MODEL

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = "[red]</x> |\n\r\x1b[31m\x1b]0;title\x07\u202e<b>"


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with three versions; the first is champion, the second was refused."""
    folder = tmp_path_factory.mktemp("release")
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        made.store(folder)
        (folder / ".headstart").mkdir()
        with store.opened() as opened:
            for words in ("one", "two", "three"):
                toymodel.add(opened, words)
            aliases.promote(opened, MODEL, "1", why="the first", who="nightly@far")
            aliases.keep(opened, MODEL, "2", why="worse by 0.02", who="nightly@far")
    return folder


@pytest.fixture(autouse=True)
def _clone(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The clone as it was registered, at the place it was: the store knows full paths."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HEADSTART_WHO", "Ann")
    shutil.copytree(registered, tmp_path / "before")
    monkeypatch.chdir(registered)
    yield
    # Written over and not removed: connections to the database stay open.
    shutil.copytree(tmp_path / "before", registered, dirs_exist_ok=True)


def _now() -> dict[str, str]:
    with store.opened() as opened:
        return aliases.current(opened, MODEL)


def test_a_version_is_made_champion_by_hand_and_the_way_back_is_one_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    release.promote("toys@challenger", "the customers want it")
    assert capsys.readouterr().out.splitlines() == [
        "headstart-toys: version 2: 6 files as registered",
        "headstart-toys: version 2 is champion; before it was version 1 (entry 3 of the ledger)",
    ]
    assert _now() == {"champion": "2", "previous": "1"}
    release.rollback("toys", "they do not")
    assert "version 1 is champion; before it was version 2" in capsys.readouterr().out
    assert _now() == {"champion": "1", "previous": "2"}
    release.history("headstart-toys", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [(one["what"], one["who"], one["why"]) for one in found["entries"][2:]] == [
        ("promote", "Ann", "the customers want it"), ("rollback", "Ann", "they do not"),
    ]  # fmt: skip
    assert (found["holds"], found["moved"], found["by_hand"]) == (True, True, None)


@pytest.mark.survives(
    "registry",
    "a promotion or a way back is broken off after its entry, and given again",
    how="an error between ledger and alias, then the same command",
    held="it is completed and not done a second time, which would bring back the version that was left",
)
def test_a_command_given_again_after_an_error_is_done_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise TrackingError("the server is away")

    moves: list[tuple[Callable[[], None], int, dict[str, str]]] = [
        (lambda: release.promote("headstart-toys@2", "better"), 3, {"champion": "2", "previous": "1"}),
        (lambda: release.rollback("toys", "worse"), 4, {"champion": "1", "previous": "2"}),
    ]
    for move, number, after in moves:
        with monkeypatch.context() as patch:
            patch.setattr(aliases, "_point", broken)
            with pytest.raises(TrackingError, match="the server is away"):
                move()
        assert _now() != after
        capsys.readouterr()
        move()
        assert f"version {after['champion']} is champion" in capsys.readouterr().out
        assert _now() == after
        with store.opened() as opened:
            assert [one.number for one in aliases.history(opened, MODEL)][-1] == number


def test_what_cannot_be_is_refused_and_nothing_moves() -> None:
    before = _now()
    with pytest.raises(UserError, match="version 1 of headstart-toys is the champion already"):
        release.promote("toys@1", "")
    with pytest.raises(
        UserError, match="no version with the alias 'previous' to go back to; champion were: version 1"
    ):
        release.rollback("toys", "")
    with pytest.raises(UserError, match=r"--why has 2,001 characters; say it in at most 2,000"):
        release.promote("toys@2", "x" * 2001)
    with pytest.raises(UserError, match="did you mean 'headstart-toys'"):
        release.history("toyz")
    assert _now() == before


def test_a_version_that_was_tampered_with_does_not_become_champion(registered: Path) -> None:
    (words,) = [path for path in registered.glob("mlflow/**/words.txt") if path.read_text() == "two"]
    words.write_text("hullo")
    with pytest.raises(TrackingError, match="version 2 of headstart-toys is not what was registered"):
        release.promote("toys@2", "")
    assert _now() == {"champion": "1", "challenger": "2"}


def test_without_a_store_there_is_nothing_to_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    moves: list[Callable[[], None]] = [
        lambda: release.promote("toys@1", ""),
        lambda: release.rollback("toys", ""),
        lambda: release.history("toys"),
    ]
    for move in moves:
        with pytest.raises(TrackingError, match="nothing was registered here"):
            move()
    assert not (tmp_path / "mlflow").exists()


def _shown(width: int) -> list[str]:
    with store.opened() as opened:
        found = aliases.look(opened, MODEL)
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(release.table(found.entries))
    assert isinstance(console.file, io.StringIO)
    return [*console.file.getvalue().splitlines(), *release.notes(MODEL, found)]


def test_the_history_is_a_table_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    with store.opened() as opened:
        aliases.promote(opened, MODEL, "3", why="long " * 40)
        opened.client.set_registered_model_alias(MODEL, "champion", "2")
    lines = _shown(100)
    assert all(len(line) <= 100 for line in lines[:-3])
    assert lines[0].split() == ["#", "when", "(UTC)", "who", "what", "champion", "why"]
    cells = [[cell for cell in line.split("  ") if cell.strip()] for line in lines]
    assert [cell.strip() for cell in cells[1][2:]] == ["nightly@far", "promote", "none → 1", "the first"]
    assert [cell.strip() for cell in cells[2][3:]] == ["keep", "1, not 2", "worse by 0.02"]
    assert cells[3][4].strip() == "1 → 3"
    assert lines[-2:] == [
        "Now: champion 2, previous 1, challenger 2.",
        "Since the last entry: changed outside of Headstart: champion version 3 → version 2. "
        "The next move writes it down.",
    ]
    release.rollback("toys", "")
    assert "completed the ledger: entry 4, found: changed outside" in capsys.readouterr().out


@pytest.mark.survives(
    "registry",
    "hostile text in a reason",
    how="markup, escape sequences, newlines and 10,000 characters in `--why` and in the ledger",
    held="kept as it is, shown without what steers a terminal or a page",
)
def test_no_words_steer_the_terminal() -> None:
    with store.opened() as opened:
        aliases.keep(opened, MODEL, "2", why=HOSTILE + "é" * 10_000, who=HOSTILE)
    lines = _shown(100)
    assert "[red]</x> |" in " ".join(lines)
    assert all(one.isprintable() for line in lines for one in line)


def _main(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "steps.release", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.flow
def test_the_command_line(registered: Path) -> None:
    release.promote("toys@2", "")
    started = time.monotonic()
    done = _main("rollback", "--why=-x [b]", "--", "toys")
    assert time.monotonic() - started < 30, "5 s on an idle machine"
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout
        == "headstart-toys: version 1 is champion; before it was version 2 (entry 4 of the ledger)\n"
    )
    done = _main("history", "toys")
    assert done.returncode == 0
    assert "The chain of 4 entries holds; 4 of them this clone had seen before." in done.stdout
    with store.opened() as opened:
        (entry,) = opened.client.search_runs(_decisions(), "tags.`headstart.entry` = '3'")
        opened.client.set_tag(entry.info.run_id, aliases.LEDGER, "{}")
    done = _main("history", "toys")
    assert done.returncode == 2
    assert "error: the ledger of headstart-toys does not hold: entry 3 was changed" in done.stderr
    assert "worse by 0.02" in done.stdout, "what holds is shown"
    assert json.loads(_main("history", "--json", "toys").stdout)["holds"] is False
    with pytest.raises(LedgerError):
        release.rollback("toys", "")


def _decisions() -> list[str]:
    with store.opened() as opened:
        found = opened.client.get_experiment_by_name(aliases.DECISIONS)
    assert found is not None
    return [found.experiment_id]


def test_of_a_flow_runs_id_the_table_shows_what_tells_it_apart() -> None:
    who = "nightly (flow run 8c0412a7-38f3-4f01-9afe-fc5245941f6e)"
    assert release.short(who) == "nightly (8c0412a7)"
    assert release.short("me@host") == "me@host"
