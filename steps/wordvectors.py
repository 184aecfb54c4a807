"""A backbone upon word vectors: a table of them, and a small encoder that reads the words' vectors.

The vectors may be GloVe's (Pennington et al., 2014), word2vec's (Mikolov et al., 2013), fastText's
(Bojanowski et al., 2017) or those that Model2Vec distils from a transformer. Whatever stands above them is
small: with few labels it is the vectors that know something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

# Tokens of a batch: `hidden`, shape (batch, tokens, features), and `attention_mask`, shape (batch, tokens).
Flow = dict[str, Tensor]
Step = Callable[[Any], Any]
# Rows of the table that stand for no word of the file.
PADDING, UNKNOWN = 0, 1
# Kim (2014): windows of 3, 4 and 5 words, 100 feature maps of each.
WINDOWS, MAPS = (3, 4, 5), 100
# Units of the LSTM in each direction.
UNITS = 128


def describe(encoder: str, words: int, dim: int, *, normalise: bool = False) -> dict[str, Any]:
    """The description of a network upon word vectors, as it stands in `architecture.json`.

    Args:
        encoder: "mean": the mean of the vectors. "cnn": convolutions over windows of words, and the maximum
            of each over the text (Kim, Convolutional Neural Networks for Sentence Classification, 2014).
            "lstm": the mean over the states of an LSTM that reads in both directions (Hochreiter and
            Schmidhuber, Long Short-Term Memory, 1997).
        words: rows of the table.
        dim: length of a vector.
        normalise: pooled features have length 1, as Model2Vec has them.
    """
    described: dict[str, Any] = {
        "library": "vectors",
        "name": encoder,
        "words": words,
        "dim": dim,
        "normalise": normalise,
    }
    if encoder == "cnn":
        described |= {"windows": list(WINDOWS), "maps": MAPS}
    elif encoder == "lstm":
        described |= {"units": UNITS}
    return described


class WordVectors(nn.Module):
    """Token ids to features of the text, shape (batch, features).

    What a text gives does not depend on how far its batch is padded.

    Args:
        description: as `describe` makes it.

    Attributes:
        features: how many it gives.

    Raises:
        ValueError: there is no such encoder.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        self.encoder = str(description["name"])
        self.normalise = bool(description.get("normalise"))
        dim = int(description["dim"])
        self.embedding = Table(int(description["words"]), dim)
        self.body: Convolutions | Recurrent | None = None
        self.features = dim
        if self.encoder == "cnn":
            self.body = Convolutions(dim, list(description["windows"]), int(description["maps"]))
            self.features = self.body.features
        elif self.encoder == "lstm":
            self.body = Recurrent(dim, int(description["units"]))
            self.features = self.body.features
        elif self.encoder != "mean":
            raise ValueError(f"there is no encoder {self.encoder!r}: take mean, cnn or lstm")

    def bottom_up(self) -> list[tuple[str, tuple[Step, ...]]]:
        """The layers by name, and what is called one after the other to run each."""
        layers: list[tuple[str, tuple[Step, ...]]] = [("embedding", (self.embedding,))]
        return layers if self.body is None else [*layers, (self.encoder, (self.body,))]

    def pool(self) -> tuple[Step, ...]:
        """What is called one after the other to make features of the top layer's tokens."""
        pooling = _maximum if self.encoder == "cnn" else _mean
        return (pooling, functional.normalize) if self.normalise else (pooling,)

    def forward(self, inputs: Flow) -> Tensor:
        """All layers, then the pooling.

        Args:
            inputs: `input_ids` and `attention_mask`, shape (batch, tokens), int64.
        """
        flow: Any = inputs
        for step in [step for _, steps in self.bottom_up() for step in steps] + list(self.pool()):
            flow = step(flow)
        found: Tensor = flow
        return found


class Table(nn.Module):
    """The vectors, a row for each word."""

    def __init__(self, words: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(words, dim))
        # As long as vectors of words mostly are, so that a start without them is not worse than it must be.
        nn.init.normal_(self.weight, std=0.1)
        with torch.no_grad():
            self.weight[PADDING].zero_()

    def forward(self, inputs: Flow) -> Flow:
        """Ids to vectors; zeros where there is padding."""
        mask = inputs["attention_mask"]
        hidden = functional.embedding(inputs["input_ids"], self.weight)
        return {"hidden": hidden * mask.unsqueeze(-1).to(hidden.dtype), "attention_mask": mask}


class Convolutions(nn.Module):
    """Rectified convolutions over windows of words; of each window all maps stand side by side."""

    def __init__(self, dim: int, windows: list[int], maps: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, maps, window) for window in windows)
        # So that every word is the middle of a window; torch's own `same` warns of windows of even length.
        self.reach = [((window - 1) // 2, window // 2) for window in windows]
        self.features = len(windows) * maps

    def forward(self, flow: Flow) -> Flow:
        """Vectors to maps, one for every word as the middle of a window."""
        channels = flow["hidden"].transpose(1, 2)
        maps = [
            functional.relu(one(functional.pad(channels, reach)))
            for one, reach in zip(self.convolutions, self.reach, strict=True)
        ]
        return {**flow, "hidden": torch.cat(maps, dim=1).transpose(1, 2)}


class Recurrent(nn.Module):
    """An LSTM in both directions; the states of the two stand side by side."""

    def __init__(self, dim: int, units: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, units, batch_first=True, bidirectional=True)
        self.features = 2 * units

    def forward(self, flow: Flow) -> Flow:
        """Vectors to states; nothing is read of padding, and it gives zeros."""
        mask = flow["attention_mask"]
        lengths = mask.sum(dim=1).clamp(min=1).cpu()
        packed = pack_padded_sequence(flow["hidden"], lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=mask.shape[1])
        return {**flow, "hidden": states}


def _mean(flow: Flow) -> Tensor:
    """Mean over the real tokens."""
    mask = flow["attention_mask"].unsqueeze(-1).to(flow["hidden"].dtype)
    return (flow["hidden"] * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _maximum(flow: Flow) -> Tensor:
    """Maximum over the real tokens."""
    away = flow["attention_mask"].unsqueeze(-1) == 0
    return flow["hidden"].masked_fill(away, float("-inf")).amax(dim=1)
