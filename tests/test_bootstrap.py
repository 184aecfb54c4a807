import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from steps import bootstrap


def test_item_weights_are_poisson_counts() -> None:
    weights = np.concatenate(list(bootstrap.item_weights(400, 1000, seed=3)))
    counts = np.bincount(weights.astype(int).ravel(), minlength=9)
    expected = stats.poisson.pmf(np.arange(6), 1) * weights.size
    np.testing.assert_allclose(counts[:6], expected, rtol=0.05, atol=60)
    assert weights.dtype == np.float32
    assert np.corrcoef(weights[:, 0], weights[:, 1])[0, 1] == pytest.approx(0, abs=0.15)


def test_chunks_make_up_all_draws() -> None:
    sizes = [one.shape for one in bootstrap.item_weights(30, 70, chunk=32)]
    assert sizes == [(32, 30), (32, 30), (6, 30)]


def test_the_same_seed_gives_the_same_draws() -> None:
    first, second, other = (np.concatenate(list(bootstrap.item_weights(20, 50, seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    np.testing.assert_array_equal(bootstrap.run_weights(5, 9, 1), bootstrap.run_weights(5, 9, 1))


def test_no_draw_of_two_items_is_empty() -> None:
    weights = np.concatenate(list(bootstrap.item_weights(2, 2000)))
    assert weights.sum(axis=1).min() >= 1


@given(st.integers(1, 12), st.integers(1, 200))
def test_run_weights_draw_as_many_as_there_are(runs: int, draws: int) -> None:
    weights = bootstrap.run_weights(runs, draws)
    assert weights.shape == (draws, runs)
    np.testing.assert_array_equal(weights.sum(axis=1), runs)


@pytest.mark.parametrize("runs", [2, 3, 5, 10])
def test_student_weights_give_students_distribution(runs: int) -> None:
    values = np.random.default_rng(runs).normal(0.8, 0.02, runs)
    drawn = bootstrap.student_weights(runs, 20_000, seed=1) @ values
    scaled = (drawn - values.mean()) / stats.sem(values)
    assert stats.kstest(scaled, stats.t(runs - 1).cdf).pvalue > 0.001
    ends = np.quantile(drawn, [0.025, 0.975])
    expected = stats.t.interval(0.95, runs - 1, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose(ends, expected, atol=0.12 * (expected[1] - expected[0]))


def test_student_weights_move_all_values_of_a_run_together() -> None:
    weights = bootstrap.student_weights(4, 500)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    values = np.array([0.1, 0.5, 0.2, 0.9])
    np.testing.assert_allclose(weights @ (3 * values + 2), 3 * (weights @ values) + 2)


def test_student_weights_draw_subsets_where_there_are_several() -> None:
    weights = bootstrap.student_weights(6, 400, seed=2, groups=[1, 2, 3, 1, 2, 3])
    np.testing.assert_allclose(weights[:, :3], weights[:, 3:])
    np.testing.assert_allclose(2 * weights[:, :3], bootstrap.student_weights(3, 400, seed=2))
    alone = bootstrap.student_weights(4, 50)
    np.testing.assert_array_equal(bootstrap.student_weights(4, 50, groups=[1] * 4), alone)


# ------------------------------------------------------------------------------------------- means


def test_means_spread_as_theory_says() -> None:
    scores = np.random.default_rng(0).normal(size=(1, 400))
    drawn = bootstrap.means(scores[None], 5000)
    assert drawn.shape == (5000, 1)
    assert drawn.mean() == pytest.approx(scores.mean(), abs=0.005)
    assert drawn.std() == pytest.approx(scores.std() / 20, rel=0.05)


def test_tables_get_the_same_draws() -> None:
    scores = np.random.default_rng(0).random((3, 50))
    drawn = bootstrap.means(np.stack([scores, scores + 0.25]), 200)
    np.testing.assert_allclose(drawn[:, 1] - drawn[:, 0], 0.25, atol=1e-6)


def test_one_table_has_one_mean_a_draw() -> None:
    assert bootstrap.means(np.ones((3, 5)), 10) == pytest.approx(np.ones(10))


def test_seven_arms_of_ten_thousand_items_take_seconds_and_little_memory() -> None:
    scores = np.zeros((7, 5, 10_000))
    tracemalloc.start()
    started = time.process_time()
    bootstrap.means(scores)
    spent, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < 10
    assert peak < 100 * 2**20


# ---------------------------------------------------------------------------------------- intervals


def test_the_percentile_interval_is_made_of_quantiles() -> None:
    values = np.arange(1001.0)
    assert bootstrap.interval(values, 0.9, 500.0) == pytest.approx((50, 950))


def test_it_holds_the_value_itself() -> None:
    assert bootstrap.interval(np.full(10, 3.0), 0.95, 3.5) == (3.0, 3.5)


def test_bca_is_that_of_scipy() -> None:
    sample = np.random.default_rng(5).gamma(1.0, size=40)
    drawn = np.array([sample[at].mean() for at in np.random.default_rng(6).integers(0, 40, (20_000, 40))])
    jackknife = np.array([np.delete(sample, at).mean() for at in range(40)])
    found = bootstrap.interval(drawn, 0.95, float(sample.mean()), jackknife)
    expected = stats.bootstrap(
        (sample,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(7)
    ).confidence_interval
    width = expected.high - expected.low
    np.testing.assert_allclose(found, (expected.low, expected.high), atol=0.03 * width)
    # Skewed to the right, so it reaches further up than the percentile interval.
    assert found[1] > bootstrap.interval(drawn, 0.95, float(sample.mean()))[1]


def test_bca_of_draws_that_all_agree() -> None:
    assert bootstrap.interval(np.full(50, 2.0), 0.95, 2.0, np.full(9, 2.0)) == (2.0, 2.0)


@given(st.floats(-5, 5), st.integers(0, 50))
def test_adding_a_constant_shifts(constant: float, seed: int) -> None:
    values = np.random.default_rng(seed).gamma(2.0, size=400)
    jackknife = values[:30]
    for extra in (None, jackknife):
        low, high = bootstrap.interval(values, 0.9, float(values.mean()), extra)
        moved = None if extra is None else extra + constant
        shifted = bootstrap.interval(values + constant, 0.9, float((values + constant).mean()), moved)
        assert shifted == pytest.approx((low + constant, high + constant), abs=1e-6)
