"""What all tasks on images share: reading, judging, decoding."""

from __future__ import annotations

import hashlib
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
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from steps import pixels, scans
from steps.artifacts import read_json
from steps.errors import DataError, UserError
from steps.images import upright
from steps.params import Machine, Model, Validation
from steps.scans import FORMATS, PLAIN, Rule, opened, picture, size_of
from steps.tasks import Content, Expectation

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from steps.augment import Views

__all__ = ["FORMATS", "PLAIN", "ImageSamples", "OfImages", "picture", "size_of"]

# Decoded images kept in memory where nobody says how much.
MEMORY_BYTES = 1 << 30
# How `_decoded` comes to its pixels; stored ones of another recipe are not used.
RECIPE = f"upright on white, fit bicubic 1, Pillow {PIL.__version__}"
# `bits` of a value, `bands`, and of scans the `lowest` and `highest` value; `personal`: which elements of
# DICOM name a person, by their names.
FACTS = (
    "width", "height", "decode_error", "content", "perceptual",
    "bits", "bands", "lowest", "highest", "personal",
)  # fmt: skip
# Hashes compared at a time: 512 x 100,000 distances are 50 MB.
BLOCK = 512


class OfImages:
    """A task whose samples are images.

    Attributes:
        whole: images are squeezed into squares; else their middle is cut out.
    """

    column: Literal["path", "text"] = "path"
    whole = False

    def facts(self, manifest: pd.DataFrame, folder: Path, settings: Validation) -> pd.DataFrame:
        """Size, decoding error, pixel hash, and the images that look the same.

        An image above the pixel limit is not decoded: its header tells its size, and decoding a
        20,000 x 20,000 image would take a gigabyte.
        """
        rows = [_fact(folder / path, settings.max_pixels) for path in manifest["path"]]
        facts = pd.DataFrame(rows, index=manifest.index, columns=list(FACTS))
        for name in ("width", "height", "bits", "bands"):
            facts[name] = facts[name].astype("Int64")
        for name in ("lowest", "highest"):
            facts[name] = facts[name].astype("float64")
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
            Expectation(
                "no_person_named",
                "ExpectColumnValuesToBeNull",
                {"column": "personal"},
                "the file names a person in {personal}: take it out before you share the data",
                text="no file holds a person's name, number or birth date (elements of DICOM)",
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
        mean, std, memory_bytes, store = description["mean"], description["std"], MEMORY_BYTES, None
        if machine is not None:
            memory_bytes = int(machine.image_memory_gib * pixels.GIB)
            store = (
                pixels.Store(pixels.FOLDER, int(machine.cache_gib * pixels.GIB)) if machine.cache else None
            )
        return ImageSamples(
            contents, model.image_size, mean, std, augment, memory_bytes, store, Rule.of(model), self.whole
        )

    def content(self, row: Any, folder: Path) -> Content:  # noqa: ANN401 - a row of a data frame
        """The image's file."""
        return folder / str(row.path)


class ImageSamples:
    """Images as float32 batches of shape (batch, channels, side, side), channels last in memory.

    Args:
        contents: files, or their bytes.
        side: height and width.
        mean: of red, green and blue, taken away after division by 255.
        std: of red, green and blue, divided by at last.
        augment: names of augmentations, see `augment.Views`; they make the views.
        memory_bytes: decoded images kept in memory. Where all of them take more, they go to `store`.
        store: for decoded files. Without one, as for bytes, those beyond the memory are decoded each time.
        rule: how the values of scans are read. Where it names bands there are as many channels, each with the
            mean and deviation of the three together, if it does not know better.
        whole: images are squeezed into squares; else their middle is cut out.

    Raises:
        UserError: the decoded images take more than the store may, or views are asked for that there are not.
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
        rule: Rule = PLAIN,
        whole: bool = False,
    ) -> None:
        import torch

        self.contents, self.side, self.augment = contents, side, tuple(augment)
        self.rule, self.whole = rule, whole
        if "randaugment" in augment and (rule.channels != 3 or rule.dtype is not np.uint8):
            raise UserError(
                "`augment: randaugment` is for images of three channels and 8 bits; "
                "leave it out with these `model.bands`"
            )
        means, stds = _of_channels(mean, rule.channels), _of_channels(std, rule.channels)
        # One value for each number of a row of pixels: broadcasting over three channels is five times slower.
        self.mean = torch.tensor(means, dtype=torch.float32).repeat(side)
        self.std = torch.tensor(stds, dtype=torch.float32).repeat(side)
        self.pixels = self._kept(memory_bytes, store)

    @property
    def recipe(self) -> str:
        """Names how images are decoded."""
        asked = "" if self.rule.plain else f", {self.rule}, numpy {np.__version__}"
        return RECIPE + asked + (", whole" if self.whole else "")

    def _kept(self, memory_bytes: int, store: pixels.Store | None) -> pixels.Pixels:
        files = [content for content in self.contents if isinstance(content, Path)]
        form = pixels.Form(self.rule.channels, self.rule.dtype)
        fits = pixels.bytes_of(len(self.contents), self.side, form) <= memory_bytes
        if fits or store is None or len(files) < len(self.contents):
            return pixels.InMemory(self._decoded, len(self.contents), self.side, memory_bytes, form)
        return pixels.OnDisk(self._decoded, files, self.side, self.recipe, store, form)

    def __len__(self) -> int:
        return len(self.contents)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of an image as it was given, upright.

        Raises:
            DataError: it is no image.
        """
        content = self.contents[index]
        assert isinstance(content, Path | bytes)
        return size_of(content)

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
        if self.rule.mean is None:
            rows = images.view(-1, len(self.mean)).float().div_(255).sub_(self.mean).div_(self.std)
            images = rows.view(-1, self.side, self.side, self.rule.channels)
        return images.permute(0, 3, 1, 2)

    def decode(self, index: int) -> None:
        """Decode an image ahead of its batch; it is kept where there is room.

        Raises:
            DataError: it cannot be read.
        """
        self.pixels.rows([index])

    def fit(self, image: Image.Image) -> Image.Image:
        """An image of any mode as the square that is stored."""
        return scans.fitted(image, self.side, self.whole)

    def _decoded(self, index: int) -> pixels.Rows:
        content = self.contents[index]
        assert isinstance(content, Path | bytes)
        name = content if isinstance(content, Path) else "the bytes given"
        try:
            if scans.is_scan(content, self.rule):
                return scans.square(scans.fed(scans.read(content), self.rule), self.fit)
            with opened(content) as image:
                if self.rule.plain:
                    return np.asarray(self.fit(upright(image)), dtype=np.uint8)
                scan = scans.Scan(np.asarray(upright(image)), 8)
            return scans.square(scans.fed(scan, self.rule), self.fit)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise DataError(f"{name}: is no image we can read: {' '.join(str(error).split())}") from None
        except DataError as error:
            raise DataError(f"{name}: {error}") from None


def _of_channels(values: Sequence[float], channels: int) -> list[float]:
    """Those of red, green and blue; of another number of channels their mean for each."""
    return list(values) if channels == 3 else [sum(values) / len(values)] * channels


def _fact(path: Path, max_pixels: int) -> dict[str, Any]:
    """What one file tells; `perceptual` is the 64-bit hash of how it looks."""
    fact: dict[str, Any] = dict.fromkeys(FACTS)
    try:
        # What a decoder grumbles about and reads all the same is an image.
        with warnings.catch_warnings(action="ignore"):
            return (
                _fact_of_scan(path, max_pixels, fact)
                if scans.is_deep(path)
                else _plain_fact(path, max_pixels, fact)
            )
    except Exception as error:  # a decoder meets a hostile file with whatever exception comes first
        fact["decode_error"] = " ".join(str(error).split()) or type(error).__name__
    return fact


def _plain_fact(path: Path, max_pixels: int, fact: dict[str, Any]) -> dict[str, Any]:
    with opened(path, any_size=True) as image:
        fact["width"], fact["height"] = image.size
        fact["bits"], fact["bands"] = 8, len(image.getbands())
        if image.width * image.height <= max_pixels:
            pixels = upright(image)
            digest = hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes())
            fact["perceptual"] = int(str(imagehash.phash(pixels)), 16)
            fact["content"] = digest.hexdigest()
    return fact


def _fact_of_scan(path: Path, max_pixels: int, fact: dict[str, Any]) -> dict[str, Any]:
    found = scans.header(path)
    fact["width"], fact["height"] = found.size
    fact["bits"], fact["bands"] = found.bits, found.bands
    fact["personal"] = ", ".join(found.personal) or None
    if found.size[0] * found.size[1] <= max_pixels:
        scan = scans.read(path)
        known = scan.values[~scan.absent]
        if known.size:
            fact["lowest"], fact["highest"] = float(known.min()), float(known.max())
        about = f"{scan.values.shape} {scan.values.dtype}".encode()
        fact["perceptual"] = int(str(imagehash.phash(scans.shown(scan))), 16)
        fact["content"] = hashlib.sha256(about + np.ascontiguousarray(scan.values).tobytes()).hexdigest()
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
