"""Images in a square without being squeezed, and the boxes in them.

An image is made larger or smaller until its longer side fits, lies at the top left, and what is left over is
filled with the mean colour: torchvision's detectors do so too, and no object changes its shape. A box goes
the same way, in both directions by the exact ratio of the sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steps import pixels
from steps.scans import Rule
from steps.tasks import Content
from steps.tasks.of_images import MEMORY_BYTES, PLAIN, ImageSamples

if TYPE_CHECKING:
    from torch import Tensor

# The only view that we can turn boxes to.
FLIP = "flip"

Boxes = NDArray[np.float64]


def scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height of an image of that size in a square of that side: the longer one fills it."""
    longer = max(size)
    width, height = (max(1, round(one * side / longer)) for one in size)
    return width, height


def into(boxes: Boxes, size: tuple[int, int], side: int) -> Boxes:
    """Boxes of an image as they lie in the square.

    Args:
        boxes: x, y, width, height in pixels of the image, shape (boxes, 4).
        size: width and height of the image.
        side: of the square.

    Returns:
        Left, top, right, bottom in pixels of the square, cut at the image's edges.
    """
    ratio = np.divide(scaled(size, side), size)
    corners = np.stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return np.asarray((np.clip(corners, 0, size) * ratio).reshape(-1, 4))


def out_of(boxes: Boxes, size: tuple[int, int], side: int) -> Boxes:
    """Boxes of the square as x, y, width, height in pixels of the image: the way back from `into`."""
    ratio = np.divide(size, scaled(size, side))
    corners = np.clip(boxes.reshape(-1, 2, 2) * ratio, 0, size)
    return np.concatenate([corners[:, 0], corners[:, 1] - corners[:, 0]], axis=1)


class BoxSamples(ImageSamples):
    """Whole images in squares; else as `ImageSamples`. Of the augmentations there is `flip`.

    Args:
        contents: files, or their bytes.
        side: height and width of the square.
        mean: of red, green and blue; also what fills the rest of the square.
        std: of red, green and blue.
        augment: none, or `flip`.
        memory_bytes: decoded images kept in memory.
        store: for decoded files that take more.
        rule: how the values of scans are read.
    """

    def __init__(
        self,
        contents: Sequence[Content],
        side: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Sequence[str] = (),
        memory_bytes: int = MEMORY_BYTES,
        store: pixels.Store | None = None,
        rule: Rule = PLAIN,
    ) -> None:
        assert set(augment) <= {FLIP}, augment
        self.filling = tuple(round(255 * one) for one in mean)
        super().__init__(contents, side, mean, std, augment, memory_bytes, store, rule)

    @property
    def recipe(self) -> str:
        """Names how images are decoded."""
        return f"{super().recipe}, at the top left on {self.filling}"

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each image as people see it, from its header.

        Raises:
            DataError: one is no image.
        """
        return [self.size(index) for index in range(len(self))]

    def fit(self, image: Image.Image) -> Image.Image:
        """An image of any mode as the square that is stored."""
        # Bands with a mean of their own are normalised already: 0 is their mean.
        filling: Any = {"RGB": self.filling, "L": round(sum(self.filling) / 3)}.get(image.mode, 0)
        square = Image.new(image.mode, (self.side, self.side), filling)
        square.paste(image.resize(scaled(image.size, self.side), Image.Resampling.BICUBIC))
        return square

    def batch(self, indices: list[int], view: int | None = None) -> Tensor:
        """The images at these places, float32 of shape (batch, 3, side, side); a view may be flipped.

        Raises:
            DataError: an image cannot be read.
        """
        images = super().batch(indices)
        flipped = self.flipped(indices, view)
        if any(flipped):
            images[flipped] = images[flipped].flip(-1)
        return images

    def flipped(self, indices: list[int], view: int | None) -> list[bool]:
        """Whether that view of each is flipped: a matter of the file and the view alone."""
        if view is None or FLIP not in self.augment:
            return [False] * len(indices)
        salt = view.to_bytes(8, "little")
        return [bool(hashlib.blake2b(self._identity(one), salt=salt).digest()[0] & 1) for one in indices]

    def _identity(self, index: int) -> bytes:
        content = self.contents[index]
        # A stored file is named by its content.
        return content.name.encode() if isinstance(content, Path) else bytes(content)  # type: ignore[arg-type]


class BoxTargets:
    """The boxes of samples, in pixels of the square.

    Args:
        told: of each sample `boxes` and `labels`, as the readers of raw data write them.
        classes: in the order of the network's outputs.
        samples: the images; they say which views are flipped.
    """

    def __init__(self, told: Sequence[dict[str, Any]], classes: list[str], samples: BoxSamples) -> None:
        assert len(told) == len(samples)
        self.samples, places = samples, {name: place for place, name in enumerate(classes)}
        self.boxes = [
            into(np.array(one["boxes"], dtype=np.float64).reshape(-1, 4), tuple(one["size"]), samples.side)
            for one in told
        ]
        self.labels = [np.array([places[name] for name in one["labels"]], dtype=np.int64) for one in told]

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.boxes)

    def batch(self, indices: list[int], view: int | None = None) -> dict[str, Tensor]:
        """`boxes`, float32 of shape (batch, most, 4), and `labels`, int64 of shape (batch, most).

        Boxes are left, top, right, bottom in pixels of the square; places without a box have the label -1.
        """
        import torch

        most = max(1, *(len(self.boxes[index]) for index in indices))
        boxes = np.zeros((len(indices), most, 4), dtype=np.float32)
        labels = np.full((len(indices), most), -1, dtype=np.int64)
        flipped = self.samples.flipped(indices, view)
        for row, (index, flip) in enumerate(zip(indices, flipped, strict=True)):
            own = self.boxes[index]
            if flip:
                own = own[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [self.samples.side, 0, self.samples.side, 0]
            boxes[row, : len(own)], labels[row, : len(own)] = own, self.labels[index]
        return {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)}
