"""evaluate: score the test split, once for every arm and run; and look at what the best one gets wrong."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from steps import (
    answers,
    artifacts,
    checkpoint,
    data,
    entry,
    evidence,
    features,
    inference,
    ledger,
    metrics,
    network,
    occlusion,
    params,
    tasks,
)  # fmt: skip
from steps.errors import HeadstartError
from steps.kinds import KINDS, SHARE, Kind
from steps.params import EvaluateSettings

# The most confident ones are looked at.
MISTAKES = 12
OF_MISTAKES = ("id", "arm", "resample", "seed", "label", "predicted", "confidence", "tokens")


@dataclass(frozen=True)
class Run:
    """One trained model: arm, resample and seed."""

    arm: str
    resample: int
    seed: int

    @property
    def name(self) -> str:
        """As scores.json has it."""
        return artifacts.run_id(self.resample, self.seed)

    def __str__(self) -> str:
        resample = "" if self.resample == 1 else f" resample {self.resample}"
        return f"{self.arm}{resample} seed {self.seed}"


@dataclass(frozen=True)
class Scene:
    """What all models are asked: the samples of validation and test, decoded or tokenised once."""

    experiment: str
    settings: EvaluateSettings
    rows: pd.DataFrame

    @cached_property
    def device(self) -> torch.device:
        """Where to compute."""
        return network.prepare_device(self.settings.machine.device)

    @cached_property
    def classes(self) -> list[str]:
        """In the order of the networks' outputs."""
        return self.task.classes(self.rows)

    @cached_property
    def pretrained(self) -> Path:
        """The folder that fetch made."""
        return artifacts.pretrained_dir(self.settings.model.pretrained)

    @cached_property
    def task(self) -> tasks.Task:
        """What kind of data it is."""
        return tasks.get(self.settings.task)

    @property
    def kind(self) -> Kind:
        """The few facts about the task."""
        return KINDS[self.settings.task]

    @property
    def ask(self) -> tasks.Ask:
        """How samples are predicted."""
        return tasks.Ask(self.classes, self.settings.model, self.device, pretrained=self.pretrained)

    @property
    def runs(self) -> list[Run]:
        """Every model there is, arm by arm."""
        resamples = range(1, self.settings.resamples + 1)
        return [
            Run(arm, resample, seed)
            for arm in self.settings.arms
            for resample in resamples
            for seed in self.settings.seeds
        ]

    def folder(self, run: Run) -> Path:
        """Where train put a model."""
        return artifacts.seed_dir(self.experiment, run.arm, run.seed, run.resample)

    def part(self, split: str) -> pd.DataFrame:
        """The rows of a split."""
        return self.rows[self.rows["split"] == split]

    def contents(self, split: str) -> list[tasks.Content]:
        """The images or texts of a split."""
        return tasks.contents(self.task, self.part(split), artifacts.data_dir(self.experiment))

    def on_features(self, run: Run) -> bool:
        """Whether a model is a head on pooled features."""
        return self.kind.gives == "pooled" and checkpoint.read_journal(self.folder(run))["weights"] == "head"

    def samples(self, split: str) -> data.Samples:
        """What a whole network is fed of a split."""
        return self.task.samples(self.contents(split), self.settings.model, self.pretrained)

    def features(self, split: str) -> data.FeatureSamples:
        """What a head on pooled features is fed of a split."""
        return features.read(artifacts.features_dir(self.experiment), self.part(split)["id"])


def evaluate(experiment: str) -> None:
    """Write `work/<experiment>/evaluation/`: predictions, scores of each run, and their means.

    Every model that is scored on the test split is written into the ledger.

    Raises:
        HeadstartError: a model gives probabilities that are not finite, or its weights were altered.
    """
    settings = params.read_settings(EvaluateSettings, artifacts.settings_file(experiment, "evaluate"))
    scene = Scene(experiment, settings, data.read_split(experiment))
    tested = predictions(scene, "test")
    columns = columns_of(scene, "test", tested)
    scores = {arm: scores_of(scene, tested, columns, arm) for arm in settings.arms}
    with artifacts.new_folder(artifacts.evaluation_dir(experiment)) as folder:
        table(scene, "test", columns).to_parquet(folder / "predictions.parquet", index=False)
        # For what is fitted after the training, such as a temperature.
        validated = columns_of(scene, "validation", predictions(scene, "validation"))
        table(scene, "validation", validated).to_parquet(folder / "validation.parquet", index=False)
        mistakes(scene, best_run(scene), tested).to_parquet(folder / "mistakes.parquet", index=False)
        found = {"classes": scene.classes, "test_size": len(scene.part("test")), "arms": scores}
        artifacts.write_json(folder / "scores.json", found)
        artifacts.write_json(folder / "metrics.json", means(scores, scene.kind))
        artifacts.write_json(folder / "looks.json", written_down(scene))


def predictions(scene: Scene, split: str) -> dict[Run, tasks.Said]:
    """What every model says of a split."""
    frozen = scene.features(split)
    # Decoded or tokenised once for all networks, and not at all where there are heads alone.
    whole = None if all(map(scene.on_features, scene.runs)) else scene.samples(split)
    found: dict[Run, tasks.Said] = {}
    for run in scene.runs:
        model, samples = model_and_samples(scene, run, whole, frozen)
        found[run] = scene.task.predict(model, samples, scene.ask)
    return found


def columns_of(scene: Scene, split: str, found: dict[Run, tasks.Said]) -> dict[Run, dict[str, Any]]:
    """The same as columns, with each item's shares in the metrics where the task has no classes.

    Raises:
        HeadstartError: probabilities or shares are not finite.
    """
    rows = scene.part(split)
    columns = {run: answers.columns(scene.task, rows, said, scene.classes) for run, said in found.items()}
    for run, one in columns.items():
        if not answers.finite(one):
            raise HeadstartError(f"{run}: what it says of {split} is not finite; train the arm again")
    return columns


def model_and_samples(
    scene: Scene, run: Run, whole: data.Samples | None, frozen: data.FeatureSamples
) -> tuple[torch.nn.Module, data.Samples]:
    """A trained head with the features computed before, or a network with the samples themselves."""
    folder = scene.folder(run)
    if scene.on_features(run):
        return checkpoint.load_head(folder, frozen.features.shape[1]), frozen
    assert whole is not None, run
    return checkpoint.load_network(folder, scene.pretrained), whole


def table(scene: Scene, split: str, columns: dict[Run, dict[str, Any]]) -> pd.DataFrame:
    """Predictions of all models, one row for each model and sample."""
    ids = scene.part(split)["id"].to_numpy()
    frames = [
        pd.DataFrame(
            {
                "id": ids,
                "arm": run.arm,
                "resample": run.resample,
                "seed": run.seed,
                **own,
            }
        )
        for run, own in columns.items()
    ]
    return pd.concat(frames, ignore_index=True)


def scores_of(
    scene: Scene, tested: dict[Run, tasks.Said], columns: dict[Run, dict[str, Any]], arm: str
) -> dict[str, Any]:
    """The metrics of every run of an arm, by the run's name."""
    found = {}
    for run, said in tested.items():
        if run.arm == arm:
            found[run.name] = summary(scene, said, columns[run])
            entry.say(f"{scene.experiment}/{run}: {told(found[run.name], scene.kind)}")
    return found


def summary(scene: Scene, said: tasks.Said, columns: dict[str, Any]) -> dict[str, Any]:
    """The metrics of one model; of a classifier those of each class too."""
    if scene.kind.classified:
        truth = data.label_indices(scene.part("test")["label"], scene.classes)
        return metrics.summary(truth, np.asarray(said, dtype=np.float64), scene.classes)
    return {name: float(columns[f"{SHARE}{name}"].mean()) for name in scene.kind.metrics}


def means(scores: dict[str, dict[str, Any]], kind: Kind) -> dict[str, dict[str, float]]:
    """Means over runs, for `dvc metrics show`."""
    return {
        arm: {name: float(np.mean([found[name] for found in runs.values()])) for name in kind.metrics}
        for arm, runs in scores.items()
    }


def told(found: dict[str, Any], kind: Kind) -> str:
    """The metrics of one model in words."""
    return ", ".join(f"{metrics.SHOWN[name]} {found[name]:.3f}" for name in kind.metrics)


def written_down(scene: Scene) -> dict[str, Any]:
    """Write the scored models into the ledger; give how often this test split was used by now."""
    tested = ledger.test_sha256(scene.part("test"))
    names = [
        f"{run.arm}/{run.name}/{checkpoint.read_journal(scene.folder(run))['weights_sha256']}"
        for run in scene.runs
    ]
    ledger.record(scene.experiment, tested, names)
    return {"test_sha256": tested, **ledger.looks(scene.experiment, tested)}


# ----------------------------------------------------------------------------------------- the mistakes


def best_run(scene: Scene) -> Run:
    """The model that is best on validation: the one that compare chooses and register hands on."""
    metric = scene.settings.evaluation.metric
    by_arm: dict[str, list[tuple[float, float]]] = {}
    for run in scene.runs:
        by_arm.setdefault(run.arm, []).append(_merit(scene, run, metric))
    arm = evidence.best(by_arm, metric)
    of_arm = {run.name: [_merit(scene, run, metric)] for run in scene.runs if run.arm == arm}
    best = evidence.best(of_arm, metric)
    return next(run for run in scene.runs if (run.arm, run.name) == (arm, best))


def _merit(scene: Scene, run: Run, metric: str) -> tuple[float, float]:
    kept = checkpoint.read_journal(scene.folder(run))["best"]
    return float(kept[f"validation_{metric}"]), float(kept[f"validation_{scene.kind.loss}"])


def mistakes(scene: Scene, run: Run, tested: dict[Run, tasks.Said]) -> pd.DataFrame:
    """The test items that the model is wrong about and surest of; of texts the words that speak for it.

    None where the task has no classes: there the report shows what was said beside what is true.
    """
    rows = scene.part("test")
    if not scene.kind.classified:
        return pd.DataFrame(columns=list(OF_MISTAKES))
    probabilities = np.asarray(tested[run])
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != data.label_indices(rows["label"], scene.classes))
    chosen = wrong[np.argsort(-probabilities.max(axis=1)[wrong], kind="stable")][:MISTAKES]
    words: list[list[tuple[str, float]]] = [[] for _ in chosen]
    # Of a SavedModel's words nothing is told: it gets no tokens from us that could be left out.
    told = scene.kind.columns == ("text",) and artifacts.saved_model(scene.pretrained) is None
    if told and len(chosen):
        texts = [str(text) for text in rows["text"].to_numpy()[chosen]]
        words = words_that_mattered(scene, run, texts, predicted[chosen].tolist())
    return pd.DataFrame(
        {
            "id": rows["id"].to_numpy()[chosen],
            "arm": run.arm,
            "resample": run.resample,
            "seed": run.seed,
            "label": rows["label"].to_numpy()[chosen],
            "predicted": np.asarray(scene.classes, dtype=object)[predicted[chosen]],
            "confidence": probabilities.max(axis=1)[chosen].astype(np.float64),
            "tokens": [json.dumps(one, ensure_ascii=False) for one in words],
        }
    )


def words_that_mattered(
    scene: Scene, run: Run, texts: list[str], classes: list[int]
) -> list[list[tuple[str, float]]]:
    """For each text its words with what they add to the probability of the class."""

    def samples(asked: list[str]) -> data.Samples:
        return scene.task.samples(asked, scene.settings.model, scene.pretrained)

    def predict(asked: list[str]) -> NDArray[np.float32]:
        folder = scene.folder(run)
        if checkpoint.read_journal(folder)["weights"] != "head":
            return inference.probabilities(
                checkpoint.load_network(folder, scene.pretrained), samples(asked), scene.device
            )
        backbone = network.build_backbone(scene.pretrained, pretrained=True)
        rows = features.compute(backbone, samples(asked), scene.device)
        head = checkpoint.load_head(folder, rows.shape[1])
        return inference.probabilities(head, data.FeatureSamples(rows), scene.device)

    return occlusion.weights(texts, classes, _words_read(scene, texts, samples), predict)


def _words_read(scene: Scene, texts: list[str], samples: Any) -> list[int]:  # noqa: ANN401 - a function
    """How many words of each text fit into what the network reads."""
    limit = scene.settings.model.max_tokens
    words = [text.split()[:limit] for text in texts]
    beginnings = [" ".join(one[: at + 1]) for one in words for at in range(len(one))]
    lengths = samples(beginnings).lengths
    found, at = [], 0
    for one in words:
        own = lengths[at : at + len(one)]
        at += len(one)
        # A beginning that is as long as the limit may have been cut.
        found.append(max(1, sum(length < limit for length in own)))
    return found


def main() -> int:
    """Run `python -m steps.evaluate <experiment>`."""
    return entry.run(evaluate, "experiment")


if __name__ == "__main__":
    sys.exit(main())
