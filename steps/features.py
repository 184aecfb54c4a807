"""What a frozen part of a network gives: computed once, stored, read memory-mapped.

`write` and `read` are for the features of whole experiments, which embed keeps under DVC's care.
`PrefixCache` keeps activations at any cut outside of it: they save time and change no result.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from weakref import WeakValueDictionary

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from steps import data, entry
from steps.artifacts import new_folder, read_json, sha256_json, write_json
from steps.data import FeatureSamples, Samples, Windowed, by_length, longest_first, to_device
from steps.errors import DataError, DiskFullError, HeadstartError, UserError
from steps.network import Backbone, Inputs

KEY = "features.json"
# Files of an entry of the prefix cache.
ACTIVATIONS, OFFSETS, ENTRY = "activations.npy", "offsets.npy", "entry.json"
# To be raised when entries are laid out another way.
FORMAT = 1
# How the inputs of a decoder begin.
FOR_DECODER = "decoder_"
DTYPE = "float32"
# Smaller entries are read into memory as a whole.
IN_MEMORY = 2**30
GIB = 2**30


@torch.inference_mode()
def write(
    backbone: Backbone,
    samples: Samples,
    path: Path,
    device: torch.device,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Run the backbone in eval mode over all samples, batch by batch, straight to disk.

    Args:
        backbone: gives (batch, features).
        samples: its inputs; texts are run in the order of their lengths, so that little is padded.
        path: where the float32 matrix (samples, features) goes, in the samples' order.
        device: where to compute.
        progress: called with the number of samples done.

    Raises:
        DataError: features are not finite.
    """
    matrix = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(len(samples), backbone.features)
    )
    _run_over(matrix, backbone, samples, device, progress)
    matrix.flush()


@torch.inference_mode()
def compute(backbone: Backbone, samples: Samples, device: torch.device) -> Tensor:
    """As `write`, for few samples: shape (samples, features), in memory."""
    matrix = np.empty((len(samples), backbone.features), dtype=np.float32)
    _run_over(matrix, backbone, samples, device, lambda done: None)
    return torch.from_numpy(matrix)


def _run_over(
    matrix: NDArray[np.float32],
    backbone: Backbone,
    samples: Samples,
    device: torch.device,
    progress: Callable[[int], None],
) -> None:
    backbone.to(device).eval()
    done = 0
    for indices in by_length(samples):
        rows = backbone(to_device(samples.batch(indices), device)).float().cpu().numpy()
        if isinstance(samples, Windowed):  # a long text is several rows of a batch
            rows = samples.joined(indices, rows)
        _check_finite(np.isfinite(rows).all(axis=1), indices, "features")
        matrix[indices] = rows
        done += len(indices)
        progress(done)


def read(folder: Path, ids: pd.Series) -> FeatureSamples:
    """The features of these samples, in their order; those of texts know how long the texts are.

    So a head that trains on them sees the batches that a whole network sees.

    Raises:
        HeadstartError: some have none; embed is older than the split.
    """
    rows = torch.from_numpy(data.read_features(folder, ids))
    index = pd.read_parquet(folder / data.FEATURE_INDEX).iloc[data.feature_places(folder, ids)]
    lengths = index["tokens"].tolist() if "tokens" in index else None
    return FeatureSamples(rows, lengths)


def key(folder: Path) -> dict[str, Any]:
    """What the features were computed from."""
    found: dict[str, Any] = read_json(folder / KEY, "python -m steps.embed")
    return found


def _check_finite(finite: NDArray[np.bool_], indices: list[int], what: str) -> None:
    if not finite.all():
        first = indices[int(np.argmin(finite))]
        raise DataError(f"the backbone gives {what} that are not finite, first of sample {first}")


# ---------------------------------------------------------------------------------------- the prefix cache


@dataclass(frozen=True, eq=False)
class Stored:
    """An entry of the cache, open for reading.

    Attributes:
        activations: images (samples * views, height, width, channels), so that a batch is channels_last;
            tokens of images (samples * views, tokens, features); of texts (tokens of all, features);
            pooled (samples * views, features).
        offsets: of texts, where each one's tokens begin and the last one's end; else None.
    """

    activations: NDArray[np.float32]
    offsets: NDArray[np.int64] | None


class PrefixSamples:
    """Samples as they are after some layers, read from the cache.

    Args:
        stored: the distinct contents' activations.
        places: which of the distinct contents each sample is.
        views: how many of each are stored, 0 for a plain one.
        beside: the raw samples, where they have texts for a decoder, which no frozen layer has read yet.
    """

    def __init__(
        self, stored: Stored, places: NDArray[np.intp], views: int, beside: Samples | None = None
    ) -> None:
        self.stored, self.places, self.views = stored, places, max(views, 1)
        self.beside = beside
        self.lengths: list[int] | None = None
        if stored.offsets is not None:
            self.lengths = np.diff(stored.offsets)[places].tolist()

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, indices: list[int], view: int | None = None) -> Inputs:
        """The activations at these places; `view` counts on after the last one from the first."""
        places = self.places[indices]
        if self.stored.offsets is not None:
            return self._texts(places, self.stored.offsets) | self._for_decoder(indices)
        rows = places * self.views + (view or 0) % self.views
        found = torch.from_numpy(np.take(self.stored.activations, rows, axis=0))
        return found.permute(0, 3, 1, 2) if found.ndim == 4 else found

    def _for_decoder(self, indices: list[int]) -> dict[str, Tensor]:
        if self.beside is None:
            return {}
        inputs = self.beside.batch(indices)
        assert isinstance(inputs, dict), "texts"
        return {name: tensor for name, tensor in inputs.items() if name.startswith(FOR_DECODER)}

    def _texts(self, places: NDArray[np.intp], offsets: NDArray[np.int64]) -> dict[str, Tensor]:
        starts, stops = offsets[places], offsets[places + 1]
        longest = int((stops - starts).max())
        width = self.stored.activations.shape[1]
        hidden = np.zeros((len(places), longest, width), dtype=self.stored.activations.dtype)
        mask = np.zeros((len(places), longest), dtype=np.int64)
        for row, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            hidden[row, : stop - start] = self.stored.activations[start:stop]
            mask[row, : stop - start] = 1
        return {"hidden": torch.from_numpy(hidden), "attention_mask": torch.from_numpy(mask)}


@dataclass(frozen=True)
class Prefix:
    """The work of one entry: the lower layers of a backbone, and the samples to run them on.

    Attributes:
        backbone: in eval mode, on the device.
        cut: how many layers.
        samples: their inputs.
        firsts: for each distinct content the place of the first sample that has it.
        views: how many of each, 0 for a plain one.
        device: where to compute.
    """

    backbone: Backbone
    cut: int
    samples: Samples
    firsts: list[int]
    views: int
    device: torch.device

    @property
    def lengths(self) -> list[int] | None:
        """Tokens of each distinct content, None for images."""
        lengths = self.samples.lengths
        return None if lengths is None else [lengths[first] for first in self.firsts]

    def run(self, places: list[int], view: int) -> tuple[Tensor, list[int] | None]:
        """The activations of some of the distinct contents, as they are stored.

        Returns:
            Rows as `Stored.activations` has them, and of texts below the top the tokens of each content.
        """
        indices = [self.firsts[place] for place in places]
        inputs = self.samples.batch(indices, view) if self.views else self.samples.batch(indices)
        flow = self.backbone(to_device(inputs, self.device), 0, self.cut)
        if not isinstance(flow, dict):
            _check_finite(torch.isfinite(flow).flatten(1).all(dim=1).cpu().numpy(), indices, "activations")
            return _plain(flow.permute(0, 2, 3, 1) if flow.ndim == 4 else flow), None
        real = flow["attention_mask"].bool()
        finite = torch.isfinite(flow["hidden"]).flatten(1).all(dim=1)
        _check_finite(finite.cpu().numpy(), indices, "activations")
        return _plain(flow["hidden"][real]), real.sum(dim=1).tolist()


class PrefixCache:
    """Activations of frozen lower layers, computed once for each distinct content and view.

    An entry is made under a lock, so that of several processes which need it one makes it and the others
    wait; it appears whole or not at all. Entries not used for longest make room for new ones.

    Args:
        folder: of all entries.
        limit_bytes: of all entries together.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        # What somebody still holds is in use and never removed.
        self._in_use: WeakValueDictionary[str, Stored] = WeakValueDictionary()

    def samples(
        self,
        backbone: Backbone,
        cut: int,
        samples: Samples,
        hashes: Sequence[str],
        *,
        weights_sha256: str,
        transform: dict[str, Any],
        views: int = 0,
        device: torch.device,
        progress: Callable[[int], None] = lambda done: None,
    ) -> PrefixSamples:
        """The samples after the backbone's lower layers; from the cache, or computed into it.

        Args:
            backbone: its layers below the cut are what `weights_sha256` says; its mode is left as it is.
            cut: how many layers, at least one.
            samples: the raw inputs.
            hashes: of each sample's content; the same hash is the same content.
            weights_sha256: of the weights below the cut.
            transform: all that decides how a content becomes an input, e.g. size and augmentation.
            views: how many augmented views of each sample are stored; 0: the plain one.
            device: where to compute.
            progress: called with the number of samples done.

        Raises:
            UserError: the entry would be larger than the limit allows.
            DiskFullError: there is not enough space for it.
            DataError: activations are not finite.
        """
        assert len(hashes) == len(samples), (len(hashes), len(samples))
        assert cut in backbone.storable[1:], (cut, backbone.storable)
        found = np.unique(np.asarray(hashes, dtype=str), return_index=True, return_inverse=True)
        distinct, firsts, places = found
        parts = {
            "architecture": backbone.name,
            "contents_sha256": hashlib.sha256("\n".join(distinct.tolist()).encode()).hexdigest(),
            "cut": cut,
            # Another device, another version: the same but for rounding, and that would change a result.
            "device": device.type,
            "dtype": DTYPE,
            "format": FORMAT,
            # Below the top it makes no difference what the top gives.
            "gives": backbone.gives if cut == backbone.cuts[-1] else None,
            "torch": torch.__version__,
            "transform": transform,
            "views": views,
            "weights_sha256": weights_sha256,
        }
        prefix = Prefix(backbone, cut, samples, firsts.tolist(), views, device)
        stored = self._open(sha256_json(parts), parts, prefix, progress)
        progress(len(samples))
        # Texts for a decoder pass the lower layers unread.
        beside = samples if backbone.family.decoder else None
        return PrefixSamples(stored, places, views, beside)

    def _open(
        self, name: str, parts: dict[str, Any], prefix: Prefix, progress: Callable[[int], None]
    ) -> Stored:
        self.folder.mkdir(parents=True, exist_ok=True)
        stored = self._in_use.get(name)
        if stored is not None:
            # It may have been removed by another process; what is open stays readable.
            with suppress(OSError):
                os.utime(self.folder / name / ENTRY)
            return stored
        stored = self._read(name)
        if stored is None:
            with _locked(self.folder / f".{name}.lock"):
                # Whoever held the lock may have made it.
                stored = self._read(name)
                if stored is None:
                    self._make(name, parts, prefix, progress)
                    stored = self._read(name)
        if stored is None:
            raise HeadstartError(f"{self.folder / name} was removed as soon as it was made; run again")
        self._in_use[name] = stored
        return stored

    def _read(self, name: str) -> Stored | None:
        """An entry, marked as used just now; None where there is none that is whole."""
        folder = self.folder / name
        if not folder.exists():
            return None
        try:
            sizes: dict[str, int] = json.loads((folder / ENTRY).read_text("utf-8"))["files"]
            for file, size in sizes.items():
                if (folder / file).stat().st_size != size:
                    raise ValueError(f"{file} has not the size it was written with")
            stored = Stored(
                _load(folder / ACTIVATIONS), _load(folder / OFFSETS) if OFFSETS in sizes else None
            )
            os.utime(folder / ENTRY)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            entry.say(f"{folder} is damaged ({error}): its activations are computed again")
            _remove(folder)
            return None
        return stored

    def _make(
        self, name: str, parts: dict[str, Any], prefix: Prefix, progress: Callable[[int], None]
    ) -> None:
        modes = {module: module.training for module in prefix.backbone.modules()}
        prefix.backbone.to(prefix.device).eval()
        try:
            with torch.inference_mode():
                layout = _layout(prefix)
                self._make_room(layout, prefix)
                with new_folder(self.folder / name) as folder:
                    _fill(folder, layout, prefix, progress)
                    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
                    write_json(folder / ENTRY, {**parts, "files": sizes})
        finally:
            for module, training in modes.items():
                module.training = training

    def _make_room(self, layout: Layout, prefix: Prefix) -> None:
        """Remove entries not used for longest until the new one fits.

        Raises:
            UserError: it does not fit all the same.
            DiskFullError: the disk has not so much space.
        """
        what = f"the activations of {len(prefix.firsts)} samples after {prefix.cut} layers take"
        advice = "raise `machine.cache_gib` or set `machine.cache: false`"
        need = layout.nbytes
        if need > self.limit_bytes:
            raise UserError(f"{what} {_gib(need)}, more than the limit of {_gib(self.limit_bytes)}: {advice}")
        self._remove_leftovers()
        sizes = {path: _size(path) for path in self._oldest_first()}
        total = sum(sizes.values())
        for path in list(sizes):
            if total + need > self.limit_bytes and path.name not in self._in_use and _whole(path):
                _remove(path)
                total -= sizes[path]
        if total + need > self.limit_bytes:
            raise UserError(
                f"{what} {_gib(need)} beside {_gib(total)} in use, more than the limit of "
                f"{_gib(self.limit_bytes)}: {advice}"
            )
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise DiskFullError(
                f"{what} {_gib(need)}, but {self.folder} has {_gib(free)} free: "
                "free some space or set `machine.cache: false`"
            )

    def _oldest_first(self) -> list[Path]:
        """Folders of entries, those being made too."""
        folders = [path.parent for path in self.folder.glob(f"*/{ACTIVATIONS}")]
        return sorted(folders, key=_last_use)

    def _remove_leftovers(self) -> None:
        """Remove what killed processes left half-written: nobody holds its lock."""
        for path in [*self.folder.glob(".*.partial-*"), *self.folder.glob(".*.old-*")]:
            name = path.name.split(".")[1]
            with suppress(BlockingIOError), _locked(self.folder / f".{name}.lock", wait=False):
                shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Layout:
    """How large an entry will be.

    Attributes:
        shape: of `Stored.activations`.
        offsets: of `Stored`.
    """

    shape: tuple[int, ...]
    offsets: NDArray[np.int64] | None

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        return math.prod(self.shape) * np.dtype(DTYPE).itemsize + (
            0 if self.offsets is None else self.offsets.nbytes
        )


def _layout(prefix: Prefix) -> Layout:
    """Learn the shape from one sample."""
    rows, tokens = prefix.run([0], 0)
    if tokens is None:
        return Layout((len(prefix.firsts) * max(prefix.views, 1), *rows.shape[1:]), None)
    lengths = prefix.lengths
    assert lengths is not None, "texts tell their lengths"
    assert prefix.views == 0, "texts have no views"
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Layout((int(offsets[-1]), *rows.shape[1:]), offsets)


def _fill(folder: Path, layout: Layout, prefix: Prefix, progress: Callable[[int], None]) -> None:
    """Compute all activations into an entry's files."""
    if layout.offsets is not None:
        np.save(folder / OFFSETS, layout.offsets)
    views = max(prefix.views, 1)
    done, all_runs = 0, len(prefix.firsts) * views
    with _Rows(folder / ACTIVATIONS, layout.shape) as out:
        for places in longest_first(prefix.lengths, len(prefix.firsts)):
            for view in range(views):
                rows, tokens = prefix.run(places, view)
                _put(out, rows, tokens, places, view, layout, views)
                done += len(places)
                progress(done * len(prefix.samples) // all_runs)


def _put(
    out: _Rows,
    rows: Tensor,
    tokens: list[int] | None,
    places: list[int],
    view: int,
    layout: Layout,
    views: int,
) -> None:
    if tokens is None:
        for place, row in zip(places, rows, strict=True):
            out.write(place * views + view, row)
        return
    assert layout.offsets is not None
    for place, part in zip(places, torch.split(rows, tokens), strict=True):
        start, stop = layout.offsets[place : place + 2].tolist()
        assert len(part) == stop - start, "a text has as many tokens as it says"
        out.write(start, part)


class _Rows:
    """A .npy file that is written in pieces, in any order.

    By writes, not through memory: a full disk is an error then, not the end of the process.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.stream = path.open("wb")
        header = {"descr": np.dtype(DTYPE).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(self.stream, header)
        self.start = self.stream.tell()
        self.row_bytes = math.prod(shape[1:]) * np.dtype(DTYPE).itemsize
        # Its size at the end: other processes see at once what it will take.
        self.stream.truncate(self.start + shape[0] * self.row_bytes)

    def write(self, row: int, values: Tensor) -> None:
        """Write values from this row on."""
        self.stream.seek(self.start + row * self.row_bytes)
        self.stream.write(values.contiguous().numpy().data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.stream.flush()
            os.fsync(self.stream.fileno())
        self.stream.close()


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock; the kernel lets go when the process ends, however it ends.

    Raises:
        BlockingIOError: somebody else holds it, and we shall not wait.
    """
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            entry.say("another process computes the same activations: waiting for them")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _load(path: Path) -> NDArray[Any]:
    found = np.load(path, mmap_mode=None if path.stat().st_size < IN_MEMORY else "r", allow_pickle=False)
    # As a plain array: the class of memory-mapped ones makes every access slower.
    return np.asarray(found)


def _remove(folder: Path) -> None:
    """Take an entry away in one go, so that nobody reads half of it."""
    doomed = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    # Another process may do the same at this moment.
    with suppress(OSError):
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _whole(folder: Path) -> bool:
    return not folder.name.startswith(".")


def _last_use(folder: Path) -> int:
    try:
        return (folder / ENTRY).stat().st_mtime_ns
    except OSError:
        return 0


def _size(folder: Path) -> int:
    total = 0
    # Another process may remove it at this moment.
    with suppress(OSError):
        for path in folder.iterdir():
            total += path.stat().st_size
    return total


def _plain(tensor: Tensor) -> Tensor:
    """As it is stored."""
    return tensor.to("cpu", getattr(torch, DTYPE)).contiguous()


def _gib(size: int) -> str:
    return f"{size / GIB:.3g} GiB"
