"""Where is a network good and where not: by class, and by slices of the test split. No torch, no pandas.

The scores of an arm are a table (runs, items), as in `intervals`, and its intervals are used here: over runs
and over the items of the class or slice. Slices are looked at, not tested: with twenty of them one interval
of 95 % misses by chance, so they tell where to look next and not what is proven.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from steps import intervals, metrics
from steps.intervals import Interval
from steps.metrics import METRICS

# Metrics that are the mean of what each item has by itself can be told of a part of the items. Of the others
# an item has a share only through all of them together: the mean share of a part is what the metric would be
# if all items were like these, to first order, and may lie beyond its bounds.
MEANS = tuple(name for name, about in METRICS.items() if about.mean)
# With fewer items a figure is hardly more than an anecdote.
FEW = 20
# Values of a fact that are told; the others are rare.
MOST_VALUES = 12
# What the thirds of numbers are called, by the first word of the fact.
THIRDS = {"length": ("short", "middle", "long"), "brightness": ("dark", "middle", "bright")}
OTHER_THIRDS = ("low", "middle", "high")
SHARE = (0.0, 1.0)


@dataclass(frozen=True)
class ClassScores:
    """How well one class is told from the others, a mean over runs.

    Attributes:
        label: the class.
        support: its test items.
        precision: of the items that are said to be of the class, the share that is.
        recall: of its items, the share that is found.
        f1: harmonic mean of both.
        few: there are fewer than 20 items.
    """

    label: str
    support: int
    precision: Interval
    recall: Interval
    f1: Interval
    few: bool


@dataclass(frozen=True)
class Slice:
    """The test items that share a value.

    Attributes:
        name: what is told apart, e.g. "length".
        value: of the items, e.g. "short (up to 12)".
        items: how many they are.
        mean: their mean score.
        rest: by how much it is above that of all other items that have a value.
        reference_mean: mean score of the reference on the slice; None without a reference.
        improvement: by how much the arm is better than the reference on the slice; None without a reference.
        few: there are fewer than 20 items, or groups of them.
    """

    name: str
    value: str
    items: int
    mean: Interval
    rest: Interval
    reference_mean: float | None
    improvement: Interval | None
    few: bool


def metric_of(metric: str, task_metrics: Sequence[str]) -> str:
    """What slices are told in: the metric where it is a mean over items, else the task's first that is.

    Of a task that has none such it is the metric's shares all the same.
    """
    return metric if metric in MEANS else next((name for name in task_metrics if name in MEANS), metric)


def bounds_of(metric: str) -> intervals.Bounds:
    """The lowest and the highest mean share of a part of the items."""
    return METRICS[metric].bounds if metric in MEANS else intervals.UNBOUNDED


# ---------------------------------------------------------------------------------------------------- classes


def per_class(
    truth: NDArray[np.int64],
    predicted: NDArray[np.int64],
    labels: Sequence[str],
    confidence: float,
    groups: Sequence[int] | None = None,
    clusters: NDArray[np.int64] | None = None,
) -> list[ClassScores]:
    """Precision, recall and F1 of every class, with intervals over runs and items.

    Recall is a mean over the class's items, so its interval is that of a mean. Precision and F1 are ratios
    whose denominators vary with the run. Each item gets the share that the infinitesimal jackknife gives it
    (Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982, chapter 6): the ratio plus what
    more of this item would change. Their mean is the ratio and their variance its variance, so the same
    interval serves, at a thousandth of a bootstrap's cost. Only items count that are of the class or said to
    be by some run; the others change nothing.

    What nothing is known of, the recall of a class without items, is 0 with an interval from 0 to 1.

    Args:
        truth: class of each item, shape (items,).
        predicted: shape (runs, items).
        labels: of the classes, in their order.
        confidence: e.g. 0.95.
        groups: as `intervals.of_mean` takes them.
        clusters: group of each item, as `intervals.by_cluster` takes them.
    """
    found = []
    for index, label in enumerate(labels):
        says = predicted == index
        is_class = truth == index
        related = np.flatnonzero(is_class | says.any(axis=0))
        own, said = is_class[related], says[:, related]
        of_related = None if clusters is None else clusters[related]
        of_own = None if clusters is None else clusters[is_class]
        support = int(own.sum())
        found.append(
            ClassScores(
                label,
                support,
                _ratio(said & own, said, confidence, groups, of_related),
                _mean(said[:, own].astype(np.float64), confidence, SHARE, groups, of_own),
                _ratio(2.0 * (said & own), said + own.astype(np.float64), confidence, groups, of_related),
                support < FEW,
            )
        )
    return found


def _ratio(
    above: NDArray[np.generic],
    below: NDArray[np.generic],
    confidence: float,
    groups: Sequence[int] | None,
    clusters: NDArray[np.int64] | None,
) -> Interval:
    """Interval of the mean over runs of sum(above) / sum(below), 0 where the latter is 0.

    Args:
        above: shape (runs, items).
        below: shape (runs, items).
        confidence: e.g. 0.95.
        groups: of the runs.
        clusters: of the items.
    """
    above, below = above.astype(np.float64), below.astype(np.float64)
    total = below.sum(axis=1, keepdims=True)
    safe = np.maximum(total, 1.0)
    ratio = above.sum(axis=1, keepdims=True) / safe
    shares = ratio + above.shape[1] * (above - ratio * below) / safe
    return _mean(shares, confidence, SHARE, groups, clusters)


def _mean(
    scores: NDArray[np.float64],
    confidence: float,
    bounds: tuple[float, float],
    groups: Sequence[int] | None,
    clusters: NDArray[np.int64] | None = None,
) -> Interval:
    """As `intervals.of_mean`, also of one draw or none: of these nothing is known but the bounds."""
    if scores.shape[1]:
        scores = intervals.by_cluster(scores, clusters)
    runs, items = scores.shape
    if items < 2:
        value = float(scores.mean()) if items else 0.0
        return Interval(value, bounds[0], bounds[1], runs, items)
    return intervals.of_mean(scores, confidence, bounds, groups)


# ----------------------------------------------------------------------------------------------------- slices


def table(
    facts: Mapping[str, NDArray[np.generic] | Sequence[object]],
    scores: NDArray[np.float64],
    metric: str,
    confidence: float,
    *,
    reference: NDArray[np.float64] | None = None,
    groups: Sequence[int] | None = None,
    clusters: NDArray[np.int64] | None = None,
) -> list[Slice]:
    """A row for each value of each fact, in the order of the facts.

    Numbers are cut into thirds of equally many items. Of texts the 12 most frequent values are told. A value
    of one item, or of all items but one, has no row. Items whose fact is None or not a number are in no
    slice of it.

    Where items come in groups, intervals are over the groups of a slice. A slice that is one whole group is
    that group and no sample of groups, so its interval is over its items; one that is a part of one group
    says nothing of others and has no row.

    Args:
        facts: by name, one value an item, e.g. {"length": tokens, "source": where it is from}.
        scores: score of each run on each item, shape (runs, items).
        metric: what the scores are, as `metric_of` gives it.
        confidence: e.g. 0.95.
        reference: scores of the reference arm on the same runs and items.
        groups: as `intervals.of_mean` takes them.
        clusters: group of each item, as `intervals.by_cluster` takes them.
    """
    cut = _Cut(scores, metric, confidence, reference, groups, clusters)
    found = []
    for name, values in facts.items():
        array = np.asarray(values)
        assert array.shape == scores.shape[1:], f"{name}: one value an item"
        numeric = np.issubdtype(array.dtype, np.number)
        names = THIRDS.get(re.split(r"\W", name)[0], OTHER_THIRDS)
        told = terciles(array.astype(np.float64), names) if numeric else texts(array)
        for value in _values(told, names if numeric else None):
            inside, others = told == value, (told != value) & (told != "")
            if inside.sum() >= 2 and others.sum() >= 2 and cut.tells(inside):
                found.append(_slice(name, value, inside, others, cut))
    return found


def terciles(values: NDArray[np.float64], names: Sequence[str] = THIRDS["length"]) -> NDArray[np.str_]:
    """Of each number, in which third of all it lies, with the bounds: "short (up to 12)"; "" of NaN.

    Equal numbers are in the same third, so thirds may be of unequal size, or fewer than three.

    Args:
        values: shape (items,).
        names: of the lower, the middle and the upper third.
    """
    known = np.sort(values[np.isfinite(values)])
    if len(known) == 0:
        return np.full(len(values), "")
    cuts = known[[len(known) // 3, (2 * len(known)) // 3]]
    thirds = np.where(np.isfinite(values), np.searchsorted(cuts, values, side="right"), -1)
    told = np.full(len(values), "", dtype=object)
    for third, name in enumerate(names):
        inside = thirds == third
        if inside.any():
            low, high = _figure(values[inside].min()), _figure(values[inside].max())
            told[inside] = f"{name} ({low})" if low == high else f"{name} ({low} to {high})"
    return told.astype(np.str_)


def _figure(value: float) -> str:
    """Whole numbers whole, others with three digits."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"


def texts(values: NDArray[np.generic]) -> NDArray[np.str_]:
    """The values as texts, "" of None and of NaN."""
    return np.array(
        [
            "" if one is None or (isinstance(one, float) and math.isnan(one)) else str(one)
            for one in values.tolist()
        ],
        dtype=np.str_,
    )


def _values(told: NDArray[np.str_], thirds: Sequence[str] | None) -> list[str]:
    """The values to be told: thirds from the lowest, others by how frequent they are, then by name."""
    counts = Counter(one for one in told.tolist() if one)
    if thirds is not None:
        return sorted(counts, key=lambda value: thirds.index(value.split(" (")[0]))
    return sorted(counts, key=lambda value: (-counts[value], value))[:MOST_VALUES]


@dataclass(frozen=True)
class _Cut:
    """What the slices of a table are cut from."""

    scores: NDArray[np.float64]
    metric: str
    confidence: float
    reference: NDArray[np.float64] | None
    groups: Sequence[int] | None
    clusters: NDArray[np.int64] | None

    def tells(self, inside: NDArray[np.bool_]) -> bool:
        """Whether these items are of several groups, or one group as a whole."""
        if self.clusters is None:
            return True
        own = np.unique(self.clusters[inside])
        return len(own) > 1 or bool(inside[self.clusters == own[0]].all())

    def draws(self, scores: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Scores of the independent draws among these items."""
        own = None if self.clusters is None else self.clusters[inside]
        if own is None or len(np.unique(own)) == 1:
            return scores[:, inside]
        return intervals.by_cluster(scores[:, inside], own)


def _slice(name: str, value: str, inside: NDArray[np.bool_], others: NDArray[np.bool_], cut: _Cut) -> Slice:
    bounds, confidence, groups = bounds_of(cut.metric), cut.confidence, cut.groups
    own = cut.draws(cut.scores, inside)
    against = improvement = None
    if cut.reference is not None:
        against = float(cut.reference[:, inside].mean())
        gains = cut.draws(metrics.improvement(cut.metric, cut.scores, cut.reference), inside)
        improvement = intervals.of_difference(gains, confidence, bounds, groups)
    size = int(inside.sum())
    return Slice(
        name,
        value,
        size,
        intervals.of_mean(own, confidence, bounds, groups),
        between(own, cut.draws(cut.scores, others), confidence, bounds, groups),
        against,
        improvement,
        own.shape[1] < FEW,
    )


def between(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    confidence: float,
    bounds: tuple[float, float],
    groups: Sequence[int] | None = None,
) -> Interval:
    """Interval of the difference of the mean scores on two sets of different items by the same runs.

    The items of both are independent samples: each mean has its own interval over items, and the squared
    distances to their ends add up (Zou and Donner, Construction of Confidence Limits about Effect Measures,
    2008). The square of the Student interval of the difference over runs, in which what a run does to both
    cancels, is added to these.

    Args:
        first: shape (runs, items).
        second: shape (runs, other items).
        confidence: e.g. 0.95.
        bounds: lowest and highest score there can be; infinite where there is no bound.
        groups: one number a run; runs of a group are averaged first.
    """
    one, other = (
        intervals.of_mean(scores.mean(axis=0, keepdims=True), confidence, bounds)
        for scores in (first, second)
    )
    by_run = intervals.by_group(first.mean(axis=1) - second.mean(axis=1), groups)
    squared = 0.0
    if len(by_run) > 1:
        quantile = float(stdtrit(len(by_run) - 1, 0.5 + confidence / 2))
        squared = quantile**2 * float(by_run.var(ddof=1)) / len(by_run)
    value, span = one.value - other.value, bounds[1] - bounds[0]
    below = math.sqrt((one.value - one.low) ** 2 + (other.high - other.value) ** 2 + squared)
    above = math.sqrt((one.high - one.value) ** 2 + (other.value - other.low) ** 2 + squared)
    items = first.shape[1] + second.shape[1]
    return Interval(value, max(value - below, -span), min(value + above, span), len(first), items)
