from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from headstart import cli, terminal
from steps import artifacts, monitor
from steps.errors import ParamsError, UserError
from steps.kinds import KINDS
from tests import twin
from tests.tasks import clone
from tests.tasks.test_savedmodel_end_to_end import entry_of, saved

NAME = clone.NAME
SEEN = Path(f".headstart/drift/{NAME}.seen")


def pictures(folder: Path, count: int, seed: int, brighter: int = 0) -> Path:
    """Coloured noise; of two classes, as folders, where the name says `raw`."""
    rng = np.random.default_rng(seed)
    for at in range(count):
        below = folder / f"class-{at % 2}" if folder.name == "raw" else folder
        below.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(40, 160, 3) + rng.integers(-30, 30, (32, 32, 3)) + brighter
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(below / f"{at:03}.png")
    return folder


def sentences(count: int, seed: int, topics: dict[str, list[str]] = twin.TOPICS, words: int = 4) -> list[str]:
    rng = np.random.default_rng(seed)
    chosen = [list(topics.values())[at % len(topics)] for at in range(count)]
    return [" ".join([*rng.choice(own, words), *rng.choice(twin.FILLER, 4), str(seed), str(at)])
            for at, own in enumerate(chosen)]  # fmt: skip


@pytest.fixture(scope="module")
def _images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    with chdir(folder):
        pictures(folder / "raw", 80, seed=1)
        clone.lay_out(folder, {
            "task": "image-classification", "data": {"source": "folder", "path": "raw"},
            "model": {"pretrained": "toy-vision", "image_size": 32},
        })  # fmt: skip
        clone.run(until="embed")
    return folder


@pytest.fixture(scope="module")
def _texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    with chdir(folder):
        said = sentences(90, seed=1)
        table = pd.DataFrame({"body": said, "topic": [list(twin.TOPICS)[at % 3] for at in range(90)]})
        table.to_csv("topics.csv", index=False)
        clone.lay_out(folder, {
            "task": "text-classification",
            "data": {"source": "table", "path": "topics.csv", "text": "body", "label": "topic"},
            "model": {"pretrained": "toy-text", "max_tokens": 16},
        })  # fmt: skip
        clone.run(until="embed")
    return folder


@pytest.fixture
def images(_images: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    yield from borrowed(_images, monkeypatch)


@pytest.fixture
def texts(_texts: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    yield from borrowed(_texts, monkeypatch)


def borrowed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The clone; what the test leaves beside the steps' own files is taken away."""
    monkeypatch.chdir(folder)
    yield folder
    for name in (".headstart", "new", "reports", f"work/{NAME}/evaluation"):
        shutil.rmtree(folder / name, ignore_errors=True)


def verdict() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f".headstart/drift/{NAME}.json").read_text("utf-8"))
    return found


def names(found: dict[str, Any]) -> set[str]:
    """The tests that say drift."""
    return {test["name"] for test in found["tests"] if test["p_adjusted"] <= found["level"]}


def settle(**changes: Any) -> None:
    """Change drift's settings."""
    path = artifacts.settings_file(NAME, "drift")
    artifacts.write_json(path, json.loads(path.read_text()) | changes)


# ------------------------------------------------------------------------------------------------- images


def test_images_of_the_same_kind_are_no_drift(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(images / "new", 50, seed=2)
    shutil.copyfile(images / "raw/class-0/000.png", images / "new/copy.png")
    shutil.copyfile(images / "new/001.png", images / "new/again.png")
    monitor.monitor(NAME, ["new"])
    found = verdict()
    assert (found["experiment"], found["drifted"], found["items"]) == (NAME, False, 51)
    assert (found["inputs"], found["copies"], found["unreadable"]) == (52, 1, 0)
    assert found["reference_items"] == 80
    assert [test["name"] for test in found["tests"]] == ["embedding", "brightness", "contrast", "size"]
    assert found["p"] == min(test["p_adjusted"] for test in found["tests"]) > found["level"]
    assert all(set(test) == {"name", "statistic", "p", "p_adjusted", "what"} for test in found["tests"])
    said = capsys.readouterr().out.splitlines()
    assert said[-6] == found["text"]
    assert said[-6].startswith(
        "no drift: 51 distinct new inputs against 80 reference samples, 1 of them exact copies"
    )
    assert said[-4].split()[:3] == ["embedding", f"{found['tests'][0]['statistic']:.4f}",
                                    f"{found['tests'][0]['p']:.4f}"]  # fmt: skip


@pytest.mark.parametrize("method", ["mmd", "classifier"])
def test_brighter_images_are_drift_and_the_tests_say_in_what(images: Path, method: str) -> None:
    pictures(images / "new", 60, seed=3, brighter=60)
    before = artifacts.settings_file(NAME, "drift").read_bytes()
    try:
        settle(method=method)
        monitor.monitor(NAME, ["new"])
    finally:
        artifacts.settings_file(NAME, "drift").write_bytes(before)
    found = verdict()
    assert found["drifted"]
    assert {"embedding", "brightness"} <= names(found)
    assert "size" not in names(found)
    assert found["text"].startswith(
        "drift: 60 distinct new inputs against 80 reference samples; they differ in"
    )
    first = found["inputs_sha256"]
    (images / "new/000.png").unlink()
    monitor.monitor(NAME, ["new"])
    assert verdict()["inputs_sha256"] != first


def test_the_stored_features_are_those_of_new_copies(images: Path) -> None:
    """What is embedded now is embedded as embed did: all copies give the statistic of a set and itself."""
    shutil.copytree(images / "raw", images / "new")
    monitor.monitor(NAME, ["new"])
    found = verdict()
    assert found["copies"] == found["items"] == 80
    assert found["tests"][0]["statistic"] < 0
    assert [test["statistic"] for test in found["tests"][1:]] == [0, 0, 0]
    assert not found["drifted"]


def test_too_few_give_no_verdict_and_the_last_one_stays(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(images / "new", 12, seed=4)
    monitor.monitor(NAME, ["new"])
    assert verdict()["text"] == (
        "toy: no verdict: 12 distinct new inputs, at least 30 are needed (drift.min_items)"
    )
    assert (verdict()["drifted"], verdict()["p"], verdict()["tests"]) == (False, None, [])
    pictures(images / "new", 40, seed=4, brighter=60)
    monitor.monitor(NAME, ["new"])
    assert verdict()["drifted"]
    shutil.rmtree(images / "new")
    pictures(images / "new", 12, seed=5)
    monitor.monitor(NAME, ["new"])
    assert verdict()["drifted"]
    assert capsys.readouterr().out.endswith("(drift.min_items); the last verdict stays\n")


def test_what_cannot_be_read_is_left_out_and_named(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(images / "new", 40, seed=6)
    (images / "new/empty.png").touch()
    (images / "new/torn.png").write_bytes((images / "new/000.png").read_bytes()[:200])
    monitor.monitor(NAME, ["new"])
    assert verdict()["unreadable"] == 2
    assert not verdict()["drifted"]
    said = capsys.readouterr().out
    assert "left out, since it cannot be read: new/" in said
    assert "left out likewise: 1 more" in said
    for path in (images / "new").glob("0[1-3]*.png"):
        path.write_bytes(b"no image but " + path.name.encode())
    Path(f".headstart/drift/{NAME}.json").unlink()
    monitor.monitor(NAME, ["new"])
    assert "no verdict: 10 distinct new inputs" in verdict()["text"]


# ------------------------------------------------------------------------------------------ what was recorded


def record(name: str, said: list[str], labels: list[str], version: str = "3") -> Path:
    path = Path(f".headstart/recorded/{NAME}") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {"time": "2030-01-01T00:00:00+00:00", "version": version, "text": said}
    answers = [json.dumps({"label": label, "probability": 0.9}) for label in labels]
    pd.DataFrame({**rows, "said": answers}).to_parquet(path)
    return path


def registered(said: list[str], version: str = "3") -> None:
    """A version of today's result, and what it said of the test split."""
    from steps.tracking import journal

    report = artifacts.report_dir(NAME)
    artifacts.write_json(report / "comparison.json", {"best_arm": "full", "best_seed": 1, "best_resample": 1})
    folder = artifacts.evaluation_dir(NAME)
    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({"predicted": said, "arm": "full", "seed": 1, "resample": 1})
    other = pd.DataFrame({"predicted": ["nobody"] * 50, "arm": "frozen", "seed": 1, "resample": 1})
    pd.concat([frame, other]).to_parquet(folder / "predictions.parquet")
    note = {"version": version, "arm": "full", "seed": 1, "result": journal.identity(NAME)}
    artifacts.write_json(artifacts.registration_file(NAME), note)


TOPICS = list(twin.TOPICS)


def test_recorded_requests_are_looked_at_once_each(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor.monitor(NAME)
    assert verdict()["text"] == "toy: no verdict: nothing was recorded since the last look"
    record("2030-01-01/a.parquet", sentences(20, seed=2), ["garden"] * 20)
    monitor.monitor(NAME)
    assert "20 distinct new inputs, at least 30 are needed" in capsys.readouterr().out
    assert not SEEN.exists(), "they wait for more"
    record("2030-01-02/b.parquet", sentences(30, seed=3), ["garden"] * 30)
    broken = Path(f".headstart/recorded/{NAME}/2030-01-02/broken.parquet")
    broken.write_bytes(b"PAR1 torn")
    Path(f".headstart/recorded/{NAME}/2030-01-02/.partial.parquet").write_bytes(b"half")
    monitor.monitor(NAME)
    assert (verdict()["items"], verdict()["drifted"]) == (50, False)
    assert "broken.parquet is damaged and left out" in capsys.readouterr().out
    assert SEEN.read_text().split() == ["2030-01-01/a.parquet", "2030-01-02/b.parquet",
                                        "2030-01-02/broken.parquet"]  # fmt: skip
    monitor.monitor(NAME)
    assert "nothing was recorded since the last look; the last verdict stays" in capsys.readouterr().out
    shutil.rmtree(f".headstart/recorded/{NAME}/2030-01-01")
    record("2030-01-03/c.parquet", sentences(40, seed=4, words=1, topics={"x": ["zzz"]}), ["garden"] * 40)
    monitor.monitor(NAME)
    assert (verdict()["items"], verdict()["drifted"]) == (40, True)
    assert {"embedding", "length"} <= names(verdict())
    assert "2030-01-01/a.parquet" not in SEEN.read_text(), "what is gone is forgotten"


def test_a_file_recorded_during_the_look_is_seen_by_the_next(
    texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record("2030-01-01/a.parquet", sentences(40, seed=2), ["garden"] * 40)
    compare = monitor._compare

    def slowly(*arguments: Any) -> Any:
        record("2030-01-01/0-late.parquet", sentences(35, seed=9), ["garden"] * 35)
        return compare(*arguments)

    monkeypatch.setattr(monitor, "_compare", slowly)
    monitor.monitor(NAME)
    assert verdict()["items"] == 40
    monkeypatch.setattr(monitor, "_compare", compare)
    monitor.monitor(NAME)
    assert verdict()["items"] == 35


def test_the_classes_that_were_said_are_compared_with_those_of_the_test_split(texts: Path) -> None:
    registered([TOPICS[at % 3] for at in range(60)])
    record("2030-01-01/a.parquet", sentences(60, seed=5), [TOPICS[at % 3] for at in range(60)])
    monitor.monitor(NAME)
    assert verdict()["reference_version"] == "3"
    assert [test["name"] for test in verdict()["tests"]] == ["embedding", "length", "classes"]
    assert verdict()["tests"][-1]["p"] == 1.0
    record("2030-01-02/b.parquet", sentences(60, seed=6), [TOPICS[0]] * 50 + [TOPICS[1]] * 10)
    monitor.monitor(NAME)
    assert names(verdict()) == {"classes"}


def test_answers_of_another_version_or_result_are_not_compared(
    texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = record("x/a.parquet", sentences(60, seed=5), [TOPICS[0]] * 60, version="2")
    monitor.monitor(NAME, [str(table)])
    assert "not compared: no registered version is of today's result" in capsys.readouterr().out
    registered([TOPICS[at % 3] for at in range(60)])
    monitor.monitor(NAME, [str(table)])
    assert "not compared: 0 of 60 answers are of today's version 3" in capsys.readouterr().out
    artifacts.write_json(artifacts.report_dir(NAME) / "comparison.json", {"best_resample": 1, "other": 1})
    monitor.monitor(NAME, [str(table)])
    assert "not compared: no registered version is of today's result" in capsys.readouterr().out
    assert [test["name"] for test in verdict()["tests"]] == ["embedding", "length"]


def test_images_in_a_table_of_answers_are_bytes_or_files(images: Path) -> None:
    pictures(images / "new/there", 60, seed=2)
    names = [f"{at:03}.png" for at in range(60)]
    values: list[object] = [(images / "new/there" / name).read_bytes() for name in names[:20]]
    values += [f"there/{name}" for name in names[20:40]]
    values += [f"new/there/{name}" for name in names[40:]]
    for part, suffix in ((values[:20], ".parquet"), (values[20:], ".csv")):
        frame = pd.DataFrame({"image": pd.Series(part, dtype=object), "version": "3", "said": "{}"})
        write = frame.to_parquet if suffix == ".parquet" else frame.to_csv
        write(f"new/table{suffix}", index=False)
    monitor.monitor(NAME, ["new/table.parquet", "new/table.csv"])
    assert (verdict()["items"], verdict()["unreadable"], verdict()["drifted"]) == (60, 0, False)


def test_a_table_is_read_as_the_experiments_own(texts: Path) -> None:
    (texts / "new").mkdir()
    pd.DataFrame({"body": sentences(40, seed=7)}).to_csv("new/table.csv", index=False)
    monitor.monitor(NAME, ["new/table.csv"])
    assert (verdict()["items"], verdict()["drifted"]) == (40, False)
    pd.DataFrame({"text": sentences(40, seed=7)}).to_csv("new/table.csv", index=False)
    with pytest.raises(UserError, match="has no column 'body'"):
        monitor.monitor(NAME, ["new/table.csv"])


def test_no_more_than_max_items_are_compared_in_whatever_order_they_come(texts: Path) -> None:
    said = sentences(120, seed=8)
    (texts / "new").mkdir()
    found = []
    settle(max_items=50)
    try:
        for order in (said, said[::-1]):
            pd.DataFrame({"body": order}).to_csv("new/table.csv", index=False)
            monitor.monitor(NAME, ["new/table.csv"])
            found.append(verdict() | {"time": ""})
    finally:
        settle(max_items=1000)
    assert found[0] == found[1]
    assert found[0]["items"] == 120


# ----------------------------------------------------------------------------------------- what is not there


@pytest.mark.parametrize(
    ("path", "stage"),
    [(f"work/{NAME}/features", f"embed@{NAME}"), (f"data/{NAME}", f"ingest@{NAME}"),
     ("work/pretrained/toy-text", "fetch@toy-text")],
)  # fmt: skip
def test_in_another_clone_it_says_what_to_run(texts: Path, path: str, stage: str) -> None:
    away = Path("away")
    Path(path).rename(away)
    try:
        with pytest.raises(UserError) as told:
            monitor.monitor(NAME, ["some words"])
    finally:
        away.rename(path)
    assert f"{path} is missing: `dvc pull {stage}` brings" in str(told.value)
    assert f"`headstart run {NAME}` makes it" in str(told.value)


def test_features_of_other_settings_are_refused(texts: Path) -> None:
    path = artifacts.settings_file(NAME, "embed")
    before = path.read_bytes()
    changed = json.loads(before)
    changed["model"]["max_tokens"] = 8
    artifacts.write_json(path, changed)
    try:
        with pytest.raises(UserError, match=r"features of toy are of other model settings than today's"):
            monitor.monitor(NAME, ["some words"])
    finally:
        path.write_bytes(before)


def test_an_experiment_that_is_none_and_too_few_permutations_are_named(texts: Path) -> None:
    with pytest.raises(UserError, match="nothing"):
        monitor.monitor("nothing", ["some words"])
    settle(level=0.001)
    try:
        with pytest.raises(UserError, match=r"permutations: 500 can never tell .*level 0\.001; write 1999"):
            monitor.monitor(NAME, sentences(40, seed=2))
        settle(level=2)
        with pytest.raises(ParamsError, match="level"):
            monitor.monitor(NAME, ["some words"])
    finally:
        settle(level=0.05)


def test_groups_count_once(texts: Path) -> None:
    rows = pd.DataFrame({"id": list("abcdef"), "group": ["x", "x", "x", "y", None, None]})
    found = monitor._one_each(rows)
    assert sorted(found["group"].dropna()) == ["x", "y"]
    assert {"e", "f"} <= set(found["id"])


# ------------------------------------------------------------------------------------------- other tasks


def test_pairs_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table(70, seed=1).to_csv("pairs.csv", index=False)
    clone.lay_out(tmp_path, {
        "task": "text-pair-classification",
        "data": {"source": "table", "path": "pairs.csv", "text": "a", "pair": "b", "label": "same"},
        "model": {"pretrained": "toy-text", "max_tokens": 24},
    })  # fmt: skip
    clone.run(until="embed")
    table(50, seed=2).to_csv("same.csv", index=False)
    monitor.monitor(NAME, ["same.csv"])
    assert [test["name"] for test in verdict()["tests"]] == ["embedding", "length", "pair_length"]
    assert not verdict()["drifted"]
    table(50, seed=2).assign(b="a short one").assign(b=[f"no {at}" for at in range(50)]).to_csv(
        "other.csv", index=False
    )
    monitor.monitor(NAME, ["other.csv"])
    assert "pair_length" in names(verdict())


def table(count: int, seed: int) -> pd.DataFrame:
    return pd.DataFrame({"a": sentences(count, seed), "b": sentences(count, seed + 100),
                         "same": ["yes", "no"] * (count // 2)})  # fmt: skip


def test_tokens_of_long_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of windows: a text longer than a row is the mean of several."""
    monkeypatch.chdir(tmp_path)
    lines = [
        "\n".join(f"{word} {'B-X' if word in twin.TOPICS['garden'] else 'O'}" for word in said.split())
        for said in sentences(60, seed=1, words=30)
    ]
    Path("all.conll").write_text("\n\n".join(lines) + "\n")
    clone.lay_out(tmp_path, {
        "task": "token-classification", "data": {"source": "conll", "path": "all.conll"},
        "model": {"pretrained": "toy-text", "max_tokens": 16},
    })  # fmt: skip
    clone.run(until="embed")
    assert KINDS["token-classification"].fresh
    Path("new.jsonl").write_text(
        "".join(json.dumps({"text": said}) + "\n" for said in sentences(50, seed=2, words=30))
    )
    monitor.monitor(NAME, ["new.jsonl"])
    assert not verdict()["drifted"]


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_a_savedmodel(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reference = entry_of(saved(tmp_path, kind, monkeypatch))
    if kind == "images":
        pictures(tmp_path / "raw", 60, seed=1)
        data: dict[str, Any] = {"source": "folder", "path": "raw"}
        new = [str(pictures(tmp_path / "new", 40, seed=2))]
    else:
        rows = {"body": sentences(60, seed=1), "topic": ["a", "b", "c"] * 20}
        pd.DataFrame(rows).to_csv("t.csv", index=False)
        data = {"source": "table", "path": "t.csv", "text": "body", "label": "topic"}
        new = sentences(40, seed=2)
    clone.lay_out(tmp_path, {
        "task": "image-classification" if kind == "images" else "text-classification", "data": data,
        "model": {"pretrained": "tf", "image_size": 32}, "arms": {"scratch": None, "full": None},
        "evaluation": {"reference": "frozen"},
    }, {"tf": reference})  # fmt: skip
    clone.run(until="embed")
    monitor.monitor(NAME, new)
    assert (verdict()["items"], verdict()["drifted"]) == (40, False)


# ------------------------------------------------------------------------------------------ the command lines


def test_the_step_and_the_command_pass_everything_on(
    texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["monitor", NAME, "--", "-1 is a text"])
    assert monitor.main() == 0
    assert verdict()["inputs"] == 1
    monkeypatch.setattr("sys.argv", ["monitor"])
    assert monitor.main() == 2
    assert "usage: python -m steps.monitor" in capsys.readouterr().err

    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(terminal, "enter_clone", lambda: None)

    def run_step(*given: str) -> int:
        called.append(given)
        return 0

    monkeypatch.setattr(terminal, "run_step", run_step)
    for given in ([], ["topics.csv", "some words"]):
        monkeypatch.setattr("sys.argv", ["headstart", "monitor", NAME, *given])
        assert cli.main() == 0
    assert called == [("monitor", NAME, "--"),
                      ("monitor", NAME, "--", str(texts / "topics.csv"), "some words")]  # fmt: skip
