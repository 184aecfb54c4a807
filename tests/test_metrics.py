import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
)

from steps import metrics

Outputs = tuple[NDArray[np.int64], NDArray[np.float64]]


def outputs(seed: int, items: int, classes: int) -> Outputs:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, items)
    logits = rng.normal(size=(items, classes))
    logits[np.arange(items), truth] += 1
    shares = np.exp(logits)
    return truth, shares / shares.sum(axis=1, keepdims=True)


made = st.builds(outputs, st.integers(0, 10_000), st.integers(2, 40), st.integers(2, 6))


@settings(max_examples=50, deadline=None)
@given(made)
def test_scores_agree_with_scikit_learn(given_outputs: Outputs) -> None:
    truth, probabilities = given_outputs
    predicted, labels = probabilities.argmax(axis=1), list(range(probabilities.shape[1]))
    expected = {
        "accuracy": accuracy_score(truth, predicted),
        "macro_f1": f1_score(truth, predicted, average="macro", labels=labels, zero_division=0),
        "log_loss": log_loss(truth, probabilities, labels=labels),
    }
    found = {name: metrics.score(name, truth, probabilities) for name in metrics.OF_CLASSES}
    assert found == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(made, st.sampled_from(metrics.OF_CLASSES))
def test_the_mean_of_the_shares_is_the_metric(given_outputs: Outputs, metric: str) -> None:
    truth, probabilities = given_outputs
    shares = metrics.per_item(metric, truth, probabilities)
    assert shares.shape == truth.shape
    assert shares.mean() == pytest.approx(metrics.score(metric, truth, probabilities))


def test_shares_of_macro_f1_are_those_of_leaving_each_item_out() -> None:
    truth, probabilities = outputs(3, 25, 4)
    predicted, labels = probabilities.argmax(axis=1), [0, 1, 2, 3]

    def f1(kept: NDArray[np.bool_]) -> float:
        return float(f1_score(truth[kept], predicted[kept], average="macro", labels=labels, zero_division=0))

    without = np.array([f1(np.arange(25) != left_out) for left_out in range(25)])
    jackknife = 24 / 25 * ((without - without.mean()) ** 2).sum()
    shares = metrics.per_item("macro_f1", truth, probabilities)
    assert shares.var(ddof=1) / 25 == pytest.approx(jackknife)


def test_spread_of_macro_f1_agrees_with_the_bootstrap() -> None:
    truth, probabilities = outputs(5, 500, 5)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(500, np.full(500, 1 / 500), size=2000).astype(np.float64)
    bootstrap = metrics.macro_f1(truth, probabilities.argmax(axis=1), 5, weights).std(ddof=1)
    shares = metrics.per_item("macro_f1", truth, probabilities)
    assert shares.std(ddof=1) / np.sqrt(500) == pytest.approx(bootstrap, rel=0.06)


def test_weights_of_macro_f1_count_items_as_often_as_they_say() -> None:
    truth, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    counts = np.array([2, 1, 3, 0, 1])
    again = np.repeat(np.arange(5), counts)
    expected = f1_score(truth[again], predicted[again], average="macro", labels=[0, 1, 2], zero_division=0)
    assert metrics.macro_f1(truth, predicted, 3, counts[None, :].astype(float))[0] == pytest.approx(expected)


def test_summary_agrees_with_scikit_learn() -> None:
    truth, probabilities = outputs(1, 60, 3)
    summary = metrics.summary(truth, probabilities, ["a", "b", "c"])
    expected = precision_recall_fscore_support(truth, probabilities.argmax(axis=1), zero_division=0)
    found = [
        [summary["per_class"][label][name] for label in "abc"]
        for name in ("precision", "recall", "f1", "support")
    ]
    np.testing.assert_allclose(found, expected)


def test_a_class_that_is_nowhere_counts_as_nought() -> None:
    truth = np.array([0, 0, 1])
    probabilities = np.array([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1]])
    assert metrics.score("macro_f1", truth, probabilities) == pytest.approx(2 / 3)
    assert metrics.summary(truth, probabilities, ["a", "b", "c"])["per_class"]["c"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 0,
    }


def test_a_probability_of_nought_costs_much_but_not_without_end() -> None:
    share = metrics.per_item("log_loss", np.array([0]), np.array([[0.0, 1.0]]))
    assert share[0] == pytest.approx(-np.log(metrics.EPSILON))


def test_confusion_agrees_with_scikit_learn() -> None:
    truth, probabilities = outputs(2, 80, 4)
    predicted = probabilities.argmax(axis=1)
    np.testing.assert_array_equal(
        metrics.confusion(truth, predicted, 4), confusion_matrix(truth, predicted, labels=[0, 1, 2, 3])
    )


def test_improvement_is_positive_for_the_better_one() -> None:
    worse, better = np.array([0.2]), np.array([0.9])
    assert metrics.improvement("accuracy", better, worse)[0] > 0
    assert metrics.improvement("log_loss", worse, better)[0] > 0


@pytest.mark.parametrize(
    ("metric", "value", "words"),
    [
        ("accuracy", 0.197, "19.7 points of accuracy"),
        ("macro_f1", 0.0312, "3.1 points of macro-F1"),
        ("log_loss", 0.3124, "0.312 of log-loss"),
        ("accuracy", -0.00001, "0.0 points of accuracy"),
    ],
)
def test_amounts_in_words(metric: str, value: float, words: str) -> None:
    assert metrics.amount(metric, value) == words
