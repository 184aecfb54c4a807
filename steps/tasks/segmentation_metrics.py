"""Mean IoU and mean Dice over classes, from the pixels of all images together. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steps.images import IGNORED, mask_text
from steps.metrics import shares_of


@dataclass(frozen=True)
class Counts:
    """Pixels of each image and class, shapes (images, classes); pixels that are ignored are in none.

    Attributes:
        both: are of the class and said to be.
        true: are of the class.
        said: are said to be.
    """

    both: NDArray[np.int64]
    true: NDArray[np.int64]
    said: NDArray[np.int64]


def said_of(numbers: NDArray[np.uint8], classes: list[str]) -> dict[str, Any]:
    """What is said of an image, from the class of every pixel, shape (height, width)."""
    counts = np.bincount(numbers.ravel(), minlength=len(classes))
    shares = (counts / max(1, numbers.size)).tolist()
    return {
        "mask": mask_text(numbers, level=1),
        "classes": [name for name, count in zip(classes, counts.tolist(), strict=True) if count],
        "shares": dict(zip(classes, shares, strict=True)),
    }


def counted(pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]], classes: int) -> Counts:
    """The counts of images, each a true and a predicted mask of one shape."""
    rows = []
    for truth, said in pairs:
        assert truth.shape == said.shape, (truth.shape, said.shape)
        judged = truth != IGNORED
        true, found = truth[judged], said[judged]
        rows.append([np.bincount(one, minlength=classes) for one in (true[true == found], true, found)])
    table = np.asarray(rows, dtype=np.int64).reshape(-1, 3, classes)
    return Counts(table[:, 0], table[:, 1], table[:, 2])


def shares(counts: Counts) -> dict[str, NDArray[np.float64]]:
    """Each image's share in `mean_iou` and `dice`, by leaving it out; shape (images,)."""
    parts = (counts.both, counts.true, counts.said)
    whole = [part.sum(axis=0, keepdims=True) for part in parts]
    without = [total - part for total, part in zip(whole, parts, strict=True)]
    return {
        name: shares_of(float(measure(*whole)[0]), measure(*without))
        for name, measure in (("mean_iou", mean_iou), ("dice", mean_dice))
    }


def mean_iou(
    both: NDArray[np.int64], true: NDArray[np.int64], said: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Intersection over union of each class, their mean; shapes (..., classes) to (...).

    A class that is neither in the truth nor in what is said is left out, as scikit-learn's `jaccard_score`
    with `average="macro"` does (Everingham et al., The Pascal Visual Object Classes Challenge, 2015).
    """
    return _mean(both, true + said - both)


def mean_dice(
    both: NDArray[np.int64], true: NDArray[np.int64], said: NDArray[np.int64]
) -> NDArray[np.float64]:
    """As `mean_iou` of twice the intersection over the sum of both (Dice 1945): F1 of the pixels."""
    return _mean(2 * both, true + said)


def _mean(above: NDArray[np.int64], below: NDArray[np.int64]) -> NDArray[np.float64]:
    there = below > 0
    each = np.divide(above, below, out=np.zeros(above.shape), where=there)
    # Where no pixel is judged at all the mean is 0.
    return np.asarray(each.sum(axis=-1) / np.maximum(there.sum(axis=-1), 1))
