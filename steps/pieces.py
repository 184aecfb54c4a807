"""Pieces of a large prediction: a few hundred inputs each, answered in this process or by a cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from steps import entry, outputs
from steps.errors import UnreadableError
from steps.kinds import KINDS, Kind
from steps.many import Asked
from steps.tracking import registry
from steps.tracking.registry import Loaded


@dataclass(frozen=True)
class Piece:
    """What became of some inputs.

    Attributes:
        rows: what was said, in the order of the inputs.
        rejected: number, name and reason of those that cannot be read.
    """

    rows: list[dict[str, Any]]
    rejected: list[dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """What a worker of a cluster is given.

    Attributes:
        here: the working directory that paths are meant from, seen by all machines.
        model: the folder with the model's files, from there.
        task: the model's.
        version: for the rows.
        pieces: the inputs of each.
    """

    here: Path
    model: Path
    task: str
    version: str
    pieces: tuple[list[Asked], ...]


def answerer(work: Work) -> Callable[[list[int]], list[Piece]]:
    """What a worker does, a process of its own: the pieces at some places."""
    os.chdir(work.here)
    entry.keep_freed_memory()
    loaded = registry.load_folder(work.model)

    def compute(places: list[int]) -> list[Piece]:
        return [answered(loaded, work.pieces[place], KINDS[work.task], work.version) for place in places]

    return compute


def answered(loaded: Loaded, asked: Sequence[Asked], kind: Kind, version: str = "") -> Piece:
    """Predict some inputs; those that cannot be read do not stop the others.

    Args:
        loaded: the model.
        asked: at most a few hundred; they are in memory together.
        kind: of the model's task.
        version: for the rows.
    """
    reasons = {one.row: one.reason for one in asked if one.reason is not None}
    left = [one for one in asked if one.reason is None]
    while left:
        try:
            said = loaded.predict(_frame(left, kind))
            break
        except UnreadableError as error:
            reasons |= {left[place].row: _reason(left[place], told) for place, told in error.reasons.items()}
            left = [one for one in left if one.row not in reasons]
    answers = said.to_dict(orient="records") if left else []
    rows = [_row(one, answer, kind, version) for one, answer in zip(left, answers, strict=True)]
    rejected = [
        {"row": one.row, "input": _shown(one.name), "reason": _shown(reasons[one.row])}
        for one in asked
        if one.row in reasons
    ]
    return Piece(rows, rejected)


def _frame(asked: list[Asked], kind: Kind) -> pd.DataFrame:
    columns = zip(kind.columns, zip(*(one.contents for one in asked), strict=True), strict=True)
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns})


def _reason(one: Asked, told: str) -> str:
    """Why, without the name once more."""
    return told.removeprefix(f"{one.contents[0]}: ")


def _shown(value: Path | str) -> str:
    """As text that can be written: a file's name may be no UTF-8."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _row(one: Asked, answer: dict[Any, Any], kind: Kind, version: str) -> dict[str, Any]:
    """As a server records it, and what was said in columns beside: `headstart monitor` reads both alike."""
    said = outputs.as_json(answer)
    contents = dict(zip(kind.columns, map(_shown, one.contents), strict=True))
    return {
        "row": one.row, "input": _shown(one.name), **contents, **json.loads(said),
        "version": version, "said": said,
    }  # fmt: skip
