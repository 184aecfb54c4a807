"""Images as patches, and the head and loss of those that are hidden."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from steps.errors import UserError
from steps.network import Backbone
from steps.tasks.of_targets import Unmixed


class PatchHead(nn.Module):
    """A linear layer from each patch's token to its pixels (Xie et al., SimMIM, 2022).

    Class and register tokens, which stand before the patches', are left out.

    Args:
        backbone: gives tokens.
        side: of its images, in pixels.

    Raises:
        UserError: it gives no token for each patch.
    """

    def __init__(self, backbone: Backbone, side: int) -> None:
        super().__init__()
        model: Any = backbone.model
        patch, channels = model.patch_embed.patch_size[0], model.patch_embed.proj.in_channels
        self.prefix = int(model.num_prefix_tokens)
        self._check(backbone, torch.zeros(1, channels, side, side), (side // patch) ** 2)
        self.linear = nn.Linear(backbone.features, channels * patch**2)

    def _check(self, backbone: Backbone, image: Tensor, patches: int) -> None:
        training = backbone.training
        backbone.eval()
        with torch.no_grad():
            tokens: Any = backbone(image.to(next(backbone.parameters()).device))
        backbone.train(training)
        shape = tuple(tokens.shape[1:])
        if shape != (self.prefix + patches, backbone.features):
            raise UserError(
                f"{backbone.name!r} gives activations of shape {shape} and no token for each of the "
                f"{patches} patches: masked-image-model needs a vision transformer"
            )

    def forward(self, tokens: Tensor) -> Tensor:
        """Pixels of every patch, shape (batch, patches, pixels of a patch)."""
        found: Tensor = self.linear(tokens[:, self.prefix :])
        return found


class PatchLoss(Unmixed):
    """The mean absolute error of hidden pixels, over all of a batch."""

    def share(self, drawn: Tensor, targets: dict[str, Tensor], whole: dict[str, Tensor]) -> Tensor:
        """This part's share of the mean."""
        hidden = targets["hidden"]
        errors = (drawn.float()[hidden] - targets["patches"][hidden]).abs().sum()
        return errors / (whole["hidden"].sum() * drawn.shape[-1])


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Patches, row by row, of images of shape (batch, channels, side, side).

    Returns:
        Shape (batch, patches, channels x patch x patch).
    """
    count, channels, height, width = images.shape
    cut = images.reshape(count, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * patch * patch)


def image_of(patches: Tensor, patch: int) -> Tensor:
    """The square images that `patches_of` cut."""
    count, places, pixels = patches.shape
    rows, channels = int(places**0.5), pixels // patch**2
    grid = patches.reshape(count, rows, rows, channels, patch, patch)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, rows * patch, rows * patch)


def hide(images: Tensor, hidden: Tensor, patch: int) -> Tensor:
    """The images with 0 in their hidden patches; `hidden` is bool, shape (batch, patches)."""
    rows = int(hidden.shape[1] ** 0.5)
    grid = hidden.reshape(len(images), 1, rows, rows)
    pixels = grid.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
    return images.masked_fill(pixels, 0.0)
