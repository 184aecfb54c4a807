"""Images with a mask each: PNG of class numbers, or of colours, of the same names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steps.errors import DataError
from steps.images import IGNORED, mask_of, mask_text
from steps.layouts import MasksData, colour
from steps.raw import IMAGE_SUFFIXES, SPLIT_NAMES, RawData, RawSample, few, folder, present, table

# Formats that keep every value; a JPEG invents new ones along edges.
FORMATS = {".png": "PNG", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF"}
# Between class numbers and `IGNORED`: what no class has.
UNKNOWN = 254
# Values of a mask that a reason lists at most.
LISTED = 5
# What the stratum of a mask is that cannot be read; validate rejects it.
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Key:
    """What the values of masks mean.

    Args:
        classes: of each class its number, or its colour such as `#ff0000`.
        ignore: the number or colour of pixels that are not judged.
    """

    classes: dict[str, int | str]
    ignore: int | str | None

    @property
    def colours(self) -> bool:
        """Whether masks are pictures of colours."""
        return isinstance(next(iter(self.classes.values())), str)

    @property
    def values(self) -> dict[str, int]:
        """Of each class its number, or its colour as one number, the smallest first."""
        found = {name: colour(value) for name, value in self.classes.items()}
        return dict(sorted(found.items(), key=lambda one: one[1]))

    @property
    def names(self) -> list[str]:
        """The classes in the order of a network's outputs: by value, so that 0 or black is the first."""
        return list(self.values)


def read(data: MasksData) -> RawData:
    """Find images and their masks, ordered by path; a sample's id is the image's path below `images`.

    A mask that cannot be used comes in with the reason in its target; validate rejects the row.

    Raises:
        DataError: a folder or the table is missing, a file is none we read, or an image has no mask.
    """
    root = present(Path(data.path))
    images = _files(root / data.images, "images", IMAGE_SUFFIXES)
    masks = _files(root / data.masks, "masks", tuple(FORMATS))
    bare = sorted(image.name for key, image in images.items() if key not in masks)
    if bare:
        raise DataError(
            f"{root / data.masks} lacks the masks of {few(bare)}: each has the name of its image, "
            "in the same sub-folder; add them or move the images away"
        )
    notes = []
    alone = sorted(key for key in masks if key not in images)
    if alone:
        notes.append(f"left aside in {root / data.masks}: masks without an image: {few(alone)}")
    places = _divided(root / data.images, images)
    if data.table is not None:
        places = _told(root / data.table, root / data.images, images, places)
    return RawData(_samples(root / data.images, images, masks, Key(data.classes, data.ignore), places), notes)


def target_of(path: Path, key: Key) -> dict[str, Any]:
    """The target of a mask: its class numbers as text, or the reason why there are none.

    Returns:
        `classes`, `mask`, and `misfit` or `unknown` with a reason where there is no mask to use.
    """
    target: dict[str, Any] = {"classes": key.names, "mask": None}
    try:
        values = _values(path, key)
    except DataError as error:
        return target | {"misfit": str(error)}
    numbers = np.full(values.shape, UNKNOWN, dtype=np.uint8)
    for place, value in enumerate(key.values.values()):
        numbers[values == value] = place
    if key.ignore is not None:
        numbers[values == colour(key.ignore)] = IGNORED
    if (numbers == UNKNOWN).any():
        return target | {"unknown": _strange(values[numbers == UNKNOWN], key)}
    if (numbers == IGNORED).all():
        return target | {"unknown": "the mask ignores every pixel: there is nothing to learn"}
    return target | {"mask": mask_text(numbers)}


def stratum(numbers: NDArray[np.uint8], names: list[str]) -> str:
    """The class most pixels have beside the first, which is the ground; the first where it is alone."""
    counts = np.bincount(numbers[numbers != IGNORED], minlength=len(names))
    return names[1 + int(counts[1:].argmax())] if counts[1:].any() else names[0]


def sample(source: str, content: Path | bytes, target: dict[str, Any], **more: Any) -> RawSample:  # noqa: ANN401 - fields of RawSample
    """An image with the target of its mask."""
    label = UNREADABLE if target["mask"] is None else stratum(mask_of(target["mask"]), target["classes"])
    return RawSample(source, content, label, target=target, **more)


def _samples(
    home: Path,
    images: dict[str, Path],
    masks: dict[str, Path],
    key: Key,
    places: dict[str, dict[str, str | None]],
) -> Iterator[RawSample]:
    for name in sorted(images):
        image = images[name]
        own = image.relative_to(home).as_posix()
        yield sample(str(image), image, target_of(masks[name], key), id=own, **places.get(name, {}))


def _files(home: Path, what: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Every file below a folder, by its path without the suffix."""
    if not home.is_dir():
        raise DataError(f"{home} is no folder; `data.{what}` names the folder of {what} below `data.path`")
    found: dict[str, Path] = {}
    strange, twice = [], []
    for file in folder._walk(home, home):
        key = file.relative_to(home).with_suffix("").as_posix()
        if file.suffix.lower() not in suffixes or not file.is_file():
            strange.append(file.relative_to(home).as_posix())
        elif key in found:
            twice.append(f"{found[key].name} and {file.name}")
        else:
            found[key] = file
    if strange:
        raise DataError(
            f"{home} holds files that are no {what}: {few(strange)}; we read {', '.join(suffixes)} there: "
            "convert, move or remove the others"
        )
    if twice:
        raise DataError(f"{home} holds two files of one name: {few(twice)}; rename or remove one of them")
    if not found:
        raise DataError(f"{home} holds no {what}")
    return found


def _divided(home: Path, images: dict[str, Path]) -> dict[str, dict[str, str | None]]:
    """The split of each image where every sub-folder is one; else nothing."""
    tops = {name: SPLIT_NAMES.get(name.split("/")[0].lower()) if "/" in name else None for name in images}
    if not all(tops.values()):
        return {}
    if "train" not in tops.values():
        raise DataError(f"{home} holds split folders but no train/ folder")
    return {name: {"split": split} for name, split in tops.items()}


def _told(
    path: Path, home: Path, images: dict[str, Path], places: dict[str, dict[str, str | None]]
) -> dict[str, dict[str, str | None]]:
    """What the table says of each image: its group, its split, or both."""
    columns, rows = table._read(present(path), "utf-8")
    given: list[str] = [name for name in ("group", "split") if name in columns]
    if "image" not in columns or not given:
        raise DataError(
            f"{path} needs the column `image` and one of `group` and `split`; it has "
            f"{', '.join(map(repr, columns))}"
        )
    if "split" in given and places:
        raise DataError(f"{path} has a column `split`, but {home} is divided into split folders: keep one")
    owners = {file.relative_to(home).as_posix(): name for name, file in images.items()}
    found: dict[str, dict[str, str | None]] = {}
    for where, cells in rows:
        image = str(cells.get("image"))
        if image not in owners:
            raise DataError(f"{where}: there is no image {image!r} in {home}")
        if owners[image] in found:
            raise DataError(f"{where}: image {image!r} has a row before this one")
        found[owners[image]] = places.get(owners[image], {}) | _cells(cells, given, where)
    missing = sorted(file for file, name in owners.items() if name not in found)
    if missing:
        raise DataError(f"{path} has no row of {few(missing)}; every image needs one")
    return found


def _cells(cells: dict[str, Any], given: list[str], where: str) -> dict[str, str | None]:
    said = {name: table._cell(cells.get(name), where, name) for name in given}
    split = (said.get("split") or "").strip().lower()
    if split and split not in SPLIT_NAMES:
        raise DataError(f"{where}: column 'split' must hold train, validation or test, holds {split!r}")
    return said | ({"split": SPLIT_NAMES.get(split)} if "split" in said else {})


def _values(path: Path, key: Key) -> NDArray[np.int32]:
    """The value of each pixel: its number, or its colour as one number.

    Raises:
        DataError: the mask cannot be decoded, or is of another kind than the classes.
    """
    try:
        # What a decoder grumbles about and reads all the same is a mask.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=[*FORMATS.values()]) as mask:
            if key.colours:
                rgb = np.asarray(mask.convert("RGB"), dtype=np.int32)
                return np.asarray((rgb[..., 0] << 16) + (rgb[..., 1] << 8) + rgb[..., 2])
            if mask.mode == "F":
                raise ValueError("its values are no whole numbers")
            found = np.asarray(mask, dtype=np.int32)
            bands = mask.getbands()
    except Exception as error:  # a decoder meets a hostile file with whatever exception comes first
        reason = " ".join(str(error).replace(str(path), "it").split()) or type(error).__name__
        raise DataError(f"the mask cannot be decoded: {reason}") from None
    if found.ndim == 2:
        return found
    grey = found[..., : len(bands) - ("A" in bands)]
    if not (grey == grey[..., :1]).all():
        raise DataError("the mask is a picture of colours, but `data.classes` gives numbers")
    return np.asarray(grey[..., 0])


def _strange(values: NDArray[np.int32], key: Key) -> str:
    found, counts = np.unique(values, return_counts=True)
    shown = [f"#{value:06x}" if key.colours else str(value) for value in found[:LISTED].tolist()]
    more = f", ... ({len(found)} in all)" if len(found) > LISTED else ""
    return f"{int(counts.sum()):,} pixels of the mask have values that are no class: {', '.join(shown)}{more}"
