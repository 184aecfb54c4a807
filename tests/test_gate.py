import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from steps import gate, metrics
from steps.gate import Decision, Rule, decide


def answers(wrong: set[int], items: int = 200, confident: float = 0.9) -> gate.Tested:
    """A network over two classes that errs on these items and is equally sure of all it says."""
    labels = ["ab"[at % 2] for at in range(items)]
    right = np.array([at not in wrong for at in range(items)])
    first = np.array([label == "a" for label in labels]) == right
    share = np.where(first, confident, 1 - confident)
    return gate.Tested(
        [f"i{at}" for at in range(items)], labels, ["a", "b"], np.stack([share, 1 - share], axis=1)
    )


def test_the_first_version_is_promoted() -> None:
    assert decide(answers({1}), None, Rule()) == Decision(
        True, "first version: there is no champion to compare with"
    )


def test_predictions_that_are_not_finite_are_refused_even_from_the_first() -> None:
    broken = replace(answers(set()), probabilities=np.full((200, 2), np.nan))
    assert decide(broken, None, Rule()) == Decision(False, "the candidate's predictions are not finite")
    against = decide(answers(set()), broken, Rule())
    assert not against.promote
    assert "the champion's predictions are not finite" in against.reason


def test_the_same_answers_are_not_worse() -> None:
    same = decide(answers({1, 2}), answers({1, 2}), Rule())
    assert same == Decision(True, "not worse: scores all 200 test items as the champion does")


def test_the_order_of_items_and_classes_does_not_matter() -> None:
    one = answers({1, 2, 3})
    order = np.random.default_rng(0).permutation(200)
    shuffled = gate.Tested(
        [one.ids[at] for at in order],
        [one.labels[at] for at in order],
        ["b", "a"],
        one.probabilities[order][:, ::-1],
    )
    assert decide(shuffled, one, Rule()).reason.startswith("not worse: scores all 200")


def test_a_clearly_better_candidate_is_promoted_with_figures() -> None:
    decision = decide(answers(set()), answers(set(range(30))), Rule())
    assert decision.promote
    assert decision.reason == (
        "better than the champion: ahead by 15.0 points of accuracy "
        "(95 % interval 9.7 to 20.0; 200 test items)"
    )


def test_a_clearly_worse_candidate_is_refused() -> None:
    decision = decide(answers(set(range(30))), answers(set()), Rule())
    assert not decision.promote
    assert decision.reason.startswith("worse than the champion: behind by 15.0 points of accuracy")


def test_a_small_loss_that_is_certain_is_refused_though_the_margin_would_bear_it() -> None:
    decision = decide(answers(set(range(40)), 2000), answers(set(), 2000), Rule())
    assert decision.reason.startswith("worse than the champion: behind by 2.0 points")


def test_about_as_good_is_promoted_where_the_items_are_many() -> None:
    candidate, champion = set(range(20)), set(range(10, 28))
    few = decide(answers(candidate, 60), answers(champion, 60), Rule())
    assert not few.promote
    assert "not shown to be as good" in few.reason
    assert "leaves a loss of 5.0 points of accuracy possible" in few.reason
    many = decide(answers(candidate, 1000), answers(champion, 1000), Rule())
    assert many.promote
    assert many.reason.startswith("not worse than the champion: behind by 0.2 points")


def test_the_margin_is_what_the_rule_says() -> None:
    nearly = decide(answers(set(range(20)), 150), answers(set(range(10, 28)), 150), Rule())
    assert "interval -7.1 to 4.5" in nearly.reason
    assert not nearly.promote
    candidate, champion = answers(set(range(20)), 400), answers(set(range(10, 28)), 400)
    assert decide(candidate, champion, Rule()).promote
    assert not decide(candidate, champion, Rule(margin=0.01)).promote


def test_log_loss_is_better_when_lower() -> None:
    rule = Rule(metric="log_loss")
    sure, unsure = answers(set(), confident=0.95), answers(set(), confident=0.6)
    assert decide(sure, unsure, rule).promote
    assert not decide(unsure, sure, rule).promote
    assert "of log-loss" in decide(unsure, sure, rule).reason


def test_macro_f1_is_judged_too() -> None:
    rule = Rule(metric="macro_f1")
    assert decide(answers(set()), answers(set(range(30))), rule).promote
    assert not decide(answers(set(range(30))), answers(set()), rule).promote


def test_other_items_are_refused() -> None:
    decision = decide(answers(set(), 201), answers(set(), 200), Rule())
    assert decision == Decision(
        False, "the test items differ (1 ids only on one side, e.g. 'i200'); the champion stays"
    )


def test_other_labels_are_refused() -> None:
    one = answers(set())
    decision = decide(replace(one, labels=["b", *one.labels[1:]]), one, Rule())
    assert "the true labels differ (1 test items, e.g. 'i0')" in decision.reason


def test_other_classes_are_refused() -> None:
    one = answers(set())
    more = replace(one, classes=["a", "b", "c"], probabilities=np.full((200, 3), 1 / 3))
    assert "the classes differ (1 only on one side, e.g. 'c')" in decide(more, one, Rule()).reason


def test_too_few_items_are_refused() -> None:
    decision = decide(answers(set(), 29), answers(set(range(29)), 29), Rule())
    assert decision == Decision(
        False, "too few test items to tell (29, at least 30 are needed); the champion stays"
    )


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 59)), st.sets(st.integers(0, 59)), st.sampled_from(sorted(metrics.OF_CLASSES)))
def test_two_that_differ_are_never_each_worse_than_the_other(
    one: set[int], other: set[int], metric: str
) -> None:
    first, second = answers(one, 60), answers(other, 60)
    there, back = (decide(*pair, Rule(metric=metric)) for pair in ((first, second), (second, first)))
    assert not (there.reason.startswith("worse") and back.reason.startswith("worse"))
    assert not (there.reason.startswith("better") and back.promote)


# ------------------------------------------------------------------------------- tasks without classes


def shares(metric: str, values: NDArray[np.float64], truth: str = "t") -> gate.Tested:
    """A network whose items have these shares in the metric."""
    items = len(values)
    return gate.Tested.of_shares(
        [f"i{at}" for at in range(items)], [f"{truth} {at} \ud800" for at in range(items)], {metric: values}
    )


@pytest.mark.parametrize("metric", sorted(set(metrics.METRICS) - {"log_loss"}))
def test_every_metric_is_judged_in_its_own_direction_and_margin(metric: str) -> None:
    about = metrics.METRICS[metric]
    champion = (0.5 if about.percent else 20.0) + 0.01 * np.random.default_rng(0).normal(size=200)
    noise = 0.01 * np.random.default_rng(1).normal(size=200)
    step = {"perplexity": 1.0, "psnr": 0.5, "loss": 0.1}.get(metric, 0.05)
    sign = 1 if about.higher_is_better else -1
    better = decide(shares(metric, champion + noise + sign * step), shares(metric, champion), Rule(metric))
    assert better.promote
    assert better.reason.startswith("better than the champion: ahead by")
    assert f"of {about.shown} (95 % interval" in better.reason
    worse = decide(shares(metric, champion + noise - sign * step), shares(metric, champion), Rule(metric))
    assert not worse.promote
    # A loss of twice the margin cannot be ruled out by so few.
    wide = 8 * step * np.random.default_rng(2).normal(size=200)
    unsure = decide(shares(metric, champion + wide - wide.mean()), shares(metric, champion), Rule(metric))
    told = metrics.amount(metric, step if metric != "perplexity" else 0.05 * champion.mean())
    assert f"leaves a loss of {told} possible" in unsure.reason


def test_the_order_of_items_does_not_matter_without_classes() -> None:
    values = np.random.default_rng(0).random(50)
    one, order = shares("dice", values), np.random.default_rng(1).permutation(50)
    again = gate.Tested(
        [one.ids[at] for at in order], [one.labels[at] for at in order], (), np.zeros((50, 0)),
        {"dice": values[order]},
    )  # fmt: skip
    assert decide(again, one, Rule("dice")).reason.startswith("not worse: scores all 50")


def test_other_truths_and_broken_shares_are_refused_without_classes() -> None:
    values = np.random.default_rng(0).random(50)
    other = decide(shares("dice", values, "another"), shares("dice", values), Rule("dice"))
    assert "the true labels differ (50 test items" in other.reason
    broken = decide(shares("dice", np.full(50, np.nan)), shares("dice", values), Rule("dice"))
    assert broken == Decision(False, "the candidate's predictions are not finite")
    mixed = decide(shares("accuracy", np.ones(200)), answers(set()), Rule())
    assert mixed.reason == "one of the two tells classes, the other does not; the champion stays"


def test_a_task_that_makes_its_own_truth_has_none_to_differ() -> None:
    values = np.random.default_rng(0).random(50)
    own = gate.Tested.of_shares([f"i{at}" for at in range(50)], [None] * 50, {"loss": values})
    assert decide(replace(own, shares={"loss": values - 1}), own, Rule("loss")).promote
    assert "the true labels differ" in decide(shares("loss", values), own, Rule("loss")).reason


def test_items_in_groups_are_judged_by_group() -> None:
    better, champion = np.repeat([1.0, 0.0], [60, 40]), np.repeat([1.0, 0.0], [50, 50])
    plain = decide(shares("dice", better), shares("dice", champion), Rule("dice"))
    assert plain.promote
    groups = [None if at < 50 else f"g{at // 10}" for at in range(100)]
    grouped = decide(replace(shares("dice", better), groups=groups), shares("dice", champion), Rule("dice"))
    assert "100 test items in 55 groups)" in grouped.reason
    assert "interval -" in grouped.reason
    one = replace(shares("dice", better), groups=["g"] * 100)
    assert "all test items are of one group" in decide(one, shares("dice", champion), Rule("dice")).reason


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, steps.gate; print({'torch', 'mlflow', 'pandas', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
