"""A folder of images without labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from steps.layouts import ImagesData
from steps.raw import IMAGE_SUFFIXES, RawData, RawSample
from steps.raw.documents import files_below

# Splits are drawn alike from every label; here there is one.
LABEL = "image"


def read(data: ImagesData) -> RawData:
    """Every image below the folder, ordered by path; an image's id is its path.

    They are only located: what is no image, or an empty file, is for validate to judge.

    Raises:
        DataError: there is no folder or no file in it, or it holds something else than images.
    """
    root = Path(data.path)
    return RawData(_images(root, files_below(root, IMAGE_SUFFIXES, "images")))


def digits_images() -> RawData:
    """The scans of `digits` without their labels."""
    from steps.raw import package

    digits = package.read("digits")
    return RawData((replace(one, label=LABEL) for one in digits.samples), digits.notes)


def _images(root: Path, files: list[Path]) -> Iterator[RawSample]:
    for file in files:
        yield RawSample(str(file), file, LABEL, id=file.relative_to(root).as_posix())
