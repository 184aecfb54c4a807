"""Whether a new version may take the champion's place: a pure decision with its reason.

Not worse, in the sense of a non-inferiority trial, on the same test items and by the paired interval of
candidate minus champion:

* the interval must not lie wholly below zero: then the candidate is shown to be worse, however little,
  and small losses cannot add up from version to version;
* its lower end must be above minus the margin: a loss larger than the margin is ruled out. A wide interval
  over few items is no proof of being as good, so then the champion stays.

One network is compared with another, so the interval is over test items only; where these come in groups,
over the groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from steps import intervals, metrics

MIN_ITEMS = 30


@dataclass(frozen=True)
class Rule:
    """What a candidate must show.

    Attributes:
        metric: a name in `metrics.METRICS`.
        confidence: of the interval, two-sided.
        margin: the largest loss that may stay possible; None takes what the metric tolerates.
        min_items: fewer test items than this decide nothing.
    """

    metric: str = "accuracy"
    confidence: float = 0.95
    margin: float | None = None
    min_items: int = MIN_ITEMS


@dataclass(frozen=True)
class Tested:
    """What one network said of the test split: probabilities of classes, or what `of_shares` takes.

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
class Decision:
    """Whether to promote, and why in one sentence."""

    promote: bool
    reason: str


def decide(candidate: Tested, champion: Tested | None, rule: Rule) -> Decision:
    """Decide whether the candidate becomes champion.

    Args:
        candidate: the new version on the test split.
        champion: the present champion on the same items; None when there is none.
        rule: what must be shown.
    """
    if not candidate.is_finite:
        return Decision(False, "the candidate's predictions are not finite")
    if champion is None:
        return Decision(True, "first version: there is no champion to compare with")
    obstacle = _not_comparable(candidate, champion, rule)
    if obstacle is not None:
        return Decision(False, f"{obstacle}; the champion stays")
    scores = [_scores(one, rule.metric) for one in (candidate, champion)]
    return _judge(scores[0], scores[1], _clusters(candidate), rule)


def _judge(
    candidate: NDArray[np.float64],
    champion: NDArray[np.float64],
    clusters: NDArray[np.int64] | None,
    rule: Rule,
) -> Decision:
    if np.array_equal(candidate, champion):
        return Decision(True, f"not worse: scores all {len(candidate)} test items as the champion does")
    gains = metrics.improvement(rule.metric, candidate, champion)
    draws = intervals.by_cluster(gains[None, :], clusters)
    found = intervals.of_difference(draws, rule.confidence, metrics.BOUNDS[rule.metric])
    margin = margin_of(rule, float(champion.mean()))
    figures = _figures(found, rule, len(gains))
    if found.high < 0:
        return Decision(False, f"worse than the champion: {figures}")
    if found.low <= -margin:
        lost = metrics.amount(rule.metric, margin)
        return Decision(
            False, f"not shown to be as good: {figures} leaves a loss of {lost} possible; test on more items"
        )
    return Decision(True, f"{'better' if found.low > 0 else 'not worse'} than the champion: {figures}")


def margin_of(rule: Rule, champion: float) -> float:
    """The largest loss that may stay possible, given what the champion reaches."""
    if rule.margin is not None:
        return rule.margin
    about = metrics.METRICS[rule.metric]
    return about.tolerated * (champion if about.relative else 1.0)


def _figures(found: intervals.Interval, rule: Rule, count: int) -> str:
    low, high = (metrics.figure(rule.metric, end) for end in (found.low, found.high))
    side = "ahead by" if found.value >= 0 else "behind by"
    items = f"{count} test items" + (f" in {found.items} groups" if found.items < count else "")
    return (
        f"{side} {metrics.amount(rule.metric, abs(found.value))} "
        f"({100 * rule.confidence:g} % interval {low} to {high}; {items})"
    )


def _not_comparable(candidate: Tested, champion: Tested, rule: Rule) -> str | None:
    """Why the two cannot be compared, or None."""
    if bool(candidate.shares) != bool(champion.shares):
        return "one of the two tells classes, the other does not"
    if not champion.is_finite:
        return "the champion's predictions are not finite"
    if set(candidate.classes) != set(champion.classes):
        odd = sorted(set(candidate.classes) ^ set(champion.classes))
        return f"the classes differ ({len(odd)} only on one side, e.g. {odd[0]!r})"
    if set(candidate.ids) != set(champion.ids):
        odd = sorted(set(candidate.ids) ^ set(champion.ids))
        return f"the test items differ ({len(odd)} ids only on one side, e.g. {odd[0]!r})"
    truth = dict(zip(champion.ids, champion.labels, strict=True))
    odd = [one for one, label in zip(candidate.ids, candidate.labels, strict=True) if truth[one] != label]
    if odd:
        return f"the true labels differ ({len(odd)} test items, e.g. {odd[0]!r})"
    least = max(2, rule.min_items)
    if len(truth) < least:
        return f"too few test items to tell ({len(truth)}, at least {least} are needed)"
    clusters = _clusters(candidate)
    if clusters is not None and len(np.unique(clusters)) < 2:
        return "all test items are of one group, which tells nothing of others"
    return None


def _clusters(tested: Tested) -> NDArray[np.int64] | None:
    """The number of each item's group, in the order of ids; None where no item is in one."""
    if not any(isinstance(group, str) for group in tested.groups):
        return None
    # An item without a group is one of its own; a group may be called as an item is.
    of = dict(zip(tested.ids, tested.groups, strict=True))
    names = [
        ("group", of[name]) if isinstance(of[name], str) else ("item", name) for name in _ordered(tested)
    ]
    numbers = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _ordered(tested: Tested) -> list[str]:
    return [str(tested.ids[at]) for at in np.argsort(np.asarray(tested.ids, dtype=str), kind="stable")]


def _scores(tested: Tested, metric: str) -> NDArray[np.float64]:
    """Per-item scores in the order of ids, shape (items,)."""
    order = np.argsort(np.asarray(tested.ids, dtype=str), kind="stable")
    if tested.shares:
        return np.asarray(tested.shares[metric], np.float64)[order]
    # Columns in the order of labels, so that equal probabilities are decided alike on both sides.
    columns = np.argsort(np.asarray(tested.classes, dtype=str), kind="stable")
    place = {tested.classes[column]: at for at, column in enumerate(columns)}
    truth = np.array([place[tested.labels[at]] for at in order], dtype=np.int64)
    return metrics.per_item(metric, truth, np.asarray(tested.probabilities, np.float64)[order][:, columns])
