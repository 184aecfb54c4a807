"""predict: ask an experiment's champion about files, texts, a folder or a table."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from steps import artifacts, entry, params
from steps.errors import UnreadableError, UserError
from steps.kinds import KINDS
from steps.params import IngestSettings, TableData
from steps.tracking import registry, store
from steps.tracking.registry import Loaded

# Predicted at a time, so that memory does not grow with the folder; a multiple of the loop's batch.
CHUNK = 256
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
ADVICE = "predictions need its model registry: start it, or correct MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class Input:
    """One thing to predict.

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


def predict(experiment: str, inputs: Sequence[str], as_json: bool = False, out: Path | None = None) -> None:
    """Print or write label and probability of every input.

    Single files and texts give a line each; a folder or a table gives a CSV.

    Args:
        experiment: whose champion predicts.
        inputs: files, folders, tables, or (for a text model) texts.
        as_json: give one JSON object a line.
        out: the file to write, instead of printing.

    Raises:
        UserError: there is no champion, or inputs are missing or cannot be read; each is named.
        TrackingError: MLflow does not answer.
    """
    database = store.database_of(store.address())
    if database is not None and not database.exists():
        raise _no_champion(experiment)
    with store.opened(ADVICE) as opened:
        champion = registry.champion(opened, registry.name_of(experiment))
        if champion is None:
            raise _no_champion(experiment)
        columns = columns_of(experiment, champion.tags["headstart.task"])
        found = gather(inputs, columns)
        model = registry.load(champion)
    rows = ask(model, found, columns.inputs)
    many = out is not None or any(Path(name).is_dir() or _is_table(name) for name in inputs if _exists(name))
    write = as_lines if as_json else as_csv if many else as_words
    if out is None:
        sys.stdout.write(write(rows))
        return
    with artifacts.new_file(out) as partial:
        partial.write_text(write(rows), "utf-8")
    count = "1 prediction" if len(rows) == 1 else f"{len(rows)} predictions"
    entry.say(f"{count} by version {champion.number} of {champion.model} in {out}")


def _no_champion(experiment: str) -> UserError:
    return UserError(
        f"experiment {experiment!r} has no champion in {store.shown(store.address())}: "
        f"run `headstart run {experiment}` first; `headstart results` lists what was run"
    )


# ------------------------------------------------------------------------------------------------- the inputs


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
    missing = [name for name in names if not _exists(name) and (images or _looks_like_file(name))]
    if missing:
        raise UserError(f"there is no file {', '.join(map(repr, missing))}")
    if len(columns.inputs) > 1 and not all(_is_table(name) for name in names):
        raise UserError(
            f"the model takes {' and '.join(columns.inputs)}: give a table with the columns "
            f"{', '.join(map(repr, columns.table))}"
        )
    return [one for name in names for one in _gather_one(name, columns)]


def _gather_one(name: str, columns: Columns) -> list[Input]:
    if not _exists(name):
        return [Input(name, (name,))]
    path = Path(name)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file, path))
        if not files:
            raise UserError(f"the folder {name!r} holds no files")
        return [_file(file, columns) for file in files]
    return _rows(path, columns) if _is_table(name) else [_file(path, columns)]


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
    frame = _read_table(path, columns.encoding)
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


def _read_table(path: Path, encoding: str) -> pd.DataFrame:
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix == ".jsonl":
            return pd.read_json(path, lines=True, encoding=encoding, dtype=False, convert_dates=False)
        separator = "\t" if path.suffix == ".tsv" else ","
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding=encoding, sep=separator)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's errors are ValueErrors
        raise UserError(f"{path} cannot be read as a table: {' '.join(str(error).split())[:200]}") from None


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # a long text is no file name
        return False


def _looks_like_file(name: str) -> bool:
    return name.endswith((".txt", *TABLES)) and len(name.split()) == 1


def _is_table(name: str) -> bool:
    return Path(name).suffix in TABLES and Path(name).is_file()


def _hidden(file: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(below).parts)


# -------------------------------------------------------------------------------------------- the predictions


def ask(model: Loaded, inputs: list[Input], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Predict all inputs, a chunk at a time.

    Returns:
        A row each: the input, and what the model says: of a classifier label, probability, and the
        probability of every class.

    Raises:
        UserError: names the inputs that cannot be read; nothing is predicted for the others then.
    """
    rows: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    for at in range(0, len(inputs), CHUNK):
        chunk = inputs[at : at + CHUNK]
        frame = pd.DataFrame(
            {
                name: pd.Series([one.contents[at] for one in chunk], dtype=object)
                for at, name in enumerate(columns)
            }
        )
        try:
            said = model.predict(frame)
        except UnreadableError as error:
            unreadable |= {chunk[row].name: reason for row, reason in error.reasons.items()}
            continue
        rows += [
            {"input": one.name, **{str(key): value for key, value in row.items()}}
            for one, row in zip(chunk, said.to_dict(orient="records"), strict=True)
        ]
    if unreadable:
        first = "; ".join(f"{name[:80]}: {reason}" for name, reason in list(unreadable.items())[:5])
        more = "; ..." if len(unreadable) > 5 else ""
        raise UserError(f"{len(unreadable)} of {len(inputs)} inputs cannot be read: {first}{more}")
    return rows


def as_lines(rows: list[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows: list[dict[str, Any]]) -> str:
    """A table; a value for each class has a column for each, lists are JSON."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    flat = [dict(_flat(row)) for row in rows]
    writer.writerow(list(flat[0]))
    writer.writerows(list(row.values()) for row in flat)
    return text.getvalue()


def _flat(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The cells of a row."""
    for name, value in row.items():
        if name == "probabilities":
            yield from ((f"probability_{label}", share) for label, share in value.items())
        elif isinstance(value, dict | list):
            yield name, json.dumps(value, ensure_ascii=False)
        else:
            yield name, value


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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"{message}; usage: python -m steps.predict <experiment> [--json] [--out FILE] INPUT..."
        )


def _main() -> None:
    parser = _Parser(prog="python -m steps.predict")
    parser.add_argument("experiment")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("inputs", nargs="+")
    given = parser.parse_args()
    predict(given.experiment, given.inputs, as_json=given.json, out=given.out)


def main() -> int:
    """Run `python -m steps.predict <experiment> [--json] [--out FILE] INPUT...`."""
    return entry.guarded(_main)


if __name__ == "__main__":
    sys.exit(main())
