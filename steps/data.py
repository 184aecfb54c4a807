"""The manifest, the splits, and batches of samples."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pandas.api.types import is_integer_dtype

from steps import artifacts
from steps.errors import HeadstartError, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from steps.network import Inputs

MANIFEST = "manifest.parquet"
SPLITS = ("train", "validation", "test")
# Of embed's folder.
FEATURES, RANDOM_FEATURES, FEATURE_INDEX = "features.npy", "random.npy", "index.parquet"
# The manifest, one row a sample. `source` says where in the raw data the sample was found. `pair` is the
# second text of tasks that have two; `target`, JSON, is what is to be predicted where that is more than a
# class. Then `label` is only what splits are stratified by.
COLUMNS = (
    "id", "path", "text", "pair", "label", "target", "sha256", "size", "source", "split", "group",
)  # fmt: skip
PREDICT_BATCH = 64
# Batches sorted by length together: more would pad little less and mix the epoch worse.
BUCKET = 50


def read_manifest(folder: Path) -> pd.DataFrame:
    """The samples of an experiment as ingest found them, one row each.

    Raises:
        UserError: ingest has not run.
    """
    return read_made(folder / MANIFEST, "ingest")


def read_accepted(experiment: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The samples that validate accepted: the manifest's columns and the task's facts about contents.

    Args:
        experiment: its name.
        columns: those to read; None for all.

    Raises:
        UserError: validate has not run.
    """
    return read_made(artifacts.validation_dir(experiment) / "accepted.parquet", "validate", columns)


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write texts and whole numbers as Parquet; equal tables are equal bytes.

    The types are told, not guessed: a column of nothing but nulls is a column of texts all the same.
    """
    types = {name: pa.int64() if is_integer_dtype(frame[name]) else pa.string() for name in frame.columns}
    table = pa.Table.from_pandas(frame, pa.schema(types), preserve_index=False)
    with io.BytesIO() as buffer:
        pq.write_table(table.replace_schema_metadata(None), buffer, compression="zstd")
        path.write_bytes(buffer.getbuffer())


def read_split(experiment: str, resample: int = 1, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Accepted samples with the column `split`; unused ones have an empty split.

    Args:
        experiment: its name.
        resample: which part of the training pool is trained on; 1 is the experiment's own.
        columns: of the accepted samples, `id` among them; None for all.

    Raises:
        UserError: validate or split has not run.
    """
    column, accepted = split_column(resample), read_accepted(experiment, columns)
    split = read_made(artifacts.split_file(experiment), "split", ["id", column])
    return _with_sides(accepted, split.rename(columns={column: "split"}))


def read_used(experiment: str) -> pd.DataFrame:
    """The samples that are in a split in any resample; the column `split` is that of the first one.

    Raises:
        UserError: validate or split has not run.
    """
    rows = read_split(experiment)
    split = read_made(artifacts.split_file(experiment), "split").drop(columns="id")
    used = (split != "").any(axis=1).to_numpy()
    return rows[used]


def read_pool(experiment: str, labels: int | None) -> pd.DataFrame:
    """As `read_split` for another label budget: train is the first so many of the training pool.

    Args:
        experiment: its name.
        labels: how many; None is the whole pool. What is smaller is part of what is larger.

    Raises:
        UserError: validate or split has not run, or the pool is smaller.
    """
    rows = read_split(experiment)
    pool = rows[["id"]].merge(
        read_made(artifacts.pool_file(experiment), "split"), on="id", validate="one_to_one"
    )
    size = len(pool["place"]) - int((pool["place"] < 0).sum())
    if labels is not None and labels > size:
        raise UserError(
            f"curve.labels: {labels} is more than the {size} samples there are to train on; lower it, or "
            "write `all`"
        )
    place = pool["place"].to_numpy()
    inside = (place >= 0) & (place < (size if labels is None else labels))
    others = rows["split"].where(rows["split"] != "train", "")
    return rows.assign(split=others.mask(inside, "train"))


def split_column(resample: int) -> str:
    """The column of split.parquet with the splits of a resample."""
    return "split" if resample == 1 else f"split_{resample}"


def _with_sides(accepted: pd.DataFrame, split: pd.DataFrame) -> pd.DataFrame:
    # The manifest's own `split` is what the user gave; split has taken it into account.
    accepted = accepted.drop(columns="split", errors="ignore")
    if accepted["id"].equals(split["id"]) and accepted["id"].is_unique:
        # As split writes it; a merge of many samples takes several times their memory.
        return accepted.assign(split=split["split"])
    merged = accepted.merge(split, on="id", validate="one_to_one")
    assert len(merged) == len(accepted), "split and accepted samples differ"
    return merged


def read_features(folder: Path, ids: pd.Series, name: str = FEATURES) -> NDArray[np.float32]:
    """The features of these samples, in their order; shape (samples, features).

    Args:
        folder: of embed.
        ids: which samples.
        name: `features.npy` of the pretrained backbone, or `random.npy` of one with random weights.

    Raises:
        HeadstartError: some have none; embed is older than the split.
    """
    matrix: NDArray[np.float32] = np.load(folder / name, mmap_mode="r")
    # A copy of the rows asked for: they are read in random order many times.
    return np.ascontiguousarray(matrix[feature_places(folder, ids)])


def feature_places(folder: Path, ids: pd.Series) -> NDArray[np.intp]:
    """The rows of embed's matrices that these samples have.

    Raises:
        HeadstartError: some have none; embed is older than the split.
    """
    index = read_made(folder / FEATURE_INDEX, "embed")
    places = pd.Index(index["id"]).get_indexer(pd.Index(ids))
    if (places < 0).any():
        raise HeadstartError(
            f"{folder} has no features of {int((places < 0).sum())} samples; run embed again"
        )
    return np.asarray(places)


def read_made(path: Path, step: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A table that a step made.

    Args:
        path: where it is.
        step: that makes it.
        columns: those to read; None for all.

    Raises:
        UserError: it is not there; the message names the step.
    """
    if not path.exists():
        raise UserError(f"{path} is missing; it is made by `{step}`: run `dvc repro` or `headstart run`")
    return pd.read_parquet(path, columns=None if columns is None else list(columns))


def classes_of(accepted: pd.DataFrame) -> list[str]:
    """The classes of an experiment, sorted: the order of a network's outputs."""
    return sorted(accepted["label"].unique())


def fingerprint(rows: pd.DataFrame) -> str:
    """SHA-256 of which contents are used, with which labels, in which split; the order does not matter."""
    known = rows[["sha256", "label", "target", "split"]].itertuples(index=False, name=None)
    lines = sorted(" ".join(part for part in row if isinstance(part, str)) for row in known)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def label_indices(labels: pd.Series, classes: list[str]) -> NDArray[np.int64]:
    """The class index of each label."""
    return pd.Categorical(labels, categories=classes).codes.astype(np.int64)


class Samples(Protocol):
    """Inputs that can be taken in any order; how they are decoded is the task's affair."""

    @property
    def lengths(self) -> Sequence[int] | None:
        """Tokens of each sample; None where all cost alike."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...

    def batch(self, indices: list[int], view: int | None = None) -> Inputs:
        """The inputs at these places, collated.

        Args:
            indices: places, at least one.
            view: None for the samples as they are; a number for that augmented view of each, which depends on
                the sample and the number alone. Where there is no augmentation every view is the sample.
        """
        ...


@runtime_checkable
class Windowed(Protocol):
    """Samples of which a long one is several rows of a batch."""

    def joined(self, indices: Sequence[int], rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of values of these samples' rows one value for each sample, the mean."""
        ...


class Targets(Protocol):
    """What is to be learnt of samples, where it is more than a class; in the samples' order."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def batch(self, indices: list[int], view: int | None = None) -> Tensor | dict[str, Tensor]:
        """Collated, the samples first in every tensor; `view` as in `Samples.batch`."""
        ...


def in_turn(samples: int, size: int = PREDICT_BATCH) -> list[list[int]]:
    """Indices 0 .. samples - 1, cut into batches."""
    return _cut(list(range(samples)), size)


def by_length(samples: Samples, size: int = PREDICT_BATCH) -> list[list[int]]:
    """Every index once, in batches of alike lengths, so that little is padded; the longest first.

    What does not fit into memory then fails at once and not at the end. Without lengths: in turn.
    """
    return longest_first(samples.lengths, len(samples), size)


def longest_first(lengths: Sequence[int] | None, count: int, size: int = PREDICT_BATCH) -> list[list[int]]:
    """Indices 0 .. count - 1 in batches of alike lengths, as `by_length` has them."""
    if lengths is None:
        return in_turn(count, size)
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    return _cut(order.tolist(), size)


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """The same inputs where the model is."""
    if isinstance(inputs, dict):
        return {name: tensor.to(device) for name, tensor in inputs.items()}
    return inputs.to(device)


class FeatureSamples:
    """Rows of a feature matrix that was computed before.

    Args:
        features: shape (samples, ...).
        lengths: tokens of the texts that they were computed of, if they are of texts.
    """

    def __init__(self, features: Tensor, lengths: Sequence[int] | None = None) -> None:
        self.features, self.lengths = features, lengths

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, indices: list[int], view: int | None = None) -> Tensor:
        """Shape (batch, features); every view is the row itself."""
        return self.features[indices]


class Batches:
    """Samples with their targets, cut into batches.

    Args:
        samples: the inputs.
        targets: class index of each, shape (samples,), int64; or targets of another kind.
        batch_size: samples in a batch.
        balanced: in training, draw samples with replacement, every class as often as any other (on average).
    """

    def __init__(
        self, samples: Samples, targets: Tensor | Targets, batch_size: int, balanced: bool = False
    ) -> None:
        assert len(samples) == len(targets), (len(samples), len(targets))
        self.samples, self.targets, self.batch_size = samples, targets, batch_size
        self.balanced = balanced

    @property
    def labels(self) -> Tensor:
        """Class index of each sample, shape (samples,), of a classifier."""
        import torch

        assert isinstance(self.targets, torch.Tensor)
        return self.targets

    def __len__(self) -> int:
        """Batches in an epoch of training; a last batch of one joins the one before."""
        return batches_of(len(self.targets), self.batch_size)

    def order(self, generator: torch.Generator) -> list[list[int]]:
        """The batches of one epoch: every sample once, or when balanced as many draws as there are samples.

        This is all that the generator is used for: the same state gives the same epoch again. Samples of
        different lengths come in batches of alike ones (`_bucketed`).
        """
        drawn = self._drawn(generator)
        lengths = self.samples.lengths
        if lengths is None or min(lengths, default=0) == max(lengths, default=0):
            return _training_cut(drawn, self.batch_size)
        return _bucketed(drawn, lengths, self.batch_size, generator)

    def _drawn(self, generator: torch.Generator) -> list[int]:
        import torch

        if not self.balanced:
            found: list[int] = torch.randperm(len(self.targets), generator=generator).tolist()
            return found
        share = 1 / torch.bincount(self.labels).double()
        drawn = torch.multinomial(share[self.labels], len(self.labels), replacement=True, generator=generator)
        return drawn.tolist()

    def batch(self, indices: list[int], view: int | None = None) -> tuple[Inputs, Any]:
        """The inputs at these places, or a view of each, and their targets: a tensor, or several by name."""
        import torch

        if isinstance(self.targets, torch.Tensor):
            return self.samples.batch(indices, view), self.targets[indices]
        return self.samples.batch(indices, view), self.targets.batch(indices, view)

    def shuffled(self, generator: torch.Generator) -> Iterator[tuple[Inputs, Any]]:
        """One epoch in random order."""
        return self._iterate(self.order(generator))

    def in_order(self) -> Iterator[tuple[Inputs, Any]]:
        """All samples in their own order."""
        return self._iterate(in_turn(len(self.targets), self.batch_size))

    def _iterate(self, batches: list[list[int]]) -> Iterator[tuple[Inputs, Any]]:
        for indices in batches:
            yield self.batch(indices)


def batches_of(samples: int, size: int) -> int:
    """Batches in an epoch of training."""
    return len(_training_cut(list(range(samples)), size))


def _cut(order: list[int], size: int) -> list[list[int]]:
    return [order[at : at + size] for at in range(0, len(order), size)]


def _training_cut(order: list[int], size: int) -> list[list[int]]:
    batches = _cut(order, size)
    # Batch normalisation cannot train on a single sample.
    if len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] += last
    return batches


def _bucketed(
    drawn: list[int], lengths: Sequence[int], size: int, generator: torch.Generator
) -> list[list[int]]:
    """Batches of samples alike in length, in random order.

    The samples are sorted by length, not all together (every epoch would have the same batches) but within
    buckets of the random order: of BUCKET batches, or a quarter of the epoch where that is less.
    """
    import torch

    batches = -(-len(drawn) // size)
    bucket = size * max(1, min(BUCKET, batches // 4))
    alike = [index for part in _cut(drawn, bucket) for index in sorted(part, key=lengths.__getitem__)]
    cut = _training_cut(alike, size)
    return [cut[at] for at in torch.randperm(len(cut), generator=generator).tolist()]
