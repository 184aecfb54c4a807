from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from headstart import terminal
from headstart.cli import app


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """A clone, and the steps that were started in it."""
    started: list[tuple[str, ...]] = []

    def note(step: str, *arguments: str) -> int:
        started.append((step, *arguments))
        return 2

    monkeypatch.setattr(terminal, "run_step", note)
    for name in ("params.yaml", "dvc.yaml", "steps"):
        (tmp_path / name).touch()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    return started


@pytest.mark.parametrize(
    ("said", "started"),
    [
        (
            ["promote", "toys@challenger", "--why", "-x"],
            ("release", "promote", "--why=-x", "--", "toys@challenger"),
        ),
        (["promote", "toys@3"], ("release", "promote", "--why=by hand", "--", "toys@3")),
        (["rollback", "toys", "--why="], ("release", "rollback", "--why=", "--", "toys")),
        (["history", "toys", "--mend"], ("release", "history", "--mend", "--", "toys")),
        (["history", "toys"], ("release", "history", "--", "toys")),
        (["history", "--json", "--", "-toys"], ("release", "history", "--json", "--", "-toys")),
        (["why", "toys@champion"], ("why", "--", "toys@champion")),
        (["why", "toys@champion", "--json"], ("why", "--json", "--", "toys@champion")),
    ],
)
def test_a_command_starts_its_step_in_the_clone_and_ends_as_it_does(
    steps: list[tuple[str, ...]], said: list[str], started: tuple[str, ...]
) -> None:
    result = CliRunner().invoke(app, said)
    assert steps == [started]
    assert result.exit_code == 2
    assert Path("steps").exists()


def test_what_is_missing_is_told(steps: list[tuple[str, ...]]) -> None:
    for command in ("promote", "rollback", "history", "why"):
        result = CliRunner().invoke(app, [command])
        assert result.exit_code == 2
        assert "Missing argument" in result.output
    assert steps == []
