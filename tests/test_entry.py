from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from steps import entry
from steps.errors import HeadstartError, ValidationFailedError


@pytest.fixture(autouse=True)
def error_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_ERROR_FILE", str(tmp_path / "error.json"))
    # pytest's own stand-in for the terminal cannot be told to flush lines.
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    return tmp_path / "error.json"


def raising(error: Exception) -> int:
    def step(experiment: str) -> None:
        raise error

    sys.argv = ["steps.step", "digits"]
    return entry.run(step, "experiment")


def test_a_step_gets_its_arguments(monkeypatch: pytest.MonkeyPatch, error_file: Path) -> None:
    seen: list[str] = []
    monkeypatch.setattr(sys, "argv", ["steps.step", "digits", "full"])
    assert entry.run(lambda experiment, arm: seen.extend([experiment, arm]), "experiment", "arm") == 0
    assert seen == ["digits", "full"]
    assert not error_file.exists()


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_wrong_arguments_are_the_users_mistake(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["steps.step", *arguments])
    assert entry.run(lambda experiment: None, "experiment") == 2
    assert "usage: python -m" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(ValidationFailedError("rows  are\tbad"), 2), (HeadstartError("rows are bad"), 1)]
)
def test_an_error_of_ours_is_one_line_and_a_code(
    error: Exception,
    code: int,
    capsys: pytest.CaptureFixture[str],
    error_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", [])
    assert raising(error) == code
    assert capsys.readouterr().err == "error: rows are bad\n"
    told = json.loads(error_file.read_text())
    assert told == {"exit_code": code, "type": type(error).__name__, "message": "rows are bad"}


def test_an_error_nobody_foresaw_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [])
    assert raising(ZeroDivisionError("oh")) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: ZeroDivisionError: oh\n")


def test_a_reader_that_has_enough_is_no_error() -> None:
    code = "from steps import entry; import sys; "
    code += "sys.exit(entry.guarded(lambda: [entry.say('x' * 1000) for _ in range(5000)] and None))"
    command = f'"{sys.executable}" -c "{code}" | head -n 1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.splitlines() == ["x" * 1000, str(entry.READER_GONE)]
    assert done.stderr == ""
