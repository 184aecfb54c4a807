"""What a model said, written for machines and for people.

A row is a dictionary: the input, and the columns of `kinds.Kind.outputs`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any


def as_lines(rows: list[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows: list[dict[str, Any]]) -> str:
    """A table; a value for each class has a column for each, lists are JSON."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    cells = [dict(flat(row)) for row in rows]
    writer.writerow(list(cells[0]))
    writer.writerows(list(row.values()) for row in cells)
    return text.getvalue()


def flat(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The cells of a row: a value for each class has one each, lists are JSON."""
    for name, value in row.items():
        if name == "probabilities":
            yield from ((f"probability_{label}", share) for label, share in value.items())
        elif isinstance(value, dict | list):
            yield name, json.dumps(value, ensure_ascii=False)
        else:
            yield name, value


def as_json(said: Mapping[Any, Any]) -> str:
    """One answer as JSON."""
    plain = {str(name): value for name, value in said.items()}
    return json.dumps(plain, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:  # noqa: ANN401 - numpy's numbers and arrays
    return value.tolist()


def as_words(rows: list[dict[str, Any]]) -> str:
    """A line each, for people."""
    short = [" ".join(row["input"].split()) for row in rows]
    short = [name if len(name) <= 60 else f"{name[:57]}..." for name in short]
    width = max(map(len, short), default=0)
    return "".join(f"{name:<{width}}  {_in_words(row)}\n" for name, row in zip(short, rows, strict=True))


def _in_words(row: dict[str, Any]) -> str:
    if "probability" in row:
        return f"{row['label']}  {row['probability']:.3f}"
    said = {name: value for name, value in row.items() if name != "input"}
    return "  ".join(f"{name} {_brief(value)}" for name, value in said.items())


def _brief(value: Any) -> str:  # noqa: ANN401 - any JSON value
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return f"[{', '.join(map(_brief, value))}]"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_brief(one)}" for name, one in value.items())
    # A picture in base64 is nothing to read.
    return str(value) if len(str(value)) <= 200 else f"{str(value)[:40]}... ({len(str(value))} characters)"
