"""An experiment as evaluate leaves it, made up from a seed: no network was ever trained for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steps import artifacts, metrics
from steps.params import (
    Arm,
    CompareSettings,
    Evaluation,
    IngestSettings,
    Metric,
    Model,
    PackageData,
    Training,
    TrainSettings,
)


@dataclass
class Made:
    """What to make up.

    Attributes:
        skill: by arm, how sure the right class is on average; about the logit of the accuracy.
        labels: the classes.
        items: test items.
        pace: by arm, epochs after which two thirds of the skill are there.
    """

    experiment: str = "made-up"
    skill: dict[str, float] = field(default_factory=lambda: {"scratch": 1.2, "frozen": 1.9, "full": 3.0})
    labels: list[str] = field(default_factory=lambda: list("0123456789"))
    items: int = 400
    seeds: tuple[int, ...] = (1, 2, 3)
    epochs: int = 20
    metric: Metric = "accuracy"
    confidence: float = 0.95
    reference: str = "scratch"
    pace: dict[str, float] = field(default_factory=dict)
    stopped_after: dict[tuple[str, int], int] = field(default_factory=dict)
    missing_class: bool = False
    random: int = 0


ARMS = {
    "scratch": Arm(start="random", tune="all", learning_rate=0.002),
    "frozen": Arm(start="pretrained", tune="head", learning_rate=0.01),
    "full": Arm(start="pretrained", tune="all", learning_rate=0.005, backbone_learning_rate=0.001),
}


def make(made: Made) -> None:
    """Write all that compare reads into the working directory."""
    rng = np.random.default_rng(made.random)
    arms = {name: ARMS.get(name, ARMS["full"]) for name in made.skill}
    evaluation = Evaluation(metric=made.metric, confidence=made.confidence, reference=made.reference)
    model = Model(pretrained="toy")
    training = Training(epochs=made.epochs, seeds=made.seeds)
    settings = CompareSettings(
        task="image-classification", model=model, training=training, evaluation=evaluation, arms=arms
    )
    write = artifacts.write_json
    write(artifacts.settings_file(made.experiment, "compare"), settings.model_dump(mode="json"))
    data = PackageData(source="package", dataset="digits", path="requirements.lock")
    ingest = IngestSettings(task="image-classification", data=data)
    write(artifacts.settings_file(made.experiment, "ingest"), ingest.model_dump(mode="json"))
    write(artifacts.pretrained_dir("toy") / "provenance.json", PROVENANCE)
    write(artifacts.validation_dir(made.experiment) / "validation.json", validation(made))
    truth = rng.integers(0, len(made.labels) - made.missing_class, made.items)
    hardness = rng.normal(size=made.items)
    frames = []
    for arm, skill in made.skill.items():
        for seed in made.seeds:
            probabilities = predict(rng, truth, hardness, skill + 0.15 * rng.normal(), len(made.labels))
            frames.append(rows(made, arm, seed, truth, probabilities))
            chosen = TrainSettings(task="image-classification", model=model, training=training, arm=arms[arm])
            train(made, rng, arm, seed, skill, chosen)
    folder = artifacts.evaluation_dir(made.experiment)
    folder.mkdir(parents=True, exist_ok=True)
    pd.concat(frames, ignore_index=True).to_parquet(folder / "predictions.parquet", index=False)
    write(folder / "scores.json", {"classes": made.labels, "test_size": made.items, "arms": {}})


def predict(
    rng: np.random.Generator,
    truth: NDArray[np.int64],
    hardness: NDArray[np.float64],
    skill: float,
    classes: int,
) -> NDArray[np.float32]:
    """Probabilities that are right more often the more skill, and less often for hard items."""
    logits = rng.gumbel(size=(len(truth), classes))
    logits[np.arange(len(truth)), truth] += skill - hardness + np.log(classes)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), dtype=np.float32)


def rows(
    made: Made, arm: str, seed: int, truth: NDArray[np.int64], probabilities: NDArray[np.float32]
) -> pd.DataFrame:
    """Rows of predictions.parquet."""
    labels = np.asarray(made.labels, dtype=object)
    return pd.DataFrame(
        {
            "id": [f"item-{at:04d}" for at in range(len(truth))],
            "arm": arm,
            "seed": seed,
            "label": labels[truth],
            "predicted": labels[probabilities.argmax(axis=1)],
            "probabilities": list(probabilities),
        }
    )


def train(
    made: Made, rng: np.random.Generator, arm: str, seed: int, skill: float, settings: TrainSettings
) -> None:
    """Write a history and a journal."""
    epochs = made.stopped_after.get((arm, seed), made.epochs)
    pace = made.pace.get(arm, {"scratch": 8.0, "frozen": 1.0}.get(arm, 2.5))
    epoch = np.arange(1, epochs + 1)
    learned = 1 - np.exp(-epoch / pace)
    accuracy = np.clip(learned / (1 + np.exp(-skill)) + rng.normal(0, 0.012, epochs), 0.02, 1).round(2)
    history = pd.DataFrame(
        {
            "epoch": epoch,
            "step": epoch * 5,
            "seconds": (epoch * (0.1 if arm == "frozen" else 2.0)).round(3),
            "learning_rate": 0.001,
            "train_loss": 2.3 * np.exp(-epoch / pace),
            "validation_log_loss": 2.3 - 1.9 * accuracy + rng.normal(0, 0.01, epochs),
            "validation_accuracy": accuracy,
            "validation_macro_f1": (accuracy - 0.01).clip(0),
        }
    )
    folder = artifacts.seed_dir(made.experiment, arm, seed)
    folder.mkdir(parents=True, exist_ok=True)
    history.to_csv(folder / "history.csv", index=False)
    kept = history.iloc[int(history["validation_log_loss"].to_numpy().argmin())]
    arm_settings = settings.arm
    assert arm_settings is not None
    artifacts.write_json(
        folder / "run.json",
        {
            "experiment": made.experiment,
            "task": settings.task,
            "arm": arm,
            "seed": seed,
            "start": arm_settings.start,
            "tune": arm_settings.tune,
            "classes": made.labels,
            "weights_sha256": _hash(made.experiment, arm, seed),
            "parameters": 3_400_000,
            "trainable_parameters": 12_810 if arm_settings.tune == "head" else 3_400_000,
            "frozen": {
                "tensors": 294 if arm_settings.tune == "head" else 0,
                "parameters": 3_387_190 if arm_settings.tune == "head" else 0,
                "unchanged": True,
            },
            "train_labels": 100,
            "validation_labels": 100,
            "epochs": epochs,
            "best_epoch": int(kept["epoch"]),
            "stopped_early": epochs < made.epochs,
            "best": {name: float(kept[name]) for name in map(str, history) if name.startswith("validation_")},
            "seconds": float(history["seconds"].iloc[-1]) + 0.5,
            "device": "cpu",
            "threads": 2,
            "torch": "2.14.1",
            "settings": settings.model_dump(mode="json"),
            "data_sha256": _hash(made.experiment, "data"),
            "pretrained_sha256": _hash("pretrained"),
        },
    )


def validation(made: Made) -> dict[str, Any]:
    """What validate says of the data."""
    return {
        "experiment": made.experiment,
        "task": "image-classification",
        "rows": 1803,
        "accepted": 1797,
        "rejected": 6,
        "on_reject": "drop",
        "success": True,
        "expectations": [
            {
                "name": "files_decode", "level": "error", "success": False, "unexpected": 6,
                "examples": ["a", "b"], "text": "Every file can be read",
            },
            {
                "name": "no_near_duplicates", "level": "warning", "success": False, "unexpected": 14,
                "examples": ["c"], "text": "No sample nearly repeats another",
            },
            {
                "name": "ids_unique", "level": "error", "success": True, "unexpected": 0,
                "examples": [], "text": "Every id stands for one sample",
            },
        ],
        "classes": dict.fromkeys(made.labels, 179),
        "imbalance": 1.05,
    }  # fmt: skip


PROVENANCE = {
    "source": "package",
    "package": "toy_backbone",
    "version": "0.1.0",
    "file": "model.safetensors",
    "sha256": "0" * 64,
    "licence": "Apache-2.0",
    "tensors": 296,
    "parameters": 3_387_190,
}


def _hash(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def predictions_of(experiment: str) -> Path:
    """Where the made-up predictions lie."""
    return artifacts.evaluation_dir(experiment) / "predictions.parquet"


def score(frame: pd.DataFrame, labels: list[str], metric: str) -> float:
    """A metric of some rows of predictions."""
    truth = pd.Categorical(frame["label"], categories=labels).codes.astype(np.int64)
    return metrics.score(metric, truth, np.stack(frame["probabilities"].tolist()).astype(np.float64))
