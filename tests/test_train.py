from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from steps import artifacts, checkpoint, evaluate, features, loop, train
from steps.errors import HeadstartError, TrainingError
from tests.tracking import made


@pytest.fixture(scope="module", params=["image-classification", "text-classification"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A clone with an experiment of a toy backbone, trained and evaluated."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, made.build(request.param)


@pytest.fixture
def experiment(built: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder, name = built
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return name


def seed_folder(experiment: str, arm: str, seed: int = 1) -> Path:
    return artifacts.seed_dir(experiment, arm, seed)


def journal(experiment: str, arm: str, seed: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((seed_folder(experiment, arm, seed) / "run.json").read_text())
    return found


def edit_settings(experiment: str, arm: str, change: dict[str, Any] | None) -> None:
    path = artifacts.settings_file(experiment, "train", arm)
    settings = json.loads(path.read_text())
    settings["arm"] = None if change is None else settings["arm"] | change
    artifacts.write_json(path, settings)


def test_same_seed_same_bytes(experiment: str) -> None:
    for arm in ("scratch", "frozen", "full"):
        before = {
            seed: (seed_folder(experiment, arm, seed) / "model.safetensors").read_bytes() for seed in (1, 2)
        }
        train.train(experiment, arm)
        after = {
            seed: (seed_folder(experiment, arm, seed) / "model.safetensors").read_bytes() for seed in (1, 2)
        }
        assert before == after
        assert before[1] != before[2]


def test_journal_and_history_tell_what_happened(experiment: str) -> None:
    for arm, kind in (("scratch", "network"), ("frozen", "head"), ("full", "network")):
        told = journal(experiment, arm)
        assert told["weights"] == kind
        assert told["weights_sha256"] == artifacts.sha256_file(
            seed_folder(experiment, arm) / "model.safetensors"
        )
        assert told["epochs"] == 2
        assert told["train_labels"] > 0
        with (seed_folder(experiment, arm) / "history.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert [row["epoch"] for row in rows] == ["1", "2"]
        assert int(rows[-1]["step"]) == told["steps"]
        losses = [float(row["validation_log_loss"]) for row in rows]
        assert told["best"]["validation_log_loss"] == min(losses)
        assert told["best_epoch"] == 1 + losses.index(min(losses))


def test_arms_get_equal_budgets_and_data(experiment: str) -> None:
    told = [journal(experiment, arm) for arm in ("scratch", "frozen", "full")]
    for name in ("steps", "train_labels", "validation_labels", "data_sha256", "pretrained_sha256", "classes"):
        assert len({str(one[name]) for one in told}) == 1, name
    assert len({one["parameters"] for one in told}) == 1, "all are the same network"
    assert (
        told[1]["trainable_parameters"] < told[0]["trainable_parameters"] == told[2]["trainable_parameters"]
    )


def test_a_frozen_backbone_is_untouched_and_proven(experiment: str) -> None:
    assert journal(experiment, "frozen")["frozen"]["unchanged"] is True
    assert journal(experiment, "frozen")["frozen"]["tensors"] > 10
    weights = artifacts.pretrained_dir("toy") / "model.safetensors"
    altered = bytearray(weights.read_bytes())
    altered[-1] ^= 1
    weights.write_bytes(altered)
    with pytest.raises(HeadstartError, match="is not what fetch wrote"):
        train.train(experiment, "frozen")


def test_first_head_of_a_seed_is_the_same_in_every_arm(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[bytes] = []

    def spy(model: torch.nn.Module, *rest: Any, **named: Any) -> loop.Fitted:
        head = model.head if hasattr(model, "head") else model
        assert isinstance(head, torch.nn.Module)
        heads.append(b"".join(tensor.numpy().tobytes() for tensor in head.state_dict().values()))
        return fit(model, *rest, **named)

    fit = loop.fit
    monkeypatch.setattr(loop, "fit", spy)
    for arm in ("scratch", "frozen", "full"):
        train.train(experiment, arm)
    assert len(heads) == 6
    assert len(set(heads[0::2])) == len(set(heads[1::2])) == 1
    assert heads[0] != heads[1]


def test_an_arm_left_out_says_so_and_trains_nothing(experiment: str) -> None:
    edit_settings(experiment, "full", None)
    train.train(experiment, "full")
    folder = artifacts.arms_dir(experiment) / "full"
    assert [path.name for path in folder.iterdir()] == [artifacts.LEFT_OUT]


def test_a_training_that_fails_keeps_the_one_before(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (seed_folder(experiment, "full", 2) / "model.safetensors").read_bytes()
    edit_settings(experiment, "full", {"learning_rate": 1e30, "backbone_learning_rate": 1e30})
    with pytest.raises(TrainingError, match="lower the arm's learning rates"):
        train.train(experiment, "full")
    assert (seed_folder(experiment, "full", 2) / "model.safetensors").read_bytes() == before
    assert not list(artifacts.arms_dir(experiment).glob(".*")), "something half-written is left"


def test_predictions_are_the_networks_own(experiment: str) -> None:
    """Also for the frozen arm, whose head was trained and scored on stored features."""
    from steps import tasks
    from steps.params import EvaluateSettings, read_settings

    settings = read_settings(EvaluateSettings, artifacts.settings_file(experiment, "evaluate"))
    test = made.test_rows(experiment)
    pretrained, task = artifacts.pretrained_dir("toy"), tasks.get(settings.task)
    contents = tasks.contents(task, test, artifacts.data_dir(experiment))
    samples = task.samples(contents, settings.model, pretrained)
    seen = 0
    for arm, seed, found in evaluate.predictions(experiment, settings, test):
        network = checkpoint.load_network(seed_folder(experiment, arm, seed), pretrained)
        torch.testing.assert_close(
            torch.from_numpy(found), torch.from_numpy(loop.predict(network, samples)), rtol=1e-5, atol=1e-6
        )
        seen += 1
    assert seen == 6


def test_scores_agree_with_predictions(experiment: str) -> None:
    import pandas as pd

    folder = artifacts.evaluation_dir(experiment)
    predictions = pd.read_parquet(folder / "predictions.parquet")
    scores = json.loads((folder / "scores.json").read_text())
    means = json.loads((folder / "metrics.json").read_text())
    assert list(predictions.columns) == ["id", "arm", "seed", "label", "predicted", "probabilities"]
    hits = predictions.assign(hit=predictions["label"] == predictions["predicted"])
    for (arm, seed), group in hits.groupby(["arm", "seed"]):
        assert sorted(group["id"]) == sorted(made.test_rows(experiment)["id"])
        assert scores["arms"][arm][str(seed)]["accuracy"] == pytest.approx(group["hit"].mean())
    for arm, group in hits.groupby("arm"):
        assert means[arm]["accuracy"] == pytest.approx(group["hit"].mean())


def test_probabilities_that_are_not_finite_name_arm_and_seed(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = loop.predict
    calls: list[int] = []

    def broken(*arguments: Any) -> Any:
        calls.append(1)
        found = predict(*arguments)
        return found * float("nan") if len(calls) == 4 else found

    monkeypatch.setattr(loop, "predict", broken)
    before = (artifacts.evaluation_dir(experiment) / "metrics.json").read_bytes()
    with pytest.raises(HeadstartError, match="frozen, seed 2: probabilities are not finite"):
        evaluate.evaluate(experiment)
    assert (artifacts.evaluation_dir(experiment) / "metrics.json").read_bytes() == before


def test_features_name_what_they_were_made_from(experiment: str) -> None:
    key = features.key(artifacts.features_dir(experiment))
    assert key["data_sha256"] == journal(experiment, "full")["data_sha256"]
    assert key["pretrained_sha256"] == journal(experiment, "full")["pretrained_sha256"]
    assert "model.safetensors" in key["pretrained_files"]
