"""evaluate: score the test split, once for every arm and seed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from steps import artifacts, checkpoint, data, entry, features, loop, metrics, network, params, tasks
from steps.errors import HeadstartError
from steps.params import EvaluateSettings


def evaluate(experiment: str) -> None:
    """Write `work/<experiment>/evaluation/`: predictions, scores of each seed, and their means.

    Raises:
        HeadstartError: a model gives probabilities that are not finite, or its weights were altered.
    """
    settings = params.read_settings(EvaluateSettings, artifacts.settings_file(experiment, "evaluate"))
    rows = data.read_split(experiment)
    classes, test = data.classes_of(rows), rows[rows["split"] == "test"]
    truth = data.label_indices(test["label"], classes)
    frames: list[pd.DataFrame] = []
    scores: dict[str, dict[str, Any]] = {arm: {} for arm in settings.arms}
    for arm, seed, probabilities in predictions(experiment, settings, test):
        if not np.isfinite(probabilities).all():
            raise HeadstartError(f"{arm}, seed {seed}: probabilities are not finite; train the arm again")
        frames.append(table(test, arm, seed, probabilities, classes))
        scores[arm][str(seed)] = metrics.summary(truth, probabilities.astype(np.float64), classes)
        entry.say(f"{experiment}/{arm} seed {seed}: {told(scores[arm][str(seed)])}")
    with artifacts.new_folder(artifacts.evaluation_dir(experiment)) as folder:
        pd.concat(frames, ignore_index=True).to_parquet(folder / "predictions.parquet", index=False)
        found = {"classes": classes, "test_size": len(test), "arms": scores}
        artifacts.write_json(folder / "scores.json", found)
        artifacts.write_json(folder / "metrics.json", means(scores))


def predictions(
    experiment: str, settings: EvaluateSettings, test: pd.DataFrame
) -> Iterator[tuple[str, int, NDArray[np.float32]]]:
    """Probabilities (samples, classes) on the test split, arm by arm and seed by seed."""
    pretrained = artifacts.pretrained_dir(settings.model.pretrained)
    device, task = network.prepare_device(settings.machine.device), tasks.get(settings.task)
    contents = tasks.contents(task, test, artifacts.data_dir(experiment))
    # Decoded or tokenised once: every network sees the same inputs.
    whole = task.samples(contents, settings.model, pretrained)
    frozen = features.read(artifacts.features_dir(experiment), test["id"])
    for arm in settings.arms:
        for seed in settings.seeds:
            folder = artifacts.seed_dir(experiment, arm, seed)
            model, samples = model_and_samples(folder, pretrained, whole, frozen)
            yield arm, seed, loop.predict(model, samples, device)


def model_and_samples(
    folder: Path, pretrained: Path, whole: data.Samples, frozen: data.FeatureSamples
) -> tuple[torch.nn.Module, data.Samples]:
    """A trained head with the features computed before, or a network with the samples themselves."""
    if checkpoint.read_journal(folder)["weights"] == "head":
        return checkpoint.load_head(folder, frozen.features.shape[1]), frozen
    return checkpoint.load_network(folder, pretrained), whole


def table(
    test: pd.DataFrame, arm: str, seed: int, probabilities: NDArray[np.float32], classes: list[str]
) -> pd.DataFrame:
    """Predictions of one model as rows of predictions.parquet."""
    return pd.DataFrame(
        {
            "id": test["id"].to_numpy(),
            "arm": arm,
            "seed": seed,
            "label": test["label"].to_numpy(),
            "predicted": np.asarray(classes, dtype=object)[probabilities.argmax(axis=1)],
            "probabilities": list(probabilities),
        }
    )


def means(scores: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over seeds, for `dvc metrics show`."""
    return {
        arm: {
            name: float(np.mean([summary[name] for summary in seeds.values()]))
            for name in metrics.HIGHER_IS_BETTER
        }
        for arm, seeds in scores.items()
    }


def told(summary: dict[str, Any]) -> str:
    """The metrics of one model in words."""
    return ", ".join(f"{name.replace('_', '-')} {summary[name]:.3f}" for name in metrics.HIGHER_IS_BETTER)


def main() -> int:
    """Run `python -m steps.evaluate <experiment>`."""
    return entry.run(evaluate, "experiment")


if __name__ == "__main__":
    sys.exit(main())
