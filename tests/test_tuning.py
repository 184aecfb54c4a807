from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from steps import artifacts, tuning
from steps.arms import Arm
from steps.errors import TrainingError, UserError
from steps.params import TrainSettings
from steps.trainable import Job
from steps.tuning import Attempt, Searched

FULL = {"learning_rate": 0.01, "backbone_learning_rate": 0.001}


@pytest.fixture(autouse=True)
def _clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job_of(arm: dict[str, Any], **of_tuning: Any) -> Job:
    raw = {
        "task": "image-classification",
        "model": {"pretrained": "toy"},
        "training": {"epochs": 3, "seeds": [1, 2], "batch_size": 8},
        "tuning": {"trials": 4, **of_tuning},
        "arm": arm,
    }
    settings = TrainSettings.model_validate(raw)
    assert settings.arm is not None
    place = Path("nowhere")
    rows = pd.DataFrame({"id": ["a"], "label": ["x"], "split": ["train"]})
    return Job("toys", "full", settings.arm, settings, place, ["x"], rows, torch.device("cpu"), place)


def key_of(job: Job) -> dict[str, Any]:
    return {"settings": job.settings.model_dump(mode="json")}


class Trainer:
    """Stands for a training: its log-loss is a function of the arm, or it breaks down."""

    def __init__(self, log_loss: Callable[[Arm], float]) -> None:
        self.log_loss = log_loss
        self.jobs: list[Job] = []

    def __call__(self, job: Job, label: str) -> Attempt:
        self.jobs.append(job)
        loss = self.log_loss(job.arm)
        if not math.isfinite(loss):
            return Attempt(
                {}, 0, 2, 0.5, failed="the loss is nan in epoch 1 (no checkpoint): lower the rates"
            )
        return Attempt({"validation_accuracy": 0.5, "validation_log_loss": loss}, 3, 12, 1.25)


def near(rate: float) -> Trainer:
    """Best at one learning rate."""

    def log_loss(arm: Arm) -> float:
        assert arm.learning_rate is not None
        return abs(math.log(arm.learning_rate / rate))

    return Trainer(log_loss)


def search(job: Job, trainer: Trainer) -> Searched:
    return tuning.search(job, trainer, key_of)


# ---------------------------------------------------------------------------------------------- the choice


def test_the_values_of_the_lowest_log_loss_are_chosen() -> None:
    trainer = near(0.05)
    found = search(job_of(FULL, trials=8), trainer)
    losses = [trial.attempt.loss for trial in found.history]
    best = losses.index(min(loss for loss in losses if loss is not None))
    assert best > 0, "else this shows nothing"
    assert found.chosen == found.history[best].values
    assert found.arm.learning_rate == found.chosen["learning_rate"]
    assert found.arm.backbone_learning_rate == found.chosen["backbone_learning_rate"]
    assert found.history[0].values == found.declared == FULL


def test_what_is_declared_stays_where_nothing_is_better() -> None:
    found = search(job_of(FULL), Trainer(lambda arm: 0.7))
    assert found.chosen == FULL


def test_every_trial_has_the_budget_and_the_seed_of_the_search() -> None:
    trainer = near(0.05)
    search(job_of(FULL, seed=7), trainer)
    for job in trainer.jobs:
        training = job.settings.training
        assert (training.epochs, training.batch_size, training.seeds) == (3, 8, (7,))
        assert job.arm == job.settings.arm


def test_a_trial_of_several_seeds_is_judged_by_their_mean(capsys: pytest.CaptureFixture[str]) -> None:
    """With its first seed the declared values look best; over both seeds they are the worst."""

    def train(job: Job, label: str) -> Attempt:
        (seed,) = job.settings.training.seeds
        declared = job.arm.learning_rate == FULL["learning_rate"]
        loss = (0.1 if seed == 101 else 0.9) if declared else 0.3
        labels.append(label)
        return Attempt({"validation_accuracy": 0.5, "validation_log_loss": loss}, 3, 12, 1.25)

    labels: list[str] = []
    one = tuning.search(job_of(FULL), train, key_of)
    assert one.chosen == FULL
    assert labels[0] == "toys/full trial 1 of 4"
    labels.clear()
    two = tuning.search(job_of(FULL, seeds=2), train, key_of)
    assert two.chosen == two.history[1].values
    assert [trial.attempt.loss for trial in two.history] == pytest.approx([0.5, 0.3, 0.3, 0.3])
    # The trainings with the first seed were kept from the search before.
    assert labels == [f"toys/full trial {number} of 4 seed 102" for number in (1, 2, 3, 4)]
    told = two.as_json()
    assert (told["trials"], told["seeds"], told["steps"], told["seconds"]) == (4, 2, 96, 10.0)
    assert told["objective"] == "validation log_loss, mean of 2 seeds"
    assert "seed 102" not in capsys.readouterr().out  # one line a trial


def test_a_trial_of_several_seeds_failed_where_one_did() -> None:
    def train(job: Job, label: str) -> Attempt:
        (seed,) = job.settings.training.seeds
        if seed == 102 and job.arm.learning_rate != FULL["learning_rate"]:
            return Attempt({}, 0, 2, 0.5, failed="nan")
        return Attempt({"validation_accuracy": 0.5, "validation_log_loss": 0.3}, 3, 12, 1.25)

    found = tuning.search(job_of(FULL, seeds=2), train, key_of)
    assert [trial.attempt.failed for trial in found.history] == [None, "nan", "nan", "nan"]
    assert found.as_json()["failed"] == 3


def test_the_journal_counts_all_that_was_spent(capsys: pytest.CaptureFixture[str]) -> None:
    def log_loss(arm: Arm) -> float:
        assert arm.learning_rate is not None
        return math.nan if arm.learning_rate > 0.03 else arm.learning_rate

    found = search(job_of(FULL, trials=8), Trainer(log_loss)).as_json()
    failed = [one for one in found["history"] if one["failed"]]
    assert 0 < len(failed) == found["failed"] < 8
    assert found["trials"] == len(found["history"]) == 8
    assert found["steps"] == 12 * (8 - len(failed)) + 2 * len(failed)
    assert found["seconds"] == pytest.approx(1.25 * (8 - len(failed)) + 0.5 * len(failed))
    assert found["space"] == {"learning_rate": [0.001, 0.1], "backbone_learning_rate": [0.0001, 0.01]}
    assert found["scale"]["learning_rate"] == "log"
    assert found["objective"] == "validation log_loss"
    assert (failed[0]["log_loss"], failed[0]["steps"]) == (None, 2)
    assert found["history"][0] == {
        "values": FULL, "log_loss": 0.01, "accuracy": 0.5, "epochs": 3, "steps": 12, "seconds": 1.25,
        "failed": None,
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "toys/full trial 1 of 8: learning_rate 0.01, backbone_learning_rate 0.001: validation log" in said
    assert "broke down: the loss is nan in epoch 1\n" in said
    assert json.loads(json.dumps(found)) == found


def test_one_trial_is_no_search(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = near(0.05)
    job = job_of(FULL, trials=1)
    found = search(job, trainer)
    assert not trainer.jobs
    assert found.arm == job.arm
    told = found.as_json()
    assert (told["trials"], told["steps"], told["seconds"], told["space"], told["history"]) == (
        1,
        0,
        0,
        {},
        [],
    )
    assert told["chosen"] == told["declared"] == FULL
    assert "toys/full: no search (tuning.trials: 1)" in capsys.readouterr().out


def test_where_all_trials_break_down_the_arm_is_named() -> None:
    with pytest.raises(TrainingError, match=r"toys/full: all 4 trials .* the loss is nan .*`search`"):
        search(job_of(FULL), Trainer(lambda arm: math.nan))


# ------------------------------------------------------------------------------------------- what is tried


def tried(arm: dict[str, Any], **of_tuning: Any) -> list[dict[str, Any]]:
    return [trial.values for trial in search(job_of(arm, **of_tuning), near(1.0)).history]


def test_the_same_seed_tries_the_same_and_more_trials_begin_with_fewer() -> None:
    first = tried(FULL, trials=8)
    assert tried(FULL, trials=8) == first
    assert tried(FULL, trials=3) == first[:3]
    assert tried(FULL, trials=8, seed=5)[1:] != first[1:]


def test_few_trials_are_spread_over_the_whole_range() -> None:
    """One in each quarter of the two decades, which random draws would rarely do."""
    for seed in range(20):
        values = tried(FULL, trials=5, seed=seed)[1:]
        for key, declared in FULL.items():
            quarters = [math.floor(2 * math.log10(10 * one[key] / declared)) for one in values]
            assert sorted(quarters) == [0, 1, 2, 3], (seed, key)


def test_arms_try_the_same_multiples_of_what_they_declare() -> None:
    one = tried(FULL)
    other = tried({"learning_rate": 0.04, "backbone_learning_rate": 0.02})
    for first, second in zip(one, other, strict=True):
        assert second["learning_rate"] == pytest.approx(4 * first["learning_rate"], rel=0.01)
        assert second["backbone_learning_rate"] == pytest.approx(
            20 * first["backbone_learning_rate"], rel=0.01
        )


@pytest.mark.parametrize(
    "arm",
    [
        {"start": "random", "learning_rate": 0.01, "backbone_learning_rate": 0.01},
        {"tune": "head", "learning_rate": 0.01, "backbone_learning_rate": 0.01},
    ],
)
def test_what_has_one_rate_is_searched_for_one(arm: dict[str, Any]) -> None:
    trainer = near(0.05)
    found = search(job_of(arm), trainer)
    assert list(found.space) == ["learning_rate"]
    assert len({job.arm.learning_rate for job in trainer.jobs}) == 4
    assert all(job.arm.backbone_learning_rate == job.arm.learning_rate for job in trainer.jobs)


def test_an_optimum_without_a_rate_is_searched_for_its_weight_decay() -> None:
    arm = {"tune": "head", "solver": "lbfgs", "learning_rate": 0.01, "backbone_learning_rate": 0.01}
    found = search(job_of(arm | {"weight_decay": 0.02}), Trainer(lambda arm: arm.weight_decay))
    assert found.space == {"weight_decay": (0.002, 0.2)}
    assert found.arm.weight_decay == min(trial.values["weight_decay"] for trial in found.history) < 0.02
    with pytest.raises(UserError, match="toys/full: there is nothing to search"):
        search(job_of(arm | {"weight_decay": 0.0}), near(1.0))


def test_a_space_of_ones_own() -> None:
    space = {
        "freeze_bottom": [1, 3],
        "label_smoothing": [0, 0.2],
        "weight_decay": [0.001, 0.1],
        "head": {"choices": ["linear", "mlp"]},
        "ema": {"choices": [None, 0.9]},
    }
    found = search(job_of(FULL | {"search": space}, trials=32), Trainer(lambda arm: arm.label_smoothing))
    values = [trial.values for trial in found.history]
    assert values[0] == {
        "freeze_bottom": 0, "label_smoothing": 0.0, "weight_decay": 0.01, "head": "linear", "ema": None,
    }  # fmt: skip
    assert {one["freeze_bottom"] for one in values[1:]} == {1, 2, 3}
    assert all(isinstance(one["freeze_bottom"], int) for one in values)
    assert {one["head"] for one in values} == {"linear", "mlp"}
    assert {one["ema"] for one in values} == {None, 0.9}
    logs = [math.log10(one["weight_decay"]) for one in values[1:]]
    assert sum(value < -2 for value in logs) == pytest.approx(len(logs) / 2, abs=1), "on a log scale"
    smooth = [one["label_smoothing"] for one in values[1:]]
    assert sum(value < 0.1 for value in smooth) == pytest.approx(len(smooth) / 2, abs=1), "on a linear one"
    assert min(smooth) >= 0
    assert max(smooth) <= 0.2
    assert found.as_json()["space"]["head"] == ["linear", "mlp"]
    assert found.arm.learning_rate == 0.01, "what is not searched stays"


def test_sampled_values_are_easy_to_write_down_and_within_their_ends() -> None:
    space = {"learning_rate": [0.0100004, 0.0100009]}
    for one in tried(FULL | {"search": space})[1:]:
        assert 0.0100004 <= one["learning_rate"] <= 0.0100009
    for one in tried(FULL, trials=16):
        assert one["learning_rate"] == float(f"{one['learning_rate']:.3g}")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"label_smoothing": [0.0, 1.5]}, "label_smoothing 1.5, .*: label_smoothing: must be less than 1"),
        ({"layer_decay": [0.0, 1.0]}, "layer_decay 0.0, "),
        ({"head": {"choices": ["linear", "deep"]}}, "head deep"),
        ({"soup": {"choices": [None, "greedy"]}}, "soup greedy, .*`soup` and `ema` both average"),
    ],
)
def test_values_that_do_not_fit_stop_the_search_before_it_begins(space: dict[str, Any], message: str) -> None:
    trainer = near(0.05)
    with pytest.raises(UserError, match=f"^toys/full: its `search` allows .*{message}"):
        search(job_of(FULL | {"ema": 0.9, "search": space}, trials=2), trainer)
    assert not trainer.jobs


# ------------------------------------------------------------------------------------------ what is kept


def test_a_search_goes_on_where_it_was() -> None:
    trainer = near(0.05)
    job = job_of(FULL, trials=4)

    def killed(job: Job, label: str) -> Attempt:
        if len(trainer.jobs) == 2:
            raise KeyboardInterrupt
        return trainer(job, label)

    with pytest.raises(KeyboardInterrupt):
        tuning.search(job, killed, key_of)
    whole = search(job, trainer)
    assert len(trainer.jobs) == 4
    assert search(job, trainer) == whole
    search(job_of(FULL, trials=6), trainer)
    assert len(trainer.jobs) == 6, "more trials go on from those before"


def test_another_key_is_another_trial() -> None:
    trainer = near(0.05)
    search(job_of(FULL), trainer)
    tuning.search(job_of(FULL), trainer, lambda job: key_of(job) | {"code": 2})
    assert len(trainer.jobs) == 8


def test_a_trial_that_broke_down_is_tried_again() -> None:
    broken = Trainer(lambda arm: math.nan if arm.learning_rate != 0.01 else 0.5)
    assert search(job_of(FULL), broken).chosen == FULL
    trainer = near(0.05)
    search(job_of(FULL), trainer)
    assert len(trainer.jobs) == 3


def test_a_damaged_file_is_told_of_and_not_used(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = near(0.05)
    whole = search(job_of(FULL, trials=3), trainer)
    files = sorted(artifacts.trials_dir("toys", "full").iterdir())
    assert len(files) == 3
    files[0].write_text(files[0].read_text()[:-20])
    content = json.loads(files[1].read_text())
    files[1].write_text(json.dumps(content | {"attempt": {"best": {}}}))
    assert search(job_of(FULL, trials=3), trainer) == whole
    assert len(trainer.jobs) == 5
    assert capsys.readouterr().out.count("is damaged: the trial is trained again") == 2
