"""What a user hands over beside the experiment's own data: files, texts, a folder, or a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from steps import artifacts, params
from steps.errors import UserError
from steps.kinds import KINDS
from steps.params import IngestSettings, TableData

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Input:
    """One thing to look at.

    Attributes:
        name: what the user calls it: a path, the text itself, or a row of a table.
        contents: an image's file, or a text; two texts where the task takes two.
    """

    name: str
    contents: tuple[Path | str, ...]


@dataclass(frozen=True)
class Columns:
    """How the experiment reads its own data; inputs are read alike.

    Attributes:
        inputs: the model's: `image`, `text`, or `text` and `pair`.
        table: the columns of a table that hold them.
        encoding: of texts and tables.
    """

    inputs: tuple[str, ...]
    table: tuple[str, ...]
    encoding: str


def columns_of(experiment: str, task: str) -> Columns:
    """How to read inputs, after the experiment's own settings where they are at hand."""
    inputs, path = KINDS[task].columns, artifacts.settings_file(experiment, "ingest")
    if not path.exists():
        return Columns(inputs, inputs, "utf-8")
    data = params.read_settings(IngestSettings, path).data
    table = tuple((getattr(data, one) if isinstance(data, TableData) else None) or one for one in inputs)
    return Columns(inputs, table, getattr(data, "encoding", "utf-8"))


def gather(names: Sequence[str], columns: Columns) -> list[Input]:
    """Every input the user named.

    Raises:
        UserError: a file is missing or empty of inputs; names every one that is missing.
    """
    images = columns.inputs == ("image",)
    missing = [name for name in names if not exists(name) and (images or _looks_like_file(name))]
    if missing:
        raise UserError(f"there is no file {', '.join(map(repr, missing))}")
    if len(columns.inputs) > 1 and not all(is_table(name) for name in names):
        raise UserError(
            f"the model takes {' and '.join(columns.inputs)}: give a table with the columns "
            f"{', '.join(map(repr, columns.table))}"
        )
    return [one for name in names for one in _gather_one(name, columns)]


def read_table(path: Path, encoding: str) -> pd.DataFrame:
    """A table of any of the kinds in `TABLES`.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix == ".jsonl":
            return pd.read_json(path, lines=True, encoding=encoding, dtype=False, convert_dates=False)
        separator = "\t" if path.suffix == ".tsv" else ","
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding=encoding, sep=separator)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's errors are ValueErrors
        raise UserError(f"{path} cannot be read as a table: {' '.join(str(error).split())[:200]}") from None


def exists(name: str) -> bool:
    """Whether there is a file or folder of this name; a long text is no file name."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False


def is_table(name: str) -> bool:
    """Whether this is a file that holds a table."""
    return Path(name).suffix in TABLES and Path(name).is_file()


def _gather_one(name: str, columns: Columns) -> list[Input]:
    if not exists(name):
        return [Input(name, (name,))]
    path = Path(name)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file, path))
        if not files:
            raise UserError(f"the folder {name!r} holds no files")
        return [_file(file, columns) for file in files]
    return _rows(path, columns) if is_table(name) else [_file(path, columns)]


def _file(path: Path, columns: Columns) -> Input:
    if columns.inputs == ("image",):
        return Input(str(path), (path,))
    try:
        return Input(str(path), (path.read_text(columns.encoding),))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not {columns.encoding} text ({error.reason} at byte {error.start})"
        ) from None


def _rows(path: Path, columns: Columns) -> list[Input]:
    """The rows of a table; images are found beside the table."""
    frame = read_table(path, columns.encoding)
    table = [_column(path, frame, name) for name in columns.table]
    if columns.inputs == ("image",):
        return [Input(value, (path.parent / value,)) for value in table[0]]
    return [Input(row[0], row) for row in zip(*table, strict=True)]


def _column(path: Path, frame: pd.DataFrame, name: str) -> list[str]:
    if name not in frame.columns:
        raise UserError(f"{path} has no column {name!r}; it has {', '.join(map(str, frame.columns))}")
    values = ["" if pd.isna(value) else str(value) for value in frame[name]]
    empty = [str(number) for number, value in enumerate(values, start=1) if not value.strip()]
    if empty:
        raise UserError(f"{path}: column {name!r} is empty in row {', '.join(empty[:5])}")
    return values


def _looks_like_file(name: str) -> bool:
    return name.endswith((".txt", *TABLES)) and len(name.split()) == 1


def _hidden(file: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(below).parts)
