"""Decoded images, kept: in memory while they fit, else in a memory-mapped file that later runs read too.

All arrays are of shape (images, side, side, channels): uint8 and three channels, unless a `Form` says else.
This room knows no image formats: it is given a function that decodes the image at a place.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from steps import entry
from steps.artifacts import new_file
from steps.errors import DataError, UserError

# Outside of DVC's care: it saves time and never changes a result.
FOLDER = Path(".headstart/cache/pixels")
# Of the files; another number, and older ones are not read any more.
FORMAT = 1
GIB = 2**30

Rows = NDArray[Any]
# The image at a place, shape (side, side, channels).
Decode = Callable[[int], Rows]


@dataclass(frozen=True)
class Form:
    """What a pixel is: how many channels, each of which type."""

    channels: int = 3
    dtype: type[np.uint8] | type[np.float32] = np.uint8


BYTES = Form()


@dataclass(frozen=True)
class Store:
    """Where files of decoded images lie, and how many bytes all of them together may take."""

    folder: Path
    limit_bytes: int


class Pixels(Protocol):
    """Decoded images that can be taken in any order."""

    def rows(self, indices: Sequence[int]) -> Rows:
        """A copy of the images at these places, shape (len(indices), side, side, channels)."""
        ...


def bytes_of(images: int, side: int, form: Form = BYTES) -> int:
    """What so many decoded images take."""
    return images * side * side * form.channels * np.dtype(form.dtype).itemsize


class InMemory:
    """Images decoded when first asked for; the first ones, as many as fit, are kept, the others are not.

    Args:
        decode: gives the image at a place.
        images: how many there are.
        side: height and width of each.
        memory_bytes: how much may be kept.
        form: of a pixel.
    """

    def __init__(self, decode: Decode, images: int, side: int, memory_bytes: int, form: Form = BYTES) -> None:
        room = min(images, memory_bytes // bytes_of(1, side, form))
        self.decode = decode
        # Memory is taken page by page as images arrive, not here.
        self.kept = np.empty((room, side, side, form.channels), dtype=form.dtype)
        self.done = np.zeros(room, dtype=bool)

    def rows(self, indices: Sequence[int]) -> Rows:
        """A copy of the images at these places, shape (len(indices), side, side, channels)."""
        if max(indices) >= len(self.kept):
            return np.stack([self._one(index) for index in indices])
        places = np.asarray(indices)
        for index in places[~self.done[places]].tolist():
            self._one(index)
        found: Rows = self.kept[places]
        return found

    def _one(self, index: int) -> Rows:
        if index >= len(self.kept):
            return self.decode(index)
        if not self.done[index]:
            self.kept[index] = self.decode(index)
            self.done[index] = True
        kept: Rows = self.kept[index]
        return kept


class OnDisk:
    """Images decoded all at once into a file when the first is asked for, unless an earlier run has done so.

    The file appears whole or not at all: it is written beside its place, brought to the disk and renamed.
    A run that finds another at this work waits for it and reads what it made. Where room is needed, the files
    which no run has open make way, the longest unused first.

    Args:
        decode: gives the image at a place.
        files: where each image comes from. Path, size, times and inode stand for the content, as git and DVC
            have it. An edit is seen even where the time of writing was put back, for that of the inode cannot
            be; reading every file to see that it is the same would cost much of what the store is to save.
        side: height and width of each.
        recipe: names the way of decoding; another recipe is another file.
        store: where to, and how much.
        form: of a pixel.

    Raises:
        UserError: the images take more than the store may.
    """

    def __init__(
        self,
        decode: Decode,
        files: Sequence[Path],
        side: int,
        recipe: str,
        store: Store,
        form: Form = BYTES,
    ) -> None:
        self.decode, self.files, self.side, self.recipe, self.store = decode, files, side, recipe, store
        self.shape, self.dtype = (len(files), side, side, form.channels), np.dtype(form.dtype)
        self.bytes = bytes_of(len(files), side, form)
        if self.bytes > store.limit_bytes:
            raise self._too_large(others=0)

    def rows(self, indices: Sequence[int]) -> Rows:
        """A copy of the images at these places, shape (len(indices), side, side, channels).

        Raises:
            UserError: there is no room for the file.
            DataError: an image cannot be read.
        """
        found: Rows = self.array[np.asarray(indices)]
        return found

    @cached_property
    def path(self) -> Path:
        """Where the file is, named by all that determines it."""
        key = hashlib.sha256(f"{FORMAT} {self.side} {self.recipe}\n".encode())
        for file in self.files:
            key.update(f"{file}\0{_identity(file)}\n".encode("utf-8", "surrogateescape"))
        return self.store.folder / f"{key.hexdigest()[:32]}.npy"

    @cached_property
    def array(self) -> Rows:
        """The images, memory-mapped."""
        found = self._read()
        if found is not None:
            return found
        with _alone(self.store.folder):
            found = self._read()
            if found is None:
                self._make_room()
                self._write()
                found = self._read()
        assert found is not None, self.path
        return found

    def _read(self) -> Rows | None:
        """The file's array, or None where there is no such file or it is damaged."""
        try:
            stream = self.path.open("rb")
            array = np.lib.format.open_memmap(self.path, mode="r")
        except (FileNotFoundError, ValueError):  # ValueError: too short for its header, or no array at all
            return None
        if array.shape != self.shape or array.dtype != self.dtype:
            return None
        # A file that is in use does not make way for another; the lock ends with this object.
        fcntl.flock(stream, fcntl.LOCK_SH)
        self.in_use = stream
        os.utime(self.path)
        return np.asarray(array)

    def _write(self) -> None:
        with (
            new_file(self.path) as partial,
            partial.open("wb") as stream,
            entry.Progress("decode images", len(self.files)) as progress,
        ):
            # Written, not mapped: a full disk is then an error to catch, and no SIGBUS.
            header = {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for index in range(len(self.files)):
                stream.write(np.ascontiguousarray(self.decode(index)).data)
                progress.reached(index + 1)
            stream.flush()
            os.fsync(stream.fileno())

    def _make_room(self) -> None:
        """Remove what killed runs left behind, what is damaged, then what has not been used for longest."""
        self.path.unlink(missing_ok=True)
        for partial in self.store.folder.glob(".*.partial-*"):
            partial.unlink()
        files = sorted(self.store.folder.glob("*.npy"), key=lambda file: file.stat().st_mtime_ns)
        others = sum(file.stat().st_size for file in files)
        for file in files:
            if others + self.bytes <= self.store.limit_bytes:
                return
            size = file.stat().st_size
            if _idle(file):
                file.unlink()
                others -= size
        if others + self.bytes > self.store.limit_bytes:
            raise self._too_large(others)

    def _too_large(self, others: int) -> UserError:
        beside = f" beside {others / GIB:.3g} GiB that are in use" if others else ""
        return UserError(
            f"{len(self.files)} decoded images of {self.side} pixels take {self.bytes / GIB:.3g} GiB"
            f"{beside}; `machine.cache_gib` allows {self.store.limit_bytes / GIB:.3g}: raise it, or "
            "`machine.image_memory_gib`; lower `model.image_size`; or set `machine.cache: false` to decode "
            "them anew every epoch"
        )


def _identity(file: Path) -> str:
    try:
        stat = file.stat()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One run at a time writes and removes files."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            entry.say("another run is decoding images: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _idle(file: Path) -> bool:
    """No run reads this file."""
    with file.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
