"""How often the intervals hold the truth, and how often a difference is claimed where there is none.

    python -m benchmarks.coverage
    python -m benchmarks.coverage --simulations 200

Made-up results, whose truth is known, go through the same code as real ones. A network of an arm has an item
right with a probability whose logit is the arm's skill, the run's luck, the item's ease (most of it shared
by all arms) and the luck of this run with this item. One arm is better than the reference by 0.4; six others
are as good as it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr, ndtri, stdtrit

from steps import bootstrap, convergence, efficiency, intervals, pairwise
from steps.convergence import Curve
from steps.efficiency import Point

Scores = NDArray[np.float32]
Ends = tuple[NDArray[np.float64], NDArray[np.float64]]

LEVEL = 0.95
SIMULATIONS = 3000
CHUNK = 250
DRAWS = 1000
NULLS = 6
GAP = 0.4
EASE, NOISE, SHARED = 1.5, 1.0, 0.8
BOUNDS = (0.0, 1.0)


@dataclass(frozen=True)
class World:
    """One kind of experiment.

    Attributes:
        seeds: runs of each arm; on each training subset, where there are several.
        items: of the test split.
        luck: standard deviation of a run's luck, on the logit.
        skill: of the reference, on the logit.
        shared: share of the variance of an item's ease that all arms have in common.
        subsets: training subsets.
        subset_luck: standard deviation of a subset's luck, on the logit.
    """

    seeds: int
    items: int
    luck: float
    skill: float
    shared: float = SHARED
    subsets: int = 1
    subset_luck: float = 0.0

    @property
    def groups(self) -> list[int]:
        """The subset of each run."""
        return [subset for subset in range(self.subsets) for _ in range(self.seeds)]

    def truth(self, skill: float) -> float:
        """The mean over all runs and items."""
        return float(_mean(skill, self.luck, self.subset_luck, EASE, NOISE))

    def between_seeds(self) -> float:
        """Standard deviation over runs of the true accuracy, in points."""
        nodes, weights = _NODES[0], _NODES[1] / _NODES[1].sum()
        luck = float(np.hypot(self.luck, self.subset_luck))
        of_run = np.array([_mean(float(self.skill + luck * node), EASE, NOISE) for node in nodes])
        return 100 * float(np.sqrt(weights @ (of_run - weights @ of_run) ** 2))

    def results(self, rng: np.random.Generator, times: int) -> Scores:
        """Right or wrong of the better arm, the reference and six like it; (times, arms, runs, items)."""
        skills = np.array([self.skill + GAP] + [self.skill] * (1 + NULLS))[:, None, None]
        arms, runs = len(skills), self.seeds * self.subsets
        normal = _normal(rng)
        shared = normal(times, 1, 1, self.items) * np.sqrt(self.shared)
        own = normal(times, arms, 1, self.items) * np.sqrt(1 - self.shared)
        luck = self.luck * normal(times, arms, runs, 1)
        luck += self.subset_luck * np.repeat(normal(times, arms, self.subsets, 1), self.seeds, axis=2)
        logit = EASE * (shared + own) + luck + NOISE * normal(times, arms, runs, self.items)
        uniform = rng.random(logit.shape, dtype=np.float32)
        return np.asarray(uniform < expit(logit + skills), dtype=np.float32)


# For means over a normal variable; the weights sum to the root of 2 pi.
_NODES = np.polynomial.hermite_e.hermegauss(60)


def _mean(skill: float, *deviations: float) -> float:
    """The mean of a logistic curve over a normal variable."""
    nodes, weights = _NODES[0], _NODES[1] / _NODES[1].sum()
    return float(weights @ expit(skill + np.sqrt(sum(one**2 for one in deviations)) * nodes))


def _normal(rng: np.random.Generator) -> Callable[..., NDArray[np.float32]]:
    return lambda *shape: rng.standard_normal(shape, dtype=np.float32)


ORDINARY, CEILING = 1.5, 4.5
WORLDS = [
    *(World(1, items, 0.0, skill) for items in (100, 800) for skill in (ORDINARY, CEILING)),
    # What one seed leaves out.
    *(World(1, 800, luck, ORDINARY) for luck in (0.1, 0.6)),
    *(
        World(seeds, items, luck, skill)
        for seeds in (3, 5)
        for items in (100, 800)
        for skill in (ORDINARY, CEILING)
        for luck in (0.0, 0.1, 0.6)
    ),
    World(3, 800, 0.1, ORDINARY, shared=0.2),
    World(3, 800, 0.1, ORDINARY, shared=0.98),
    World(2, 800, 0.1, ORDINARY),
    World(3, 800, 0.1, ORDINARY, subsets=3, subset_luck=0.3),
]


# ------------------------------------------------------------------------------------- the methods


def ours(tables: Scores, world: World, paired: bool) -> Ends:
    """The intervals that Headstart reports."""
    of = intervals.of_difference if paired else intervals.of_mean
    found = [of(one.astype(np.float64), LEVEL, BOUNDS, world.groups) for one in tables]
    return np.array([one.low for one in found]), np.array([one.high for one in found])


def satterthwaite(tables: Scores, world: World, paired: bool) -> Ends:
    """The same variance components, and one Student quantile of approximate degrees of freedom."""
    made_up = np.array([-1.0, 1.0] if paired else [0.0, 0.0, 1.0, 1.0])
    tables = _by_subset(tables, world)
    times, runs, items = tables.shape
    of_runs, of_items = tables.mean(axis=2), tables.mean(axis=1)
    padded = np.concatenate([of_items, np.tile(made_up, (times, 1))], axis=1)
    by_items = padded.var(axis=1, ddof=1) / padded.shape[1]
    total, degrees = by_items, np.full(times, padded.shape[1] - 1.0)
    if runs > 1:
        by_runs = of_runs.var(axis=1, ddof=1) / runs
        rest = tables - of_runs[:, :, None] - of_items[:, None, :] + tables.mean(axis=(1, 2))[:, None, None]
        by_rest = (rest**2).sum(axis=(1, 2)) / ((runs - 1) * (items - 1)) / (runs * items)
        total = np.maximum(by_runs + by_items - by_rest, 1e-12)
        parts = by_runs**2 / (runs - 1) + by_items**2 / (padded.shape[1] - 1)
        degrees = np.maximum(1.0, total**2 / (parts + by_rest**2 / ((runs - 1) * (items - 1)) + 1e-30))
    half = stdtrit(degrees, 0.5 + LEVEL / 2) * np.sqrt(total)
    return padded.mean(axis=1) - half, padded.mean(axis=1) + half


def percentile(tables: Scores, world: World, paired: bool) -> Ends:
    """The crossed bootstrap: quantiles of the mean over runs and items drawn with replacement."""
    low, high = np.quantile(_drawn(_by_subset(tables, world)), [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=1)
    return low, high


def bca(tables: Scores, world: World, paired: bool) -> Ends:
    """The crossed bootstrap, bias-corrected and accelerated; the acceleration is that of the items."""
    tables = _by_subset(tables, world)
    drawn, values = _drawn(tables), tables.mean(axis=(1, 2), dtype=np.float64)
    near = np.abs(drawn - values[:, None]) < 1e-7
    below = ((drawn < values[:, None]) & ~near).mean(axis=1) + near.mean(axis=1) / 2
    bias = ndtri(np.clip(below, 0.5 / DRAWS, 1 - 0.5 / DRAWS))[:, None]
    gaps = tables.mean(axis=1, dtype=np.float64) - values[:, None]
    squares = np.maximum((gaps**2).sum(axis=1), 1e-30)
    acceleration = ((gaps**3).sum(axis=1) / (6 * squares**1.5))[:, None]
    shifted = bias + ndtri(np.array([0.5 - LEVEL / 2, 0.5 + LEVEL / 2]))
    levels = ndtr(bias + shifted / (1 - acceleration * shifted))
    at = np.clip(np.rint(levels * (DRAWS - 1)).astype(int), 0, DRAWS - 1)
    ends = np.take_along_axis(np.sort(drawn, axis=1), at, axis=1)
    return ends[:, 0], ends[:, 1]


METHODS = {"Headstart": ours, "Satterthwaite": satterthwaite, "percentile": percentile, "BCa": bca}


def _by_subset(tables: Scores, world: World) -> Scores:
    if world.subsets == 1:
        return tables
    times, _, items = tables.shape
    return np.asarray(tables.reshape(times, world.subsets, world.seeds, items).mean(axis=2))


def _drawn(tables: Scores) -> NDArray[np.float64]:
    """Means under the crossed bootstrap, (times, draws); all tables get the same draws, which is faster."""
    times, runs, items = tables.shape
    weights = np.concatenate(list(bootstrap.item_weights(items, DRAWS, seed=1)))
    of_runs = tables.reshape(-1, items) @ (weights / weights.sum(axis=1, keepdims=True)).T
    shares = (bootstrap.run_weights(runs, DRAWS, seed=2) / runs).astype(np.float32)
    return np.asarray(np.einsum("trd,dr->td", of_runs.reshape(times, runs, DRAWS), shares), dtype=np.float64)


# ------------------------------------------------------------------------------------- counting


@dataclass(frozen=True)
class Counted:
    """Shares of the simulations of one world.

    Attributes:
        held: by method, how often the interval of the mean and that of the difference hold the truth.
        widths: by method, the mean widths of both, in points.
        helps: how often an arm that is as good as the reference is called better.
        family: how often any of six such arms is, after Holm.
    """

    held: dict[str, tuple[float, float]]
    widths: dict[str, tuple[float, float]]
    helps: float
    family: float


def count(world: World, simulations: int, seed: int = 0) -> Counted:
    """Simulate one world."""
    truths = world.truth(world.skill), world.truth(world.skill + GAP) - world.truth(world.skill)
    held: dict[str, list[NDArray[np.float64]]] = {name: [] for name in METHODS}
    widths: dict[str, list[NDArray[np.float64]]] = {name: [] for name in METHODS}
    claims: list[tuple[bool, bool]] = []
    for results in batches(world, simulations, seed):
        tables = {False: results[:, 1], True: results[:, 0] - results[:, 1]}
        for name, method in METHODS.items():
            ends = [method(tables[paired], world, paired) for paired in (False, True)]
            inside = [
                (low <= truth) & (truth <= high) for (low, high), truth in zip(ends, truths, strict=True)
            ]
            held[name].append(np.stack(inside, axis=1).astype(np.float64))
            widths[name].append(np.stack([100 * (high - low) for low, high in ends], axis=1))
        claims += [false_claims(one, world) for one in results]
    share, family = np.mean(claims, axis=0)
    return Counted(_both(held), _both(widths), float(share), float(family))


def _both(found: dict[str, list[NDArray[np.float64]]]) -> dict[str, tuple[float, float]]:
    means = {name: np.concatenate(parts).mean(axis=0) for name, parts in found.items()}
    return {name: (float(one[0]), float(one[1])) for name, one in means.items()}


def batches(world: World, simulations: int, seed: int) -> Iterator[Scores]:
    """The results of a world, some simulations at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, simulations, CHUNK):
        yield world.results(rng, min(CHUNK, simulations - start))


def false_claims(results: Scores, world: World) -> tuple[bool, bool]:
    """Whether the first arm like the reference is called better, and whether any of six is after Holm."""
    gains = (results[2:] - results[1]).astype(np.float64)
    spreads = [intervals.spread_of_difference(one, BOUNDS, world.groups) for one in gains]
    p = {str(at): pairwise.p_of(one.value, one.ends) for at, one in enumerate(spreads)}
    adjusted = pairwise.holm(p)
    first = pairwise.call(spreads[0].interval(LEVEL), 0.0) == "helps"
    better = [one.value > 0 and adjusted[str(at)] < 1 - LEVEL for at, one in enumerate(spreads)]
    return first, any(better)


# ------------------------------------------------------------------------------------- labels saved


BUDGETS = (25, 50, 100, 200, 400)


def labels_held(runs: int, needed: float, simulations: int, seed: int = 0) -> tuple[float, float]:
    """How often the interval of labels saved holds the truth: by Student's weights, by drawing runs.

    Accuracy rises by 8 points with every doubling; runs differ by 1.5 points, the same run by half of that at
    all budgets. The arm has 50 labels and is as good as the reference is with `needed`.
    """
    rng = np.random.default_rng(seed)
    logs, held = np.log2(BUDGETS), np.zeros(2)
    weights = bootstrap.student_weights(runs, DRAWS), bootstrap.run_weights(runs, DRAWS) / runs
    for _ in range(simulations):
        luck = 0.75 * rng.standard_normal(runs)
        noise = 1.3 * rng.standard_normal((len(BUDGETS) + 1, runs))
        values = 30 + 8 * np.append(logs, np.log2(needed))[:, None] + luck + noise
        points = [Point(labels, list(one)) for labels, one in zip(BUDGETS, values, strict=False)]
        for at, shares in enumerate(weights):
            found = efficiency.saved(points, Point(50, list(values[-1])), LEVEL, shares=shares)
            low = -np.inf if found.low is None else found.low
            high = np.inf if found.high is None else found.high
            held[at] += low <= needed - 50 <= high
    return float(held[0] / simulations), float(held[1] / simulations)


# ------------------------------------------------------------------------------------- speed-up


EPOCHS = 30
EPOCH_NUMBERS = list(range(1, EPOCHS + 1))


def curves(rng: np.random.Generator, runs: int, top: float, pace: float) -> NDArray[np.float64]:
    """Validation accuracy that nears its top, with a pace in epochs; both differ by run. (runs, epochs)."""
    tops = top + 0.015 * rng.standard_normal((runs, 1))
    paces = pace * np.exp(0.1 * rng.standard_normal((runs, 1)))
    rise = 1 - np.exp(-np.arange(1, EPOCHS + 1) / paces)
    noise = 0.01 * rng.standard_normal((runs, EPOCHS))
    return np.asarray(0.1 + (tops - 0.1) * rise + noise)


def speedup_held(
    runs: int, top: float, pace: float, simulations: int, seed: int = 0
) -> tuple[float, float, float]:
    """The true speed-up in epochs, and how often it is held: by Student's weights, by drawing runs.

    The truth is that of 20,000 runs. The reference ends at 80 % with a pace of 8 epochs.
    """
    rng = np.random.default_rng(seed)
    best_arm, best_reference = (
        np.maximum.accumulate(curves(rng, 20_000, *shape), axis=1).mean(axis=0)
        for shape in ((top, pace), (0.8, 8.0))
    )
    truth = EPOCHS / float(np.argmax(best_arm >= best_reference[-1]) + 1)
    weights = bootstrap.student_weights(runs, DRAWS), bootstrap.run_weights(runs, DRAWS) / runs
    held = np.zeros(2)
    for _ in range(simulations):
        arm, reference = (
            [Curve(list(one), EPOCH_NUMBERS, EPOCH_NUMBERS) for one in curves(rng, runs, *shape)]
            for shape in ((top, pace), (0.8, 8.0))
        )
        for at, shares in enumerate(weights):
            found = convergence.speedup(arm, reference, "accuracy", LEVEL, shares=shares)
            # Of an arm that does not get there no speed-up is told: a miss, for the truth is that it does.
            if found is not None and found.epochs.low is not None and found.epochs.high is not None:
                # Ratios of whole epochs: many ends are the truth but for rounding.
                held[at] += found.epochs.low - 1e-9 <= truth <= found.epochs.high + 1e-9
    return truth, float(held[0] / simulations), float(held[1] / simulations)


# ------------------------------------------------------------------------------------- the tables


def told(world: World) -> str:
    """The world in a table's cells."""
    seeds = f"{world.seeds}" if world.subsets == 1 else f"{world.seeds} on each of {world.subsets} subsets"
    arms = "" if world.shared == SHARED else f", {100 * world.shared:.0f} % shared"
    return (
        f"{seeds} | {world.items} | {100 * world.truth(world.skill):.0f}{arms} | {world.between_seeds():.1f}"
    )


def per_cent(*shares: float) -> str:
    """Shares as cells."""
    return " | ".join(f"{100 * share:.1f}" for share in shares)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--simulations", type=int, default=SIMULATIONS, help=f"a row; {SIMULATIONS}")
    simulations = parser.parse_args().simulations
    found = []
    print(f"{simulations} simulations a row; all figures are per cent, spread and width are points.\n")
    print("| seeds | items | accuracy | between seeds | mean | difference | width | helps | after Holm |")
    print("| " + " | ".join(["---"] * 9) + " |")
    for world in WORLDS:
        found.append(count(world, simulations))
        one = found[-1]
        cells = f"{per_cent(*one.held['Headstart'])} | {one.widths['Headstart'][1]:.1f}"
        print(f"| {told(world)} | {cells} | {per_cent(one.helps, one.family)} |", flush=True)
    print("\n| seeds | items | accuracy | between seeds | " + " | ".join(METHODS) + " |")
    print("| " + " | ".join(["---"] * (4 + len(METHODS))) + " |")
    for world, one in zip(WORLDS, found, strict=True):
        both = (f"{100 * mean:.1f}, {100 * gap:.1f}" for mean, gap in one.held.values())
        print(f"| {told(world)} | " + " | ".join(both) + " |")
    print("\n| runs | labels needed | Headstart | runs drawn with replacement |\n| --- | --- | --- | --- |")
    for runs in (3, 5, 10):
        for needed in (70, 150, 350):
            held = labels_held(runs, needed, simulations // 3)
            print(f"| {runs} | {needed} | {per_cent(*held)} |", flush=True)
    print("\n| runs | speed-up | Headstart | runs drawn with replacement |\n| --- | --- | --- | --- |")
    for runs in (3, 5, 10):
        for top, pace in ((0.88, 3.0), (0.82, 6.0)):
            truth, *shares = speedup_held(runs, top, pace, simulations // 3)
            print(f"| {runs} | {truth:.1f} | {per_cent(*shares)} |", flush=True)


if __name__ == "__main__":
    main()
