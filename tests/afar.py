"""Asks a Ray cluster: the driver of test_ray.py, a process of its own.

Ray reads its settings once, when it is imported; a process that runs pytest may have imported it before.

    python -m tests.afar ADDRESS NAME GIVEN
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steps import cluster
from steps.errors import DataError, HeadstartError

BATCHES = [[2 * number, 2 * number + 1] for number in range(9)]


def times(factor: str) -> Callable[[list[int]], tuple[list[int], str, int]]:
    """Says the products, whether the worker tells Ray's makers, and its threads."""

    def compute(places: list[int]) -> tuple[list[int], str, int]:
        import torch

        told = os.environ.get("RAY_USAGE_STATS_ENABLED", "")
        return [int(factor) * place for place in places], told, torch.get_num_threads()

    return compute


def fails_at(bad: str) -> Callable[[list[int]], int]:
    """One batch has a sample that cannot be read."""

    def compute(places: list[int]) -> int:
        if int(bad) in places:
            raise DataError(f"sample {bad} cannot be read")
        return places[0]

    return compute


def dies_once(folder: str) -> Callable[[list[int]], int]:
    """A worker that ends at its first batch, whichever that is."""

    def compute(places: list[int]) -> int:
        mark = Path(folder) / "died"
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return places[0]

    return compute


MAKES: dict[str, Callable[[str], Callable[[list[int]], Any]]] = {
    "times": times, "fails_at": fails_at, "dies_once": dies_once, "gpu": times
}  # fmt: skip


def main() -> None:
    from tests import afar  # workers import it under this name

    address, name, given = sys.argv[1:]
    try:
        found = cluster.over_ray(
            afar.MAKES[name], given, BATCHES, address=address, threads=1, gpu=name == "gpu"
        )
        print(json.dumps(list(found)))  # noqa: T201 - for the test
    except HeadstartError as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))  # noqa: T201 - for the test


if __name__ == "__main__":
    main()
