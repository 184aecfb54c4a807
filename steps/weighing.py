"""From the results of the steps before to comparison.json: every figure of the report, and the verdict.

The same results give the same JSON. No clock, no machine's name and no place of a file is in it.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from steps import (
    artifacts,
    calibration,
    convergence,
    efficiency,
    evidence,
    intervals,
    metrics,
    slices,
    stability,
)  # fmt: skip
from steps.calibration import Calibration, Predicted
from steps.convergence import Convergence, SpeedUp
from steps.efficiency import Point, Saved
from steps.evidence import Difference, LabelsSaved, Verdict
from steps.intervals import Interval
from steps.report import wording
from steps.results import Results, Run

# Of comparison.json: raised when a key changes its meaning or goes away. Its schema is in docs/.
SCHEMA = 2
LIBRARIES = ("matplotlib", "numpy", "pandas", "scipy", "scikit-learn")
FEW_ITEMS = 50
# Beyond these many classes a confusion matrix is no table for people.
MOST_CLASSES = 60
# Of the distribution over test items.
BINS = 20
LOCK = Path("requirements.lock")
Facts = Mapping[str, NDArray[np.generic]]


class Ends(Protocol):
    """A value with the ends of its interval; these are None where one run tells nothing of them."""

    @property
    def value(self) -> float:
        """The value."""
        ...

    @property
    def low(self) -> float | None:
        """Lower end."""
        ...

    @property
    def high(self) -> float | None:
        """Upper end."""
        ...


def iv(found: Ends) -> dict[str, float | None]:
    """A value with its interval, as comparison.json has it."""
    return {"value": found.value, "ci_low": found.low, "ci_high": found.high}


def weigh(results: Results, facts: Facts, counts: Mapping[str, int]) -> dict[str, Any]:
    """The whole of comparison.json.

    Args:
        results: of the steps before.
        facts: by what test items may be told apart, for the table of slices.
        counts: of near duplicates and of suspicious labels, `near_duplicates` and `suspects`.
    """
    settings, metric, runs = results.settings, results.metric, results.runs
    curves = {arm: [run.curve(metric) for run in of_arm] for arm, of_arm in runs.items()}
    target = convergence.target_of(curves[results.reference], metric)
    reached = {arm: convergence.convergence(found, target, metric) for arm, found in curves.items()}
    best_arm, judged = choose(results)
    best = best_run(runs[best_arm], metric)
    first = runs[results.reference][0].journal
    over_labels = curves_over_labels(results)
    saved = labels_saved(results, over_labels)
    probe = probe_over_random(results)
    verdict = judge(results, judged, reached, saved.get(judged or ""), probe)
    gains = improvements(results)
    calibrated = calibrate(results) if results.kind.classified else {}
    comparison: dict[str, Any] = {
        "schema": SCHEMA,
        "experiment": results.experiment,
        "task": settings.task,
        "metric": {"name": metric, "higher_is_better": metrics.HIGHER_IS_BETTER[metric]},
        "confidence": settings.evaluation.confidence,
        "margin": settings.evaluation.margin,
        "classes": results.classes,
        "seeds": list(settings.training.seeds),
        "resamples": settings.training.resamples,
        "epochs": settings.training.epochs,
        "train_labels": first["train_labels"],
        "validation_labels": first["validation_labels"],
        "test_size": len(results.crossed.ids),
        "test_groups": results.crossed.groups,
        "reference": results.reference,
        "target": target,
        "arms": [
            of_arm(
                results, arm, reached[arm], gains.get(arm), calibrated.get(arm),
                speedup(results, curves, arm),
            )
            | {"area": iv(convergence.area(
                curves[arm], metric, settings.evaluation.confidence, settings.training.epochs,
                results.crossed.resamples,
            ))}
            for arm in runs
        ],
        "baselines": baselines(results),
        "probe": None if probe is None else iv(probe),
        "pairs": pairs(results),
        "efficiency": efficiency_of(results, over_labels, saved),
        **ranking(results),
        "best_arm": best_arm,
        "best_seed": best.seed,
        "best_resample": best.resample,
        "verdict": asdict(verdict),
        "per_class": per_class(results, best_arm) if results.kind.classified else [],
        "slice_metric": slice_metric(results),
        "slices": table_of_slices(results, best_arm, facts),
        "confusion": confusion(results, best_arm) if results.kind.classified else None,
        "distribution": None if results.kind.classified else distribution(results, best_arm),
        "cost": cost(results),
        "test_ledger": {
            "test_sha256": results.looks["test_sha256"],
            # Where a result came by `dvc pull` there is no ledger of what made it.
            "scored": max(results.looks["models"], looks_of(results)),
            "this_result": looks_of(results),
        },
        "data": of_data(results) | dict(counts),
        "pretrained": {"name": settings.model.pretrained, **results.pretrained},
        "provenance": provenance(results),
        "notes": notes(results, verdict),
    }  # fmt: skip
    rounded: dict[str, Any] = _rounded(comparison)
    return rounded


# ------------------------------------------------------------------------------------------ choosing


def choose(results: Results) -> tuple[str, str | None]:
    """The arm that is best on validation, and the best of the pretrained ones beside the reference."""
    metric, arms = results.metric, results.settings.arms
    merits = {arm: [run.merit(metric) for run in of_arm] for arm, of_arm in results.runs.items()}
    pretrained = {
        arm: merits[arm]
        for arm, settings in arms.items()
        if settings.start == "pretrained" and arm != results.reference
    }
    return evidence.best(merits, metric), evidence.best(pretrained, metric) if pretrained else None


def best_run(runs: Sequence[Run], metric: str) -> Run:
    """The run of an arm that is best on validation."""
    name = evidence.best({run.name: [run.merit(metric)] for run in runs}, metric)
    return next(run for run in runs if run.name == name)


def judge(
    results: Results,
    judged: str | None,
    reached: Mapping[str, Convergence],
    saved: Saved | None,
    probe: Interval | None,
) -> Verdict:
    """The verdict on the pretrained arm that is best on validation."""
    settings = results.settings
    setting = evidence.Setting(
        results.experiment,
        own_budget(results),
        settings.training.epochs,
        results.metric,
        settings.evaluation.confidence,
        settings.evaluation.margin,
        wording.counted(settings.task),
        results.kind.own_labels,
    )
    epochs = {arm: found.epochs for arm, found in reached.items()}
    told = None
    if saved is not None:
        told = LabelsSaved(saved.labels, saved.low, saved.high, saved.more_than)
    return evidence.verdict(results.crossed, judged, results.reference, epochs, setting, told, probe)


def improvements(results: Results) -> dict[str, dict[str, Any]]:
    """By how much every other arm is better than the reference."""
    evaluation = results.settings.evaluation
    found = evidence.improvements(
        results.crossed, results.reference, results.metric, evaluation.confidence, evaluation.margin
    )
    return {arm: of_difference(one) for arm, one in found.items()}


def of_difference(found: Difference) -> dict[str, Any]:
    """A difference, as comparison.json has it."""
    return iv(found) | {"p": found.p, "p_holm": found.p_holm, "call": found.call}


def pairs(results: Results) -> list[dict[str, Any]]:
    """Every arm against every other; McNemar's test is of the runs that are best on validation."""
    evaluation, metric = results.settings.evaluation, results.metric
    chosen = {arm: runs.index(best_run(runs, metric)) for arm, runs in results.runs.items()}
    found = evidence.pairs(results.crossed, metric, evaluation.confidence, evaluation.margin, chosen)
    return [
        {
            "first": one.first,
            "second": one.second,
            **of_difference(one.difference),
            "mcnemar": {
                "first_run": results.runs[one.first][one.first_run].name,
                "second_run": results.runs[one.second][one.second_run].name,
                **asdict(one.mcnemar),
            }
            if one.mcnemar is not None
            else None,
        }
        for one in found
    ]


# --------------------------------------------------------------------------------------------- arms


def of_arm(
    results: Results,
    arm: str,
    reached: Convergence,
    gain: dict[str, Any] | None,
    calibrated: Calibration | None,
    faster: SpeedUp | None,
) -> dict[str, Any]:
    """What comparison.json says of one arm, but for the area under its curve."""
    metric, confidence = results.metric, results.settings.evaluation.confidence
    crossed, runs = results.crossed, results.runs[arm]
    journals = [run.journal for run in runs]
    found = evidence.estimate(crossed, arm, metric, confidence)
    validation = [run.validation(metric) for run in runs]
    return {
        "arm": arm,
        "start": journals[0]["start"],
        "tune": journals[0]["tune"],
        "seeds": list(results.settings.training.seeds),
        "values": crossed.values(arm, metric),
        "mean": found.value,
        "ci_low": found.low,
        "ci_high": found.high,
        "improvement": gain,
        "test": {name: float(np.mean(crossed.values(arm, name))) for name in results.kind.metrics},
        "metrics": {
            name: iv(evidence.estimate(crossed, arm, name, confidence)) for name in results.kind.metrics
        },
        "validation": {"values": validation, "mean": float(np.mean(validation))},
        "train_labels": journals[0]["train_labels"],
        "epochs": [journal["epochs"] for journal in journals],
        "best_epoch": [journal["best_epoch"] for journal in journals],
        "epochs_to_target": reached.epochs,
        "epochs_to_target_by_seed": reached.by_seed,
        "steps_to_target": reached.steps,
        "seconds_to_target": reached.seconds,
        "seconds": float(np.mean([journal["seconds"] for journal in journals])),
        "speedup": None if faster is None else of_speedup(faster),
        "stability": of_stability(results, arm),
        "calibration": None if calibrated is None else of_calibration(calibrated),
        "tuning": of_tuning(results, arm),
        "parameters": journals[0]["parameters"],
        "trainable_parameters": journals[0]["trainable_parameters"],
        "frozen": journals[0]["frozen"],
    }


def speedup(results: Results, curves: Mapping[str, Sequence[convergence.Curve]], arm: str) -> SpeedUp | None:
    """How much sooner the arm is where the reference ends; None for the reference, and where it never is."""
    if arm == results.reference:
        return None
    confidence = results.settings.evaluation.confidence
    return convergence.speedup(
        curves[arm], curves[results.reference], results.metric, confidence, results.crossed.resamples
    )


def of_speedup(found: SpeedUp) -> dict[str, Any]:
    """A speed-up, as comparison.json has it."""
    costs = {"epochs": found.epochs, "steps": found.steps, "seconds": found.seconds}
    told = {name: None if one is None else iv(one) for name, one in costs.items()}
    return {**told, "censored": found.censored}


def of_stability(results: Results, arm: str) -> dict[str, Any]:
    """How far the arm's runs lie apart, and how many failed."""
    crossed, confidence = results.crossed, results.settings.evaluation.confidence
    values = crossed.values(arm, results.metric)
    if results.kind.classified:
        majority = float(np.bincount(crossed.truth).max()) / len(crossed.truth)
        right = crossed.draws(crossed.scores(arm, "accuracy"))
        found = stability.stability(values, right, majority, confidence)
    else:
        found = stability.without_classes(values, results.metric, confidence)
    return {
        "runs": found.runs,
        "sd": found.sd,
        "low": found.low,
        "high": found.high,
        "failed": found.failed,
        "failed_share": iv(found.failed_share),
    }


def calibrate(results: Results) -> dict[str, Calibration]:
    """How far the probabilities of every arm can be believed."""
    said = {
        arm: Predicted(
            results.crossed.probabilities[arm],
            results.validated.probabilities[arm],
            results.validated.truth,
        )
        for arm in results.runs
    }
    return calibration.of_arms(results.crossed.truth, said, results.settings.evaluation.confidence)


def of_calibration(found: Calibration) -> dict[str, Any]:
    """A calibration, as comparison.json has it."""
    return {
        "ece": iv(found.ece),
        "temperature": found.temperature,
        "at_bound": found.at_bound,
        "ece_scaled": iv(found.ece_scaled),
        "bins": [
            {
                "confidence": one.confidence,
                "accuracy": one.accuracy,
                "ci_low": one.low,
                "ci_high": one.high,
                "items": one.items,
            }
            for one in found.bins
        ],
    }


def of_tuning(results: Results, arm: str) -> dict[str, Any]:
    """What the search for the arm's hyperparameters cost and chose."""
    found = results.tuning[arm]
    kept = ("trials", "failed", "steps", "seconds", "objective", "space", "chosen")
    return {key: found[key] for key in kept}


# ------------------------------------------------------------------------------------------ baselines


def baselines(results: Results) -> list[dict[str, Any]]:
    """What simple methods reach on the same test items, and their gain over the reference."""
    metric, confidence = results.metric, results.settings.evaluation.confidence
    bounds, crossed = metrics.BOUNDS[metric], results.crossed
    of_reference = crossed.scores(results.reference, metric)
    about = {one["name"]: one["about"] for one in results.baseline["baselines"]}
    found = []
    for name, answers in results.baselines.items():
        scores = answers.scores(metric)[None, :]
        own = intervals.of_mean(crossed.draws(scores), confidence, bounds)
        gains = metrics.improvement(metric, np.broadcast_to(scores, of_reference.shape), of_reference)
        over = intervals.of_difference(crossed.draws(gains), confidence, bounds, crossed.resamples)
        found.append(
            {
                "name": name,
                "about": about[name],
                "mean": own.value,
                "ci_low": own.low,
                "ci_high": own.high,
                "improvement": iv(over),
            }
        )
    return found


def probe_over_random(results: Results) -> Interval | None:
    """By how much a linear probe is better on pretrained features than on those of random weights."""
    metric = results.metric
    pretrained, random = (results.baselines.get(f"{name}_logistic") for name in ("features", "random"))
    if pretrained is None or random is None:
        return None
    gains = metrics.improvement(metric, *(one.scores(metric)[None, :] for one in (pretrained, random)))
    gains = results.crossed.draws(gains)
    return intervals.of_difference(gains, results.settings.evaluation.confidence, metrics.BOUNDS[metric])


def ranking(results: Results) -> dict[str, Any]:
    """What was foretold of the features before any training, and whether it came true."""
    means = {arm: float(np.mean(results.crossed.values(arm, results.metric))) for arm in results.runs}
    tuned = {
        "pretrained": _best_of(results, means, "pretrained"),
        "random": _best_of(results, means, "random"),
    }
    rows = [one | {"fine_tuned": tuned.get(one["name"])} for one in results.baseline["ranking"]]
    return {"ranking": rows, "ranking_correlation": None}


def _best_of(results: Results, means: Mapping[str, float], start: str) -> float | None:
    """The test result of the best arm on validation, of those that train a backbone with this start."""
    arms = results.settings.arms
    merits = {
        arm: [run.merit(results.metric) for run in runs]
        for arm, runs in results.runs.items()
        if arms[arm].start == start and arms[arm].tune != "head"
    }
    return means[evidence.best(merits, results.metric)] if merits else None


# ------------------------------------------------------------------------------------------ efficiency


@dataclass(frozen=True)
class Budget:
    """An arm on one label budget.

    Attributes:
        values: the metric of each seed.
        scores: each item's share in it, shape (seeds, items).
    """

    values: list[float]
    scores: NDArray[np.float64]


def curves_over_labels(results: Results) -> dict[str, dict[int, Budget]]:
    """By arm and label budget what each seed reached on the test split.

    The experiment's own budget is among them, with the seeds that the others have. Budgets rise.
    """
    crossed, metric, own, found = results.crossed, results.metric, own_budget(results), {}
    for arm, points in results.points.items():
        said = {
            labels: {answers.seed: (answers.value(metric), answers.scores(metric)) for answers in of_labels}
            for labels, of_labels in points.items()
        }
        seeds = sorted(next(iter(said.values())))
        first = {seed: at for at, seed in enumerate(crossed.seeds) if crossed.resamples[at] == 1}
        values, scores = crossed.values(arm, metric), crossed.scores(arm, metric)
        said[own] = {seed: (values[first[seed]], scores[first[seed]]) for seed in seeds}
        found[arm] = {
            labels: Budget([of[seed][0] for seed in seeds], np.stack([of[seed][1] for seed in seeds]))
            for labels, of in sorted(said.items())
        }
    return found


def own_budget(results: Results) -> int:
    """The labels that every arm is trained on beside the curve."""
    labels: int = results.runs[results.reference][0].journal["train_labels"]
    return labels


def labels_saved(results: Results, curves: Mapping[str, Mapping[int, Budget]]) -> dict[str, Saved]:
    """By arm, how many labels the reference would need to be as good, beyond those the arm had."""
    if results.reference not in curves:
        return {}
    own, confidence = own_budget(results), results.settings.evaluation.confidence
    points = [Point(labels, budget.values) for labels, budget in curves[results.reference].items()]
    return {
        arm: efficiency.saved(
            points,
            Point(own, budgets[own].values),
            confidence,
            metrics.HIGHER_IS_BETTER[results.metric],
        )
        for arm, budgets in curves.items()
        if arm != results.reference
    }


def efficiency_of(
    results: Results, curves: Mapping[str, Mapping[int, Budget]], saved: Mapping[str, Saved]
) -> dict[str, Any] | None:
    """The curves over the number of labels; None where there are none."""
    if not curves:
        return None
    one_arm = next(iter(curves.values()))
    return {
        "labels": list(one_arm),
        "seeds": len(next(iter(one_arm.values())).values),
        "arms": [
            {"arm": arm, "points": [_point(results, labels, budget) for labels, budget in budgets.items()]}
            for arm, budgets in curves.items()
        ],
        "saved": [
            {
                "arm": arm,
                "labels": one.labels,
                "ci_low": one.low,
                "ci_high": one.high,
                "more_than": one.more_than,
            }
            for arm, one in saved.items()
        ],
    }


def _point(results: Results, labels: int, budget: Budget) -> dict[str, Any]:
    """A point with its interval over seeds and test items."""
    bounds, confidence = metrics.BOUNDS[results.metric], results.settings.evaluation.confidence
    found = intervals.of_mean(results.crossed.draws(budget.scores), confidence, bounds)
    return {
        "labels": labels,
        "mean": found.value,
        "ci_low": found.low,
        "ci_high": found.high,
        "values": budget.values,
    }


# ------------------------------------------------------------------------------------- classes and slices


def per_class(results: Results, arm: str) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class with their intervals."""
    crossed = results.crossed
    predicted = crossed.probabilities[arm].argmax(axis=2)
    found = slices.per_class(
        crossed.truth,
        predicted,
        results.classes,
        results.settings.evaluation.confidence,
        crossed.resamples,
        crossed.clusters,
    )
    return [
        {
            "label": one.label,
            "support": one.support,
            "precision": iv(one.precision),
            "recall": iv(one.recall),
            "f1": iv(one.f1),
            "few": one.few,
        }
        for one in found
    ]


def slice_metric(results: Results) -> str:
    """What parts of the test split are told in."""
    return slices.metric_of(results.metric, results.kind.metrics)


def table_of_slices(results: Results, arm: str, facts: Facts) -> list[dict[str, Any]]:
    """The arm's metric on parts of the test split; another where the metric is no mean over items."""
    crossed, metric = results.crossed, slice_metric(results)
    reference = None if arm == results.reference else crossed.scores(results.reference, metric)
    found = slices.table(
        facts,
        crossed.scores(arm, metric),
        metric,
        results.settings.evaluation.confidence,
        reference=reference,
        groups=crossed.resamples,
        clusters=crossed.clusters,
    )
    return [
        {
            "slice": one.name,
            "value": one.value,
            "items": one.items,
            "mean": one.mean.value,
            "ci_low": one.mean.low,
            "ci_high": one.mean.high,
            "reference_mean": one.reference_mean,
            "difference": None if one.improvement is None else iv(one.improvement),
            "rest": iv(one.rest),
            "few": one.few,
        }
        for one in found
    ]


def confusion(results: Results, arm: str) -> list[list[float]] | None:
    """The share of each true class that is taken for each class, mean over runs; None of too many classes."""
    if len(results.classes) > MOST_CLASSES:
        return None
    counts = confusion_counts(results, arm)
    sums = counts.sum(axis=1, keepdims=True)
    share: list[list[float]] = np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0).tolist()
    return share


def confusion_counts(results: Results, arm: str) -> NDArray[np.float64]:
    """How often each class is taken for which, mean over the arm's runs; shape (classes, classes)."""
    crossed, classes = results.crossed, len(results.classes)
    counts = [
        metrics.confusion(crossed.truth, one.argmax(axis=1), classes) for one in crossed.probabilities[arm]
    ]
    return np.asarray(np.mean(counts, axis=0))


def distribution(results: Results, best_arm: str) -> dict[str, Any]:
    """How the test items lie by what each has by itself, mean over runs: of the best arm and the reference.

    Of a metric that is no mean over items an item has nothing by itself: then in what slices are told in.
    Of a task that has no other it is the items' shares in the metric.
    """
    metric, crossed = slice_metric(results), results.crossed
    arms = list(dict.fromkeys([best_arm, results.reference]))
    scores = {arm: crossed.scores(arm, metric).mean(axis=0) for arm in arms}
    everything = np.concatenate(list(scores.values()))
    bounds = slices.bounds_of(metric)
    ends = bounds if np.isfinite(bounds).all() else (float(everything.min()), float(everything.max()))
    edges = np.histogram_bin_edges(everything, BINS, ends)
    return {
        "metric": metric,
        "edges": edges.tolist(),
        "arms": [
            {
                "arm": arm,
                "counts": np.histogram(one, edges)[0].tolist(),
                "quartiles": np.quantile(one, [0, 0.25, 0.5, 0.75, 1]).tolist(),
            }
            for arm, one in scores.items()
        ],
    }


# ------------------------------------------------------------------------------------------- the rest


def cost(results: Results) -> dict[str, Any]:
    """What it took, in seconds of training; those of features and validation are not in it."""
    journals = [run.journal for of_arm in results.runs.values() for run in of_arm]
    tuning = results.tuning.values()
    return {
        "train_seconds": float(sum(journal["seconds"] for journal in journals)),
        "tuning_seconds": float(sum(found["seconds"] for found in tuning)),
        "trainings": len(journals) + sum(len(found["history"]) * found["seeds"] for found in tuning),
    }


def looks_of(results: Results) -> int:
    """How many models this result scored on the test split: runs, baselines, points of the curve."""
    runs = sum(len(of_arm) for of_arm in results.runs.values())
    points = sum(len(answers) for of_arm in results.points.values() for answers in of_arm.values())
    return runs + len(results.baselines) + points


def of_data(results: Results) -> dict[str, Any]:
    """Where the data come from, and what validate found."""
    found = results.validation
    return {
        **{key: found[key] for key in ("rows", "accepted", "rejected", "on_reject")},
        "counts": found.get("classes", {}),
        "imbalance": found.get("imbalance"),
        "not_met": [
            {key: one[key] for key in ("name", "level", "unexpected", "text")}
            for one in found["expectations"]
            if not one["success"]
        ],
        "expectations": len(found["expectations"]),
        "origin": results.data,
    }


def provenance(results: Results) -> dict[str, Any]:
    """Hashes of all that the result rests on. No clock and no machine's name: they differ by run."""
    journals = [run.journal for of_arm in results.runs.values() for run in of_arm]
    first = journals[0]
    return {
        "params_sha256": artifacts.sha256_json(
            {
                "compare": results.settings.model_dump(mode="json"),
                "train": {arm: of_arm[0].journal["settings"] for arm, of_arm in results.runs.items()},
            }
        ),
        "data_sha256": first["data_sha256"],
        "pretrained_sha256": first["pretrained_sha256"],
        "lock_sha256": artifacts.sha256_file(LOCK),
        "weights_sha256": {
            arm: {run.name: run.journal["weights_sha256"] for run in of_arm}
            for arm, of_arm in results.runs.items()
        },
        "trained_with": {key: _distinct(journals, key) for key in ("torch", "device", "threads")},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
    }


def _distinct(journals: list[dict[str, Any]], key: str) -> str:
    return ", ".join(sorted({str(journal[key]) for journal in journals}))


def notes(results: Results, verdict: Verdict) -> list[str]:
    """What a reader should know before trusting the figures."""
    found: list[str] = []
    if verdict.seeds == 1:
        found.append(
            "One seed only: the intervals are over test items and say nothing of the chance between seeds."
        )
    if verdict.items < FEW_ITEMS:
        found.append(f"The test split has only {verdict.items} items: the intervals are rough.")
    found += grouped(results)
    untested = [one for at, one in enumerate(results.classes) if not (results.crossed.truth == at).any()]
    if untested and results.kind.classified:
        named = ", ".join(map(repr, untested[:5])) + (" and others" if len(untested) > 5 else "")
        found.append(
            f"{len(untested)} of {len(results.classes)} classes have no test item: {named}. "
            "Their F1 is 0, which lowers macro-F1 alike for all arms."
        )
    once = results.kind.gives == "pooled"  # elsewhere every epoch goes through the whole network
    if once and any(arm.tune == "head" for arm in results.settings.arms.values()):
        found.append(
            "Arms that train the head alone read features computed once; their seconds leave that out."
        )
    if results.settings.tuning.trials == 1:
        found.append(
            "No search: every arm was trained with the rates that params.yaml declares (tuning.trials: 1)."
        )
    found += beaten(results)
    told = slice_metric(results)
    if told != results.metric:
        told, own = metrics.SHOWN[told], metrics.SHOWN[results.metric]
        found.append(f"Slices are told in {told}: {own} is no mean over items.")
    elif told not in slices.MEANS:
        found.append(
            f"{wording.sentence(metrics.SHOWN[told])} is no mean over items: of single items and of parts of "
            "the test split their share in it is told, as the jackknife gives it. That says where the metric "
            "is won and lost, not what it would be there alone."
        )
    return found


def grouped(results: Results) -> list[str]:
    """A word about test items that come in groups."""
    groups = results.crossed.groups
    if groups is None:
        return []
    found = [
        f"The {len(results.crossed.ids)} test items come in {groups} groups: intervals are over the groups."
    ]
    if groups < FEW_ITEMS:
        found.append(f"Only {groups} groups of test items: the intervals are rough.")
    if results.kind.classified:
        found.append(
            "Intervals of calibration errors, and McNemar's test, take items one by one all the same."
        )
    return found


def beaten(results: Results) -> list[str]:
    """A word about arms that a simple baseline is ahead of: they were hardly worth their training."""
    metric, crossed = results.metric, results.crossed
    sign = 1 if metrics.HIGHER_IS_BETTER[metric] else -1
    scores = {name: answers.value(metric) for name, answers in results.baselines.items()}
    if not scores:
        return []
    best = max(scores, key=lambda name: sign * scores[name])
    behind = [
        arm for arm in results.runs if sign * (scores[best] - float(np.mean(crossed.values(arm, metric)))) > 0
    ]
    if not behind:
        return []
    named, shown = ", ".join(behind), metrics.SHOWN[metric]
    return [f"The baseline {best} ({shown} {metrics.figure(metric, scores[best])}) is ahead of {named}."]


def _rounded(value: Any, key: str = "") -> Any:  # noqa: ANN401 - any JSON value
    """Floats to ten decimals: beyond that is the order of summation, which may differ between machines.

    Of a p-value, which may be tiny, six digits are kept.
    """
    if isinstance(value, float):
        return float(f"{value:.6g}") if key in ("p", "p_holm") else round(value, 10)
    if isinstance(value, dict):
        return {name: _rounded(one, name) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value
