"""Features of a frozen backbone: computed once, stored, read memory-mapped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from steps.artifacts import read_json
from steps.data import FeatureSamples, Samples, in_turn, to_device
from steps.errors import DataError, HeadstartError
from steps.network import ImageBackbone, TextBackbone

MATRIX, INDEX, KEY = "features.npy", "index.parquet", "features.json"


@torch.inference_mode()
def write(
    backbone: ImageBackbone | TextBackbone,
    samples: Samples,
    path: Path,
    device: torch.device,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Run the backbone in eval mode over all samples, batch by batch, straight to disk.

    Args:
        backbone: gives (batch, features).
        samples: its inputs.
        path: where the float32 matrix (samples, features) goes.
        device: where to compute.
        progress: called with the number of samples done.

    Raises:
        DataError: features are not finite.
    """
    backbone.to(device).eval()
    matrix = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(len(samples), backbone.features)
    )
    for indices in in_turn(len(samples)):
        rows = backbone(to_device(samples.batch(indices), device)).float().cpu().numpy()
        if not np.isfinite(rows).all():
            raise DataError(
                f"the backbone gives features that are not finite, samples {indices[0]} to {indices[-1]}"
            )
        matrix[indices] = rows
        progress(indices[-1] + 1)
    matrix.flush()


def read(folder: Path, ids: pd.Series) -> FeatureSamples:
    """The features of these samples, in their order.

    Raises:
        HeadstartError: some have none; embed is older than the split.
    """
    matrix: NDArray[np.float32] = np.load(folder / MATRIX, mmap_mode="r")
    places = pd.Index(pd.read_parquet(folder / INDEX)["id"]).get_indexer(pd.Index(ids))
    if (places < 0).any():
        raise HeadstartError(
            f"{folder} has no features of {int((places < 0).sum())} samples; run embed again"
        )
    # A copy of the rows asked for: a training reads them in random order many times.
    return FeatureSamples(torch.from_numpy(np.ascontiguousarray(matrix[places])))


def key(folder: Path) -> dict[str, Any]:
    """What the features were computed from."""
    found: dict[str, Any] = read_json(folder / KEY, "python -m steps.embed")
    return found
