"""Whether a new version may take the champion's place: a pure decision with its reason and its evidence.

Candidate and champion are compared on the same frozen test items, see `steps/frozen.py`: on the candidate's
own, and where the data changed since the champion was trained on the champion's as well. On each of them all
of this must hold, and every check is told in the evidence, passed or not:

* the test set was not used too often. Whoever looks at one test set again and again finds a model that is
  good on it by chance (Dwork et al., The Reusable Holdout, 2015). The Ladder (Blum and Hardt, 2015) keeps
  that small by two rules, and both are kept here: a gain counts as one only where it exceeds the noise of
  the paired comparison, so small steps that are chance never add up to a record; and looks are counted. How
  many a set bears, `Rule.looks`, is a budget; beyond it the gate refuses, whatever the figures;
* not worse as a whole, in the sense of a non-inferiority trial, by the paired interval of candidate minus
  champion. It must not lie wholly below zero: then the candidate is shown to be worse, however little, and
  small losses cannot add up from version to version. And its lower end must be above minus the margin: a
  loss larger than the margin is ruled out. A wide interval over few items is no proof of being as good, so
  then the champion stays;
* no class or slice is significantly worse. Every slice has a one-sided test of its paired differences, and
  all of them together, over all test sets, are corrected by Holm's method (1979): of a candidate that is as
  good everywhere, one in 20 is refused by mistake at most;
* calibration: the expected calibration error grew by no more than the guard. It is measured with noise, so
  a growth beyond the guard counts where a paired bootstrap tells it from none;
* latency: a prediction takes no longer than so many times the champion's. It is measured last, by the
  caller, and only where all else would promote: see `with_latency`.

One network is compared with another, so intervals are over test items only; where these come in groups,
over the groups.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from steps import bootstrap, calibration, intervals, metrics, pairwise, slices
from steps.operation import Gate

MIN_ITEMS = 30
# Of the bootstrap of two calibration errors.
DRAWS, SEED = 1000, 20_170
# How many of the slices that were looked at stand in the evidence, those nearest to being worse first.
MOST_SLICES = 20
# A share of test items that may be left out because the other model was trained on them.
MOST_EXCLUDED = 0.5
WHOLE, SLICES, CALIBRATION, LATENCY, LOOKS = "whole", "slices", "calibration", "latency", "looks"


@dataclass(frozen=True)
class Rule:
    """What a candidate must show.

    Attributes:
        metric: a name in `metrics.METRICS`.
        confidence: of the interval, two-sided; slices and calibration are tested at what is left of 1.
        margin: the largest loss that may stay possible; None takes what the metric tolerates.
        min_items: fewer test items than this decide nothing, and make no slice.
        slices: whether classes and slices are looked at.
        slice_metric: what they are told in; see `slices.metric_of`.
        calibration: by how much the expected calibration error may grow; None does not look.
        latency: how many times the champion's time a prediction may take; None does not look.
        looks: how many decisions one test set may serve.
    """

    metric: str = "accuracy"
    confidence: float = 0.95
    margin: float | None = None
    min_items: int = MIN_ITEMS
    slices: bool = True
    slice_metric: str | None = None
    calibration: float | None = 0.05
    latency: float | None = 2.0
    looks: int = 100

    @classmethod
    def of(cls, settings: Gate, metric: str, confidence: float, task_metrics: Sequence[str]) -> Self:
        """The rule of an experiment.

        Args:
            settings: of the gate.
            metric: that the experiment is judged by.
            confidence: of its intervals.
            task_metrics: of the task, for slices where the metric is no mean over items.
        """
        return cls(
            metric,
            confidence,
            settings.margin,
            settings.min_items,
            settings.slices,
            slices.metric_of(metric, task_metrics),
            settings.calibration,
            settings.latency,
            settings.looks,
        )

    @property
    def told_in(self) -> str:
        """What slices are told in."""
        if self.slice_metric is not None or self.metric not in metrics.OF_CLASSES:
            return self.slice_metric or self.metric
        return slices.metric_of(self.metric, metrics.OF_CLASSES)


@dataclass(frozen=True)
class Tested:
    """What one network said of a test set: probabilities of classes, or what `of_shares` takes.

    Attributes:
        ids: of the test items, unique.
        labels: the true label of each item; without classes a digest of its truth.
        classes: label of each column of `probabilities`; empty where there are no classes.
        probabilities: shape (items, classes).
        shares: by metric, each item's share in it, shape (items,); of a classifier there are none.
        groups: the user's group of each item, None where it has none; empty where no item has one.
    """

    ids: Sequence[str]
    labels: Sequence[str]
    classes: Sequence[str]
    probabilities: NDArray[np.floating]
    shares: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    groups: Sequence[str | None] = ()

    @classmethod
    def of_shares(
        cls,
        ids: Sequence[str],
        truths: Sequence[str | None],
        shares: Mapping[str, NDArray[np.float64]],
        groups: Sequence[str | None] = (),
    ) -> Self:
        """What a network of a task without classes said.

        Args:
            ids: of the test items, unique.
            truths: what would have been right of each item, as text, e.g. JSON; None where a task makes it
                from the item itself.
            shares: by metric, each item's share in it, shape (items,); their mean is the metric.
            groups: the user's group of each item; empty where no item has one.
        """
        digests = [
            "" if truth is None else hashlib.sha256(truth.encode("utf-8", "surrogatepass")).hexdigest()
            for truth in truths
        ]
        return cls(ids, digests, (), np.zeros((len(ids), 0)), shares, groups)

    @property
    def is_finite(self) -> bool:
        """Whether all of it is finite."""
        return all(np.isfinite(one).all() for one in (self.probabilities, *self.shares.values()))


@dataclass(frozen=True)
class Trial:
    """Candidate and champion on one frozen test set.

    Attributes:
        candidate: what the new version said.
        champion: what the present champion said of the same items.
        sha256: digest of the test set.
        name: which set it is, in a reason that must tell two of them apart.
        facts: by what items may be told apart, one value an item in the order of the candidate's ids:
            numbers or texts. The classes need not be among them.
        looks: decisions that the set has served before this one.
        excluded: items left out because one of the two was trained on them.
    """

    candidate: Tested
    champion: Tested
    sha256: str = ""
    name: str = "the test set"
    facts: Mapping[str, NDArray[np.generic] | Sequence[object]] = field(default_factory=dict)
    looks: int = 0
    excluded: int = 0


@dataclass(frozen=True)
class Decision:
    """Whether to promote, and why in one sentence.

    Attributes:
        promote: whether the candidate becomes champion.
        reason: why, for people.
        evidence: what every check found, as JSON knows it; `tests` lists the digests of the test sets that
            candidate and champion were compared on.
    """

    promote: bool
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Found:
    """What one check found; `text` says in words what counts against the candidate, or for it."""

    check: str
    passed: bool
    text: str
    facts: dict[str, Any]


# ----------------------------------------------------------------------------------------------- the decision


def first() -> Decision:
    """The decision where there is no champion to compare with."""
    return Decision(True, "first version: there is no champion to compare with", {"tests": []})


def refused(reason: str, by_hand: str | None = None, **facts: Any) -> Decision:  # noqa: ANN401 - any JSON value
    """The champion stays, for a reason that needs no figures; so no look was taken.

    Args:
        reason: why.
        by_hand: the command that takes the candidate all the same, where that may be wise.
        facts: for the evidence.
    """
    stays = "the champion stays" + (f" until `{by_hand}` moves it" if by_hand else "")
    return Decision(False, f"{reason}; {stays}", {"tests": [], **facts})


def worn_out(looks: Mapping[str, int], rule: Rule, by_hand: str | None = None) -> Decision | None:
    """The refusal where a test set was used too often; to be asked before anything is predicted.

    Args:
        looks: by the digest of each test set, the decisions that it has served.
        rule: with the budget.
        by_hand: the command that takes the candidate all the same.
    """
    worn = {name: count for name, count in looks.items() if count >= rule.looks}
    if not worn:
        return None
    name, count = max(worn.items(), key=lambda one: one[1])
    return refused(
        f"the frozen test set {name[:8]} is worn out: it has served {count} decisions, and `gate.looks` "
        f"allows {rule.looks}; collect new test items and move the champion by hand once, or raise "
        "`gate.looks` knowingly",
        by_hand,
        checks=[_told(_looks(name, count, rule))],
    )


def decide(trials: Sequence[Trial], rule: Rule) -> Decision:
    """Decide whether the candidate becomes champion, but for its latency.

    Args:
        trials: candidate and champion on each frozen test set, the candidate's own first; at least one.
        rule: what must be shown.
    """
    assert trials, "a decision needs a test set"
    worn = worn_out({trial.sha256: trial.looks for trial in trials}, rule)
    if worn is not None:
        return worn
    for trial in trials:
        obstacle = _not_comparable(trial, rule)
        if obstacle is not None:
            return refused(_named(trial, trials, obstacle))
    found = [
        (trial, one)
        for trial in trials
        for one in (_looks(trial.sha256, trial.looks, rule), _whole(trial, rule))
    ]
    if rule.slices:
        found += _slices(trials, rule)
    if rule.calibration is not None:
        found += [(trial, one) for trial in trials if (one := _calibrated(trial, rule)) is not None]
    return _judged(trials, found, rule)


def with_latency(decision: Decision, seconds: tuple[float, float], rule: Rule) -> Decision:
    """A decision to promote once the latency is known as well.

    Args:
        decision: that would promote.
        seconds: of one prediction, medians: the candidate's and the champion's.
        rule: with the guard.
    """
    assert decision.promote, "latency is looked at last"
    assert rule.latency is not None, "there is no guard"
    mine, theirs = seconds
    ratio = mine / theirs
    text = f"a prediction takes {ratio:.1f} times as long ({1e3 * mine:.1f} ms against {1e3 * theirs:.1f} ms)"
    passed = ratio <= rule.latency
    one = _Found(
        LATENCY, passed, text,
        {"candidate_seconds": mine, "champion_seconds": theirs, "ratio": ratio, "guard": rule.latency},
    )  # fmt: skip
    evidence = {**decision.evidence, "checks": [*decision.evidence.get("checks", []), _told(one)]}
    if passed:
        return replace(decision, evidence=evidence)
    reason = f"too slow: {text}, and `gate.latency` allows {rule.latency:g}; the champion stays"
    return Decision(False, reason, evidence)


def _judged(trials: Sequence[Trial], found: Sequence[tuple[Trial, _Found]], rule: Rule) -> Decision:
    """The decision that follows from what all checks found; the first that failed gives the reason."""
    evidence = {
        "tests": [trial.sha256 for trial in trials],
        "excluded": {trial.sha256: trial.excluded for trial in trials},
        "rule": asdict(rule),
        "checks": [_told(one, trial) for trial, one in found],
    }
    failed = next(((trial, one) for trial, one in found if not one.passed), None)
    if failed is not None:
        trial, one = failed
        return Decision(False, _named(trial, trials, one.text), evidence)
    whole = [(trial, one) for trial, one in found if one.check == WHOLE]
    if len(whole) == 1:
        return Decision(True, whole[0][1].text, evidence)
    return Decision(True, "; ".join(f"on {trial.name}, {one.text}" for trial, one in whole), evidence)


def _named(trial: Trial, trials: Sequence[Trial], text: str) -> str:
    """The text with the test set that it is of, where there are several."""
    return text if len(trials) == 1 else f"on {trial.name}, {text}"


def _told(one: _Found, trial: Trial | None = None) -> dict[str, Any]:
    """What a check found, as the evidence has it."""
    about = {} if trial is None else {"test": trial.sha256}
    return {**about, "check": one.check, "passed": one.passed, **one.facts}


# ------------------------------------------------------------------------------------------------- the checks


def _looks(name: str, looks: int, rule: Rule) -> _Found:
    facts = {"test": name, "looks": looks, "budget": rule.looks}
    return _Found(LOOKS, looks < rule.looks, f"{looks} of {rule.looks} looks", facts)


def _whole(trial: Trial, rule: Rule) -> _Found:
    """The metric over all test items."""
    candidate, champion = (_scores(one, rule.metric) for one in (trial.candidate, trial.champion))
    left_out = f", {trial.excluded} left out that a model was trained on" if trial.excluded else ""
    if np.array_equal(candidate, champion):
        text = f"not worse: scores all {len(candidate)} test items as the champion does{left_out}"
        return _Found(WHOLE, True, text, {"value": 0.0, "items": len(candidate), "equal": True})
    gains = metrics.improvement(rule.metric, candidate, champion)
    draws = intervals.by_cluster(gains[None, :], _clusters(trial.candidate))
    found = intervals.of_difference(draws, rule.confidence, metrics.BOUNDS[rule.metric])
    margin = margin_of(rule, float(champion.mean()))
    facts = {
        "metric": rule.metric,
        "candidate": float(candidate.mean()),
        "champion": float(champion.mean()),
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "margin": margin,
        "items": len(gains),
        "draws": found.items,
    }
    figures = _figures(found, rule, len(gains), left_out)
    if found.high < 0:
        return _Found(WHOLE, False, f"worse than the champion: {figures}", facts)
    if found.low <= -margin:
        lost = metrics.amount(rule.metric, margin)
        text = f"not shown to be as good: {figures} leaves a loss of {lost} possible; test on more items"
        return _Found(WHOLE, False, text, facts)
    return _Found(
        WHOLE, True, f"{'better' if found.low > 0 else 'not worse'} than the champion: {figures}", facts
    )


def margin_of(rule: Rule, champion: float) -> float:
    """The largest loss that may stay possible, given what the champion reaches."""
    if rule.margin is not None:
        return rule.margin
    about = metrics.METRICS[rule.metric]
    return about.tolerated * (champion if about.relative else 1.0)


def _figures(found: intervals.Interval, rule: Rule, count: int, left_out: str) -> str:
    low, high = (metrics.figure(rule.metric, end) for end in (found.low, found.high))
    side = "ahead by" if found.value >= 0 else "behind by"
    items = f"{count} test items" + (f" in {found.items} groups" if found.items < count else "")
    return (
        f"{side} {metrics.amount(rule.metric, abs(found.value))} "
        f"({100 * rule.confidence:g} % interval {low} to {high}; {items}{left_out})"
    )


@dataclass(frozen=True)
class _Slice:
    trial: Trial
    name: str
    value: str
    items: int
    gain: float
    p: float


def _slices(trials: Sequence[Trial], rule: Rule) -> list[tuple[Trial, _Found]]:
    """Every class and slice of every test set, corrected together."""
    cut = [one for trial in trials for one in _cut(trial, rule)]
    adjusted = list(pairwise.holm({str(at): one.p for at, one in enumerate(cut)}).values())
    miss = 1 - rule.confidence
    found = []
    for trial in trials:
        mine = sorted(
            ((p, one) for p, one in zip(adjusted, cut, strict=True) if one.trial is trial),
            key=lambda pair: (pair[0], pair[1].p, pair[1].gain),
        )
        told = [
            {"slice": one.name, "value": one.value, "items": one.items, "gain": one.gain, "p": one.p,
             "p_holm": p}
            for p, one in mine[:MOST_SLICES]
        ]  # fmt: skip
        worse = [(p, one) for p, one in mine if p <= miss]
        facts = {"metric": rule.told_in, "looked_at": len(mine), "worse": len(worse), "slices": told}
        text = f"{len(mine)} slices, none worse"
        if worse:
            p, one = worse[0]
            more = f" (and {len(worse) - 1} more)" if len(worse) > 1 else ""
            text = (
                f"worse on a part of the items: {one.name} {one.value!r}{more} is behind by "
                f"{metrics.amount(rule.told_in, -one.gain)} ({one.items} items, p {p:.2g} corrected for "
                f"{len(cut)} slices); the champion stays"
            )
        found.append((trial, _Found(SLICES, not worse, text, facts)))
    return found


def _cut(trial: Trial, rule: Rule) -> list[_Slice]:
    """The slices of one test set that have items enough, with the test of each."""
    metric, clusters = rule.told_in, _clusters(trial.candidate)
    gains = metrics.improvement(metric, _scores(trial.candidate, metric), _scores(trial.champion, metric))
    order = _order(trial.candidate)
    facts: dict[str, NDArray[np.generic]] = {}
    if trial.candidate.classes:
        facts["class"] = np.asarray(trial.candidate.labels, dtype=object)[order]
    facts |= {name: np.asarray(values)[order] for name, values in trial.facts.items()}
    found = []
    for name, value, inside in _parts(facts):
        if rule.min_items <= inside.sum() < len(gains):
            own = None if clusters is None else clusters[inside]
            if own is not None and len(np.unique(own)) == 1:
                continue  # one group says nothing of others
            p = _p_worse(intervals.by_cluster(gains[None, inside], own), metric)
            found.append(_Slice(trial, name, value, int(inside.sum()), float(gains[inside].mean()), p))
    return found


def _parts(facts: Mapping[str, NDArray[np.generic]]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Each fact with each of its values and the items that have it: thirds of numbers, else equal texts."""
    for name, values in facts.items():
        if np.issubdtype(values.dtype, np.number):
            names = slices.THIRDS.get(re.split(r"\W", name)[0], slices.OTHER_THIRDS)
            told = slices.terciles(values.astype(np.float64), names)
        else:
            told = slices.texts(values)
        for value in sorted(set(told.tolist()) - {""}):
            yield name, value, told == value


def _p_worse(gains: NDArray[np.float64], metric: str) -> float:
    """P-value of Student's one-sided paired test that the mean gain is not below 0.

    Args:
        gains: of the independent draws, shape (1, draws).
        metric: what they are in; where it is bounded, made-up items stand at both ends, as in `intervals`.
    """
    spread = intervals.spread_of_difference(gains, slices.bounds_of(metric))
    if spread.by_items == 0:
        return 0.0 if spread.centre < 0 else 1.0
    return float(stdtr(spread.padded - 1, spread.centre / np.sqrt(spread.by_items)))


def _calibrated(trial: Trial, rule: Rule) -> _Found | None:
    """The growth of the expected calibration error; None of a task without classes."""
    if not trial.candidate.classes:
        return None
    assert rule.calibration is not None
    sides = [_aligned(one) for one in (trial.candidate, trial.champion)]
    mine, theirs = (calibration.ece(truth, said) for truth, said in sides)
    low = _least_growth(sides, _clusters(trial.candidate), 1 - rule.confidence)
    passed = mine - theirs <= rule.calibration or low <= 0
    text = (
        f"less well calibrated: the expected calibration error is {mine:.3f}, the champion's {theirs:.3f}, "
        f"and `gate.calibration` allows {rule.calibration:g} more; the champion stays"
    )
    facts = {
        "candidate": mine, "champion": theirs, "value": mine - theirs, "low": low, "guard": rule.calibration,
    }  # fmt: skip
    return _Found(CALIBRATION, passed, text, facts)


def _least_growth(
    sides: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]],
    clusters: NDArray[np.int64] | None,
    miss: float,
) -> float:
    """One-sided lower bound of the growth of the calibration error, by a paired bootstrap of the items."""
    columns = []
    for truth, said in sides:
        sure = said.max(axis=1)
        places = calibration.equal_mass(sure, calibration.count_bins(len(truth)))
        gaps = np.zeros((len(truth), int(places.max()) + 1), dtype=np.float32)
        gaps[np.arange(len(truth)), places] = (said.argmax(axis=1) == truth) - sure
        columns.append(_summed(gaps, clusters))
    sizes = _summed(np.ones((len(sides[0][0]), 1), dtype=np.float32), clusters)
    growth = [
        (np.abs(weights @ columns[0]).sum(axis=1) - np.abs(weights @ columns[1]).sum(axis=1))
        / (weights @ sizes)[:, 0]
        for weights in bootstrap.item_weights(len(sizes), DRAWS, SEED)
    ]
    return float(np.quantile(np.concatenate(growth), miss))


def _summed(values: NDArray[np.float32], clusters: NDArray[np.int64] | None) -> NDArray[np.float32]:
    """The sums over each group, shape (groups, columns); the values themselves where there are none."""
    if clusters is None:
        return values
    found = np.zeros((int(clusters.max()) + 1, values.shape[1]), dtype=np.float32)
    np.add.at(found, clusters, values)
    return found


# ----------------------------------------------------------------------------------------- can it be compared


def _not_comparable(trial: Trial, rule: Rule) -> str | None:
    """Why the two cannot be compared, or None."""
    candidate, champion = trial.candidate, trial.champion
    if not candidate.is_finite:
        return "the candidate's predictions are not finite"
    if bool(candidate.shares) != bool(champion.shares):
        return "one of the two tells classes, the other does not"
    if not champion.is_finite:
        return "the champion's predictions are not finite"
    if set(candidate.classes) != set(champion.classes):
        return other_classes(candidate.classes, champion.classes)
    if set(candidate.ids) != set(champion.ids):
        odd = sorted(set(candidate.ids) ^ set(champion.ids))
        return f"the test items differ ({len(odd)} ids only on one side, e.g. {odd[0]!r})"
    truth = dict(zip(champion.ids, champion.labels, strict=True))
    odd = [one for one, label in zip(candidate.ids, candidate.labels, strict=True) if truth[one] != label]
    if odd:
        return f"the true labels differ ({len(odd)} test items, e.g. {odd[0]!r})"
    obstacle = too_few(len(truth), trial.excluded, rule)
    if obstacle is not None:
        return obstacle
    clusters = _clusters(candidate)
    if clusters is not None and len(np.unique(clusters)) < 2:
        return "all test items are of one group, which tells nothing of others"
    return None


def too_few(count: int, excluded: int, rule: Rule) -> str | None:
    """Why so many test items are too few, or None.

    Args:
        count: of the items that are left.
        excluded: left out, because one of the two was trained on them.
        rule: with the least number.
    """
    least = max(2, rule.min_items)
    if excluded > MOST_EXCLUDED * (count + excluded):
        return (
            f"{excluded} of {count + excluded} test items were left out, because one of the two models was "
            "trained on them: what is left is no fair sample"
        )
    left_out = f" after {excluded} were left out that a model was trained on" if excluded else ""
    if count < least:
        return f"too few test items to tell ({count}{left_out}, at least {least} are needed)"
    return None


def other_classes(candidate: Sequence[str], champion: Sequence[str]) -> str | None:
    """In words by what classes the two differ; None where they are the same."""
    odd = sorted(set(candidate) ^ set(champion))
    return f"the classes differ ({len(odd)} only on one side, e.g. {odd[0]!r})" if odd else None


# --------------------------------------------------------------------------------------------------- in order


def _clusters(tested: Tested) -> NDArray[np.int64] | None:
    """The number of each item's group, in the order of ids; None where no item is in one."""
    if not any(isinstance(group, str) for group in tested.groups):
        return None
    # An item without a group is one of its own; a group may be called as an item is.
    of = dict(zip(tested.ids, tested.groups, strict=True))
    ordered = [tested.ids[at] for at in _order(tested)]
    names = [("group", of[name]) if isinstance(of[name], str) else ("item", name) for name in ordered]
    numbers = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _order(tested: Tested) -> NDArray[np.intp]:
    """The places of the items in the order of ids."""
    return np.argsort(np.asarray(tested.ids, dtype=str), kind="stable")


def _aligned(tested: Tested) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The class of each item, shape (items,), and its probabilities, shape (items, classes), of a classifier.

    Items stand in the order of ids, columns in that of labels, so that equal probabilities are decided alike
    on both sides.
    """
    order = _order(tested)
    columns = np.argsort(np.asarray(tested.classes, dtype=str), kind="stable")
    place = {tested.classes[column]: at for at, column in enumerate(columns)}
    truth = np.array([place[tested.labels[at]] for at in order], dtype=np.int64)
    return truth, np.asarray(tested.probabilities, np.float64)[order][:, columns]


def _scores(tested: Tested, metric: str) -> NDArray[np.float64]:
    """Per-item scores in the order of ids, shape (items,)."""
    if tested.shares:
        return np.asarray(tested.shares[metric], np.float64)[_order(tested)]
    return metrics.per_item(metric, *_aligned(tested))
