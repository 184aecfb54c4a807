"""What a registered model does when MLflow loads it: contents in, labels and probabilities out.

MLflow imports this module by name out of the model's own copy of the code, and calls `_load_pyfunc` with
the model's folder, laid out by `steps/register.py`:

* `settings.json`: task, model settings, classes, the largest image allowed
* `trained/`: weights as safetensors and the journal of the training
* `pretrained/`: architecture, tokenizer, and the backbone's weights where only the head was trained
* `model_card.md`, `test_predictions.parquet`: for people and for the gate

The input has one column. `image`: bytes, base64 text, a data URI, or a `pathlib.Path`; `text`: text. A
text is never taken for the path of a file, so a client of a model server cannot read the server's files:
only Python code in the same process can hand over a `Path`.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from steps import checkpoint, loop, tasks
from steps.artifacts import read_json
from steps.data import Samples
from steps.errors import DataError, UnreadableError
from steps.params import Model, parse
from steps.tasks import Content
from steps.tracking.packaging import FORMAT

_DATA_URI = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)


class Served:
    """A trained network with its task.

    Args:
        folder: as register laid it out.
    """

    def __init__(self, folder: Path) -> None:
        found = read_json(folder / "settings.json", "python -m steps.register")
        if found["format"] != FORMAT:
            raise DataError(
                f"the model is of format {found['format']}, this code reads {FORMAT}: "
                "load it with the code of its own version of Headstart"
            )
        self.task = tasks.get(found["task"])
        self.settings = parse(Model, found["model"], "settings.json")
        self.classes: list[str] = found["classes"]
        self.max_pixels: int = found["max_pixels"]
        self.pretrained = folder / "pretrained"
        self.network = checkpoint.load_network(folder / "trained", self.pretrained)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Label, its probability, and the probability of every class, a row for each row of the input.

        Args:
            model_input: one column, `image` or `text`.
            params: MLflow's; there are none.

        Raises:
            UnreadableError: names every row that cannot be read, and why.
        """
        name = "image" if self.task.column == "path" else "text"
        samples = self._samples(list(model_input[name]))
        if not len(samples):
            return pd.DataFrame({"label": [], "probability": [], "probabilities": []})
        found = loop.predict(self.network, samples, self.device).astype(np.float64)
        best = found.argmax(axis=1)
        return pd.DataFrame(
            {
                "label": [self.classes[index] for index in best],
                "probability": found[np.arange(len(found)), best],
                "probabilities": [dict(zip(self.classes, row.tolist(), strict=True)) for row in found],
            }
        )

    def _samples(self, values: list[object]) -> Samples:
        """The inputs, every one of them checked before the first is predicted."""
        contents: list[Content] = []
        reasons: dict[int, str] = {}
        for row, value in enumerate(values):
            try:
                contents.append(self._content(value))
            except (DataError, OSError) as error:
                reasons[row] = str(error)
        if reasons:
            raise UnreadableError(reasons, len(values))
        samples = self.task.samples(contents, self.settings, self.pretrained)
        if self.task.column == "path":
            # Decoded one by one, so that each that fails is named; the samples keep what they decoded.
            for row in range(len(samples)):
                try:
                    samples.batch([row])
                except DataError as error:
                    reasons[row] = str(error)
            if reasons:
                raise UnreadableError(reasons, len(values))
        return samples

    def _content(self, value: object) -> Content:
        if self.task.column == "text":
            if not isinstance(value, str):
                raise DataError(f"is no text, but {type(value).__name__}")
            if not value.strip():
                raise DataError("the text is empty")
            return value
        image = decoded(value)
        self._check_size(image)
        return image

    def _check_size(self, image: Path | bytes) -> None:
        """Refuse an image by its header, before decoding it takes a gigabyte."""
        from steps.tasks.image_classification import FORMATS

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            try:
                source = io.BytesIO(image) if isinstance(image, bytes) else image
                with Image.open(source, formats=FORMATS) as opened:
                    width, height = opened.size
            except Image.DecompressionBombError as error:
                raise DataError(f"is far too large: {error}") from None
            except FileNotFoundError:
                raise DataError("there is no such file") from None
            except Exception:
                raise DataError("is no image we can read") from None
        if width * height > self.max_pixels:
            raise DataError(f"{width} x {height} pixels are more than the {self.max_pixels} allowed")


def decoded(value: object) -> Path | bytes:
    """An image as it was sent: bytes as they are, base64 text or a data URI decoded, a `Path` as it is.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(value, Path):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise DataError(f"is no image, but {type(value).__name__}")
    text = _DATA_URI.sub("", value.strip(), count=1) if value.lstrip()[:5].lower() == "data:" else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise DataError(
            "is text but no base64; send an image as base64, in Python also as bytes or as a pathlib.Path"
        ) from None


def _load_pyfunc(data_path: str) -> Served:
    """Called by MLflow."""
    return Served(Path(data_path))
