import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from steps import bootstrap, efficiency
from steps.efficiency import Point, Saved
from steps.errors import HeadstartError


def points(*means: float, labels: tuple[int, ...] = (25, 50, 100, 200, 400)) -> list[Point]:
    return [Point(one, [mean]) for one, mean in zip(labels, means, strict=False)]


# ------------------------------------------------------------------------------------------- the fit


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=1, max_size=8))
def test_the_fit_is_that_of_scipy(values: list[list[float]]) -> None:
    curve = [Point(10 * (at + 1), one) for at, one in enumerate(values)]
    expected = isotonic_regression([np.mean(one) for one in values], weights=[len(one) for one in values]).x
    np.testing.assert_allclose(efficiency.monotone(curve), expected, atol=1e-12)


def test_pooling_by_hand() -> None:
    # 0.7 and 0.6 violate the order and are pooled.
    assert efficiency.monotone(points(0.5, 0.7, 0.6, 0.9)) == pytest.approx([0.5, 0.65, 0.65, 0.9])
    assert efficiency.monotone(points(2.0, 1.0, 1.2), higher_is_better=False) == pytest.approx([2, 1.1, 1.1])


# ------------------------------------------------------------------------------------- labels needed


def test_labels_are_read_off_on_a_logarithmic_scale() -> None:
    curve = points(0.5, 0.6, 0.7, 0.8, 0.9)
    assert efficiency.labels_needed(curve, 0.65) == pytest.approx(np.sqrt(50 * 100))
    assert efficiency.labels_needed(curve, 0.7) == pytest.approx(100)
    assert efficiency.labels_needed(curve[::-1], 0.65) == pytest.approx(np.sqrt(50 * 100))


def test_outside_of_the_budgets_nothing_is_extrapolated() -> None:
    curve = points(0.5, 0.6, 0.7)
    assert efficiency.labels_needed(curve, 0.71) is None
    assert efficiency.labels_needed(curve, 0.4) == pytest.approx(25)


def test_a_plateau_is_reached_where_it_begins() -> None:
    assert efficiency.labels_needed(points(0.5, 0.7, 0.7, 0.7), 0.7) == pytest.approx(50)


def test_lower_may_be_better() -> None:
    assert efficiency.labels_needed(points(2.0, 1.0, 0.5), 1.5, higher_is_better=False) == pytest.approx(
        np.sqrt(25 * 50)
    )


@pytest.mark.parametrize("labels", [(25, 25, 50), (25,), (0, 25)])
def test_budgets_that_give_no_curve(labels: tuple[int, ...]) -> None:
    with pytest.raises(HeadstartError, match=r"label budgets .* give no curve"):
        efficiency.labels_needed(points(0.5, 0.6, 0.7, labels=labels), 0.6)


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5), st.floats(0, 1), st.floats(0, 1))
def test_more_accuracy_needs_no_fewer_labels(means: list[float], one: float, two: float) -> None:
    less, more = (efficiency.labels_needed(points(*means), value) for value in sorted((one, two)))
    assert (less or np.inf) <= (more or np.inf) * (1 + 1e-9)


# ------------------------------------------------------------------------------------- labels saved


def noisy(runs: int, needed: float, spread: float = 0.01) -> tuple[list[Point], Point]:
    """A reference that gains 8 points with every doubling, an arm on 50 labels as good as it on `needed`."""
    rng = np.random.default_rng(1)
    labels = [25, 50, 100, 200, 400]
    curve = [Point(one, list(0.3 + 0.08 * np.log2(one) + spread * rng.normal(size=runs))) for one in labels]
    return curve, Point(50, list(0.3 + 0.08 * np.log2(needed) + spread * rng.normal(size=runs)))


def test_labels_saved_without_noise() -> None:
    found = efficiency.saved(*noisy(3, 150, spread=0), 0.95)
    assert (found.labels, found.low, found.high) == pytest.approx((100, 100, 100))
    assert not found.more_than


def test_the_interval_holds_the_truth_and_narrows_with_runs() -> None:
    few, many = (efficiency.saved(*noisy(runs, 150), 0.95) for runs in (3, 30))
    widths = []
    for found in (few, many):
        assert found.low is not None
        assert found.high is not None
        assert found.low < 100 < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_what_no_budget_reaches_is_more_than_the_largest() -> None:
    found = efficiency.saved(*noisy(3, 2000), 0.95)
    assert (found.labels, found.high, found.more_than) == (350, None, True)
    assert found.low == 350


def test_near_the_largest_budget_the_upper_end_is_open() -> None:
    found = efficiency.saved(*noisy(3, 380, spread=0.02), 0.95)
    assert found.high is None
    assert found.low is not None
    assert found.low < 350


def test_a_worse_arm_needs_more() -> None:
    found = efficiency.saved(noisy(3, 30, 0.001)[0], Point(200, noisy(3, 30, 0.001)[1].values), 0.95)
    assert found.labels == pytest.approx(-170, abs=5)
    assert found.high is not None
    assert found.high < 0


def test_one_run_has_no_interval() -> None:
    reference, arm = noisy(1, 150, spread=0)
    found = efficiency.saved(reference, arm, 0.95)
    assert found.labels == pytest.approx(100)
    assert (found.low, found.high, found.more_than) == (None, None, False)


def test_budgets_with_other_runs_stop() -> None:
    reference, arm = noisy(3, 150)
    reference[1] = Point(50, [0.5, 0.6])
    with pytest.raises(
        HeadstartError, match="50 training labels have 2 runs of the reference, the arm has 3"
    ):
        efficiency.saved(reference, arm, 0.95)


def test_log_loss_saves_the_same() -> None:
    reference, arm = noisy(3, 150)
    mirrored = [Point(one.labels, [1 - value for value in one.values]) for one in [*reference, arm]]
    found = efficiency.saved(mirrored[:-1], mirrored[-1], 0.95, higher_is_better=False)
    assert found.labels == pytest.approx(efficiency.saved(reference, arm, 0.95).labels)


@given(st.integers(0, 300), st.integers(2, 5))
def test_the_order_of_runs_and_a_constant_change_nothing(seed: int, runs: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.random((6, runs))
    shares = bootstrap.run_weights(runs, 60, seed) / runs

    def of(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Saved:
        *reference, arm = (Point(10 * 2**at, list(one)) for at, one in enumerate(values))
        return efficiency.saved(reference, Point(20, arm.values), 0.9, shares=shares)

    order = rng.permutation(runs)
    first, constant = of(table), of(table + 3.0)
    assert of(table[:, order]).labels == pytest.approx(first.labels)
    assert constant.labels == pytest.approx(first.labels)
    assert constant.low == pytest.approx(first.low)


def test_subsets_are_the_draws_where_there_are_several() -> None:
    reference, arm = noisy(6, 150)
    groups = [1, 1, 2, 2, 3, 3]

    def averaged(point: Point) -> Point:
        return Point(point.labels, list(np.reshape(point.values, (3, 2)).mean(axis=1)))

    found = efficiency.saved(reference, arm, 0.95, groups=groups)
    expected = efficiency.saved([averaged(one) for one in reference], averaged(arm), 0.95)
    assert (found.labels, found.low, found.high) == pytest.approx(
        (expected.labels, expected.low, expected.high)
    )


def test_six_arms_take_little_time() -> None:
    reference, arm = noisy(5, 150)
    started = time.process_time()
    for _ in range(6):
        efficiency.saved(reference, arm, 0.95)
    assert time.process_time() - started < 1
