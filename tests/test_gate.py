import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from steps import calibration, gate, metrics
from steps.gate import Decision, Rule, Trial
from steps.operation import Gate


def decide(candidate: gate.Tested, champion: gate.Tested, rule: Rule) -> Decision:
    """By the items as a whole; slices and calibration have their own tests below."""
    return gate.decide([Trial(candidate, champion)], replace(rule, slices=False, calibration=None))


def answers(wrong: set[int], items: int = 200, confident: float = 0.9) -> gate.Tested:
    """A network over two classes that errs on these items and is equally sure of all it says."""
    labels = ["ab"[at % 2] for at in range(items)]
    right = np.array([at not in wrong for at in range(items)])
    first = np.array([label == "a" for label in labels]) == right
    share = np.where(first, confident, 1 - confident)
    return gate.Tested(
        [f"i{at}" for at in range(items)], labels, ["a", "b"], np.stack([share, 1 - share], axis=1)
    )


def test_the_first_version_is_promoted_and_takes_no_look() -> None:
    assert gate.first() == Decision(
        True, "first version: there is no champion to compare with", {"tests": []}
    )


def test_predictions_that_are_not_finite_are_refused() -> None:
    broken = replace(answers(set()), probabilities=np.full((200, 2), np.nan))
    mine = decide(broken, answers(set()), Rule())
    assert (mine.promote, mine.reason) == (
        False,
        "the candidate's predictions are not finite; the champion stays",
    )
    against = decide(answers(set()), broken, Rule())
    assert not against.promote
    assert "the champion's predictions are not finite" in against.reason


def test_the_same_answers_are_not_worse() -> None:
    same = gate.decide([Trial(answers({1, 2}), answers({1, 2}))], Rule())
    assert (same.promote, same.reason) == (
        True,
        "not worse: scores all 200 test items as the champion does",
    )


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
    assert (decision.promote, decision.reason, decision.evidence) == (
        False,
        "the test items differ (1 ids only on one side, e.g. 'i200'); the champion stays",
        {"tests": []},
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
    assert (decision.promote, decision.reason) == (
        False,
        "too few test items to tell (29, at least 30 are needed); the champion stays",
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
    assert broken.reason == "the candidate's predictions are not finite; the champion stays"
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


# ------------------------------------------------------------------------ slices, calibration, latency, looks


def network(
    labels: list[str], right: NDArray[np.bool_], sure: float | NDArray[np.float64] = 0.9
) -> gate.Tested:
    """A network over three classes that is right on these items."""
    truth = np.array(["abc".index(one) for one in labels])
    said = np.where(right, truth, (truth + 1) % 3)
    share = np.broadcast_to(np.asarray(sure, dtype=np.float64), len(labels))
    probabilities = np.repeat((1 - share)[:, None] / 2, 3, axis=1)
    probabilities[np.arange(len(labels)), said] = share
    return gate.Tested([f"i{at:05}" for at in range(len(labels))], labels, list("abc"), probabilities)


def of_check(decision: Decision, name: str) -> dict[str, Any]:
    (found,) = [one for one in decision.evidence["checks"] if one["check"] == name]
    return dict(found)


def test_a_class_that_is_worse_is_refused_though_the_whole_is_better() -> None:
    labels = list("abc" * 200)
    is_c = np.array([one == "c" for one in labels])
    first, second = np.arange(600) % 10 != 0, np.arange(600) % 4 != 0
    candidate, champion = (
        network(labels, np.where(is_c, np.arange(600) % 2 == 0, True)),
        network(labels, second),
    )
    decision = gate.decide([Trial(candidate, champion)], Rule(calibration=None))
    assert of_check(decision, "whole")["low"] > 0
    assert not decision.promote
    assert decision.reason.startswith(
        "worse on a part of the items: class 'c' is behind by 25.0 points of accuracy (200"
    )
    assert of_check(decision, "slices")["slices"][0]["value"] == "c"
    assert decide(candidate, champion, Rule()).promote
    even = gate.decide([Trial(network(labels, first), champion)], Rule(calibration=None))
    assert even.promote
    assert of_check(even, "slices") | {"slices": []} == {
        "test": "", "check": "slices", "passed": True, "metric": "accuracy", "looked_at": 3, "worse": 0,
        "slices": [],
    }  # fmt: skip


def test_a_slice_that_is_worse_is_refused_and_small_ones_are_not_looked_at() -> None:
    labels = list("abc" * 200)
    dark = np.arange(600) < 29
    candidate, champion = network(labels, ~dark), network(labels, np.arange(600) % 10 != 9)
    facts = {"source": ["night" if one else "day" for one in dark]}
    rule = Rule(calibration=None)
    assert gate.decide([Trial(candidate, champion, facts=facts)], rule).promote
    refused = gate.decide([Trial(candidate, champion, facts=facts)], replace(rule, min_items=29))
    assert "source 'night' is behind by" in refused.reason
    # Thirds of numbers are named.
    numbers: dict[str, NDArray[np.generic]] = {
        "length in characters": np.where(dark, 1.0, 100.0 + np.arange(600))
    }
    broken = network(labels, np.arange(600) >= 200)
    assert (
        "length in characters 'short (1 to 299)'"
        in gate.decide(
            [Trial(broken, network(labels, np.arange(600) % 3 != 2), facts=numbers)],
            replace(rule, margin=1.0),
        ).reason
    )


def test_groups_are_the_draws_of_a_slice_too() -> None:
    labels = list("ab" * 100)
    wrong = np.arange(200) < 40
    groups = ["one" if at < 40 else f"g{at // 2}" for at in range(200)]
    facts = {"source": ["x" if one else "y" for one in wrong]}
    candidate, champion = network(labels, ~wrong), network(labels, np.roll(~wrong, 100))
    alone = gate.decide([Trial(candidate, champion, facts=facts)], Rule(margin=1.0, calibration=None))
    assert "source 'x' is behind by 100.0 points" in alone.reason
    grouped = [replace(one, groups=groups) for one in (candidate, champion)]
    together = gate.decide([Trial(grouped[0], grouped[1], facts=facts)], Rule(margin=1.0, calibration=None))
    # All of that slice is one group, which says nothing of others.
    assert "x" not in {one["value"] for one in of_check(together, "slices")["slices"]}


def test_equal_models_are_refused_by_mistake_at_the_level_at_most() -> None:
    """300 pairs of networks that are as good as each other on each of 14 slices.

    By chance 300 x 0.05 = 15 are refused at most; 26 is three standard deviations more.
    """
    random = np.random.default_rng(0)
    labels = list("abc" * 200)
    kinds = [f"kind {at % 8}" for at in range(600)]
    facts: dict[str, Any] = {"source": kinds, "file size": random.permutation(600).astype(float)}
    refused = {"slices": 0, "calibration": 0}
    for _ in range(300):
        hard = random.random(600) < 0.3  # the same items are hard for both
        sides = [
            network(labels, ~hard | (random.random(600) < 0.5), random.uniform(0.6, 1, 600)) for _ in "12"
        ]
        decision = gate.decide([Trial(sides[0], sides[1], facts=facts)], Rule())
        for name in refused:
            refused[name] += not of_check(decision, name)["passed"]
    assert of_check(decision, "slices")["looked_at"] == 14
    assert refused["slices"] <= 26
    assert refused["calibration"] <= 26


def test_a_slice_that_is_much_worse_is_mostly_found() -> None:
    random = np.random.default_rng(1)
    labels = list("abc" * 200)
    kinds = np.array([f"kind {at % 8}" for at in range(600)])
    found = 0
    for _ in range(50):
        champion = random.random(600) < 0.85
        worse = np.where(kinds == "kind 3", champion & (random.random(600) < 0.7), champion)
        trial = Trial(network(labels, worse), network(labels, champion), facts={"source": list(kinds)})
        told = of_check(gate.decide([trial], Rule(calibration=None)), "slices")
        found += not told["passed"] and told["slices"][0]["value"] == "kind 3"
    assert found >= 45


def test_a_worse_calibration_is_refused() -> None:
    labels = list("abc" * 200)
    right = np.arange(600) % 10 != 0
    champion, candidate = network(labels, right, 0.9), network(labels, right, 0.999)
    decision = gate.decide([Trial(candidate, champion)], Rule())
    assert decision.reason == (
        "less well calibrated: the expected calibration error is 0.099, the champion's 0.000, and "
        "`gate.calibration` allows 0.05 more; the champion stays"
    )
    told = of_check(decision, "calibration")
    truth = np.array(["abc".index(one) for one in labels])
    assert told["candidate"] == pytest.approx(calibration.ece(truth, np.asarray(candidate.probabilities)))
    assert 0 < told["low"] < told["value"]
    assert gate.decide([Trial(candidate, champion)], Rule(calibration=0.1)).promote
    assert gate.decide([Trial(candidate, champion)], Rule(calibration=None)).promote
    assert gate.decide([Trial(champion, candidate)], Rule()).promote
    # In two groups hardly anything is sure.
    sides = [replace(one, groups=[f"g{at % 2}" for at in range(600)]) for one in (candidate, champion)]
    assert of_check(gate.decide([Trial(sides[0], sides[1])], Rule()), "calibration")[
        "value"
    ] == pytest.approx(0.099)


def test_a_calibration_error_is_not_asked_of_a_task_without_classes() -> None:
    values = np.random.default_rng(0).random(50)
    decision = gate.decide([Trial(shares("dice", values), shares("dice", values))], Rule("dice"))
    assert [one["check"] for one in decision.evidence["checks"]] == ["looks", "whole", "slices"]


def test_latency_is_looked_at_last() -> None:
    decision = gate.decide([Trial(answers({1}), answers({2}))], Rule())
    fast = gate.with_latency(decision, (0.010, 0.008), Rule())
    assert (fast.promote, fast.reason) == (True, decision.reason)
    assert of_check(fast, "latency")["ratio"] == pytest.approx(1.25)
    slow = gate.with_latency(decision, (0.020, 0.008), Rule())
    assert (slow.promote, slow.reason) == (
        False,
        "too slow: a prediction takes 2.5 times as long (20.0 ms against 8.0 ms), and `gate.latency` allows "
        "2; the champion stays",
    )
    assert slow.evidence["checks"][:-1] == decision.evidence["checks"]
    with pytest.raises(AssertionError, match="last"):
        gate.with_latency(slow, (1.0, 1.0), Rule())


def test_a_test_set_that_was_used_too_often_refuses_whatever_the_figures() -> None:
    rule = Rule(looks=3)
    better = Trial(answers(set()), answers(set(range(30))), "f" * 64, looks=2)
    assert gate.decide([better], rule).promote
    assert of_check(gate.decide([better], rule), "looks") == {
        "test": "f" * 64, "check": "looks", "passed": True, "looks": 2, "budget": 3,
    }  # fmt: skip
    worn = gate.decide([replace(better, looks=3)], rule)
    assert not worn.promote
    assert worn.reason == (
        "the frozen test set ffffffff is worn out: it has served 3 decisions, and `gate.looks` allows 3; "
        "collect new test items and move the champion by hand once, or raise `gate.looks` knowingly; the "
        "champion stays"
    )
    # It was refused without a look.
    assert worn.evidence["tests"] == []
    assert gate.worn_out({"f": 2}, rule) is None
    assert "until `headstart promote m@2` moves it" in getattr(
        gate.worn_out({"f": 9}, rule, "headstart promote m@2"), "reason", ""
    )


def test_both_test_sets_must_clear_the_gate_and_the_refusal_names_which() -> None:
    good = Trial(answers(set()), answers(set(range(30))), "n" * 64, "its own test set")
    bad = Trial(answers(set(range(30))), answers(set()), "o" * 64, "the champion's test set", excluded=3)
    rule = Rule(calibration=None)
    decision = gate.decide([good, bad], rule)
    assert not decision.promote
    assert decision.reason.startswith(
        "on the champion's test set, worse than the champion: behind by 15.0 points"
    )
    assert "200 test items, 3 left out that a model was trained on)" in decision.reason
    assert decision.evidence["tests"] == ["n" * 64, "o" * 64]
    assert decision.evidence["excluded"] == {"n" * 64: 0, "o" * 64: 3}
    both = gate.decide([good, replace(good, name="the champion's test set")], rule)
    assert both.promote
    assert both.reason.startswith("on its own test set, better than the champion: ahead by 15.0 points")
    assert "; on the champion's test set, better than the champion" in both.reason


def test_too_many_items_left_out_are_refused() -> None:
    left = Trial(answers(set()), answers(set(range(30))), excluded=201)
    assert gate.decide([left], Rule()).reason.startswith("201 of 401 test items were left out")
    assert gate.decide([replace(left, excluded=200)], Rule(calibration=None)).promote
    assert gate.too_few(29, 5, Rule()) == (
        "too few test items to tell (29 after 5 were left out that a model was trained on, at least 30 are "
        "needed)"
    )


def test_the_rule_is_what_the_settings_say() -> None:
    settings = Gate(margin=0.01, min_items=40, slices=False, calibration=None, latency=None, looks=7)
    assert Rule.of(settings, "macro_f1", 0.9, metrics.OF_CLASSES) == Rule(
        "macro_f1",
        0.9,
        0.01,
        40,
        slices=False,
        slice_metric="accuracy",
        calibration=None,
        latency=None,
        looks=7,
    )
    assert Rule.of(Gate(), "mean_iou", 0.95, ("mean_iou", "dice")).told_in == "mean_iou"


def test_the_evidence_is_json_and_finite() -> None:
    facts = {"length": np.arange(200.0)}
    decision = gate.decide([Trial(answers({1}), answers({2, 5}), "a", facts=facts)], Rule())
    told = gate.with_latency(decision, (1.0, 1.0), Rule()).evidence
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, steps.gate; print({'torch', 'mlflow', 'pandas', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
