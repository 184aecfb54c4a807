"""Augmented views of images, and batches whose images and labels are mixed; torchvision does the work."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2  # type: ignore[import-untyped]

# Takes images (B, C, H, W) and class indices (B,); gives mixed images and soft targets (B, classes).
Mixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Views:
    """The v-th augmented view of an image: a function of its pixels and of v, and of nothing else.

    So a view does not depend on the batch the image is in, on the order of the samples, on the process or on
    how often it was asked for: it can be stored, and a training that is resumed sees what it would have seen.

    Args:
        names: `crop` (Szegedy et al. 2015: a part of 70-100 % of the area, resized back), `flip` (left and
            right, every other time), `randaugment` (Cubuk et al. 2020, its defaults). They are applied in
            this order, however they are given.
        side: height and width of the images.
    """

    def __init__(self, names: Sequence[str], side: int) -> None:
        known: dict[str, v2.Transform] = {
            "crop": v2.RandomResizedCrop(side, scale=(0.7, 1.0), antialias=True),
            "flip": v2.RandomHorizontalFlip(),
            "randaugment": v2.RandAugment(),
        }
        assert set(names) <= set(known), names
        self.transforms = [transform for name, transform in known.items() if name in names]

    def of(self, images: Tensor, view: int) -> Tensor:
        """This view of each image; uint8, shape (batch, side, side, 3), as the images."""
        if not self.transforms:
            return images
        # The transforms draw from torch's CPU generator alone. `torch.manual_seed` would set those of the
        # GPUs too, which `fork_rng` does not put back unless it copies all of them.
        with torch.random.fork_rng(devices=[]):
            return torch.stack([self._one(image, view) for image in images])

    def _one(self, image: Tensor, view: int) -> Tensor:
        torch.default_generator.manual_seed(_seed(image, view))
        channels_first = image.permute(2, 0, 1)
        for transform in self.transforms:
            channels_first = transform(channels_first)
        return channels_first.permute(1, 2, 0)


def _seed(image: Tensor, view: int) -> int:
    # Of the pixels, not of a path or place: equal images have equal views, as equal inputs are stored once.
    digest = hashlib.blake2b(image.numpy().tobytes(), digest_size=8, salt=view.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


def mixer(mixup: float, cutmix: float, classes: int) -> Mixer | None:
    """Mix each image of a batch with its neighbour, and their labels in the same shares.

    mixup (Zhang et al. 2018) takes lambda of one and 1 - lambda of the other; CutMix (Yun et al. 2019) pastes
    a rectangle of the other, its share of the area being the other's share of the label. lambda is drawn from
    Beta(alpha, alpha) for each batch, from torch's own generator; where both are asked for, each batch is
    mixed in one of the two ways, at even odds.

    Args:
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none.
        classes: width of the soft targets.

    Returns:
        None when neither is asked for.
    """
    chosen: list[Mixer] = []
    if mixup > 0:
        chosen.append(v2.MixUp(alpha=mixup, num_classes=classes))
    if cutmix > 0:
        chosen.append(v2.CutMix(alpha=cutmix, num_classes=classes))
    if not chosen:
        return None
    return chosen[0] if len(chosen) == 1 else v2.RandomChoice(chosen)
