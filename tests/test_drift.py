from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, rankdata

from steps import drift
from steps.drift import Matrix, Outcome

METHODS = pytest.mark.parametrize("method", drift.METHODS.values(), ids=drift.METHODS)
SIMULATIONS, LEVEL = 300, 0.05
# So many false alarms of SIMULATIONS are exceeded with a chance of 1 in 1,000 if the level holds.
MOST = 28


def sample(rng: np.random.Generator, items: int, shift: float = 0.0, spread: float = 1.0) -> Matrix:
    """Features that are correlated, skewed and of unequal size, as those of a backbone are."""
    mixing = np.random.default_rng(3).normal(size=(6, 12)) * np.geomspace(1, 20, 12)
    return np.maximum(spread * rng.normal(size=(items, 6)) @ mixing + shift, 0).astype(np.float32)


def family(method: Callable[[Matrix, Matrix, int], Outcome], rng: np.random.Generator) -> list[Outcome]:
    """All tests that monitor makes, where nothing has changed."""
    lengths = rng.integers(1, 30, 100)
    labels = rng.choice(list("abc"), 100, p=[0.8, 0.19, 0.01])
    return [
        method(sample(rng, 60), sample(rng, 40), 199),
        drift.numbers("length", "", lengths[:60].tolist(), lengths[60:].tolist()),
        drift.numbers("size", "", np.ones(60).tolist(), np.ones(40).tolist()),
        drift.classes(
            "classes", "", drift.counts(labels[:60].tolist()), drift.counts(labels[60:].tolist()), 199
        ),
    ]


@METHODS
def test_false_alarms_are_no_more_frequent_than_the_level(
    method: Callable[[Matrix, Matrix, int], Outcome],
) -> None:
    rng = np.random.default_rng(0)
    found = [family(method, rng) for _ in range(SIMULATIONS)]
    assert sum(drift.judge(tests, LEVEL).drifted for tests in found) <= MOST
    # Exact, and not merely careful: a test alone uses its level up.
    alone = np.array([tests[0].p for tests in found])
    for level in (0.05, 0.2, 0.5):
        assert abs(float(np.mean(alone <= level)) - level) < 3.3 * np.sqrt(level * (1 - level) / SIMULATIONS)


@pytest.mark.parametrize(
    ("method", "shift", "spread", "power"),
    [("mmd", 9.0, 1.0, 0.9), ("classifier", 9.0, 1.0, 0.8), ("mmd", 0.0, 1.7, 0.9)],
)
def test_a_shift_of_the_mean_or_of_the_spread_is_found(
    method: str, shift: float, spread: float, power: float
) -> None:
    rng = np.random.default_rng(1)
    found = [
        drift.METHODS[method](sample(rng, 100), sample(rng, 100, shift, spread), 199).p <= LEVEL
        for _ in range(40)
    ]
    assert float(np.mean(found)) >= power


def test_mmd_is_the_unbiased_estimate_written_out() -> None:
    rng = np.random.default_rng(2)
    reference, new = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)) + 0.5
    pooled = np.concatenate([reference, new])
    squared = ((pooled[:, None] - pooled[None]) ** 2).sum(axis=2)
    width = np.median(np.sqrt(squared[np.triu_indices(12, 1)]))
    kernel = np.exp(-squared / (2 * width**2))
    within = [
        sum(kernel[i, j] for i in side for j in side if i != j) / (len(side) * (len(side) - 1))
        for side in (range(7), range(7, 12))
    ]
    between = np.mean([kernel[i, j] for i in range(7) for j in range(7, 12)])
    assert drift.mmd(reference, new, 99).statistic == pytest.approx(sum(within) - 2 * between)


def test_equal_items_are_no_drift_and_one_constant_against_another_is() -> None:
    same = np.ones((40, 5))
    assert drift.mmd(same, same, 99).p == 1.0
    assert drift.classifier(same, same, 99).p == 1.0
    assert drift.mmd(same, 2 * same, 99).p == 0.01
    assert drift.classifier(same, 2 * same, 99).p == 0.01
    # Most distances are zero then: the width must not be.
    mixed = np.concatenate([np.zeros((39, 5)), same[:1]])
    assert np.isfinite(drift.mmd(mixed, np.zeros((40, 5)), 99).statistic)


def test_copies_of_the_reference_alarm_less() -> None:
    rng = np.random.default_rng(4)
    reference = sample(rng, 80)
    assert drift.mmd(reference, reference[:40], 199).p > 0.5


def test_features_far_from_the_origin_lose_nothing() -> None:
    rng = np.random.default_rng(5)
    near, new = rng.normal(size=(30, 4)), rng.normal(size=(30, 4)) + 0.4
    far = drift.mmd(near + 1e5, new + 1e5, 199)
    assert far.statistic == pytest.approx(drift.mmd(near, new, 199).statistic, rel=1e-5)


@METHODS
def test_the_same_samples_give_the_same_figures(method: Callable[[Matrix, Matrix, int], Outcome]) -> None:
    rng = np.random.default_rng(6)
    sides = sample(rng, 50), sample(rng, 33)
    assert method(*sides, 99) == method(*sides, 99)


def test_the_classifier_tells_by_the_area_under_the_curve() -> None:
    reference, new = np.zeros((20, 2)), np.ones((20, 2))
    assert drift.classifier(reference, new, 99).statistic == 1.0
    rng = np.random.default_rng(7)
    found = drift.classifier(rng.normal(size=(200, 3)), rng.normal(size=(200, 3)), 99)
    assert 0.35 < found.statistic < 0.65
    assert rankdata([0.0, 0.0, 1.0]).tolist() == [1.5, 1.5, 3.0], "ties count half"


@given(st.lists(st.integers(0, 40), min_size=2, max_size=5), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_the_statistic_of_classes_is_pearsons(counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference = {str(at): count + 20 for at, count in enumerate(counts)}
    new = {str(at): int(rng.integers(20, 60)) for at in range(len(counts))}
    table = [[side[name] for name in reference] for side in (reference, new)]
    expected = chi2_contingency(table, correction=False)
    found = drift.classes("classes", "", reference, new, 999, seed)
    assert found.statistic == pytest.approx(expected.statistic)
    assert abs(found.p - expected.pvalue) < 0.15, "both, by permutation and by the limit"


def test_a_class_that_is_new_is_drift_and_a_class_that_nobody_has_is_none() -> None:
    before = {"a": 50, "b": 50, "never": 0}
    assert drift.classes("classes", "", before, {"a": 25, "b": 25, "new": 30}, 199).p == 0.005
    assert drift.classes("classes", "", before, {"a": 25, "b": 25}, 199).p == 1.0
    assert drift.classes("classes", "", {"a": 50}, {"a": 30}, 199).p == 1.0


def test_the_verdict_corrects_for_all_tests_and_names_those_that_differ() -> None:
    tests = [Outcome(name, 0.0, p, "") for name, p in (("one", 0.012), ("two", 0.03), ("three", 0.9))]
    verdict = drift.judge(tests, 0.05)
    assert verdict.adjusted == pytest.approx({"one": 0.036, "two": 0.06, "three": 0.9})
    assert verdict.drifted
    assert verdict.p == pytest.approx(0.036)
    assert [test.name for test in verdict.significant] == ["one"]
    assert not drift.judge(tests, 0.03).drifted


@pytest.mark.parametrize(("tests", "level", "least"), [(1, 0.05, 19), (5, 0.05, 99), (4, 0.01, 399)])
def test_enough_permutations_can_speak_and_one_fewer_cannot(tests: int, level: float, least: int) -> None:
    assert drift.least_permutations(tests, level) == least
    for permutations, drifted in ((least, True), (least - 1, False)):
        best = Outcome("best", 1.0, 1 / (1 + permutations), "")
        others = [Outcome(str(at), 0.0, 1.0, "") for at in range(tests - 1)]
        assert drift.judge([best, *others], level).drifted == drifted


def test_a_thousand_against_a_thousand_take_about_a_second() -> None:
    rng = np.random.default_rng(8)
    reference, new = (rng.normal(size=(1000, 384)).astype(np.float32) for _ in range(2))
    started = perf_counter()
    drift.mmd(reference, new, 500)
    assert perf_counter() - started < 5, "five times what it takes alone"
