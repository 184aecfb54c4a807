"""The bootstrap: intervals for what has no closed form. No torch.

A draw weighs every item (or run) by how often it is drawn. So any statistic that is a sum over items needs
one matrix product for many draws, and memory is bounded by drawing them in chunks.

Where a mean over few runs is wanted, `intervals` is better: the bootstrap of three runs sees only two thirds
of their variance. What it is good for: functions of many items, as a calibration error. For functions of the
means of few runs, as a speed-up or labels saved, `student_weights` take the place of drawing runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

DRAWS = 10_000
CHUNK = 250
# Counts held at a time, of very many items fewer draws than a chunk: 64 MiB.
MOST_COUNTS = 2**24


def item_weights(
    items: int, draws: int = DRAWS, seed: int = 0, chunk: int = CHUNK
) -> Iterator[NDArray[np.float32]]:
    """How often each draw has each item, chunk by chunk.

    The counts are of independent Poisson variables of mean 1, not multinomial: the same to within terms of
    1 / items, and three times as fast (Hanley and MacGibbon, Computer Methods and Programs in Biomedicine
    83, 2006). A draw's counts sum to about `items`, so divide by their sum, not by `items`.

    Args:
        items: how many there are, two or more.
        draws: how many draws.
        seed: of the generator; the same seed and chunk give the same draws.
        chunk: draws held at a time; 250 draws of 10,000 items are 10 MB. Of very many items it is fewer.

    Yields:
        Shape (chunk, items), the last one maybe with fewer rows; no row is all 0.
    """
    assert min(items - 1, draws, chunk) >= 1, "two items or more, and something to draw"
    rng = np.random.default_rng(seed)
    chunk = min(chunk, max(1, MOST_COUNTS // items))
    for start in range(0, draws, chunk):
        # One byte an item: Poisson by comparing uniform numbers with its cumulative distribution.
        rows = min(chunk, draws - start)
        weights = _TABLE[rng.integers(0, len(_TABLE), size=(rows, items), dtype=np.uint16)]
        # With two items one draw in seven would be empty; it stands for the sample itself.
        weights[weights.sum(axis=1) == 0] = 1.0
        yield weights


def run_weights(runs: int, draws: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """How often each draw has each run: multinomial counts, for there are few runs.

    Returns:
        Shape (draws, runs); every row sums to `runs`.
    """
    assert min(runs, draws) >= 1, "something to draw"
    rng = np.random.default_rng(seed)
    return rng.multinomial(runs, np.full(runs, 1 / runs), size=draws).astype(np.float64)


def student_weights(
    runs: int, draws: int = DRAWS, seed: int = 0, groups: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """Weights under which the mean of any values follows Student's distribution around their mean.

    Drawing k runs with replacement gives their mean (k - 1) / k of the variance it has, and too thin tails.
    These weights put that right, for all quantities of the same runs at once: each draw is 1 / k and a
    normal deviation over the root of a chi-squared variable of k - 1 degrees of freedom. For one quantity
    that is the posterior of a normal mean without prior knowledge (Box and Tiao, Bayesian Inference in
    Statistical Analysis, 1973). Weights may be negative: they are for functions of means only.

    Args:
        runs: two or more.
        draws: how many draws.
        seed: of the generator.
        groups: the training subset of each run, as many runs in each; with more than one, the subsets are
            drawn, and the runs of one weigh alike.

    Returns:
        Shape (draws, runs); every row sums to 1.
    """
    assert runs >= 2, "one run has no spread"
    if groups is not None and len(set(groups)) > 1:
        _, members = np.unique(np.asarray(groups), return_inverse=True)
        of_groups = student_weights(len(set(groups)), draws, seed)
        return np.asarray(of_groups[:, members] / np.bincount(members)[members])
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((draws, runs))
    normal -= normal.mean(axis=1, keepdims=True)
    scale = np.sqrt(rng.chisquare(runs - 1, size=(draws, 1)) * runs)
    return np.asarray(1 / runs + normal / scale)


def means(
    scores: NDArray[np.float64], draws: int = DRAWS, seed: int = 0, chunk: int = CHUNK
) -> NDArray[np.float64]:
    """The mean of a table under a crossed bootstrap: runs and items are drawn independently.

    Args:
        scores: shape (..., runs, items); several tables get the same draws, so their differences are paired.
        draws: how many draws.
        seed: of the generator.
        chunk: draws held at a time.

    Returns:
        Shape (draws, ...).
    """
    *tables, runs, items = scores.shape
    flat = scores.reshape(-1, items).astype(np.float32)
    by_run = run_weights(runs, draws, seed) / runs
    found = np.empty((draws, math.prod(tables)))
    done = 0
    for weights in item_weights(items, draws, seed + 1, chunk):
        of_runs = (weights @ flat.T) / weights.sum(axis=1, keepdims=True)
        shares = by_run[done : done + len(weights)]
        found[done : done + len(weights)] = np.einsum(
            "dtr,dr->dt", of_runs.reshape(len(weights), -1, runs), shares
        )
        done += len(weights)
    return found.reshape(draws, *tables)


def interval(
    values: NDArray[np.float64],
    confidence: float,
    value: float,
    jackknife: NDArray[np.float64] | None = None,
) -> tuple[float, float]:
    """The ends of an interval from the values of the draws.

    Without `jackknife` the percentile interval, widened to hold the value itself. With it the bias-corrected
    and accelerated one (BCa: Efron, J. Am. Stat. Assoc. 82, 1987): right for skewed statistics of many items;
    for three seeds its correction is mostly noise.

    Args:
        values: of the statistic in each draw, shape (draws,).
        confidence: e.g. 0.95.
        value: of the statistic on the sample itself.
        jackknife: the statistic with each item left out, shape (items,).

    Returns:
        Lower and upper end.
    """
    assert np.isfinite(values).all(), "values must be finite"
    miss = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    levels = miss if jackknife is None else _bca_levels(values, miss, value, jackknife)
    low, high = np.quantile(values, levels)
    return min(float(low), value), max(float(high), value)


def _bca_levels(
    values: NDArray[np.float64], miss: NDArray[np.float64], value: float, jackknife: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Which quantiles of the draws to take."""
    # Of discrete statistics many draws equal the value; half of them count as below.
    below = float((values < value).mean() + (values == value).mean() / 2)
    draws = len(values)
    bias = float(ndtri(min(max(below, 0.5 / draws), 1 - 0.5 / draws)))
    gaps = jackknife.mean() - jackknife
    squares = float((gaps**2).sum())
    acceleration = float((gaps**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0
    shifted = bias + ndtri(miss)
    return np.asarray(ndtr(bias + shifted / (1 - acceleration * shifted)))


def _poisson_table() -> NDArray[np.float32]:
    """Counts of Poisson(1), each as often as it is likely among 65,536: a draw is one look-up."""
    size = 2**16
    probabilities = np.array([math.exp(-1) / math.factorial(count) for count in range(9)])
    ends = np.rint(np.cumsum(probabilities) * size).astype(np.int64)
    ends[-1] = size
    return np.repeat(np.arange(9, dtype=np.float32), np.diff(ends, prepend=0))


_TABLE = _poisson_table()
