"""Do probabilities mean what they say? Calibration error, reliability and temperature. No torch, no pandas.

The confidence of a prediction is its largest probability. It is calibrated when of all predictions with
confidence p a share p is right. The expected calibration error (Guo et al., On Calibration of Modern Neural
Networks, 2017) is the mean over predictions of |accuracy - confidence| of the bin each falls into. Bins hold
equally many items (Nixon et al., Measuring Calibration in Deep Learning, 2019): `count_bins` of them, 15 at
most and of 20 items or more.

Bias. A bin's accuracy is off by chance, and the absolute value makes an error of it: the plain estimate is
too high, the more so the fewer items a bin has (Kumar, Liang and Ma, Verified Uncertainty Calibration,
2019). Of a perfectly calibrated network it is about 0.08 on 300 items and 0.04 on 1,000.
So the estimate and its interval are found by asking which true errors would show what is seen. The gaps of
all bins are thought smaller or larger by one factor f, and the bootstrap adds the noise: the estimate is f
times the plain one for the f at which the plain one is what is expected, and the ends are those f at which
the plain one would be among the most extreme (inverting a test: Carpenter, J. R. Stat. Soc. B 61, 1999). Of
a calibrated network the interval then holds 0, which intervals around the plain estimate never do. In
simulations of 100 to 1,000 items and true errors of 0 to 0.11, 95 % intervals held the truth at least 92 % of
the time, and the estimate was 0.03 at most off on average, where the plain one was 0.08 off.

What the bootstrap does not see: that a network which is right on every test item may be wrong on others.
So the upper end is never below what the mean confidence and Wilson's interval of the accuracy allow. And of
three runs it sees only two thirds of their variance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from steps import bootstrap
from steps.intervals import Interval

MOST_BINS, ITEMS_A_BIN = 15, 20
DRAWS, SEED = 10_000, 20_170
# Draws at a time: with 10,000 items their weights are 20 MB.
CHUNK = 500
# Factors on the gaps that are looked at.
FACTORS = np.array([*np.arange(0, 1.6, 0.1), 1.75, 2.0, 2.5, 3.0, 4.0, 6.0])
# Temperatures that are looked through. Where all of a validation split is right the best one is 0.
COLDEST, HOTTEST = 0.05, 20.0
# Below it a float32 probability is no normal number; its logarithm must be finite.
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Predicted:
    """What the runs of one arm said.

    Attributes:
        probabilities: of the test items, shape (runs, items, classes).
        validation: of the validation items, shape (runs, validation items, classes).
        validation_truth: class of each; shape (validation items,), or (runs, validation items) where runs
            were validated on different items.
    """

    probabilities: NDArray[np.floating]
    validation: NDArray[np.floating]
    validation_truth: NDArray[np.int64]


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same confidence.

    Attributes:
        confidence: their mean confidence.
        accuracy: the share that is right.
        low: lower end of the accuracy's interval.
        high: upper end.
        items: predictions of all runs over the number of runs.
    """

    confidence: float
    accuracy: float
    low: float
    high: float
    items: int


@dataclass(frozen=True)
class Calibration:
    """How well an arm's probabilities are calibrated.

    Attributes:
        ece: expected calibration error, a mean over runs, without most of its bias.
        ece_scaled: the same with every run's probabilities at its own temperature.
        temperatures: one a run; above 1 the network was too sure.
        at_bound: some temperature is the coldest or hottest that was looked at: the validation split says no
            more than "colder" or "hotter".
        bins: from the least to the most confident, of the probabilities as they are.
    """

    ece: Interval
    ece_scaled: Interval
    temperatures: tuple[float, ...]
    at_bound: bool
    bins: tuple[Bin, ...]

    @property
    def temperature(self) -> float:
        """The geometric mean over runs."""
        return math.exp(sum(map(math.log, self.temperatures)) / len(self.temperatures))


def of_arms(
    truth: NDArray[np.int64],
    arms: Mapping[str, Predicted],
    confidence: float,
    *,
    draws: int = DRAWS,
    seed: int = SEED,
) -> dict[str, Calibration]:
    """Calibration of every arm on the same test items.

    Runs and items are drawn anew together, the same items for all arms, so that arms can be compared.
    Temperatures are not fitted again in each draw: the interval of the scaled error is given the temperature.

    Args:
        truth: class of each test item, shape (items,).
        arms: what each arm said; all with equally many runs.
        confidence: e.g. 0.95.
        draws: bootstrap samples.
        seed: of the draws.
    """
    temperatures = {
        arm: [
            fit_temperature(probabilities, labels)
            for probabilities, labels in zip(said.validation, _each(said), strict=True)
        ]
        for arm, said in arms.items()
    }
    tables: list[Sequence[NDArray[np.floating]]] = []
    for arm, said in arms.items():
        scaled = [scale(one, at) for one, at in zip(said.probabilities, temperatures[arm], strict=True)]
        tables += [list(said.probabilities), scaled]
    intervals = _errors(truth, tables, confidence, draws, seed)
    return {
        arm: Calibration(
            intervals[2 * at],
            intervals[2 * at + 1],
            tuple(temperatures[arm]),
            any(_at_bound(one) for one in temperatures[arm]),
            reliability(truth, said.probabilities, confidence),
        )
        for at, (arm, said) in enumerate(arms.items())
    }


def _each(said: Predicted) -> NDArray[np.int64]:
    """The validation truth of each run, shape (runs, validation items)."""
    return np.broadcast_to(said.validation_truth, said.validation.shape[:2])


# ------------------------------------------------------------------------------------------ calibration error


def ece(truth: NDArray[np.int64], probabilities: NDArray[np.floating], bins: int | None = None) -> float:
    """The expected calibration error of one run, plain: its upward bias is in it.

    Args:
        truth: shape (items,).
        probabilities: shape (items, classes).
        bins: how many, at most; `count_bins` of the items when not given.
    """
    gaps, places = _gaps(truth, probabilities, count_bins(len(truth)) if bins is None else bins)
    return float(np.abs(np.bincount(places, gaps)).sum()) / len(truth)


def count_bins(items: int) -> int:
    """How many bins so many items are put into."""
    return max(1, min(MOST_BINS, items // ITEMS_A_BIN))


def equal_mass(confidences: NDArray[np.floating], bins: int) -> NDArray[np.intp]:
    """The bin of each confidence; equal confidences share a bin, so bins may be fewer than asked for."""
    ordered = np.sort(confidences)
    starts = ordered[(np.arange(1, bins) * len(ordered)) // bins]
    edges = np.unique(starts[starts > ordered[0]])
    return np.searchsorted(edges, confidences, side="right")


def _gaps(
    truth: NDArray[np.int64], probabilities: NDArray[np.floating], bins: int
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Confidence less rightness of each item, and its bin."""
    confidences = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == truth
    return confidences.astype(np.float64) - right, equal_mass(confidences, bins)


def _errors(
    truth: NDArray[np.int64],
    tables: Sequence[Sequence[NDArray[np.floating]]],
    confidence: float,
    draws: int,
    seed: int,
) -> list[Interval]:
    """The calibration error of each table of probabilities (runs, items, classes), a mean over its runs."""
    items, runs = len(truth), len(tables[0])
    assert all(len(table) == runs for table in tables), "all arms need equally many runs"
    bins = count_bins(items)
    found = [_gaps(truth, one, bins) for table in tables for one in table]
    # A column a bin, a block of columns a run: the sums in all bins of all draws are one product of matrices.
    columns = np.zeros((items, len(found) * bins), dtype=np.float32)
    for at, (gaps, places) in enumerate(found):
        columns[np.arange(items), at * bins + places] = gaps
    shape = (-1, len(tables), runs, bins)
    sums = columns.sum(axis=0, dtype=np.float64).astype(np.float32).reshape(shape)
    # Poisson weights do not sum to the items: the sums of a draw are scaled as if they did.
    noise = np.concatenate(
        [
            (weights @ columns * (items / weights.sum(axis=1, keepdims=True))).reshape(shape) - sums
            for weights in bootstrap.item_weights(items, draws, seed, CHUNK)
        ]
    )
    by_run = bootstrap.run_weights(runs, draws, seed) / (runs * items)
    return [
        _inverted(sums[0, at], noise[:, at], by_run, confidence, items, _least_high(truth, table, confidence))
        for at, table in enumerate(tables)
    ]


def _least_high(truth: NDArray[np.int64], table: Sequence[NDArray[np.floating]], confidence: float) -> float:
    """The largest difference of mean confidence and accuracy that is possible; the error is no smaller."""
    sure = float(np.mean([one.max(axis=1).mean() for one in table]))
    right = float(np.mean([(one.argmax(axis=1) == truth).mean() for one in table]))
    low, high = wilson(right, len(truth), confidence)
    return max(sure - low, high - sure)


def _inverted(
    sums: NDArray[np.float32],
    noise: NDArray[np.float32],
    by_run: NDArray[np.float64],
    confidence: float,
    items: int,
    least_high: float,
) -> Interval:
    """The calibration error of one table and its interval, both told by the factor on the gaps.

    Args:
        sums: of the gaps in each run and bin, shape (runs, bins).
        noise: what each draw adds to them, shape (draws, runs, bins).
        by_run: weight of each run in each draw over the items, shape (draws, runs).
        confidence: e.g. 0.95.
        items: how many.
        least_high: the upper end is no lower.
    """
    plain = float(np.abs(sums).sum(axis=1).mean()) / items
    levels = [0.5 - confidence / 2, 0.5, 0.5 + confidence / 2]
    shown = np.array(
        [
            np.quantile((np.abs(noise + np.float32(factor) * sums).sum(axis=2) * by_run).sum(axis=1), levels)
            for factor in FACTORS
        ]
    )
    # What is shown rises with the factor, but for the draws' own noise.
    low_end, middle, high_end = np.maximum.accumulate(shown, axis=0).T
    high, value, low = (
        plain * float(np.interp(plain, ends, FACTORS)) for ends in (low_end, middle, high_end)
    )
    high = min(max(high, plain, least_high), 1.0)
    return Interval(min(value, high), min(low, value), high, len(sums), items)


# ------------------------------------------------------------------------------------------------ reliability


def reliability(
    truth: NDArray[np.int64], probabilities: NDArray[np.floating], confidence: float
) -> tuple[Bin, ...]:
    """The reliability diagram of all runs together.

    Runs answer the same items, so their predictions are not so many independent ones: the interval (Wilson,
    1927) counts each bin's predictions over the number of runs, as if all runs answered alike.

    Args:
        truth: shape (items,).
        probabilities: shape (runs, items, classes).
        confidence: e.g. 0.95.
    """
    runs, items = probabilities.shape[:2]
    confidences = np.asarray(probabilities.max(axis=2), dtype=np.float64).ravel()
    right = (probabilities.argmax(axis=2) == truth).ravel()
    places = equal_mass(confidences, count_bins(items))
    sizes = np.bincount(places)
    means = np.bincount(places, confidences) / sizes
    shares = np.bincount(places, right) / sizes
    return tuple(
        Bin(float(mean), float(share), *wilson(float(share), size / runs, confidence), round(size / runs))
        for mean, share, size in zip(means, shares, sizes.tolist(), strict=True)
    )


def wilson(share: float, items: float, confidence: float) -> tuple[float, float]:
    """Interval of a share of so many independent items (Wilson, 1927)."""
    z = float(norm.ppf(0.5 + confidence / 2))
    centre = (share + z * z / (2 * items)) / (1 + z * z / items)
    half = z * math.sqrt(share * (1 - share) / items + (z / (2 * items)) ** 2) / (1 + z * z / items)
    # At a share of 0 or 1 the end is the share itself, but for rounding.
    return max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0)


# ------------------------------------------------------------------------------------------------ temperature


def fit_temperature(probabilities: NDArray[np.floating], truth: NDArray[np.int64]) -> float:
    """The temperature with the least log-loss (Guo et al., 2017), between 0.05 and 20.

    The loss is convex in 1/T, so there is one minimum. It lies at a bound when every validation item is
    right, where T would go to 0, or when the probabilities are worse than equal ones, where it would go to
    infinity: then the bound is what is given.

    Args:
        probabilities: of validation items, shape (items, classes); never of the test split.
        truth: shape (items,).
    """
    logits = _logits(probabilities)
    own = logits[np.arange(len(truth)), truth]

    def loss(log_temperature: float) -> float:
        inverse = math.exp(-log_temperature)
        return float(np.log(np.exp(logits * inverse).sum(axis=1)).mean() - own.mean() * inverse)

    ends = (math.log(COLDEST), math.log(HOTTEST))
    inside = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-4})
    return math.exp(min((float(inside.x), *ends), key=loss))


def scale(probabilities: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """The probabilities at another temperature; which class is likeliest stays as it is.

    Args:
        probabilities: shape (items, classes).
        temperature: above 1 for less confidence.
    """
    powers = np.exp(_logits(probabilities) / temperature)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _logits(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logarithms, less the largest of each row."""
    logs = np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), TINY))
    return np.asarray(logs - logs.max(axis=1, keepdims=True))


def _at_bound(temperature: float) -> bool:
    return not COLDEST * 1.001 < temperature < HOTTEST / 1.001
