"""What a registered model does when MLflow loads it: contents in, what the task predicts out.

MLflow imports this module by name out of the model's own copy of the code, and calls `_load_pyfunc` with
the model's folder, laid out by `steps/register.py`:

* `settings.json`: task, model settings, classes, the largest image allowed
* `trained/`: weights as safetensors and the journal of the training
* `pretrained/`: architecture, tokenizer, and the backbone's weights, or the SavedModel's folder, where only
  the head was trained
* `model_card.md`, `test_predictions.parquet`: for people and for the gate

The input has one column, or two where the task takes two texts. `image`: bytes, base64 text, a data URI, or a
`pathlib.Path`; `text` and `pair`: text. A text is never taken for the path of a file, so a client of a model
server cannot read the server's files: only Python code in the same process can hand over a `Path`.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from steps import checkpoint, embedding, savedmodel, scans, tasks
from steps.artifacts import read_json, saved_model
from steps.data import FeatureSamples, Samples
from steps.errors import DataError, UnreadableError
from steps.kinds import KINDS
from steps.params import Model, parse
from steps.savedmodel import Extractor
from steps.tasks import Ask, Content
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
        self.task, self.kind = tasks.get(found["task"]), KINDS[found["task"]]
        self.settings = parse(Model, found["model"], "settings.json")
        self.classes: list[str] = found["classes"]
        self.max_pixels: int = found["max_pixels"]
        self.pretrained = folder / "pretrained"
        # TensorFlow takes seconds to load, far longer than it takes to answer: it is started once.
        self.extractor = None if saved_model(self.pretrained) is None else Extractor(self.pretrained)
        self.network: torch.nn.Module
        if self.extractor is None:
            self.network = checkpoint.load_network(folder / "trained", self.pretrained)
        else:
            self.network = checkpoint.load_head(folder / "trained", self.extractor.width)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """What the task's outputs are, a row for each row of the input; see `kinds.Kind.outputs`.

        Of a classifier the label, its probability, and the probability of every class.

        Args:
            model_input: the task's columns.
            params: MLflow's; there are none.

        Raises:
            UnreadableError: names every row that cannot be read, and why.
            WeightsError: TensorFlow, which a SavedModel needs, is not there or fails.
        """
        columns = [list(model_input[name]) for name in self.kind.columns]
        samples = self._samples(list(zip(*columns, strict=True)))
        if not len(samples):
            return pd.DataFrame({name: [] for name in self.kind.outputs})
        said = self.task.predict(self.network, samples, self._ask())
        return pd.DataFrame(self._of_classes(np.asarray(said)) if self.kind.classified else said)

    def _ask(self) -> Ask:
        return Ask(self.classes, self.settings, self.device, pretrained=self.pretrained)

    def _of_classes(self, said: NDArray[np.float32]) -> dict[str, Any]:
        found = said.astype(np.float64)
        best = found.argmax(axis=1)
        return {
            "label": [self.classes[index] for index in best],
            "probability": found[np.arange(len(found)), best],
            "probabilities": [dict(zip(self.classes, row.tolist(), strict=True)) for row in found],
        }

    def _samples(self, rows: list[tuple[object, ...]]) -> Samples:
        """The inputs, every one of them checked before the first is predicted."""
        contents: list[Content] = []
        reasons: dict[int, str] = {}
        for place, row in enumerate(rows):
            try:
                parts = [self._content(value) for value in row]
                contents.append(parts[0] if len(parts) == 1 else tuple(parts))  # type: ignore[arg-type]
            except (DataError, OSError) as error:
                reasons[place] = str(error)
        if reasons:
            raise UnreadableError(reasons, len(rows))
        if self.extractor is not None and self.kind.content == "text":
            return self._featured(self.extractor, contents, None)  # it reads the texts as they are
        samples = self.task.samples(contents, self.settings, self.pretrained)
        if self.kind.content == "image":
            reasons = _undecodable(cast("_Images", samples))
            if reasons:
                raise UnreadableError(reasons, len(rows))
        return samples if self.extractor is None else self._featured(self.extractor, contents, samples)

    def _featured(
        self, extractor: Extractor, contents: list[Content], samples: Samples | None
    ) -> FeatureSamples:
        """What the head stands on, computed by the SavedModel."""
        batches = embedding.savedmodel_batches(contents, samples)
        found = [np.empty((0, extractor.width), np.float32), *savedmodel.features(extractor, batches)]
        return FeatureSamples(torch.from_numpy(np.concatenate(found)))

    def _content(self, value: object) -> Path | bytes | str:
        if self.kind.content == "text":
            if not isinstance(value, str):
                raise DataError(f"is no text, but {type(value).__name__}")
            if not value.strip():
                raise DataError("the text is empty")
            try:
                value.encode()
            except UnicodeEncodeError:
                raise DataError("the text holds half a character (a lone surrogate)") from None
            return value
        image = decoded(value)
        self._check_size(image)
        return image

    def _check_size(self, image: Path | bytes) -> None:
        """Refuse an image by its header, before decoding it takes a gigabyte."""
        try:
            width, height = scans.size_of(image)
        except FileNotFoundError:
            raise DataError("there is no such file") from None
        except Exception:
            raise DataError("is no image we can read") from None
        if width * height > self.max_pixels:
            raise DataError(f"{width} x {height} pixels are more than the {self.max_pixels} allowed")


class _Images(Protocol):
    """Samples that are images; named here, for the rooms of image tasks need libraries that texts do not."""

    def __len__(self) -> int: ...

    def decode(self, index: int) -> None: ...


def _undecodable(samples: _Images) -> dict[int, str]:
    """Why, of each image that cannot be decoded; the samples keep what they decoded."""
    reasons: dict[int, str] = {}
    for place in range(len(samples)):
        try:
            samples.decode(place)
        except DataError as error:
            reasons[place] = str(error)
    return reasons


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
