"""How many labels a pretrained start is worth. No torch.

Arms are trained on several label budgets. The question of whoever pays for labels: how many would the
reference need to be as good as the arm is with its few? The reference's mean over runs is made monotone,
for more labels do not hurt in expectation (isotonic regression; Robertson, Wright and Dykstra, Order
Restricted Statistical Inference, 1988), and is read off between budgets on a straight line over the
logarithm of labels, along which learning curves are nearly straight in the short (Hestness et al., 2017).

Outside of the budgets nothing is extrapolated: what even the largest does not reach needs "more than" that.

The interval is over runs, by a bootstrap. Each draw moves all budgets and the arm together by the same random
combination of their runs' deviations, scaled so that every mean follows Student's distribution
(`bootstrap.student_weights`): drawing three runs with replacement would see two thirds of their variance. All
budgets are tested on the same items; what another test split would say is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steps import bootstrap
from steps.errors import HeadstartError


@dataclass(frozen=True)
class Point:
    """An arm on one label budget.

    Attributes:
        labels: training labels, one or more.
        values: the metric of each run, in the same order of resample and seed at every budget.
    """

    labels: int
    values: Sequence[float]


@dataclass(frozen=True)
class Saved:
    """Labels the reference needs beyond the arm's to be as good.

    Attributes:
        labels: how many; below 0 where the arm needs more. When the reference's smallest budget is as good
            already, at most this.
        low: lower end of the interval; None with one run.
        high: upper end; None with one run, and where the largest budget does not bound it.
        more_than: the reference's largest budget does not reach the arm: it needs more than `labels` more.
    """

    labels: float
    low: float | None
    high: float | None
    more_than: bool


def monotone(points: Sequence[Point], higher_is_better: bool = True) -> list[float]:
    """The means over runs, made monotone in the labels; points in ascending order of labels."""
    means = np.array([[np.mean(point.values) for point in points]])
    counts = np.array([len(point.values) for point in points], dtype=np.float64)
    sign = 1.0 if higher_is_better else -1.0
    return [float(value) for value in sign * _isotonic(sign * means, counts)[0]]


def labels_needed(points: Sequence[Point], value: float, higher_is_better: bool = True) -> float | None:
    """The labels at which the fitted curve reaches the value.

    Args:
        points: an arm's, two budgets or more.
        value: the metric to reach.
        higher_is_better: of the metric.

    Returns:
        None when the largest budget does not reach it; the smallest budget when that does already.

    Raises:
        HeadstartError: budgets repeat, or there is only one.
    """
    points = _ordered(points)
    sign = 1.0 if higher_is_better else -1.0
    fit = sign * np.array([monotone(points, higher_is_better)])
    needed = float(_crossing(points, fit, np.array([sign * value]))[0])
    return needed if np.isfinite(needed) else None


def saved(
    reference: Sequence[Point],
    arm: Point,
    confidence: float,
    higher_is_better: bool = True,
    groups: Sequence[int] | None = None,
    shares: NDArray[np.float64] | None = None,
) -> Saved:
    """How many labels the arm saves: what the reference needs to be as good, minus what the arm had.

    Args:
        reference: its points, two budgets or more.
        arm: the arm on its budget, the same runs.
        confidence: e.g. 0.95.
        higher_is_better: of the metric.
        groups: the training subset of each run; with more than one, subsets are the independent draws.
        shares: of each run in each draw, shape (draws, runs), rows that sum to 1; None: 10,000 draws of
            Student's weights.

    Raises:
        HeadstartError: budgets repeat, there is only one, or they differ in the number of runs.
    """
    points = _ordered(reference)
    runs = len(arm.values)
    for point in points:
        if len(point.values) != runs:
            raise HeadstartError(
                f"{point.labels} training labels have {len(point.values)} runs of the reference, the arm has "
                f"{runs}: run all label budgets with the same seeds"
            )
    sign = 1.0 if higher_is_better else -1.0
    table = sign * np.array([point.values for point in points], dtype=np.float64)
    own = sign * np.asarray(arm.values, dtype=np.float64)
    value = _saved(points, table, own, arm.labels, np.full((1, runs), 1 / runs))[0]
    most = float(points[-1].labels - arm.labels)
    more_than = not np.isfinite(value)
    labels = most if more_than else float(value)
    if runs == 1:
        return Saved(labels, None, None, more_than)
    shares = bootstrap.student_weights(runs, groups=groups) if shares is None else shares
    drawn = _saved(points, table, own, arm.labels, shares)
    # Where the largest budget does not reach the arm, all that is known is that more are needed. Such a
    # draw is larger than all others, so only the quantiles among them are unknown.
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], method="nearest")
    bounded = np.isfinite(high) and not more_than
    return Saved(
        labels, min(float(low), most, labels), max(float(high), labels) if bounded else None, more_than
    )


def _saved(
    points: Sequence[Point],
    table: NDArray[np.float64],
    own: NDArray[np.float64],
    labels: int,
    shares: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Labels saved in each draw, infinite where no budget reaches the arm.

    Args:
        points: the reference's budgets.
        table: its values, higher is better, shape (budgets, runs).
        own: the arm's values, shape (runs,).
        labels: the arm's.
        shares: of each run in each draw, shape (draws, runs).
    """
    fit = _isotonic(shares @ table.T, np.ones(len(points)))
    return _crossing(points, fit, shares @ own) - labels


def _ordered(points: Sequence[Point]) -> list[Point]:
    ordered = sorted(points, key=lambda point: point.labels)
    budgets = [point.labels for point in ordered]
    if len(set(budgets)) < len(budgets) or len(budgets) < 2 or budgets[0] < 1:
        raise HeadstartError(
            f"label budgets {budgets} give no curve: name two or more different ones, each at least 1"
        )
    return ordered


def _isotonic(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Isotonic regression of every row, by the max-min formula: all draws at once, for few budgets.

    At budget i: the largest over starts j <= i of the smallest over ends k >= i of the mean from j to k.

    Args:
        values: shape (draws, budgets).
        weights: shape (budgets,).
    """
    budgets = len(weights)
    sums = np.cumsum(np.pad(values * weights, ((0, 0), (1, 0))), axis=1)
    counts = np.cumsum(np.pad(weights, (1, 0)))
    fit = np.full(values.shape, -np.inf)
    for start in range(budgets):
        means = (sums[:, start + 1 :] - sums[:, start : start + 1]) / (counts[start + 1 :] - counts[start])
        smallest = np.minimum.accumulate(means[:, ::-1], axis=1)[:, ::-1]
        fit[:, start:] = np.maximum(fit[:, start:], smallest)
    return fit


def _crossing(
    points: Sequence[Point], fit: NDArray[np.float64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The labels at which each row of the fit reaches its value; infinite where it never does."""
    logs = np.log([point.labels for point in points])
    # The fit is a mean computed in another order than the value: equal is reached.
    there = fit >= values[:, None] - 1e-12
    at = there.argmax(axis=1)
    before, rows = np.maximum(at - 1, 0), np.arange(len(fit))
    step = fit[rows, at] - fit[rows, before]
    share = np.divide(values - fit[rows, before], step, out=np.ones(len(fit)), where=step > 0)
    needed = np.exp(logs[before] + np.clip(share, 0.0, 1.0) * (logs[at] - logs[before]))
    return np.where(there.any(axis=1), needed, np.inf)
