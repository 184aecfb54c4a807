from __future__ import annotations

import csv
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from steps import (
    artifacts,
    checkpoint,
    data,
    evaluate,
    features,
    freezing,
    inference,
    loop,
    params,
    train,
    trainable,
)
from steps.arms import PRESETS
from steps.errors import HeadstartError, TrainingError, UserError
from steps.network import Network, Probe
from steps.params import Arm, EvaluateSettings, Limits, Machine, TrainSettings
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

    def spy(model: Network | Probe, *rest: Any, **named: Any) -> loop.Fitted:
        heads.append(b"".join(tensor.numpy().tobytes() for tensor in model.head.state_dict().values()))
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
    settings = params.read_settings(EvaluateSettings, artifacts.settings_file(experiment, "evaluate"))
    scene = evaluate.Scene(experiment, settings, data.read_split(experiment))
    samples = scene.samples("test")
    found = evaluate.predictions(scene, "test")
    assert len(found) == 6
    for run, probabilities in found.items():
        network = checkpoint.load_network(scene.folder(run), scene.pretrained)
        torch.testing.assert_close(
            torch.from_numpy(probabilities),
            torch.from_numpy(inference.probabilities(network, samples)),
            rtol=1e-5,
            atol=1e-6,
        )


def test_scores_agree_with_predictions(experiment: str) -> None:
    folder = artifacts.evaluation_dir(experiment)
    predictions = pd.read_parquet(folder / "predictions.parquet")
    scores = json.loads((folder / "scores.json").read_text())
    means = json.loads((folder / "metrics.json").read_text())
    columns = ["id", "arm", "resample", "seed", "label", "predicted", "probabilities"]
    assert list(predictions.columns) == columns
    hits = predictions.assign(hit=predictions["label"] == predictions["predicted"])
    for (arm, seed), group in hits.groupby(["arm", "seed"]):
        assert sorted(group["id"]) == sorted(made.test_rows(experiment)["id"])
        assert scores["arms"][arm][str(seed)]["accuracy"] == pytest.approx(group["hit"].mean())
    for arm, group in hits.groupby("arm"):
        assert means[arm]["accuracy"] == pytest.approx(group["hit"].mean())


def test_probabilities_that_are_not_finite_name_arm_and_seed(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = inference.probabilities
    calls: list[int] = []

    def broken(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        found = predict(*arguments, **named)
        return found * float("nan") if len(calls) == 4 else found

    monkeypatch.setattr(inference, "probabilities", broken)
    before = (artifacts.evaluation_dir(experiment) / "metrics.json").read_bytes()
    with pytest.raises(HeadstartError, match="frozen seed 2: what it says of test is not finite"):
        evaluate.evaluate(experiment)
    assert (artifacts.evaluation_dir(experiment) / "metrics.json").read_bytes() == before


def test_features_name_what_they_were_made_from(experiment: str) -> None:
    key = features.key(artifacts.features_dir(experiment))
    assert key["data_sha256"] == journal(experiment, "full")["data_sha256"]
    assert key["pretrained_sha256"] == journal(experiment, "full")["pretrained_sha256"]
    assert "model.safetensors" in key["pretrained_files"]


# ------------------------------------------------------------------------------------- searches, resamples


def train_searching(
    experiment: str, trials: int, search: dict[str, Any] | None = None, resamples: int = 1
) -> dict[str, Any]:
    """Train the arm `full` with a search; gives what the search left."""
    path = artifacts.settings_file(experiment, "train", "full")
    settings = json.loads(path.read_text())
    settings["tuning"]["trials"] = trials
    settings["training"]["resamples"] = resamples
    settings["arm"]["search"] = search
    artifacts.write_json(path, settings)
    train.train(experiment, "full")
    found: dict[str, Any] = json.loads((artifacts.arms_dir(experiment) / "full/tuning.json").read_text())
    return found


def count_fits(monkeypatch: pytest.MonkeyPatch, broken_at: int = 0) -> list[int]:
    """The seeds of all trainings from now on; one of them, from 1, is stopped by the keyboard."""
    seeds: list[int] = []
    fit = trainable.fit

    def spy(job: Any, model: Any, seed: int, *, log: Any, **named: Any) -> loop.Fitted:
        seeds.append(seed)

        def stop(values: dict[str, float], step: int) -> None:
            log(values, step)
            if step == 2 and "epoch" in values:
                raise KeyboardInterrupt

        return fit(job, model, seed, log=stop if len(seeds) == broken_at else log, **named)

    monkeypatch.setattr(trainable, "fit", spy)
    return seeds


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: untimed(one) for key, one in value.items() if key != "seconds"}
    return [untimed(one) for one in value] if isinstance(value, list) else value


def test_the_seeds_train_with_what_the_search_chose(
    experiment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = count_fits(monkeypatch)
    found = train_searching(experiment, 3)
    assert seeds == [101, 101, 101, 1, 2]
    losses = [trial["log_loss"] for trial in found["history"]]
    best = found["history"][losses.index(min(losses))]
    assert found["chosen"] == best["values"]
    for seed in (1, 2):
        arm = journal(experiment, "full", seed)["settings"]["arm"]
        assert {key: arm[key] for key in found["chosen"]} == found["chosen"]
        assert journal(experiment, "full", seed)["resample"] == 1
    steps = journal(experiment, "full")["steps"]
    assert [trial["steps"] for trial in found["history"]] == [steps] * 3, "every trial has the whole budget"
    assert found["seconds"] == pytest.approx(sum(trial["seconds"] for trial in found["history"]), abs=0.002)
    assert f"{experiment}/full trial 2 of 3: learning_rate " in capsys.readouterr().out
    assert not artifacts.checkpoints_dir(experiment, "full").exists()
    assert train_searching(experiment, 3) == found
    assert len(seeds) == 7, "the trials are kept, to the second"


def test_a_kept_trial_is_what_a_new_one_would_be(experiment: str) -> None:
    first = train_searching(experiment, 2)
    before = weights(experiment)
    shutil.rmtree(artifacts.trials_dir(experiment, "full"))
    assert untimed(train_searching(experiment, 2)) == untimed(first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(experiment).items())


def test_a_search_that_was_stopped_goes_on_where_it_was(
    experiment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = Limits(checkpoint_seconds=0.0).model_dump(mode="json")
    artifacts.write_json(artifacts.settings_file(experiment, params.LIMITS), limits)
    whole = train_searching(experiment, 3)
    before = weights(experiment)
    shutil.rmtree(artifacts.trials_dir(experiment, "full"))
    with monkeypatch.context() as patch:
        seeds = count_fits(patch, broken_at=2)
        with pytest.raises(KeyboardInterrupt):
            train_searching(experiment, 3)
        assert seeds == [101, 101]
    capsys.readouterr()
    seeds = count_fits(monkeypatch)
    assert untimed(train_searching(experiment, 3)) == untimed(whole)
    assert seeds == [101, 101, 1, 2], "the first trial is not trained again"
    assert f"{experiment}/full trial 2 of 3: goes on from step 2" in capsys.readouterr().out
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(experiment).items())


def test_a_trial_that_breaks_down_is_counted_and_never_chosen(experiment: str) -> None:
    found = train_searching(experiment, 3, {"learning_rate": [1e29, 1e30]})
    assert (found["trials"], found["failed"]) == (3, 2)
    assert found["chosen"] == found["declared"] == {"learning_rate": 0.01}
    assert all(
        "not finite" in trial["failed"] and trial["log_loss"] is None for trial in found["history"][1:]
    )
    assert 0 < found["history"][1]["steps"] <= found["history"][0]["steps"]
    assert journal(experiment, "full")["settings"]["arm"]["learning_rate"] == 0.01
    assert len(list(artifacts.trials_dir(experiment, "full").iterdir())) == 1


def test_every_seed_is_trained_on_every_resample(experiment: str) -> None:
    path = artifacts.split_file(experiment)
    split = pd.read_parquet(path)
    train_rows = split.index[split["split"] == "train"]
    split["split_2"] = split["split"].where(split.index != train_rows[0], "")
    split.to_parquet(path)
    train_searching(experiment, 1, resamples=2)
    root = artifacts.arms_dir(experiment) / "full"
    folders = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    assert folders == ["resample-2-seed-1", "resample-2-seed-2", "seed-1", "seed-2"]
    second = json.loads((root / "resample-2-seed-1/run.json").read_text())
    first = journal(experiment, "full")
    assert (second["resample"], second["seed"], first["resample"]) == (2, 1, 1)
    assert second["train_labels"] == first["train_labels"] - 1
    assert second["weights_sha256"] != first["weights_sha256"]


# ------------------------------------------------------------------------------------------ every technique


def train_as(
    experiment: str, arm: dict[str, Any], machine: dict[str, Any] | None = None, epochs: int = 3
) -> None:
    """Train the arm `full` anew as something else."""
    path = artifacts.settings_file(experiment, "train", "full")
    settings = json.loads(path.read_text())
    settings["arm"] = Arm(**{"learning_rate": 0.01, "backbone_learning_rate": 0.005, **arm}).model_dump(
        mode="json"
    )
    asked = Machine(**(machine or {}))
    settings["machine"] = asked.within(Limits()).model_dump(mode="json")
    limits = asked.limits.model_dump(mode="json")
    artifacts.write_json(artifacts.settings_file(experiment, params.LIMITS), limits)
    settings["training"]["epochs"] = epochs
    artifacts.write_json(path, settings)
    train.train(experiment, "full")


def weights(experiment: str, seed: int = 1) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(seed_folder(experiment, "full", seed) / "model.safetensors")
    return found


def fits(preset: str, experiment: str) -> bool:
    images_only = {"augment", "mixup", "cutmix"}
    return experiment == "colours" or not images_only & PRESETS[preset].keys()


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_and_its_network_is_an_ordinary_one(experiment: str, preset: str) -> None:
    if not fits(preset, experiment):
        pytest.skip("for images only")
    arm: dict[str, Any] = {"preset": preset}
    if PRESETS[preset].get("tune") == "head" or PRESETS[preset].get("start") == "random":
        arm["backbone_learning_rate"] = None
    train_as(experiment, arm)
    told = journal(experiment, "full")
    assert told["frozen"]["unchanged"] is True
    pretrained = artifacts.pretrained_dir("toy")
    model = checkpoint.load_network(seed_folder(experiment, "full"), pretrained)
    assert told["parameters"] == sum(one.numel() for one in model.parameters()), "adapters are merged"
    assert 0 < told["trainable_parameters"] <= told["parameters"] or told["tune"] == "lora"
    # What was judged in training is what the written network gives: merged, averaged, thawed and all.
    settings = params.read_settings(TrainSettings, artifacts.settings_file(experiment, "train", "full"))
    job = trainable.load(experiment, "full", settings)
    found = loop.judge(model, job.batches("validation", job.samples("validation")))
    for name, value in told["best"].items():
        assert found[name] == pytest.approx(value, abs=1e-4), name


FROZEN_PREFIXES: dict[str, dict[str, Any]] = {
    "bottom layer": {"freeze_bottom": 1},
    "bottom half": {"freeze_bottom": 0.5},
    "gradual": {"tune": "gradual"},
    "gradual, top drawn anew": {"tune": "gradual", "reinit_top": 1},
    "views": {"freeze_bottom": 0.5, "augment": ("flip", "crop"), "views": 2},
    "head on views": {"tune": "head", "augment": ("flip",), "views": 2, "backbone_learning_rate": None},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FROZEN_PREFIXES)
def test_stored_activations_give_the_weights_of_none_stored(
    experiment: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = FROZEN_PREFIXES[kind]
    if "augment" in arm and experiment != "colours":
        pytest.skip("for images only")
    torch.set_num_threads(1)
    cuts: list[int] = []
    forward = Network.forward

    def spy(self: Network, inputs: Any, start: int = 0) -> torch.Tensor:
        cuts.append(start)
        found: torch.Tensor = forward(self, inputs, start)
        return found

    monkeypatch.setattr(Network, "forward", spy)
    # A gradient that is nothing but rounding would be blown up to a whole step by Adam's division.
    monkeypatch.setattr(torch.optim, "AdamW", partial(torch.optim.AdamW, eps=1e-3))
    train_as(experiment, arm, {"cache": True})
    stored, cut = weights(experiment), set(cuts)
    cuts.clear()
    train_as(experiment, arm, {"cache": False})
    assert max(cut) > 0, "the cache was not used: this test shows nothing"
    assert set(cuts) == {0}
    for name, tensor in weights(experiment).items():
        torch.testing.assert_close(tensor, stored[name], rtol=1e-5, atol=1e-6)


def test_stored_activations_are_shared_by_seeds_and_arms(experiment: str) -> None:
    train_as(experiment, {"freeze_bottom": 1})
    entries = sorted(artifacts.prefix_cache_dir().iterdir())
    times = [path.stat().st_ino for path in entries]
    train_as(experiment, {"freeze_bottom": 1, "weight_decay": 0.2})
    assert [path.stat().st_ino for path in sorted(artifacts.prefix_cache_dir().iterdir())] == times
    if experiment == "colours":  # the toy for texts has no third layer
        train_as(experiment, {"freeze_bottom": 2})
        assert len(list(artifacts.prefix_cache_dir().iterdir())) > len(entries)


def test_a_cache_that_is_too_small_stops_the_training(experiment: str) -> None:
    with pytest.raises(UserError, match=r"machine\.cache_gib"):
        train_as(experiment, {"freeze_bottom": 1}, {"cache_gib": 1e-9})


def test_a_device_that_is_not_there_stops_the_training(experiment: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(UserError, match=r"machine\.device is cuda"):
        train_as(experiment, {}, {"device": "cuda"})


def test_a_precision_that_the_device_has_not_stops_the_training(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.raises(UserError, match="bf16 is not supported on this cpu; use float32"):
        train_as(experiment, {}, {"device": "cpu", "precision": "bf16"})


def test_memory_that_runs_out_halves_what_is_computed_at_a_time(
    experiment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the batch stays the same: the weights are those of a training in parts."""
    train_as(experiment, {"drop_path": 0.0}, {"device": "cpu", "accumulate": 2})
    expected = weights(experiment)
    forward = Network.forward

    def short(self: Network, inputs: Any, start: int = 0) -> torch.Tensor:
        size = len(inputs if isinstance(inputs, torch.Tensor) else inputs["input_ids"])
        if self.training and size > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        found: torch.Tensor = forward(self, inputs, start)
        return found

    monkeypatch.setattr(Network, "forward", short)
    train_as(experiment, {"drop_path": 0.0}, {"device": "cpu", "accumulate": 1, "auto_batch_size": True})
    assert "going on with 4 samples at a time" in capsys.readouterr().out
    for name, tensor in weights(experiment).items():
        assert torch.equal(tensor, expected[name]), name


def test_a_network_that_was_frozen_wrongly_is_not_kept(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = freezing.parameter_groups

    def frees_the_bottom(network: Network, arm: Arm) -> list[dict[str, Any]]:
        for parameter in network.backbone.layers[0].parameters():
            parameter.requires_grad_(True)
        return groups(network, arm)

    monkeypatch.setattr(freezing, "parameter_groups", frees_the_bottom)
    before = (seed_folder(experiment, "full") / "run.json").read_bytes()
    with pytest.raises(HeadstartError, match="the freezing is broken"):
        train_as(experiment, {"freeze_bottom": 1})
    assert (seed_folder(experiment, "full") / "run.json").read_bytes() == before


def test_a_head_fitted_first_starts_from_the_optimum_on_frozen_features(experiment: str) -> None:
    settings = params.read_settings(TrainSettings, artifacts.settings_file(experiment, "train", "full"))
    arm = Arm(head_first=True, learning_rate=0.01, backbone_learning_rate=0.005)
    job = trainable.load(experiment, "full", settings.model_copy(update={"arm": arm}))
    model = trainable.build(job, 1)
    assert isinstance(model, Network)
    trainable.fit_head_first(job, model)
    rows = job.features("train").features.numpy()
    # Of two classes scikit-learn has one weight vector where the head has two, each of half the length.
    strength = (2 if len(job.classes) == 2 else 1) / (len(rows) * arm.weight_decay)
    reference = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)
    reference.fit(rows, job.train_labels.numpy())
    found = inference.probabilities(model, job.samples("train"))
    expected = reference.predict_proba(rows)
    assert abs(found - expected).max() < 1e-3
