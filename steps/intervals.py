"""Intervals for a mean over seeds and test items. No torch.

The scores of an arm are a table: one row a run (a seed), one column a test item, every run on every item.
Both are samples: another seed would have given another network, another test split other items. The interval
is for the mean over all seeds and all items, and takes both kinds of chance into account.

Method. Split the variance of the grand mean as a two-way random model does (Searle, Casella and
McCulloch, Variance Components, 1992), and give each part the Student quantile of its own degrees of
freedom (the sum of squared half-widths of Howe, J. Am. Stat. Assoc. 69, 1974):

    half^2 = t(seeds - 1)^2 * var(means of seeds) / seeds + t(items - 1)^2 * max(0, V_items - V_rest)

where V_items = var(means of items) / items and V_rest is what is left once seeds and items are taken out,
which the first term counts already. The interval is never narrower than from items alone.

Several training subsets. When seeds were trained on different subsets of the training pool, the runs on one
subset resemble each other: the design is nested, seeds within subsets, and both crossed with items. The
rows of a subset are averaged first. The subsets' means are then independent draws, whatever the
variance between seeds is, and take the place of the seeds above. So two subsets of five seeds count as two
draws, not as ten; that is the price of saying something about other training data.

Groups of test items. The photos of one patient or the paragraphs of one document resemble each other: they
are no independent draws, their groups are. The table of items is then replaced by one of groups, see
`by_cluster`, and all of the above holds for groups.

Why not another method. `python -m benchmarks.coverage` measures it; docs/protocol.md has the tables. Where
networks of three seeds differ by 8 points, 95 % intervals of the crossed percentile bootstrap hold the truth
in 78 of 100 cases, for three seeds show two thirds of their variance and have no Student factor; the BCa
bootstrap does no better. Satterthwaite's approximation goes down to 92 with three seeds and to 89 with two.
This method held it in 95 or more with any number of seeds above one. Where seeds hardly matter it holds it in
97 to 99, in all where besides nearly every item is right, and is wider than need be, by a third with three
seeds and by an eighth with five: three seeds cannot tell that seeds do not matter. Taking the quantile of
Behrens and Fisher instead of the sum of squares was tried: it is narrower by 1 % only.

Bounded scores. When every item is right, its variance is 0 and any such interval has no width. Made-up
items at the ends of the scale mend that: two at each end for one arm (Agresti and Coull, 1998), one at
each end for a difference (Bonett and Price, 2012).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-math.inf, math.inf)


@dataclass(frozen=True)
class Interval:
    """A mean with its interval.

    Attributes:
        value: the mean over runs and items.
        low: lower end.
        high: upper end.
        seeds: how many runs; with 1 the interval says nothing of the chance between seeds.
        items: how many test items; groups of them where these are the independent draws.
    """

    value: float
    low: float
    high: float
    seeds: int
    items: int


@dataclass(frozen=True)
class Spread:
    """All that the intervals of one table need, whatever their confidence.

    Attributes:
        value: the mean over runs and items.
        centre: the same with the made-up items; intervals lie around it.
        by_items: variance of the mean from items, V_items.
        by_draws: variance of the mean from independent trainings; 0 with one.
        by_rest: what of both is the scatter of single scores, V_rest; 0 with one training.
        draws: independent trainings: seeds, or training subsets where there are several.
        padded: items, the made-up ones too.
        bounds: lowest and highest value there can be.
        seeds: runs in the table.
        items: test items.
    """

    value: float
    centre: float
    by_items: float
    by_draws: float
    by_rest: float
    draws: int
    padded: int
    bounds: Bounds
    seeds: int
    items: int

    def ends(self, miss: float) -> tuple[float, float]:
        """Lower and upper end of the interval that misses the truth with this probability, e.g. 0.05."""
        t_items = _student(self.padded - 1, miss)
        squared = t_items**2 * self.by_items
        if self.draws > 1:
            t_draws = _student(self.draws - 1, miss)
            both = t_draws**2 * self.by_draws + t_items**2 * max(0.0, self.by_items - self.by_rest)
            squared = max(squared, both)
        half = math.sqrt(squared)
        low, high = min(self.centre - half, self.value), max(self.centre + half, self.value)
        return max(low, self.bounds[0]), min(high, self.bounds[1])

    def interval(self, confidence: float) -> Interval:
        """The interval that holds the truth with this probability, e.g. 0.95."""
        return Interval(self.value, *self.ends(1 - confidence), self.seeds, self.items)


def of_mean(
    scores: NDArray[np.float64],
    confidence: float,
    bounds: Bounds = UNBOUNDED,
    groups: Sequence[int] | None = None,
) -> Interval:
    """Interval of the mean score.

    Args:
        scores: shape (runs, items), at least two items.
        confidence: e.g. 0.95.
        bounds: lowest and highest score there can be; infinite where there is no bound.
        groups: the training subset of each run; None or all the same: every run is a draw of its own.
    """
    ends = np.repeat(bounds, 2) if np.isfinite(bounds).all() else np.empty(0)
    return _spread(scores, ends, bounds, groups).interval(confidence)


def of_difference(
    differences: NDArray[np.float64],
    confidence: float,
    bounds: Bounds = UNBOUNDED,
    groups: Sequence[int] | None = None,
) -> Interval:
    """Interval of the mean difference of two score tables over the same runs and items.

    Args:
        differences: one table minus the other, shape (runs, items), at least two items.
        confidence: e.g. 0.95.
        bounds: lowest and highest of the scores that were subtracted.
        groups: the training subset of each run; None or all the same: every run is a draw of its own.
    """
    return spread_of_difference(differences, bounds, groups).interval(confidence)


def spread_of_difference(
    differences: NDArray[np.float64], bounds: Bounds = UNBOUNDED, groups: Sequence[int] | None = None
) -> Spread:
    """What the intervals of a mean difference are made from, for those who need several confidences.

    Args:
        differences: one table minus the other, shape (runs, items), at least two items.
        bounds: lowest and highest of the scores that were subtracted.
        groups: the training subset of each run; None or all the same: every run is a draw of its own.
    """
    span = bounds[1] - bounds[0]
    ends = np.array([-span, span]) if math.isfinite(span) else np.empty(0)
    return _spread(differences, ends, (-span, span), groups)


def _spread(
    scores: NDArray[np.float64], ends: NDArray[np.float64], bounds: Bounds, groups: Sequence[int] | None
) -> Spread:
    seeds, items = scores.shape
    assert items >= 2, "an interval needs at least two items"
    assert np.isfinite(scores).all(), "scores must be finite"
    table = by_group(scores, groups)
    draws = len(table)
    draw_means, item_means, value = table.mean(axis=1), table.mean(axis=0), float(table.mean())
    padded = np.concatenate([item_means, ends])
    by_items = float(padded.var(ddof=1)) / len(padded)
    by_draws = by_rest = 0.0
    if draws > 1:
        by_draws = float(draw_means.var(ddof=1)) / draws
        rest = table - draw_means[:, None] - item_means[None, :] + value
        by_rest = float((rest**2).sum()) / ((draws - 1) * (items - 1)) / (draws * items)
    centre = float(padded.mean())
    return Spread(value, centre, by_items, by_draws, by_rest, draws, len(padded), bounds, seeds, items)


def by_group(scores: NDArray[np.float64], groups: Sequence[int] | None) -> NDArray[np.float64]:
    """The independent draws: the rows of a group averaged, where there is more than one group.

    Args:
        scores: one row, or one number, a run.
        groups: the training subset of each run; None or all the same: every run is a draw of its own.
    """
    if groups is None or len(set(groups)) == 1:
        return scores
    assert len(groups) == len(scores), "one group for each run"
    rows = np.asarray(groups)
    return np.stack([scores[rows == group].mean(axis=0) for group in sorted(set(groups))])


def by_cluster(scores: NDArray[np.float64], clusters: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """The independent draws among the items: their groups, where they come in groups.

    The mean over all items is a ratio of two sums over groups, of the scores and of the items. Each group
    is given what linearisation makes of it (Cochran, Sampling Techniques, 1977, chapter 6; Miller, Adding
    Error Bars to Evals, 2024, has the same for evaluations): m + (n_g / n) G (m_g - m), where m is the mean
    of all n items, m_g that of the group's n_g, and G the number of groups. The mean of these is m as well,
    and their variance over G that of the ratio estimator. Where every group is of one item they are the
    items' scores.

    Args:
        scores: shape (runs, items).
        clusters: group of each item, whole numbers, shape (items,); None: every item stands for itself.

    Returns:
        Shape (runs, groups), in ascending order of the groups' numbers.
    """
    if clusters is None:
        return scores
    assert clusters.shape == scores.shape[1:], "one group for each item"
    _, places, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    if len(sizes) == scores.shape[1]:
        return np.ascontiguousarray(scores[:, np.argsort(places)])
    mean = scores.mean(axis=1, keepdims=True)
    beyond = np.stack([np.bincount(places, run) for run in scores - mean])
    return np.asarray(mean + beyond * len(sizes) / scores.shape[1])


def _student(degrees: int, miss: float) -> float:
    # The lower tail: 1 - miss / 2 would be rounded to 1 for small misses.
    return -float(stdtrit(degrees, miss / 2))
