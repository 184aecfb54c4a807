"""Masks as targets: class numbers in the square of the images, moved as the images' views are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors  # type: ignore[import-untyped]

from steps.augment import Views, _seed
from steps.images import mask_of
from steps.tasks.of_images import MEMORY_BYTES, ImageSamples


class MaskTargets:
    """The masks of samples; the ones that fit into memory are kept as they are decoded.

    Args:
        masks: each as `images.mask_text` writes it.
        samples: the images; a view of a mask is that of its image.
        memory_bytes: how much may be kept.
    """

    def __init__(self, masks: Sequence[str], samples: ImageSamples, memory_bytes: int = MEMORY_BYTES) -> None:
        assert len(masks) == len(samples), (len(masks), len(samples))
        self.masks, self.samples, self.side = masks, samples, samples.side
        self.room = memory_bytes // self.side**2
        self.kept: dict[int, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.masks)

    def batch(self, indices: list[int], view: int | None = None) -> Tensor:
        """Class numbers, shape (batch, side, side), int64; `IGNORED` where nothing is judged."""
        masks = torch.from_numpy(np.stack([self._one(index) for index in indices]))
        if view is not None and self.samples.augment:
            images = torch.from_numpy(self.samples.pixels.rows(indices))
            masks = views_of(self.samples.views, images, masks, view)
        return masks.long()

    def _one(self, index: int) -> NDArray[np.uint8]:
        found = self.kept.get(index)
        if found is None:
            image = Image.fromarray(mask_of(self.masks[index]))
            found = np.asarray(image.resize((self.side, self.side), Image.Resampling.NEAREST))
            if len(self.kept) < self.room:
                self.kept[index] = found
        return found


def views_of(views: Views, images: Tensor, masks: Tensor, view: int) -> Tensor:
    """The masks' own parts of the views that `views.of` makes of their images.

    Args:
        views: how images are augmented, by moving pixels alone.
        images: as they are stored, shape (batch, side, side, channels).
        masks: shape (batch, side, side), uint8.
        view: which view.
    """
    with torch.random.fork_rng(devices=[]):
        return torch.stack(
            [_moved(views, image, mask, view) for image, mask in zip(images, masks, strict=True)]
        )


def _moved(views: Views, image: Tensor, mask: Tensor, view: int) -> Tensor:
    # The same seed and the same order of transforms draw the same numbers as for the image alone.
    torch.default_generator.manual_seed(_seed(image, view))
    pair = (image.permute(2, 0, 1), tv_tensors.Mask(mask[None]))
    for transform in views.transforms:
        pair = transform(*pair)
    moved: Tensor = pair[1].as_subclass(Tensor)[0]
    return moved
