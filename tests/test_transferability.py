from __future__ import annotations

from time import process_time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from steps import transferability

SCORES = (transferability.log_me, transferability.h_score, transferability.n_leep)


def made(
    items: int, width: int, classes: int, signal: float, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Features of which the first ones tell the class, the more so the larger the signal."""
    random = np.random.default_rng(seed)
    labels = np.arange(items) % classes
    means = np.zeros((classes, width))
    means[:, : width // 2] = random.normal(size=(classes, width // 2))
    return random.normal(size=(items, width)) + signal * means[labels], labels


def slow_log_me(features: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The evidence as the density of the labels, by a search over both precisions."""
    items = len(features)
    products = features @ features.T

    def minus(logs: NDArray[np.float64], target: NDArray[np.float64]) -> float:
        alpha, beta = np.exp(np.clip(logs, -30, 30))
        covariance = products / alpha + np.eye(items) / beta
        return -float(multivariate_normal.logpdf(target, cov=covariance))

    found = []
    for label in np.unique(labels):
        target = (labels == label).astype(float)
        starts = [minimize(minus, (a, 2.0), (target,), method="Nelder-Mead") for a in (0.0, 4.0, 8.0)]
        found.append(-min(float(one.fun) for one in starts))
    return float(np.mean(found)) / items


def slow_h_score(features: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """As the paper writes it, with scikit-learn's shrinkage."""
    found = LedoitWolf().fit(features)
    means = np.stack([features[labels == label].mean(axis=0) for label in labels])
    between = np.cov(means, rowvar=False, bias=True)
    return float(np.trace(np.linalg.pinv(found.covariance_) @ ((1 - found.shrinkage_) * between)))


@pytest.mark.parametrize(("items", "width"), [(40, 5), (30, 60)])
def test_log_me_is_the_largest_evidence(items: int, width: int) -> None:
    features, labels = made(items, width, 3, 1.0)
    found = transferability.log_me(features, labels)
    assert found == pytest.approx(slow_log_me(features, labels), abs=1e-4)
    # It does not matter how large features are.
    assert transferability.log_me(1000 * features, labels) == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize(("items", "width"), [(80, 6), (30, 60), (60, 60)])
def test_h_score_is_the_papers(items: int, width: int) -> None:
    features, labels = made(items, width, 4, 1.0)
    features *= np.linspace(0.1, 3, width)
    found = transferability.h_score(features, labels)
    assert found == pytest.approx(slow_h_score(features, labels), rel=1e-8)
    assert 0 < found < 3


def test_n_leep_of_clear_clusters_is_0_and_without_any_signal_the_entropy() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(400) % 4
    # Each cluster is of one class.
    clear = np.eye(4)[labels] * 50 + random.normal(size=(400, 4))
    # Five clusters a class, each with one made-up item beside its 20: (19 + 1/4) / 20 on average.
    assert transferability.n_leep(clear, labels) == pytest.approx(np.log(19.25 / 20), abs=0.02)
    nothing = np.zeros((400, 8))
    assert transferability.n_leep(nothing, labels) == pytest.approx(-np.log(4), abs=0.01)
    # Nor do small clusters make something out of noise.
    noise = random.normal(size=(100, 50))
    assert transferability.n_leep(noise, labels[:100]) < -1.3


def test_n_leep_is_leep_of_its_mixture() -> None:
    """Sums written out, over the clusters that scikit-learn finds of scikit-learn's components."""
    from sklearn.mixture import GaussianMixture

    features, labels = made(150, 12, 3, 1.5)
    pca = PCA(transferability.ENERGY, svd_solver="full").fit(features)
    reduced = pca.transform(features)
    reduced /= reduced[:, 0].std()
    mixture = GaussianMixture(15, covariance_type="diag", init_params="k-means++", random_state=0).fit(
        reduced
    )
    posterior = mixture.predict_proba(reduced)
    total = 0.0
    for item in range(len(labels)):
        probability = 0.0
        for cluster in range(15):
            weight = posterior[:, cluster]
            others = np.arange(len(labels)) != item
            own = weight[others & (labels == labels[item])].sum() + (labels == labels[item]).mean()
            probability += own / (weight[others].sum() + 1) * posterior[item, cluster]
        total += np.log(probability)
    # The signs of components are free, and the mixture starts elsewhere for other signs.
    assert transferability.n_leep(features, labels) == pytest.approx(total / len(labels), abs=0.1)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("items", "width"), [(100, 256), (600, 32)])
def test_more_signal_scores_higher(score: object, items: int, width: int) -> None:
    assert callable(score)
    signals = np.array([0.0, 2.5, 5.0, 10.0]) / np.sqrt(width // 2)
    found = [score(*made(items, width, 5, signal)) for signal in signals]
    assert found == sorted(found)
    assert len(set(found)) == 4


@pytest.mark.parametrize("score", SCORES)
def test_scores_take_odd_features(score: object) -> None:
    assert callable(score)
    features, labels = made(60, 10, 3, 1.0)
    features[:, 3] = 0.0
    features[:, 4] = features[:, 5]
    plain = score(features, labels)
    assert np.isfinite(plain)
    assert score(features.astype(np.float32), labels) == pytest.approx(plain, rel=0.02)
    # Classes that no item has do not count, and the same call gives the same number.
    assert score(features, labels * 7) == plain
    assert np.isfinite(score(np.zeros((60, 10)), labels))


@pytest.mark.parametrize("score", SCORES)
def test_scores_are_fast_at_the_usual_size(score: object) -> None:
    assert callable(score)
    features, labels = made(2000, 1280, 10, 0.5)
    started = process_time()
    score(features.astype(np.float32), labels)
    assert process_time() - started < 5
