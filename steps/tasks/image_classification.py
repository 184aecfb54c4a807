"""Images, one label each."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import imagehash
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from steps.artifacts import read_json
from steps.errors import DataError
from steps.params import Model, Validation
from steps.tasks import Content, Expectation

if TYPE_CHECKING:
    from torch import Tensor

# Decoded images are kept while they fit; beyond that they are decoded again every epoch.
CACHE_BYTES = 1 << 30
# The formats we promise; Pillow's rarer decoders are the less tested ones.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")


class ImageClassification:
    """Task `image-classification`."""

    name = "image-classification"
    column: Literal["path", "text"] = "path"

    def facts(self, manifest: pd.DataFrame, folder: Path, settings: Validation) -> pd.DataFrame:
        """Size, decoding error, pixel hash and perceptual hash of each image.

        An image above the pixel limit is not decoded: its header tells its size, and decoding a
        20,000 x 20,000 image would take a gigabyte.
        """
        rows: list[dict[str, Any]] = []
        for path in manifest["path"]:
            fact: dict[str, Any] = {
                "width": None, "height": None, "decode_error": None, "content": None, "perceptual": None,
            }  # fmt: skip
            try:
                with _open(folder / path) as image:
                    fact["width"], fact["height"] = image.size
                    if image.width * image.height <= settings.max_pixels:
                        pixels = _upright(image)
                        digest = hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes())
                        fact["content"] = digest.hexdigest()
                        fact["perceptual"] = str(imagehash.phash(pixels))
            except DataError as error:
                fact["decode_error"] = str(error)
            except (OSError, SyntaxError, ValueError, EOFError) as error:
                fact["decode_error"] = " ".join(str(error).split()) or type(error).__name__
            rows.append(fact)
        facts = pd.DataFrame(rows, index=manifest.index)
        for name in ("width", "height"):
            facts[name] = facts[name].astype("Int64")
        facts["shortest_side"] = facts[["width", "height"]].min(axis=1).astype("Int64")
        facts["pixels"] = facts["width"] * facts["height"]
        facts["near_duplicate_of"] = _near(manifest["id"], facts, settings.near_duplicate_bits)
        return facts.drop(columns="perceptual")

    def expectations(self, settings: Validation) -> list[Expectation]:
        """Files decode and are within pixel limits."""
        return [
            Expectation(
                "files_decode", "ExpectColumnValuesToBeNull", {"column": "decode_error"}, "{decode_error}"
            ),
            Expectation(
                "pixels_within_limits",
                "ExpectColumnValuesToBeBetween",
                {"column": "pixels", "max_value": settings.max_pixels},
                "{width} x {height} pixels are more than max_pixels allows",
            ),
            Expectation(
                "pixels_within_limits",
                "ExpectColumnValuesToBeBetween",
                {"column": "shortest_side", "min_value": settings.min_pixels},
                "{width} x {height} pixels: the shortest side is below min_pixels",
            ),
        ]

    def samples(self, contents: Sequence[Content], model: Model, pretrained: Path) -> ImageSamples:
        """Square images, normalised as the backbone was trained."""
        description = read_json(pretrained / "architecture.json", "python -m steps.fetch")
        return ImageSamples(contents, model.image_size, description["mean"], description["std"])

    def content(self, row: Any, folder: Path) -> Content:  # noqa: ANN401 - a row of a data frame
        """The image's file."""
        return folder / str(row.path)


class ImageSamples:
    """Images as float32 batches of shape (batch, 3, side, side)."""

    def __init__(
        self, contents: Sequence[Content], side: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        import torch

        self.contents, self.side = contents, side
        self.mean = torch.tensor(mean).view(1, 3, 1, 1)
        self.std = torch.tensor(std).view(1, 3, 1, 1)
        self.cache: dict[int, NDArray[np.uint8]] = {}
        self.room = CACHE_BYTES // (3 * side * side)

    def __len__(self) -> int:
        return len(self.contents)

    def batch(self, indices: list[int]) -> Tensor:
        """The images at these places."""
        import torch

        pixels = torch.from_numpy(np.stack([self._pixels(index) for index in indices]))
        return (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        cached = self.cache.get(index)
        if cached is not None:
            return cached
        content = self.contents[index]
        assert not isinstance(content, str)
        try:
            with _open(content) as image:
                square = ImageOps.fit(_upright(image), (self.side, self.side), Image.Resampling.BICUBIC)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            name = content if isinstance(content, Path) else "the bytes given"
            raise DataError(f"{name}: is no image we can read: {' '.join(str(error).split())}") from None
        pixels = np.asarray(square, dtype=np.uint8)
        if len(self.cache) < self.room:
            self.cache[index] = pixels
        return pixels


def _open(content: Path | bytes) -> Image.Image:
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if size == 0:
        raise DataError("the file is empty (0 bytes)")
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        with warnings.catch_warnings():
            # Our own pixel limit is checked from the header; Pillow only warns at its own.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        raise DataError(f"is no image ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"is far too large: {error}") from None


def _upright(image: Image.Image) -> Image.Image:
    """RGB, turned as its camera says, transparency on white; decodes the whole file."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _near(ids: pd.Series, facts: pd.DataFrame, bits: int) -> list[str | None]:
    """For each image the first earlier one whose perceptual hash is within `bits`, equal pixels aside."""
    known = facts["perceptual"].notna().to_numpy()
    codes = np.array(
        [int(code, 16) if isinstance(code, str) else 0 for code in facts["perceptual"]], dtype=np.uint64
    )
    contents = facts["content"].to_numpy()
    names = ids.to_numpy()
    near: list[str | None] = [None] * len(codes)
    for index in range(1, len(codes)):
        if not known[index]:
            continue
        distance = np.bitwise_count(codes[:index] ^ codes[index])
        hits = np.flatnonzero((distance <= bits) & known[:index])
        for hit in hits:
            if contents[hit] != contents[index]:
                near[index] = str(names[hit])
                break
    return near
