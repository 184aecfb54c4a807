"""Whether new inputs come from where the reference came from: two-sample tests that need no labels.

Every test asks how surprising the difference between two samples is if both are of one distribution. The
p-values by permutation are exact: whatever the distribution, a p-value is below any level no more often than
the level says, as long as the items are independent. `judge` corrects for several tests at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steps import pairwise

Matrix = NDArray[np.floating]
# Two statistics this near to each other, as a share of their size, are equal but for rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Outcome:
    """What one test found.

    Attributes:
        name: of the test; unique within a family.
        statistic: how far the two samples are apart, in the test's own unit.
        p: how often chance alone would make it that much.
        what: is compared, in words.
    """

    name: str
    statistic: float
    p: float
    what: str


@dataclass(frozen=True)
class Verdict:
    """What all tests say together.

    Attributes:
        tests: in the order given.
        adjusted: the p-value of each, corrected for all of them (Holm, 1979).
        level: the share of false alarms over all tests together.
    """

    tests: tuple[Outcome, ...]
    adjusted: Mapping[str, float]
    level: float

    @property
    def p(self) -> float:
        """The smallest corrected p-value."""
        return min(self.adjusted.values())

    @property
    def drifted(self) -> bool:
        """Whether any test says so."""
        return bool(self.significant)

    @property
    def significant(self) -> tuple[Outcome, ...]:
        """The tests that say so."""
        return tuple(test for test in self.tests if self.adjusted[test.name] <= self.level)


def judge(tests: Sequence[Outcome], level: float) -> Verdict:
    """Correct the tests for each other.

    Args:
        tests: at least one.
        level: the largest share of false alarms, over all of them together.
    """
    assert len({test.name for test in tests}) == len(tests) > 0, "names are unique, and there is a test"
    return Verdict(tuple(tests), pairwise.holm({test.name: test.p for test in tests}), level)


def least_permutations(tests: int, level: float) -> int:
    """Fewer permutations than this could never say that there is drift, however large it is.

    Args:
        tests: in the family.
        level: as in `judge`.
    """
    # The smallest p-value is 1 / (1 + permutations), and the correction multiplies it by the tests.
    return int(np.ceil(tests / level - 1e-9)) - 1


# ------------------------------------------------------------------------------------------------ of features


def mmd(reference: Matrix, new: Matrix, permutations: int, seed: int = 0) -> Outcome:
    """Maximum mean discrepancy with a Gaussian kernel, its width the median distance.

    The unbiased estimate of its square (Gretton et al., A Kernel Two-Sample Test, JMLR 13, 2012). It sees a
    difference of any kind: of the mean, the spread, or of a part of the items.

    Args:
        reference: features, shape (items, features), at least two items.
        new: features, shape (other items, features), at least two items.
        permutations: random assignments of the items to the two sides.
        seed: of the permutations.
    """
    pooled = np.concatenate([reference, new]).astype(np.float64)
    kernel = _gaussian(pooled)
    sides = _assignments(len(reference), len(new), permutations, seed)
    within = np.einsum("ij,ij->i", sides @ kernel, sides)
    touching, total = sides @ kernel.sum(axis=1), kernel.sum()
    m, n = len(reference), len(new)
    # An item is not compared with itself: the diagonal, all ones, is taken off.
    of_new = (within - n) / (n * (n - 1))
    of_reference = (total - 2 * touching + within - m) / (m * (m - 1))
    between = (touching - within) / (m * n)
    found = of_new + of_reference - 2 * between
    return Outcome(
        "embedding", float(found[0]), _share_beyond(found), "features of the frozen backbone (MMD)"
    )


def _gaussian(pooled: NDArray[np.float64]) -> NDArray[np.float64]:
    """The kernel of every pair, shape (items, items).

    Its width is taken from both samples together, so that it does not depend on which item is on which side.
    """
    from sklearn.metrics.pairwise import euclidean_distances

    # Far from the origin the differences of large numbers would be lost.
    squared: NDArray[np.float64] = euclidean_distances(pooled - pooled.mean(axis=0), squared=True)
    apart = squared[np.triu_indices(len(squared), 1)]
    # Copies are at no distance from each other; a width of zero would make all items equally unlike.
    apart = apart[apart > 0]
    if apart.size == 0:
        return np.ones_like(squared)
    squared /= -2 * float(np.median(np.sqrt(apart))) ** 2
    np.fill_diagonal(squared, 0.0)
    return np.exp(squared, out=squared)


def _assignments(reference: int, new: int, permutations: int, seed: int) -> NDArray[np.float64]:
    """Ones for the items that are new, shape (1 + permutations, items); the first row is how it really is."""
    real = np.concatenate([np.zeros(reference), np.ones(new)])
    rows = np.tile(real, (1 + permutations, 1))
    np.random.default_rng(seed).permuted(rows[1:], axis=1, out=rows[1:])
    return rows


def classifier(reference: Matrix, new: Matrix, permutations: int, seed: int = 0) -> Outcome:
    """Whether a linear classifier, trained on half of the items, can tell the sides of the other half.

    The classifier two-sample test (Lopez-Paz and Oquab, Revisiting Classifier Two-Sample Tests, ICLR 2017),
    with the area under the curve as its statistic: 0.5 is chance, 1 tells all. The permutations are of the
    other half, given the classifier, hence exact. It sees a difference of the mean, little of the spread.

    Args:
        reference: features, shape (items, features), at least four items.
        new: features, shape (other items, features), at least four items.
        permutations: random assignments of the other half's items to the two sides.
        seed: of the halves and the permutations.
    """
    from scipy.stats import rankdata

    rng = np.random.default_rng(seed)
    halves = [
        np.array_split(side[rng.permutation(len(side))].astype(np.float64), 2) for side in (reference, new)
    ]
    (train_reference, test_reference), (train_new, test_new) = halves
    score = _discriminant(train_reference, train_new)
    ranks = rankdata(score(np.concatenate([test_reference, test_new])))
    sides = _assignments(len(test_reference), len(test_new), permutations, seed + 1)
    n, m = len(test_new), len(test_reference)
    found = (sides @ ranks - n * (n + 1) / 2) / (n * m)
    what = "features of the frozen backbone (classifier two-sample test)"
    return Outcome("embedding", float(found[0]), _share_beyond(found), what)


def _discriminant(
    reference: NDArray[np.float64], new: NDArray[np.float64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Ridge regression to the side; how much shrinkage is by the number of features, and not tuned."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pooled = np.concatenate([reference, new])
    side = np.concatenate([np.zeros(len(reference)), np.ones(len(new))])
    model = make_pipeline(StandardScaler(), Ridge(alpha=float(pooled.shape[1]), solver="cholesky"))
    model.fit(pooled, side)
    return lambda rows: np.asarray(model.predict(rows), dtype=np.float64)


METHODS: dict[str, Callable[[Matrix, Matrix, int], Outcome]] = {"mmd": mmd, "classifier": classifier}


# --------------------------------------------------------------------------------------------- of plain facts


def numbers(name: str, what: str, reference: Sequence[float], new: Sequence[float]) -> Outcome:
    """Whether a number of each item is distributed alike: the test of Kolmogorov and Smirnov.

    Where values are tied, as lengths are, it gives fewer false alarms than the level allows, never more.

    Args:
        name: of the test.
        what: the number is, in words.
        reference: of each item, finite.
        new: of each item, finite.
    """
    from scipy.stats import ks_2samp

    found = ks_2samp(np.asarray(reference, np.float64), np.asarray(new, np.float64))
    return Outcome(name, float(found.statistic), float(found.pvalue), what)


def classes(
    name: str,
    what: str,
    reference: Mapping[str, int],
    new: Mapping[str, int],
    permutations: int,
    seed: int = 0,
) -> Outcome:
    """Whether classes are as frequent: Pearson's chi-square, its p-value by permutation.

    The permutations keep it exact where a class is rare; the tables are drawn from the hypergeometric
    distribution, which is what permuting the items would do.

    Args:
        name: of the test.
        what: the classes are, in words.
        reference: items of each class.
        new: items of each class.
        permutations: random tables.
        seed: of the tables.
    """
    names = sorted({*reference, *new})
    table = np.array([[side.get(one, 0) for one in names] for side in (reference, new)], dtype=np.int64)
    table = table[:, table.sum(axis=0) > 0]
    pooled, sizes = table.sum(axis=0), table.sum(axis=1)
    assert (sizes > 0).all(), "both sides have items"
    rng = np.random.default_rng(seed)
    drawn = rng.multivariate_hypergeometric(pooled, int(sizes[1]), size=permutations)
    of_new = np.concatenate([table[1:], drawn])
    expected = pooled * (sizes[1] / sizes.sum())
    # What is too much on one side is missing on the other: one side's deviations tell both.
    found = ((of_new - expected) ** 2 / expected).sum(axis=1) * (1 + sizes[1] / sizes[0])
    return Outcome(name, float(found[0]), _share_beyond(found), what)


def counts(labels: Sequence[str]) -> dict[str, int]:
    """Items of each class."""
    return dict(Counter(labels))


def _share_beyond(found: NDArray[np.float64]) -> float:
    """The exact p-value: the share of assignments, the real one among them, at least as far apart as it.

    Args:
        found: the statistic of every assignment, the real one first.
    """
    tied = ROUNDING * float(np.abs(found).max(initial=0.0))
    return float(np.mean(found >= found[0] - tied))
