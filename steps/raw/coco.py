"""Boxes as COCO has them: JSON with the lists `images`, `annotations` and `categories`."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.errors import DataError
from steps.layouts import CocoData
from steps.raw import RawData, RawSample, few, present
from steps.raw.boxes import files_in, inside, is_image, left_aside, size_of, stratum, target

# The lists of a file, and what an entry of each must have.
NEEDED = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}
Entry = dict[str, Any]


@dataclass(frozen=True)
class _Image:
    """An image of one of the files.

    Attributes:
        path: where it is.
        where: the file and the entry that name it.
        split: train, validation, test or none.
        size: as its entry says.
        boxes: x, y, width, height and label of each box.
    """

    path: Path
    where: str
    split: str | None
    size: tuple[int, int] | None
    boxes: list[tuple[list[float], str]]


def read(data: CocoData) -> RawData:
    """Read the annotations; images are only located.

    Boxes of crowds are left aside, or taken as boxes of one object. What is wrong with a box is for validate.

    Raises:
        DataError: a file is missing or is no such JSON; an entry names an image or a category that is not
            there; or an id, an image's file or a category comes twice.
    """
    root = present(Path(data.path))
    files = data.annotations if isinstance(data.annotations, dict) else {None: data.annotations}
    images: list[_Image] = []
    crowds = 0
    folders: dict[Path, None] = {}
    for split, name in files.items():
        folder = present(inside(root, _of_split(data.images, split), "data.images"))
        folders[folder] = None
        path = present(inside(root, name, "data.annotations"))
        found, left = _read(path, folder, split, data.crowd == "keep")
        images += found
        crowds += left
    _check_files(root, images)
    images.sort(key=lambda one: one.path.relative_to(root).as_posix())
    notes = left_aside(crowds, "boxes of crowds", "`crowd: keep` takes them")
    return RawData(_samples(root, images), notes + _unnamed(root, list(folders), images))


def _of_split(images: str | dict[Any, str], split: str | None) -> str:
    if isinstance(images, str):
        return images
    if split not in images:
        raise DataError(f"`data.images` has no folder for {split or 'the one file of `data.annotations`'}")
    return images[split]


def _read(path: Path, folder: Path, split: str | None, crowd: bool) -> tuple[list[_Image], int]:
    """The images of one file, and how many boxes of crowds were left aside."""
    lists = _lists(path)
    names = _categories(path, lists["categories"])
    images = _by_id(path, "images", lists["images"])
    boxes: dict[Any, list[tuple[list[float], str]]] = defaultdict(list)
    _by_id(path, "annotations", [one for one in lists["annotations"] if "id" in one])
    crowds = 0
    for place, entry in enumerate(lists["annotations"]):
        where = f"{path}: annotation {entry.get('id', f'no. {place + 1}')}"
        for key, known in (("image_id", images), ("category_id", names)):
            if not isinstance(entry[key], int | str) or entry[key] not in known:
                raise DataError(f"{where} has {key} {entry[key]!r}, which is not in the file")
        if entry.get("iscrowd") and not crowd:
            crowds += 1
            continue
        boxes[entry["image_id"]].append((_box(entry["bbox"], where), names[entry["category_id"]]))
    found = [
        _Image(
            inside(folder, _text(entry["file_name"], path, "file_name"), f"{path}: image {number}"),
            f"{path}: image {number}", split, _size(entry), boxes[number],
        )
        for number, entry in images.items()
    ]  # fmt: skip
    return found, crowds


def _lists(path: Path) -> dict[str, list[Entry]]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no valid JSON: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    for name, keys in NEEDED.items():
        entries = value.get(name) if isinstance(value, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{path} is no annotation file of COCO: it has no list `{name}`")
        for place, entry in enumerate(entries, start=1):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                raise DataError(f"{path}: entry {place} of `{name}` has no {few(missing)}")
    return {name: value[name] for name in NEEDED}


def _by_id(path: Path, name: str, entries: list[Entry]) -> dict[Any, Entry]:
    found: dict[Any, Entry] = {}
    for entry in entries:
        number = entry["id"]
        if not isinstance(number, int | str):
            raise DataError(f"{path}: an id in `{name}` is {number!r}, no whole number or text")
        if number in found:
            raise DataError(f"{path}: id {number!r} comes twice in `{name}`")
        found[number] = entry
    return found


def _categories(path: Path, entries: list[Entry]) -> dict[Any, str]:
    found = {
        number: _text(entry["name"], path, "a category's name").strip()
        for number, entry in _by_id(path, "categories", entries).items()
    }
    twice = [name for name, count in Counter(found.values()).items() if count > 1]
    if twice:
        raise DataError(f"{path}: two categories have one name: {few(twice)}; rename one or merge them")
    return found


def _text(value: object, path: Path, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{path}: {what} is {value!r}, no text")
    return value


def _box(value: object, where: str) -> list[float]:
    """Four numbers, whichever they are."""
    numbers = isinstance(value, list) and all(
        one is None or (isinstance(one, int | float) and not isinstance(one, bool)) for one in value
    )
    if not isinstance(value, list) or not numbers or len(value) != 4:
        raise DataError(f"{where}: bbox must be [x, y, width, height], is {value!r}"[:300])
    return [float("nan") if one is None else float(one) for one in value]


def _size(entry: Entry) -> tuple[int, int] | None:
    """As the entry says; tools that do not know the size leave it out or write 0."""
    width, height = entry.get("width", 0), entry.get("height", 0)
    known = isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0
    return (int(width), int(height)) if known else None


def _check_files(root: Path, images: list[_Image]) -> None:
    missing = [f"{one.path} of {one.where}" for one in images if not one.path.is_file()]
    if missing:
        raise DataError(f"{root} lacks images that the annotations name: {few(missing)}")
    taken: dict[tuple[str | None, Path], str] = {}
    for one in images:
        before = taken.setdefault((one.split, one.path), one.where)
        if before != one.where:
            raise DataError(f"{one.where} and {before} are of one file, {one.path}; merge their boxes")


def _unnamed(root: Path, folders: list[Path], images: list[_Image]) -> list[str]:
    named = {one.path for one in images}
    there = {file for folder in folders for file in files_in(folder, root) if is_image(file)}
    return left_aside(len(there - named), "images that no annotation file names", "add them to one")


def _samples(root: Path, images: list[_Image]) -> Iterator[RawSample]:
    for one in images:
        labels = [label for _, label in one.boxes]
        size = one.size or size_of(one.path)
        yield RawSample(
            one.where,
            one.path,
            stratum(labels),
            id=one.path.relative_to(root).as_posix(),
            split=one.split,
            target=target([box for box, _ in one.boxes], labels, size),
        )
