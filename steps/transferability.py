"""How well features suit labels, told without training a network: LogME, the H-score and N-LEEP. No torch.

Each is a function of features (items, features) and class indices (items,), and higher is better. They rank
backbones on one data set; values of different data sets, or of different scores, say nothing to each other.
Like everything estimated from few items they are rough: ranks that differ by little are no ranks.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

# Directions of so little of the largest variance are rounding errors of float32 features.
RANK_TOLERANCE = 1e-10
# log(alpha / beta), relative to the mean eigenvalue, that LogME looks through.
GRID = np.linspace(-18.0, 18.0, 73)
# N-LEEP: share of variance kept, components of the PCA and of the mixture at most, items for each of these.
ENERGY, DIMENSIONS, CLUSTERS, ITEMS_A_CLUSTER = 0.8, 64, 128, 5
CLUSTERS_A_CLASS = 5
SEED = 0


def log_me(features: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Logarithm of the maximum evidence of a Bayesian linear model, per item and class.

    You et al., LogME: Practical Assessment of Pre-trained Models for Transfer Learning, 2021. For each class
    the 0/1 labels are y ~ N(F w, 1/beta), w ~ N(0, 1/alpha). The paper iterates alpha and beta to a fixed
    point; for a given t = alpha / beta the best beta has a closed form, so here only t is searched:

        log p = n/2 log(n / E) + 1/2 sum_k log(t / (t + s_k)) - n/2 (1 + log 2 pi)
        E = |y|^2 - sum_k x_k^2 s_k / (s_k + t)

    with s the eigenvalues of F F' and x = U'y. As in the paper features are neither centred nor scaled.

    Args:
        features: shape (items, features), finite.
        labels: class index of each item, shape (items,).
    """
    items = len(features)
    onehot = _onehot(labels)
    values, projected = _spectrum(np.asarray(features, dtype=np.float64), onehot)
    if len(values) == 0:  # features that are all zero explain nothing
        values, projected = np.ones(1), np.zeros((1, onehot.shape[1]))
    found = [
        _evidence(values, projected[:, at] ** 2, float(onehot[:, at].sum()), items)
        for at in range(onehot.shape[1])
    ]
    return float(np.mean(found)) / items


def _evidence(values: NDArray[np.float64], energy: NDArray[np.float64], total: float, items: int) -> float:
    """The largest log-evidence of one class; `energy` is x^2, `total` is |y|^2."""
    scale = math.log(values.mean())

    def minus(shift: float) -> float:
        ratio = math.exp(shift + scale)
        error = max(total - float(energy @ (values / (values + ratio))), 1e-12 * total)
        fit = items * math.log(items / error) - float(np.log1p(values / ratio).sum())
        return -0.5 * (fit - items * (1 + math.log(2 * math.pi)))

    best = int(np.argmin([minus(float(shift)) for shift in GRID]))
    ends = (float(GRID[max(best - 1, 0)]), float(GRID[min(best + 1, len(GRID) - 1)]))
    found = minimize_scalar(minus, bounds=ends, method="bounded", options={"xatol": 1e-6})
    return -min(float(found.fun), minus(float(GRID[best])))


def h_score(features: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """How much of the features' variance, once whitened, lies between the classes.

    Bao et al., An Information-Theoretic Approach to Transferability in Task Transfer Learning, 2019, with the
    shrinkage of Ibrahim, Ponomareva and Mazumder, Newer is Not Always Better, 2021: trace(S_a^-1 (1 - a) B)
    with B the covariance of the class means and S_a = (1 - a) S + a mean(diag S) I, the covariance of
    Ledoit and Wolf, 2004. Without it more features than items would always give the highest score.

    Args:
        features: shape (items, features), finite.
        labels: class index of each item, shape (items,).

    Returns:
        Between 0 and the number of classes less one; 0 where features do not vary, or where so few items
        cannot tell their covariance from that of noise (a = 1), as with TF-IDF.
    """
    centred = np.asarray(features, dtype=np.float64) - features.mean(axis=0, dtype=np.float64)
    items = len(centred)
    onehot = _onehot(labels)
    counts = onehot.sum(axis=0)
    values, projected = _spectrum(centred, onehot / np.sqrt(counts))
    if len(values) == 0:
        return 0.0
    covariance = values / items
    shrinkage, level = _ledoit_wolf(centred, covariance)
    # The classes' means, in the principal directions: sqrt(s) U'Y / counts.
    between = (projected**2).sum(axis=1) * values / items
    return float((1 - shrinkage) * (between / ((1 - shrinkage) * covariance + shrinkage * level)).sum())


def _ledoit_wolf(centred: NDArray[np.float64], covariance: NDArray[np.float64]) -> tuple[float, float]:
    """The shrinkage of Ledoit and Wolf, and the mean variance they shrink to.

    Args:
        centred: shape (items, features).
        covariance: eigenvalues of its covariance that are not zero.
    """
    items, width = centred.shape
    level = float(covariance.sum()) / width
    squared = float((covariance**2).sum())
    delta = squared / width - level**2
    beta = (float(((centred**2).sum(axis=1) ** 2).sum()) / items - squared) / (width * items)
    return (min(beta, delta) / delta if delta > 0 and beta > 0 else 0.0), level


def n_leep(features: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Mean log-probability of the labels when they are read off clusters of the features.

    Li et al., Ranking Neural Checkpoints, 2021: PCA, a Gaussian mixture in place of the source classifier,
    then LEEP (Nguyen et al., 2020): log sum_z P(label | z) P(z | item). PCA keeps 80 % of the variance, the
    mixture has five clusters a class, as in the paper. Ours are fitted to few items, so it differs where
    that matters: covariances are diagonal; there are at most 64 components and 128 clusters, each of five
    items or more on average; and P(label | z) is counted without the item itself and with one made-up item
    of the classes' shares, since an item that tells a small cluster its own label would score high on noise.

    Args:
        features: shape (items, features), finite.
        labels: class index of each item, shape (items,).

    Returns:
        At most 0.
    """
    from sklearn.mixture import GaussianMixture  # a second, which most callers need not wait

    onehot = _onehot(labels)
    items, classes = onehot.shape
    reduced = _principal(np.asarray(features, dtype=np.float64))
    clusters = max(1, min(CLUSTERS_A_CLASS * classes, CLUSTERS, items // ITEMS_A_CLUSTER))
    mixture = GaussianMixture(
        clusters,
        covariance_type="diag",
        reg_covar=1e-3,
        max_iter=20,
        init_params="k-means++",
        random_state=SEED,
    )
    # Not to have converged after the most iterations is no harm: any mixture is a reading of the features.
    with warnings.catch_warnings(action="ignore"):
        posterior = mixture.fit(reduced).predict_proba(reduced)
    own = onehot.argmax(axis=1)
    # Of each item's own class: what the other items put into each cluster, and one item of the whole's mix.
    with_class = (posterior.T @ onehot).T[own] - posterior + onehot.mean(axis=0)[own, None]
    given = with_class / (posterior.sum(axis=0) - posterior + 1)
    return float(np.log((posterior * given).sum(axis=1)).mean())


def _principal(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates of most of the variance, all divided by the deviation of the leading one."""
    items = len(features)
    centred = features - features.mean(axis=0)
    tall = items > centred.shape[1]
    values, vectors = _eigen(centred.T @ centred if tall else centred @ centred.T)
    if len(values) == 0:
        return np.zeros((items, 1))
    kept = int(np.searchsorted(np.cumsum(values) / values.sum(), ENERGY)) + 1
    kept = min(kept, DIMENSIONS, len(values))
    scores = centred @ vectors[:, :kept] if tall else vectors[:, :kept] * np.sqrt(values[:kept])
    return np.asarray(scores * math.sqrt(items / values[0]))


def _onehot(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shape (items, classes); classes that no item has are left out."""
    classes, places = np.unique(labels, return_inverse=True)
    assert len(classes) >= 2, "scores need two classes"
    return np.eye(len(classes))[places]


def _spectrum(
    features: NDArray[np.float64], targets: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues of F F' that are not zero, the largest first, and U' targets.

    From the smaller of the two matrices of products: much faster than a singular value decomposition.
    """
    if len(features) <= features.shape[1]:
        values, vectors = _eigen(features @ features.T)
        return values, vectors.T @ targets
    values, vectors = _eigen(features.T @ features)
    return values, (vectors.T @ (features.T @ targets)) / np.sqrt(values)[:, None]


def _eigen(products: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues that are not zero, the largest first, and their vectors as columns."""
    values, vectors = np.linalg.eigh(products)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > RANK_TOLERANCE * max(float(values[0]), np.finfo(np.float64).tiny)
    return values[kept], vectors[:, kept]
