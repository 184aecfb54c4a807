import itertools
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from steps import intervals, pairwise

# ---------------------------------------------------------------------------------------- McNemar


def right(both: int, only_first: int, only_second: int, neither: int) -> tuple[NDArray[Any], NDArray[Any]]:
    first = [True] * both + [True] * only_first + [False] * only_second + [False] * neither
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first), np.array(second)


@pytest.mark.parametrize("table", [(60, 25, 10, 5), (0, 1, 0, 9), (10, 0, 6, 0), (5, 7, 7, 5), (1, 40, 3, 0)])
def test_mcnemar_is_that_of_statsmodels(table: tuple[int, int, int, int]) -> None:
    both, only_first, only_second, neither = table
    found = pairwise.mcnemar(*right(*table))
    expected = reference_mcnemar([[both, only_first], [only_second, neither]], exact=True)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.p == pytest.approx(expected.pvalue)


def test_mcnemar_by_hand() -> None:
    # Of six items that only one has right, the first has all: 2 * (1/2)^6.
    assert pairwise.mcnemar(*right(3, 6, 0, 1)).p == pytest.approx(2 / 64)


def test_networks_that_agree_have_nothing_against_each_other() -> None:
    assert pairwise.mcnemar(*right(7, 0, 0, 3)) == pairwise.McNemar(0, 0, 1.0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_knows_no_order_and_mirrors(items: list[tuple[bool, bool]]) -> None:
    first, second = np.array(items).T
    found, mirrored = pairwise.mcnemar(first, second), pairwise.mcnemar(second, first)
    assert (mirrored.only_first, mirrored.only_second) == (found.only_second, found.only_first)
    assert mirrored.p == pytest.approx(found.p)
    assert pairwise.mcnemar(first[::-1], second[::-1]) == found
    assert 0 < found.p <= 1


# ------------------------------------------------------------------------------------------- Holm


def test_holm_by_hand() -> None:
    # Holm (1979), the example of step-down: 0.01 * 4, 0.02 * 3, 0.03 * 2, and 0.04 may not be below it.
    found = pairwise.holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    assert list(found) == ["d", "a", "c", "b"]
    assert found == pytest.approx({"d": 0.06, "a": 0.04, "c": 0.06, "b": 0.06})


@pytest.mark.parametrize("family", [1, 2, 6, 21])
def test_holm_is_that_of_statsmodels(family: int) -> None:
    p = np.random.default_rng(family).random(family).round(1).tolist()  # rounded: with ties
    found = pairwise.holm({str(at): one for at, one in enumerate(p)})
    np.testing.assert_allclose(list(found.values()), multipletests(p, method="holm")[1], atol=1e-12)


@given(st.lists(st.floats(1e-6, 1), min_size=2, max_size=10))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(p: list[float]) -> None:
    found = list(pairwise.holm({str(at): one for at, one in enumerate(p)}).values())
    for one, adjusted in zip(p, found, strict=True):
        assert one <= adjusted <= min(1, len(p) * one) + 1e-12
    ordered = [adjusted for _, adjusted in sorted(zip(p, found, strict=True))]
    assert ordered == sorted(ordered)


def test_no_comparison_is_an_empty_family() -> None:
    assert pairwise.holm({}) == {}


# ------------------------------------------------------------------------------------ p and interval


def p_of(table: NDArray[Any], bounds: tuple[float, float] = intervals.UNBOUNDED) -> float:
    spread = intervals.spread_of_difference(table, bounds)
    return pairwise.p_of(spread.value, spread.ends)


def test_with_one_run_p_is_that_of_students_test() -> None:
    gains = np.random.default_rng(0).normal(0.3, 1, 40)
    assert p_of(gains[None, :]) == pytest.approx(stats.ttest_1samp(gains, 0).pvalue, rel=1e-6)


def test_with_items_that_agree_p_is_that_of_students_test_of_the_seeds() -> None:
    by_seed = np.array([0.1, 0.3, 0.15])
    found = p_of(np.repeat(by_seed[:, None], 30, axis=1))
    assert found == pytest.approx(stats.ttest_1samp(by_seed, 0).pvalue, rel=1e-6)


@given(st.integers(0, 10_000), st.floats(-0.6, 0.6), st.sampled_from([(1, 30), (2, 50), (3, 20), (5, 80)]))
def test_the_interval_at_one_minus_p_touches_nought(seed: int, shift: float, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    table = shift + rng.normal(size=(shape[0], 1)) / 5 + rng.normal(size=shape)
    p = p_of(table)
    spread = intervals.spread_of_difference(table)
    near = spread.ends(p)[0 if spread.value > 0 else 1]
    assert near == pytest.approx(0, abs=1e-6)
    for confidence in (0.8, 0.95, 0.99):
        found = spread.interval(confidence)
        assert (found.low > 0 or found.high < 0) == (p < 1 - confidence)


def test_p_of_nothing_is_one_and_of_certainty_the_smallest() -> None:
    assert p_of(np.zeros((3, 20)), (0, 1)) == 1
    assert p_of(np.full((3, 20), 0.25)) == pairwise.SMALLEST
    assert pairwise.SMALLEST <= p_of(np.ones((3, 4)), (0, 1)) <= 1


@given(st.integers(0, 1000))
def test_p_knows_no_sign_no_scale_and_no_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.normal(0.2, 1, (3, 25))
    same = [-table, 7 * table, table[::-1], table[:, rng.permutation(25)]]
    assert [p_of(one) for one in same] == pytest.approx([p_of(table)] * 4, rel=1e-6)


def test_all_pairs_of_seven_arms_take_less_than_a_second() -> None:
    scores = np.random.default_rng(0).random((7, 5, 10_000)) < np.linspace(0.7, 0.72, 7)[:, None, None]
    started = time.process_time()
    p = {
        f"{a}{b}": p_of(scores[a].astype(float) - scores[b], (0, 1))
        for a, b in itertools.combinations(range(7), 2)
    }
    pairwise.holm(p)
    assert time.process_time() - started < 1


# ------------------------------------------------------------------------------------------- call


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.02, 0.05, 0.01, "helps"),
        (-0.05, -0.02, 0.01, "hurts"),
        (-0.02, 0.05, 0.01, "undecided"),
        (-0.005, 0.004, 0.01, "equal"),
        (-0.01, 0.01, 0.01, "equal"),
        (0.002, 0.008, 0.01, "equal"),
        (-0.008, -0.002, 0.01, "equal"),
        (0.002, 0.008, 0.0, "helps"),
        (0.005, 0.02, 0.01, "helps"),
        (0.0, 0.03, 0.01, "undecided"),
        (0.0, 0.0, 0.0, "undecided"),
    ],
)
def test_calls(low: float, high: float, margin: float, expected: str) -> None:
    assert pairwise.call(SimpleNamespace(low=low, high=high), margin) == expected


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_the_mirrored_interval_gets_the_mirrored_call(low: float, width: float, margin: float) -> None:
    mirrored = {"helps": "hurts", "hurts": "helps"}
    found = pairwise.call(SimpleNamespace(low=low, high=low + width), margin)
    other = pairwise.call(SimpleNamespace(low=-low - width, high=-low), margin)
    assert other == mirrored.get(found, found)
