import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from steps import bootstrap, convergence
from steps.convergence import Convergence, Curve


def curve(*values: float, second: float = 2.0, step: int = 10) -> Curve:
    epochs = range(1, len(values) + 1)
    return Curve(values, [second * at for at in epochs], [step * at for at in epochs])


# --------------------------------------------------------------------------------- target and arrival


def test_the_target_is_the_mean_of_the_best_values() -> None:
    curves = [curve(0.5, 0.8, 0.7), curve(0.4, 0.5, 0.6)]
    assert convergence.target_of(curves, "accuracy") == pytest.approx(0.7)
    assert convergence.target_of(curves, "log_loss") == pytest.approx(0.45)


def test_epochs_steps_and_seconds_to_the_target() -> None:
    found = convergence.convergence([curve(0.5, 0.9, 0.6), curve(0.6, 0.6, 0.8)], 0.7, "accuracy")
    # The mean of the best so far: 0.55, 0.75, 0.85.
    assert found == Convergence(2, 20.0, 4.0, [2, 3])


def test_lower_is_reached_from_above() -> None:
    found = convergence.convergence([curve(2.0, 1.0, 0.5)], 1.0, "log_loss")
    assert found == Convergence(2, 20.0, 4.0, [2])


def test_never_reached_is_none() -> None:
    found = convergence.convergence([curve(0.1, 0.2)], 0.3, "accuracy")
    assert found == Convergence(None, None, None, [None])


def test_a_training_that_stopped_early_keeps_its_best_and_spends_no_more() -> None:
    found = convergence.convergence([curve(0.9), curve(0.2, 0.4, 0.6)], 0.7, "accuracy")
    assert found == Convergence(3, (10 + 30) / 2, (2.0 + 6.0) / 2, [1, None])


curves_strategy = st.lists(
    st.lists(st.floats(0, 1), min_size=1, max_size=12).map(lambda values: curve(*values)),
    min_size=1,
    max_size=4,
)


@given(curves_strategy, st.sampled_from(["accuracy", "log_loss"]))
def test_the_reference_always_reaches_its_own_target(curves: list[Curve], metric: str) -> None:
    found = convergence.convergence(curves, convergence.target_of(curves, metric), metric)
    assert found.epochs is not None
    assert found.epochs <= max(len(one.values) for one in curves)


# ------------------------------------------------------------------------------------------ speed-up


def rising(epochs: int, end: float, length: int = 12, **costs: float) -> Curve:
    """A curve that is at its end from an epoch on."""
    values = np.minimum(np.arange(1, length + 1) / epochs, 1) * end
    return curve(*values, **costs)  # type: ignore[arg-type]


def test_the_speed_up_is_cost_over_cost() -> None:
    reference = [rising(12, 0.6), rising(10, 0.6)]
    arm = [rising(4, 0.9, second=3.0, step=5), rising(4, 0.9, second=3.0, step=5)]
    found = convergence.speedup(arm, reference, "accuracy", 0.95)
    # The reference is there at epoch 12; the arm's 0.675 of epoch 3 is the first above 0.6.
    assert found is not None
    assert found.epochs.value == pytest.approx(12 / 3)
    assert found.steps is not None
    assert found.seconds is not None
    assert found.steps.value == pytest.approx(12 * 10 / (3 * 5))
    assert found.seconds.value == pytest.approx(12 * 2.0 / (3 * 3.0))
    assert found.censored == 0


def test_draws_are_those_of_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(2)
    reference = [curve(*rng.random(8).cumsum() / 8) for _ in range(4)]
    arm = [curve(*np.minimum(rng.random(8).cumsum() / 4, 1)) for _ in range(4)]
    found = convergence.speedup(arm, reference, "accuracy", 0.9, shares=bootstrap.run_weights(4, 5000) / 4)
    ratios = []
    for _ in range(1500):
        at = rng.integers(0, 4, 4)
        target = convergence.target_of([reference[one] for one in at], "accuracy")
        own, others = (
            convergence.convergence([those[one] for one in at], target, "accuracy").epochs
            for those in (arm, reference)
        )
        assert others is not None
        ratios.append(others / own if own is not None else 0.0)
    assert found is not None
    assert (found.epochs.low, found.epochs.high) == pytest.approx(np.quantile(ratios, [0.05, 0.95]), abs=0.15)


def test_an_arm_that_never_gets_there_has_no_speed_up() -> None:
    assert convergence.speedup([rising(4, 0.5)] * 2, [rising(9, 0.6)] * 2, "accuracy", 0.95) is None


def test_runs_that_do_not_get_there_are_counted_and_pull_the_lower_end_to_nought() -> None:
    arm = [rising(3, 0.9), rising(3, 0.9), rising(3, 0.3)]
    found = convergence.speedup(arm, [rising(12, 0.6)] * 3, "accuracy", 0.95)
    assert found is not None
    assert found.censored == 1
    assert found.epochs.low == 0
    assert found.epochs.value > 1


def test_one_run_has_no_interval() -> None:
    found = convergence.speedup([rising(3, 0.6)], [rising(12, 0.6)], "accuracy", 0.95)
    assert found is not None
    assert found.epochs.value == pytest.approx(4)
    assert (found.epochs.low, found.epochs.high) == (None, None)


def test_an_arm_without_steps_has_no_speed_up_in_steps() -> None:
    found = convergence.speedup([rising(3, 0.6, step=0)] * 2, [rising(12, 0.6)] * 2, "accuracy", 0.95)
    assert found is not None
    assert found.steps is None
    assert found.epochs.value == pytest.approx(4)


@given(curves_strategy, st.sampled_from(["accuracy", "log_loss"]))
def test_the_reference_is_as_fast_as_itself(curves: list[Curve], metric: str) -> None:
    found = convergence.speedup(curves, curves, metric, 0.95)
    assert found is not None
    assert found.epochs.value == pytest.approx(1)
    if len(curves) > 1:
        assert (found.epochs.low, found.epochs.high) == pytest.approx((1, 1))


def test_subsets_that_differ_widen_the_interval() -> None:
    arm = [rising(4, 0.9)] * 3 + [rising(8, 0.9)] * 3
    reference = [rising(12, 0.6)] * 6
    alone = convergence.speedup(arm, reference, "accuracy", 0.8)
    nested = convergence.speedup(arm, reference, "accuracy", 0.8, groups=[1, 1, 1, 2, 2, 2])
    assert alone is not None
    assert nested is not None
    assert nested.epochs.value == alone.epochs.value
    assert (nested.epochs.low or 0) < (alone.epochs.low or 0)


def test_costs_that_differ_between_runs_stay_positive() -> None:
    arm = [rising(4, 0.9, second=1.0), rising(4, 0.9, second=9.0)]
    found = convergence.speedup(arm, [rising(12, 0.6), rising(12, 0.6)], "accuracy", 0.95)
    assert found is not None
    assert found.seconds is not None
    assert found.seconds.value == pytest.approx(12 * 2.0 / (3 * 5.0))
    assert found.seconds.low is not None
    assert found.seconds.high is not None
    assert 0 < found.seconds.low < found.seconds.value < found.seconds.high < np.inf


def test_the_same_seed_gives_the_same_interval() -> None:
    arm, reference = [rising(3, 0.9), rising(5, 0.7), rising(4, 0.8)], [rising(12, 0.6), rising(8, 0.5)] * 2
    first, second = (convergence.speedup(arm, reference[:3], "accuracy", 0.95) for _ in range(2))
    assert first == second


# ------------------------------------------------------------------------------------------- area


def test_the_area_is_the_mean_of_the_best_so_far() -> None:
    found = convergence.area([curve(0.2, 0.6, 0.4, 0.8)], "accuracy", 0.95, 4)
    assert found.value == pytest.approx((0.2 + 0.6 + 0.6 + 0.8) / 4)
    assert (found.low, found.high) == (None, None)


def test_a_run_that_stopped_early_is_stretched() -> None:
    assert convergence.area([curve(0.2, 0.6)], "accuracy", 0.95, 4).value == pytest.approx(0.5)


def test_log_loss_counts_as_a_probability() -> None:
    curves = [curve(*-np.log([0.25, 0.5, 0.4]))]
    assert convergence.area(curves, "log_loss", 0.95, 3).value == pytest.approx((0.25 + 0.5 + 0.5) / 3)


def test_what_has_no_bounds_counts_between_nought_and_one() -> None:
    # A perplexity of 4 is the loss log(4); 10 dB are a squared error of a tenth of the peak's.
    assert convergence.area([curve(8.0, 4.0)], "perplexity", 0.95, 2).value == pytest.approx(
        (1 / 8 + 1 / 4) / 2
    )
    assert convergence.area([curve(0.0, 10.0)], "psnr", 0.95, 2).value == pytest.approx((1 / 2 + 1 / 1.1) / 2)
    assert convergence.area([curve(*np.log([8, 4]))], "loss", 0.95, 2).value == pytest.approx(
        (1 / 8 + 1 / 4) / 2
    )


@pytest.mark.parametrize(
    ("metric", "slow", "fast"),
    [("perplexity", (90.0, 30.0, 9.0), (20.0, 9.0, 8.5)), ("psnr", (-4.0, 8.0, 19.5), (9.0, 19.5, 22.0))],
)
def test_speed_of_what_has_no_bounds(metric: str, slow: tuple[float, ...], fast: tuple[float, ...]) -> None:
    found = convergence.speedup([curve(*fast)], [curve(*slow)], metric, 0.95)
    assert found is not None
    assert found.epochs.value == pytest.approx(3 / 2)


def test_its_interval_is_students_over_runs() -> None:
    found = convergence.area([curve(0.5), curve(0.6), curve(0.8)], "accuracy", 0.9, 1)
    expected = stats.t.interval(0.9, 2, loc=1.9 / 3, scale=stats.sem([0.5, 0.6, 0.8]))
    assert (found.low, found.high) == pytest.approx(expected)


def test_runs_of_a_subset_are_averaged_first() -> None:
    curves = [curve(0.5), curve(0.7), curve(0.8), curve(0.8)]
    found = convergence.area(curves, "accuracy", 0.9, 1, groups=[1, 1, 2, 2])
    assert found == convergence.area([curve(0.6), curve(0.8)], "accuracy", 0.9, 1)


@given(curves_strategy, st.sampled_from(["accuracy", "log_loss", "loss", "psnr"]))
def test_areas_stay_between_nought_and_one(curves: list[Curve], metric: str) -> None:
    found = convergence.area(curves, metric, 0.95, 12)
    assert 0 <= found.value <= 1
    if len(curves) > 1:
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low <= found.value <= found.high <= 1
