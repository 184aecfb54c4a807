"""Can an arm be relied on? The spread of its runs, and how many of them failed. No torch.

Fine-tuning a large network on few labels sometimes does not train at all: the loss stays where it was, and
the network says the most frequent class of everything (Dodge et al., 2020; Zhang et al., Revisiting
Few-sample BERT Fine-tuning, ICLR 2021). Mosbach, Andriushchenko and Klakow (On the Stability of Fine-tuning
BERT, ICLR 2021) call a run failed when it does no better than the majority class. Here a run has failed when

* its interval of accuracy over test items reaches down to the share of the largest class in the test split:
  nobody could tell it from always saying that class (with very few test items that is every run); or
* its accuracy lies far below the other runs of its arm: by more than 10 points and more than 3 scaled median
  absolute deviations below the median (Leys et al., J. Exp. Social Psychology 49, 2013). The 10 points keep
  runs that agree closely from making a failure of every small slip. One or two runs have no outliers.

A task without classes has no share of a largest class and no accuracy: there only the second rule holds, for
the metric that arms are judged by. What takes the place of 10 points is the metric's `far`.

The share of failed runs comes with the exact interval of Clopper and Pearson (Biometrika 26, 1934). With
three runs it is wide, and should be: none of three says only that less than about 71 % fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from steps import intervals, metrics

# A median absolute deviation times this estimates the standard deviation of a normal distribution.
SCALE = 1.4826
FAR_POINTS = 0.10
FAR_DEVIATIONS = 3.0


@dataclass(frozen=True)
class Share:
    """Failed runs of all.

    Attributes:
        value: the share.
        low: lower end of its interval.
        high: upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Stability:
    """How far an arm's runs lie apart.

    Attributes:
        runs: how many.
        sd: standard deviation of the metric over runs; None with one.
        low: the lowest value of a run.
        high: the highest.
        failed: how many runs failed.
        failed_share: the same of all, with its interval.
        failed_runs: which, in the order of runs.
    """

    runs: int
    sd: float | None
    low: float
    high: float
    failed: int
    failed_share: Share
    failed_runs: tuple[bool, ...]


def stability(
    values: Sequence[float], right: NDArray[np.float64], majority: float, confidence: float
) -> Stability:
    """How far the runs of a classifier lie apart, and which failed.

    Args:
        values: the metric of each run.
        right: 1 where a run has an item right, else 0; shape (runs, items), two items or more.
        majority: share of the largest class in the test split.
        confidence: of the intervals, e.g. 0.95.
    """
    runs = len(values)
    assert runs == len(right) >= 1, "one value for each run"
    return _stability(values, failed_runs(right, majority, confidence), confidence)


def without_classes(values: Sequence[float], metric: str, confidence: float) -> Stability:
    """How far an arm's runs lie apart, and which failed, where there are no classes.

    Args:
        values: the metric of each run.
        metric: which, a name in `metrics.METRICS`.
        confidence: of the interval, e.g. 0.95.
    """
    good = np.asarray(values) if metrics.HIGHER_IS_BETTER[metric] else -np.asarray(values)
    about = metrics.METRICS[metric]
    least = about.far * (float(np.median(values)) if about.relative else 1.0)
    return _stability(values, tuple(_far_below(good, least).tolist()), confidence)


def _stability(values: Sequence[float], failed: tuple[bool, ...], confidence: float) -> Stability:
    runs, count = len(values), sum(failed)
    return Stability(
        runs=runs,
        sd=float(np.std(values, ddof=1)) if runs > 1 else None,
        low=float(min(values)),
        high=float(max(values)),
        failed=count,
        failed_share=share(count, runs, confidence),
        failed_runs=failed,
    )


def failed_runs(right: NDArray[np.float64], majority: float, confidence: float) -> tuple[bool, ...]:
    """Which runs failed, by the rule at the top.

    Args:
        right: 1 where a run has an item right, else 0; shape (runs, items).
        majority: share of the largest class in the test split.
        confidence: of the interval that must lie above it.
    """
    accuracy = right.mean(axis=1)
    lows = np.array([intervals.of_mean(run[None, :], confidence, (0.0, 1.0)).low for run in right])
    return tuple(bool(one) for one in (lows <= majority) | _far_below(accuracy, FAR_POINTS))


def _far_below(values: NDArray[np.float64], least: float) -> NDArray[np.bool_]:
    """Which values lie below the others by more than this, and by more than their scatter."""
    median = float(np.median(values))
    spread = SCALE * float(np.median(np.abs(values - median)))
    return np.asarray(values < median - max(least, FAR_DEVIATIONS * spread))


def share(count: int, runs: int, confidence: float) -> Share:
    """A share of runs with its exact interval."""
    ends = binomtest(count, runs).proportion_ci(confidence, method="exact")
    return Share(count / runs, float(ends.low), float(ends.high))
