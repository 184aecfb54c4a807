"""Questions on paragraphs as SQuAD has them: version 1.1, or 2.0 where some have no answer.

Sources: Rajpurkar et al., SQuAD, 2016; Rajpurkar, Jia and Liang, Know What You Don't Know, 2018.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps.errors import DataError
from steps.layouts import SquadData
from steps.raw import RawData, RawSample, decode, present

ANSWERABLE, UNANSWERABLE = "answerable", "unanswerable"


def read(data: SquadData) -> RawData:
    """The questions in their order; whether an answer stands where it is said to is judged by validate.

    Raises:
        DataError: a file is missing, is no JSON, or has another shape than SQuAD's.
    """
    path = present(Path(data.path))
    if data.files is None:
        if not path.is_file():
            raise DataError(f"{path} is a folder; name the JSON file of each split under `files:` in `data`")
        return RawData(iter([*_questions(path, None)]))
    if not path.is_dir():
        raise DataError(f"{path} is a file; `files:` names files below a folder, so leave it out")
    found: list[RawSample] = []
    for split, name in data.files.items():
        file = present(path / name)
        if not file.resolve().is_relative_to(path.resolve()):
            raise DataError(f"{file} is a link that leaves {path}; put the file there")
        found += _questions(file, split)
    return RawData(iter(found))


def _questions(path: Path, split: str | None) -> Iterator[RawSample]:
    try:
        whole = json.loads(decode(path.read_bytes(), "utf-8", str(path)))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is no valid JSON: {error}") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, no JSON file") from None
    empty = True
    for article, here in _items(whole, "data", path.name):
        for paragraph, place in _items(article, "paragraphs", here):
            context = _text(paragraph, "context", place)
            for asked, where in _items(paragraph, "qas", place):
                empty = False
                yield _sample(asked, context, split, where)
    if empty:
        raise DataError(f"{path} holds no question")


def _sample(asked: dict[str, Any], context: str, split: str | None, where: str) -> RawSample:
    name = asked.get("id")
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
        raise DataError(f"{where}: `id` is no text")
    target = _target(asked, where)
    return RawSample(
        where,
        _text(asked, "question", where),
        UNANSWERABLE if target is not None and not target["answers"] else ANSWERABLE,
        id=None if name is None else str(name),
        own_id=name is not None,
        split=split,
        # All questions on a paragraph stay together, so that no paragraph is on two sides.
        group=hashlib.sha256(" ".join(context.split()).encode("utf-8")).hexdigest()[:16],
        pair=context,
        target=target,
    )


def _target(asked: dict[str, Any], where: str) -> dict[str, Any] | None:
    """The answers, each once; None where there should be one and is none. Plausible ones are no answers."""
    impossible = asked.get("is_impossible", False)
    if not isinstance(impossible, bool):
        raise DataError(f"{where}: `is_impossible` must be true or false")
    answers: dict[tuple[int, str], None] = {}
    for answer, place in _items(asked, "answers", where) if asked.get("answers") is not None else ():
        start = answer.get("answer_start")
        if type(start) is not int:
            raise DataError(f"{place}: `answer_start` is no whole number")
        answers[start, _text(answer, "text", place)] = None
    if not answers and not impossible:
        return None
    found: dict[str, Any] = {"answers": [list(answer) for answer in answers]}
    # What contradicts itself is told to validate.
    return found | {"impossible": True} if answers and impossible else found


def _items(holder: Any, key: str, where: str) -> Iterator[tuple[dict[str, Any], str]]:  # noqa: ANN401 - any JSON
    """The objects of a list, each with its place in the file."""
    found = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{where} has no list `{key}`, which SQuAD has there")
    for number, one in enumerate(found):
        place = f"{where}: {key}[{number}]" if ": " not in where else f"{where}.{key}[{number}]"
        if not isinstance(one, dict):
            raise DataError(f"{place} is no JSON object")
        yield one, place


def _text(holder: dict[str, Any], key: str, where: str) -> str:
    value = holder.get(key)
    if not isinstance(value, str):
        raise DataError(f"{where} has no text `{key}`")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: `{key}` holds half a character (a lone surrogate)") from None
    return value
