"""Two arms told apart: p-values, their correction for many comparisons, and the call. No torch.

An interval says more than a p-value, and both are made from the same numbers here, so they never disagree:
p is the smallest chance of a miss at which the interval still reaches 0. The interval at 95 % leaves 0 out
where p < 0.05 and only there.

Many comparisons. Of twenty pairs that do not differ, one will have p < 0.05. Holm's step-down procedure
(Scandinavian Journal of Statistics 6, 1979) keeps the chance of even one false claim below the level,
whatever the pairs have in common, and is never weaker than Bonferroni's.

Too small to matter. With enough test items every difference leaves 0 out. So whoever reads the result
says beforehand which difference is too small to matter, the margin, and two arms whose whole interval lies
within it are called equal (the interval inclusion of Westlake, 1972, and Schuirmann, 1987; with the
two-sided 95 % interval it is at least as strict as two one-sided tests at 2.5 %).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest

Call = Literal["helps", "hurts", "equal", "undecided"]
# No test is trusted further out in its tails; what is smaller is given as this.
SMALLEST = 1e-16


class Ends(Protocol):
    """An interval: it has two ends."""

    @property
    def low(self) -> float:
        """The lower end."""
        ...

    @property
    def high(self) -> float:
        """The upper end."""
        ...


@dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same items.

    Attributes:
        only_first: items that the first alone has right.
        only_second: items that the second alone has right.
        p: two-sided and exact, of such a split or a more uneven one when both are equally good.
    """

    only_first: int
    only_second: int
    p: float


def mcnemar(first_right: NDArray[np.bool_], second_right: NDArray[np.bool_]) -> McNemar:
    """McNemar's exact test: is the split of the items that only one has right a fair coin's?

    It is about these two trained networks; what other seeds would do is not in it (Dietterich, Neural
    Computation 10, 1998).

    Args:
        first_right: shape (items,).
        second_right: shape (items,), the same items.
    """
    assert first_right.shape == second_right.shape, "the same items"
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    both = only_first + only_second
    p = float(binomtest(only_first, both, 0.5).pvalue) if both else 1.0
    return McNemar(only_first, only_second, min(1.0, p))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values of one family, in the order given; below the level is significant within the family.

    The smallest of m is multiplied by m, the next by m - 1 and so on; none may be below one before it.
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p}


def p_of(value: float, ends: Callable[[float], tuple[float, float]]) -> float:
    """The p-value that belongs to an interval: the chance of a miss at which its near end is 0.

    Args:
        value: the estimate; at 0 the p-value is 1.
        ends: lower and upper end of the interval, given the chance that it misses the truth.

    Returns:
        Between `SMALLEST` and 1.
    """
    if value == 0:
        return 1.0

    def beyond(exponent: float) -> float:
        low, high = ends(math.exp(exponent))
        return low if value > 0 else -high

    smallest = math.log(SMALLEST)
    if beyond(smallest) > 0:
        return SMALLEST
    if beyond(0.0) <= 0:  # of no width and yet at 0: rounding
        return 1.0
    return float(math.exp(brentq(beyond, smallest, 0.0, xtol=1e-10)))


def call(interval: Ends, margin: float) -> Call:
    """What the interval of a difference says; positive is better.

    Args:
        interval: of the difference.
        margin: the largest difference that does not matter, in the metric's own unit (0.01 is one point of
            accuracy); 0 calls nothing equal.

    Returns:
        `equal`: the whole interval is within the margin, the margin included; `helps`, `hurts`: it leaves 0
        out; else `undecided`.
    """
    assert margin >= 0, "a margin is a size"
    if margin > 0 and -margin <= interval.low and interval.high <= margin:
        return "equal"
    if interval.low > 0:
        return "helps"
    return "hurts" if interval.high < 0 else "undecided"
