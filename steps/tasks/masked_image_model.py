"""Hidden patches of images, to be drawn from what is left: SimMIM's pretraining."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps

from steps import data, scans
from steps.arms import Arm
from steps.artifacts import read_json
from steps.errors import UserError
from steps.params import Machine, Model
from steps.tasks import Ask, Case, Content, Criterion, Said, Simple
from steps.tasks.of_images import ImageSamples, OfImages

if TYPE_CHECKING:
    from torch import Tensor, nn

    from steps.data import Samples
    from steps.network import Backbone

# Pictures for readers are no larger than so many pixels a side.
SHOWN_SIDE = 128
# The best PSNR that is told, in dB: an exact copy has none.
BEST_PSNR = 100.0


class MaskedImageModel(OfImages):
    """Task `masked-image-model` (Xie et al., SimMIM, 2022), in pixels.

    Hidden patches have the mean colour, which is 0 once an image is normalised. The embedding of such a patch
    is the bias of the patch embedding: it learns to be what SimMIM calls the mask token. Every view hides
    other patches.
    """

    name = "masked-image-model"

    def classes(self, rows: pd.DataFrame) -> list[str]:
        """The one label that all images have."""
        return data.classes_of(rows)

    def samples(  # type: ignore[override]  # other samples than those of images alone
        self,
        contents: Sequence[Content],
        model: Model,
        pretrained: Path,
        augment: Sequence[str] = (),
        machine: Machine | None = None,
    ) -> MaskedImageSamples:
        """Images with some patches hidden, `model.mask_fraction` of them.

        Raises:
            UserError: the backbone has no patches, or is for images of another size.
        """
        images = super().samples(contents, model, pretrained, augment, machine)
        description = read_json(pretrained / "architecture.json", "python -m steps.fetch")
        patch = _patch_side(description, model.image_size)
        return MaskedImageSamples(images, patch, model.mask_fraction, Scale.of(images))

    def targets(
        self, rows: pd.DataFrame, classes: list[str], samples: Samples, folder: Path, model: Model
    ) -> HiddenPatches:
        """The images as they are, and which patches are hidden."""
        assert isinstance(samples, MaskedImageSamples), type(samples)
        return HiddenPatches(samples)

    def head(self, backbone: Backbone, classes: list[str], model: Model, arm: Arm) -> nn.Module:
        """A linear layer from each patch's token to its pixels.

        Raises:
            UserError: the backbone gives no token for each patch.
        """
        from steps.tasks.patch_head import PatchHead

        return PatchHead(backbone, model.image_size)

    def objective(self, arm: Arm, targets: Any, classes: list[str]) -> Criterion:  # noqa: ANN401 - see Task
        """The mean absolute error of the hidden pixels."""
        from steps.tasks.patch_head import PatchLoss

        return PatchLoss()

    def predict(self, network: nn.Module, samples: Samples, ask: Ask) -> Said:
        """Of each image the loss and the PSNR of its hidden pixels, and two pictures."""
        from steps import inference

        assert isinstance(samples, MaskedImageSamples), type(samples)
        said: list[dict[str, Any]] = [{}] * len(samples)
        for places, drawn in inference.outputs(
            network, samples, ask.device, cut=ask.cut, precision=ask.precision
        ):
            for place, one in zip(places, judged(drawn.float().cpu(), samples, places), strict=True):
                said[place] = one
        return said

    def truths(self, rows: pd.DataFrame) -> list[Any]:
        """Nothing: what is said of an image already tells how near it came."""
        return [None] * len(rows)

    def scores(self, truths: list[Any], said: Said, classes: list[str]) -> dict[str, NDArray[np.float64]]:
        """Each image's loss and PSNR."""
        rows: list[dict[str, Any]] = [dict(row) for row in said]
        return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in ("loss", "psnr")}

    def baselines(
        self,
        rows: pd.DataFrame,
        classes: list[str],
        folder: Path,
        model: Model | None = None,
        pretrained: Path | None = None,
    ) -> Mapping[str, Simple]:
        """The mean colour of train in every hidden patch; without a size of images none."""
        if model is None or pretrained is None:
            return {}
        train, test = (
            self.samples(
                [self.content(row, folder) for row in rows[rows["split"] == split].itertuples()],
                model,
                pretrained,
            )
            for split in ("train", "test")
        )
        mean = train.mean_patch()
        said: list[dict[str, Any]] = []
        for places in data.in_turn(len(test)):
            drawn = mean.expand(len(places), test.count, -1)
            said += judged(drawn, test, places)
        return {"mean pixel": Simple("the mean colour of the images of train in every hidden patch", said)}

    def case(self, row: Any, said: dict[str, Any], folder: Path) -> Case:  # noqa: ANN401 - a row of a data frame
        """The image, what was shown of it, and what was drawn."""
        shown = base64.b64decode(said["masked"])
        with Image.open(io.BytesIO(shown)) as image:
            size = image.size
        original = ImageOps.fit(scans.picture(folder / str(row.path)), size, Image.Resampling.BICUBIC)
        pictures = (
            ("original", _webp(original)),
            ("masked", shown),
            ("reconstructed", base64.b64decode(said["reconstructed"])),
        )
        return Case("the hidden patches", f"loss {said['loss']:.3f}, {said['psnr']:.1f} dB", pictures)


@dataclass(frozen=True)
class Scale:
    """How normalised pixels become grey values from 0 to 1 again.

    Attributes:
        mean: of each channel, a grey value.
        std: of each channel, in grey values.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: ImageSamples) -> Scale:
        """That of some images.

        Values of scans that were normalised by `band_mean` have no highest: there three deviations below the
        mean are black, and three above it white.
        """
        channels = images.rule.channels
        if images.rule.mean is not None:
            return cls((0.5,) * channels, (1 / 6,) * channels)
        return cls(*(tuple(values[:channels].tolist()) for values in (images.mean, images.std)))

    def picture(self, image: NDArray[np.float32]) -> Image.Image:
        """An image of shape (channels, height, width), no larger than readers need; else than three grey."""
        mean, std = (np.array(values)[:, None, None] for values in (self.mean, self.std))
        grey = np.clip(image * std + mean, 0, 1)
        if len(grey) != 3:
            grey = np.repeat(grey.mean(axis=0, keepdims=True), 3, axis=0)
        made = Image.fromarray(np.round(255 * grey.transpose(1, 2, 0)).astype(np.uint8))
        made.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        return made


class MaskedImageSamples:
    """Images of shape (batch, channels, side, side) with some patches hidden.

    Args:
        images: as the backbone takes them.
        patch: side of a patch, in pixels.
        fraction: of the patches, that is hidden.
        scale: for pictures and PSNR.
    """

    lengths = None

    def __init__(self, images: ImageSamples, patch: int, fraction: float, scale: Scale) -> None:
        self.images, self.patch, self.fraction, self.scale = images, patch, fraction, scale
        self.count = (images.side // patch) ** 2
        self.hidden = min(self.count, max(1, round(fraction * self.count)))
        self._last: tuple[tuple[tuple[int, ...], int | None], tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def decode(self, index: int) -> None:
        """Decode an image ahead of its batch.

        Raises:
            DataError: it cannot be read.
        """
        self.images.decode(index)

    def batch(self, indices: list[int], view: int | None = None) -> Tensor:
        """The images at these places, their hidden patches of the mean colour."""
        from steps.tasks.patch_head import hide

        images, hidden = self.shown(indices, view)
        return hide(images, hidden, self.patch)

    def shown(self, indices: list[int], view: int | None = None) -> tuple[Tensor, Tensor]:
        """The images before anything is hidden, and what is: bool, shape (batch, patches), row by row.

        Inputs and targets are asked for one after the other; both come of this.
        """
        import torch

        asked = (tuple(indices), view)
        if self._last is None or self._last[0] != asked:
            images = self.images.batch(indices, view)
            rows = np.stack([self._hidden(image.numpy(), view) for image in images])
            self._last = asked, (images, torch.from_numpy(rows))
        return self._last[1]

    def _hidden(self, image: NDArray[np.float32], view: int | None) -> NDArray[np.bool_]:
        """By the image and the view alone: images that are added change no other's."""
        digest = hashlib.blake2b(image.tobytes(), digest_size=8).digest()
        chance = np.random.default_rng([int.from_bytes(digest, "little"), 0 if view is None else view + 1])
        hidden = np.zeros(self.count, dtype=bool)
        hidden[chance.choice(self.count, self.hidden, replace=False)] = True
        return hidden

    def mean_patch(self) -> Tensor:
        """A patch of the mean colour of all images, shape (pixels of a patch,)."""
        import torch

        total = torch.zeros(self.images.batch([0]).shape[1])
        for indices in data.in_turn(len(self)):
            total += self.images.batch(indices).mean(dim=(2, 3)).sum(dim=0)
        return (total / len(self)).repeat_interleave(self.patch**2)


@dataclass(frozen=True)
class HiddenPatches:
    """What is to be drawn."""

    samples: MaskedImageSamples

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: list[int], view: int | None = None) -> dict[str, Tensor]:
        """`patches` (batch, patches, pixels of a patch) and `hidden` (batch, patches)."""
        from steps.tasks.patch_head import patches_of

        images, hidden = self.samples.shown(indices, view)
        return {"patches": patches_of(images, self.samples.patch), "hidden": hidden}


def judged(drawn: Tensor, samples: MaskedImageSamples, places: list[int]) -> list[dict[str, Any]]:
    """What is said of images of which some patches were drawn.

    Args:
        drawn: shape (batch, patches, pixels of a patch); only hidden ones are looked at.
        samples: the images.
        places: of these.
    """
    from steps.tasks.patch_head import hide, image_of, patches_of

    images, hidden = samples.shown(places)
    patches = patches_of(images, samples.patch)
    whole = image_of(patches.where(~hidden[:, :, None], drawn), samples.patch)
    std = images.new_tensor(samples.scale.std)[:, None, None]
    said = []
    masked = hide(images, hidden, samples.patch)
    for index in range(len(places)):
        error = (drawn[index] - patches[index])[hidden[index]].double()
        # Back in grey values from 0 to 1, of which 1 is the peak.
        squares = ((whole[index] - images[index]) * std).double().square().sum()
        mse = float(squares / error.numel())
        said.append(
            {
                "loss": float(error.abs().mean()),
                "psnr": min(BEST_PSNR, -10 * float(np.log10(max(mse, 1e-30)))),
                "masked": _text(samples.scale.picture(masked[index].numpy())),
                "reconstructed": _text(samples.scale.picture(whole[index].numpy())),
            }
        )
    return said


def _patch_side(description: dict[str, Any], side: int) -> int:
    """The side of the square patches that the backbone cuts an image into, in pixels."""
    import torch

    from steps import network

    with torch.device("meta"):
        model: Any = network.architecture(description, gives="tokens").model
    embedding: Any = getattr(model, "patch_embed", None)
    patch = getattr(embedding, "patch_size", None)
    if patch is None or patch[0] != patch[1] or not hasattr(model, "num_prefix_tokens"):
        raise UserError(
            f"{description['name']!r} gives no token for each patch of an image: masked-image-model needs a "
            "vision transformer, e.g. `vit_small_patch16_224`"
        )
    if embedding.strict_img_size and embedding.img_size not in (None, (side, side)):
        raise UserError(
            f"model.image_size is {side}, but {description['name']!r} is for images of "
            f"{embedding.img_size[0]} pixels: set `image_size: {embedding.img_size[0]}`"
        )
    if side % patch[0]:
        raise UserError(f"model.image_size: {side} is no multiple of the patches' side of {patch[0]} pixels")
    return int(patch[0])


def _webp(picture: Image.Image) -> bytes:
    with io.BytesIO() as buffer:
        picture.save(buffer, "WEBP", quality=80)
        return buffer.getvalue()


def _text(picture: Image.Image) -> str:
    return base64.b64encode(_webp(picture)).decode("ascii")
