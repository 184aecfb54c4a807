from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steps import artifacts, inputs, outputs, predict
from steps.errors import UnreadableError, UserError
from steps.inputs import Columns, Input
from steps.params import IngestSettings, PackageData, TableData

IMAGES, TEXTS = (Columns((name,), (name,), "utf-8") for name in ("image", "text"))
ROWS = [
    {"input": "a b", "label": "farm", "probability": 0.75, "probabilities": {"farm": 0.75, "moon": 0.25}},
    {"input": "ü", "label": "moon", "probability": 1.0, "probabilities": {"farm": 0.0, "moon": 1.0}},
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_files_folders_and_texts_are_gathered() -> None:
    Path("pictures/deep").mkdir(parents=True)
    for name in ("pictures/b.png", "pictures/deep/a.png", "pictures/.DS_Store", "c.png"):
        Path(name).write_bytes(b"x")
    found = inputs.gather(["c.png", "pictures"], IMAGES)
    assert [one.name for one in found] == ["c.png", "pictures/b.png", "pictures/deep/a.png"]
    assert all(isinstance(one.contents[0], Path) for one in found)
    Path("note.txt").write_text("from a file", "utf-8")
    assert inputs.gather(["note.txt", "plain words"], TEXTS) == [
        Input("note.txt", ("from a file",)),
        Input("plain words", ("plain words",)),
    ]
    assert inputs.gather(["w" * 5000], TEXTS)[0].contents == ("w" * 5000,)


def test_a_missing_file_is_named_and_never_taken_for_a_text() -> None:
    with pytest.raises(UserError, match=r"no file 'a\.png', 'b\.png'"):
        inputs.gather(["a.png", "b.png"], IMAGES)
    with pytest.raises(UserError, match=r"no file 'mistyped\.txt'"):
        inputs.gather(["mistyped.txt"], TEXTS)
    Path("empty").mkdir()
    with pytest.raises(UserError, match="'empty' holds no files"):
        inputs.gather(["empty"], IMAGES)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_rows_of_a_table_are_gathered(suffix: str) -> None:
    frame = pd.DataFrame({"text": ["first", "NA", "3"], "other": [1, 2, 3]})
    path = Path(f"table{suffix}")
    if suffix == ".parquet":
        frame.to_parquet(path)
    elif suffix == ".jsonl":
        frame.to_json(path, lines=True, orient="records")
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    assert [one.contents for one in inputs.gather([str(path)], TEXTS)] == [("first",), ("NA",), ("3",)]


def test_images_of_a_table_lie_beside_it() -> None:
    Path("there").mkdir()
    Path("there/table.csv").write_text("image\nx/1.png\n")
    assert inputs.gather(["there/table.csv"], IMAGES) == [Input("x/1.png", (Path("there/x/1.png"),))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("body\nhello\n", r"table\.csv has no column 'text'; it has body"),
        ("text,other\n ,1\nb,2\n", r"column 'text' is empty in row 1"),
        ('text\n"open', r"table\.csv cannot be read as a table"),
    ],
)
def test_a_table_that_does_not_fit_is_told(text: str, message: str) -> None:
    Path("table.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        inputs.gather(["table.csv"], TEXTS)


def test_a_text_file_in_another_encoding_is_told() -> None:
    Path("note.txt").write_bytes("für".encode("latin-1"))
    with pytest.raises(UserError, match=r"note\.txt is not utf-8 text"):
        inputs.gather(["note.txt"], TEXTS)
    assert inputs.gather(["note.txt"], Columns(("text",), ("text",), "latin-1"))[0].contents == ("für",)


def test_inputs_are_read_as_the_experiment_reads_its_data() -> None:
    assert inputs.columns_of("topics", "text-classification") == TEXTS
    table = TableData(source="table", path="t.csv", label="l", text="body", encoding="latin-1")
    path = artifacts.settings_file("topics", "ingest")
    settings = IngestSettings(task="text-classification", data=table)
    artifacts.write_json(path, settings.model_dump(mode="json"))
    assert inputs.columns_of("topics", "text-classification") == Columns(("text",), ("body",), "latin-1")
    package = PackageData(source="package", dataset="bbc-news", path="requirements.lock")
    settings = IngestSettings(task="text-classification", data=package)
    artifacts.write_json(path, settings.model_dump(mode="json"))
    assert inputs.columns_of("topics", "text-classification") == TEXTS


class _Model:
    """Says `farm` to everything it can read, and remembers how much it was asked at a time."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        self.asked.append(len(frame))
        bad = {row: "is odd" for row, text in enumerate(frame["text"]) if text.startswith("bad")}
        if bad:
            raise UnreadableError(bad, len(frame))
        return pd.DataFrame(
            [{"label": "farm", "probability": 1.0, "probabilities": {"farm": 1.0}}] * len(frame)
        )


def test_many_inputs_are_predicted_chunk_by_chunk_in_their_order() -> None:
    model: Any = _Model()
    asked = [Input(f"n{at}", (f"t{at}",)) for at in range(predict.CHUNK + 3)]
    rows = predict.ask(model, asked, ("text",))
    assert model.asked == [predict.CHUNK, 3]
    assert [row["input"] for row in rows] == [one.name for one in asked]


def test_every_input_that_cannot_be_read_is_named() -> None:
    model: Any = _Model()
    asked = [
        Input(f"n{at}", ("bad" if at in (1, predict.CHUNK + 1) else "good",))
        for at in range(predict.CHUNK + 2)
    ]
    with pytest.raises(UserError) as told:
        predict.ask(model, asked, ("text",))
    assert (
        str(told.value)
        == f"2 of {len(asked)} inputs cannot be read: n1: is odd; n{predict.CHUNK + 1}: is odd"
    )


def test_rows_are_written_for_machines_and_for_people() -> None:
    assert [json.loads(line) for line in outputs.as_lines(ROWS).splitlines()] == ROWS
    table = list(csv.DictReader(io.StringIO(outputs.as_csv(ROWS))))
    assert table[0] == {
        "input": "a b",
        "label": "farm",
        "probability": "0.75",
        "probability_farm": "0.75",
        "probability_moon": "0.25",
    }
    assert outputs.as_words(ROWS) == "a b  farm  0.750\nü    moon  1.000\n"
    assert outputs.as_csv([]) == outputs.as_lines([]) == outputs.as_words([]) == ""


def test_two_texts_come_from_a_table() -> None:
    two = Columns(("text", "pair"), ("question", "passage"), "utf-8")
    Path("table.csv").write_text("question,passage\nwho?,Ann did.\n")
    assert inputs.gather(["table.csv"], two) == [Input("who?", ("who?", "Ann did."))]
    with pytest.raises(UserError, match="the model takes text and pair: give a table with the columns"):
        inputs.gather(["who?"], two)


def test_what_a_task_without_classes_says_is_written_too() -> None:
    rows = [{"input": "a.png", "boxes": [[1.0, 2.0, 3.0, 4.0]], "labels": ["ship"], "scores": [0.5]}]
    assert list(csv.DictReader(io.StringIO(outputs.as_csv(rows)))) == [
        {"input": "a.png", "boxes": "[[1.0, 2.0, 3.0, 4.0]]", "labels": '["ship"]', "scores": "[0.5]"}
    ]
    assert outputs.as_words(rows) == (
        "a.png  boxes [[1.000, 2.000, 3.000, 4.000]]  labels [ship]  scores [0.500]\n"
    )
    assert "characters)" in outputs.as_words([{"input": "a.png", "mask": "A" * 500}])


def test_no_champion_yet_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["predict", "topics", "--", "-words"])
    assert predict.main() == 2
    told = capsys.readouterr().err
    assert told.startswith("error: experiment 'topics' has no champion")
    assert "`headstart run topics`" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["topics"], ["topics", "--colour", "x"]])
def test_a_wrong_call_is_told_in_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["predict", *arguments])
    assert predict.main() == 2
    told = capsys.readouterr().err
    assert "usage: python -m steps.predict" in told
    assert told.count("\n") == 1
