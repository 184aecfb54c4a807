"""Did the pretrained start help? Estimates with intervals, and the verdict. No torch, no pandas.

Which arm is judged is chosen on validation; the test split only judges it. So the interval needs no
correction for having picked the best of several. How the intervals are made is told in `intervals`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from steps import intervals, metrics
from steps.errors import HeadstartError, TrainingError
from steps.intervals import Interval

# Validation values are means of float32; what differs by less is equal.
TOLERANCE = 1e-9


# ------------------------------------------------------------------------------------- the test split


@dataclass(frozen=True)
class Answers:
    """What one arm and seed said of the test split.

    Attributes:
        arm: name of the arm.
        seed: its seed.
        ids: of the test items, unique.
        truth: true class of each item, shape (items,).
        probabilities: shape (items, classes).
    """

    arm: str
    seed: int
    ids: Sequence[str]
    truth: NDArray[np.int64]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class Crossed:
    """Every arm and seed on the same items, in the order of ids.

    Attributes:
        ids: shape (items,).
        truth: shape (items,).
        seeds: the same for every arm.
        probabilities: by arm, shape (seeds, items, classes).
    """

    ids: tuple[str, ...]
    truth: NDArray[np.int64]
    seeds: tuple[int, ...]
    probabilities: dict[str, NDArray[np.float64]]

    def scores(self, arm: str, metric: str) -> NDArray[np.float64]:
        """The arm's score of each seed on each item, shape (seeds, items)."""
        return np.stack([metrics.per_item(metric, self.truth, one) for one in self.probabilities[arm]])

    def values(self, arm: str, metric: str) -> list[float]:
        """The metric of each seed."""
        return [metrics.score(metric, self.truth, one) for one in self.probabilities[arm]]


def cross(tested: Sequence[Answers]) -> Crossed:
    """Line up what all arms and seeds said of the same test items.

    Raises:
        TrainingError: predictions are not finite; names arm and seed.
        HeadstartError: arms differ in seeds, items or true classes, or there are fewer than two items.
    """
    first = tested[0]
    seeds = tuple(sorted(one.seed for one in tested if one.arm == first.arm))
    probabilities: dict[str, NDArray[np.float64]] = {}
    for arm in dict.fromkeys(one.arm for one in tested):
        runs = sorted((one for one in tested if one.arm == arm), key=lambda one: one.seed)
        if tuple(one.seed for one in runs) != seeds:
            found = [one.seed for one in runs]
            raise HeadstartError(
                f"arm {arm!r} was tested with seeds {found}, arm {first.arm!r} with {list(seeds)}; "
                "a paired comparison needs the same: run train and evaluate again"
            )
        probabilities[arm] = np.stack([_in_order(one, first) for one in runs])
    if len(first.ids) < 2:
        raise HeadstartError(
            f"the test split has {len(first.ids)} item, an interval needs two or more; raise `split.test`"
        )
    order = np.argsort(np.asarray(first.ids, dtype=object))
    return Crossed(tuple(first.ids[at] for at in order), first.truth[order], seeds, probabilities)


def _in_order(one: Answers, first: Answers) -> NDArray[np.float64]:
    """The probabilities in the order of ids, once they are sound and of the same items as the first."""
    broken = int((~np.isfinite(one.probabilities)).any(axis=1).sum())
    if broken:
        raise TrainingError(
            f"arm {one.arm!r}, seed {one.seed}: {broken} of {len(one.ids)} predictions are not finite; "
            "train it again with a smaller learning rate"
        )
    here, there = (dict(zip(it.ids, it.truth.tolist(), strict=True)) for it in (one, first))
    if len(here) != len(one.ids):
        raise HeadstartError(f"arm {one.arm!r}, seed {one.seed}: ids repeat in the predictions")
    odd = sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
    if odd:
        raise HeadstartError(
            f"arm {one.arm!r}, seed {one.seed} was tested on other items or labels than arm {first.arm!r}, "
            f"seed {first.seed}: {len(odd)} differ, e.g. {odd[0]!r}; run evaluate again"
        )
    return one.probabilities[np.argsort(np.asarray(one.ids, dtype=object))]


def estimate(crossed: Crossed, arm: str, metric: str, confidence: float) -> Interval:
    """The arm's metric, its mean over seeds, with an interval over seeds and items."""
    return intervals.of_mean(crossed.scores(arm, metric), confidence, metrics.BOUNDS[metric])


def improvement(crossed: Crossed, arm: str, reference: str, metric: str, confidence: float) -> Interval:
    """By how much the arm is better than the reference, paired by seed and item; positive is better."""
    gains = metrics.improvement(metric, crossed.scores(arm, metric), crossed.scores(reference, metric))
    return intervals.of_difference(gains, confidence, metrics.BOUNDS[metric])


# ------------------------------------------------------------------------------------- validation


@dataclass(frozen=True)
class Curve:
    """One training as seen on validation.

    Attributes:
        values: the metric after each epoch.
        seconds: training time up to the end of each epoch.
    """

    values: Sequence[float]
    seconds: Sequence[float]


@dataclass(frozen=True)
class Convergence:
    """How soon an arm reaches the target.

    Attributes:
        epochs: the first epoch by which the mean over seeds of the best value so far reaches it; None: never.
        seconds: mean over seeds of the training time up to there, in seconds.
        by_seed: the first epoch of each seed that reaches it by itself; None: never.
    """

    epochs: int | None
    seconds: float | None
    by_seed: list[int | None]


def target_of(curves: Sequence[Curve], metric: str) -> float:
    """The value to reach: the mean over the reference's seeds of each seed's best validation value."""
    return float(np.mean([_best_so_far(curve.values, metric)[-1] for curve in curves]))


def convergence(curves: Sequence[Curve], target: float, metric: str) -> Convergence:
    """When an arm reaches the target.

    The best value so far is averaged over seeds, so the reference itself always reaches its own target:
    at the epoch in which the last of its seeds was at its best.
    """
    best = [_best_so_far(curve.values, metric) for curve in curves]
    longest = max(len(one) for one in best)
    # A training that stopped early keeps the best it had.
    mean = np.mean([np.pad(one, (0, longest - len(one)), mode="edge") for one in best], axis=0)
    by_seed = [_first(one, target, metric) for one in best]
    epochs = _first(mean, target, metric)
    if epochs is None:
        return Convergence(None, None, by_seed)
    seconds = [curve.seconds[min(epochs, len(curve.seconds)) - 1] for curve in curves]
    return Convergence(epochs, float(np.mean(seconds)), by_seed)


def _best_so_far(values: Sequence[float], metric: str) -> NDArray[np.float64]:
    better = np.maximum if metrics.HIGHER_IS_BETTER[metric] else np.minimum
    return np.asarray(better.accumulate(np.asarray(values, dtype=np.float64)))


def _first(values: NDArray[np.float64], target: float, metric: str) -> int | None:
    ahead = values - target if metrics.HIGHER_IS_BETTER[metric] else target - values
    reached = np.flatnonzero(ahead >= -TOLERANCE)
    return int(reached[0]) + 1 if len(reached) else None


def best(candidates: Mapping[str, Sequence[tuple[float, float]]], metric: str) -> str:
    """The arm that is best on validation.

    Args:
        candidates: by arm, for each seed the metric and the log-loss on validation. Arms of equal metric
            are told apart by log-loss, and then by their order.
        metric: what arms are judged by.
    """
    sign = 1.0 if metrics.HIGHER_IS_BETTER[metric] else -1.0

    def merit(arm: str) -> tuple[float, float]:
        value, log_loss = np.mean(candidates[arm], axis=0)
        return round(sign * float(value), 9), -float(log_loss)

    return max(candidates, key=merit)  # of equals the first


# ------------------------------------------------------------------------------------- verdict


@dataclass(frozen=True)
class Verdict:
    """Whether the best pretrained arm beats the reference.

    Attributes:
        fine_tuning_helps: true or false where the interval leaves 0 out, else "undecided".
        arm: the pretrained arm that is best on validation; None when there is none.
        reference: what it is compared with.
        difference: how much better the arm is than the reference; positive is better whatever the metric.
        ci_low: lower end of its interval.
        ci_high: upper end of its interval.
        confidence: of the interval.
        seeds: how many; with 1 the interval is over test items only.
        items: test items.
        convergence_speedup: the reference's epochs to its own best over the arm's epochs to the same value.
        text: all of it in one sentence.
    """

    fine_tuning_helps: bool | Literal["undecided"]
    arm: str | None
    reference: str
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    confidence: float
    seeds: int
    items: int
    convergence_speedup: float | None
    text: str


@dataclass(frozen=True)
class Setting:
    """What the verdict's sentence says of the experiment.

    Attributes:
        experiment: its name.
        train_labels: labelled samples each arm was trained on.
        epochs: the most each arm was allowed.
        metric: what arms are judged by.
        confidence: of the interval.
    """

    experiment: str
    train_labels: int
    epochs: int
    metric: str
    confidence: float


def verdict(
    crossed: Crossed, arm: str | None, reference: str, reached: Mapping[str, Convergence], setting: Setting
) -> Verdict:
    """Judge the arm against the reference on the test split.

    Args:
        crossed: the test split.
        arm: the pretrained arm to judge, chosen on validation; None when the experiment has none.
        reference: the arm to compare with.
        reached: when each arm reaches the target.
        setting: what the sentence says of the experiment.
    """
    seeds, items = len(crossed.seeds), len(crossed.ids)
    if arm is None:
        text = (
            f"{_place(setting)} no pretrained arm stands beside `{reference}`: there is nothing to compare."
        )
        return Verdict(
            "undecided", None, reference, None, None, None, setting.confidence, seeds, items, None, text
        )
    found = improvement(crossed, arm, reference, setting.metric, setting.confidence)
    helps: bool | Literal["undecided"] = "undecided"
    if found.low > 0 or found.high < 0:
        helps = found.low > 0
    own, others = reached[arm].epochs, reached[reference].epochs
    speedup = others / own if own is not None and others is not None else None
    return Verdict(
        helps, arm, reference, found.value, found.low, found.high, setting.confidence, seeds, items, speedup,
        _sentence(arm, reference, found, own, setting),
    )  # fmt: skip


def _place(setting: Setting) -> str:
    return f"On {setting.experiment} with {setting.train_labels} training labels"


def _sentence(arm: str, reference: str, found: Interval, epochs: int | None, setting: Setting) -> str:
    """The verdict in words, with figures and their n."""
    value, low, high = found.value, found.low, found.high
    goes_on = f"; `{arm}`"
    size = metrics.amount(setting.metric, abs(value))
    if low > 0:
        said, goes_on = f"`{arm}` beats `{reference}` by {size}", " and"
    elif high < 0:
        said, goes_on = f"`{arm}` is worse than `{reference}` by {size}", "; it"
        low, high = -high, -low
    elif value == 0:
        said = f"`{arm}` and `{reference}` cannot be told apart: they score the same"
    else:
        side = "ahead" if value > 0 else "behind"
        said = f"`{arm}` and `{reference}` cannot be told apart: `{arm}` is {side} by {size}"
        low, high = (low, high) if value > 0 else (-high, -low)
    figures = _figures(low, high, found, setting)
    return f"{_place(setting)} {said} ({figures}){goes_on} {_pace(reference, epochs, setting)}."


def _figures(low: float, high: float, found: Interval, setting: Setting) -> str:
    ends = f"{metrics.figure(setting.metric, low)} to {metrics.figure(setting.metric, high)}"
    chance = "1 seed, so chance between seeds is left out" if found.seeds == 1 else f"{found.seeds} seeds"
    return f"{100 * setting.confidence:g} % interval {ends}; {chance}, {found.items} test items"


def _pace(reference: str, epochs: int | None, setting: Setting) -> str:
    goal = f"{reference}'s best validation {metrics.SHOWN[setting.metric]}"
    if epochs is None:
        return f"does not reach {goal} in {setting.epochs} epochs"
    return f"reaches {goal} in {epochs} of {setting.epochs} epochs"
