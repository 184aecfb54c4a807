import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from steps import evidence, intervals, metrics, pairwise
from steps.errors import HeadstartError, TrainingError
from steps.evidence import Answers, Crossed, LabelsSaved, Setting
from steps.intervals import Interval

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


def setting(metric: str = "accuracy", margin: float = 0.01) -> Setting:
    return Setting("toys", 100, 30, metric, 0.95, margin)


REACHED: dict[str, int | None] = {"scratch": 24, "full": 3}


def judge(
    crossed: Crossed,
    arm: str | None = "full",
    metric: str = "accuracy",
    margin: float = 0.01,
    saved: LabelsSaved | None = None,
    probe: Interval | None = None,
) -> evidence.Verdict:
    return evidence.verdict(crossed, arm, "scratch", REACHED, setting(metric, margin), saved, probe)


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


def nested(seeds: tuple[int, ...] = (1, 2), subsets: int = 3, **accuracy: float) -> list[Answers]:
    """Every seed on several training subsets."""
    runs = answers(accuracy, seeds=tuple(range(len(seeds) * subsets)))
    return [
        change(one, seed=seeds[one.seed % len(seeds)], resample=1 + one.seed // len(seeds)) for one in runs
    ]


def test_runs_are_in_the_order_of_resample_and_seed() -> None:
    runs = nested(scratch=0.5, full=0.8)
    found = evidence.cross([runs[0], *reversed(runs[1:])])
    assert found.resamples == (1, 1, 2, 2, 3, 3)
    assert found.seeds == (1, 2, 1, 2, 1, 2)
    np.testing.assert_array_equal(found.probabilities["full"][3], runs[9].probabilities)


def test_a_missing_resample_stops() -> None:
    with pytest.raises(
        HeadstartError, match=r"'full' was tested with resamples and seeds \['1-1', '1-2', '2-1'"
    ):
        evidence.cross(nested(scratch=0.5, full=0.8)[:-2])


def test_resamples_with_other_seeds_stop() -> None:
    runs = nested(scratch=0.5)
    with pytest.raises(HeadstartError, match="every resample needs the same seeds"):
        evidence.cross(runs[:-1])
    with pytest.raises(HeadstartError, match="each once"):
        evidence.cross([*answers({"scratch": 0.5}), *answers({"scratch": 0.5})])


def test_predictions_that_are_not_finite_name_the_resample() -> None:
    runs = nested(scratch=0.5)
    runs[3] = change(runs[3], probabilities=np.full((300, CLASSES), np.inf))
    with pytest.raises(TrainingError, match="arm 'scratch', resample 2, seed 2: 300 of 300"):
        evidence.cross(runs)


def test_one_test_item_stops() -> None:
    with pytest.raises(HeadstartError, match="has 1 item"):
        evidence.cross(answers({"scratch": 0.5}, items=1))


# ---------------------------------------------------------------------------------------- verdict


def test_a_better_arm_helps_and_the_sentence_says_all() -> None:
    verdict = judge(evidence.cross(answers({"scratch": 0.6, "full": 0.85})))
    assert verdict.fine_tuning_helps is True
    assert verdict.call == "helps"
    assert verdict.ci_low is not None
    assert verdict.ci_high is not None
    assert verdict.difference is not None
    assert verdict.p is not None
    assert 0 < verdict.ci_low < verdict.difference
    assert 0 < verdict.p < 0.05
    assert verdict.convergence_speedup == 8
    assert verdict.labels_saved is None
    low, high = f"{100 * verdict.ci_low:.1f}", f"{100 * verdict.ci_high:.1f}"
    assert verdict.text == (
        f"On toys with 100 training labels `full` beats `scratch` by {100 * verdict.difference:.1f} points "
        f"of accuracy (95 % interval {low} to {high}; 3 seeds, 300 test items) and reaches scratch's best "
        "validation accuracy in 3 of 30 epochs."
    )


def test_the_sentence_with_labels_saved_and_the_probe() -> None:
    crossed = evidence.cross(answers({"scratch": 0.6, "full": 0.85}))
    verdict = judge(
        crossed,
        saved=LabelsSaved(402.3, 250.0, 610.0, more_than=False),
        probe=Interval(-0.081, -0.11, -0.05, 1, 300),
    )
    assert verdict.labels_saved == 402.3
    assert verdict.text.endswith(
        "3 seeds, 300 test items), reaches scratch's best validation accuracy in 3 of 30 epochs, and saves "
        "about 402 labels (250 to 610). The linear probe on pretrained features is worse than on random "
        "features by 8.1 points of accuracy (5.0 to 11.0)."
    )


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        (LabelsSaved(300, 120, None, more_than=True), "and saves more than 300 labels."),
        (LabelsSaved(300, None, None, more_than=True), "and saves more than 300 labels."),
        (LabelsSaved(210, 40, None, more_than=False), "and saves about 210 labels."),
        (LabelsSaved(210, None, None, more_than=False), "and saves about 210 labels."),
        (LabelsSaved(210, -5, 400, more_than=False), "and is not shown to save labels."),
        (LabelsSaved(0, 0, None, more_than=True), "and is not shown to save labels."),
        (LabelsSaved(-60, -90, -20, more_than=False), "and needs about 60 labels more."),
    ],
)
def test_labels_saved_in_words(saved: LabelsSaved, expected: str) -> None:
    verdict = judge(evidence.cross(answers({"scratch": 0.6, "full": 0.85})), saved=saved)
    assert verdict.text.endswith(expected)


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        (
            Interval(0.081, 0.05, 0.11, 1, 300),
            "is better than on random features by 8.1 points of accuracy (5.0 to 11.0).",
        ),
        (
            Interval(0.01, -0.02, 0.04, 1, 300),
            "cannot be told apart from that on random features: it is ahead by 1.0 points of accuracy "
            "(-2.0 to 4.0).",
        ),
        (
            Interval(-0.01, -0.04, 0.02, 1, 300),
            "cannot be told apart from that on random features: it is behind by 1.0 points of accuracy "
            "(-2.0 to 4.0).",
        ),
    ],
)
@pytest.mark.parametrize("arm", ["full", None])
def test_the_probe_in_words(probe: Interval, expected: str, arm: str | None) -> None:
    verdict = judge(evidence.cross(answers({"scratch": 0.6, "full": 0.85})), arm=arm, probe=probe)
    assert verdict.text.endswith(f". The linear probe on pretrained features {expected}")


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
    assert (verdict.fine_tuning_helps, verdict.difference, verdict.p) == ("undecided", 0, 1)
    assert "`full` and `scratch` cannot be told apart: they score the same (" in verdict.text


def test_many_items_on_which_arms_agree_make_them_practically_equal() -> None:
    runs = answers({"scratch": 0.7}, items=1500)
    both = evidence.cross(runs + [change(one, arm="full") for one in runs])
    verdict = judge(both)
    assert (verdict.fine_tuning_helps, verdict.call) == (False, "equal")
    assert (
        "`full` and `scratch` are practically equal: the difference is within 1 point of accuracy (95 % "
        "interval -0.2 to 0.2; 3 seeds, 1500 test items); `full` reaches scratch's best"
    ) in verdict.text
    assert "within 2.5 points of accuracy" in judge(both, margin=0.025).text
    assert judge(both, margin=0.0).call == "undecided"
    assert "within 0.01 of log-loss" in judge(both, metric="log_loss").text


def test_seeds_on_several_training_subsets() -> None:
    crossed = evidence.cross(nested(scratch=0.5, full=0.9))
    verdict = judge(crossed)
    assert verdict.seeds == 2
    assert "; 2 seeds on each of 3 training subsets, 300 test items)" in verdict.text
    gains = crossed.scores("full", "accuracy") - crossed.scores("scratch", "accuracy")
    by_subset = gains.reshape(3, 2, 300).mean(axis=1)
    expected = intervals.of_difference(by_subset, 0.95, (0, 1))
    assert (verdict.ci_low, verdict.ci_high) == (expected.low, expected.high)


def test_one_seed_on_several_subsets_is_not_without_chance() -> None:
    verdict = judge(evidence.cross(nested(seeds=(7,), scratch=0.5, full=0.9)))
    assert "; 1 seed on each of 3 training subsets, 300 test items)" in verdict.text


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
    reached = REACHED | {"full": None}
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


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss"])
def test_a_class_that_is_missing_in_the_test_split_is_no_trouble(metric: str) -> None:
    runs = [
        change(
            one, truth=np.minimum(one.truth, 1), probabilities=said(one.truth < 2, np.minimum(one.truth, 1))
        )
        for one in answers({"scratch": 0.5, "full": 0.9}, items=40)
    ]
    crossed = evidence.cross(runs)
    verdict = judge(crossed, metric=metric)
    assert verdict.difference == 0
    assert verdict.p == 1
    found = evidence.estimate(crossed, "full", metric, 0.95)
    assert found.low <= found.value <= found.high


def test_two_test_items_decide_nothing() -> None:
    verdict = judge(evidence.cross(answers({"scratch": 0.0, "full": 1.0}, items=2)))
    assert (verdict.call, verdict.difference) == ("undecided", 1)


# ------------------------------------------------------------------------------- many comparisons


FOUR = {"scratch": 0.6, "frozen": 0.62, "lora": 0.7, "full": 0.85}


def test_improvements_are_corrected_over_the_arms() -> None:
    crossed = evidence.cross(answers(FOUR))
    found = evidence.improvements(crossed, "scratch", "accuracy", 0.95, 0.01)
    assert list(found) == ["frozen", "lora", "full"]
    for arm, one in found.items():
        alone = evidence.improvement(crossed, arm, "scratch", "accuracy", 0.95)
        assert (one.value, one.low, one.high) == (alone.value, alone.low, alone.high)
        assert (one.low > 0 or one.high < 0) == (one.p < 0.05)
        assert one.p <= one.p_holm <= 3 * one.p
    assert {arm: one.p_holm for arm, one in found.items()} == pairwise.holm(
        {arm: one.p for arm, one in found.items()}
    )
    assert (found["full"].call, found["frozen"].call) == ("helps", "undecided")
    assert found["full"].p == judge(crossed).p


def test_without_another_arm_nothing_is_improved() -> None:
    crossed = evidence.cross(answers({"scratch": 0.5}))
    assert evidence.improvements(crossed, "scratch", "accuracy", 0.95, 0.01) == {}
    assert evidence.pairs(crossed, "accuracy", 0.95, 0.01) == []


def test_pairs_are_corrected_over_all_pairs() -> None:
    crossed = evidence.cross(answers(FOUR))
    found = evidence.pairs(crossed, "accuracy", 0.95, 0.01)
    assert [(one.first, one.second) for one in found] == list(itertools.combinations(FOUR, 2))
    p = {str(at): one.difference.p for at, one in enumerate(found)}
    assert [one.difference.p_holm for one in found] == list(pairwise.holm(p).values())
    assert [one.difference.call for one in found[:3]] == ["undecided", found[1].difference.call, "hurts"]


def test_pairs_test_the_networks_that_were_chosen() -> None:
    crossed = evidence.cross(answers({"scratch": 0.6, "full": 0.85}))
    (pair,) = evidence.pairs(crossed, "log_loss", 0.95, 0.01, {"scratch": 2, "full": 1})
    right = {arm: crossed.scores(arm, "accuracy") > 0 for arm in ("scratch", "full")}
    assert (pair.first_run, pair.second_run) == (2, 1)
    assert pair.mcnemar == pairwise.mcnemar(right["scratch"][2], right["full"][1])


def test_all_arms_equal() -> None:
    runs = answers({"scratch": 0.7}, items=60)
    crossed = evidence.cross([change(one, arm=arm) for arm in FOUR for one in runs])
    found = evidence.pairs(crossed, "accuracy", 0.95, 0.01)
    assert {(one.difference.value, one.difference.p, one.difference.p_holm) for one in found} == {(0, 1, 1)}
    assert {one.mcnemar.p for one in found if one.mcnemar} == {1}


@given(st.integers(0, 100))
def test_the_order_of_items_changes_nothing(seed: int) -> None:
    runs = answers({"scratch": 0.6, "full": 0.7}, items=30)
    order = np.random.default_rng(seed).permutation(30)
    renamed = [change(one, truth=one.truth[order], probabilities=one.probabilities[order]) for one in runs]
    first, second = judge(evidence.cross(runs)), judge(evidence.cross(renamed))
    assert first.ci_low == pytest.approx(second.ci_low)
    assert first.p == pytest.approx(second.p)
    assert first.text == second.text


# ------------------------------------------------------------------------------------------ choice


def test_the_best_on_validation_is_chosen() -> None:
    merits = {"frozen": [(0.8, 0.5)], "full": [(0.9, 0.4), (0.7, 0.4)], "lora": [(0.81, 0.9)]}
    assert evidence.best(merits, "accuracy") == "lora"


def test_lower_log_loss_is_better() -> None:
    assert evidence.best({"frozen": [(0.5, 0.5)], "full": [(0.4, 0.4)]}, "log_loss") == "full"


def test_equal_arms_are_told_apart_by_log_loss_then_by_order() -> None:
    assert evidence.best({"frozen": [(0.8, 0.5)], "full": [(0.8, 0.4)]}, "accuracy") == "full"
    assert evidence.best({"frozen": [(0.8, 0.5)], "full": [(0.8, 0.5)]}, "accuracy") == "frozen"


# --------------------------------------------------------------------------------- without classes, in groups


def of_shares(
    quality: dict[str, float], metric: str = "loss", items: int = 200, seeds: tuple[int, ...] = (1, 2, 3)
) -> list[Answers]:
    """Runs whose items have shares around a value."""
    rng = np.random.default_rng(0)
    ids, ease = [f"i{at:03d}" for at in range(items)], rng.normal(size=items)
    return [
        Answers.of_shares(arm, seed, ids, {metric: value + 0.3 * ease + 0.1 * rng.normal(size=items)})
        for arm, value in quality.items()
        for seed in seeds
    ]


def test_shares_are_lined_up_and_their_mean_is_the_metric() -> None:
    runs = of_shares({"scratch": 3.0, "full": 2.0})
    order = np.random.default_rng(1).permutation(200)
    mixed = dataclasses.replace(
        runs[4], ids=[runs[4].ids[at] for at in order], shares={"loss": runs[4].shares["loss"][order]}
    )
    crossed = evidence.cross([*runs[:4], mixed, *runs[5:]])
    assert crossed.arms == ["scratch", "full"]
    np.testing.assert_array_equal(crossed.scores("full", "loss")[1], runs[4].shares["loss"])
    assert crossed.values("full", "loss") == [one.value("loss") for one in runs[3:]]
    assert crossed.groups is None
    (pair,) = evidence.pairs(crossed, "loss", 0.95, 0.01)
    assert pair.mcnemar is None
    assert pair.difference.call == "hurts"


def test_shares_of_other_items_and_broken_ones_stop() -> None:
    runs = of_shares({"scratch": 3.0, "full": 2.0})
    other = dataclasses.replace(runs[3], ids=["another", *runs[3].ids[1:]])
    with pytest.raises(HeadstartError, match="was tested on other items"):
        evidence.cross([*runs[:3], other, *runs[4:]])
    broken = dataclasses.replace(runs[3], shares={"loss": np.r_[np.nan, np.ones(199)]})
    with pytest.raises(TrainingError, match="arm 'full', seed 1: 1 of 200 predictions are not finite"):
        evidence.cross([*runs[:3], broken, *runs[4:]])


@pytest.mark.parametrize(
    ("metric", "values", "said_so"),
    [
        ("loss", (3.0, 2.0), "`full` beats `scratch` by 0.997 of loss (95 % interval"),
        ("perplexity", (30.0, 20.0), "`full` beats `scratch` by 10.00 of perplexity (95 % interval"),
        ("psnr", (20.0, 24.0), "`full` beats `scratch` by 4.00 "),
        ("dice", (0.5, 0.9), "`full` beats `scratch` by 40.3 points of mean Dice (95 % interval"),
        ("psnr", (24.0, 20.0), "`full` is worse than `scratch` by 4.00 "),
    ],
)
def test_the_verdict_in_the_words_of_every_metric(
    metric: str, values: tuple[float, float], said_so: str
) -> None:
    crossed = evidence.cross(of_shares(dict(zip(("scratch", "full"), values, strict=True)), metric))
    about = Setting("toys", 100, 30, metric, 0.95, 0.01, "labelled samples")
    found = evidence.verdict(crossed, "full", "scratch", REACHED, about, LabelsSaved(40, 20, 60, False))
    assert found.text.startswith(f"On toys with 100 training samples {said_so}")
    assert ("saves about 40 labelled samples (20 to 60)" in found.text) == (found.difference is not None)
    within = evidence.verdict(
        crossed, "full", "scratch", REACHED, dataclasses.replace(about, margin=50.0)
    ).text
    shown = metrics.SHOWN[metric]
    ends = f"5000 points of {shown}" if metrics.METRICS[metric].percent else f"50 of {shown}"
    assert f"the difference is within {ends}" in within


def test_what_stands_alone_is_compared_with_nothing() -> None:
    crossed = evidence.cross(of_shares({"scratch": 0.6}, "token_accuracy"))
    labelled = Setting("toys", 100, 30, "token_accuracy", 0.95, 0.01, "labelled samples")
    assert evidence.verdict(crossed, None, "scratch", {}, labelled).text == (
        "On toys with 100 training samples no pretrained arm stands beside `scratch`: there is nothing to "
        "compare."
    )
    own = dataclasses.replace(labelled, counted="samples", own_labels=True)
    found = evidence.verdict(crossed, None, "scratch", {}, own)
    assert "`scratch`, pretrained from random weights, reaches a test token accuracy of 60." in found.text
    assert " % (95 % interval" in found.text
    assert (found.fine_tuning_helps, found.arm, found.p) == ("undecided", None, None)


def test_intervals_of_items_in_groups_are_over_the_groups() -> None:
    runs = of_shares({"scratch": 3.0, "full": 2.9})
    groups = {f"i{at:03d}": f"g{at % 15}" for at in range(180)}
    crossed = evidence.cross(runs, groups)
    assert crossed.groups == 15 + 20
    assert crossed.clusters is not None
    assert len(set(crossed.clusters[:15])) == 15
    assert crossed.clusters[0] == crossed.clusters[15]
    found = evidence.improvement(crossed, "full", "scratch", "loss", 0.95)
    gains = crossed.scores("scratch", "loss") - crossed.scores("full", "loss")
    expected = intervals.of_difference(intervals.by_cluster(gains, crossed.clusters), 0.95, (0, np.inf))
    assert found == expected
    assert found.items == 35
    verdict = evidence.verdict(crossed, "full", "scratch", REACHED, setting("loss"))
    assert "200 test items in 35 groups)" in verdict.text
    assert (verdict.ci_low, verdict.items) == (expected.low, 200)
    plain = evidence.cross(runs)
    alone = evidence.cross(runs, {f"i{at:03d}": f"g{at}" for at in range(200)})
    assert evidence.estimate(alone, "full", "loss", 0.95) == evidence.estimate(plain, "full", "loss", 0.95)


def test_a_group_may_be_called_as_an_item_is() -> None:
    crossed = evidence.cross(of_shares({"scratch": 1.0}), {"i000": "i001"})
    assert crossed.groups == 200


def test_neither_torch_nor_pandas_is_imported() -> None:
    code = "import sys, steps.evidence; print({'torch', 'pandas', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
