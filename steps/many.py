"""Many inputs, read a few at a time: the files of a folder, the rows of a table, texts.

Nothing is refused here. What cannot be read is an input with a reason, so that one bad row does not stop the
other hundred thousand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pandas as pd

from steps import artifacts
from steps.errors import UserError
from steps.inputs import TABLES, Columns, exists, is_table

# Rows of a table in memory at a time.
BLOCK = 1024


@dataclass(frozen=True)
class Asked:
    """One input of many.

    Attributes:
        row: its number among all of them, from 1.
        name: a path, or the table and the row in it.
        contents: as the model's columns.
        reason: why it cannot be read; then there are no contents.
    """

    row: int
    name: str
    contents: tuple[Path | str, ...]
    reason: str | None = None


class Many:
    """All that the user named.

    Args:
        names: folders, files, tables, or (for a text model) texts.
        columns: how the experiment reads its data.

    Raises:
        UserError: a file is missing, a folder is empty, or a table lacks a column.
    """

    def __init__(self, names: Sequence[str], columns: Columns) -> None:
        self.names, self.columns = names, columns
        self._images = columns.inputs == ("image",)
        # Looked up once: a file that comes later must not shift the numbers of those behind it.
        self._listed: dict[str, list[Path]] = {}
        for name in names:
            self._check(name)

    def __iter__(self) -> Iterator[Asked]:
        row = 0
        for name in self.names:
            for told, contents, reason in self._of(name):
                row += 1
                yield Asked(row, told, contents, reason)

    def __len__(self) -> int:
        """How many there are; a table is read once for it."""
        return sum(self._count(name) for name in self.names)

    def chunks(self, size: int) -> Iterator[list[Asked]]:
        """All of them in their order, so many at a time."""
        found = iter(self)
        while chunk := list(islice(found, size)):
            yield chunk

    def identity(self) -> str:
        """Tells these inputs from others: by names, sizes and times of writing."""
        digest = hashlib.sha256(repr(self.columns).encode())
        for name in self.names:
            for path in self._files(name) if exists(name) else ():
                stat = path.stat()
                digest.update(
                    f"{path}\0{stat.st_size} {stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
                )
            digest.update(f"{name}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def _check(self, name: str) -> None:
        if not exists(name):
            if self._images or (len(name.split()) == 1 and name.endswith((".txt", *TABLES))):
                raise UserError(f"there is no file {name!r}")
            if len(self.columns.inputs) > 1:
                raise UserError(self._needs_table())
        elif is_table(name):
            names = _column_names(Path(name), self.columns.encoding)
            for column in self.columns.table:
                if column not in names:
                    raise UserError(f"{name} has no column {column!r}; it has {', '.join(names)}")
        elif len(self.columns.inputs) > 1:
            raise UserError(self._needs_table())
        elif not self._files(name):
            raise UserError(f"the folder {name!r} holds no files")

    def _needs_table(self) -> str:
        return (
            f"the model takes {' and '.join(self.columns.inputs)}: give a table with the columns "
            f"{', '.join(map(repr, self.columns.table))}"
        )

    def _files(self, name: str) -> list[Path]:
        if name not in self._listed:
            path = Path(name)
            self._listed[name] = artifacts.files_below(path, hidden=False) if path.is_dir() else [path]
        return self._listed[name]

    def _count(self, name: str) -> int:
        if exists(name) and is_table(name):
            return _rows_of(Path(name), self.columns)
        return len(self._files(name)) if exists(name) else 1

    def _of(self, name: str) -> Iterator[tuple[str, tuple[Path | str, ...], str | None]]:
        if not exists(name):
            yield "text", (name,), None
        elif is_table(name):
            yield from self._of_table(Path(name))
        else:
            for path in self._files(name):
                yield self._of_file(path)

    def _of_file(self, path: Path) -> tuple[str, tuple[Path | str, ...], str | None]:
        if self._images:
            return str(path), (path,), None
        try:
            return str(path), (path.read_text(self.columns.encoding),), None
        except UnicodeDecodeError as error:
            where = f"{error.reason} at byte {error.start}"
            return str(path), (), f"is not {self.columns.encoding} text ({where})"
        except OSError as error:
            return str(path), (), f"cannot be read: {error.strerror}"

    def _of_table(self, path: Path) -> Iterator[tuple[str, tuple[Path | str, ...], str | None]]:
        number = 0
        for frame in _blocks(path, self.columns.table, self.columns.encoding):
            cells = zip(*(frame[name] for name in self.columns.table), strict=True)
            for values in cells:
                number += 1
                texts = ["" if pd.isna(value) else str(value) for value in values]
                empty = [
                    name for name, text in zip(self.columns.table, texts, strict=True) if not text.strip()
                ]
                name = f"{path}:{number}"
                if empty:
                    yield name, (), f"column {empty[0]!r} is empty"
                elif self._images:
                    yield name, (path.parent / texts[0],), None
                else:
                    yield name, tuple(texts), None


def _column_names(path: Path, encoding: str) -> list[str]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with _named(path), closing(pq.ParquetFile(path)) as file:
            return [str(name) for name in file.schema_arrow.names]
    with _named(path):
        first = next(iter(_text_blocks(path, None, encoding)), pd.DataFrame())
        return [str(name) for name in first.columns]


def _rows_of(path: Path, columns: Columns) -> int:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with _named(path), closing(pq.ParquetFile(path)) as file:
            return int(file.metadata.num_rows)
    return sum(len(frame) for frame in _blocks(path, columns.table[:1], columns.encoding))


def _blocks(path: Path, names: Sequence[str], encoding: str) -> Iterator[pd.DataFrame]:
    """Columns of a table, some rows at a time."""
    with _named(path):
        if path.suffix != ".parquet":
            yield from _text_blocks(path, list(names), encoding)
            return
        import pyarrow.parquet as pq

        with closing(pq.ParquetFile(path)) as file:
            for batch in file.iter_batches(BLOCK, columns=list(dict.fromkeys(names))):
                yield batch.to_pandas()


def _text_blocks(path: Path, names: list[str] | None, encoding: str) -> Iterator[pd.DataFrame]:
    if path.suffix == ".jsonl":
        lines = pd.read_json(
            path, lines=True, encoding=encoding, dtype=False, convert_dates=False, chunksize=BLOCK
        )
        with lines as reader:
            for frame in reader:
                yield frame if names is None else frame.reindex(columns=list(dict.fromkeys(names)))
        return
    separator = "\t" if path.suffix == ".tsv" else ","
    table = pd.read_csv(
        path, dtype=str, keep_default_na=False, encoding=encoding, sep=separator, usecols=names,
        chunksize=BLOCK,
    )  # fmt: skip
    with table as reader:
        yield from reader


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the table in errors of pandas and pyarrow, which are ValueErrors."""
    try:
        yield
    except (ValueError, OSError) as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as a table: {told}") from None
