from __future__ import annotations

from time import process_time

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support

from steps import intervals, slices


def predictions(
    items: int, classes: int, runs: int, accuracy: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True classes, and what each run says: right with that probability, otherwise anything."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, items)
    right = random.random((runs, items)) < accuracy
    return truth, np.where(right, truth, random.integers(0, classes, (runs, items)))


def test_means_over_runs_are_scikit_learns() -> None:
    truth, predicted = predictions(200, 5, 3, 0.7, 0)
    labels = ["a", "b", "c", "d", "e"]
    found = slices.per_class(truth, predicted, labels, 0.95)
    expected = np.mean(
        [precision_recall_fscore_support(truth, run, labels=range(5), zero_division=0) for run in predicted],
        axis=0,
    )
    for index, one in enumerate(found):
        assert one.label == labels[index]
        values = [one.precision.value, one.recall.value, one.f1.value, one.support]
        assert values == pytest.approx(expected[:, index])
        for interval in (one.precision, one.recall, one.f1):
            assert 0 <= interval.low < interval.value < interval.high <= 1
            assert interval.seeds == 3


def test_recalls_interval_is_that_of_a_mean_over_the_classs_items() -> None:
    truth, predicted = predictions(200, 3, 4, 0.7, 1)
    for index, one in enumerate(slices.per_class(truth, predicted, ["a", "b", "c"], 0.9)):
        right = (predicted[:, truth == index] == index).astype(float)
        assert one.recall == intervals.of_mean(right, 0.9, (0, 1))


def test_intervals_of_ratios_are_as_wide_as_a_bootstraps() -> None:
    truth, predicted = predictions(600, 3, 1, 0.7, 2)
    one = slices.per_class(truth, predicted, ["a", "b", "c"], 0.95)[0]
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(2000):
        items = random.integers(0, 600, 600)
        is_class, said = truth[items] == 0, predicted[0, items] == 0
        hits = (is_class & said).sum()
        drawn.append((hits / said.sum(), 2 * hits / (is_class.sum() + said.sum())))
    for interval, values in zip((one.precision, one.f1), np.transpose(drawn), strict=True):
        low, high = np.quantile(values, [0.025, 0.975])
        assert interval.high - interval.low == pytest.approx(high - low, rel=0.1)
        assert interval.low == pytest.approx(low, abs=0.015)


def test_intervals_hold_the_truth() -> None:
    """Precision is 1/2 where half of what is said to be of a class is of it."""
    held = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        truth = random.integers(0, 2, 60)
        bias = random.normal(0, 0.3, (3, 1))  # some runs say "0" more often
        predicted = (random.random((3, 60)) < 0.5 + bias / 2).astype(np.int64)
        one = slices.per_class(truth, predicted, ["a", "b"], 0.95)[0]
        held += one.precision.low <= 0.5 <= one.precision.high
    assert held >= 184


def test_classes_of_which_little_is_known_say_so() -> None:
    truth = np.array([0] * 30 + [1] * 19 + [2])
    predicted = np.array([[0] * 30 + [1] * 19 + [0], [0] * 30 + [1] * 19 + [0]])
    all_right, few, single, none = slices.per_class(truth, predicted, ["a", "b", "c", "d"], 0.95)
    assert [one.few for one in (all_right, few, single, none)] == [False, True, True, True]
    # Right on all of 30 items is not known to be right on all there are.
    assert all_right.recall.value == 1
    assert 0.8 < all_right.recall.low < 1
    assert few.precision.low < all_right.recall.low
    for one in (single, none):
        assert (one.recall.value, one.recall.low, one.recall.high) == (0, 0, 1)
        assert (one.f1.value, one.precision.value) == (0, 0)
    assert (none.f1.low, none.f1.high, none.support) == (0, 1, 0)


def test_runs_of_one_subset_count_as_one() -> None:
    truth, predicted = predictions(200, 2, 4, 0.7, 3)
    plain = slices.per_class(truth, predicted, ["a", "b"], 0.95)[0]
    grouped = slices.per_class(truth, predicted, ["a", "b"], 0.95, [1, 1, 2, 2])[0]
    assert grouped.recall.value == pytest.approx(plain.recall.value)
    right = (predicted[:, truth == 0] == 0).astype(float)
    assert grouped.recall == intervals.of_mean(right, 0.95, (0, 1), [1, 1, 2, 2])


def test_a_thousand_classes_are_fast() -> None:
    truth, predicted = predictions(10_000, 1000, 5, 0.7, 4)
    labels = [str(label) for label in range(1000)]
    started = process_time()
    assert len(slices.per_class(truth, predicted, labels, 0.95)) == 1000
    assert process_time() - started < 5


# ----------------------------------------------------------------------------------------------------- slices


def test_terciles_have_their_bounds_in_their_names() -> None:
    told = slices.terciles(np.array([5.0, 1, 2, 9, 3, 7, np.nan]))
    assert told.tolist() == [
        "middle (3 to 5)", "short (1 to 2)", "short (1 to 2)", "long (7 to 9)", "middle (3 to 5)",
        "long (7 to 9)", "",
    ]  # fmt: skip
    # Equal numbers stay together.
    assert set(slices.terciles(np.full(9, 32.0))) == {"long (32)"}
    tied = slices.terciles(np.array([1.0, 1, 1, 1, 1, 2, 3, 4.25, 5]))
    assert sorted(set(tied)) == ["long (3 to 5)", "middle (1 to 2)"]
    assert slices.terciles(np.array([0.12345, 2, 3.0]))[0] == "short (0.123)"
    assert slices.terciles(np.array([np.nan, np.nan])).tolist() == ["", ""]


def test_a_row_for_each_value_of_each_fact() -> None:
    random = np.random.default_rng(0)
    lengths = np.arange(90.0)
    source = np.array(["web"] * 50 + ["mail"] * 30 + ["fax"] * 9 + ["pigeon"])
    chance = np.where(lengths < 30, 0.5, 0.9)
    scores = (random.random((3, 90)) < chance).astype(float)
    weaker = (random.random((3, 90)) < chance - 0.4).astype(float)
    found = slices.table({"length": lengths, "source": source}, scores, "accuracy", 0.95, reference=weaker)
    assert [(one.name, one.value, one.items, one.few) for one in found] == [
        ("length", "short (0 to 29)", 30, False),
        ("length", "middle (30 to 59)", 30, False),
        ("length", "long (60 to 89)", 30, False),
        ("source", "web", 50, False),
        ("source", "mail", 30, False),
        ("source", "fax", 9, True),
    ]
    short = found[0]
    assert short.mean == intervals.of_mean(scores[:, :30], 0.95, (0, 1))
    assert short.rest.value == pytest.approx(scores[:, :30].mean() - scores[:, 30:].mean())
    assert short.rest.high < 0
    assert found[2].rest.value > 0
    assert short.reference_mean == pytest.approx(weaker[:, :30].mean())
    assert short.improvement == intervals.of_difference(scores[:, :30] - weaker[:, :30], 0.95, (0, 1))
    alone = slices.table({"length": lengths}, scores, "accuracy", 0.95)[0]
    assert (alone.reference_mean, alone.improvement) == (None, None)
    assert alone.rest == short.rest


def test_thirds_are_called_after_what_is_measured() -> None:
    numbers = np.arange(9.0)
    names = {"length in words": "short", "brightness, 0 to 255": "dark", "file size": "low"}
    for fact, expected in names.items():
        found = slices.table({fact: numbers}, np.ones((1, 9)), "accuracy", 0.95)
        assert found[0].value == f"{expected} (0 to 2)"
        assert len(found) == 3


def test_less_loss_is_an_improvement() -> None:
    scores = np.random.default_rng(0).exponential(1, (2, 40))
    one, _ = slices.table({"half": np.arange(40) // 20 == 0}, scores, "log_loss", 0.95, reference=scores + 1)
    assert one.improvement is not None
    assert one.improvement.value == pytest.approx(1)


def test_items_without_a_value_are_in_no_slice() -> None:
    scores = np.tile([0.0, 1.0], (1, 6))
    fact = np.array(["a", "b"] * 4 + [None] * 4, dtype=object)
    found = slices.table({"fact": fact}, scores, "accuracy", 0.95)
    assert [(one.value, one.items) for one in found] == [("a", 4), ("b", 4)]
    # The rest are the items with another value.
    assert found[0].rest.value == -1
    assert slices.table({"fact": np.full(12, "same")}, scores, "accuracy", 0.95) == []
    many = np.array([f"{at // 2:02}" for at in range(60)])
    found = slices.table({"fact": many}, np.ones((1, 60)), "accuracy", 0.95)
    assert [one.value for one in found] == [f"{at:02}" for at in range(slices.MOST_VALUES)]


@pytest.mark.parametrize("runs_differ", [0.0, 0.1])
def test_the_difference_to_the_rest_holds_the_truth(runs_differ: float) -> None:
    held, width = 0, []
    for seed in range(300):
        random = np.random.default_rng(seed)
        chance = 0.8 + runs_differ * random.normal(size=(3, 1)) + 0.1 * random.normal(size=(1, 150))
        scores = (random.random((3, 150)) < chance - np.r_[np.full(30, 0.15), np.zeros(120)]).astype(float)
        found = slices.between(scores[:, :30], scores[:, 30:], 0.95, (0, 1))
        # Chances beyond 0 and 1 are cut, so the truth is that of very many items.
        held += found.low <= (-0.148 if runs_differ == 0 else -0.135) <= found.high
        width.append(found.high - found.low)
    assert held >= 279
    assert np.mean(width) < 0.6


def test_all_right_in_both_is_not_known_to_be_no_difference() -> None:
    found = slices.between(np.ones((3, 10)), np.ones((3, 500)), 0.95, (0, 1))
    assert found.value == 0
    assert found.low < -0.1
    assert found.items == 510
    grouped = slices.between(np.ones((3, 10)), np.ones((3, 500)), 0.95, (0, 1), [1, 1, 2])
    assert grouped == found


# --------------------------------------------------------------------------------------- groups of items


def test_slices_of_items_in_groups_are_over_the_groups() -> None:
    random = np.random.default_rng(0)
    clusters = np.repeat(np.arange(12), 5)
    scores = random.random((2, 60))
    weaker = scores - random.random((2, 60))
    fact = np.where(np.arange(60) < 30, "a", "b")
    one, two = slices.table({"half": fact}, scores, "accuracy", 0.95, reference=weaker, clusters=clusters)
    own = intervals.by_cluster(scores[:, :30], clusters[:30])
    assert one.mean == intervals.of_mean(own, 0.95, (0, 1))
    gains = intervals.by_cluster((scores - weaker)[:, :30], clusters[:30])
    assert one.improvement == intervals.of_difference(gains, 0.95, (0, 1))
    assert (one.items, one.mean.items, one.few) == (30, 6, True)
    assert two.rest.value == pytest.approx(-one.rest.value)


def test_a_slice_that_is_one_group_is_told_by_its_items_and_a_part_of_one_is_not() -> None:
    scores = np.random.default_rng(0).random((1, 60))
    clusters = np.repeat(np.arange(2), 30)
    fact = np.array(["whole"] * 30 + ["part"] * 20 + ["rest"] * 10)
    found = slices.table({"fact": fact}, scores, "accuracy", 0.95, clusters=clusters)
    assert [one.value for one in found] == ["whole"]
    assert found[0].mean == intervals.of_mean(scores[:, :30], 0.95, (0, 1))


def test_classes_of_items_in_groups_are_over_the_groups() -> None:
    truth, predicted = predictions(200, 2, 3, 0.7, 5)
    clusters = np.arange(200) // 4
    one, _ = slices.per_class(truth, predicted, ["a", "b"], 0.95, clusters=clusters)
    right = (predicted[:, truth == 0] == 0).astype(float)
    grouped = intervals.by_cluster(right, clusters[truth == 0])
    assert one.recall == intervals.of_mean(grouped, 0.95, (0, 1))
    plain = slices.per_class(truth, predicted, ["a", "b"], 0.95)[0]
    assert (one.precision.value, one.f1.value) == pytest.approx((plain.precision.value, plain.f1.value))
    alone = slices.per_class(truth, predicted, ["a", "b"], 0.95, clusters=np.arange(200))[0]
    assert (alone.f1.low, alone.precision.high) == pytest.approx((plain.f1.low, plain.precision.high))
    nobody = slices.per_class(truth, predicted, ["a", "b", "c"], 0.95, clusters=clusters)[2]
    assert (nobody.recall.value, nobody.recall.low, nobody.recall.high) == (0, 0, 1)


@pytest.mark.parametrize(
    ("metric", "of_task", "told"),
    [
        ("accuracy", ("accuracy", "macro_f1", "log_loss"), "accuracy"),
        ("macro_f1", ("accuracy", "macro_f1", "log_loss"), "accuracy"),
        ("log_loss", ("accuracy", "macro_f1", "log_loss"), "log_loss"),
        ("perplexity", ("loss", "token_accuracy", "perplexity"), "loss"),
        ("entity_f1", ("entity_f1", "token_accuracy", "loss"), "loss"),
        ("coco_map", ("coco_map", "coco_map_50"), "coco_map"),
    ],
)
def test_slices_are_told_in_a_mean_over_items_where_there_is_one(
    metric: str, of_task: tuple[str, ...], told: str
) -> None:
    assert slices.metric_of(metric, of_task) == told


def test_shares_may_lie_beyond_the_metrics_ends() -> None:
    scores = np.r_[np.full(10, -0.4), np.full(10, 1.6)][None, :] + np.random.default_rng(0).normal(
        0, 0.1, (1, 20)
    )
    low, high = slices.table({"half": np.arange(20) // 10}, scores, "coco_map", 0.95)
    assert low.mean.low < low.mean.value < low.mean.high < 0
    assert high.mean.value > 1
