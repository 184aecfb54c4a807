"""Boxes as YOLO has them: beside each image a text file with a line a box, `class x y width height`.

The class is a number from 0 on; the centre, the width and the height are shares of the image's width and
height. Names of classes come from `data.yaml`; its paths are not used, the folders' names tell the splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from steps.errors import DataError
from steps.layouts import YoloData
from steps.raw import IMAGE_SUFFIXES, SPLIT_NAMES, RawData, RawSample, decode, few, present
from steps.raw.boxes import files_in, inside, is_image, size_of, stratum, target

IMAGES, LABELS = "images", "labels"
# Text files that tools put among the labels, of no image.
OTHERS = ("classes.txt", "obj.names.txt", "readme.txt", "readme.roboflow.txt")


@dataclass(frozen=True)
class _Pair:
    """An image, where its boxes are if it has any, and its split."""

    image: Path
    label: Path
    split: str | None


def read(data: YoloData) -> RawData:
    """Read the label files; an image without one has no boxes.

    `images/` and `labels/` lie side by side with the same names in them. Where there are splits, they are
    folders `train`, `val` and `test` inside of both, or each holds an `images/` and a `labels/`.

    Raises:
        DataError: a folder is missing or has what it should not; a label file has no image; or a line is
            none.
    """
    root = present(Path(data.path))
    names = list(data.names) if data.names else _names(root)
    pairs = [pair for split, images, labels in _parts(root) for pair in _pairs(root, split, images, labels)]
    if not pairs:
        raise DataError(f"{root} holds no images; they belong into `images/`, their boxes into `labels/`")
    pairs.sort(key=lambda pair: pair.image.relative_to(root).as_posix())
    return RawData(_samples(root, pairs, names))


def _names(root: Path) -> list[str]:
    """The classes of `data.yaml`, a list or numbers with names."""
    path = next((root / name for name in ("data.yaml", "data.yml") if (root / name).is_file()), None)
    if path is None:
        raise DataError(f"{root} has no data.yaml: put one there with `names:`, or set `names` under `data`")
    try:
        value = YAML(typ="safe", pure=True).load(decode(path.read_bytes(), "utf-8", str(path)))
    except YAMLError as error:
        raise DataError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
    names = value.get("names") if isinstance(value, dict) else None
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(f"{path}: `names` must number the classes from 0 on without a gap")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(str(name).strip() for name in names):
        raise DataError(f"{path} has no `names:`, the list of classes in their order")
    told = [str(name).strip() for name in names]
    if value.get("nc", len(told)) != len(told):
        raise DataError(f"{path}: `nc` is {value['nc']!r}, but there are {len(told)} names")
    if len(set(told)) < len(told):
        raise DataError(f"{path}: two classes have one name")
    return told


def _parts(root: Path) -> list[tuple[str | None, Path, Path]]:
    """Split, folder of images and folder of labels."""
    found: list[tuple[str | None, Path, Path]]
    if (root / IMAGES).is_dir():
        inner = _splits(root / IMAGES)
        if not inner:
            return [(None, root / IMAGES, root / LABELS)]
        found = [(split, folder, root / LABELS / folder.name) for split, folder in inner]
    else:
        inner = _splits(root)
        if not inner:
            raise DataError(f"{root} holds no folder `images`, and no train/, val/ or test/ with one")
        found = [(split, folder / IMAGES, folder / LABELS) for split, folder in inner]
    names = [split for split, _ in inner]
    if "train" not in names or len(set(names)) < len(names):
        raise DataError(
            f"{root} holds {few([folder.name for _, folder in inner])}: there must be one folder a split, "
            "and one of them train/"
        )
    for _, images, _ in found:
        present(images)
    return found


def _splits(folder: Path) -> list[tuple[str, Path]]:
    """The folders that are splits; beside them there may be none that is not."""
    folders = sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    named = [(SPLIT_NAMES[one.name.lower()], one) for one in folders if one.name.lower() in SPLIT_NAMES]
    others = [one.name for one in folders if one.name.lower() not in SPLIT_NAMES and one.name != LABELS]
    loose = [one.name for one in folder.iterdir() if is_image(one)]
    if named and (others or loose):
        raise DataError(
            f"{folder} holds {few([*others, *loose])} beside {named[0][1].name!r}, which is a split; "
            "put every image into train/, val/ or test/"
        )
    return named


def _pairs(root: Path, split: str | None, images: Path, labels: Path) -> list[_Pair]:
    for folder in (images, labels):
        inside(root, folder.relative_to(root).as_posix(), "data.path")
    files = files_in(images, root)
    strange = [file.relative_to(root).as_posix() for file in files if not is_image(file)]
    if strange:
        raise DataError(
            f"{images} holds files that are no images: {few(strange)}; we read {', '.join(IMAGE_SUFFIXES)}"
        )
    pairs: dict[Path, _Pair] = {}
    for file in files:
        label = (labels / file.relative_to(images)).with_suffix(".txt")
        if label in pairs:
            raise DataError(f"{file} and {pairs[label].image} share one label file; rename one")
        pairs[label] = _Pair(file, label, split)
    there = files_in(labels, root) if labels.is_dir() else []
    orphans = [
        file.relative_to(root).as_posix()
        for file in there
        if file.suffix.lower() == ".txt" and file not in pairs and file.name.lower() not in OTHERS
    ]
    if orphans:
        raise DataError(f"{labels} holds boxes of images that are not there: {few(orphans)}")
    if files and not any(file in pairs for file in there):
        raise DataError(f"{labels} holds no label file of any image in {images}")
    return list(pairs.values())


def _samples(root: Path, pairs: list[_Pair], names: list[str]) -> Iterator[RawSample]:
    for pair in pairs:
        # Its boxes are shares of it, so that a broken image has none; validate rejects it.
        size = size_of(pair.image)
        told = _lines(pair.label, names)
        boxes = [_in_pixels(shares, size) for shares, _ in told] if size else []
        labels = [label for _, label in told] if size else []
        yield RawSample(
            str(pair.image),
            pair.image,
            stratum([label for _, label in told]),
            id=pair.image.relative_to(root).as_posix(),
            split=pair.split,
            target=target(boxes, labels, size),
        )


def _in_pixels(shares: list[float], size: tuple[int, int]) -> list[float]:
    x, y, width, height = shares
    return [(x - width / 2) * size[0], (y - height / 2) * size[1], width * size[0], height * size[1]]


def _lines(path: Path, names: list[str]) -> list[tuple[list[float], str]]:
    """Centre, width and height of each box, and its label."""
    if not path.is_file():
        return []
    lines = decode(path.read_bytes(), "utf-8", str(path)).splitlines()
    return [_line(line, f"{path}:{at}", names) for at, line in enumerate(lines, start=1) if line.strip()]


def _line(line: str, where: str, names: list[str]) -> tuple[list[float], str]:
    cells = line.split()
    if len(cells) != 5:
        more = ", so perhaps a polygon; boxes are needed" if len(cells) > 6 else ""
        raise DataError(f"{where} has {len(cells)} columns, not `class x y width height`{more}")
    try:
        number, *shares = (float(cell) for cell in cells)
    except ValueError:
        raise DataError(f"{where} holds what is no number: {line.strip()[:80]!r}") from None
    if number not in range(len(names)):
        raise DataError(
            f"{where} has class {cells[0]}, but there are {len(names)} names: whole numbers from 0 to "
            f"{len(names) - 1}"
        )
    return shares, names[int(number)]
