import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from steps import evidence
from steps.errors import HeadstartError, TrainingError
from steps.evidence import Answers, Convergence, Crossed, Curve, Setting

CLASSES = 3


def said(right: NDArray[np.bool_], truth: NDArray[np.int64], sure: float = 0.8) -> NDArray[np.float64]:
    """Probabilities that name the true class where right, else the next."""
    named = np.where(right, truth, (truth + 1) % CLASSES)
    shares = np.full((len(truth), CLASSES), (1 - sure) / (CLASSES - 1))
    shares[np.arange(len(truth)), named] = sure
    return shares


def answers(
    accuracy: dict[str, float], items: int = 300, seeds: tuple[int, ...] = (1, 2, 3)
) -> list[Answers]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, CLASSES, items)
    ids = [f"i{at:03d}" for at in range(items)]
    return [
        Answers(arm, seed, ids, truth, said(rng.random(items) < share, truth))
        for arm, share in accuracy.items()
        for seed in seeds
    ]


def setting(metric: str = "accuracy") -> Setting:
    return Setting("toys", 100, 30, metric, 0.95)


REACHED = {"scratch": Convergence(24, 48.0, [24]), "full": Convergence(3, 6.0, [3])}


def judge(crossed: Crossed, arm: str | None = "full", metric: str = "accuracy") -> evidence.Verdict:
    return evidence.verdict(crossed, arm, "scratch", REACHED, setting(metric))


# ------------------------------------------------------------------------------------- lining up


def test_predictions_are_lined_up_by_id_and_seed() -> None:
    straight = answers({"scratch": 0.5, "full": 0.8}, items=10)
    order = np.random.default_rng(1).permutation(10)
    shuffled = [
        Answers(one.arm, one.seed, [one.ids[at] for at in order], one.truth[order], one.probabilities[order])
        for one in reversed(straight)
    ]
    first, second = evidence.cross(straight), evidence.cross([straight[0], *shuffled[:-1]])
    assert first.ids == second.ids
    np.testing.assert_array_equal(first.truth, second.truth)
    for arm in ("scratch", "full"):
        np.testing.assert_array_equal(first.probabilities[arm], second.probabilities[arm])


change = dataclasses.replace


def test_predictions_that_are_not_finite_name_arm_and_seed() -> None:
    runs = answers({"scratch": 0.5, "full": 0.8})
    broken = runs[4].probabilities.copy()
    broken[7, 1] = np.nan
    runs[4] = change(runs[4], probabilities=broken)
    with pytest.raises(TrainingError, match=r"arm 'full', seed 2: 1 of 300 predictions are not finite"):
        evidence.cross(runs)


def test_other_items_stop() -> None:
    runs = answers({"scratch": 0.5, "full": 0.8})
    runs[5] = change(runs[5], ids=["new", *runs[5].ids[1:]])
    with pytest.raises(
        HeadstartError, match=r"arm 'full', seed 3 was tested on other items .*2 differ, e.g. 'i000'"
    ):
        evidence.cross(runs)


def test_other_true_labels_stop() -> None:
    runs = answers({"scratch": 0.5, "full": 0.8})
    runs[3] = change(runs[3], truth=(runs[3].truth + 1) % CLASSES)
    with pytest.raises(HeadstartError, match="300 differ"):
        evidence.cross(runs)


def test_repeated_ids_stop() -> None:
    runs = answers({"scratch": 0.5, "full": 0.8})
    runs[1] = change(runs[1], ids=["i001", *runs[1].ids[1:]])
    with pytest.raises(HeadstartError, match="seed 2: ids repeat"):
        evidence.cross(runs)


def test_other_seeds_stop() -> None:
    runs = answers({"scratch": 0.5, "full": 0.8})
    with pytest.raises(HeadstartError, match=r"'full' was tested with seeds \[1, 2\].*\[1, 2, 3\]"):
        evidence.cross(runs[:-1])


def test_one_test_item_stops() -> None:
    with pytest.raises(HeadstartError, match="has 1 item"):
        evidence.cross(answers({"scratch": 0.5}, items=1))


# ---------------------------------------------------------------------------------------- verdict


def test_a_better_arm_helps_and_the_sentence_says_all() -> None:
    verdict = judge(evidence.cross(answers({"scratch": 0.6, "full": 0.85})))
    assert verdict.fine_tuning_helps is True
    assert verdict.ci_low is not None
    assert verdict.difference is not None
    assert 0 < verdict.ci_low < verdict.difference
    assert verdict.convergence_speedup == 8
    low, high = f"{100 * verdict.ci_low:.1f}", f"{100 * (verdict.ci_high or 0):.1f}"
    assert verdict.text == (
        f"On toys with 100 training labels `full` beats `scratch` by {100 * verdict.difference:.1f} points "
        f"of accuracy (95 % interval {low} to {high}; 3 seeds, 300 test items) and reaches scratch's best "
        "validation accuracy in 3 of 30 epochs."
    )


def test_a_worse_arm_does_not_help() -> None:
    verdict = judge(evidence.cross(answers({"scratch": 0.85, "full": 0.6})))
    assert verdict.fine_tuning_helps is False
    assert verdict.ci_high is not None
    assert verdict.ci_high < 0
    assert "`full` is worse than `scratch` by " in verdict.text
    assert "; it reaches scratch's best" in verdict.text


def test_a_small_difference_is_undecided() -> None:
    verdict = judge(evidence.cross(answers({"scratch": 0.70, "full": 0.72}, items=40)))
    assert verdict.fine_tuning_helps == "undecided"
    assert "cannot be told apart: `full` is" in verdict.text


def test_equal_arms_are_undecided() -> None:
    runs = answers({"scratch": 0.7}, items=50)
    both = runs + [change(one, arm="full") for one in runs]
    verdict = judge(evidence.cross(both))
    assert (verdict.fine_tuning_helps, verdict.difference) == ("undecided", 0)
    assert "`full` and `scratch` cannot be told apart: they score the same (" in verdict.text


def test_a_test_split_of_five_works() -> None:
    verdict = judge(evidence.cross(answers({"scratch": 0.4, "full": 0.9}, items=5)))
    assert verdict.items == 5
    assert verdict.fine_tuning_helps == "undecided"


def test_one_seed_says_so() -> None:
    crossed = evidence.cross(answers({"scratch": 0.5, "full": 0.9}, seeds=(4,)))
    verdict = judge(crossed)
    assert verdict.seeds == 1
    assert "1 seed, so chance between seeds is left out, 300 test items" in verdict.text


def test_without_a_pretrained_arm_there_is_nothing_to_judge() -> None:
    verdict = judge(evidence.cross(answers({"scratch": 0.5})), arm=None)
    assert (verdict.fine_tuning_helps, verdict.difference) == ("undecided", None)
    assert "no pretrained arm stands beside `scratch`" in verdict.text


def test_a_target_never_reached() -> None:
    crossed = evidence.cross(answers({"scratch": 0.6, "full": 0.85}))
    reached = REACHED | {"full": Convergence(None, None, [None])}
    verdict = evidence.verdict(crossed, "full", "scratch", reached, setting())
    assert verdict.convergence_speedup is None
    assert verdict.text.endswith("and does not reach scratch's best validation accuracy in 30 epochs.")


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss"])
def test_better_is_positive_in_every_metric(metric: str) -> None:
    crossed = evidence.cross(answers({"scratch": 0.5, "full": 0.9}))
    verdict = judge(crossed, metric=metric)
    assert verdict.fine_tuning_helps is True
    means = [np.mean(crossed.values(arm, metric)) for arm in ("full", "scratch")]
    sign = -1 if metric == "log_loss" else 1
    assert verdict.difference == pytest.approx(sign * (means[0] - means[1]))
    found = evidence.estimate(crossed, "full", metric, 0.95)
    assert found.value == pytest.approx(means[0])
    assert found.low < found.value < found.high


def test_pairing_narrows_the_interval_where_arms_err_on_the_same_items() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, CLASSES, 400)
    hard = rng.random(400) < 0.3
    ids = [f"i{at:03d}" for at in range(400)]

    def runs(arm: str, slips: float) -> list[Answers]:
        return [
            Answers(arm, seed, ids, truth, said(~hard & (rng.random(400) > slips), truth))
            for seed in range(5)
        ]

    crossed = evidence.cross([*runs("scratch", 0.05), *runs("full", 0.0)])
    paired = evidence.improvement(crossed, "full", "scratch", "accuracy", 0.95)
    alone = evidence.estimate(crossed, "full", "accuracy", 0.95)
    assert paired.high - paired.low < alone.high - alone.low


# ------------------------------------------------------------------------------------- convergence


def curve(*values: float, second: float = 2.0) -> Curve:
    return Curve(values, [second * (at + 1) for at in range(len(values))])


def test_the_target_is_the_mean_of_the_best_values() -> None:
    curves = [curve(0.5, 0.8, 0.7), curve(0.4, 0.5, 0.6)]
    assert evidence.target_of(curves, "accuracy") == pytest.approx(0.7)
    assert evidence.target_of(curves, "log_loss") == pytest.approx(0.45)


def test_epochs_and_seconds_to_the_target() -> None:
    found = evidence.convergence([curve(0.5, 0.9, 0.6), curve(0.6, 0.6, 0.8)], 0.7, "accuracy")
    # The mean of the best so far: 0.55, 0.75, 0.85.
    assert found == Convergence(2, 4.0, [2, 3])


def test_lower_is_reached_from_above() -> None:
    assert evidence.convergence([curve(2.0, 1.0, 0.5)], 1.0, "log_loss") == Convergence(2, 4.0, [2])


def test_never_reached_is_none() -> None:
    assert evidence.convergence([curve(0.1, 0.2)], 0.3, "accuracy") == Convergence(None, None, [None])


def test_a_training_that_stopped_early_keeps_its_best() -> None:
    found = evidence.convergence([curve(0.9), curve(0.2, 0.4, 0.6)], 0.7, "accuracy")
    assert found == Convergence(3, (2.0 + 6.0) / 2, [1, None])


curves_strategy = st.lists(
    st.lists(st.floats(0, 1), min_size=1, max_size=12).map(lambda values: curve(*values)),
    min_size=1,
    max_size=4,
)


@given(curves_strategy, st.sampled_from(["accuracy", "log_loss"]))
def test_the_reference_always_reaches_its_own_target(curves: list[Curve], metric: str) -> None:
    found = evidence.convergence(curves, evidence.target_of(curves, metric), metric)
    assert found.epochs is not None
    assert found.epochs <= max(len(one.values) for one in curves)


# ------------------------------------------------------------------------------------------ choice


def test_the_best_on_validation_is_chosen() -> None:
    merits = {"frozen": [(0.8, 0.5)], "full": [(0.9, 0.4), (0.7, 0.4)], "lora": [(0.81, 0.9)]}
    assert evidence.best(merits, "accuracy") == "lora"


def test_lower_log_loss_is_better() -> None:
    assert evidence.best({"frozen": [(0.5, 0.5)], "full": [(0.4, 0.4)]}, "log_loss") == "full"


def test_equal_arms_are_told_apart_by_log_loss_then_by_order() -> None:
    assert evidence.best({"frozen": [(0.8, 0.5)], "full": [(0.8, 0.4)]}, "accuracy") == "full"
    assert evidence.best({"frozen": [(0.8, 0.5)], "full": [(0.8, 0.5)]}, "accuracy") == "frozen"


def test_neither_torch_nor_pandas_is_imported() -> None:
    code = "import sys, steps.evidence; print({'torch', 'pandas', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
