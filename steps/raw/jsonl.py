"""Texts with spans, one JSON object a line, as tools for labelling write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps.errors import DataError
from steps.layouts import JsonlData
from steps.raw import SPLIT_NAMES, RawData, RawSample, decode, present
from steps.settings import suggest


def read(data: JsonlData) -> RawData:
    """The texts of a file; whether their spans can be used is judged by validate.

    Raises:
        DataError: a line is no JSON object of the shape that is told, or no line has a key that is named.
    """
    path = present(Path(data.path))
    if not path.is_file():
        raise DataError(f"{path} is a folder; `source: jsonl` needs a file, one JSON object a line")
    rows = [*objects(path, data.encoding)]
    if not rows:
        raise DataError(f"{path} holds no rows")
    keys = sorted({key for _, row in rows for key in row})
    for name in ("text", "spans", "id", "split", "group"):
        wanted = getattr(data, name)
        if wanted is not None and wanted not in keys:
            raise DataError(f"{path} has no key {wanted!r}, named by `{name}:`{suggest(wanted, keys)}")
    return RawData(iter([_sample(where, row, data) for where, row in rows]))


def objects(path: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file and where each stands; empty lines hold none.

    Raises:
        DataError: a line is no JSON object.
    """
    for number, line in enumerate(decode(path.read_bytes(), encoding, str(path)).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is no valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise DataError(f"{where} is no JSON object, but {type(value).__name__}")
        yield where, value


def _sample(where: str, row: dict[str, Any], data: JsonlData) -> RawSample:
    spans = _spans(row.get(data.spans), where, data.spans)
    labels = sorted(label for _, _, label in spans or ())
    return RawSample(
        where,
        _text(row.get(data.text), where, data.text),
        labels[0] if labels else "none",
        id=_id(row, where, data.id),
        own_id=data.id is not None,
        split=_split(row, where, data.split),
        group=None if data.group is None else _cell(row.get(data.group), where, data.group),
        target=None if spans is None else {"spans": [list(span) for span in spans]},
    )


def _spans(value: Any, where: str, key: str) -> list[tuple[int, int, str]] | None:  # noqa: ANN401 - any JSON value
    """The spans in the order of the text; None where there is nothing, not even an empty list."""
    if value is None:
        return None
    if not isinstance(value, list):
        raise DataError(f"{where}: {key!r} must be a list of [start, end, label], is {type(value).__name__}")
    return sorted({_span(one, where, key) for one in value})


def _span(value: Any, where: str, key: str) -> tuple[int, int, str]:  # noqa: ANN401 - any JSON value
    """[start, end, label], or an object with these keys."""
    parts = [value.get(name) for name in ("start", "end", "label")] if isinstance(value, dict) else value
    match parts:
        # True is no place in a text, though Python counts it as 1.
        case [int(start), int(end), str(label)] if not {type(start), type(end)} - {int}:
            return start, end, _whole(label, where, key)
    told = json.dumps(value, ensure_ascii=False)[:60]
    raise DataError(f"{where}: {key!r} holds {told}, which is no [start, end, label]")


def _text(value: Any, where: str, key: str) -> str | None:  # noqa: ANN401 - any JSON value
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {key!r} holds a {type(value).__name__}, no text")
    return None if value is None else _whole(value, where, key)


def _cell(value: Any, where: str, key: str) -> str | None:  # noqa: ANN401 - any JSON value
    """A name: a text or a whole number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{where}: {key!r} holds a {type(value).__name__}, no text or whole number")
    return _whole(str(value), where, key)


def _id(row: dict[str, Any], where: str, key: str | None) -> str | None:
    if key is None:
        return None
    name = _cell(row.get(key), where, key)
    if not (name or "").strip():
        raise DataError(f"{where}: {key!r}, named by `id:`, is empty; every line needs one")
    return name


def _split(row: dict[str, Any], where: str, key: str | None) -> str | None:
    name = None if key is None else (_cell(row.get(key), where, key) or "").strip().lower()
    if not name:
        return None
    if name not in SPLIT_NAMES:
        raise DataError(f"{where}: {key!r} must hold train, validation or test, holds {name!r}")
    return SPLIT_NAMES[name]


def _whole(text: str, where: str, key: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: {key!r} holds half a character (a lone surrogate)") from None
    return text
