from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from steps import artifacts, show
from steps.arms import Arm
from steps.errors import UserError
from tests.tracking import made

TASK = "text-classification"
NAME = made.EXPERIMENT[TASK]
ARMS: dict[str, Any] = {
    "scratch": {"preset": "scratch"},
    "frozen": {"preset": "frozen"},
    "solved": {"preset": "frozen_lbfgs"},
    "full": {"preset": "full"},
    "half": {"preset": "bottom_half"},
    "llrd": {"preset": "llrd", "layer_decay": 0.5},
    "bitfit": {"preset": "bitfit"},
    "lora": {"preset": "lora", "lora": {"rank": 2, "targets": ["query"]}},
    "slow": {"preset": "gradual", "thaw_every": 2},
    "gradual": {"preset": "gradual"},
    "anew": {"reinit_top": 1, "head_first": True},
    "too_deep": {"freeze_bottom": 4},
    "too_new": {"reinit_top": 4},
    "nowhere": {"tune": "pattern", "patterns": ["attenton*"]},
}
# A BERT of width 16 with two layers: tables of 30522, 512 and 2 rows, a norm; 4 square maps of the attention,
# two of the MLP (16 wide inside), two norms.
EMBEDDINGS = 16 * (30522 + 512 + 2) + 2 * 16
BLOCK = 6 * (16 * 16 + 16) + 2 * 2 * 16


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment with a fetched backbone of two layers; neither data nor a training."""
    monkeypatch.chdir(tmp_path)
    settings = made.settings(NAME, TASK).model_dump(mode="json", exclude_unset=True)
    settings["arms"] = ARMS
    settings["experiments"][NAME]["training"]["epochs"] = 4
    Path("params.yaml").write_text(json.dumps(settings))
    folder = artifacts.pretrained_dir("toy")
    folder.mkdir(parents=True)
    config = {
        "vocab_size": 30522, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 16,
    }  # fmt: skip
    about = {"library": "transformers", "name": "bert", "config": config}
    artifacts.write_json(folder / "architecture.json", about)


def shown(arm: str, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], dict[str, list[str]], str]:
    """The expansion's lines, the cells of each row of the table by layer, and all that was printed."""
    show.show(NAME, arm)
    said = capsys.readouterr().out
    expansion = [line.strip() for line in said.splitlines() if line.startswith("  ")]
    cells = [re.split(r" {2,}", line.strip()) for line in said.splitlines()]
    names = ("embeddings", "encoder.0", "encoder.1", "head", "total")
    return expansion, {row[0]: row[1:] for row in cells if row[0] in names}, said


def test_the_whole_output_of_one_arm(clone: None, capsys: pytest.CaptureFixture[str]) -> None:
    show.show(NAME, "llrd")
    said = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    total = EMBEDDINGS + 2 * BLOCK + 2 * 17
    assert said[:5] == [
        "topics, arm llrd",
        "  preset: llrd",
        "  learning_rate: 0.001",
        "  backbone_learning_rate: 0.0001",
        "  layer_decay: 0.5",
    ]
    assert [line.split() for line in said[5:11]] == [
        ["layer", "parameters", "starts", "trains", "learning", "rate", "weight", "decay"],
        ["embeddings", f"{EMBEDDINGS:,}", "pretrained", "yes", "2.5e-5", "0.01"],
        ["encoder.0", f"{BLOCK:,}", "pretrained", "yes", "5.0e-5", "0.01"],
        ["encoder.1", f"{BLOCK:,}", "pretrained", "yes", "0.0001", "0.01"],
        ["head", "34", "random", "yes", "0.001", "0.01"],
        ["total", f"{total:,}", f"{total:,}", "of", f"{total:,}", "(100", "%)"],
    ]
    assert said[11:] == [
        "The classes are not known before the data are split: the head is shown with two.",
        "Each rate is a peak: the warm-up climbs to it, then it falls to zero along a cosine.",
    ]


@pytest.mark.parametrize(
    ("arm", "expansion", "rows"),
    [
        (
            "scratch",
            ["preset: scratch", "start: random", "learning_rate: 0.0005"],
            {"embeddings": ["random", "yes", "0.0005", "0.01"], "head": ["random", "yes", "0.0005", "0.01"]},
        ),
        (
            "frozen",
            ["preset: frozen", "tune: head", "learning_rate: 0.03"],
            {"encoder.1": ["pretrained", "frozen", "-", "-"], "head": ["random", "yes", "0.03", "0.01"]},
        ),
        (
            "solved",
            ["preset: frozen_lbfgs", "tune: head", "solver: lbfgs"],
            {
                "encoder.1": ["pretrained", "frozen", "-", "-"],
                "head": ["random", "yes", "solved for", "0.01"],
            },
        ),
        (
            "half",
            ["preset: bottom_half", "freeze_bottom: 0.5", "learning_rate: 0.001",
             "backbone_learning_rate: 0.0001"],
            {
                "encoder.0": ["pretrained", "frozen", "-", "-"],
                "encoder.1": ["pretrained", "yes", "0.0001", "0.01"],
            },
        ),
        (
            # Six maps and two norms have biases of 16 each; a bias does not decay.
            "bitfit",
            ["preset: bitfit", "tune: biases", "learning_rate: 0.001", "backbone_learning_rate: 0.001"],
            {
                "embeddings": ["pretrained", f"16 of {EMBEDDINGS:,}", "0.001", "-"],
                "encoder.0": ["pretrained", f"128 of {BLOCK:,}", "0.001", "-"],
            },
        ),
        (
            # Two matrices of rank 2 beside the query's map.
            "lora",
            ["preset: lora", "tune: lora", "lora: {rank: 2, alpha: 16.0, dropout: 0.0, targets: [query]}",
             "learning_rate: 0.001", "backbone_learning_rate: 0.001"],
            {
                "embeddings": ["pretrained", "frozen", "-", "-"],
                "encoder.0": ["pretrained", f"64 of {BLOCK + 64:,}", "0.001", "0.01"],
            },
        ),
        (
            "anew",
            ["reinit_top: 1", "head_first: true", "learning_rate: 0.001", "backbone_learning_rate: 0.0001"],
            {
                "encoder.0": ["pretrained", "yes", "0.0001", "0.01"],
                "encoder.1": ["random", "yes", "0.0001", "0.01"],
            },
        ),
    ],
)  # fmt: skip
def test_each_way_of_tuning_is_told_layer_by_layer(
    clone: None,
    capsys: pytest.CaptureFixture[str],
    arm: str,
    expansion: list[str],
    rows: dict[str, list[str]],
) -> None:
    said, found, _ = shown(arm, capsys)
    assert said == expansion
    assert {name: found[name][1:] for name in rows} == rows


def test_totals_count_what_trains(clone: None, capsys: pytest.CaptureFixture[str]) -> None:
    _, rows, _ = shown("half", capsys)
    total, trained = EMBEDDINGS + 2 * BLOCK + 34, BLOCK + 34
    assert rows["total"] == [
        f"{total:,}", f"{trained:,} of {total:,} ({100 * trained / total:.3g} %)",
    ]  # fmt: skip


def test_gradual_thawing_says_when_each_layer_begins_and_which_never_do(
    clone: None, capsys: pytest.CaptureFixture[str]
) -> None:
    _, rows, said = shown("gradual", capsys)
    trains = {name: row[2] for name, row in rows.items() if name != "total"}
    assert trains == {
        "head": "yes",
        "encoder.1": "yes, from epoch 2",
        "encoder.0": "yes, from epoch 3",
        "embeddings": "yes, from epoch 4",
    }
    assert "Not reached" not in said
    _, rows, said = shown("slow", capsys)
    assert (rows["encoder.1"][2], rows["encoder.0"][2]) == ("yes, from epoch 3", "frozen")
    assert "Not reached in 4 epochs: embeddings, encoder.0." in said


def test_head_first_is_said(clone: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "The head is fitted first" in shown("anew", capsys)[2]


def test_the_head_has_the_classes_of_the_data_where_they_are_known(
    clone: None, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("params.yaml").read_text()
    named = text.replace('"min_per_class": 2', '"min_per_class": 2, "labels": ["a", "b", "c"]')
    Path("params.yaml").write_text(named)
    _, rows, said = shown("full", capsys)
    assert rows["head"][0] == str(3 * 17)
    assert "not known" not in said
    Path("params.yaml").write_text(text)
    made.write_data(NAME, TASK, per_class=6)
    _, rows, said = shown("full", capsys)
    assert rows["head"][0] == str(len(made.CLASSES[TASK]) * 17)
    assert "not known" not in said


@pytest.mark.parametrize(
    ("experiment", "arm", "expected"),
    [
        ("topic", "full", r"there is no experiment 'topic'; did you mean 'topics'\?"),
        ("topics", "lroa", r"there is no arm 'lroa'; did you mean 'lora'\?"),
        ("topics", "too_deep", r"freeze_bottom: 4 is more than the 3 layers"),
        ("topics", "too_new", r"reinit_top: 4"),
        ("topics", "nowhere", r"pattern 'attenton\*' matches no parameter"),
    ],
)
def test_what_cannot_be_shown_is_said(clone: None, experiment: str, arm: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        show.show(experiment, arm)


def test_an_arm_that_is_left_out_is_not_shown(clone: None) -> None:
    raw = json.loads(Path("params.yaml").read_text())
    raw["experiments"][NAME]["arms"] = {"lora": None}
    Path("params.yaml").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"topics leaves lora out: .* `lora: null`"):
        show.show(NAME, "lora")


def test_a_backbone_that_is_not_fetched_says_what_to_run(clone: None) -> None:
    (artifacts.pretrained_dir("toy") / "architecture.json").unlink()
    with pytest.raises(UserError, match=r"run `dvc repro fetch@toy` or `headstart run topics`"):
        show.show(NAME, "full")


def test_it_changes_no_file(clone: None) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}
    show.show(NAME, "lora")
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()} == before


def test_rates_that_were_filled_in_for_nothing_are_not_shown() -> None:
    arm = Arm(tune="head", learning_rate=0.1, backbone_learning_rate=0.1)
    assert show.expansion(arm) == ["tune: head", "learning_rate: 0.1"]
