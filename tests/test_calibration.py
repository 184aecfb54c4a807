from __future__ import annotations

import dataclasses
import resource
from time import process_time

import numpy as np
import pytest
from numpy.typing import NDArray

from steps import calibration
from steps.calibration import Predicted

Table = NDArray[np.float64]


def softmax(logits: Table) -> Table:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def calibrated(
    items: int, classes: int, seed: int, sharpness: float = 2.0
) -> tuple[Table, NDArray[np.int64]]:
    """Probabilities, and labels that are drawn by them."""
    random = np.random.default_rng(seed)
    probabilities = softmax(sharpness * random.normal(size=(items, classes)))
    drawn = (probabilities.cumsum(axis=1) < random.random((items, 1))).sum(axis=1)
    return probabilities, np.minimum(drawn, classes - 1).astype(np.int64)


def slow_ece(truth: NDArray[np.int64], probabilities: Table, bins: int) -> float:
    """Item by item, for confidences that all differ."""
    order = sorted(range(len(truth)), key=lambda item: max(probabilities[item]))
    total = 0.0
    for at in range(bins):
        members = order[at * len(order) // bins : (at + 1) * len(order) // bins]
        right = sum(int(np.argmax(probabilities[item]) == truth[item]) for item in members)
        confident = sum(max(probabilities[item]) for item in members)
        total += abs(right - confident) / len(truth)
    return total


def said(
    probabilities: Table, truth: NDArray[np.int64], runs: int = 1, temperature: float = 1.0
) -> Predicted:
    """The same of every run, with a validation split that is the test split's twin."""
    table = np.stack([calibration.scale(probabilities, temperature)] * runs)
    return Predicted(table, table, truth)


@pytest.mark.parametrize(("items", "bins"), [(437, 15), (300, 15), (59, 2), (30, 1)])
def test_the_error_is_that_of_a_loop(items: int, bins: int) -> None:
    probabilities, truth = calibrated(items, 4, 1)
    assert calibration.count_bins(items) == bins
    assert calibration.ece(truth, probabilities) == pytest.approx(slow_ece(truth, probabilities, bins))


def test_known_errors() -> None:
    # Always 90 % sure and always wrong; 90 % sure and right nine times in ten.
    sure = np.tile([0.9, 0.1], (200, 1))
    wrong, nine = np.ones(200, np.int64), (np.arange(200) % 10 == 0).astype(np.int64)
    assert calibration.ece(wrong, sure) == pytest.approx(0.9)
    assert calibration.ece(nine, sure) == pytest.approx(0, abs=1e-12)
    found = calibration.of_arms(nine, {"a": said(sure, nine)}, 0.95, draws=500)["a"]
    assert len(found.bins) == 1  # equal confidences are one bin
    assert found.bins[0].items == 200
    assert found.bins[0].accuracy == pytest.approx(0.9)


def test_right_on_every_item_is_not_known_to_be_right_on_all_others() -> None:
    certain, truth = np.tile([1.0, 0.0], (100, 1)), np.zeros(100, np.int64)
    found = calibration.of_arms(truth, {"a": said(certain, truth)}, 0.95, draws=100)["a"].ece
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(1 - calibration.wilson(1.0, 100, 0.95)[0])
    assert 0.03 < found.high < 0.04


def test_bins_hold_equally_many_and_share_no_confidence() -> None:
    random = np.random.default_rng(0)
    places = calibration.equal_mass(random.random(300), 15)
    assert np.bincount(places).tolist() == [20] * 15
    tied = np.repeat([0.2, 0.5, 0.7, 0.9], [10, 50, 5, 35])
    places = calibration.equal_mass(tied, 10)
    assert all(len(set(places[tied == one])) == 1 for one in set(tied))
    assert sorted(set(places)) == list(range(len(set(places))))


def test_the_estimate_loses_most_of_its_bias_and_the_interval_holds_the_truth() -> None:
    """Perfectly calibrated: the truth is 0. Sharpened: the truth is measured on very many items."""
    plain, values, held, far = [], [], 0, 0.0
    probabilities, truth = calibrated(200_000, 4, 99)
    error = calibration.ece(truth, calibration.scale(probabilities, 0.4))
    assert error > 0.1
    for seed in range(40):
        probabilities, truth = calibrated(300, 4, seed)
        arms = {"a": said(probabilities, truth), "b": said(probabilities, truth, temperature=0.4)}
        found = calibration.of_arms(truth, arms, 0.95, draws=400)
        plain.append(calibration.ece(truth, probabilities))
        values.append(found["a"].ece.value)
        held += found["a"].ece.low == 0
        far += found["b"].ece.low <= error <= found["b"].ece.high
    assert 0.05 < np.mean(plain) < 0.09
    assert np.mean(values) < 0.5 * np.mean(plain)
    assert held >= 36
    assert far >= 35


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    probabilities, truth = calibrated(20_000, 5, 3)
    spoilt = calibration.scale(probabilities, 1 / temperature)
    found = calibration.fit_temperature(spoilt, truth)
    assert found == pytest.approx(temperature, rel=0.05)
    grid = np.geomspace(0.05, 20, 4001)
    losses = [-np.log(calibration.scale(spoilt[:500], at)[np.arange(500), truth[:500]]).mean() for at in grid]
    assert calibration.fit_temperature(spoilt[:500], truth[:500]) == pytest.approx(
        float(grid[int(np.argmin(losses))]), rel=2e-3
    )
    assert np.allclose(calibration.scale(spoilt, temperature), probabilities, atol=1e-9)


def test_temperatures_stop_at_their_bounds_and_this_is_said() -> None:
    probabilities = np.tile([0.9, 0.1], (50, 1))
    right, wrong = np.zeros(50, np.int64), np.ones(50, np.int64)
    assert calibration.fit_temperature(probabilities, right) == pytest.approx(calibration.COLDEST)
    assert calibration.fit_temperature(probabilities, wrong) == pytest.approx(calibration.HOTTEST)
    found = calibration.of_arms(right, {"a": said(probabilities, right)}, 0.95, draws=100)["a"]
    assert found.at_bound
    # Zeros, which float32 makes of tiny probabilities, have a logarithm too.
    certain = np.tile(np.array([1.0, 0.0], np.float32), (50, 1))
    assert np.isfinite(calibration.fit_temperature(certain, wrong))
    assert np.isfinite(calibration.scale(certain, 20.0)).all()


def test_arms_runs_and_scaling_are_kept_apart() -> None:
    probabilities, truth = calibrated(2000, 4, 5)
    test, validation = probabilities[:1000], probabilities[1000:]
    spoil = (0.25, 0.5)
    table = np.stack([calibration.scale(test, one) for one in spoil])
    other = np.stack([calibration.scale(validation, one) for one in spoil])
    arms = {
        "sure": Predicted(table, other, truth[1000:]),
        "good": Predicted(np.stack([test, test]), np.stack([validation] * 2), truth[1000:]),
    }
    found = calibration.of_arms(truth[:1000], arms, 0.9, draws=1000)
    sure, good = found["sure"], found["good"]
    assert sure.temperatures == pytest.approx((4.0, 2.0), rel=0.15)
    assert sure.temperature == pytest.approx(np.sqrt(8), rel=0.15)
    assert not sure.at_bound
    plain = np.mean([calibration.ece(truth[:1000], one) for one in table])
    assert sure.ece.low < plain < sure.ece.high
    assert sure.ece.value == pytest.approx(plain, abs=0.01)
    assert sure.ece.low > 0.1 > 0.06 > sure.ece_scaled.high
    assert good.ece.value < 0.03
    assert (sure.ece.seeds, sure.ece.items) == (2, 1000)
    assert found == calibration.of_arms(truth[:1000], arms, 0.9, draws=1000)
    alone = calibration.of_arms(truth[:1000], {"good": arms["good"]}, 0.9, draws=1000)
    assert alone["good"].ece.value == pytest.approx(good.ece.value, abs=1e-6)


def test_validation_items_may_differ_by_run() -> None:
    probabilities, truth = calibrated(800, 3, 6)
    split = probabilities.reshape(2, 400, 3)
    both = Predicted(split, split, truth.reshape(2, 400))
    found = calibration.of_arms(truth[:400], {"a": both}, 0.95, draws=100)["a"]
    own = tuple(calibration.fit_temperature(split[run], truth.reshape(2, 400)[run]) for run in (0, 1))
    assert found.temperatures == own


def test_reliability_tells_confidence_and_accuracy_of_every_bin() -> None:
    probabilities, truth = calibrated(600, 4, 7)
    bins = calibration.reliability(truth, np.stack([probabilities, probabilities]), 0.95)
    assert len(bins) == 15
    assert [one.items for one in bins] == [40] * 15
    assert [one.confidence for one in bins] == sorted(one.confidence for one in bins)
    assert all(0 <= one.low <= one.accuracy <= one.high <= 1 for one in bins)
    assert np.mean([one.low <= one.confidence <= one.high for one in bins]) > 0.7
    # Two runs that say the same are worth no more than one.
    for both, alone in zip(bins, calibration.reliability(truth, probabilities[None], 0.95), strict=True):
        assert dataclasses.astuple(both) == pytest.approx(dataclasses.astuple(alone))


def test_wilson_is_wilsons() -> None:
    # Newcombe, Statistics in Medicine 17, 1998, table I: 81 of 263, 0 of 20.
    assert calibration.wilson(81 / 263, 263, 0.95) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert calibration.wilson(0.0, 20, 0.95) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_seven_arms_on_ten_thousand_items_take_seconds_and_little_memory() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 10, 10_000)
    table = softmax(random.normal(size=(5, 10_000, 10)))
    arms = {str(arm): Predicted(table, table[:, :500], truth[:500]) for arm in range(7)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = process_time()
    calibration.of_arms(truth, arms, 0.95, draws=1000)
    # A tenth of the draws: a fixed part, and a part that grows with them.
    assert process_time() - started < 3
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 500 * 1024
