"""Classifiers without a network to train: what a fine-tuned one must beat to be worth its trouble. No torch.

Logistic regression and nearest neighbours on features that were computed before, on raw pixels or on TF-IDF.
Each gets the same budget: five values of its one setting, the best on validation. All is deterministic.

Dense features are standardised by the training rows and divided by the square root of their number, so that
rows have length 1 on average: one grid of settings then suits 256 pixels and 2,048 features alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steps import intervals, metrics, scans, transferability
from steps.images import upright
from steps.intervals import Interval
from steps.scans import PLAIN, Rule

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
# A dense matrix, or a sparse one of scipy.
Matrix = Any

# Inverse strength of the penalty; neighbours that vote. Five of each: the budget of every baseline.
STRENGTHS = (1.0, 10.0, 100.0, 1000.0, 10_000.0)
NEIGHBOURS = (1, 3, 5, 10, 20)
# A vote counts this much more, the nearer the neighbour, which decides between classes with equally many.
TIE = 1e-3
# Of L-BFGS; weak penalties stop far too early at scikit-learn's own 1e-4.
TOLERANCE, MOST_STEPS = 1e-6, 5000
# Rows whose products are kept in memory at a time; rows up to which a matrix is turned into their span.
BLOCK, SPAN = 1000, 3000
# A feature that varies less, relative to its size, is constant but for rounding.
CONSTANT = 1e-6
SIDE = 16
MOST_WORDS = 100_000
FOLDS, SEED = 5, 0
# Components that cross-validation works on at most: 25 fits have to be quick.
COMPONENTS = 256
# Components of TF-IDF where a dense matrix is needed.
TOPICS = 64


@dataclass(frozen=True)
class Sides:
    """The same features of the three splits.

    Attributes:
        train: shape (rows, features).
        validation: shape (rows, features).
        test: shape (rows, features).
    """

    train: Matrix
    validation: Matrix
    test: Matrix


@dataclass(frozen=True)
class Baseline:
    """What a baseline says of the test split.

    Attributes:
        probabilities: shape (test rows, classes), in the order of the classes.
        chosen: the setting that was best on validation.
    """

    probabilities: Floats
    chosen: dict[str, float]


@dataclass(frozen=True)
class Transferability:
    """How well features suit labels, before any training.

    Attributes:
        log_me: see `transferability.log_me`.
        h_score: see `transferability.h_score`.
        n_leep: see `transferability.n_leep`.
        probe: cross-validated accuracy of logistic regression, with an interval over items.
    """

    log_me: float
    h_score: float
    n_leep: float
    probe: Interval

    def as_json(self) -> dict[str, Any]:
        """The scores by their names in comparison.json."""
        probe = {"value": self.probe.value, "ci_low": self.probe.low, "ci_high": self.probe.high}
        return {"logme": self.log_me, "h_score": self.h_score, "nleep": self.n_leep, "probe": probe}


# -------------------------------------------------------------------------------------------------- baselines


def majority(train: Labels, rows: int, classes: int) -> Baseline:
    """The classes' shares in train for every row, with one made-up label more of each class.

    Args:
        train: class of each training row.
        rows: how many are asked for.
        classes: how many there are.
    """
    counts = np.bincount(train, minlength=classes) + 1.0
    return Baseline(np.tile(counts / counts.sum(), (rows, 1)), {})


def logistic(sides: Sides, train: Labels, validation: Labels, classes: int) -> Baseline:
    """Multinomial logistic regression with an L2 penalty, its strength the best of five on validation.

    Args:
        sides: features; sparse ones are taken as they are.
        train: class of each training row.
        validation: class of each validation row.
        classes: how many there are; those that train lacks get the probability 0.
    """
    fed, looked, asked = _spanned(*_standardised(sides))
    both = np.vstack([looked, asked]) if isinstance(looked, np.ndarray) else _stacked(looked, asked)
    found = {strength: fit(fed, train, both, classes, strength) for strength in STRENGTHS}
    losses = {
        strength: metrics.score("log_loss", validation, one[: len(validation)])
        for strength, one in found.items()
    }
    best = min(losses, key=losses.__getitem__)
    return Baseline(found[best][len(validation) :], {"C": best})


def neighbours(sides: Sides, train: Labels, validation: Labels, classes: int) -> Baseline:
    """Votes of the nearest training rows (Euclid), their number the best of five on validation.

    A probability is a class's share of the votes, with one made-up vote spread over all classes; without it
    one neighbour would be sure of everything. Numbers beyond the training rows are left out.

    Args:
        sides: features, dense.
        train: class of each training row.
        validation: class of each validation row.
        classes: how many there are.
    """
    fed, looked, asked = _standardised(sides)
    most = min(max(NEIGHBOURS), len(train))
    near = [train[_nearest(fed, rows, most)] for rows in (looked, asked)]
    tried = [number for number in NEIGHBOURS if number <= most]
    losses = {
        number: metrics.score("log_loss", validation, _votes(near[0][:, :number], classes))
        for number in tried
    }
    best = min(losses, key=losses.__getitem__)
    return Baseline(_votes(near[1][:, :best], classes), {"k": best})


def fit(fed: Matrix, labels: Labels, asked: Matrix, classes: int, strength: float) -> Floats:
    """Probabilities of logistic regression, shape (rows asked for, classes).

    Args:
        fed: training features.
        labels: class of each row; classes that are not among them get the probability 0.
        asked: features of the rows asked for.
        classes: how many there are.
        strength: inverse of the penalty.
    """
    from sklearn.linear_model import LogisticRegression

    probabilities = np.zeros((asked.shape[0], classes))
    present = np.unique(labels)
    if len(present) == 1:
        probabilities[:, present] = 1.0
        return probabilities
    model = LogisticRegression(C=strength, solver="lbfgs", tol=TOLERANCE, max_iter=MOST_STEPS)
    probabilities[:, present] = model.fit(fed, labels).predict_proba(asked)
    return probabilities


def _nearest(fed: Floats, asked: Floats, most: int) -> NDArray[np.intp]:
    """The training rows nearest to each row, the nearest first; shape (rows, most)."""
    squares = (fed**2).sum(axis=1)
    found = []
    for at in range(0, len(asked), BLOCK):
        # Squared distances, but for the row's own length, which does not change the order.
        distances = squares - 2 * asked[at : at + BLOCK] @ fed.T
        found.append(np.argsort(distances, axis=1, kind="stable")[:, :most])
    return np.concatenate(found) if found else np.empty((0, most), dtype=np.intp)


def _votes(near: Labels, classes: int) -> Floats:
    """Shape (rows, classes), of the neighbours' classes, the nearest first; shape (rows, neighbours)."""
    votes = np.full((len(near), classes), 1 / classes)
    for rank, labels in enumerate(near.T):
        votes[np.arange(len(near)), labels] += 1 + TIE / (1 + rank)
    return np.asarray(votes / votes.sum(axis=1, keepdims=True))


# --------------------------------------------------------------------------------------------------- features


def pixels(files: Sequence[Path], rule: Rule = PLAIN) -> NDArray[np.float32]:
    """Images made 16 x 16, in 0 to 1; shape (images, 256) where all are grey, else (images, 256 x channels).

    Args:
        files: images that can be decoded, as validate accepts them.
        rule: how scans are read, as for the networks; with a mean of each band values are not in 0 to 1.
    """
    found = np.stack([_small(file, rule) for file in files]).reshape(len(files), -1, rule.channels)
    grey = (found == found[:, :, :1]).all()
    flat = found[:, :, 0] if grey else found.reshape(len(files), -1)
    return np.asarray(flat / np.float32(255) if flat.dtype == np.uint8 else flat, dtype=np.float32)


def _small(file: Path, rule: Rule) -> scans.Values:
    """Shape (16, 16, channels): turned as the camera says, on white, sides squeezed to a square."""
    if scans.is_scan(file, rule):
        return scans.square(scans.fed(scans.read(file), rule), _squeezed)
    with Image.open(file) as opened:
        opened.draft("RGB", (8 * SIDE, 8 * SIDE))  # JPEG decodes smaller, and faster
        small = np.asarray(_squeezed(upright(opened)))
    return small if rule.plain else scans.fed(scans.Scan(small, 8), rule)


def _squeezed(image: Image.Image) -> Image.Image:
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def tf_idf(train: Sequence[str], *others: Sequence[str]) -> list[Matrix]:
    """TF-IDF of single words and pairs, with the logarithm of counts; sparse, rows of length 1.

    Words and how rare they are come from the training texts alone.

    Args:
        train: the training texts.
        others: further texts, turned by the same words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=MOST_WORDS)
    try:
        first = words.fit_transform(train)
    except ValueError:  # no text has a word of two letters
        words = TfidfVectorizer(analyzer="char", sublinear_tf=True)
        first = words.fit_transform(train)
    return [first, *(words.transform(texts) for texts in others)]


def dense(matrix: Matrix, components: int = TOPICS) -> Floats:
    """The leading components of a sparse matrix (latent semantic analysis), shape (rows, so many or fewer).

    Up to 3,000 rows exactly, by the products of rows; above that by random projections.
    """
    if matrix.shape[0] > SPAN:
        from sklearn.decomposition import TruncatedSVD

        return np.asarray(TruncatedSVD(components, random_state=SEED).fit_transform(matrix))
    values, vectors = np.linalg.eigh(_products(matrix, matrix))
    values, vectors = values[::-1][:components], vectors[:, ::-1][:, :components]
    kept = values > CONSTANT**2 * max(float(values[0]), np.finfo(np.float64).tiny)
    return np.asarray(_signed(vectors[:, kept]) * np.sqrt(values[kept]))


def principal(features: NDArray[np.floating], components: int) -> Floats:
    """The leading principal components of standardised features, all of them where they are fewer.

    Args:
        features: shape (rows, features).
        components: how many at most.
    """
    fed = standardised(features, features)
    fed -= fed.mean(axis=0)
    tall = len(fed) > fed.shape[1]
    values, vectors = np.linalg.eigh(fed.T @ fed if tall else fed @ fed.T)
    values, vectors = values[::-1][:components], vectors[:, ::-1][:, :components]
    kept = values > CONSTANT**2 * max(float(values[0]), np.finfo(np.float64).tiny)
    values, vectors = values[kept], _signed(vectors[:, kept])
    if not kept.any():
        return np.zeros((len(fed), 1))
    return np.asarray(fed @ vectors if tall else vectors * np.sqrt(values))


def _signed(vectors: Floats) -> Floats:
    """Each column with the sign that makes its largest entry positive."""
    largest = np.abs(vectors).argmax(axis=0)
    return np.asarray(vectors * np.where(vectors[largest, np.arange(vectors.shape[1])] < 0, -1.0, 1.0))


def standardised(train: NDArray[np.floating], rows: NDArray[np.floating]) -> Floats:
    """Rows with the training rows' mean 0 and mean squared length 1; constant features are 0."""
    mean, spread = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    varies = spread > CONSTANT * np.abs(mean)
    scale = np.where(varies, 1 / np.where(varies, spread, 1.0), 0.0) / np.sqrt(max(int(varies.sum()), 1))
    return np.asarray((rows - mean) * scale)


def _standardised(sides: Sides) -> tuple[Matrix, Matrix, Matrix]:
    if not isinstance(sides.train, np.ndarray):  # sparse ones would not stay sparse
        return sides.train, sides.validation, sides.test
    train, validation, test = (
        standardised(sides.train, rows) for rows in (sides.train, sides.validation, sides.test)
    )
    return train, validation, test


def _spanned(train: Matrix, *others: Matrix) -> list[Matrix]:
    """The rows in an orthogonal basis of the training rows' span, where that is smaller; nothing is lost.

    The weights of a regression with an L2 penalty lie in that span (the representer theorem), so it gives the
    same probabilities, in a tenth of the time with 100 rows of 1,280 features.
    """
    if train.shape[1] <= train.shape[0] or train.shape[0] > SPAN:
        return [train, *others]
    values, vectors = np.linalg.eigh(_products(train, train))
    kept = values > 1e-12 * max(float(values[-1]), np.finfo(np.float64).tiny)
    if not kept.any():  # all features are constant
        return [np.zeros((rows.shape[0], 1)) for rows in (train, *others)]
    basis = vectors[:, kept] / np.sqrt(values[kept])
    return [_products(rows, train) @ basis for rows in (train, *others)]


def _products(first: Matrix, second: Matrix) -> Floats:
    found = first @ second.T
    return np.asarray(found if isinstance(found, np.ndarray) else found.toarray(), dtype=np.float64)


def _stacked(first: Matrix, second: Matrix) -> Matrix:
    from scipy.sparse import vstack

    return vstack([first, second]).tocsr()


# ------------------------------------------------------------------------------------------- cross-validation


def folds(labels: Labels, number: int = FOLDS, seed: int = SEED) -> NDArray[np.int64]:
    """A fold for each row, every class spread as evenly as it can be, however small it is.

    Args:
        labels: class of each row.
        number: of folds.
        seed: of the shuffling.
    """
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(labels))
    found = np.empty(len(labels), dtype=np.int64)
    # Class after class, so that the folds are of equal size too.
    found[shuffled[np.argsort(labels[shuffled], kind="stable")]] = np.arange(len(labels)) % number
    return found


def cross_validated(
    features: NDArray[np.floating], labels: Labels, classes: int, components: int = COMPONENTS
) -> Floats:
    """Probabilities of logistic regression for each row, of the folds that it is not in.

    On the leading principal components, which know no labels; the penalty is the best of five by the log-loss
    over all rows, which makes the probabilities a little too good, and alike for all features compared.

    Args:
        features: shape (rows, features).
        labels: class of each row, at least two rows.
        classes: how many there are.
        components: how many are used at most.

    Returns:
        Shape (rows, classes).
    """
    fed, fold = principal(features, components), folds(labels)
    best, least = np.zeros((len(labels), classes)), np.inf
    for strength in STRENGTHS:
        found = np.zeros((len(labels), classes))
        for number in np.unique(fold):
            out = fold == number
            found[out] = fit(fed[~out], labels[~out], fed[out], classes, strength)
        loss = metrics.score("log_loss", labels, found)
        if loss < least:
            best, least = found, loss
    return best


def transferability_of(
    features: NDArray[np.floating], labels: Labels, classes: int, confidence: float
) -> Transferability:
    """All scores of these features for these labels.

    Args:
        features: shape (rows, features); of train and validation, never of the test split.
        labels: class of each row.
        classes: how many there are.
        confidence: of the probe's interval.
    """
    right = metrics.per_item("accuracy", labels, cross_validated(features, labels, classes))
    return Transferability(
        transferability.log_me(features, labels),
        transferability.h_score(features, labels),
        transferability.n_leep(features, labels),
        intervals.of_mean(right[None], confidence, metrics.BOUNDS["accuracy"]),
    )
