"""How soon an arm is as good on validation as the reference ever gets. No torch.

An arm's curve is the best validation value so far, averaged over its runs. The target is where the
reference's curve ends. What an arm spends until its curve reaches the target is told in epochs, in optimizer
steps and in seconds, and the reference's own cost over it is the speed-up.

Its interval is a bootstrap over runs, 10,000 draws, in which arms keep company: a draw weighs the same runs
of both alike, and sets the target anew. A draw in which the arm never gets there counts as a speed-up of 0,
for all that is known of its cost is that it is more than was spent; so the lower end is honest. The weights
are Student's (`bootstrap.student_weights`): with three runs such intervals hold the truth in 93 to 96 of 100
cases, where drawing runs with replacement holds it in 79 to 82 (`python -m benchmarks.coverage`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from steps import bootstrap, intervals, metrics

# Validation values are means of float32; what differs by less is equal.
TOLERANCE = 1e-9
# Of the logarithm of a speed-up.
LARGEST = 300.0


@dataclass(frozen=True)
class Curve:
    """One training as seen on validation.

    Attributes:
        values: the metric after each epoch.
        seconds: training time up to the end of each epoch.
        steps: optimizer steps up to the end of each epoch.
    """

    values: Sequence[float]
    seconds: Sequence[float]
    steps: Sequence[float]


@dataclass(frozen=True)
class Convergence:
    """How soon an arm reaches the target.

    Attributes:
        epochs: the first epoch by which the mean over runs of the best value so far reaches it; None: never.
        steps: mean over runs of the optimizer steps up to there.
        seconds: mean over runs of the training time up to there, in seconds.
        by_seed: the first epoch of each run that reaches it by itself; None: never.
    """

    epochs: int | None
    steps: float | None
    seconds: float | None
    by_seed: list[int | None]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the number.
        low: lower end; None with one run, which tells nothing of the chance between runs.
        high: upper end; None with one run.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class SpeedUp:
    """How many times as much the reference spends to reach its target as the arm to reach the same.

    Attributes:
        epochs: counted in epochs.
        steps: in optimizer steps; None where a run of the arm takes none, as a head that is solved for.
        seconds: in training time; None where a run of the arm takes less than the journal's millisecond.
        censored: runs of the arm that never reach the target by themselves.
    """

    epochs: Estimate
    steps: Estimate | None
    seconds: Estimate | None
    censored: int


def target_of(curves: Sequence[Curve], metric: str) -> float:
    """The value to reach: the mean over the reference's runs of each run's best validation value."""
    return float(np.mean([_best_so_far(curve.values, metric)[-1] for curve in curves]))


def convergence(curves: Sequence[Curve], target: float, metric: str) -> Convergence:
    """When an arm reaches the target.

    The best value so far is averaged over runs, so the reference itself always reaches its own target:
    at the epoch in which the last of its runs was at its best.
    """
    best = _table(curves, metric)
    by_seed = [_first(_best_so_far(curve.values, metric), target, metric) for curve in curves]
    epochs = _first(best.mean(axis=0), target, metric)
    if epochs is None:
        return Convergence(None, None, None, by_seed)
    steps, seconds = (_costs(curves, kind)[:, epochs - 1].mean() for kind in ("steps", "seconds"))
    return Convergence(epochs, float(steps), float(seconds), by_seed)


def speedup(
    arm: Sequence[Curve],
    reference: Sequence[Curve],
    metric: str,
    confidence: float,
    groups: Sequence[int] | None = None,
    shares: NDArray[np.float64] | None = None,
) -> SpeedUp | None:
    """How much sooner the arm reaches the reference's target than the reference does.

    Args:
        arm: its runs.
        reference: its runs, in the same order of resample and seed.
        metric: what arms are judged by.
        confidence: e.g. 0.95.
        groups: the training subset of each run; with more than one, subsets are the independent draws.
        shares: of each run in each draw, shape (draws, runs), rows that sum to 1; None: 10,000 draws of
            Student's weights.

    Returns:
        None when the arm never reaches the target.
    """
    assert len(arm) == len(reference), "a paired bootstrap needs the same runs of both"
    target = target_of(reference, metric)
    reached = convergence(arm, target, metric)
    if reached.epochs is None:
        return None
    runs = len(arm)
    values = _ratios(arm, reference, metric, np.full((1, runs), 1 / runs))
    drawn: dict[str, NDArray[np.float64]] = {}
    if runs > 1:
        shares = bootstrap.student_weights(runs, groups=groups) if shares is None else shares
        drawn = _ratios(arm, reference, metric, shares)
    found: dict[str, Estimate] = {}
    for kind, (value,) in values.items():
        low, high = bootstrap.interval(drawn[kind], confidence, value) if drawn else (None, None)
        found[kind] = Estimate(float(value), low, high)
    censored = sum(one is None for one in reached.by_seed)
    return SpeedUp(found["epochs"], found.get("steps"), found.get("seconds"), censored)


def area(
    curves: Sequence[Curve],
    metric: str,
    confidence: float,
    epochs: int,
    groups: Sequence[int] | None = None,
) -> Estimate:
    """The best validation value so far, averaged over the epochs: near 1 is soon good and good at last.

    What lies between 0 and 1 counts as it is, everything else as what does too, see `_share`. A run that
    stopped early keeps the best it had.

    Args:
        curves: the arm's runs.
        metric: what arms are judged by.
        confidence: of the interval, Student's over runs.
        epochs: how many to average over, the same for all arms.
        groups: the training subset of each run; with more than one, the runs of a subset are averaged first.
    """
    best = _table(curves, metric, epochs)
    each = _share(best, metric).mean(axis=1)
    by_run = intervals.by_group(each, groups)
    value, runs = float(by_run.mean()), len(by_run)
    if runs == 1:
        return Estimate(value, None, None)
    half = float(stdtrit(runs - 1, 0.5 + confidence / 2) * by_run.std(ddof=1)) / math.sqrt(runs)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def _share(values: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    """Values of any metric between 0 and 1, higher is better.

    A loss x counts as exp(-x): of a log-loss that is the geometric mean of the probability given to the true
    class. A perplexity x counts as 1 / x, the same of tokens. A PSNR of x dB counts as the peak's part of
    peak and squared error, 1 / (1 + 10^(-x / 10)).
    """
    low, high = metrics.BOUNDS[metric]
    if math.isfinite(high):
        return values
    if math.isfinite(low):
        return 1 / values if metric == "perplexity" else np.exp(-values)
    return np.asarray(1 / (1 + 10 ** (-values / 10)))


def _ratios(
    arm: Sequence[Curve], reference: Sequence[Curve], metric: str, shares: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Speed-ups of each draw, 0 where the arm never reaches the target.

    Args:
        arm: its runs.
        reference: its runs.
        metric: what arms are judged by.
        shares: of each run in each draw, shape (draws, runs), rows that sum to 1.

    Returns:
        By kind of cost, shape (draws,); without those of which a run spent nothing.
    """
    of_arm, of_reference = shares @ _table(arm, metric), shares @ _table(reference, metric)
    target = of_reference[:, -1:]
    reached, at_arm = _firsts(of_arm, target, metric)
    _, at_reference = _firsts(of_reference, target, metric)
    ratios = {}
    for kind in ("epochs", "steps", "seconds"):
        own, others = _costs(arm, kind, of_arm.shape[1]), _costs(reference, kind, of_reference.shape[1])
        if min(own.min(), others.min()) > 0:
            logs = _log_spent(others, shares, at_reference) - _log_spent(own, shares, at_arm)
            # Two runs have draws far out; they are to stay numbers.
            ratios[kind] = np.where(reached, np.exp(np.clip(logs, -LARGEST, LARGEST)), 0.0)
    return ratios


def _log_spent(
    costs: NDArray[np.float64], shares: NDArray[np.float64], at: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The logarithm of the mean cost of each draw up to its epoch, shape (draws,).

    Draws move the mean on the logarithm, so that costs stay positive: weights may be negative.
    """
    moved = np.log(costs.mean(axis=0)) + (shares - 1 / len(costs)) @ np.log(costs)
    return np.asarray(moved[np.arange(len(at)), at])


def _table(curves: Sequence[Curve], metric: str, epochs: int = 0) -> NDArray[np.float64]:
    """The best so far of each run, shape (runs, epochs); a training that stopped early keeps its best."""
    longest = epochs or max(len(curve.values) for curve in curves)
    return np.stack([_stretched(_best_so_far(curve.values, metric), longest) for curve in curves])


def _costs(curves: Sequence[Curve], kind: str, epochs: int = 0) -> NDArray[np.float64]:
    """What each run spent up to the end of each epoch, shape (runs, epochs); one that stopped spends no more.

    Epochs are those of the curve, so that all runs count alike.
    """
    longest = epochs or max(len(curve.values) for curve in curves)
    if kind == "epochs":
        return np.tile(np.arange(1.0, longest + 1), (len(curves), 1))
    return np.stack([_stretched(np.asarray(getattr(curve, kind), np.float64), longest) for curve in curves])


def _stretched(values: NDArray[np.float64], epochs: int) -> NDArray[np.float64]:
    assert 0 < len(values) <= epochs, "no training is longer than all epochs"
    return np.pad(values, (0, epochs - len(values)), mode="edge")


def _best_so_far(values: Sequence[float], metric: str) -> NDArray[np.float64]:
    better = np.maximum if metrics.HIGHER_IS_BETTER[metric] else np.minimum
    return np.asarray(better.accumulate(np.asarray(values, dtype=np.float64)))


def _first(values: NDArray[np.float64], target: float, metric: str) -> int | None:
    reached, at = _firsts(values[None, :], np.array([[target]]), metric)
    return int(at[0]) + 1 if reached[0] else None


def _firsts(
    values: NDArray[np.float64], targets: NDArray[np.float64], metric: str
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether each row reaches its target, and where first, counted from 0."""
    ahead = values - targets if metrics.HIGHER_IS_BETTER[metric] else targets - values
    there = ahead >= -TOLERANCE
    return np.asarray(there.any(axis=1)), np.asarray(there.argmax(axis=1))
