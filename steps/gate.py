"""Whether a new version may take the champion's place: a pure decision with its reason.

Not worse, in the sense of a non-inferiority trial, on the same test items and by the paired interval of
candidate minus champion:

* the interval must not lie wholly below zero: then the candidate is shown to be worse, however little,
  and small losses cannot add up from version to version;
* its lower end must be above minus the margin: a loss larger than the margin is ruled out. A wide interval
  over few items is no proof of being as good, so then the champion stays.

One network is compared with another, so the interval is over test items only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steps import intervals, metrics

# The largest loss that may stay possible: 5 points, or about what 5 points cost in log-loss.
MARGINS = {"accuracy": 0.05, "macro_f1": 0.05, "log_loss": 0.1}
MIN_ITEMS = 30


@dataclass(frozen=True)
class Rule:
    """What a candidate must show.

    Attributes:
        metric: accuracy, macro_f1 or log_loss.
        confidence: of the interval, two-sided.
        margin: the largest loss that may stay possible; None takes the metric's from `MARGINS`.
        min_items: fewer test items than this decide nothing.
    """

    metric: str = "accuracy"
    confidence: float = 0.95
    margin: float | None = None
    min_items: int = MIN_ITEMS


@dataclass(frozen=True)
class Tested:
    """What one network said of the test split.

    Attributes:
        ids: of the test items, unique.
        labels: the true label of each item.
        classes: label of each column of `probabilities`.
        probabilities: shape (items, classes).
    """

    ids: Sequence[str]
    labels: Sequence[str]
    classes: Sequence[str]
    probabilities: NDArray[np.floating]


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
    if not np.isfinite(candidate.probabilities).all():
        return Decision(False, "the candidate's predictions are not finite")
    if champion is None:
        return Decision(True, "first version: there is no champion to compare with")
    obstacle = _not_comparable(candidate, champion, rule)
    if obstacle is not None:
        return Decision(False, f"{obstacle}; the champion stays")
    return _judge(_scores(candidate, rule.metric), _scores(champion, rule.metric), rule)


def _judge(candidate: NDArray[np.float64], champion: NDArray[np.float64], rule: Rule) -> Decision:
    if np.array_equal(candidate, champion):
        return Decision(True, f"not worse: scores all {len(candidate)} test items as the champion does")
    gains = metrics.improvement(rule.metric, candidate, champion)
    found = intervals.of_difference(gains[None, :], rule.confidence, metrics.BOUNDS[rule.metric])
    margin = MARGINS[rule.metric] if rule.margin is None else rule.margin
    figures = _figures(found, rule)
    if found.high < 0:
        return Decision(False, f"worse than the champion: {figures}")
    if found.low <= -margin:
        lost = metrics.amount(rule.metric, margin)
        return Decision(
            False, f"not shown to be as good: {figures} leaves a loss of {lost} possible; test on more items"
        )
    return Decision(True, f"{'better' if found.low > 0 else 'not worse'} than the champion: {figures}")


def _figures(found: intervals.Interval, rule: Rule) -> str:
    low, high = (metrics.figure(rule.metric, end) for end in (found.low, found.high))
    side = "ahead by" if found.value >= 0 else "behind by"
    return (
        f"{side} {metrics.amount(rule.metric, abs(found.value))} "
        f"({100 * rule.confidence:g} % interval {low} to {high}; {found.items} test items)"
    )


def _not_comparable(candidate: Tested, champion: Tested, rule: Rule) -> str | None:
    """Why the two cannot be compared, or None."""
    if not np.isfinite(champion.probabilities).all():
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
    return None


def _scores(tested: Tested, metric: str) -> NDArray[np.float64]:
    """Per-item scores in the order of ids, shape (items,)."""
    order = np.argsort(np.asarray(tested.ids, dtype=str), kind="stable")
    # Columns in the order of labels, so that equal probabilities are decided alike on both sides.
    columns = np.argsort(np.asarray(tested.classes, dtype=str), kind="stable")
    place = {tested.classes[column]: at for at, column in enumerate(columns)}
    truth = np.array([place[tested.labels[at]] for at in order], dtype=np.int64)
    return metrics.per_item(metric, truth, np.asarray(tested.probabilities, np.float64)[order][:, columns])
