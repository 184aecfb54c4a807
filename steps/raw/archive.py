"""Zip and tar files from anywhere: nothing in them is trusted."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from steps.errors import DataError

CHUNK = 1 << 20
# A tar file spends at least a header on every entry; what it may spend beside the contents.
TAR_OVERHEAD = 4096
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_NO_FILE = "{}: entry {!r} is a link or a device; only files and folders are allowed"
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile,
    NotImplementedError, RuntimeError,
)  # fmt: skip


def unpack(path: Path, target: Path, max_bytes: int, max_files: int) -> None:
    """Unpack a zip or tar file (gzip, bzip2 or xz) into a new folder.

    Sizes are counted while unpacking; what the headers promise is never believed.

    Raises:
        DataError: an entry leaves the folder, is a link or a device, or comes twice; the limits are
            exceeded; or the file is no archive we read.
    """
    if not path.is_file():
        raise DataError(f"{path} is a folder; `source: archive` needs a zip or tar file (or use `folder`)")
    target.mkdir()
    bytes_left, files_left = max_bytes, max_files
    try:
        for name, is_folder, stream in _entries(path, max_bytes, max_files):
            files_left -= 1
            if files_left < 0:
                raise DataError(f"{path} holds more than {max_files} entries, the limit `max_files`")
            place = target / _inside(name, path)
            if is_folder:
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            bytes_left -= _copy(stream, place, bytes_left, f"{path}: {name}", max_bytes)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise DataError(f"{path} holds two entries of one name: {error.filename}") from None
    except _BROKEN as error:
        raise DataError(f"{path} cannot be unpacked: {' '.join(str(error).split())}") from None


def top(unpacked: Path) -> Path:
    """The folder that holds the class folders: archives often wrap everything into one folder more."""
    entries = [entry for entry in unpacked.iterdir() if entry.name != "__MACOSX"]
    if len(entries) == 1 and entries[0].is_dir():
        inner = [entry for entry in entries[0].iterdir() if not entry.name.startswith(".")]
        if any(entry.is_dir() for entry in inner):
            return entries[0]
    return unpacked


def _entries(path: Path, max_bytes: int, max_files: int) -> Iterator[tuple[str, bool, IO[bytes]]]:
    """Name, whether it is a folder, and contents of each entry."""
    with path.open("rb") as raw:
        start = raw.read(2)
    if start == b"PK":
        yield from _zip_entries(path)
    else:
        opener = _OPENERS.get(start, open)
        with opener(path, "rb") as plain:  # type: ignore[operator]  # the openers differ in their overloads
            yield from _tar_entries(path, _Counted(plain, max_bytes + TAR_OVERHEAD * (max_files + 1), path))


def _zip_entries(path: Path) -> Iterator[tuple[str, bool, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(_NO_FILE.format(path, info.filename))
            if info.flag_bits & 1:
                raise DataError(f"{path}: entry {info.filename!r} is encrypted; unpack it yourself")
            with archive.open(info) as stream:
                yield info.filename, info.is_dir(), stream


def _tar_entries(path: Path, stream: _Counted) -> Iterator[tuple[str, bool, IO[bytes]]]:
    with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]  # it only reads
        for member in archive:
            if not (member.isreg() or member.isdir()):
                raise DataError(_NO_FILE.format(path, member.name))
            contents = archive.extractfile(member) if member.isreg() else io.BytesIO()
            assert contents is not None
            yield member.name, member.isdir(), contents


def _inside(name: str, path: Path) -> PurePosixPath:
    """The entry's path below the folder."""
    inside = PurePosixPath(name)
    windows = PureWindowsPath(name)
    leaves = inside.is_absolute() or windows.drive or windows.root or ".." in (*inside.parts, *windows.parts)
    if leaves or "\0" in name:
        raise DataError(f"{path}: entry {name!r} would leave the folder; the archive is hostile or broken")
    return inside


def _copy(stream: IO[bytes], place: Path, room: int, name: str, limit: int) -> int:
    """Copy at most `room` bytes; how many it were."""
    written = 0
    with place.open("xb") as target:
        while chunk := stream.read(CHUNK):
            written += len(chunk)
            if written > room:
                raise DataError(
                    f"{name}: the archive unpacks to more than {limit} bytes, the limit `max_bytes`; "
                    "raise it if you trust the archive"
                )
            target.write(chunk)
    return written


class _Counted:
    """A stream that refuses to give more than so many bytes: a tar file hides bulk in its headers too."""

    def __init__(self, stream: IO[bytes], limit: int, path: Path) -> None:
        self.stream, self.left, self.path = stream, limit, path

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes."""
        chunk = self.stream.read(size)
        self.left -= len(chunk)
        if self.left < 0:
            raise DataError(f"{self.path} unpacks to more than the limit `max_bytes` allows")
        return chunk
