from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from steps import artifacts, params
from steps.errors import ParamsError
from steps.params import Arm, Machine, TrainSettings
from steps.resolve import resolve
from tests.rawdata import files_below

ROOT = Path(__file__).parent.parent
OUT = Path("work/params")


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)


def edited(old: str, new: str) -> set[str]:
    """The settings files that an edit of params.yaml changes."""
    resolve()
    before = files_below(OUT)
    text = Path("params.yaml").read_text("utf-8")
    assert old in text, old
    Path("params.yaml").write_text(text.replace(old, new, 1), "utf-8")
    resolve()
    after = files_below(OUT)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_every_step_gets_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    resolve()
    assert "params.yaml is sound: 2 experiments, 3 arms" in capsys.readouterr().out
    steps = {
        "ingest",
        "validate",
        "split",
        "embed",
        "baseline",
        "evaluate",
        "curve",
        "compare",
        "limits",
        "arms/scratch",
        "arms/frozen",
        "arms/full",
        "register",
        "drift",
        "serving",
    }
    wanted = {f"{name}/{step}.json" for name in ("digits", "bbc-news") for step in steps}
    assert set(files_below(OUT)) == wanted | {
        "pretrained/efficientnet-lite0.json",
        "pretrained/efficientnet-lite1.json",
        "pretrained/efficientnet-lite2.json",
        "pretrained/minilm-l6.json",
    }


def test_the_same_params_give_the_same_bytes() -> None:
    assert edited("experiments:", "# a comment changes nothing\nexperiments:") == set()


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("train_labels: 100,", "train_labels: 90,", {"digits/split.json"}),
        ("{min_pixels: 8}", "{min_pixels: 4}", {"digits/validate.json"}),
        (
            "full: {learning_rate: 0.001,",
            "full: {learning_rate: 0.002,",
            {"bbc-news/arms/full.json", "bbc-news/compare.json"},
        ),
        (
            "training: {epochs: 5,",
            "machine: {precision: bf16}\n    training: {epochs: 5,",
            {
                "bbc-news/embed.json",
                "bbc-news/evaluate.json",
                *(f"bbc-news/arms/{arm}.json" for arm in ("scratch", "frozen", "full")),
            },
        ),
        (
            "full: {learning_rate: 0.001, backbone_learning_rate: 0.0001}",
            "full: {learning_rate: 0.001, backbone_learning_rate: 0.0001, preset: full}",
            {"bbc-news/arms/full.json", "bbc-news/compare.json"},
        ),
        ("task: text", "machine: {cache_gib: 3.0}\n    task: text", {"bbc-news/limits.json"}),
        ("licence: Apache-2.0\n  minilm", "licence: MIT\n  minilm", {"pretrained/efficientnet-lite2.json"}),
    ],
)
def test_an_edit_changes_the_settings_it_is_about_and_no_others(
    old: str, new: str, changed: set[str]
) -> None:
    assert edited(old, new) == changed


def test_a_step_reads_an_arm_with_nothing_left_open() -> None:
    Path("params.yaml").write_text(
        Path("params.yaml")
        .read_text("utf-8")
        .replace("arms:\n  scratch", "arms:\n  low: {preset: lora}\n  scratch")
    )
    resolve()
    written = json.loads((OUT / "bbc-news/arms/low.json").read_text())
    assert set(written["arm"]) == set(Arm.model_fields)
    assert written["arm"]["lora"] == {"rank": 8, "alpha": 16.0, "dropout": 0.0, "targets": None}
    assert (written["arm"]["tune"], written["arm"]["learning_rate"]) == ("lora", 0.001)
    assert set(written["machine"]) == set(Machine.model_fields)
    low = params.read_settings(TrainSettings, artifacts.settings_file("bbc-news", "train", "low"))
    assert low.arm == params.load(Path("params.yaml")).arm("bbc-news", "low")


def test_an_arm_left_out_is_said_to_train_and_to_no_one_else() -> None:
    edited("frozen: {learning_rate: 0.03}", "frozen: null")
    left_out = params.read_settings(TrainSettings, artifacts.settings_file("bbc-news", "train", "frozen"))
    assert left_out.arm is None
    assert json.loads((OUT / "bbc-news/evaluate.json").read_text())["arms"] == ["scratch", "full"]


def test_mistakes_leave_the_old_settings_untouched() -> None:
    resolve()
    before = files_below(Path("work"))
    Path("params.yaml").write_text("experiments: {}")
    with pytest.raises(ParamsError, match="mistakes"):
        resolve()
    assert files_below(Path("work")) == before
