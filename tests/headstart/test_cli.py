from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.stages import Outcome
from headstart import __version__, cli, terminal
from steps.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# What the first line of output may not wait for.
HEAVY = ("prefect", "dvc", "torch", "mlflow", "pandas", "numpy", "great_expectations")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Something that looks like a clone, with one experiment."""
    (tmp_path / "steps").mkdir()
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["headstart", *arguments])
    return cli.main()


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], []])
def test_it_starts_light(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['headstart', *{arguments}]\n"
        "from headstart.cli import main\n"
        f"code = main(); print([name for name in {HEAVY} if name in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert (__version__ if arguments == ["--version"] else "Commands:") in done.stdout


@pytest.mark.parametrize(
    "arguments", [["nope"], ["run", "--nope"], ["predict"], ["run", "digit"], ["results"]]
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flows.server.prepare", lambda: None)
    assert call(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert ("did you mean 'digits'?" in said) == (arguments == ["run", "digit"])


def test_a_mistake_in_params_is_told_before_anything_starts(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, count = re.subn(r"epochs: \d+", "epochs: -1", (clone / "params.yaml").read_text(), count=1)
    assert count == 1
    (clone / "params.yaml").write_text(text)
    assert call(monkeypatch, "run") == 2
    assert "experiments.digits.training.epochs: must be >= 1, is -1" in capsys.readouterr().err
    assert not (clone / ".headstart").exists()


def test_outside_of_a_clone_it_says_where_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "run") == 2
    assert "is in no clone of Headstart" in capsys.readouterr().err


def test_below_the_root_it_works_from_the_root(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone / "below")
    terminal.enter_clone()
    assert Path.cwd() == clone


def test_predict_hands_on_paths_from_where_the_user_stands_and_the_exit_code(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[str, ...]] = []

    def step(*arguments: str) -> int:
        called.append(arguments)
        return 2

    monkeypatch.setattr(terminal, "run_step", step)
    (clone / "below/a.png").touch()
    monkeypatch.chdir(clone / "below")
    arguments = ["predict", "digits", "a.png", "some text", "--json", "--out", "x.csv"]
    assert call(monkeypatch, *arguments) == 2
    below = clone / "below"
    assert called == [
        ("predict", "digits", "--json", "--out", f"{below}/x.csv", "--", f"{below}/a.png", "some text")
    ]


@pytest.mark.parametrize(("command", "step"), [("show", "show"), ("lr", "rate_range")])
def test_commands_about_an_arm_run_their_step_from_the_root_and_hand_on_the_exit_code(
    command: str, step: str, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[Path, tuple[str, ...]]] = []

    def run(*arguments: str) -> int:
        called.append((Path.cwd(), arguments))
        return 2

    monkeypatch.setattr(terminal, "run_step", run)
    monkeypatch.chdir(clone / "below")
    assert call(monkeypatch, command, "digits", "full") == 2
    assert called == [(clone, (step, "digits", "full"))]
    assert call(monkeypatch, command, "digits") == 2
    assert len(called) == 1


@dataclass
class Stages:
    """Stands in for those of DVC: keeps what is asked for, of which some has to run."""

    asked: list[str] = field(default_factory=list)
    fails: str | None = None

    def run(self, stage: str, tell: Callable[[str], None]) -> Outcome:
        self.asked.append(stage)
        if stage == self.fails:
            raise UserError(f"{stage}: it is broken")
        tell("a line in between")
        return Outcome(stage, "ran" if stage.startswith("fetch") else "unchanged", 0.1, "all tensors checked")


def test_rank_brings_data_and_backbones_up_to_date_first(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages, called = Stages(), list[tuple[str, ...]]()

    def step(*arguments: str) -> int:
        called.append(arguments)
        return 2

    monkeypatch.setattr("flows.stages.Stages", lambda: stages)
    monkeypatch.setattr(terminal, "run_step", step)
    yaml = YAML()
    settings = yaml.load(clone / "params.yaml")
    slug = settings["experiments"]["digits"]["model"]["pretrained"]
    settings["pretrained"]["extra"] = dict(settings["pretrained"][slug])
    # A candidate named twice, or the model's own, is fetched once.
    settings["experiments"]["digits"]["candidates"] = ["extra", slug, "extra"]
    yaml.dump(settings, clone / "params.yaml")
    monkeypatch.chdir(clone / "below")
    assert call(monkeypatch, "rank", "digits") == 2
    data = ["ingest@digits", "validate@digits", "split@digits"]
    assert stages.asked == ["resolve", *data, f"fetch@{slug}", "fetch@extra"]
    assert called == [("rank", "digits")]
    assert capsys.readouterr().out.splitlines() == [
        f"fetch@{slug}: all tensors checked", "fetch@extra: all tensors checked",
    ]  # fmt: skip


def test_rank_stops_at_the_first_thing_that_is_wrong(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = Stages(fails="validate@digits")
    monkeypatch.setattr("flows.stages.Stages", lambda: stages)
    monkeypatch.setattr(terminal, "run_step", lambda *arguments: pytest.fail("nothing is left to be ranked"))
    assert call(monkeypatch, "rank", "digit") == 2
    assert "there is no experiment 'digit'; did you mean 'digits'?" in capsys.readouterr().err
    assert stages.asked == []
    assert call(monkeypatch, "rank", "digits") == 2
    assert "validate@digits: it is broken" in capsys.readouterr().err
    assert stages.asked[-1] == "validate@digits"


def test_publish_goes_through_all_and_gives_the_worst_exit_code(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def step(name: str, experiment: str) -> int:
        called.append(f"{name} {experiment}")
        return 1 if experiment == "digits" else 0

    monkeypatch.setattr(terminal, "run_step", step)
    assert call(monkeypatch, "publish", "digits", "bbc-news") == 1
    assert called == ["register digits", "register bbc-news"]
    assert call(monkeypatch, "publish") == 2


def test_a_long_text_is_no_path() -> None:
    assert not terminal._is_path("word " * 5000)
