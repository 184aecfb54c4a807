"""The manifest, the splits, and batches of samples."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pandas.api.types import is_integer_dtype

from steps import artifacts
from steps.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from steps.network import Inputs

MANIFEST = "manifest.parquet"
SPLITS = ("train", "validation", "test")
# The manifest, one row a sample. `source` says where in the raw data the sample was found.
COLUMNS = ("id", "path", "text", "label", "sha256", "size", "source", "split", "group")
PREDICT_BATCH = 64


def read_manifest(folder: Path) -> pd.DataFrame:
    """The samples of an experiment as ingest found them, one row each.

    Raises:
        UserError: ingest has not run.
    """
    return _read(folder / MANIFEST, "ingest")


def read_accepted(experiment: str) -> pd.DataFrame:
    """The samples that validate accepted: the manifest's columns and the task's facts about contents.

    Raises:
        UserError: validate has not run.
    """
    return _read(artifacts.validation_dir(experiment) / "accepted.parquet", "validate")


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write texts and whole numbers as Parquet; equal tables are equal bytes.

    The types are told, not guessed: a column of nothing but nulls is a column of texts all the same.
    """
    types = {name: pa.int64() if is_integer_dtype(frame[name]) else pa.string() for name in frame.columns}
    table = pa.Table.from_pandas(frame, pa.schema(types), preserve_index=False)
    with io.BytesIO() as buffer:
        pq.write_table(table.replace_schema_metadata(None), buffer, compression="zstd")
        path.write_bytes(buffer.getbuffer())


def read_split(experiment: str) -> pd.DataFrame:
    """Accepted samples with the column `split`; unused ones have an empty split.

    Raises:
        UserError: validate or split has not run.
    """
    accepted = read_accepted(experiment)
    split = _read(artifacts.split_file(experiment), "split")
    # The manifest's own `split` is what the user gave; split has taken it into account.
    accepted = accepted.drop(columns="split", errors="ignore")
    merged = accepted.merge(split[["id", "split"]], on="id", validate="one_to_one")
    assert len(merged) == len(accepted), "split and accepted samples differ"
    return merged


def _read(path: Path, step: str) -> pd.DataFrame:
    if not path.exists():
        raise UserError(f"{path} is missing; it is made by `{step}`: run `dvc repro` or `headstart run`")
    return pd.read_parquet(path)


def classes_of(accepted: pd.DataFrame) -> list[str]:
    """The classes of an experiment, sorted: the order of a network's outputs."""
    return sorted(accepted["label"].unique())


def fingerprint(rows: pd.DataFrame) -> str:
    """SHA-256 of which contents are used, with which labels, in which split; the order does not matter."""
    lines = sorted(
        f"{row.sha256} {row.label} {row.split}" for row in rows[["sha256", "label", "split"]].itertuples()
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def label_indices(labels: pd.Series, classes: list[str]) -> NDArray[np.int64]:
    """The class index of each label."""
    return pd.Categorical(labels, categories=classes).codes.astype(np.int64)


class Samples(Protocol):
    """Inputs that can be taken in any order; how they are decoded is the task's affair."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def batch(self, indices: list[int]) -> Inputs:
        """The inputs at these places, collated."""
        ...


def in_turn(samples: int, size: int = PREDICT_BATCH) -> list[list[int]]:
    """Indices 0 .. samples - 1, cut into batches."""
    return [list(range(at, min(at + size, samples))) for at in range(0, samples, size)]


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """The same inputs where the model is."""
    if isinstance(inputs, dict):
        return {name: tensor.to(device) for name, tensor in inputs.items()}
    return inputs.to(device)


class FeatureSamples:
    """Rows of a feature matrix that was computed before."""

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, indices: list[int]) -> Tensor:
        """Shape (batch, features)."""
        return self.features[indices]


class Batches:
    """Labelled samples, cut into batches.

    Args:
        samples: the inputs.
        labels: class index of each, shape (samples,), int64.
        batch_size: samples in a batch.
    """

    def __init__(self, samples: Samples, labels: Tensor, batch_size: int) -> None:
        assert len(samples) == len(labels), (len(samples), len(labels))
        self.samples, self.labels, self.batch_size = samples, labels, batch_size

    def __len__(self) -> int:
        """Batches in an epoch of training; a last batch of one joins the one before."""
        return len(_cut(list(range(len(self.labels))), self.batch_size))

    def shuffled(self, generator: torch.Generator) -> Iterator[tuple[Inputs, Tensor]]:
        """One epoch in random order."""
        import torch

        order = torch.randperm(len(self.labels), generator=generator).tolist()
        return self._iterate(_cut(order, self.batch_size))

    def in_order(self) -> Iterator[tuple[Inputs, Tensor]]:
        """All samples in their own order."""
        return self._iterate(in_turn(len(self.labels), self.batch_size))

    def _iterate(self, batches: list[list[int]]) -> Iterator[tuple[Inputs, Tensor]]:
        for indices in batches:
            yield self.samples.batch(indices), self.labels[indices]


def _cut(order: list[int], size: int) -> list[list[int]]:
    batches = [order[at : at + size] for at in range(0, len(order), size)]
    # Batch normalisation cannot train on a single sample.
    if len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] += last
    return batches
