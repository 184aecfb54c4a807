"""What models are judged by: the table of all metrics, and those of classifiers. No torch.

Whatever the task, a metric is told to the statistics as each item's share in it, see `per_item`: the mean of
the shares is the metric, and their spread tells how sure it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Metric:
    """A metric as readers see it, and what counts as much of it.

    Attributes:
        shown: its name.
        bounds: the lowest and the highest value there can be.
        higher_is_better: which way is good.
        percent: values are shown in per cent, differences in points.
        digits: behind the point, where it is no per cent.
        unit: after a value, where it has one.
        mean: it is the mean of a value that each item has by itself.
        tolerated: the loss that the gate lets stay possible of a new champion.
        far: a run that is worse than its like by more than this has failed.
        relative: the two before are shares of the value.
    """

    shown: str
    bounds: tuple[float, float] = (0.0, 1.0)
    higher_is_better: bool = True
    percent: bool = True
    digits: int = 3
    unit: str = ""
    mean: bool = False
    tolerated: float = 0.05
    far: float = 0.1
    relative: bool = False


_LOSS = Metric(
    "loss", (0.0, math.inf), higher_is_better=False, percent=False, mean=True, tolerated=0.1, far=0.2
)
METRICS = {
    "accuracy": Metric("accuracy", mean=True),
    "macro_f1": Metric("macro-F1"),
    "log_loss": replace(_LOSS, shown="log-loss"),
    "micro_f1": Metric("micro-F1"),
    "mean_average_precision": Metric("mean average precision"),
    "coco_map": Metric("COCO mAP"),
    "coco_map_50": Metric("mAP at IoU 0.5"),
    "mean_iou": Metric("mean IoU"),
    "dice": Metric("mean Dice"),
    "entity_f1": Metric("entity F1"),
    "token_accuracy": Metric("token accuracy"),
    "exact_match": Metric("exact match", mean=True),
    "squad_f1": Metric("SQuAD F1", mean=True),
    "rouge_1": Metric("ROUGE-1", mean=True),
    "rouge_2": Metric("ROUGE-2", mean=True),
    "rouge_l": Metric("ROUGE-L", mean=True),
    "loss": _LOSS,
    "perplexity": Metric(
        "perplexity", (1.0, math.inf), higher_is_better=False, percent=False, digits=2, relative=True
    ),
    "psnr": Metric(
        "PSNR", (-math.inf, math.inf), percent=False, digits=2, unit=" dB", mean=True, tolerated=0.5, far=1.0
    ),
    # A metric of your own: its line goes here.
}
# Those of a classifier: every one of them is computed for every model.
OF_CLASSES = ("accuracy", "macro_f1", "log_loss")
HIGHER_IS_BETTER = {name: one.higher_is_better for name, one in METRICS.items()}
BOUNDS = {name: one.bounds for name, one in METRICS.items()}
SHOWN = {name: one.shown for name, one in METRICS.items()}
# Probabilities are stored as float32; anything below its resolution is one value.
EPSILON = 1e-7


def per_item(
    metric: str, truth: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Each item's share in the metric: their mean is the metric, their spread tells how sure it is.

    Macro-F1 is no mean over items. Its shares are the metric plus what leaving the item out takes away,
    as in the jackknife, so that their variance over the number of items is the jackknife's variance.

    Args:
        metric: a name in `OF_CLASSES`.
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
    return shares_of(float(macro_f1(truth, predicted, classes)[0]), without)


def shares_of(value: float, without: NDArray[np.float64]) -> NDArray[np.float64]:
    """The items' shares in a metric that is no mean over items, as pseudo-values of the jackknife.

    Source: Efron and Stein, The Jackknife Estimate of Variance, 1981; here the mean is the value itself, not
    the estimate corrected for bias.

    Args:
        value: the metric of all items.
        without: the metric when the item is left out, of each; shape (items,).
    """
    return np.asarray(value + (len(without) - 1) * (without.mean() - without))


def improvement(metric: str, first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much the first is better than the second; positive is better whatever the metric."""
    return np.asarray(first - second if HIGHER_IS_BETTER[metric] else second - first)


def amount(metric: str, value: float) -> str:
    """A difference in words, e.g. `19.7 points of accuracy`, `0.312 of log-loss` or `1.20 dB of PSNR`."""
    about = METRICS[metric]
    unit = " points" if about.percent else about.unit
    return f"{figure(metric, value)}{unit} of {about.shown}"


def figure(metric: str, value: float) -> str:
    """A value or difference as readers see it: per cent with one digit, or with the metric's digits."""
    about = METRICS[metric]
    scaled, digits = (100 * value, 1) if about.percent else (value, about.digits)
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return f"{round(scaled, digits) + 0.0:.{digits}f}"


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
    return {name: score(name, truth, probabilities) for name in OF_CLASSES} | {"per_class": classes}


def confusion(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts, rows the truth and columns the prediction; shape (classes, classes)."""
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)
