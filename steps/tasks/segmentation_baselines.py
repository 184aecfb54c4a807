"""What can be said of pixels without a network: the most frequent class, and classes by colour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from steps.images import IGNORED, mask_of
from steps.tasks import Simple
from steps.tasks.segmentation_metrics import said_of

if TYPE_CHECKING:
    from steps.tasks.semantic_segmentation import SemanticSegmentation

# Levels of red, of green and of blue that the colours of pixels are told apart by.
LEVELS = 16


def baselines(
    task: SemanticSegmentation, rows: pd.DataFrame, classes: list[str], folder: Path
) -> Mapping[str, Simple]:
    """Both methods, learnt from the rows of train.

    Args:
        task: reads images and targets.
        rows: of the manifest, with the column `split`.
        classes: in the order of their numbers.
        folder: the experiment's data folder.
    """
    counts = np.zeros((LEVELS**3, len(classes)), dtype=np.int64)
    for colours, mask in _pixels(task, rows[rows["split"] == "train"], folder):
        judged = mask != IGNORED
        places = colours[judged].astype(np.int64) * len(classes) + mask[judged]
        counts += np.bincount(places, minlength=counts.size).reshape(counts.shape)
    usual = int(counts.sum(axis=0).argmax())
    by_colour = _by_colour(counts)
    frequent, coloured = [], []
    for colours, mask in _pixels(task, rows[rows["split"] == "test"], folder):
        frequent.append(said_of(np.full(mask.shape, usual, dtype=np.uint8), classes))
        coloured.append(said_of(by_colour[colours], classes))
    return {
        "most_frequent": Simple(f"class {classes[usual]}, the most frequent one, at every pixel", frequent),
        "colour": Simple(
            f"of each pixel the class that most pixels of its colour have in train; colours in {LEVELS} "
            "steps of red, green and blue, one not seen there as the nearest that was",
            coloured,
        ),
    }


def _pixels(
    task: SemanticSegmentation, rows: pd.DataFrame, folder: Path
) -> Iterator[tuple[NDArray[np.int16], NDArray[np.uint8]]]:
    """Of each image the colours of its pixels, in steps, and its mask; both of shape (height, width)."""
    from steps.tasks.of_images import picture

    truths: list[Any] = task.truths(rows)
    for path, truth in zip(rows["path"], truths, strict=True):
        steps = np.asarray(picture(folder / path), dtype=np.int16) // (256 // LEVELS)
        yield (steps[..., 0] * LEVELS + steps[..., 1]) * LEVELS + steps[..., 2], mask_of(truth["mask"])


def _by_colour(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The class of every colour, shape (colours,), from counts of shape (colours, classes)."""
    found = counts.argmax(axis=1).astype(np.uint8)
    seen = counts.any(axis=1)
    grid = np.stack(np.unravel_index(np.arange(len(counts)), (LEVELS,) * 3), axis=1)
    nearest = cKDTree(grid[seen]).query(grid[~seen])[1]
    found[~seen] = found[seen][nearest]
    return np.asarray(found)
