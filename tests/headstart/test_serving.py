from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from headstart import cli, terminal


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Something that looks like a clone; the user stands in a folder of it."""
    for name in ("steps", "below"):
        (tmp_path / name).mkdir()
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "below")
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["headstart", *arguments])
    return cli.main()


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def run(*arguments: str) -> int:
        found.append(arguments)
        return 3

    monkeypatch.setattr(terminal, "run_step", run)
    return found


def test_a_batch_is_handed_on_from_where_the_user_stands(
    clone: Path, called: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("in").mkdir()
    assert call(monkeypatch, "predict", "digits", "in", "--batch", "--out", "x.parquet") == 3
    below = clone / "below"
    assert called == [("batch", "digits", "--out", f"{below}/x.parquet", "--", f"{below}/in")]


@pytest.mark.parametrize("more", [[], ["--json", "--out", "x.csv"]])
def test_a_batch_without_a_file_is_told(
    more: list[str],
    clone: Path,
    called: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "predict", "digits", "in", "--batch", *more) == 2
    assert "--batch needs --out FILE" in capsys.readouterr().err
    assert called == []


def test_a_recipe_is_written_where_the_user_stands(
    clone: Path, called: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, "container", "digits@champion", "recipe") == 3
    assert called == [("container", "--", "digits@champion", f"{clone}/below/recipe")]


def test_the_server_takes_the_place_of_the_command_line(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal sent to the command must reach the server, which ends what is under way."""
    ran: list[tuple[Path, str, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: ran.append((Path.cwd(), path, arguments)))
    assert call(monkeypatch, "serve", "digits@challenger", "--host", "0.0.0.0", "--port", "0") == 0
    command = ["-m", "steps.serve", "--host=0.0.0.0", "--port=0", "--", "digits@challenger"]
    assert ran == [(clone, sys.executable, [sys.executable, *command])]


def test_a_port_that_is_none_is_told(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "serve", "digits", "--port", "70000") == 2
    assert capsys.readouterr().err.startswith("error: ")
