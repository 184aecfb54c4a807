"""Images, one label each."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import imagehash
import numpy as np
import pandas as pd
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from steps import pixels
from steps.artifacts import read_json
from steps.errors import DataError
from steps.images import upright
from steps.params import Machine, Model, Validation
from steps.tasks import Content, Expectation

if TYPE_CHECKING:
    from torch import Tensor

    from steps.augment import Views

# Decoded images kept in memory where nobody says how much.
MEMORY_BYTES = 1 << 30
# How `_decoded` comes to its pixels; stored ones of another recipe are not used.
RECIPE = f"upright on white, fit bicubic 1, Pillow {PIL.__version__}"
# The formats we promise; Pillow's rarer decoders are the less tested ones.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
FACTS = ("width", "height", "decode_error", "content", "perceptual")
# Hashes compared at a time: 512 x 100,000 distances are 50 MB.
BLOCK = 512


class ImageClassification:
    """Task `image-classification`."""

    name = "image-classification"
    column: Literal["path", "text"] = "path"

    def facts(self, manifest: pd.DataFrame, folder: Path, settings: Validation) -> pd.DataFrame:
        """Size, decoding error, pixel hash, and the images that look the same.

        An image above the pixel limit is not decoded: its header tells its size, and decoding a
        20,000 x 20,000 image would take a gigabyte.
        """
        rows = [_fact(folder / path, settings.max_pixels) for path in manifest["path"]]
        facts = pd.DataFrame(rows, index=manifest.index, columns=list(FACTS))
        for name in ("width", "height"):
            facts[name] = facts[name].astype("Int64")
        facts["shortest_side"] = facts[["width", "height"]].min(axis=1).astype("Int64")
        facts["pixels"] = facts["width"] * facts["height"]
        facts["split_key"] = facts["content"]
        return _near_duplicates(facts, manifest["id"], settings.near_duplicate_bits)

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

    def samples(
        self,
        contents: Sequence[Content],
        model: Model,
        pretrained: Path,
        augment: Sequence[str] = (),
        machine: Machine | None = None,
    ) -> ImageSamples:
        """Square images, normalised as the backbone was trained."""
        description = read_json(pretrained / "architecture.json", "python -m steps.fetch")
        mean, std = description["mean"], description["std"]
        if machine is None:
            return ImageSamples(contents, model.image_size, mean, std, augment)
        memory_bytes = int(machine.image_memory_gib * pixels.GIB)
        store = pixels.Store(pixels.FOLDER, int(machine.cache_gib * pixels.GIB)) if machine.cache else None
        return ImageSamples(contents, model.image_size, mean, std, augment, memory_bytes, store)

    def content(self, row: Any, folder: Path) -> Content:  # noqa: ANN401 - a row of a data frame
        """The image's file."""
        return folder / str(row.path)


class ImageSamples:
    """Images as float32 batches of shape (batch, 3, side, side), channels last in memory.

    Args:
        contents: files, or their bytes.
        side: height and width.
        mean: of each channel, taken away after division by 255.
        std: of each channel, divided by at last.
        augment: names of augmentations, see `augment.Views`; they make the views.
        memory_bytes: decoded images kept in memory. Where all of them take more, they go to `store`.
        store: for decoded files. Without one, as for bytes, those beyond the memory are decoded each time.

    Raises:
        UserError: the decoded images take more than the store may.
    """

    lengths = None

    def __init__(
        self,
        contents: Sequence[Content],
        side: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Sequence[str] = (),
        memory_bytes: int = MEMORY_BYTES,
        store: pixels.Store | None = None,
    ) -> None:
        import torch

        self.contents, self.side, self.augment = contents, side, tuple(augment)
        # One value for each number of a row of pixels: broadcasting over three channels is five times slower.
        self.mean = torch.tensor(mean, dtype=torch.float32).repeat(side)
        self.std = torch.tensor(std, dtype=torch.float32).repeat(side)
        self.pixels = self._kept(memory_bytes, store)

    def _kept(self, memory_bytes: int, store: pixels.Store | None) -> pixels.Pixels:
        files = [content for content in self.contents if isinstance(content, Path)]
        fits = pixels.bytes_of(len(self.contents), self.side) <= memory_bytes
        if fits or store is None or len(files) < len(self.contents):
            return pixels.InMemory(self._decoded, len(self.contents), self.side, memory_bytes)
        return pixels.OnDisk(self._decoded, files, self.side, RECIPE, store)

    def __len__(self) -> int:
        return len(self.contents)

    @cached_property
    def views(self) -> Views:
        """The augmented views of these images."""
        from steps.augment import Views

        return Views(self.augment, self.side)

    def batch(self, indices: list[int], view: int | None = None) -> Tensor:
        """The images at these places: as they are, or an augmented view of each.

        Raises:
            DataError: an image cannot be read.
        """
        import torch

        images = torch.from_numpy(self.pixels.rows(indices))
        if view is not None:
            images = self.views.of(images, view)
        rows = images.view(-1, self.side * 3).float().div_(255).sub_(self.mean).div_(self.std)
        return rows.view(-1, self.side, self.side, 3).permute(0, 3, 1, 2)

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        content = self.contents[index]
        assert not isinstance(content, str)
        try:
            with _open(content) as image:
                square = ImageOps.fit(upright(image), (self.side, self.side), Image.Resampling.BICUBIC)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            name = content if isinstance(content, Path) else "the bytes given"
            raise DataError(f"{name}: is no image we can read: {' '.join(str(error).split())}") from None
        return np.asarray(square, dtype=np.uint8)


def _open(content: Path | bytes, any_size: bool = False) -> Image.Image:
    """An image of which only the header is read; `any_size` leaves judging its size to the caller."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if size == 0:
        raise DataError("the file is empty (0 bytes)")
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with warnings.catch_warnings():
            # Pillow warns at one size and refuses at another; we have one limit of our own.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.MAX_IMAGE_PIXELS = None if any_size else limit
            return Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        raise DataError(f"is no image ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"is far too large: {error}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _fact(path: Path, max_pixels: int) -> dict[str, Any]:
    """What one file tells; `perceptual` is the 64-bit hash of how it looks."""
    fact: dict[str, Any] = dict.fromkeys(FACTS)
    try:
        # What a decoder grumbles about and reads all the same is an image.
        with warnings.catch_warnings(action="ignore"), _open(path, any_size=True) as image:
            fact["width"], fact["height"] = image.size
            if image.width * image.height <= max_pixels:
                pixels = upright(image)
                digest = hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes())
                fact["perceptual"] = int(str(imagehash.phash(pixels)), 16)
                fact["content"] = digest.hexdigest()
    except Exception as error:  # a decoder meets a hostile file with whatever exception comes first
        fact["decode_error"] = " ".join(str(error).split()) or type(error).__name__
    return fact


def _near_duplicates(facts: pd.DataFrame, ids: pd.Series, bits: int) -> pd.DataFrame:
    """Put `near_duplicate_of` and `near_group` in the place of `perceptual`.

    Contents are compared, not rows: copies of an image are no near duplicates of one another.
    """
    rows = facts.assign(id=ids)
    first = rows[rows["content"].notna()].drop_duplicates("content")
    contents = first["content"].to_numpy()
    codes = np.array(first["perceptual"].tolist(), dtype=np.uint64)
    earlier, later = _near_pairs(codes, bits)
    group, of = contents.copy(), np.full(len(contents), None, dtype=object)
    if len(earlier):
        links = coo_array((np.ones(len(earlier), dtype=bool), (earlier, later)), shape=(len(codes),) * 2)
        labels = connected_components(links, directed=False)[1]
        group = pd.Series(contents).groupby(labels).transform("min").to_numpy()
        # Backwards, so that of several earlier ones the first is left standing.
        of[later[::-1]] = first["id"].to_numpy()[earlier[::-1]]
    facts["near_duplicate_of"] = facts["content"].map(dict(zip(contents, of, strict=True)))
    facts["near_group"] = facts["content"].map(dict(zip(contents, group, strict=True)))
    return facts.drop(columns="perceptual")


def _near_pairs(codes: NDArray[np.uint64], bits: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Places of all pairs of hashes that differ in at most so many bits, the earlier place first, sorted."""
    pairs = [np.zeros((2, 0), dtype=np.intp)]
    for start in range(0, len(codes), BLOCK):
        block = codes[start : start + BLOCK]
        near = np.bitwise_count(block[:, None] ^ codes[None, start:]) <= bits
        row, column = np.nonzero(near)
        pairs.append(np.stack([row, column])[:, column > row] + start)
    earlier, later = np.concatenate(pairs, axis=1)
    return earlier, later
