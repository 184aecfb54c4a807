from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steps.errors import DataError
from steps.layouts import SquadData
from steps.raw import RawSample
from steps.raw.squad import read

CONTEXT = "Ada was born in London in 1815."
LONDON = {"text": "London", "answer_start": 16}


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(name: str = "q1", **more: Any) -> dict[str, Any]:
    return {"id": name, "question": "Where?", "answers": [LONDON], **more}


def file(*questions: dict[str, Any], name: str = "t.json", context: Any = CONTEXT) -> str:
    whole = {
        "version": "v2.0",
        "data": [{"title": "Ada", "paragraphs": [{"context": context, "qas": questions}]}],
    }
    Path(name).write_text(json.dumps(whole), "utf-8")
    return name


def taken(*questions: dict[str, Any]) -> list[RawSample]:
    return list(read(SquadData(source="squad", path=file(*questions))).samples)


def test_questions_of_both_versions() -> None:
    first, second, third = taken(
        asked(answers=[LONDON, {"text": "in London", "answer_start": 13}, LONDON]),
        asked("q2", is_impossible=True, answers=[], plausible_answers=[LONDON]),
        asked("q3", is_impossible=False),
    )
    assert (first.content, first.pair, first.id, first.own_id) == ("Where?", CONTEXT, "q1", True)
    assert first.target == {"answers": [[16, "London"], [13, "in London"]]}
    assert second.target == {"answers": []}
    assert [one.label for one in (first, second, third)] == ["answerable", "unanswerable", "answerable"]
    assert first.source == "t.json: data[0].paragraphs[0].qas[0]"
    assert first.group == second.group == third.group


def test_a_paragraph_has_one_group_wherever_it_stands_and_no_other_has_it() -> None:
    def group(context: str) -> str | None:
        found = read(SquadData(source="squad", path=file(asked(), context=context)))
        return next(found.samples).group

    assert group(CONTEXT) == group(f" {CONTEXT}  ") != group("Other.")


def test_what_validate_can_judge_comes_in() -> None:
    misplaced, none_told, both, empty = taken(
        asked(answers=[{"text": "Paris", "answer_start": 99}]),
        asked("q2", answers=[]),
        asked("q3", is_impossible=True),
        asked("q4", question=""),
    )
    assert misplaced.target == {"answers": [[99, "Paris"]]}
    assert none_told.target is None
    assert both.target == {"answers": [[16, "London"]], "impossible": True}
    assert empty.content == ""


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ({"id": "a"}, "t.json: data[0].paragraphs[0].qas[0] has no text `question`"),
        (asked(answers={}), "qas[0] has no list `answers`"),
        (asked(answers=["London"]), "qas[0].answers[0] is no JSON object"),
        (asked(answers=[{"text": "London"}]), "answers[0]: `answer_start` is no whole number"),
        (asked(answers=[{"text": None, "answer_start": 1}]), "answers[0] has no text `text`"),
        (asked(is_impossible="no"), "`is_impossible` must be true or false"),
        (asked(id=[1]), "`id` is no text"),
        (asked(question="\ud800"), "half a character"),
    ],
)
def test_questions_that_cannot_be_used_are_named(question: Any, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        taken(question)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "t.json is no valid JSON"),
        ("[]", "t.json has no list `data`"),
        ('{"data": [{"paragraphs": {}}]}', "t.json: data[0] has no list `paragraphs`"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', "paragraphs[0] has no text `context`"),
        ('{"data": []}', "t.json holds no question"),
    ],
)
def test_files_that_cannot_be_used(text: str, expected: str) -> None:
    Path("t.json").write_text(text)
    with pytest.raises(DataError) as caught:
        read(SquadData(source="squad", path="t.json"))
    assert expected in str(caught.value)


def test_a_file_for_each_split(tmp_path: Path) -> None:
    Path("raw").mkdir()
    file(asked(), name="raw/train-v2.0.json"), file(asked("q2"), name="raw/dev-v2.0.json")
    files: Any = {"train": "train-v2.0.json", "validation": "dev-v2.0.json"}
    found = list(read(SquadData(source="squad", path="raw", files=files)).samples)
    assert [(one.id, one.split) for one in found] == [("q1", "train"), ("q2", "validation")]
    with pytest.raises(DataError, match="name the JSON file of each split under `files:`"):
        read(SquadData(source="squad", path="raw"))
    with pytest.raises(DataError, match="`files:` names files below a folder"):
        read(SquadData(source="squad", path="raw/dev-v2.0.json", files=files))
    with pytest.raises(DataError, match=r"raw/test\.json is missing"):
        read(SquadData(source="squad", path="raw", files={"test": "test.json"}))
    (tmp_path / "secret.json").write_text("{}")
    Path("raw/test.json").symlink_to("../secret.json")
    with pytest.raises(DataError, match="is a link that leaves raw"):
        read(SquadData(source="squad", path="raw", files={"test": "test.json"}))
