"""What the readers of boxes share: COCO, YOLO, Pascal VOC.

A target is `{"boxes": [[x, y, width, height], ...], "labels": [...], "size": [width, height]}`, in pixels
from the left and the top of the image as people see it: turned as its camera says.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from steps import scans
from steps.errors import DataError
from steps.raw import IMAGE_SUFFIXES

# What splits are stratified by where an image has no box.
NONE = "none"
LITTER = ("thumbs.db", "desktop.ini", "__macosx")

Size = tuple[int, int]


def target(boxes: Sequence[Sequence[float]], labels: Sequence[str], size: Size | None) -> dict[str, Any]:
    """The target of an image; a coordinate that is no number is None, for validate to judge.

    Args:
        boxes: x, y, width and height of each, in pixels.
        labels: of each.
        size: width and height of the image; None where nobody knows them.
    """
    told = [[float(one) if math.isfinite(one) else None for one in box] for box in boxes]
    return {"boxes": told, "labels": list(labels), "size": None if size is None else list(size)}


def stratum(labels: Sequence[str]) -> str:
    """The most frequent label of an image, of equals the first in the alphabet; `none` where there is no box.

    It depends on the image alone: what other images hold must not move it to another stratum.
    """
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label)) if counts else NONE


def size_of(image: Path) -> Size | None:
    """Width and height as people see it, from its header; None where the file is no image."""
    try:
        return scans.size_of(image)
    except Exception:  # a decoder meets a broken file with whatever exception comes first; validate tells
        return None


def inside(root: Path, name: str, where: str) -> Path:
    """The path `name` below `root`; whether there is such a file is left open.

    Raises:
        DataError: it is not below it, or is a link that leads out of it.
    """
    windows = PureWindowsPath(name)
    outside = not name or PurePosixPath(name).is_absolute() or windows.drive or windows.root or "\0" in name
    path = root / name.replace("\0", "")
    if outside or ".." in windows.parts or not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{where}: {name!r} leaves {root}; paths must be relative and stay in it")
    return path


def files_in(folder: Path, root: Path) -> list[Path]:
    """Every visible file in a folder and below it, ordered by path.

    Raises:
        DataError: the folder cannot be read, or one of them is a link that is broken or leads out of `root`.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from None
    found: list[Path] = []
    for name in names:
        entry = folder / name
        if name.startswith(".") or name.lower() in LITTER:
            continue
        if entry.is_symlink() and (
            entry.is_dir() or not entry.exists() or not entry.resolve().is_relative_to(root.resolve())
        ):
            raise DataError(
                f"{entry} is a link that leaves {root}, is broken, or stands for a folder; "
                "put the files there"
            )
        found += files_in(entry, root) if entry.is_dir() else [entry]
    return found


def is_image(path: Path) -> bool:
    """Whether the name ends as that of an image we read."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def left_aside(count: int, what: str, how: str) -> list[str]:
    """The note about what was not taken; none where that is nothing."""
    return [f"left aside: {count:,} {what}; {how}"] if count else []
