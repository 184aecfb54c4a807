"""Places that raw data come from: one file each. They read; ingest writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.errors import DataError
from steps.kinds import KINDS, Content
from steps.layouts import (
    ArchiveData,
    CocoData,
    ConllData,
    Data,
    DocumentsData,
    FolderData,
    ImagesData,
    JsonlData,
    MasksData,
    PackageData,
    SquadData,
    TableData,
    VocData,
    YoloData,
)

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".dcm", ".dicom",
)  # fmt: skip
# Of the files that are samples, by what a task's samples are.
SUFFIXES: dict[Content, tuple[str, ...]] = {"image": IMAGE_SUFFIXES, "text": (".txt",)}
# Names that people give to splits, in folders and in tables.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class RawSample:
    """One sample as it was found.

    Attributes:
        source: where, e.g. `train/cat/1.png` or `table.csv:17`.
        content: the image's file or bytes, or the text; None where a table has no text.
        label: as given, None where there is none.
        pair: the second text, of tasks that have two.
        target: what is to be predicted, any JSON value, where it is more than a class; `label` is then what
            splits are stratified by.
        id: the sample's name; None to have one made from the content.
        own_id: whether the user gave the id: then it is kept even if it repeats, and validate tells.
        split: train, validation or test where the user divided the data.
        group: samples of one group are kept together.
    """

    source: str
    content: Path | bytes | str | None
    label: str | None
    id: str | None = None
    own_id: bool = False
    split: str | None = None
    group: str | None = None
    pair: str | None = None
    target: Any = None


@dataclass(frozen=True)
class RawData:
    """Samples in a fixed order, and what was left aside on the way, one line each."""

    samples: Iterator[RawSample]
    notes: list[str] = field(default_factory=list)


def read(data: Data, task: str, unpacked: Path) -> RawData:
    """Find the samples; contents of images are read only when they are taken.

    Args:
        data: the source, as params.yaml describes it.
        task: says which files are samples.
        unpacked: a folder that does not exist yet, for what an archive holds.

    Raises:
        DataError: the data are missing, or are not what they are declared to be.
    """
    from steps.raw import package, patients

    if isinstance(data, PackageData):
        return package.read(data.dataset)
    found = _read(data, task, unpacked)
    return patients.together(found) if KINDS[task].content == "image" else found


def _read(data: Data, task: str, unpacked: Path) -> RawData:
    from steps.raw import archive, folder, table

    assert not isinstance(data, PackageData)
    path = present(Path(data.path))
    content = KINDS[task].content
    if isinstance(data, FolderData):
        return folder.read(path, SUFFIXES[content], data.encoding)
    if isinstance(data, ArchiveData):
        archive.unpack(path, unpacked, data.max_bytes, data.max_files)
        return folder.read(archive.top(unpacked), SUFFIXES[content], data.encoding, str(path))
    if isinstance(data, TableData):
        return table.read(data)
    return _read_targets(data)


def _read_targets(data: Data) -> RawData:
    """The layouts whose targets are more than a class, and those without any."""
    if isinstance(data, CocoData | YoloData | VocData | MasksData | ImagesData):
        return _read_images(data)
    from steps.raw import conll, documents, jsonl, squad

    if isinstance(data, ConllData):
        return conll.read(data)
    if isinstance(data, JsonlData):
        return jsonl.read(data)
    if isinstance(data, SquadData):
        return squad.read(data)
    assert isinstance(data, DocumentsData), data.source
    return documents.read(data)


def _read_images(data: CocoData | YoloData | VocData | MasksData | ImagesData) -> RawData:
    from steps.raw import coco, images, masks, voc, yolo

    if isinstance(data, CocoData):
        return coco.read(data)
    if isinstance(data, YoloData):
        return yolo.read(data)
    if isinstance(data, VocData):
        return voc.read(data)
    return masks.read(data) if isinstance(data, MasksData) else images.read(data)


def present(path: Path) -> Path:
    """The path, which is there.

    Raises:
        DataError: it is not; the message says what to do.
    """
    if path.exists():
        return path
    pointer = path.with_name(path.name + ".dvc")
    if pointer.exists():
        raise DataError(f"{path} is missing, but {pointer} is there: run `dvc pull {pointer}` to fetch it")
    raise DataError(f"{path} is missing; correct `data.path` (it is relative to the root of the clone)")


def decode(raw: bytes, encoding: str, where: str) -> str:
    """Text of some bytes; a byte order mark is not part of the text.

    Raises:
        DataError: the encoding is unknown, or the bytes are not in it; the message names the byte and row.
    """
    try:
        text = raw.decode(encoding)
    except LookupError:
        raise DataError(f"`encoding: {encoding}` is unknown; try utf-8, latin-1 or cp1252") from None
    except UnicodeDecodeError as error:
        start, row = error.start, raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{where} is not {encoding}: byte {start} (row {row}) is {raw[start : start + 1]!r}; "
            "set `encoding:` under `data` in params.yaml, e.g. latin-1 or cp1252"
        ) from None
    return text.removeprefix("\ufeff")


def few(names: list[str], at_most: int = 3) -> str:
    """The first few names, and how many there are when that is more."""
    rest = f", ... ({len(names)} in all)" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + rest
