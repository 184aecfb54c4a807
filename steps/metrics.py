"""Metrics of a classifier, from labels and probabilities. No torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

HIGHER_IS_BETTER = {"accuracy": True, "macro_f1": True, "log_loss": False}
# The lowest and the highest value there can be.
BOUNDS = {"accuracy": (0.0, 1.0), "macro_f1": (0.0, 1.0), "log_loss": (0.0, math.inf)}
SHOWN = {"accuracy": "accuracy", "macro_f1": "macro-F1", "log_loss": "log-loss"}
# Probabilities are stored as float32; anything below its resolution is one value.
EPSILON = 1e-7


def per_item(
    metric: str, truth: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Each item's share in the metric: their mean is the metric, their spread tells how sure it is.

    Macro-F1 is no mean over items. Its shares are the metric plus what leaving the item out takes away,
    as in the jackknife, so that their variance over the number of items is the jackknife's variance.

    Args:
        metric: a name in `HIGHER_IS_BETTER`.
        truth: class of each item, shape (items,).
        probabilities: shape (items, classes).

    Returns:
        Shape (items,).
    """
    if metric == "accuracy":
        return np.asarray(probabilities.argmax(axis=1) == truth, dtype=np.float64)
    if metric == "macro_f1":
        return _macro_f1_shares(truth, probabilities.argmax(axis=1), probabilities.shape[1])
    assert metric == "log_loss", metric
    own = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return np.asarray(-np.log(np.clip(own, EPSILON, 1.0)))


def _macro_f1_shares(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> NDArray[np.float64]:
    without = np.zeros(len(truth))
    for index in range(classes):
        is_class, says_class = truth == index, predicted == index
        hit = (is_class & says_class).astype(np.float64)
        part = is_class.astype(np.float64) + says_class
        hits, both = hit.sum() - hit, part.sum() - part
        without += np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
    without /= classes
    value = macro_f1(truth, predicted, classes)[0]
    return np.asarray(value + (len(truth) - 1) * (without.mean() - without))


def improvement(metric: str, first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much the first is better than the second; positive is better whatever the metric."""
    return np.asarray(first - second if HIGHER_IS_BETTER[metric] else second - first)


def amount(metric: str, value: float) -> str:
    """A difference in words, e.g. `19.7 points of accuracy` or `0.312 of log-loss`."""
    unit = "of" if metric == "log_loss" else "points of"
    return f"{figure(metric, value)} {unit} {SHOWN[metric]}"


def figure(metric: str, value: float) -> str:
    """A value or difference as readers see it: per cent with one digit, log-loss with three."""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return f"{round(value, 3) + 0.0:.3f}" if metric == "log_loss" else f"{round(100 * value, 1) + 0.0:.1f}"


def macro_f1(
    truth: NDArray[np.int64],
    predicted: NDArray[np.int64],
    classes: int,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Mean over classes of F1, for one or many weightings of the items.

    A class that is neither in the truth nor predicted counts as 0, as scikit-learn does when told the labels.

    Args:
        truth: shape (items,).
        predicted: shape (items,).
        classes: how many classes there are.
        weights: shape (weightings, items); None is one weighting of ones.

    Returns:
        Shape (weightings,).
    """
    weights = np.ones((1, len(truth))) if weights is None else weights
    total = np.zeros(len(weights))
    for index in range(classes):
        is_class, says_class = truth == index, predicted == index
        hits = weights @ (is_class & says_class)
        both = weights @ is_class + weights @ says_class
        total += np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
    return np.asarray(total / classes)


def score(metric: str, truth: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """The metric's value on all items."""
    if metric == "macro_f1":
        return float(macro_f1(truth, probabilities.argmax(axis=1), probabilities.shape[1])[0])
    return float(per_item(metric, truth, probabilities).mean())


def summary(
    truth: NDArray[np.int64], probabilities: NDArray[np.float64], labels: list[str]
) -> dict[str, Any]:
    """Accuracy, macro-F1, log-loss, and precision, recall and F1 of each class."""
    predicted = probabilities.argmax(axis=1)
    classes: dict[str, dict[str, float]] = {}
    for index, label in enumerate(labels):
        hits = int(((truth == index) & (predicted == index)).sum())
        actual, said = int((truth == index).sum()), int((predicted == index).sum())
        classes[label] = {
            "precision": hits / said if said else 0.0,
            "recall": hits / actual if actual else 0.0,
            "f1": 2 * hits / (actual + said) if actual + said else 0.0,
            "support": actual,
        }
    return {name: score(name, truth, probabilities) for name in HIGHER_IS_BETTER} | {"per_class": classes}


def confusion(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts, rows the truth and columns the prediction; shape (classes, classes)."""
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)
