"""Metrics of a classifier, from labels and probabilities. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

HIGHER_IS_BETTER = {"accuracy": True, "macro_f1": True, "log_loss": False}
# Probabilities are stored as float32; anything below its resolution is one value.
EPSILON = 1e-7


def per_item(
    metric: str, truth: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The item's share in `accuracy` or `log_loss`, whose mean is the metric.

    Args:
        metric: `accuracy` or `log_loss`.
        truth: class of each item, shape (items,).
        probabilities: shape (items, classes).

    Returns:
        Shape (items,).
    """
    if metric == "accuracy":
        return np.asarray(probabilities.argmax(axis=1) == truth, dtype=np.float64)
    assert metric == "log_loss", metric
    own = probabilities[np.arange(len(truth)), truth]
    return np.asarray(-np.log(np.clip(own, EPSILON, 1.0)))


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
