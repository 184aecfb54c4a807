"""An experiment as evaluate leaves it, made up from a seed: no network was ever trained for it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from steps import artifacts, data, metrics
from steps.kinds import KINDS, Kind
from steps.params import (
    Arm,
    CompareSettings,
    Evaluation,
    IngestSettings,
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
        budgets: label budgets beside the experiment's own 100; each halving takes some of the skill.
        texts: samples are texts, not images.
        task: its name; empty for the classification of images or texts.
        groups: of the test items; 0: they are in none.
    """

    experiment: str = "made-up"
    skill: dict[str, float] = field(default_factory=lambda: {"scratch": 1.2, "frozen": 1.9, "full": 3.0})
    labels: list[str] = field(default_factory=lambda: list("0123456789"))
    items: int = 400
    seeds: tuple[int, ...] = (1, 2, 3)
    epochs: int = 20
    metric: str = "accuracy"
    confidence: float = 0.95
    reference: str = "scratch"
    pace: dict[str, float] = field(default_factory=dict)
    stopped_after: dict[tuple[str, int], int] = field(default_factory=dict)
    missing_class: bool = False
    resamples: int = 1
    budgets: tuple[int, ...] = ()
    texts: bool = False
    random: int = 0
    task: str = ""
    groups: int = 0

    @property
    def name(self) -> str:
        """Of the task."""
        return self.task or ("text-classification" if self.texts else "image-classification")

    @property
    def kind(self) -> Kind:
        """The few facts about the task."""
        return KINDS[self.name]

    @property
    def of_texts(self) -> bool:
        """Whether samples are texts."""
        return self.kind.content == "text"


ARMS = {
    "scratch": Arm(start="random", tune="all", learning_rate=0.002),
    "frozen": Arm(start="pretrained", tune="head", learning_rate=0.01),
    "full": Arm(start="pretrained", tune="all", learning_rate=0.005, backbone_learning_rate=0.001),
}


def make(made: Made) -> None:
    """Write all that compare reads into the working directory."""
    rng = np.random.default_rng(made.random)
    arms = {name: ARMS.get(name, ARMS["full"]) for name in made.skill}
    settings = settings_of(made, arms)
    write_settings(made, settings)
    write_samples(made)
    truth = rng.integers(0, len(made.labels) - made.missing_class, made.items)
    # The one class that must be there for the sake of its name in the validation split.
    checked = np.arange(2 * len(made.labels)) % len(made.labels)
    hardness = rng.normal(size=made.items)
    tested, validated = [], []
    for arm, skill in made.skill.items():
        for resample, seed in runs_of(made):
            own = skill + 0.15 * rng.normal()
            tested.append(said_of(made, rng, (arm, seed, resample), truth, hardness, own))
            even = np.zeros(len(checked))
            validated.append(said_of(made, rng, (arm, seed, resample), checked, even, own, "validation"))
            chosen = TrainSettings(
                task=settings.task, model=settings.model, training=settings.training, arm=arms[arm]
            )
            train(made, rng, arm, seed, skill, chosen, resample)
        artifacts.write_json(artifacts.arms_dir(made.experiment) / arm / "tuning.json", TUNING)
    folder = artifacts.evaluation_dir(made.experiment)
    folder.mkdir(parents=True, exist_ok=True)
    pd.concat(tested, ignore_index=True).to_parquet(folder / "predictions.parquet", index=False)
    pd.concat(validated, ignore_index=True).to_parquet(folder / "validation.parquet", index=False)
    write_the_rest_of_evaluation(made, tested[-1])
    write_baseline(made, rng, truth, hardness)
    write_curve(made, rng, truth, hardness)


def settings_of(made: Made, arms: dict[str, Arm]) -> CompareSettings:
    """The settings of compare."""
    return CompareSettings(
        task=made.name,
        model=Model(pretrained="toy"),
        training=Training(epochs=made.epochs, seeds=made.seeds, resamples=made.resamples),
        evaluation=Evaluation(metric=made.metric, confidence=made.confidence, reference=made.reference),
        arms=arms,
    )


def write_settings(made: Made, settings: CompareSettings) -> None:
    """What resolve, fetch and validate write."""
    write = artifacts.write_json
    write(artifacts.settings_file(made.experiment, "compare"), settings.model_dump(mode="json"))
    dataset: Literal["bbc-news", "digits"] = "bbc-news" if made.of_texts else "digits"
    raw = PackageData(source="package", dataset=dataset, path="requirements.lock")
    ingest = IngestSettings(task=settings.task, data=raw)
    write(artifacts.settings_file(made.experiment, "ingest"), ingest.model_dump(mode="json"))
    write(artifacts.pretrained_dir("toy") / "provenance.json", PROVENANCE)
    write(artifacts.validation_dir(made.experiment) / "validation.json", validation(made))
    Path("requirements.lock").write_text("nothing==1.0\n")


def runs_of(made: Made) -> list[tuple[int, int]]:
    """Resample and seed of every run."""
    return [(resample, seed) for resample in range(1, made.resamples + 1) for seed in made.seeds]


def write_samples(made: Made) -> None:
    """The accepted samples of test, validation and train, and a picture that all of them share."""
    counts = {"test": made.items, "validation": 2 * len(made.labels), "train": len(made.labels)}
    names = [(item_id(at, split), split) for split, count in counts.items() for at in range(count)]
    picture = artifacts.data_dir(made.experiment) / "images/one.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "steelblue").save(picture)
    accepted = pd.DataFrame(
        {
            "id": [name for name, _ in names],
            "path": None if made.of_texts else "images/one.png",
            "text": [f"text {name} " * (1 + at % 7) for at, (name, _) in enumerate(names)]
            if made.of_texts
            else None,
            "pair": None,
            "target": None if made.kind.classified else '{"answers": ["a"]}',
            "label": [made.labels[at % len(made.labels)] for at in range(len(names))],
            "sha256": [_hash(name) for name, _ in names],
            "size": [100 + at % 50 for at in range(len(names))],
            "split": None,
            "group": [
                f"group {at % made.groups}" if made.groups and split == "test" and at % 10 != 9 else None
                for at, (_, split) in enumerate(names)
            ],
            "near_duplicate_of": [names[0][0] if at == 1 else None for at in range(len(names))],
        }
    )
    folder = artifacts.validation_dir(made.experiment)
    data.write_table(accepted, folder / "accepted.parquet")
    split = pd.DataFrame({"id": accepted["id"], "split": [split for _, split in names]})
    data.write_table(split, artifacts.split_file(made.experiment))


def write_the_rest_of_evaluation(made: Made, last: pd.DataFrame) -> None:
    """What evaluate writes beside the predictions."""
    folder = artifacts.evaluation_dir(made.experiment)
    write = artifacts.write_json
    classes = made.labels if made.kind.classified else []
    write(folder / "scores.json", {"classes": classes, "test_size": made.items, "arms": {}})
    looks = {"test_sha256": _hash("test"), "scored": 12, "models": 12}
    write(folder / "looks.json", looks)
    if not made.kind.classified:
        columns = ["id", "arm", "resample", "seed", "label", "predicted", "confidence", "tokens"]
        pd.DataFrame(columns=columns).to_parquet(folder / "mistakes.parquet", index=False)
        return
    wrong = last[last["label"] != last["predicted"]].head(3)
    mistakes = wrong.drop(columns="probabilities").assign(confidence=0.9, tokens="[]")
    mistakes.to_parquet(folder / "mistakes.parquet", index=False)


def write_baseline(
    made: Made, rng: np.random.Generator, truth: NDArray[np.int64], hardness: NDArray[np.float64]
) -> None:
    """What baseline writes."""
    folder = artifacts.baseline_dir(made.experiment)
    folder.mkdir(parents=True, exist_ok=True)
    skills = {"majority": -9.0, "features_logistic": 1.5, "random_logistic": 2.0}
    if not made.kind.classified:
        skills = {"first_sentence": -1.0} if made.groups else {}
    frames = [pd.DataFrame(columns=["id", "baseline", "predicted"])] if not skills else []
    for name, skill in skills.items():
        said = said_of(made, rng, (name, 0, 1), truth, hardness, skill)
        frames.append(said.rename(columns={"arm": "baseline"}).drop(columns=["seed", "resample"]))
    pd.concat(frames, ignore_index=True).to_parquet(folder / "predictions.parquet", index=False)
    ranked: dict[str, Any] = {"logme": 0.1, "h_score": 2.0, "nleep": -1.0}
    ranked |= {"probe": {"value": 0.8, "ci_low": 0.7, "ci_high": 0.9}}
    told = {
        "baselines": [{"name": name, "about": f"{name}, told", "chosen": {}} for name in skills],
        "ranking": [
            {"name": name, "about": f"{name} features", **ranked}
            for name in ("pretrained", "random")
            if made.kind.classified
        ],
    }  # fmt: skip
    artifacts.write_json(folder / "baseline.json", told)
    names = [item_id(at) for at in range(made.items)] + [item_id(0, "train")]
    places = pd.DataFrame({"id": names, "x": rng.normal(size=len(names)), "y": rng.normal(size=len(names))})
    places.to_parquet(folder / "map.parquet", index=False)
    suspect = {"id": item_id(0, "train"), "split": "train", "label": made.labels[0]}
    suspects = pd.DataFrame([{**suspect, "suggested": made.labels[-1], "confidence": 0.93}])
    if not made.kind.classified:
        suspects = suspects.head(0)
    suspects.to_parquet(folder / "suspects.parquet", index=False)


def write_curve(
    made: Made, rng: np.random.Generator, truth: NDArray[np.int64], hardness: NDArray[np.float64]
) -> None:
    """What curve writes."""
    folder = artifacts.curve_dir(made.experiment)
    folder.mkdir(parents=True, exist_ok=True)
    points, frames = [], []
    for labels in made.budgets:
        for arm, skill in made.skill.items():
            for seed in made.seeds:
                points.append({"arm": arm, "labels": labels, "seed": seed})
                own = skill + 0.8 * np.log2(labels / 100) + 0.15 * rng.normal()
                said = said_of(made, rng, (arm, seed, 1), truth, hardness, own)
                frames.append(said.assign(labels=labels).drop(columns="resample"))
    artifacts.write_json(folder / "points.json", points)
    if frames:
        pd.concat(frames, ignore_index=True).to_parquet(folder / "predictions.parquet", index=False)


def item_id(at: int, split: str = "test") -> str:
    """The id of a made-up sample."""
    return f"item-{at:04d}" if split == "test" else f"{split}-{at:04d}"


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


def said_of(
    made: Made,
    rng: np.random.Generator,
    run: tuple[str, int, int],
    truth: NDArray[np.int64],
    hardness: NDArray[np.float64],
    skill: float,
    split: str = "test",
) -> pd.DataFrame:
    """What a run, its arm, seed and resample, said of a split."""
    arm, seed, resample = run
    if made.kind.classified:
        probabilities = predict(rng, truth, hardness, skill, len(made.labels))
        return rows(made, arm, seed, truth, probabilities, resample, split)
    quality = 1 / (1 + np.exp(hardness - skill + 0.4 * rng.normal(size=len(truth))))
    told = {"answer": "an <b>answer</b>", "score": 0.5}
    return pd.DataFrame(
        {
            "id": [item_id(at, split) for at in range(len(truth))],
            "arm": arm,
            "resample": resample,
            "seed": seed,
            "predicted": json.dumps(told),
            **{f"share_{name}": share(name, quality) for name in made.kind.metrics},
        }
    )


def share(metric: str, quality: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each item's share in a metric, given how well it went, between 0 and 1."""
    if metrics.METRICS[metric].percent:
        return quality
    losses = -np.log(quality)
    if metric == "psnr":
        return 10 + 10 * quality
    if metric != "perplexity":
        return losses
    without = np.exp((losses.sum() - losses) / (len(losses) - 1))
    return metrics.shares_of(float(np.exp(losses.mean())), without)


def rows(
    made: Made,
    arm: str,
    seed: int,
    truth: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    resample: int = 1,
    split: str = "test",
) -> pd.DataFrame:
    """Rows of predictions.parquet."""
    labels = np.asarray(made.labels, dtype=object)
    return pd.DataFrame(
        {
            "id": [item_id(at, split) for at in range(len(truth))],
            "arm": arm,
            "resample": resample,
            "seed": seed,
            "label": labels[truth],
            "predicted": labels[probabilities.argmax(axis=1)],
            "probabilities": list(probabilities),
        }
    )


def train(
    made: Made,
    rng: np.random.Generator,
    arm: str,
    seed: int,
    skill: float,
    settings: TrainSettings,
    resample: int = 1,
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
    if not made.kind.classified:
        history = history.drop(columns=[name for name in map(str, history) if name.startswith("validation_")])
        quality = np.clip(accuracy, 0.02, 0.98)
        for name in dict.fromkeys((*made.kind.metrics, made.kind.loss)):
            history[f"validation_{name}"] = [float(share(name, np.full(2, one)).mean()) for one in quality]
    folder = artifacts.seed_dir(made.experiment, arm, seed, resample)
    folder.mkdir(parents=True, exist_ok=True)
    history.to_csv(folder / "history.csv", index=False)
    kept = history.iloc[int(history[f"validation_{made.kind.loss}"].to_numpy().argmin())]
    arm_settings = settings.arm
    assert arm_settings is not None
    artifacts.write_json(
        folder / "run.json",
        {
            "experiment": made.experiment,
            "task": settings.task,
            "arm": arm,
            "seed": seed,
            "resample": resample,
            "start": arm_settings.start,
            "tune": arm_settings.tune,
            "classes": made.labels,
            "weights_sha256": _hash(made.experiment, arm, resample, seed),
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
            "data_sha256": _hash(made.experiment, "data", resample),
            "pretrained_sha256": _hash("pretrained"),
        },
    )


def validation(made: Made) -> dict[str, Any]:
    """What validate says of the data."""
    return {
        "experiment": made.experiment,
        "task": made.name,
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
        "classes": dict.fromkeys(made.labels, 179) if made.kind.classified else {},
        "imbalance": 1.05 if made.kind.classified else None,
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


TUNING: dict[str, Any] = {
    "trials": 2,
    "failed": 0,
    "steps": 200,
    "seconds": 12.5,
    "objective": "validation log_loss",
    "sampler": "declared values, then a scrambled Sobol sequence",
    "seed": 101,
    "seeds": 1,
    "space": {"learning_rate": [0.001, 0.1]},
    "scale": {"learning_rate": "log"},
    "declared": {"learning_rate": 0.01},
    "chosen": {"learning_rate": 0.02},
    "history": [
        {"values": {"learning_rate": rate}, "log_loss": loss, "epochs": 20, "steps": 100, "seconds": 6.25,
         "failed": None}
        for rate, loss in ((0.01, 0.9), (0.02, 0.8))
    ],
}  # fmt: skip


def _hash(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def predictions_of(experiment: str) -> Path:
    """Where the made-up predictions lie."""
    return artifacts.evaluation_dir(experiment) / "predictions.parquet"


def score(frame: pd.DataFrame, labels: list[str], metric: str) -> float:
    """A metric of some rows of predictions."""
    truth = pd.Categorical(frame["label"], categories=labels).codes.astype(np.int64)
    return metrics.score(metric, truth, np.stack(frame["probabilities"].tolist()).astype(np.float64))
