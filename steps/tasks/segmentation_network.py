"""The decoder, the loss and the class numbers of semantic segmentation."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from segmentation_models_pytorch.base.heads import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn
from torch.nn import functional

from steps.errors import UserError
from steps.images import IGNORED
from steps.tasks.of_targets import Unmixed

# Most channels of the decoder's blocks from the smallest map upwards, those of segmentation-models-pytorch.
WIDTHS = (256, 128, 64, 32, 16)
NARROWEST = 16


class UNetHead(nn.Module):
    """U-Net's decoder (Ronneberger et al. 2015) and a 3 x 3 convolution.

    A block has as many channels as the map that joins it, at most `WIDTHS`: so a small backbone gets a small
    decoder. The smallest map, often of a thousand channels, is brought to the first block's width before.

    Args:
        shapes: channels and stride of the backbone's maps, the largest first.
        classes: how many there are.
        side: height and width of the images.
        dropout: of whole channels, before the last convolution.

    Raises:
        UserError: the backbone gives more maps than there are blocks.
    """

    def __init__(self, shapes: list[tuple[int, int]], classes: int, side: int, dropout: float) -> None:
        super().__init__()
        if not 2 <= len(shapes) <= len(WIDTHS):
            raise UserError(
                f"a U-Net needs maps of 2 to {len(WIDTHS)} sizes, the backbone gives {len(shapes)}; "
                "take another `model.pretrained`"
            )
        self.side = side
        *skips, top = (channels for channels, _ in shapes)
        widths = widths_of(skips)
        self.narrow = Conv2dReLU(top, widths[0], kernel_size=1, use_norm="batchnorm")
        # The first of the channels would be those of the image, which the decoder makes no use of.
        self.decoder = UnetDecoder([0, *skips, widths[0]], widths, n_blocks=len(shapes))
        self.dropout = nn.Dropout2d(dropout)
        self.top = SegmentationHead(widths[-1], classes)
        initialize_decoder(self.narrow)
        initialize_decoder(self.decoder)
        initialize_head(self.top)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits, shape (batch, classes, side, side)."""
        # Only its size is looked at.
        image = maps[0].new_empty((len(maps[0]), 0, self.side, self.side))
        decoded: Tensor = self.decoder([image, *maps[:-1], self.narrow(maps[-1])])
        logits: Tensor = self.top(self.dropout(decoded))
        return logits


def widths_of(skips: list[int]) -> list[int]:
    """The channels of the decoder's blocks, from the smallest map upwards.

    Args:
        skips: channels of all maps but the smallest, the largest map first.
    """
    beside = [*reversed(skips), NARROWEST]
    return [max(NARROWEST, min(most, own)) for most, own in zip(WIDTHS, beside, strict=False)]


class CrossEntropyAndDice(Unmixed):
    """Cross-entropy of the pixels plus the soft Dice loss of the images, as in nnU-Net (Isensee et al. 2021).

    Cross-entropy is a mean over pixels, Dice (Milletari et al., V-Net, 2016) a mean over the classes in an
    image's true mask and then over images: so a small class weighs as much as a large one. Ignored pixels are
    in neither.
    """

    def share(self, outputs: Tensor, targets: Tensor, whole: Tensor) -> Tensor:
        """The part's share of the loss.

        Args:
            outputs: logits, shape (part, classes, side, side).
            targets: class numbers, shape (part, side, side).
            whole: those of the whole batch.
        """
        logits = outputs.float()
        # One row a pixel: the loss on maps has no deterministic kernel for GPUs.
        rows = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
        summed = functional.cross_entropy(rows, targets.reshape(-1), ignore_index=IGNORED, reduction="sum")
        pixels = (whole != IGNORED).sum().clamp(min=1)
        return summed / pixels + dice_losses(logits, targets).sum() / len(whole)


def dice_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The soft Dice loss of each image, shape (batch,); 0 where all pixels are ignored."""
    count = logits.shape[1]
    numbers = torch.arange(count, device=targets.device).view(1, count, 1, 1)
    true = (targets[:, None] == numbers).float()
    judged = (targets != IGNORED)[:, None].float()
    said = logits.softmax(dim=1) * judged
    both, each = (said * true).sum(dim=(2, 3)), true.sum(dim=(2, 3))
    score = 2 * both / (said.sum(dim=(2, 3)) + each).clamp(min=1e-7)
    there = (each > 0).float()
    return ((1 - score) * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)


def numbers(logits: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The class of every pixel of an image of that width and height, shape (height, width).

    Logits are enlarged, not classes: edges are smooth. One class after the other, so that an image of 50
    million pixels takes memory for two of them and not for all.

    Args:
        logits: shape (classes, side, side).
        size: width and height.
    """
    best: Tensor | None = None
    winner = torch.zeros((size[1], size[0]), dtype=torch.uint8)
    for number, one in enumerate(logits.float().cpu()):
        large = functional.interpolate(
            one[None, None], size=(size[1], size[0]), mode="bilinear", align_corners=False
        )[0, 0]
        if best is None:
            best = large
        else:
            winner[large > best] = number
            best = torch.maximum(best, large)
    return winner.numpy()
