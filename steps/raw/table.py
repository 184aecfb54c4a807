"""A CSV, JSONL or Parquet table: one row a sample."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steps.errors import DataError
from steps.params import TableData
from steps.raw import SPLIT_NAMES, RawData, RawSample, decode, few, present
from steps.raw.jsonl import objects

# Where each row was found, and its cells by column: of the whole table, or of the columns we use.
Found = list[tuple[str, dict[str, Any]]]
Rows = list[tuple[str, dict[str, str | None]]]
# The keys of `data` that name columns.
COLUMNS = ("label", "labels", "target", "text", "pair", "image", "id", "split", "group")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read(data: TableData) -> RawData:
    """Read the rows; images are only located.

    Raises:
        DataError: a column is missing, the table cannot be read, or an image is missing or outside.
    """
    root = present(Path(data.path))
    path = present(root / data.table) if data.table else root
    if not path.is_file():
        raise DataError(f"{path} is a folder; `source: table` needs a CSV, TSV, JSONL or Parquet file")
    columns, rows = _read(path, data.encoding)
    if not rows:
        raise DataError(f"{path} holds no rows")
    named = {name: getattr(data, name) for name in COLUMNS}
    wanted = {name: column for name, column in named.items() if column is not None}
    _check_columns(path, columns, wanted)
    picked = [
        (where, {name: _cell(cells.get(column), where, column) for name, column in wanted.items()})
        for where, cells in rows
    ]
    _check_rows(path, picked, wanted)
    images = _images(root, picked) if data.image else None
    return RawData(_samples(picked, images, data))


def _samples(rows: Rows, images: list[Path] | None, data: TableData) -> Iterator[RawSample]:
    own_id = data.id is not None
    for index, (where, cells) in enumerate(rows):
        split = (cells.get("split") or "").strip().lower()
        label, target = _predicted(cells, data)
        yield RawSample(
            where,
            cells.get("text") if images is None else images[index],
            label,
            id=cells["id"] if own_id else cells.get("image"),
            own_id=own_id,
            split=SPLIT_NAMES[split] if split else None,
            group=cells.get("group"),
            pair=cells.get("pair"),
            target=target,
        )


def _predicted(cells: dict[str, str | None], data: TableData) -> tuple[str | None, Any]:
    """The class, or what splits are stratified by with the target: a list of labels, or a text."""
    if data.labels is not None:
        found = sorted({one.strip() for one in (cells["labels"] or "").split(data.separator) if one.strip()})
        return found[0] if found else "none", found
    if data.target is not None:
        return "text", cells["target"]
    return cells["label"], None


def _check_columns(path: Path, columns: list[str], wanted: dict[str, str]) -> None:
    mistakes = []
    for name, column in wanted.items():
        if column not in columns:
            close = difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            mistakes.append(f"column {column!r}, named by `{name}:`{hint}")
    if mistakes:
        raise DataError(f"{path} has no {' and no '.join(mistakes)}; it has {', '.join(map(repr, columns))}")


def _check_rows(path: Path, rows: Rows, wanted: dict[str, str]) -> None:
    """Cells we cannot do without; labels and texts are judged by validate."""
    for name in ("id", "image"):
        empty = [where for where, cells in rows if name in wanted and not (cells[name] or "").strip()]
        if empty:
            raise DataError(f"{path}: column {wanted[name]!r} is empty in {few(empty)}; every row needs one")
    if "split" in wanted:
        unknown = [
            f"{cells['split']!r} in {where}"
            for where, cells in rows
            if (cells["split"] or "").strip() and (cells["split"] or "").strip().lower() not in SPLIT_NAMES
        ]
        if unknown:
            raise DataError(
                f"{path}: column {wanted['split']!r} must hold train, validation or test, "
                f"holds {few(unknown)}"
            )


def _images(root: Path, rows: Rows) -> list[Path]:
    """The file of each row, below `root`."""
    home = root.resolve()
    found, missing = [], []
    for where, cells in rows:
        name = str(cells["image"])
        windows = PureWindowsPath(name)
        outside = PurePosixPath(name).is_absolute() or windows.drive or windows.root or "\0" in name
        path = root / name.replace("\0", "")
        if outside or ".." in windows.parts or not path.resolve().is_relative_to(home):
            raise DataError(f"{where}: image {name!r} leaves {root}; paths must be relative and stay in it")
        if not path.is_file():
            missing.append(f"{name!r} of {where}")
        found.append(path)
    if missing:
        raise DataError(f"{root} lacks images that the table names: {few(missing)}")
    return found


def _read(path: Path, encoding: str) -> tuple[list[str], Found]:
    suffix = path.suffix.lower()
    if suffix in _SEPARATORS:
        return _read_csv(path, encoding, _SEPARATORS[suffix])
    if suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(path, encoding)
    if suffix in (".parquet", ".pq"):
        return _read_parquet(path)
    raise DataError(f"{path}: a table must end in .csv, .tsv, .jsonl or .parquet")


def _read_csv(path: Path, encoding: str, separator: str) -> tuple[list[str], Found]:
    """An empty cell is null; anything else, `NA` among it, is text."""
    text = decode(path.read_bytes(), encoding, str(path))
    # The default is 128 KiB, less than a long article.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: Found = []
    try:
        header = next(reader, [])
        if len(set(header)) != len(header):
            raise DataError(f"{path}: the header names a column twice: {', '.join(header)}")
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                raise DataError(f"{path}:{line}: the row has {len(cells)} cells, the header {len(header)}")
            if cells:
                row = {name: cell or None for name, cell in zip(header, cells, strict=True)}
                rows.append((f"{path.name}:{line}", row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: is no valid CSV: {error}") from None
    return header, rows


def _read_jsonl(path: Path, encoding: str) -> tuple[list[str], Found]:
    rows = [*objects(path, encoding)]
    columns = {name: None for _, row in rows for name in row}
    return list(columns), rows


def _read_parquet(path: Path) -> tuple[list[str], Found]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no valid Parquet: {' '.join(str(error).split())[:200]}") from None
    return table.column_names, [
        (f"{path.name}:{number}", row) for number, row in enumerate(table.to_pylist(), start=1)
    ]


def _cell(value: Any, where: str, column: str) -> str | None:  # noqa: ANN401 - any JSON or Parquet value
    """The cell as text; None where there is nothing."""
    if value is None or value != value:  # not-a-number is the null of a column of numbers
        return None
    if isinstance(value, list | dict | bytes):
        raise DataError(f"{where}: column {column!r} holds a {type(value).__name__}, no text or number")
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: column {column!r} holds half a character (a lone surrogate)") from None
    return text
