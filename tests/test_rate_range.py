from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steps import artifacts, network, params, rate_range
from steps.arms import Arm
from steps.data import Batches, FeatureSamples
from steps.errors import TrainingError, UserError
from steps.network import Probe
from steps.objective import Objective
from steps.rate_range import Curve, Proposal, propose, range_test
from tests.rawdata import files_below
from tests.tracking import made

RATES = np.geomspace(1e-6, 1, 61).tolist()  # ten a decade: 1e-4 is at 20, 1e-2 at 40


def ramp(begin: int, end: int, high: float = 2.0, low: float = 0.5) -> list[float]:
    """Flat, a straight fall on the logarithmic axis from one place to another, then a steep rise."""
    fall = np.interp(np.arange(61), [begin, end], [high, low])
    rise = np.clip(np.arange(61) - end - 3, 0, None) * 0.3
    return [float(value) for value in fall + rise]


# -------------------------------------------------------------------------------------- reading curves


def test_the_middle_of_a_straight_slope_is_proposed() -> None:
    found = propose(RATES, ramp(20, 41))
    # The fall takes 21 steps: a tenth of it is not yet done after 2, nine tenths are after 19.
    assert found.onset == pytest.approx(RATES[22])
    assert found.lowest == pytest.approx(RATES[41])
    assert found.rate == pytest.approx(math.sqrt(RATES[22] * RATES[39]))


def test_a_long_flat_floor_does_not_draw_the_proposal_to_high_rates() -> None:
    losses = ramp(20, 41)[:42] + [0.5 - 1e-4 * at for at in range(19)]
    found = propose(RATES, losses)
    assert found.lowest == pytest.approx(RATES[60])
    assert found.rate == propose(RATES, ramp(20, 41)).rate


def test_the_steepest_place_is_found_and_not_mistaken_for_the_middle() -> None:
    losses = np.interp(np.arange(61), [20, 34, 36, 40], [2.0, 1.4, 0.6, 0.5]).tolist()
    found = propose(RATES, losses)
    assert RATES[34] <= found.steepest <= RATES[36]
    assert found.rate < found.steepest


@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_the_proposal_little(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.02, 61)
    found = propose(RATES, (np.array(ramp(20, 41)) + noise).tolist())
    # Within two of the steps between rates.
    assert abs(math.log10(found.rate / propose(RATES, ramp(20, 41)).rate)) <= 0.2


def test_a_chance_high_first_batch_is_no_fall() -> None:
    losses = ramp(20, 41)
    losses[0] = 4.0
    assert propose(RATES, losses) == propose(RATES, ramp(20, 41))


def test_the_last_value_may_be_no_number() -> None:
    losses = [*ramp(20, 41)[:50], math.nan]
    assert propose(RATES[:51], losses) == propose(RATES, ramp(20, 41))


@pytest.mark.parametrize(
    "losses", [[2.0] * 61, [2.0 + 0.01 * at for at in range(61)], ramp(20, 41, 2.0, 1.98)]
)
def test_a_loss_that_does_not_fall_gives_no_proposal(losses: list[float]) -> None:
    with pytest.raises(TrainingError, match=r"no learning rate from 1e-06 to 1 makes the loss fall"):
        propose(RATES, losses)


def test_a_loss_that_diverges_at_once_gives_no_proposal() -> None:
    with pytest.raises(TrainingError, match=r"diverged after 3 steps, at a learning rate of 1.6e-06 already"):
        propose(RATES, [2.0, 9.0, math.inf])


# -------------------------------------------------------------------------------------------- the test


def toy(scale: float = 1.0) -> tuple[Probe, Batches, Objective]:
    """A head and two classes apart from each other."""
    torch.manual_seed(0)
    labels = torch.arange(60) % 2
    features = scale * (torch.randn(60, 4) + 2.0 * labels[:, None])
    return (
        network.probe(4, 2, 0.0),
        Batches(FeatureSamples(features), labels, 10),
        Objective(Arm(), labels, 2),
    )


def run(scale: float = 1.0, seed: int = 1) -> tuple[Curve, list[dict[str, object]]]:
    probe, batches, objective = toy(scale)
    (head,) = probe.layers()
    weight, bias = head.parameters()
    groups = [
        {"name": "head", "params": [weight], "lr": 0.004, "weight_decay": 0.01},
        {"name": "backbone", "params": [bias], "lr": 0.001, "weight_decay": 0.0},
    ]
    curve = range_test(probe, batches, groups, objective, device=torch.device("cpu"), seed=seed)
    return curve, groups


def test_the_rate_grows_by_the_same_factor() -> None:
    curve, _ = run()
    assert len(curve.rates) == len(curve.losses) == len(curve.smoothed) <= 100
    assert curve.rates[0] == pytest.approx(1e-6)
    assert np.diff(np.log10(curve.rates)) == pytest.approx(6 / 99)
    assert curve.smoothed == rate_range.smooth(curve.losses)


def test_smoothing_weighs_the_steps_around_by_their_distance() -> None:
    assert rate_range.smooth([1.0, 1.5, 1.2]) == pytest.approx(
        [
            (1.0 + 0.8 * 1.5 + 0.64 * 1.2) / 2.44,
            (0.8 * 1.0 + 1.5 + 0.8 * 1.2) / 2.6,
            (0.64 * 1.0 + 0.8 * 1.5 + 1.2) / 2.44,
        ]
    )


def test_smoothing_neither_delays_a_fall_nor_lets_the_end_hide_it() -> None:
    step = [2.0] * 30 + [1.0] * 30
    smoothed = rate_range.smooth(step)
    assert smoothed[29] + smoothed[30] == pytest.approx(3.0, abs=1e-2)
    blown = rate_range.smooth([*step, 1e9, math.inf])
    assert blown[:50] == pytest.approx(smoothed[:50], abs=0.1)
    assert blown[60] <= 4.0
    assert blown[61] == math.inf


def test_the_other_rates_keep_their_ratio_to_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, float]] = []
    step = torch.optim.AdamW.step

    def watched(optimizer: torch.optim.AdamW) -> None:
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"]))
        step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    curve, _ = run()
    assert [head for head, _ in seen[:20]] == curve.rates[:20]
    assert all(head == pytest.approx(4 * backbone) for head, backbone in seen)


def test_what_can_be_learnt_gives_a_proposal_between_onset_and_lowest() -> None:
    curve, _ = run()
    found = propose(curve.rates, curve.smoothed)
    assert found.onset < found.rate < found.lowest
    assert 1e-4 < found.rate < 1


def test_the_same_seed_gives_the_same_curve() -> None:
    assert run()[0] == run()[0]
    assert run(seed=2)[0] != run()[0]


def test_it_stops_where_the_loss_explodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_range, "HIGHEST", 1e6)
    curve, _ = run()
    assert len(curve.rates) < 100
    running, mass, average = [], 0.0, 0.0
    for loss in curve.losses:
        average, mass = 0.9 * average + 0.1 * loss, 0.9 * mass + 0.1
        running.append(average / mass)
    assert running[-1] > 4 * min(running)
    assert all(one <= 4 * min(running[: at + 1]) for at, one in enumerate(running[:-1]))


def test_it_stops_where_the_loss_is_no_number() -> None:
    probe, batches, objective = toy()
    assert isinstance(batches.samples, FeatureSamples)
    batches.samples.features[7] = math.nan
    groups = [{"name": "head", "params": list(probe.parameters()), "lr": 1.0, "weight_decay": 0.0}]
    curve = range_test(probe, batches, groups, objective, device=torch.device("cpu"), seed=1)
    assert len(curve.losses) <= 6
    assert math.isnan(curve.losses[-1])


# -------------------------------------------------------------------------------------------- the step


@pytest.mark.parametrize(
    ("arm", "line"),
    [
        (
            Arm(learning_rate=0.005, backbone_learning_rate=0.001),
            "full: {learning_rate: 0.012, backbone_learning_rate: 0.0025}",
        ),
        (Arm(start="random", learning_rate=0.1, backbone_learning_rate=0.1), "full: {learning_rate: 0.012}"),
        (Arm(tune="head", learning_rate=0.1, backbone_learning_rate=0.1), "full: {learning_rate: 0.012}"),
    ],
)
def test_the_advice_can_be_pasted_into_params(arm: Arm, line: str) -> None:
    from ruamel.yaml import YAML

    said = rate_range.advice("digits", "full", arm, Proposal(0.01234, 0.03, 0.001, 0.1))
    assert "fastest at 0.03" in said[0]
    assert said[-1].strip() == line
    pasted = YAML(typ="safe", pure=True).load("\n".join(said[2:]))
    assert pasted["experiments"]["digits"]["arms"]["full"]["learning_rate"] == 0.012


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An experiment with data and a backbone, and nothing trained."""
    monkeypatch.chdir(tmp_path)
    task = "image-classification"
    name = made.EXPERIMENT[task]
    settings = made.settings(name, task).model_dump(mode="json", exclude_unset=True)
    settings["arms"]["solved"] = {"preset": "frozen_lbfgs"}
    Path("params.yaml").write_text(json.dumps(settings))
    made.write_pretrained(task)
    made.write_data(name, task, per_class=16)
    monkeypatch.setattr(rate_range, "STEPS", 30)
    return name


def test_a_curve_and_a_table_are_written_and_nothing_else_is_changed(
    clone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_below(Path("data")) | files_below(Path("work"))
    folder = artifacts.rate_range_dir(clone)
    rate_range.rate_range(clone, "full")
    said = capsys.readouterr().out
    assert "in params.yaml:" in said
    assert set(files_below(folder)) == {"full.png", "full.csv"}
    after = files_below(Path("data")) | files_below(Path("work"))
    assert {path: one for path, one in after.items() if f"{folder.name}/" not in path} == before
    with Image.open(folder / "full.png") as picture:
        assert picture.size == (1280, 760)
    rows = list(csv.DictReader((folder / "full.csv").open()))
    assert list(rows[0]) == ["step", "learning_rate", "loss", "smoothed"]
    assert float(rows[0]["learning_rate"]) == pytest.approx(1e-6)
    assert 10 <= len(rows) <= 30


def test_only_the_train_split_is_read(clone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    split = pd.read_parquet(artifacts.split_file(clone)).set_index("id")["split"]
    used = set(split[split == "train"].index)
    for image in Path("data", clone, "samples").iterdir():
        if image.stem not in used:
            image.write_bytes(b"no image")
    rate_range.rate_range(clone, "full")


def test_what_cannot_be_looked_for_is_said(clone: str) -> None:
    with pytest.raises(UserError, match=r"its `solver: lbfgs` finds its own steps"):
        rate_range.rate_range(clone, "solved")
    with pytest.raises(UserError, match=r"there is no arm 'ful'; did you mean 'full'\?"):
        rate_range.rate_range(clone, "ful")
    with pytest.raises(UserError, match=r"features.npy is missing; .* run `dvc repro embed@colours`"):
        rate_range.rate_range(clone, "frozen")


def test_settings_are_those_of_params_yaml_as_it_is_now(clone: str) -> None:
    assert not Path("work/params").exists()
    assert params.load(Path("params.yaml")).chosen(clone, "full").learning_rate == 0.01
