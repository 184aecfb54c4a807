"""predict: ask an experiment's champion about files, texts, a folder or a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from steps import artifacts, entry, inputs, outputs
from steps.errors import UnreadableError, UserError
from steps.inputs import Input
from steps.tracking import addresses, registry, store
from steps.tracking.registry import Loaded

# Predicted at a time, so that memory does not grow with the folder; a multiple of the loop's batch.
CHUNK = 256
ADVICE = "predictions need its model registry: start it, or correct MLFLOW_TRACKING_URI"


def predict(experiment: str, names: Sequence[str], as_json: bool = False, out: Path | None = None) -> None:
    """Print or write label and probability of every input.

    Single files and texts give a line each; a folder or a table gives a CSV.

    Args:
        experiment: whose champion predicts.
        names: files, folders, tables, or (for a text model) texts.
        as_json: give one JSON object a line.
        out: the file to write, instead of printing.

    Raises:
        UserError: there is no champion, or inputs are missing or cannot be read; each is named.
        TrackingError: MLflow does not answer.
    """
    database = addresses.database_of(addresses.address())
    if database is not None and not database.exists():
        raise _no_champion(experiment)
    with store.opened(ADVICE) as opened:
        champion = registry.champion(opened, registry.name_of(experiment))
        if champion is None:
            raise _no_champion(experiment)
        columns = inputs.columns_of(experiment, champion.tags["headstart.task"])
        found = inputs.gather(names, columns)
        model = registry.load(champion)
    rows = ask(model, found, columns.inputs)
    tables = (
        name for name in names if inputs.exists(name) and (Path(name).is_dir() or inputs.is_table(name))
    )
    many = out is not None or any(tables)
    write = outputs.as_lines if as_json else outputs.as_csv if many else outputs.as_words
    if out is None:
        sys.stdout.write(write(rows))
        return
    with artifacts.new_file(out) as partial:
        partial.write_text(write(rows), "utf-8")
    count = "1 prediction" if len(rows) == 1 else f"{len(rows)} predictions"
    entry.say(f"{count} by version {champion.number} of {champion.model} in {out}")


def _no_champion(experiment: str) -> UserError:
    return UserError(
        f"experiment {experiment!r} has no champion in {addresses.shown(addresses.address())}: "
        f"run `headstart run {experiment}` first; `headstart results` lists what was run"
    )


def ask(model: Loaded, asked: list[Input], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Predict all inputs, a chunk at a time.

    Returns:
        A row each: the input, and what the model says: of a classifier label, probability, and the
        probability of every class.

    Raises:
        UserError: names the inputs that cannot be read; nothing is predicted for the others then.
    """
    rows: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    for at in range(0, len(asked), CHUNK):
        chunk = asked[at : at + CHUNK]
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
        raise UserError(f"{len(unreadable)} of {len(asked)} inputs cannot be read: {first}{more}")
    return rows


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
