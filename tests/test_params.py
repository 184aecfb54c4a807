from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from steps import artifacts, params
from steps.errors import ParamsError, UserError
from steps.kinds import KINDS
from steps.layouts import PACKAGED, TAGS
from steps.metrics import METRICS
from steps.params import EXPECTATIONS, Arm, Lora, Params, Validation

ROOT = Path(__file__).parent.parent


@pytest.fixture
def raw() -> dict[str, Any]:
    return dict(YAML(typ="safe").load((ROOT / "params.yaml").read_text("utf-8")))


def mistakes(raw: dict[str, Any]) -> list[str]:
    """The lines of the error, without the first one that counts them."""
    with pytest.raises(ParamsError) as caught:
        params.parse(Params, raw, "params.yaml")
    head, *lines = str(caught.value).split("\n")
    if not lines:
        return [head.removeprefix("params.yaml: ")]
    assert head == f"params.yaml has {len(lines)} mistakes:"
    return [line.removeprefix("  ") for line in lines]


def test_our_own_params_are_sound(raw: dict[str, Any]) -> None:
    checked = params.parse(Params, raw, "params.yaml")
    assert list(checked.experiments) == ["digits", "bbc-news"]
    assert checked.arm_names("digits") == ["scratch", "frozen", "full"]


def test_names_are_said_in_two_places_and_agree() -> None:
    assert set(params.DEFAULT_LEVELS) == set(EXPECTATIONS)
    assert set(params.WARNINGS) | set(params.ALWAYS_ERRORS) <= set(EXPECTATIONS)
    assert {task for of_set in PACKAGED.values() for task in of_set} <= set(KINDS)
    assert {one for kind in KINDS.values() for one in (*kind.metrics, kind.loss)} <= set(METRICS)
    assert {one for kind in KINDS.values() for one in kind.data} == set(TAGS)


def test_a_new_network_uses_the_tokenizer_of_an_entry_for_texts(raw: dict[str, Any]) -> None:
    def new(tokenizer: str) -> dict[str, Any]:
        return {"source": "new", "library": "transformers", "architecture": "bert", "tokenizer": tokenizer}

    raw["pretrained"]["fresh"] = new("minilm-l6")
    params.parse(Params, raw, "params.yaml")
    for tokenizer, told in {
        "minilm": "'minilm' is not under `pretrained:`; did you mean 'minilm-l6'?",
        "fresh": "'fresh' has another entry's itself: name that one, 'fresh'",
        "efficientnet-lite0": "'efficientnet-lite0' is of timm and has no tokenizer",
    }.items():
        raw["pretrained"]["fresh"] = new(tokenizer)
        assert mistakes(raw) == [f"pretrained.fresh.tokenizer: {told}"]


def test_all_mistakes_are_told_together_each_with_its_path(raw: dict[str, Any]) -> None:
    digits = raw["experiments"]["digits"]
    digits["split"]["tset"] = 0.2
    digits["training"]["epochs"] = 0
    digits["arms"] = {"full": {"learning_rate": -1}}
    raw["experiments"]["bbc-news"]["task"] = "text-clasification"
    raw["pretrained"]["minilm-l6"]["sha256"] = "abc"
    told = mistakes(raw)
    assert "experiments.digits.split.tset: unknown key; did you mean 'test'?" in told
    assert "experiments.digits.training.epochs: must be >= 1, is 0" in told
    assert "experiments.digits.arms.full.learning_rate: must be > 0, is -1" in told
    assert any(
        "'text-clasification' is no task; did you mean 'text-classification'?" in line for line in told
    )
    assert any(line.startswith("pretrained.minilm-l6.sha256: must match") for line in told)
    assert len(told) == 5


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("experiments.digits.tuning", {"trials": 0}, "must be >= 1"),
        ("experiments.digits.tuning", {"trails": 2}, "did you mean 'trials'?"),
        ("experiments.digits.tuning", {"seed": 2}, "is among `training.seeds`"),
        ("experiments.digits.tuning", {"seed": 0, "seeds": 2}, "seed 1 of `tuning` is among"),
        ("experiments.digits.curve", {"labels": [25, 25]}, "must be distinct"),
        ("experiments.digits.curve", {"labels": [25], "seeds": [9]}, "which is not among `training.seeds`"),
        ("experiments.digits.curve", {"arms": ["ful"]}, "did you mean 'full'?"),
        ("experiments.digits.candidates", ["efficientnet-light1"], "did you mean 'efficientnet-lite1'?"),
        ("experiments.digits.candidates", ["minilm-l6"], "is of transformers"),
        ("experiments.digits.evaluation", {"margin": -0.1}, "must be >= 0"),
        ("arms.full.search", {"learning_rat": [0.1, 0.2]}, "did you mean 'learning_rate'?"),
        ("arms.full.search", {"learning_rate": 3}, "must be two numbers [low, high] or {choices"),
        ("arms.full.search", {"head": {"choice": ["mlp"]}}, "must be two numbers [low, high] or {choices"),
        ("experiments.digits.curve", {"labels": [25, "al"]}, "or `all`, is 'al'"),
        ("arms.full.search", {"learning_rate": [0.2, 0.1]}, "the lower end must come first"),
        ("experiments.digits.model.pretrained", "efficientnet-light0", "did you mean 'efficientnet-lite0'?"),
        (
            "experiments.digits.model.pretrained",
            "minilm-l6",
            "is of transformers, task image-classification needs",
        ),
        (
            "experiments.digits.arms",
            {"ful": {}},
            "arms.ful: is not under the top-level `arms:`; did you mean 'full'?",
        ),
        ("experiments.digits.arms", {"scratch": None}, "arm 'scratch' is not among the experiment's arms"),
        (
            "experiments.digits.arms",
            {"frozen": {"start": "random"}},
            "experiments.digits.arms.frozen: `tune: head` needs `start: pretrained`",
        ),
        (
            "experiments.digits.arms",
            {"full": {"layer_decy": 0.9}},
            "experiments.digits.arms.full.layer_decy: unknown key; did you mean 'layer_decay'?",
        ),
        (
            "experiments.digits.arms",
            {"full": {"preset": "lroa"}},
            "experiments.digits.arms.full.preset: 'lroa' is no preset; did you mean 'lora'?",
        ),
        (
            "experiments.digits.arms",
            {"full": {"tune": "lora", "lora": {"rnk": 4}}},
            "experiments.digits.arms.full.lora.rnk: unknown key; did you mean 'rank'?",
        ),
        (
            "arms.full",
            {"tune": "lora", "lora": {"alhpa": 4}},
            "arms.full.lora.alhpa: unknown key; did you mean 'alpha'?",
        ),
        ("arms.full", {"freeze_bottom": 1.5}, "arms.full.freeze_bottom: must be a whole number of layers"),
        ("arms.full", {"start": "scratch"}, "arms.full.start: must be 'pretrained' or 'random'"),
        (
            "experiments.bbc-news.arms",
            {"full": {"mixup": 0.2}},
            "experiments.bbc-news.arms.full: `mixup` is for images, not for task text-classification",
        ),
        (
            "experiments.bbc-news.arms",
            {"full": {"augment": ["crop"]}},
            "experiments.bbc-news.arms.full: `augment` is for images",
        ),
        ("arms.full", {"preset": "cutmix"}, "experiments.bbc-news.arms.full: `cutmix` is for images"),
        (
            "experiments.bbc-news.arms",
            {"full": {"tune": "gradual", "thaw_every": 5, "backbone_learning_rate": 0.1}},
            "experiments.bbc-news.arms.full: `thaw_every: 5` thaws nothing in 5 epochs",
        ),
        (
            "experiments.digits.machine",
            {"accumulate": 3},
            "experiments.digits: `machine.accumulate: 3` does not divide `training.batch_size: 20`",
        ),
        (
            "experiments.digits.machine",
            {"precision": "fp16", "device": "cpu"},
            "experiments.digits.machine: `precision: fp16` needs a GPU",
        ),
        (
            "experiments.digits.machine",
            {"precison": "bf16"},
            "experiments.digits.machine.precison: unknown key; did you mean 'precision'?",
        ),
        (
            "experiments.digits.data.dataset",
            "bbc-news",
            "data set bbc-news does not fit task image-classification",
        ),
        (
            "experiments.digits.data.source",
            "ftp",
            "source must be one of 'package', 'folder', 'archive', 'table', 'coco'",
        ),
        (
            "experiments.digits.data.pth",
            "x",
            "experiments.digits.data.pth: unknown key; did you mean 'path'?",
        ),
        ("experiments.digits.split.test", 0.9, "must leave something to train on, is 1.1"),
        (
            "experiments.digits.split.train_labels",
            "100",
            "experiments.digits.split.train_labels: must be a valid integer",
        ),
        ("experiments.digits.training.seeds", [1, 1], "must be distinct and >= 0, is [1, 1]"),
        ("experiments.digits.validation.levels", {"ids_uniqe": "error"}, "ids_uniqe"),
        ("experiments.digits.validation.levels", {"ids_unique": "warning"}, "ids_unique must stay an error"),
        (
            "experiments.digits.data",
            {"source": "folder", "path": "data/digits"},
            "data/ is the pipeline's own",
        ),
        (
            "experiments.digits.data",
            {"source": "folder", "path": "raw/../work/x"},
            "work/ is the pipeline's own",
        ),
        (
            "experiments.digits.data",
            {"source": "table", "path": "t.csv", "label": "l", "text": "t"},
            "needs the column `image`",
        ),
        (
            "experiments.digits.data",
            {"source": "table", "path": "t.csv", "label": "l"},
            "name either `text` or `image`",
        ),
        (
            "experiments.digits.data",
            {"source": "table", "path": "d", "label": "l", "image": "i"},
            "`table` is needed with `image`",
        ),
        (
            "experiments.digits.data",
            {"source": "table", "path": "d", "label": "l", "image": "i", "table": "../t.csv"},
            "without '..'",
        ),
        ("experiments.Digits", {}, "experiments.Digits: is no name we can use"),
        (
            "arms.full.learning_rate",
            "1e-3",
            "arms.full.learning_rate: must be a valid number, is '1e-3' (write it as 1.0e-3)",
        ),
        ("arms.full.learning_rate", float("nan"), "arms.full.learning_rate"),
        ("experiments", {}, "experiments: "),
        ("pretrained.minilm-l6.file", "/etc/passwd", "must be a path below its folder"),
    ],
)
def test_each_mistake_has_one_line(raw: dict[str, Any], path: str, value: Any, expected: str) -> None:
    section: Any = raw
    *parents, last = path.split(".")
    for part in parents:
        section = section[part]
    section[last] = value
    told = mistakes(raw)
    assert any(expected in line for line in told), told


def test_a_raw_path_may_be_anything_else(raw: dict[str, Any]) -> None:
    for path in ("raw/pets", ".", "/mnt/pets", "database"):
        changed = copy.deepcopy(raw)
        changed["experiments"]["digits"]["data"] = {"source": "folder", "path": path}
        params.parse(Params, changed, "params.yaml")


def test_an_experiment_changes_an_arm_for_itself_alone(raw: dict[str, Any]) -> None:
    raw["experiments"]["digits"]["arms"] = {"full": {"learning_rate": 0.5}, "frozen": None}
    checked = params.parse(Params, raw, "params.yaml")
    full = checked.arm("digits", "full")
    assert full is not None
    # What is not changed stays as the top-level arm has it; what neither says is a default.
    assert (full.learning_rate, full.backbone_learning_rate, full.tune) == (0.5, 0.001, "all")
    assert checked.arm("digits", "frozen") is None
    assert checked.arm_names("digits") == ["scratch", "full"]
    other = checked.arm("bbc-news", "frozen")
    assert other is not None


def test_arms_are_complete_with_the_rates_of_their_backbones_library(raw: dict[str, Any]) -> None:
    raw["arms"]["lora"] = {"preset": "lora"}
    raw["experiments"]["digits"]["arms"] = {"full": {"preset": "llrd", "layer_decay": 0.9}}
    checked = params.parse(Params, raw, "params.yaml")
    image, text = checked.arm("digits", "lora"), checked.arm("bbc-news", "lora")
    assert image is not None
    assert text is not None
    assert (image.learning_rate, image.backbone_learning_rate) == (0.005, 0.005)
    assert (text.learning_rate, text.backbone_learning_rate) == (0.001, 0.001)
    assert image.lora == Lora()
    full = checked.arm("digits", "full")
    assert full == Arm(preset="llrd", layer_decay=0.9, learning_rate=0.005, backbone_learning_rate=0.001)


def test_the_mistakes_of_one_arm_have_a_line_each(raw: dict[str, Any]) -> None:
    raw["arms"]["full"] = {"views": 3, "soup": "greedy", "ema": 0.9}
    raw["experiments"]["digits"]["training"]["epochs"] = 0
    told = mistakes(raw)
    assert [line.split(": ")[0] for line in told] == [
        "experiments.digits.training.epochs",
        *["arms.full"] * 2,
    ]


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Validation().min_per_class = 3  # type: ignore[misc]  # that is what is tested


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [1", "is not valid YAML"),
        (b"a: 1\na: 2", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"", "valid dictionary"),
    ],
)
def test_a_file_that_is_no_yaml(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(ParamsError, match=expected):
        params.load(tmp_path / "params.yaml")


def test_a_missing_file_says_where_to_be(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="run inside a clone"):
        params.load(tmp_path / "params.yaml")


def test_settings_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = Validation(labels=("a", "b"), levels={"classes_balanced": "error"})
    artifacts.write_json(tmp_path / "s.json", written.model_dump(mode="json"))
    assert params.read_settings(Validation, tmp_path / "s.json") == written
    with pytest.raises(UserError, match=r"is missing; it is made by `python -m steps.resolve`"):
        params.read_settings(Validation, tmp_path / "none.json")


def test_seeds_are_kept_in_order(raw: dict[str, Any]) -> None:
    raw["experiments"]["digits"]["training"]["seeds"] = [7, 1, 3]
    assert params.parse(Params, raw, "p").experiments["digits"].training.seeds == (1, 3, 7)


def test_resamples_need_a_budget(raw: dict[str, Any]) -> None:
    raw["experiments"]["digits"]["training"]["resamples"] = 2
    params.parse(Params, raw, "p")
    del raw["experiments"]["digits"]["split"]["train_labels"]
    assert "needs `split.train_labels`" in mistakes(raw)[0]
