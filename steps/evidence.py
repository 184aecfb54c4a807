"""Did the pretrained start help? Estimates with intervals, and the verdict. No torch, no pandas.

Which arm is judged is chosen on validation; the test split only judges it. So the interval needs no
correction for having picked the best of several. Where all arms or all pairs are told, their p-values are
corrected for that. How intervals are made is told in `intervals`, what is called a difference in `pairwise`.

A run is one training of an arm: a resample and a seed. Resample 1 is the experiment's own training subset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from steps import intervals, metrics, pairwise
from steps.errors import HeadstartError, TrainingError
from steps.intervals import Interval
from steps.pairwise import Call, McNemar

# ------------------------------------------------------------------------------------- the test split


@dataclass(frozen=True)
class Answers:
    """What one run said of the test split.

    Of a classifier that are probabilities, from which every metric follows. Of any other task it is each
    item's share in the metrics, `of_shares`.

    Attributes:
        arm: name of the arm.
        seed: its seed.
        ids: of the test items, unique.
        truth: true class of each item, shape (items,); empty where there are no classes.
        probabilities: shape (items, classes); empty where there are no classes.
        resample: which training subset; 1 is the experiment's own.
        shares: by metric, each item's share in it, shape (items,); the mean is the metric. Of a classifier
            there are none.
    """

    arm: str
    seed: int
    ids: Sequence[str]
    truth: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    resample: int = 1
    shares: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @classmethod
    def of_shares(
        cls,
        arm: str,
        seed: int,
        ids: Sequence[str],
        shares: Mapping[str, NDArray[np.float64]],
        resample: int = 1,
    ) -> Self:
        """What a run of a task without classes said."""
        return cls(arm, seed, ids, np.zeros(0, np.int64), np.zeros((0, 0)), resample, shares)

    @property
    def run(self) -> tuple[int, int]:
        """Resample and seed: runs are in this order."""
        return self.resample, self.seed

    @property
    def name(self) -> str:
        """For messages."""
        subset = f", resample {self.resample}" if self.resample != 1 else ""
        return f"arm {self.arm!r}{subset}, seed {self.seed}"

    def scores(self, metric: str) -> NDArray[np.float64]:
        """Each item's share in the metric, shape (items,)."""
        if self.shares:
            return self.shares[metric]
        return metrics.per_item(metric, self.truth, self.probabilities)

    def value(self, metric: str) -> float:
        """The metric."""
        if self.shares:
            return float(self.shares[metric].mean())
        return metrics.score(metric, self.truth, self.probabilities)

    def broken(self) -> int:
        """How many items have a value that is not finite."""
        table = np.stack(list(self.shares.values()), axis=1) if self.shares else self.probabilities
        return int((~np.isfinite(table)).any(axis=1).sum())

    def sorted(self) -> Self:
        """The same in the order of ids."""
        order = np.argsort(np.asarray(self.ids, dtype=object))
        ids = [self.ids[at] for at in order]
        if self.shares:
            return replace(self, ids=ids, shares={name: one[order] for name, one in self.shares.items()})
        return replace(self, ids=ids, truth=self.truth[order], probabilities=self.probabilities[order])


@dataclass(frozen=True)
class Crossed:
    """Every run on the same items, in the order of ids.

    Attributes:
        ids: shape (items,).
        truth: shape (items,); empty where there are no classes.
        seeds: one for each run, the same for every arm, in the order of (resample, seed).
        resamples: one for each run: its training subset.
        probabilities: by arm, shape (runs, items, classes); of a task without classes there are none.
        shares: by arm and metric, shape (runs, items); of a classifier there are none.
        clusters: group of each item, shape (items,), where they come in groups; None: each stands for itself.
    """

    ids: tuple[str, ...]
    truth: NDArray[np.int64]
    seeds: tuple[int, ...]
    resamples: tuple[int, ...]
    probabilities: dict[str, NDArray[np.float64]]
    shares: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)
    clusters: NDArray[np.int64] | None = None

    @property
    def arms(self) -> list[str]:
        """All arms, the first one first."""
        return list(self.probabilities or self.shares)

    @property
    def groups(self) -> int | None:
        """How many groups the items come in; None where each stands for itself."""
        return None if self.clusters is None else len(np.unique(self.clusters))

    def scores(self, arm: str, metric: str) -> NDArray[np.float64]:
        """The arm's score of each run on each item, shape (runs, items)."""
        if self.shares:
            return self.shares[arm][metric]
        return np.stack([metrics.per_item(metric, self.truth, one) for one in self.probabilities[arm]])

    def draws(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores, or differences of them, of the independent draws among the items: see `by_cluster`.

        Args:
            scores: shape (runs, items).
        """
        return intervals.by_cluster(scores, self.clusters)

    def values(self, arm: str, metric: str) -> list[float]:
        """The metric of each run."""
        if self.shares:
            return [float(one.mean()) for one in self.shares[arm][metric]]
        return [metrics.score(metric, self.truth, one) for one in self.probabilities[arm]]


def cross(tested: Sequence[Answers], groups: Mapping[str, str] | None = None) -> Crossed:
    """Line up what all runs said of the same test items.

    Args:
        tested: every run of every arm.
        groups: the user's group of each item, by id; items that are not named stand for themselves.

    Raises:
        TrainingError: predictions are not finite; names arm and seed.
        HeadstartError: arms differ in runs, items or true classes, or there are fewer than two items, or
            fewer than two groups of them.
    """
    first = tested[0]
    order = sorted(one.run for one in tested if one.arm == first.arm)
    lined: dict[str, list[Answers]] = {}
    for arm in dict.fromkeys(one.arm for one in tested):
        runs = sorted((one for one in tested if one.arm == arm), key=lambda one: one.run)
        if [one.run for one in runs] != order:
            raise HeadstartError(
                f"arm {arm!r} was tested with {_runs([one.run for one in runs])}, arm {first.arm!r} with "
                f"{_runs(order)}; a paired comparison needs the same: run train and evaluate again"
            )
        lined[arm] = [_in_order(one, first) for one in runs]
    _check_runs(first.arm, order)
    if len(first.ids) < 2:
        raise HeadstartError(
            f"the test split has {len(first.ids)} item, an interval needs two or more; raise `split.test`"
        )
    reference = next(iter(lined.values()))[0]
    ids = tuple(reference.ids)
    resamples, seeds = (tuple(run[part] for run in order) for part in (0, 1))
    said = {arm: np.stack([one.probabilities for one in runs]) for arm, runs in lined.items()}
    shares = {
        arm: {metric: np.stack([one.shares[metric] for one in runs]) for metric in runs[0].shares}
        for arm, runs in lined.items()
    }
    of_classes = not first.shares
    return Crossed(
        ids,
        reference.truth,
        seeds,
        resamples,
        said if of_classes else {},
        {} if of_classes else shares,
        _clusters(ids, groups or {}),
    )


def _clusters(ids: Sequence[str], groups: Mapping[str, str]) -> NDArray[np.int64] | None:
    """The number of each item's group; None where no item is in one."""
    if not any(name in groups for name in ids):
        return None
    # An item without a group is one of its own; a group may be called as an item is.
    names = [("group", groups[name]) if name in groups else ("item", name) for name in ids]
    numbers = {name: at for at, name in enumerate(dict.fromkeys(names))}
    if len(numbers) < 2:
        raise HeadstartError(
            "all items of the test split are of one group, an interval needs two or more: raise "
            "`split.test`, or leave the groups out of the data"
        )
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _runs(runs: Sequence[tuple[int, int]]) -> str:
    if all(resample == 1 for resample, _ in runs):
        return f"seeds {[seed for _, seed in runs]}"
    return f"resamples and seeds {[f'{resample}-{seed}' for resample, seed in runs]}"


def _check_runs(arm: str, runs: Sequence[tuple[int, int]]) -> None:
    """Every run once, and every resample with as many seeds: their means are weighed alike."""
    counts = Counter(resample for resample, _ in runs)
    if len(set(runs)) < len(runs) or len(set(counts.values())) > 1:
        raise HeadstartError(
            f"arm {arm!r} was tested with {_runs(runs)}: every resample needs the same seeds, each once; run "
            "train and evaluate again"
        )


def _in_order(one: Answers, first: Answers) -> Answers:
    """The answers in the order of ids, once they are sound and of the same items as the first."""
    broken = one.broken()
    if broken:
        raise TrainingError(
            f"{one.name}: {broken} of {len(one.ids)} predictions are not finite; "
            "train it again with a smaller learning rate"
        )
    here, there = (_truths(it) for it in (one, first))
    if len(here) != len(one.ids):
        raise HeadstartError(f"{one.name}: ids repeat in the predictions; run evaluate again")
    odd = sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
    if odd:
        raise HeadstartError(
            f"{one.name} was tested on other items or labels than {first.name}: {len(odd)} differ, "
            f"e.g. {odd[0]!r}; run evaluate again"
        )
    return one.sorted()


def _truths(one: Answers) -> dict[str, int]:
    """The true class of each item by id; without classes all are 0."""
    truth = [0] * len(one.ids) if one.shares else one.truth.tolist()
    return dict(zip(one.ids, truth, strict=True))


def estimate(crossed: Crossed, arm: str, metric: str, confidence: float) -> Interval:
    """The arm's metric, its mean over runs, with an interval over runs and items."""
    bounds = metrics.BOUNDS[metric]
    scores = crossed.draws(crossed.scores(arm, metric))
    return intervals.of_mean(scores, confidence, bounds, crossed.resamples)


def improvement(crossed: Crossed, arm: str, reference: str, metric: str, confidence: float) -> Interval:
    """By how much the arm is better than the reference, paired by run and item; positive is better."""
    return _gain(crossed, metric, crossed.scores(arm, metric), crossed.scores(reference, metric)).interval(
        confidence
    )


def _gain(
    crossed: Crossed, metric: str, first: NDArray[np.float64], second: NDArray[np.float64]
) -> intervals.Spread:
    gains = crossed.draws(metrics.improvement(metric, first, second))
    return intervals.spread_of_difference(gains, metrics.BOUNDS[metric], crossed.resamples)


# ------------------------------------------------------------------------------------- many comparisons


@dataclass(frozen=True)
class Difference:
    """By how much one arm is better than another; positive is better whatever the metric.

    Attributes:
        value: the difference, its mean over runs and items.
        low: lower end of its interval.
        high: upper end.
        p: two-sided; below 1 - confidence where the interval leaves 0 out.
        p_holm: the same, corrected for all comparisons of the table it stands in.
        call: what the interval says; it is not corrected.
    """

    value: float
    low: float
    high: float
    p: float
    p_holm: float
    call: Call


@dataclass(frozen=True)
class Pair:
    """Two arms.

    Attributes:
        first: the arm that is the better one where the difference is positive.
        second: the other.
        difference: over all runs.
        first_run: position of the first arm's run that is in the test of single networks.
        second_run: of the second arm's.
        mcnemar: of these two networks; None where nothing is right or wrong as a whole.
    """

    first: str
    second: str
    difference: Difference
    first_run: int
    second_run: int
    mcnemar: McNemar | None


def improvements(
    crossed: Crossed, reference: str, metric: str, confidence: float, margin: float
) -> dict[str, Difference]:
    """Every other arm against the reference; p-values corrected over these arms.

    Args:
        crossed: the test split.
        reference: the arm to compare with.
        metric: what arms are judged by.
        confidence: of the intervals.
        margin: the largest difference that does not matter, in the metric's unit.
    """
    others = [arm for arm in crossed.arms if arm != reference]
    found = _differences(crossed, [(arm, reference) for arm in others], metric, confidence, margin)
    return dict(zip(others, found, strict=True))


def pairs(
    crossed: Crossed, metric: str, confidence: float, margin: float, chosen: Mapping[str, int] | None = None
) -> list[Pair]:
    """Every arm against every other; p-values corrected over all pairs.

    Args:
        crossed: the test split.
        metric: what arms are judged by.
        confidence: of the intervals.
        margin: the largest difference that does not matter, in the metric's unit.
        chosen: by arm, the position of the run whose network is in McNemar's test; None: the first of each.
    """
    arms = crossed.arms
    names = list(combinations(arms, 2))
    runs = {arm: 0 if chosen is None else chosen[arm] for arm in arms}
    right = {
        arm: metrics.per_item("accuracy", crossed.truth, crossed.probabilities[arm][run]) > 0
        for arm, run in runs.items()
        if crossed.probabilities
    }
    return [
        Pair(a, b, difference, runs[a], runs[b], pairwise.mcnemar(right[a], right[b]) if right else None)
        for (a, b), difference in zip(
            names, _differences(crossed, names, metric, confidence, margin), strict=True
        )
    ]


def _differences(
    crossed: Crossed, names: Sequence[tuple[str, str]], metric: str, confidence: float, margin: float
) -> list[Difference]:
    """The differences of one table, whose p-values are corrected together."""
    scores = {
        arm: crossed.scores(arm, metric) for arm in dict.fromkeys(arm for both in names for arm in both)
    }
    spreads = [_gain(crossed, metric, scores[first], scores[second]) for first, second in names]
    p = {str(at): pairwise.p_of(one.value, one.ends) for at, one in enumerate(spreads)}
    adjusted = pairwise.holm(p)
    found = []
    for spread, name in zip(spreads, p, strict=True):
        one = spread.interval(confidence)
        call = pairwise.call(one, margin)
        found.append(Difference(one.value, one.low, one.high, p[name], adjusted[name], call))
    return found


# ------------------------------------------------------------------------------------- choice


def best(candidates: Mapping[str, Sequence[tuple[float, float]]], metric: str) -> str:
    """The arm that is best on validation.

    Args:
        candidates: by arm, for each seed the metric and the loss on validation. Arms of equal metric are
            told apart by the loss, and then by their order.
        metric: what arms are judged by.
    """
    sign = 1.0 if metrics.HIGHER_IS_BETTER[metric] else -1.0

    def merit(arm: str) -> tuple[float, float]:
        value, loss = np.mean(candidates[arm], axis=0)
        return round(sign * float(value), 9), -float(loss)

    return max(candidates, key=merit)  # of equals the first


# ------------------------------------------------------------------------------------- verdict


@dataclass(frozen=True)
class LabelsSaved:
    """Labels the reference needs beyond the arm's to be as good, as the verdict's sentence tells them.

    Attributes:
        labels: how many; below 0 where the arm needs more.
        low: lower end of the interval; None when unknown.
        high: upper end; None when unknown.
        more_than: at least so many: the reference's largest label budget is not as good as the arm.
    """

    labels: float
    low: float | None
    high: float | None
    more_than: bool


@dataclass(frozen=True)
class Verdict:
    """Whether the best pretrained arm beats the reference.

    Attributes:
        fine_tuning_helps: true where the call is "helps", false where it is "hurts" or "equal", else
            "undecided".
        call: what the interval says, see `pairwise.call`.
        arm: the pretrained arm that is best on validation; None when there is none.
        reference: what it is compared with.
        difference: how much better the arm is than the reference; positive is better whatever the metric.
        ci_low: lower end of its interval.
        ci_high: upper end of its interval.
        confidence: of the interval.
        seeds: how many different ones; with 1 on one training subset the interval is over test items only.
        items: test items.
        p: of the difference, two-sided; one comparison, so nothing is corrected.
        convergence_speedup: the reference's epochs to its own best over the arm's epochs to the same value.
        labels_saved: labels the reference needs beyond the arm's to be as good; None when not measured.
        text: all of it in a sentence or two.
    """

    fine_tuning_helps: bool | Literal["undecided"]
    call: Call
    arm: str | None
    reference: str
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    confidence: float
    seeds: int
    items: int
    p: float | None
    convergence_speedup: float | None
    labels_saved: float | None
    text: str


@dataclass(frozen=True)
class Setting:
    """What the verdict needs to know of the experiment.

    Attributes:
        experiment: its name.
        train_labels: labelled samples each arm was trained on.
        epochs: the most each arm was allowed.
        metric: what arms are judged by.
        confidence: of the interval.
        margin: the largest difference that does not matter, in the metric's unit; 0 calls nothing equal.
        counted: what the samples that are trained on are called, e.g. "labels".
        own_labels: the task makes its labels itself: it is pretraining.
    """

    experiment: str
    train_labels: int
    epochs: int
    metric: str
    confidence: float
    margin: float = 0.01
    counted: str = "labels"
    own_labels: bool = False


def verdict(
    crossed: Crossed,
    arm: str | None,
    reference: str,
    reached: Mapping[str, int | None],
    setting: Setting,
    saved: LabelsSaved | None = None,
    probe: Interval | None = None,
) -> Verdict:
    """Judge the arm against the reference on the test split.

    Args:
        crossed: the test split.
        arm: the pretrained arm to judge, chosen on validation; None when the experiment has none.
        reference: the arm to compare with.
        reached: epochs until each arm reaches the reference's best validation value; None: never.
        setting: what the sentence says of the experiment.
        saved: labels the arm saves; None when not measured.
        probe: by how much a linear probe is better on pretrained features than on those of the same network
            with random weights; None when not measured.
    """
    seeds, items = len(set(crossed.seeds)), len(crossed.ids)
    about_probe = _probe(probe, setting) if probe is not None else ""
    if arm is None:
        text = _alone(crossed, reference, setting)
        return Verdict(
            "undecided", "undecided", None, reference, None, None, None, setting.confidence, seeds, items,
            None, None, None, text + about_probe,
        )  # fmt: skip
    metric = setting.metric
    spread = _gain(crossed, metric, crossed.scores(arm, metric), crossed.scores(reference, metric))
    found = spread.interval(setting.confidence)
    called = pairwise.call(found, setting.margin)
    own, others = reached[arm], reached[reference]
    speedup = others / own if own is not None and others is not None else None
    said = _said(arm, reference, found, called, setting)
    figures = _figures(found, crossed, setting, mirrored=called == "hurts" or _behind(called, found))
    goes_on = _joined(arm, called, [_pace(reference, own, setting), *_labels(saved, setting.counted)])
    text = f"{_place(setting)} {said} ({figures}){goes_on}.{about_probe}"
    return Verdict(
        _HELPS[called], called, arm, reference, found.value, found.low, found.high, setting.confidence, seeds,
        items, pairwise.p_of(spread.value, spread.ends), speedup, saved.labels if saved else None, text,
    )  # fmt: skip


_HELPS: dict[Call, bool | Literal["undecided"]] = {
    "helps": True,
    "hurts": False,
    "equal": False,
    "undecided": "undecided",
}


def _place(setting: Setting) -> str:
    count = f"{setting.train_labels} training {setting.counted.removeprefix('labelled ')}"
    return f"On {setting.experiment} with {count}"


def _alone(crossed: Crossed, reference: str, setting: Setting) -> str:
    """What can be said where no other start stands beside the reference."""
    if not setting.own_labels:
        return (
            f"{_place(setting)} no pretrained arm stands beside `{reference}`: there is nothing to compare."
        )
    found = estimate(crossed, reference, setting.metric, setting.confidence)
    value = metrics.figure(setting.metric, found.value) + " %" * metrics.METRICS[setting.metric].percent
    figures = _figures(found, crossed, setting, mirrored=False)
    return (
        f"{_place(setting)} `{reference}`, pretrained from random weights, reaches a test "
        f"{metrics.SHOWN[setting.metric]} of {value} ({figures}); no arm starts from other weights, so there "
        "is nothing to compare."
    )


def _said(arm: str, reference: str, found: Interval, called: Call, setting: Setting) -> str:
    """The call in words."""
    size = metrics.amount(setting.metric, abs(found.value))
    if called == "helps":
        return f"`{arm}` beats `{reference}` by {size}"
    if called == "hurts":
        return f"`{arm}` is worse than `{reference}` by {size}"
    if called == "equal":
        within = _within(setting)
        return f"`{arm}` and `{reference}` are practically equal: the difference is within {within}"
    apart = f"`{arm}` and `{reference}` cannot be told apart"
    if found.value == 0:
        return f"{apart}: they score the same"
    return f"{apart}: `{arm}` is {'ahead' if found.value > 0 else 'behind'} by {size}"


def _behind(called: Call, found: Interval) -> bool:
    return called == "undecided" and found.value < 0


def _within(setting: Setting) -> str:
    shown = metrics.SHOWN[setting.metric]
    if not metrics.METRICS[setting.metric].percent:
        return f"{setting.margin:g} of {shown}"
    points = f"{100 * setting.margin:g}"
    return f"{points} {'point' if points == '1' else 'points'} of {shown}"


def _figures(found: Interval, crossed: Crossed, setting: Setting, mirrored: bool) -> str:
    """The interval with its n; mirrored where the sentence tells by how much the arm is behind."""
    low, high = (-found.high, -found.low) if mirrored else (found.low, found.high)
    ends = f"{metrics.figure(setting.metric, low)} to {metrics.figure(setting.metric, high)}"
    seeds, subsets = len(set(crossed.seeds)), len(set(crossed.resamples))
    chance = f"{seeds} seed{'s' * (seeds != 1)}"
    if subsets > 1:
        chance += f" on each of {subsets} training subsets"
    elif seeds == 1:
        chance += ", so chance between seeds is left out"
    items = f"{len(crossed.ids)} test items"
    if crossed.groups is not None:
        items += f" in {crossed.groups} groups"
    return f"{100 * setting.confidence:g} % interval {ends}; {chance}, {items}"


def _joined(arm: str, called: Call, told: list[str]) -> str:
    """The rest of the sentence, after the difference."""
    if called == "helps":
        return f", {told[0]}, and {told[1]}" if len(told) > 1 else f" and {told[0]}"
    subject = "it" if called == "hurts" else f"`{arm}`"
    return f"; {subject} {' and '.join(told)}"


def _pace(reference: str, epochs: int | None, setting: Setting) -> str:
    goal = f"{reference}'s best validation {metrics.SHOWN[setting.metric]}"
    if epochs is None:
        return f"does not reach {goal} in {setting.epochs} epochs"
    return f"reaches {goal} in {epochs} of {setting.epochs} epochs"


def _labels(saved: LabelsSaved | None, counted: str) -> list[str]:
    """What the labels saved add to the sentence: nothing when they were not measured."""
    if saved is None:
        return []
    count, low, high = saved.labels, saved.low, saved.high
    if saved.more_than and count > 0 and (low is None or low > 0):
        return [f"saves more than {count:.0f} {counted}"]
    if (low is not None and low > 0) or (low is None and count > 0):
        ends = f" ({low:.0f} to {high:.0f})" if low is not None and high is not None else ""
        return [f"saves about {count:.0f} {counted}{ends}"]
    if high is not None and high < 0:
        return [f"needs about {-count:.0f} {counted} more"]
    return [f"is not shown to save {counted}"]


def _probe(probe: Interval, setting: Setting) -> str:
    """What a linear probe says of the pretrained features, a sentence of its own."""
    metric = setting.metric
    low, high = (-probe.high, -probe.low) if probe.value < 0 else (probe.low, probe.high)
    size = metrics.amount(metric, abs(probe.value))
    ends = f"({metrics.figure(metric, low)} to {metrics.figure(metric, high)})"
    opening = " The linear probe on pretrained features"
    if probe.low > 0:
        return f"{opening} is better than on random features by {size} {ends}."
    if probe.high < 0:
        return f"{opening} is worse than on random features by {size} {ends}."
    side = "behind" if probe.value < 0 else "ahead"
    return f"{opening} cannot be told apart from that on random features: it is {side} by {size} {ends}."
