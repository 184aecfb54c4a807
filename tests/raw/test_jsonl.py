from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steps.errors import DataError
from steps.layouts import JsonlData
from steps.raw import RawSample
from steps.raw.jsonl import read

ROW = {"text": "Ada met Bo.", "spans": [[8, 10, "PER"], [0, 3, "PER"]]}


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def taken(*rows: Any, **more: Any) -> list[RawSample]:
    Path("t.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", "utf-8")
    return list(read(JsonlData(source="jsonl", path="t.jsonl", **more)).samples)


def refused(*rows: Any, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        taken(*rows, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_texts_with_spans_in_order() -> None:
    one, other = taken(ROW, {"text": "Nothing", "spans": []})
    assert (one.content, one.label, one.source) == ("Ada met Bo.", "PER", "t.jsonl:1")
    assert one.target == {"spans": [[0, 3, "PER"], [8, 10, "PER"]]}
    assert (other.label, other.target) == ("none", {"spans": []})


def test_spans_may_be_objects_and_keys_may_have_names_of_their_own() -> None:
    row = {
        "id": 7, "data": "Ada", "entities": [{"start": 0, "end": 3, "label": "PER", "score": 1}],
        "fold": "DEV", "doc": "d1",
    }  # fmt: skip
    (one,) = taken(row, text="data", spans="entities", id="id", split="fold", group="doc")
    assert one.target == {"spans": [[0, 3, "PER"]]}
    assert (one.id, one.own_id, one.split, one.group) == ("7", True, "validation", "d1")


def test_what_validate_can_judge_comes_in() -> None:
    found = taken(
        {"text": "short", "spans": [[3, 99, "X"], [-1, 2, "X"]]},
        {"text": None, "spans": [[0, 2, ""]]},
        {"text": "no spans told"},
        {"text": "twice", "spans": [[0, 5, "X"], [0, 5, "X"]]},
    )
    assert found[0].target == {"spans": [[-1, 2, "X"], [3, 99, "X"]]}
    assert found[1].content is None
    assert found[2].target is None
    assert found[3].target == {"spans": [[0, 5, "X"]]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": 7, "spans": []}, "t.jsonl:1: 'text' holds a int, no text"),
        ({"text": "\ud800", "spans": []}, "half a character"),
        ({"text": "a", "spans": {}}, "'spans' must be a list of [start, end, label], is dict"),
        ({"text": "a", "spans": [[0, 1]]}, "holds [0, 1], which is no [start, end, label]"),
        ({"text": "a", "spans": [[0, 1.0, "X"]]}, "holds [0, 1.0, "),
        ({"text": "a", "spans": [[0, True, "X"]]}, "holds [0, true, "),
        ({"text": "a", "spans": [["0", 1, "X"]]}, 'holds ["0", 1, '),
        ({"text": "a", "spans": [{"start": 0, "label": "X"}]}, "which is no [start, end, label]"),
        ({"text": "a", "spans": [[0, 1, "\udc00"]]}, "half a character"),
        ([1], "t.jsonl:1 is no JSON object, but list"),
    ],
)
def test_lines_that_cannot_be_used_are_named(row: Any, expected: str) -> None:
    Path("t.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError) as caught:
        list(read(JsonlData(source="jsonl", path="t.jsonl")).samples)
    assert expected in str(caught.value)


def test_keys_ids_and_splits_that_cannot_be_used() -> None:
    assert "no key 'word', named by `text:`; did you mean 'words'?" in refused(
        {"words": "a", "spans": []}, text="word"
    )
    assert "'id', named by `id:`, is empty" in refused({**ROW, "id": 1}, {**ROW, "id": " "}, id="id")
    assert "t.jsonl:1: 'id' holds a list" in refused({**ROW, "id": []}, id="id")
    assert "must hold train, validation or test, holds 'mine'" in refused({**ROW, "s": "Mine"}, split="s")
    Path("t.jsonl").write_text('{"text": ')
    with pytest.raises(DataError, match=r"t\.jsonl:1 is no valid JSON"):
        read(JsonlData(source="jsonl", path="t.jsonl"))
    Path("t.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no rows"):
        read(JsonlData(source="jsonl", path="t.jsonl"))
    with pytest.raises(DataError, match="is a folder"):
        read(JsonlData(source="jsonl", path="."))
