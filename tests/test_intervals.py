from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from benchmarks import coverage
from benchmarks.coverage import World
from steps import intervals

Scores = NDArray[np.float64]


def test_one_seed_is_the_t_interval_of_the_items() -> None:
    scores = np.random.default_rng(0).gamma(2.0, size=40)
    found = intervals.of_mean(scores[None, :], 0.95)
    expected = stats.t.interval(0.95, 39, loc=scores.mean(), scale=stats.sem(scores))
    assert (found.low, found.high) == pytest.approx(expected)
    assert (found.seeds, found.items) == (1, 40)


def test_items_that_all_agree_leave_the_t_interval_of_the_seeds() -> None:
    by_seed = np.array([0.2, 0.3, 0.7])
    found = intervals.of_mean(np.repeat(by_seed[:, None], 50, axis=1), 0.9)
    expected = stats.t.interval(0.9, 2, loc=by_seed.mean(), scale=stats.sem(by_seed))
    assert (found.low, found.high) == pytest.approx(expected)


def test_one_proportion_is_that_of_agresti_and_coull() -> None:
    scores = np.array([1.0] * 87 + [0.0] * 13)
    found = intervals.of_mean(scores[None, :], 0.95, (0, 1))
    share = 89 / 104
    half = stats.t.ppf(0.975, 103) * np.sqrt(share * (1 - share) / 103)
    assert found.value == pytest.approx(0.87)
    assert (found.low, found.high) == pytest.approx((share - half, share + half))


def test_paired_proportions_are_those_of_bonett_and_price() -> None:
    # Both right 60, only the first 25, only the second 10, neither 5.
    differences = np.array([0.0] * 65 + [1.0] * 25 + [-1.0] * 10)
    found = intervals.of_difference(differences[None, :], 0.95, (0, 1))
    first, second = 26 / 102, 11 / 102
    spread = np.sqrt((first + second - (first - second) ** 2) / 101)
    half = stats.t.ppf(0.975, 101) * spread
    assert (found.low, found.high) == pytest.approx((first - second - half, first - second + half))


def test_components_are_those_of_the_analysis_of_variance() -> None:
    rng = np.random.default_rng(4)
    scores = rng.normal(size=(4, 1)) + rng.normal(size=(1, 30)) + rng.normal(size=(4, 30))
    seeds, items = scores.shape
    grand, rows, columns = scores.mean(), scores.mean(1, keepdims=True), scores.mean(0, keepdims=True)
    ms_seeds = items * ((rows - grand) ** 2).sum() / 3
    ms_items = seeds * ((columns - grand) ** 2).sum() / 29
    ms_rest = ((scores - rows - columns + grand) ** 2).sum() / (3 * 29)
    squared = stats.t.ppf(0.975, 3) ** 2 * ms_seeds + stats.t.ppf(0.975, 29) ** 2 * (ms_items - ms_rest)
    found = intervals.of_mean(scores, 0.95)
    assert found.high - found.value == pytest.approx(np.sqrt(squared / (seeds * items)))


def test_seeds_that_agree_by_chance_make_it_no_narrower_than_items_alone() -> None:
    rng = np.random.default_rng(6)
    scores = rng.normal(size=(2, 40))
    scores -= scores.mean(axis=1, keepdims=True)
    found, items = intervals.of_mean(scores, 0.95), intervals.of_mean(scores.mean(axis=0)[None, :], 0.95)
    assert (found.low, found.high) == pytest.approx((items.low, items.high))


def test_all_right_on_five_items_is_no_certainty() -> None:
    found = intervals.of_mean(np.ones((3, 5)), 0.95, (0, 1))
    assert found.value == found.high == 1
    assert found.low < 0.7


def test_equal_arms_straddle_nought_even_without_any_spread() -> None:
    found = intervals.of_difference(np.zeros((3, 5)), 0.95, (0, 1))
    assert found.value == 0
    assert found.low < 0 < found.high


def test_winning_every_one_of_four_items_is_not_enough() -> None:
    assert intervals.of_difference(np.ones((3, 4)), 0.95, (0, 1)).low < 0


def test_ends_stay_within_what_there_can_be_and_hold_the_mean() -> None:
    rng = np.random.default_rng(1)
    for share in (0.02, 0.5, 0.98):
        scores = (rng.random((2, 12)) < share).astype(float)
        found = intervals.of_mean(scores, 0.99, (0, 1))
        assert 0 <= found.low <= found.value <= found.high <= 1


def test_more_confidence_is_wider() -> None:
    scores = np.random.default_rng(2).random((3, 40))
    widths = [found.high - found.low for found in (intervals.of_mean(scores, c) for c in (0.5, 0.9, 0.99))]
    assert widths == sorted(widths)


# -------------------------------------------------------------------------------- training subsets


def test_runs_of_a_subset_are_averaged_first() -> None:
    scores = np.random.default_rng(3).random((6, 40))
    groups = [2, 1, 2, 1, 3, 3]
    averaged = np.stack([scores[[1, 3]], scores[[0, 2]], scores[[4, 5]]]).mean(axis=1)
    found, expected = intervals.of_mean(scores, 0.95, groups=groups), intervals.of_mean(averaged, 0.95)
    assert (found.value, found.low, found.high) == (expected.value, expected.low, expected.high)
    assert found.seeds == 6


def test_one_subset_is_no_grouping() -> None:
    scores = np.random.default_rng(3).random((4, 40))
    assert intervals.of_mean(scores, 0.95, groups=[5] * 4) == intervals.of_mean(scores, 0.95)


def test_subsets_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(6, 200)) + np.repeat([0.0, 1.0, 2.0], 2)[:, None]
    grouped = intervals.of_difference(scores, 0.95, groups=[1, 1, 2, 2, 3, 3])
    alone = intervals.of_difference(scores, 0.95)
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)
    # Items matter little here, so it is the t interval of the subsets' means.
    means = scores.reshape(3, -1).mean(axis=1)
    expected = stats.t.interval(0.95, 2, loc=means.mean(), scale=stats.sem(means))
    assert (grouped.low, grouped.high) == pytest.approx(expected, rel=0.02)


# ---------------------------------------------------------------------------------------- properties


@given(st.integers(0, 500), st.sampled_from([(1, 12), (2, 30), (3, 25), (5, 40)]))
def test_the_order_of_runs_and_items_changes_nothing(seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random(shape)
    shuffled = scores[rng.permutation(shape[0])][:, rng.permutation(shape[1])]
    found, same = intervals.of_mean(scores, 0.95, (0, 1)), intervals.of_mean(shuffled, 0.95, (0, 1))
    assert (found.low, found.high) == pytest.approx((same.low, same.high))


@given(st.integers(0, 500), st.floats(-10, 10), st.floats(0.1, 10))
def test_a_constant_shifts_and_a_factor_stretches(seed: int, constant: float, factor: float) -> None:
    scores = np.random.default_rng(seed).normal(size=(3, 25))
    found = intervals.of_mean(scores, 0.9)
    moved = intervals.of_mean(factor * scores + constant, 0.9)
    expected = (factor * found.low + constant, factor * found.high + constant)
    assert (moved.low, moved.high) == pytest.approx(expected)


@given(st.integers(0, 500))
def test_the_mirrored_difference_has_the_mirrored_interval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gains = rng.integers(-1, 2, size=(3, 20)).astype(np.float64)
    found, other = (intervals.of_difference(one, 0.95, (0, 1)) for one in (gains, -gains))
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low))


# ------------------------------------------------------------------------------------------ coverage


def right_or_wrong(
    rng: np.random.Generator, seeds: int, items: int, by_seed: float, skill: float = 1.2
) -> Scores:
    """Answers right where skill, the seed's luck and the item's ease outweigh chance: a probit model."""
    strength = by_seed * rng.normal(size=(seeds, 1)) + rng.normal(size=items)
    return np.asarray(strength + 0.5 * rng.normal(size=(seeds, items)) + skill > 0, dtype=np.float64)


def true_share(by_seed: float, skill: float = 1.2) -> float:
    return float(stats.norm.cdf(skill / np.sqrt(by_seed**2 + 1 + 0.25)))


def share_held(draw: Callable[[], intervals.Interval], truth: float, times: int) -> float:
    found = [draw() for _ in range(times)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def difference(rng: np.random.Generator, seeds: int, items: int, by_seed: float) -> intervals.Interval:
    """Two arms on the same items, whose ease they largely share."""
    shared = rng.normal(size=items)
    scores = []
    for skill in (1.2, 0.8):
        ease = 0.8 * shared + 0.6 * rng.normal(size=items)
        strength = by_seed * rng.normal(size=(seeds, 1)) + ease + 0.5 * rng.normal(size=(seeds, items))
        scores.append((strength + skill > 0).astype(np.float64))
    return intervals.of_difference(scores[0] - scores[1], 0.95, (0, 1))


@pytest.mark.parametrize("by_seed", [0.0, 0.1, 0.3])
def test_intervals_hold_the_truth_as_often_as_they_say(by_seed: float) -> None:
    rng = np.random.default_rng(0)
    held = share_held(
        lambda: intervals.of_mean(right_or_wrong(rng, 3, 200, by_seed), 0.95, (0, 1)),
        true_share(by_seed),
        600,
    )
    assert 0.93 <= held <= 0.995
    gap = true_share(by_seed) - true_share(by_seed, 0.8)
    assert 0.93 <= share_held(lambda: difference(rng, 3, 200, by_seed), gap, 600) <= 0.995


def test_resampling_three_seeds_holds_it_less_often() -> None:
    """The reason for not using the bootstrap, which would be the shorter code."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        scores = right_or_wrong(rng, 3, 400, 0.3)
        seeds = rng.multinomial(3, np.full(3, 1 / 3), 200) / 3
        items = rng.multinomial(400, np.full(400, 1 / 400), 200) / 400
        low, high = np.quantile(((seeds @ scores) * items).sum(axis=1), [0.025, 0.975])
        held += low <= true_share(0.3) <= high
    assert held / 200 < 0.9


# ----------------------------------------------------------------------------------------- groups of items


def test_groups_keep_every_runs_mean_and_weigh_by_size() -> None:
    scores = np.array([[1.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.0, 1.0, 0.0, 1.0]])
    found = intervals.by_cluster(scores, np.array([7, 3, 7, 7, 3]))
    means = scores.mean(axis=1)
    # The groups, in ascending order, have 2 and 3 of the 5 items.
    expected = [
        [mean + 2 / 2.5 * (one[[1, 4]].mean() - mean), mean + 3 / 2.5 * (one[[0, 2, 3]].mean() - mean)]
        for mean, one in zip(means, scores, strict=True)
    ]
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(found.mean(axis=1), means)


def test_groups_of_one_item_leave_the_plain_interval() -> None:
    scores = np.random.default_rng(0).random((3, 40))
    alone = intervals.by_cluster(scores, np.random.default_rng(1).permutation(40))
    found, plain = (intervals.of_mean(table, 0.95, (0, 1)) for table in (alone, scores))
    assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high))
    assert found.items == 40
    assert intervals.by_cluster(scores, None) is scores


def test_the_variance_of_groups_is_the_ratio_estimators() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(12), rng.integers(1, 9, 12))
    scores = rng.random(len(clusters))
    sizes = np.bincount(clusters)
    residuals = np.bincount(clusters, scores) - scores.mean() * sizes
    # Cochran, Sampling Techniques, equation 6.10, with the sizes as the denominator.
    expected = (residuals**2).sum() / 11 / 12 / sizes.mean() ** 2
    found = intervals.by_cluster(scores[None, :], clusters)[0]
    assert found.var(ddof=1) / 12 == pytest.approx(expected)


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_over_groups_hold_the_truth_where_those_over_items_do_not(seeds: int) -> None:
    """Groups of very different sizes, and items of a group that go well or badly together."""
    rng = np.random.default_rng(2)
    held = {"groups": 0, "items": 0}
    for _ in range(400):
        sizes = rng.choice([2, 5, 12], 40)
        clusters = np.repeat(np.arange(40), sizes)
        ease = np.repeat(rng.normal(0, 1.5, 40), sizes)
        luck = 0.1 * rng.normal(size=(seeds, 1))
        scores = (rng.random((seeds, len(clusters))) < 1 / (1 + np.exp(-ease - luck))).astype(np.float64)
        for name, table in (("groups", intervals.by_cluster(scores, clusters)), ("items", scores)):
            one = intervals.of_mean(table, 0.95, (0, 1))
            held[name] += one.low <= 0.5 <= one.high
    assert held["groups"] >= 0.93 * 400
    assert held["items"] <= 0.85 * 400


@pytest.mark.parametrize(
    "world", [World(3, 100, 0.1, 1.5), World(2, 100, 0.1, 1.5, subsets=3, subset_luck=0.6)]
)
def test_intervals_and_claims_of_the_coverage_benchmark(world: World) -> None:
    found = coverage.count(world, 400)
    assert min(found.held["Headstart"]) >= 0.93
    assert found.helps <= 0.05
    assert found.family <= 0.05
    assert found.widths["Headstart"][1] > found.widths["Satterthwaite"][1]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("items", [20, 100, 800])
@pytest.mark.parametrize("by_seed", [0.0, 0.1, 0.3])
def test_coverage_over_many_settings(seeds: int, items: int, by_seed: float) -> None:
    rng = np.random.default_rng(1)
    one = share_held(
        lambda: intervals.of_mean(right_or_wrong(rng, seeds, items, by_seed), 0.95, (0, 1)),
        true_share(by_seed),
        1500,
    )
    gap = true_share(by_seed) - true_share(by_seed, 0.8)
    two = share_held(lambda: difference(rng, seeds, items, by_seed), gap, 1500)
    assert min(one, two) >= 0.93
