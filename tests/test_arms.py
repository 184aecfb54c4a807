from __future__ import annotations

import re
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from steps import arms, params
from steps.arms import PRESETS, RATES, Arm, Choices, Kind, Library, Lora, Machine
from steps.errors import ParamsError
from steps.settings import as_yaml

LIBRARIES: tuple[Library, ...] = get_args(Library)


def refusals(model: type[Arm | Machine], **keys: Any) -> list[str]:
    """The lines of the error that settings under `arms.x` would give."""
    with pytest.raises(ParamsError) as caught:
        params.parse(model, keys, "arms.x")
    return [line.strip() for line in str(caught.value).removeprefix("arms.x: ").split("\n")]


# ---------------------------------------------------------------------------------- what does not go together


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        *(
            ({"start": "random", "tune": tune, **more}, f"`tune: {tune}` needs `start: pretrained`")
            for tune, more in {
                "head": {}, "biases": {}, "norms": {}, "lora": {}, "gradual": {},
                "pattern": {"patterns": ["*"]},
            }.items()
        ),
        ({"start": "random", "reinit_top": 1}, "`reinit_top` needs `start: pretrained`"),
        ({"start": "random", "freeze_bottom": 0.5}, "`freeze_bottom` needs `start: pretrained`"),
        ({"start": "random", "head_first": True}, "`head_first` needs `start: pretrained`"),
        ({"start": "random", "l2_sp": 0.1}, "`l2_sp` needs `start: pretrained`"),
        ({"start": "random", "backbone_learning_rate": 0.1}, "`learning_rate` is that of everything"),
        ({"tune": "head", "freeze_bottom": 1}, "`freeze_bottom` has no use with `tune: head`"),
        ({"tune": "head", "reinit_top": 1}, "the new layers would stay random"),
        ({"tune": "head", "backbone_learning_rate": 0.1}, "`backbone_learning_rate` has no use"),
        (
            {"tune": "head", "learning_rate": 0.2, "backbone_learning_rate": 0.1},
            "`backbone_learning_rate` has no use",
        ),
        ({"tune": "head", "layer_decay": 0.9}, "`layer_decay` has no use with `tune: head`"),
        ({"tune": "head", "l2_sp": 0.1}, "`l2_sp` has no use with `tune: head`: the backbone does not move"),
        ({"tune": "head", "drop_path": 0.1}, "`drop_path` has no use with `tune: head`"),
        ({"tune": "head", "head_first": True}, "the head is all that trains"),
        ({"tune": "head", "mixup": 0.2}, "features are no images to mix"),
        ({"tune": "head", "cutmix": 1.0}, "features are no images to mix"),
        ({"solver": "lbfgs"}, "take `tune: head`, not `all`"),
        ({"solver": "lbfgs", "tune": "head", "ema": 0.9}, "it has no steps to average over"),
        ({"solver": "lbfgs", "tune": "head", "soup": "uniform"}, "it has no epochs to average over"),
        ({"solver": "lbfgs", "tune": "head", "balanced_sampling": True}, "`class_weights` does the same"),
        ({"solver": "lbfgs", "tune": "head", "augment": ["flip"]}, "with `solver: lbfgs` needs `views`"),
        ({"patterns": ["*bias"]}, "`patterns` goes with `tune: pattern` only"),
        ({"tune": "pattern"}, "`tune: pattern` needs `patterns`"),
        ({"tune": "pattern", "patterns": ["*"], "freeze_bottom": 1}, "the patterns say what trains"),
        ({"lora": {}}, "`lora` goes with `tune: lora` only: drop it or change `tune: all`"),
        ({"thaw_every": 2}, "`thaw_every` goes with `tune: gradual` only"),
        ({"tune": "gradual", "head_first": True}, "`head_first` has no use with `tune: gradual`"),
        ({"tune": "lora", "l2_sp": 0.1}, "the pretrained weights do not move"),
        ({"tune": "biases", "reinit_top": 1}, "the new matrices would stay random"),
        ({"views": 2}, "`views` needs `augment`"),
        ({"soup": "greedy", "ema": 0.9}, "`soup` and `ema` both average weights: choose one"),
        ({"class_weights": True, "balanced_sampling": True}, "would count rare classes twice: choose one"),
        ({"augment": ["flip", "flip"]}, "names the same twice"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_in_one_sentence(keys: dict[str, Any], expected: str) -> None:
    told = refusals(Arm, **keys)
    assert len(told) == 1, told
    assert expected in told[0]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"freeze_bottom": -1}, "freeze_bottom: must be a whole number of layers >= 0, or a share"),
        ({"freeze_bottom": 1.0}, "freeze_bottom: must be a whole number of layers >= 0, or a share"),
        ({"freeze_bottom": 0.0}, "strictly between 0 and 1, is 0.0"),
        ({"freeze_bottom": float("nan")}, "strictly between 0 and 1, is nan"),
        ({"freeze_bottom": "half"}, "freeze_bottom: must be a number of layers or a share between 0 and 1"),
        ({"freeze_bottom": True}, "freeze_bottom: must be a number of layers"),
        ({"layer_decay": 1.1}, "layer_decay: must be <= 1, is 1.1"),
        ({"layer_decay": 0.0}, "layer_decay: must be > 0, is 0.0"),
        ({"tune": "everything"}, "tune: must be 'all', 'head', 'biases'"),
        ({"start": "scratch"}, "start: must be 'pretrained' or 'random', is 'scratch'"),
        ({"tune": "lora", "lora": {"rank": 0}}, "lora.rank: must be >= 1, is 0"),
        ({"augment": ["rotate"]}, "augment.0: must be 'flip', 'crop' or 'randaugment'"),
        ({"preset": "lroa"}, "preset: 'lroa' is no preset; did you mean 'lora'?"),
        ({"preset": "zzz"}, "preset: 'zzz' is no preset; there is scratch, frozen"),
        ({"ema": 1.0}, "ema: must be < 1, is 1.0"),
    ],
)
def test_a_wrong_value_is_told_with_its_key(keys: dict[str, Any], expected: str) -> None:
    told = refusals(Arm, **keys)
    assert len(told) == 1, told
    assert expected in told[0]


def test_all_that_is_wrong_with_an_arm_is_told_together() -> None:
    told = refusals(Arm, views=2, thaw_every=3, soup="greedy", ema=0.9)
    assert len(told) == 4, told
    assert told[0] == "arms.x has 3 mistakes:"


@pytest.mark.parametrize(
    "keys",
    [
        {"layer_decay": 1.0},
        {"freeze_bottom": 0},
        {"start": "random", "layer_decay": 0.9},
        {"tune": "gradual", "freeze_bottom": 2, "reinit_top": 1},
        {"tune": "lora", "freeze_bottom": 0.5, "ema": 0.99},
        {"head_first": True, "tune": "biases"},
        {"head_first": True, "reinit_top": 2},
        {"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1, "freeze_bottom": 0.5},
        {"tune": "head", "augment": ["flip"], "views": 4, "solver": "lbfgs", "class_weights": True},
        {"tune": "head", "soup": "uniform", "balanced_sampling": True, "head": "mlp"},
        {"l2_sp": 0.1, "reinit_top": 1, "weight_decay": 0.0},
    ],
)
def test_what_goes_together_is_taken(keys: dict[str, Any]) -> None:
    params.parse(Arm, keys, "arms.x")


def test_half_precision_of_the_old_kind_needs_a_gpu() -> None:
    assert "`precision: fp16` needs a GPU" in refusals(Machine, precision="fp16", device="cpu")[0]
    params.parse(Machine, {"precision": "bf16", "device": "cpu"}, "machine")


# -------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_complete_arm(name: str, library: Library) -> None:
    arm = arms.with_rates(Arm(preset=name), library)
    assert arm.learning_rate is not None
    assert arm.backbone_learning_rate is not None
    # As a step reads it from its file.
    assert Arm.model_validate_json(arm.model_dump_json()) == arm
    assert params.parse(Arm, arm.model_dump(mode="json"), "a file") == arm


def test_every_preset_has_its_words_and_paper() -> None:
    assert list(arms.ABOUT_PRESETS) == list(PRESETS)
    assert all(re.search(r", (19|20)\d\d$", paper) for _, paper in arms.ABOUT_PRESETS.values())


def test_presets_differ_from_one_another_and_only_one_is_the_default() -> None:
    plain = Arm().model_dump(exclude={"preset"})
    expanded = [Arm(preset=name).model_dump(exclude={"preset"}) for name in PRESETS]
    assert [name for name, one in zip(PRESETS, expanded, strict=True) if one == plain] == ["full"]
    assert all(expanded.count(one) == 1 for one in expanded)


@pytest.mark.parametrize(
    ("preset", "library", "differs"),
    [
        (
            "scratch", "timm",
            {"start": "random", "learning_rate": 0.002, "backbone_learning_rate": 0.002},
        ),
        ("frozen", "transformers", {"tune": "head", "learning_rate": 0.03, "backbone_learning_rate": 0.03}),
        ("llrd", "timm", {"layer_decay": 0.8, "learning_rate": 0.005, "backbone_learning_rate": 0.001}),
        (
            "lora", "transformers",
            {"tune": "lora", "lora": Lora(), "learning_rate": 0.001, "backbone_learning_rate": 0.001},
        ),
        (
            "gradual", "transformers",
            {"tune": "gradual", "learning_rate": 0.001, "backbone_learning_rate": 0.0001},
        ),
    ],
)  # fmt: skip
def test_what_presets_stand_for(preset: str, library: Library, differs: dict[str, Any]) -> None:
    arm = arms.with_rates(Arm(preset=preset), library)
    default = Choices()
    found = {name: getattr(arm, name) for name in Choices.model_fields}
    assert {
        name: value for name, value in found.items() if value != getattr(default, name) and name != "preset"
    } == differs


def test_other_keys_override_a_preset() -> None:
    arm = Arm(preset="bottom_half", freeze_bottom=2, learning_rate=0.1)
    assert (arm.preset, arm.freeze_bottom, arm.learning_rate) == ("bottom_half", 2, 0.1)
    with pytest.raises(ValidationError, match="needs `start: pretrained`"):
        Arm(preset="bottom_half", start="random")


def test_an_experiments_changes_are_laid_over_the_arm_key_by_key() -> None:
    arm = Arm(preset="lora", lora=Lora(rank=4, alpha=32.0), learning_rate=0.1)
    changed = arms.changed(arm, Choices(lora=Lora(rank=2)))
    assert changed.lora == Lora(rank=2, alpha=32.0)
    assert (changed.tune, changed.learning_rate) == ("lora", 0.1)
    assert arms.changed(arm, Choices(tune="all", lora=None)).lora is None


def test_a_preset_among_the_changes_starts_afresh() -> None:
    arm = Arm(freeze_bottom=3, learning_rate=0.1, weight_decay=0.5)
    changed = arms.changed(arm, Choices(preset="bitfit", weight_decay=0.2))
    assert changed == Arm(preset="bitfit", tune="biases", weight_decay=0.2)


# ----------------------------------------------------------------------------------------------------- rates


def test_rates_are_there_for_every_kind() -> None:
    assert all(set(rates) == set(get_args(Kind)) for rates in RATES.values())
    assert set(RATES) == set(LIBRARIES)


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        (Arm(), (0.005, 0.001)),
        (Arm(learning_rate=0.1), (0.1, 0.001)),
        (Arm(backbone_learning_rate=0.1), (0.005, 0.1)),
        (Arm(start="random", learning_rate=0.1), (0.1, 0.1)),
        (Arm(tune="head", learning_rate=0.1), (0.1, 0.1)),
        (Arm(tune="norms"), (0.005, 0.005)),
        (Arm(tune="pattern", patterns=("*",)), (0.005, 0.001)),
    ],
)
def test_rates_are_filled_in_where_none_are_given(arm: Arm, expected: tuple[float, float]) -> None:
    filled = arms.with_rates(arm, "timm")
    assert (filled.learning_rate, filled.backbone_learning_rate) == expected
    assert arms.with_rates(filled, "timm") == filled


# ------------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.001, "0.001"),
        (1e-05, "1.0e-5"),
        (2.5e-07, "2.5e-7"),
        (1e16, "1.0e16"),
        (True, "true"),
        (None, "null"),
        (("flip", "crop"), "[flip, crop]"),
        (("true", "truer"), '["true", truer]'),
        (("*bias", "a: b"), '["*bias", "a: b"]'),
        (Lora(rank=4), "{rank: 4, alpha: 16.0, dropout: 0.0}"),
        ({}, "{}"),
    ],
)
def test_values_are_written_as_yaml_reads_them(value: Any, expected: str) -> None:
    from ruamel.yaml import YAML

    assert as_yaml(value) == expected
    read = YAML(typ="safe", pure=True).load(f"key: {expected}")["key"]
    plain = value.model_dump(exclude_none=True) if isinstance(value, Lora) else value
    assert read == (list(plain) if isinstance(plain, tuple) else plain)
    assert type(read) is (list if isinstance(plain, tuple) else type(plain))
