import numpy as np
import pytest
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

from steps import stability


def right(*accuracies: float, items: int = 400) -> NDArray[np.float64]:
    """Runs with so many of the items right."""
    return np.stack([(np.arange(items) < round(one * items)).astype(np.float64) for one in accuracies])


def failed(*accuracies: float, majority: float = 0.25, items: int = 400) -> list[bool]:
    return list(stability.failed_runs(right(*accuracies, items=items), majority, 0.95))


def test_runs_that_agree_are_stable() -> None:
    found = stability.stability([0.80, 0.81, 0.79], right(0.80, 0.81, 0.79), 0.25, 0.95)
    assert found.sd == pytest.approx(0.01)
    assert (found.runs, found.low, found.high, found.failed) == (3, 0.79, 0.81, 0)
    assert found.failed_runs == (False, False, False)


@pytest.mark.parametrize(("accuracy", "at_chance"), [(0.20, True), (0.25, True), (0.28, True), (0.31, False)])
def test_a_run_at_chance_failed(accuracy: float, at_chance: bool) -> None:
    assert failed(accuracy, majority=0.25) == [at_chance]


def test_always_the_largest_class_is_chance_however_large_it_is() -> None:
    assert failed(0.9, 0.9, majority=0.9) == [True, True]


def test_a_run_far_below_the_others_failed_though_above_chance() -> None:
    assert failed(0.90, 0.91, 0.89, 0.60) == [False, False, False, True]


def test_ten_points_are_no_failure() -> None:
    assert failed(0.90, 0.90, 0.90, 0.805) == [False] * 4
    assert failed(0.90, 0.90, 0.90, 0.795) == [False] * 3 + [True]
    # Two of three that agree closely make no failure of the third.
    assert failed(0.907, 0.919, 0.855) == [False] * 3


def test_where_runs_scatter_far_is_further() -> None:
    # Median 0.80, median absolute deviation 0.05: the limit is 0.80 - 3 * 1.4826 * 0.05 = 0.578.
    assert failed(0.70, 0.75, 0.80, 0.85, 0.90) == [False] * 5
    assert failed(0.55, 0.75, 0.80, 0.85, 0.90, majority=0.1) == [True] + [False] * 4


def test_two_runs_have_no_outlier() -> None:
    assert failed(0.95, 0.50) == [False, False]


def test_with_five_test_items_nothing_is_above_chance() -> None:
    assert failed(0.6, 0.8, majority=0.4, items=5) == [True, True]


def test_one_run_has_no_spread() -> None:
    found = stability.stability([0.8], right(0.8), 0.25, 0.95)
    assert found.sd is None
    assert (found.failed, found.failed_share.low) == (0, 0)
    assert found.failed_share.high == pytest.approx(0.975)


@pytest.mark.parametrize(("count", "runs"), [(0, 3), (1, 3), (3, 3), (2, 20), (0, 1)])
def test_the_share_is_that_of_clopper_and_pearson(count: int, runs: int) -> None:
    found = stability.share(count, runs, 0.9)
    expected = proportion_confint(count, runs, alpha=0.1, method="beta")
    assert found.value == count / runs
    assert (found.low, found.high) == pytest.approx([0.0 if np.isnan(one) else one for one in expected])


def test_none_of_three_by_hand() -> None:
    # Upper end x with (1 - x)^3 = 0.025.
    assert stability.share(0, 3, 0.95).high == pytest.approx(1 - 0.025 ** (1 / 3))


def test_the_order_of_items_changes_nothing() -> None:
    table = (np.random.default_rng(0).random((4, 90)) < 0.4).astype(np.float64)
    for seed in range(5):
        shuffled = table[:, np.random.default_rng(seed).permutation(90)]
        assert stability.failed_runs(shuffled, 0.3, 0.95) == stability.failed_runs(table, 0.3, 0.95)


@pytest.mark.parametrize(
    ("metric", "values", "failed"),
    [
        ("coco_map", [0.4, 0.41, 0.42, 0.2], (False, False, False, True)),
        ("coco_map", [0.4, 0.41, 0.42, 0.35], (False, False, False, False)),
        # It is failed where it is above, not below.
        ("loss", [2.0, 2.01, 1.99, 1.2], (False, False, False, False)),
        ("loss", [2.0, 2.01, 1.99, 2.5], (False, False, False, True)),
        ("perplexity", [50.0, 50.5, 51.0, 54.0], (False, False, False, False)),
        ("perplexity", [50.0, 50.5, 51.0, 60.0], (False, False, False, True)),
        ("psnr", [20.0, 20.1, 20.2, 18.0], (False, False, False, True)),
    ],
)
def test_without_classes_a_run_fails_that_lies_far_from_the_others(
    metric: str, values: list[float], failed: tuple[bool, ...]
) -> None:
    found = stability.without_classes(values, metric, 0.95)
    assert found.failed_runs == failed
    assert found.failed == sum(failed)
    assert (found.low, found.high, found.runs) == (min(values), max(values), 4)
    assert found.sd == pytest.approx(np.std(values, ddof=1))
