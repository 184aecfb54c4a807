from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from steps import batch, pieces
from steps.errors import BusyError, UnreadableError, UserError
from steps.inputs import Columns
from steps.kinds import KINDS
from steps.many import Asked, Many
from steps.tracking import naming, registry, store
from steps.tracking.registry import Loaded, Version
from tests.tracking import made

ROOT = Path(__file__).resolve().parents[1]
TEXTS, IMAGES = (Columns((name,), (name,), "utf-8") for name in ("text", "image"))


class Fake:
    """Says how long each text is; cannot read those with `bad` in them."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.asked: list[int] = []

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        time.sleep(self.pause)
        self.asked.append(len(frame))
        bad = {row: "is bad" for row, text in enumerate(frame["text"]) if "bad" in text}
        if bad:
            raise UnreadableError(bad, len(frame))
        share = [1 / (1 + len(text)) for text in frame["text"]]
        return pd.DataFrame(
            {
                "label": ["long" if len(text) > 5 else "short" for text in frame["text"]],
                "probability": share,
                "probabilities": [{"long": 1 - one, "short": one} for one in share],
            }
        )


def stand_in(patch: pytest.MonkeyPatch, model: Any, champion: Callable[[], str] = lambda: "1") -> None:
    """A registry with a model that needs no training."""

    def version(opened: Any, name: str, number: str) -> Version:
        return Version(name, number, "", {"headstart.task": "text-classification"}, ())

    @contextmanager
    def opened(advice: str) -> Any:
        yield None

    patch.setattr(store, "opened", opened)
    patch.setattr(registry, "version", version)
    patch.setattr(registry, "champion", lambda opened, name: version(opened, name, champion()))
    patch.setattr(registry, "load", lambda version: Loaded(model))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(batch, "PIECE", 10)
    model = Fake()
    stand_in(monkeypatch, model)
    return model


def write_table(path: Path, rows: int = 95, bad: tuple[int, ...] = (3, 17, 18, 94)) -> None:
    texts = [f"{'bad ' if row in bad else ''}text {'x' * (row % 7)}" for row in range(rows)]
    pd.DataFrame({"text": texts}).to_csv(path, index=False)


# ------------------------------------------------------------------------------------------ what is predicted


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_rows_come_in_their_order_and_bad_ones_in_a_file_of_their_own(fake: Fake, suffix: str) -> None:
    write_table(Path("in.csv"))
    out = Path(f"out{suffix}")
    batch.batch("topics", ["in.csv"], out)
    frame = _read(out)
    assert list(frame["row"].astype(int)) == [row + 1 for row in range(95) if row not in (3, 17, 18, 94)]
    assert list(frame["text"][:2]) == ["text ", "text x"]
    assert list(frame["input"][:2]) == ["in.csv:1", "in.csv:2"]
    assert set(frame["version"].astype(str)) == {"1"}
    said = json.loads(frame["said"].iloc[0])
    assert said["label"] == frame["label"].iloc[0]
    assert said["probability"] == pytest.approx(float(frame["probability"].iloc[0]), abs=0)
    if suffix != ".jsonl":
        assert float(frame["probability_short"].iloc[0]) == said["probabilities"]["short"]
    with batch.rejected_file(out).open() as stream:
        rejected = list(csv.DictReader(stream))
    assert [(one["row"], one["reason"]) for one in rejected] == [
        ("4", "is bad"), ("18", "is bad"), ("19", "is bad"), ("95", "is bad"),
    ]  # fmt: skip
    assert sorted(path.name for path in Path().iterdir()) == ["in.csv", out.name, f"{out.name}.rejected.csv"]


def _read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".jsonl":
        return pd.DataFrame(json.loads(line) for line in path.read_text().splitlines())
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_a_parquet_table_has_its_types(fake: Fake) -> None:
    write_table(Path("in.csv"), rows=3, bad=())
    batch.batch("topics", ["in.csv"], Path("out.parquet"))
    types = {field.name: str(field.type) for field in pq.read_schema("out.parquet")}
    assert types == {
        "row": "int64", "input": "string", "text": "string", "label": "string", "probability": "double",
        "probability_long": "double", "probability_short": "double", "version": "string", "said": "string",
    }  # fmt: skip


def test_an_old_list_of_rejected_inputs_does_not_stay(fake: Fake) -> None:
    write_table(Path("in.csv"))
    batch.batch("topics", ["in.csv"], Path("out.csv"))
    write_table(Path("in.csv"), bad=())
    batch.batch("topics", ["in.csv"], Path("out.csv"))
    assert not batch.rejected_file(Path("out.csv")).exists()


def test_nothing_that_can_be_read_is_a_table_without_rows(fake: Fake) -> None:
    for suffix in batch.SUFFIXES:
        batch.batch("topics", ["bad", "bad bad"], Path(f"out{suffix}"))
        assert len(batch.rejected_file(Path(f"out{suffix}")).read_text().splitlines()) == 3
    assert Path("out.csv").read_text() == "row,input,text,version,said\n"
    assert pq.read_table("out.parquet").num_rows == 0


def test_what_is_wrong_with_the_call_is_told(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"ends with none of \.csv, \.jsonl, \.parquet"):
        batch.batch("topics", ["words"], Path("out.txt"))
    with pytest.raises(UserError, match=r"no file 'in\.csv'"):
        batch.batch("topics", ["in.csv"], Path("out.csv"))
    monkeypatch.setattr(registry, "champion", lambda opened, name: None)
    with pytest.raises(UserError, match="has no champion"):
        batch.batch("topics", ["words"], Path("out.csv"))
    assert list(Path().iterdir()) == []


# -------------------------------------------------------------------------------------------------- stopped


def test_what_failed_in_the_middle_goes_on_where_it_was(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(Path("in.csv"))
    batch.batch("topics", ["in.csv"], Path("whole.csv"))
    whole = len(fake.asked)
    working = fake.predict

    def failing(frame: pd.DataFrame) -> pd.DataFrame:
        if len(fake.asked) > whole + 5:
            raise OSError("no space left")
        return working(frame)

    monkeypatch.setattr(fake, "predict", failing)
    with pytest.raises(OSError, match="no space"):
        batch.batch("topics", ["in.csv"], Path("out.csv"))
    assert not Path("out.csv").exists()
    monkeypatch.setattr(fake, "predict", working)
    before = len(fake.asked)
    batch.batch("topics", ["in.csv"], Path("out.csv"))
    assert 0 < len(fake.asked) - before < whole - 2
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_it_goes_on_with_the_version_it_began_with(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(Path("in.csv"))
    _left_over(monkeypatch, fake)
    stand_in(monkeypatch, fake, lambda: "2")
    batch.batch("topics", ["in.csv"], Path("out.csv"))
    assert set(_read(Path("out.csv"))["version"]) == {"1"}
    assert "going on with version 1" in capsys.readouterr().out


def test_other_inputs_begin_anew(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(Path("in.csv"))
    _left_over(monkeypatch, fake)
    write_table(Path("in.csv"), rows=12, bad=())
    batch.batch("topics", ["in.csv"], Path("out.csv"))
    assert len(_read(Path("out.csv"))) == 12
    assert "it begins anew" in capsys.readouterr().out


def _left_over(patch: pytest.MonkeyPatch, fake: Fake) -> None:
    """What a command leaves that was stopped before the last step."""

    def stopped(*arguments: Any) -> int:
        raise KeyboardInterrupt

    with patch.context() as one:
        one.setattr(batch, "_join", stopped)
        with pytest.raises(KeyboardInterrupt):
            batch.batch("topics", ["in.csv"], Path("out.csv"))
    assert any(Path(".out.csv.pieces").glob("piece-*"))


SLOW = """
import sys, pytest
from pathlib import Path
from steps import batch
from tests import test_batch
batch.PIECE = 10
test_batch.stand_in(pytest.MonkeyPatch(), test_batch.Fake(pause=0.05))
batch.batch("topics", ["in.csv"], Path("out.csv"))
"""


@pytest.mark.survives(
    "serving",
    "`kill -9` in mid-batch, and a second one beside it",
    how="SIGKILL after some pieces of 900 inputs; the same command while it runs",
    held="the second is refused; given again it goes on, to the bytes of an unbroken run",
)
def test_killed_at_any_moment_it_ends_with_the_same_bytes(fake: Fake) -> None:
    write_table(Path("in.csv"), rows=900)
    batch.batch("topics", ["in.csv"], Path("whole.csv"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SLOW], env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(list(Path(".out.csv.pieces").glob("piece-*"))) < 7:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(BusyError, match="another process"):
            batch.batch("topics", ["in.csv"], Path("out.csv"))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not Path("out.csv").exists()
    done = len(fake.asked)
    batch.batch("topics", ["in.csv"], Path("out.csv"))
    assert len(fake.asked) - done < done
    for name in ("{}.csv", "{}.csv.rejected.csv"):
        assert Path(name.format("out")).read_bytes() == Path(name.format("whole")).read_bytes()
    assert not Path(".out.csv.pieces").exists()


def test_memory_does_not_grow_with_the_inputs(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "PIECE", 256)
    alive: list[int] = []
    held = 0

    class Counting(Many):
        def __iter__(self) -> Any:
            nonlocal held
            for one in super().__iter__():
                held += 1
                yield one

    def predict(frame: pd.DataFrame) -> pd.DataFrame:
        nonlocal held
        alive.append(held)
        held -= len(frame)
        return Fake().predict(frame)

    monkeypatch.setattr(fake, "predict", predict)
    monkeypatch.setattr(batch, "Many", Counting)
    write_table(Path("in.csv"), rows=20_000, bad=())
    batch.batch("topics", ["in.csv"], Path("out.jsonl"))
    assert max(alive) <= 256 * (2 * len(os.sched_getaffinity(0)) + 2)
    assert Path("out.jsonl").read_bytes().count(b"\n") == 20_000


# --------------------------------------------------------------------------------------------- what is read


def test_files_rows_and_texts_are_read_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes/deep").mkdir(parents=True)
    Path("notes/b.txt").write_text("from b")
    Path("notes/deep/a.txt").write_bytes("für".encode("latin-1"))
    Path("notes/.hidden").write_text("not this")
    pd.DataFrame({"text": ["one", None, " "]}).to_parquet("rows.parquet")
    many = Many(["notes", "rows.parquet", "some words"], TEXTS)
    assert len(many) == 6
    assert list(many) == [
        Asked(1, "notes/b.txt", ("from b",)),
        Asked(2, "notes/deep/a.txt", (), "is not utf-8 text (invalid start byte at byte 1)"),
        Asked(3, "rows.parquet:1", ("one",)),
        Asked(4, "rows.parquet:2", (), "column 'text' is empty"),
        Asked(5, "rows.parquet:3", (), "column 'text' is empty"),
        Asked(6, "text", ("some words",)),
    ]
    assert [len(chunk) for chunk in many.chunks(4)] == [4, 2]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table_of_any_kind_is_read_block_by_block(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steps.many.BLOCK", 3)
    frame = pd.DataFrame({"other": range(10), "image": [f"x/{at}.png" for at in range(10)]})
    path = tmp_path / f"table{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    elif suffix == ".jsonl":
        frame.to_json(path, lines=True, orient="records")
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    many = Many([str(path)], IMAGES)
    assert len(many) == 10
    assert [one.contents for one in many] == [(tmp_path / f"x/{at}.png",) for at in range(10)]


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("body\nx\n", TEXTS, "has no column 'text'; it has body"),
        ('text\n"open', TEXTS, "cannot be read as a table"),
        ("text\nx\n", Columns(("text", "pair"), ("text", "pair"), "utf-8"), "has no column 'pair'"),
    ],
)
def test_a_table_that_does_not_fit_is_told(
    content: str, columns: Columns, message: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        list(Many([str(tmp_path / "t.csv")], columns))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no files|give a table with the columns"):
        Many([str(tmp_path / "empty")], columns)


def test_other_inputs_have_another_identity(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("a")
    before = Many([str(tmp_path)], TEXTS).identity()
    assert Many([str(tmp_path)], TEXTS).identity() == before
    (tmp_path / "b.txt").write_text("b")
    added = Many([str(tmp_path)], TEXTS).identity()
    file.write_text("ab")
    assert len({before, added, Many([str(tmp_path)], TEXTS).identity()}) == 3


# ------------------------------------------------------------------------------------------ with a real model


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from steps.register import register

    root = tmp_path_factory.mktemp("batch")
    name = made.clone(root)
    made.store(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register(name)
    return root


@pytest.mark.flow
def test_a_folder_is_predicted_as_one_by_one(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(colours)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("in").mkdir()
    for number, file in enumerate(sorted(Path("data/colours/samples").glob("*.png"))):
        (Path("in") / f"{number:03}.png").write_bytes(file.read_bytes())
    (Path("in") / "005.png").write_bytes(b"no image")
    (Path("in") / "006.png").write_bytes(Path("in/007.png").read_bytes()[:60])
    Image.fromarray(np.zeros((2000, 1000), np.uint8)).save("in/large.png")
    batch.batch("colours", ["in"], Path("out.parquet"))
    frame = pd.read_parquet("out.parquet")
    with store.opened() as opened:
        version = naming.version_of(opened, "colours@champion")
        said = registry.load(version).predict(
            pd.DataFrame({"image": pd.Series([Path(one) for one in frame["image"]], dtype=object)})
        )
    assert list(frame["label"]) == list(said["label"])
    assert np.allclose(frame["probability"], said["probability"], atol=1e-5)
    with batch.rejected_file(Path("out.parquet")).open() as stream:
        reasons = {one["input"]: one["reason"] for one in csv.DictReader(stream)}
    assert list(reasons) == ["in/005.png", "in/006.png", "in/large.png"]
    assert "1000 x 2000 pixels are more than the 1000000 allowed" in reasons["in/large.png"]


@pytest.mark.flow
def test_the_recipe_holds_a_model_that_loads_by_itself(
    colours: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from importlib.metadata import version

    from steps.container import container

    monkeypatch.chdir(colours)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "recipe"
    container("colours@champion", folder)
    told = (folder / "Dockerfile").read_text()
    assert "\nCOPY model_dir/model /opt/ml/model\n" in told
    assert told.startswith("# Build an image that can serve mlflow models.\nFROM python:3.")
    # Packages come from wherever pip is told to look, and from nowhere that we name.
    commands = [line for line in told.splitlines() if not line.startswith("#")]
    assert "://" not in "".join(commands)
    model = folder / "model_dir/model"
    for line in (model / "requirements.txt").read_text().splitlines():
        name, _, pinned = line.partition("==")
        assert version(name).split("+")[0] == pinned
    code = (
        "import sys, mlflow, pandas; m = mlflow.pyfunc.load_model(sys.argv[1]); "
        "print(m.predict(m.input_example)['label'][0], sys.modules['steps'].__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)],
        cwd=tmp_path, capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    label, file = done.stdout.split()[-2:]
    assert label in made.CLASSES["image-classification"]
    assert Path(file).is_relative_to(model)
    with pytest.raises(UserError, match="is there already"):
        container("colours", folder)


def test_pieces_know_only_what_they_are_given() -> None:
    kind = KINDS["text-classification"]
    asked = [Asked(1, "a", ("bad",)), Asked(2, "b", ("good",)), Asked(3, "c", (), "is not utf-8 text")]
    model: Any = Fake()
    piece = pieces.answered(Loaded(model), asked, kind, "5")
    assert [row["row"] for row in piece.rows] == [2]
    assert [(one["row"], one["reason"]) for one in piece.rejected] == [
        (1, "is bad"),
        (3, "is not utf-8 text"),
    ]
    assert piece.rows[0]["version"] == "5"


def test_a_name_that_is_no_utf8_is_written_all_the_same(fake: Fake) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    Path("in").mkdir()
    (Path("in") / name).write_text("words")
    batch.batch("topics", ["in"], Path("out.csv"))
    assert "in/caf\\udce9.txt" in Path("out.csv").read_text()


def test_a_file_that_comes_later_is_not_of_the_inputs(tmp_path: Path) -> None:
    """Else it would shift the numbers of those behind it, from one piece to the next."""
    for name in "bd":
        (tmp_path / f"{name}.txt").write_text(name)
    many = Many([str(tmp_path)], TEXTS)
    assert len(many) == 2
    (tmp_path / "a.txt").write_text("a")
    assert [one.contents for one in many] == [("b",), ("d",)]
