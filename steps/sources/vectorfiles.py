"""Files of word vectors, entry by entry: the text of GloVe, word2vec's text and binary, fastText's `.vec`."""

from __future__ import annotations

import gzip
import io
import string
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steps.errors import WeightsError

# Bytes that can be looked at before they are read.
Stream = io.BufferedReader
Format = Literal["auto", "glove", "word2vec", "fasttext"]
# A line or a word longer than this, in bytes, is of no file of word vectors.
LONGEST_LINE, LONGEST_WORD = 1 << 20, 4096
# Bytes read at once; the beginning of a file, which tells its kind, is within the first of them.
BUFFER = 1 << 20
# What numbers written as text are made of, and more; the bytes of float32 numbers are not.
_PRINTABLE = frozenset(string.printable.encode())
_MAGIC = {
    b"PK\x03\x04": "is a zip archive: unpack it, and give the file inside as `path:`",
    b"\xba\x16\x4f\x2f": "is a model of fastText (.bin): take the vectors in text form, the .vec file",
}


@dataclass(frozen=True)
class Entry:
    """One word and its vector.

    Attributes:
        word: as it is in the file.
        vector: float32, all numbers finite.
        place: where it is in the file, for messages.
    """

    word: str
    vector: NDArray[np.float32]
    place: str


def entries(path: Path, kind: Format = "auto") -> Iterator[Entry]:
    """The entries of a file in their order, which is by frequency; a .gz file is unpacked on the way.

    Whoever stops before the end has not checked what comes after.

    Args:
        path: the file.
        kind: of file; "auto" finds out: a first line of two numbers is a header, as word2vec and fastText
            write it.

    Raises:
        WeightsError: the file is malformed; the message names the line, or the offset in bytes.
    """
    with _opened(path) as stream:
        first = stream.peek(BUFFER)
        _refuse_others(first, path)
        header = None if kind == "glove" else _header(first, path)
        if header is None:
            if kind in ("word2vec", "fasttext"):
                raise WeightsError(
                    f"{path.name}: line 1 is no header of two numbers, as {kind} writes it; "
                    "without one it may be `format: glove`"
                )
            yield from _of_lines(stream, path, 1, None, None)
            return
        count, dim, length = header
        stream.read(length)
        if kind != "fasttext" and _is_binary(first[length:], dim):
            yield from _of_bytes(stream, path, length, count, dim)
        else:
            yield from _of_lines(stream, path, 2, count, dim)


@contextmanager
def _opened(path: Path) -> Iterator[Stream]:
    try:
        file: Any = io.FileIO(path)
        with io.BufferedReader(file, BUFFER) as raw:
            if raw.peek(2)[:2] != b"\x1f\x8b":
                yield raw
                return
            unpacked: Any = gzip.GzipFile(fileobj=raw)
            with io.BufferedReader(unpacked, BUFFER) as stream:
                yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise WeightsError(f"{path.name}: the archive is broken: {error}; download it again") from None


def _refuse_others(first: bytes, path: Path) -> None:
    if not first.strip():
        raise WeightsError(f"{path.name}: is empty")
    for magic, reason in _MAGIC.items():
        if first.startswith(magic):
            raise WeightsError(f"{path.name}: {reason}")


def _header(first: bytes, path: Path) -> tuple[int, int, int] | None:
    """How many words of what dimension a header tells of, and its length in bytes; None for no header."""
    line, end, _ = first.partition(b"\n")
    fields = line.split()
    if len(fields) != 2 or not all(field.isdigit() for field in fields):
        return None
    count, dim = int(fields[0]), int(fields[1])
    if count < 1 or dim < 1:
        raise WeightsError(f"{path.name}: line 1 tells of {count} words with {dim} numbers each")
    return count, dim, len(line) + len(end)


def _is_binary(rest: bytes, dim: int) -> bool:
    """What stands behind the first word, where its vector would be, is not written as text."""
    return not set(rest.partition(b" ")[2][: 4 * dim]) <= _PRINTABLE


# ------------------------------------------------------------------------------------------------------ text


def _of_lines(stream: Stream, path: Path, start: int, count: int | None, dim: int | None) -> Iterator[Entry]:
    """A word and its numbers on each line.

    Args:
        stream: at the first entry.
        path: of the file, for messages.
        start: the number of that line.
        count: of words, as the header tells.
        dim: of a vector, as the header tells.
    """
    said = "the header says" if dim is not None else "line 1 has"
    number = start - 1
    while raw := stream.readline(LONGEST_LINE):
        number += 1
        place = f"{path.name}: line {number}"
        if len(raw) == LONGEST_LINE:
            raise WeightsError(f"{place} is longer than {LONGEST_LINE:,} bytes: this is no file of vectors")
        word, numbers = _split(_decoded(raw, place), dim, place, said)
        dim = len(numbers)
        if count is not None and number - start + 1 > count:
            raise WeightsError(f"{place}: the header tells of {count:,} words, and here is one more")
        yield Entry(word, _vector(numbers, place), place)
    if count is not None and number - start + 1 < count:
        raise WeightsError(
            f"{path.name}: ends after {number - start + 1:,} words, the header tells of {count:,}; "
            "download it again"
        )


def _decoded(raw: bytes, place: str) -> str:
    try:
        return raw.rstrip(b" \t\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        raise WeightsError(
            f"{place} is not UTF-8: byte 0x{raw[error.start]:02x} at its place {error.start + 1}"
        ) from None


def _split(line: str, dim: int | None, place: str, said: str) -> tuple[str, list[str]]:
    """A word and its numbers; words may have blanks, as a few of GloVe's do."""
    word, *numbers = line.split(" ")
    if dim is not None and len(numbers) > dim:
        *words, last = (word, *numbers[:-dim])
        if not _is_number(last):
            word, numbers = " ".join((*words, last)), numbers[-dim:]
    if not numbers:
        raise WeightsError(f"{place} has no numbers behind its word")
    if dim is not None and len(numbers) != dim:
        raise WeightsError(f"{place} has {len(numbers)} numbers, {said} {dim}")
    if not word:
        raise WeightsError(f"{place} has no word before its numbers")
    return word, numbers


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _vector(numbers: list[str], place: str) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is told
            vector = np.array(numbers, dtype=np.float32)
    except ValueError:
        wrong = next(text for text in numbers if not _is_number(text))
        raise WeightsError(f"{place}: {wrong[:40]!r} is no number") from None
    return _finite(vector, place)


def _finite(vector: NDArray[np.float32], place: str) -> NDArray[np.float32]:
    if not np.isfinite(vector).all():
        at = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise WeightsError(f"{place}: number {at + 1} is {vector[at]}, not a finite number")
    return vector


# ---------------------------------------------------------------------------------------------------- binary


def _of_bytes(stream: Stream, path: Path, offset: int, count: int, dim: int) -> Iterator[Entry]:
    """A word, a blank, and float32 numbers of the lower byte first, as word2vec writes them.

    Args:
        stream: at the first entry.
        path: of the file, for messages.
        offset: of that place, in bytes.
        count: of words, as the header tells.
        dim: of a vector, as the header tells.
    """
    for index in range(count):
        place = f"{path.name}: word {index + 1:,} of {count:,}, at byte {offset:,}"
        raw = _until_blank(stream, place)
        content = stream.read(4 * dim)
        if len(content) < 4 * dim:
            raise WeightsError(
                f"{place}: the file ends within its vector of {dim} numbers; download it again"
            )
        offset += len(raw) + 1 + len(content)
        try:
            word = raw.lstrip(b"\n").decode("utf-8")
        except UnicodeDecodeError:
            raise WeightsError(f"{place}: the word is not UTF-8") from None
        if not word:
            raise WeightsError(f"{place}: there is no word before its vector")
        yield Entry(word, _finite(np.frombuffer(content, dtype="<f4").astype(np.float32), place), place)
    if stream.read(64).strip():
        raise WeightsError(
            f"{path.name}: the header tells of {count:,} words with {dim} numbers each, "
            f"but there is more from byte {offset:,} on"
        )


def _until_blank(stream: Stream, place: str) -> bytes:
    word = bytearray()
    while (one := stream.read(1)) != b" ":
        if not one:
            raise WeightsError(f"{place}: the file ends where a word should be; download it again")
        word += one
        if len(word) > LONGEST_WORD:
            raise WeightsError(f"{place}: no word ends here: the numbers are not as many as the header says")
    return bytes(word)
