"""Boxes as Pascal VOC has them: an XML file beside each image, with corners that count pixels from 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from defusedxml import DefusedXmlException  # type: ignore[import-untyped]
from defusedxml.ElementTree import ParseError, fromstring  # type: ignore[import-untyped]

from steps.errors import DataError
from steps.layouts import VocData
from steps.raw import SPLIT_NAMES, RawData, RawSample, decode, few, present
from steps.raw.boxes import files_in, inside, is_image, left_aside, size_of, stratum, target

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

IMAGES, ANNOTATIONS, SETS = "JPEGImages", "Annotations", "ImageSets/Main"
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Annotated:
    """An image with what its XML file says.

    Attributes:
        image: where it is.
        xml: where its boxes are.
        split: train, validation, test or none.
        size: as the file says.
        boxes: x, y, width, height and label of each.
        difficult: how many boxes were left aside.
    """

    image: Path
    xml: Path
    split: str | None
    size: tuple[int, int] | None
    boxes: list[tuple[list[float], str]]
    difficult: int


def read(data: VocData) -> RawData:
    """Read the XML files; an image is that of the same name in `JPEGImages/`, whatever `<filename>` says.

    `ImageSets/Main/train.txt`, `val.txt` and `test.txt` tell the splits where they are there.

    Raises:
        DataError: a folder, an image or an annotation is missing; or an XML file is none, is hostile, or
            lacks what a box needs.
    """
    root = present(Path(data.path))
    images, annotations = (present(inside(root, name, "data.path")) for name in (IMAGES, ANNOTATIONS))
    files = _by_name(file for file in files_in(annotations, root) if file.suffix.lower() == ".xml")
    if not files:
        raise DataError(f"{annotations} holds no XML file")
    pictures = _by_name(file for file in files_in(images, root) if is_image(file))
    splits = _splits(root, files)
    wanted = files if splits is None else {name: files[name] for name in sorted(splits)}
    missing = [file.name for name, file in wanted.items() if name not in pictures]
    if missing:
        raise DataError(f"{images} lacks images of {ANNOTATIONS}: {few(missing)}")
    found = [
        _annotated(pictures[name], file, splits[name] if splits else None, data.difficult == "keep")
        for name, file in wanted.items()
    ]
    found.sort(key=lambda one: one.image.relative_to(root).as_posix())
    difficult = sum(one.difficult for one in found)
    notes = [
        *left_aside(difficult, "boxes marked as difficult", "`difficult: keep` takes them"),
        *left_aside(len(files) - len(wanted), f"images that {SETS} puts into no split", "add them to one"),
        *left_aside(len(pictures.keys() - files.keys()), "images without an XML file", "give them one"),
    ]
    return RawData(_samples(root, found), notes)


def _by_name(files: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        before = found.setdefault(file.stem, file)
        if before != file:
            raise DataError(f"{file} and {before} have one name, which is to tell what belongs together")
    return found


def _splits(root: Path, files: dict[str, Path]) -> dict[str, str] | None:
    """The split of each name; None where the user has not divided the data."""
    folder = inside(root, SETS, "data.path")
    lists = {one.stem.lower(): one for one in files_in(folder, root)} if folder.is_dir() else {}
    named = [(SPLIT_NAMES[stem], lists[stem]) for stem in sorted(lists) if stem in SPLIT_NAMES]
    if "trainval" in lists and all(split == "test" for split, _ in named):
        # Where train and val are not told apart, validation is taken out of both together.
        named.append(("train", lists["trainval"]))
    if not named:
        return None
    if not any(split == "train" for split, _ in named):
        raise DataError(f"{folder} holds {few([one.name for _, one in named])} but no train.txt")
    found: dict[str, str] = {}
    for split, path in named:
        for at, line in enumerate(decode(path.read_bytes(), "utf-8", str(path)).splitlines(), start=1):
            name = line.strip()
            if name and name not in files:
                raise DataError(f"{path}:{at} names {name!r}, of which there is no {ANNOTATIONS}/{name}.xml")
            if name and found.setdefault(name, split) != split:
                raise DataError(f"{path}:{at} names {name!r}, which is in {found[name]} as well")
    return found


def _annotated(image: Path, path: Path, split: str | None, difficult: bool) -> _Annotated:
    tree = _tree(path)
    boxes: list[tuple[list[float], str]] = []
    left = 0
    for number, one in enumerate(tree.findall("object"), start=1):
        where = f"{path}: object {number}"
        label = (one.findtext("name") or "").strip()
        if not label:
            raise DataError(f"{where} has no name")
        if _flag(one.findtext("difficult"), where) and not difficult:
            left += 1
            continue
        boxes.append((_box(one, f"{where} ({label!r})"), label))
    return _Annotated(image, path, split, _size(tree), boxes, left)


def _tree(path: Path) -> Element:
    try:
        found: Element = fromstring(path.read_bytes(), forbid_dtd=True)
    except DefusedXmlException:
        raise DataError(f"{path} declares entities or a document type: an annotation needs none") from None
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path} is no valid XML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if found.tag != "annotation":
        raise DataError(f"{path} is no annotation of Pascal VOC: its root is <{found.tag}>")
    return found


def _flag(text: str | None, where: str) -> bool:
    known = {None: False, "": False, "0": False, "1": True}
    told = text.strip() if text else text
    if told not in known:
        raise DataError(f"{where}: <difficult> must be 0 or 1, is {told!r}")
    return known[told]


def _box(one: Element, where: str) -> list[float]:
    """Corners that count from 1, both inside of the box, as x, y, width and height."""
    corners = one.find("bndbox")
    if corners is None:
        raise DataError(f"{where} has no <bndbox>")
    texts = [(name, (corners.findtext(name) or "").strip()) for name in CORNERS]
    numbers = []
    for name, text in texts:
        try:
            numbers.append(float(text))
        except ValueError:
            raise DataError(f"{where}: <{name}> must be a number, is {text!r}") from None
    left, top, right, bottom = numbers
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]


def _size(tree: Element) -> tuple[int, int] | None:
    """As the file says; tools that do not know the size leave it out or write 0."""
    texts = [(tree.findtext(f"size/{name}") or "").strip() for name in ("width", "height")]
    width, height = (int(text) if text.isascii() and text.isdigit() else 0 for text in texts)
    return (width, height) if width and height else None


def _samples(root: Path, found: list[_Annotated]) -> Iterator[RawSample]:
    for one in found:
        labels = [label for _, label in one.boxes]
        yield RawSample(
            str(one.xml),
            one.image,
            stratum(labels),
            id=one.image.relative_to(root).as_posix(),
            split=one.split,
            target=target([box for box, _ in one.boxes], labels, one.size or size_of(one.image)),
        )
