"""Causes in a clone whose graph is the real one, with a real DVC and stand-ins for the steps."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows import causes, champions, records
from flows.causes import Look
from flows.stages import Stages
from steps import params
from steps.errors import UserError
from tests import twin
from tests.flows import miniature
from tests.tracking import servers

pytestmark = pytest.mark.flow

HEAVY = ("torch", "transformers", "timm", "mlflow", "great_expectations", "pandas", "prefect")
NOW = datetime(2026, 11, 26, 3, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which everything was run and registered."""
    root = miniature.build(tmp_path_factory.mktemp("causes") / "clone")
    register(root)
    return root


def register(root: Path) -> None:
    command = [sys.executable, "-m", "steps.register", "shapes"]
    subprocess.run(command, cwd=root, env=miniature.environment(), check=True, capture_output=True)


@pytest.fixture
def clone(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "clone"
    shutil.copytree(built, root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", "")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    return root


def look(nights: list[records.Record] | None = None, now: datetime = NOW, *, force: bool = False) -> Look:
    checked = params.load(Path("params.yaml"))
    return causes.find(Stages(), "shapes", checked, nights or [], now, force=force)


def said(found: Look) -> list[str]:
    return [str(cause) for cause in found.causes]


def change(path: str, text: str = "changed") -> Callable[[Path], None]:
    def happens(root: Path) -> None:
        (root / path).write_text(text)

    return happens


def remove(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


def there_and_back(root: Path) -> None:
    (root / "raw/shapes/a.txt").write_text("b")
    (root / "raw/shapes/a.txt").write_text("a")
    os.utime(root / "raw/shapes/a.txt", (1, 1))


def setting(**changes: Any) -> Callable[[Path], None]:
    return lambda root: miniature.edit(root, **changes)


def store(root: Path, statement: str) -> None:
    with closing(sqlite3.connect(root / "mlflow/mlflow.db")) as opened, opened:
        opened.execute(statement)


def without_alias(root: Path) -> None:
    store(root, "DELETE FROM registered_model_aliases")


def without_results(root: Path) -> None:
    for name in ("dvc.lock", "data", "work", "reports", ".headstart"):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_looking_loads_nothing_heavy() -> None:
    code = f"import sys, flows.causes, flows.night; print([n for n in {HEAVY} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=miniature.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("happens", "expected"),
    [
        (lambda root: None, []),
        (there_and_back, []),
        (setting(experiments__shapes__gate={"min_items": 40}), []),
        (setting(nightly={"retries": 5}), []),
        (change("raw/shapes/a.txt"), ["data: raw/shapes was modified"]),
        (change("raw/shapes/b.txt"), ["data: raw/shapes was modified"]),
        (setting(experiments__shapes__training__epochs=3), ["parameters: training.epochs 2 -> 3"]),
        (change("steps/train.py"), ["code: steps/train.py"]),
        (change("requirements.lock"), ["environment: requirements.lock"]),
        (
            remove("work/shapes/split.parquet"),
            ["missing: work/shapes/split.parquet was deleted"],
        ),
        (
            change("work/shapes/pool.parquet"),
            ["missing: work/shapes/pool.parquet was modified"],
        ),
        (
            change("reports/shapes/comparison.json", "{half"),
            ["missing: reports/shapes/comparison.json was modified"],
        ),
        (remove(".headstart/registered/shapes.json"), ["unpublished: its results are not registered at "
                                                       "sqlite:///mlflow/mlflow.db"]),
        (without_alias, ["champion: the alias of headstart-shapes is gone"]),
        (without_results, ["new: was never run"]),
    ],
)  # fmt: skip
def test_causes_by_what_happened(clone: Path, happens: Callable[[Path], None], expected: list[str]) -> None:
    happens(clone)
    assert said(look()) == expected


def test_two_things_at_once_are_two_causes(clone: Path) -> None:
    change("raw/shapes/a.txt")(clone)
    setting(experiments__shapes__arms={"frozen": {"learning_rate": 0.5}, "full": {"learning_rate": 0.5}})
    miniature.edit(clone, experiments__shapes__tuning__trials=3)
    assert said(look()) == ["parameters: tuning.trials 2 -> 3", "data: raw/shapes was modified"]


def test_a_run_that_was_broken_off_is_to_be_finished(clone: Path) -> None:
    change("raw/shapes/a.txt")(clone)
    miniature.dvc(clone, "repro", "--single-item", "ingest@shapes")
    assert said(look()) == [
        "unfinished: validate@shapes, embed@shapes, baseline@shapes, train@shapes-scratch, "
        "train@shapes-full and 3 more still to be run"
    ]


def test_results_that_are_newer_than_what_is_registered(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clone / ".headstart/registered/shapes.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"result": "another"}))
    assert said(look()) == ["unpublished: its results are newer than version 1 at sqlite:///mlflow/mlflow.db"]
    path.write_text(json.dumps(about))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:secret@127.0.0.1:9")
    found = look()
    assert said(found) == [
        "unpublished: registered at sqlite:///mlflow/mlflow.db, and results now go to http://127.0.0.1:9"
    ]
    assert "did not answer" in found.champion.unknown
    assert "secret" not in found.champion.unknown


def test_an_old_champion_is_built_anew_once_in_a_while(clone: Path) -> None:
    made = datetime.now(UTC)
    miniature.edit(clone, nightly={"champion_days": 30})
    assert said(look(now=made + timedelta(days=29))) == []
    found = look(now=made + timedelta(days=31))
    assert said(found) == ["age: version 1 is 31 days old, allowed are 30"]
    assert found.anew
    assert found.to_run
    record = {
        "began": (made + timedelta(days=31)).isoformat(),
        "experiments": {"shapes": {"anew": True, "outcome": "same"}},
    }
    assert said(look([record], made + timedelta(days=40))) == []
    assert said(look([record], made + timedelta(days=62))) != []
    # A clock that goes back makes nobody older.
    assert said(look(now=made - timedelta(hours=1))) == []


def test_building_anew_can_be_asked_for(clone: Path) -> None:
    found = look(force=True)
    assert said(found) == ["asked: built anew on request"]
    assert found.anew


def test_drift_is_a_cause_until_it_was_told(clone: Path) -> None:
    drift = {"drifted": True, "text": "the images are darker (p = 0.002)", "inputs_sha256": "abc"}
    path = clone / ".headstart/drift/shapes.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(drift))
    found = look()
    assert said(found) == ["drift: the images are darker (p = 0.002)"]
    assert not found.to_run
    told = {"experiments": {"shapes": {"drift": "abc", "outcome": "drift"}}}
    assert said(look([told])) == []
    path.write_text(json.dumps(drift | {"inputs_sha256": "def"}))
    assert len(said(look([told]))) == 1
    miniature.edit(clone, nightly={"on_drift": False})
    assert said(look([told])) == []
    path.write_text(json.dumps(drift | {"drifted": False}))
    miniature.edit(clone, nightly={"on_drift": True})
    assert said(look()) == []


def test_data_under_dvc_by_their_content(clone: Path) -> None:
    twin.git(clone, "rm", "--quiet", "-r", "--cached", "raw")
    miniature.dvc(clone, "add", "--quiet", "raw/shapes")
    assert said(look()) == []
    pointer = (clone / "raw/shapes.dvc").read_text()
    (clone / "raw/shapes/a.txt").write_text("b")
    assert said(look()) == ["data: raw/shapes was modified"]
    miniature.dvc(clone, "commit", "--quiet", "--force", "raw/shapes.dvc")
    assert said(look()) == ["data: raw/shapes was modified"]
    other = (clone / "raw/shapes.dvc").read_text()
    (clone / "raw/shapes.dvc").write_text(pointer)
    miniature.dvc(clone, "checkout", "--quiet", "raw/shapes.dvc")
    assert said(look()) == []
    (clone / "raw/shapes.dvc").write_text(other)  # as `git pull` does
    assert said(look()) == ["data: raw/shapes is not what raw/shapes.dvc says"]
    shutil.rmtree(clone / "raw/shapes")
    assert said(look()) == ["data: raw/shapes is not here; raw/shapes.dvc says where from"]


@pytest.mark.faults
@pytest.mark.survives(
    "disk",
    "dvc.lock half written",
    how="dvc.lock cut at twelve places",
    held="a line that says `git checkout dvc.lock`, or DVC restores what was cut off; nothing runs again",
)
def test_a_damaged_lock_file_is_named_with_the_way_out(clone: Path) -> None:
    whole = (clone / "dvc.lock").read_bytes()
    told, found = set(), {}
    for part in range(1, 13):
        cut = whole[: len(whole) * part // 13]
        (clone / "dvc.lock").write_bytes(cut)
        try:
            found[cut] = said(look())
        except UserError as error:
            told.add(str(error))
    assert told
    assert all("dvc.lock is damaged" in one and "`git checkout dvc.lock`" in one for one in told)
    assert all(found.values())
    for cut in list(found)[-1:]:
        (clone / "dvc.lock").write_bytes(cut)
        miniature.forget_steps(clone)
        miniature.dvc(clone, "repro")
        assert miniature.steps_run(clone) == []
        assert said(look()) == []
    twin.git(clone, "checkout", "dvc.lock")
    assert said(look()) == []


@pytest.mark.parametrize(
    ("answer", "code", "expected"),
    [
        ({"model_version": {"version": "7", "creation_timestamp": 1000}}, 200, "7"),
        ({"error_code": "RESOURCE_DOES_NOT_EXIST"}, 404, None),
        ({"error_code": "INVALID_PARAMETER_VALUE"}, 400, None),
        ({"error_code": "INTERNAL_ERROR"}, 500, "unknown"),
        ({}, 401, "unknown"),
    ],
)
def test_a_server_is_asked_for_the_champion(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], code: int, expected: str | None
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "night")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    with servers.saying(answer, code) as (address, asked):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        found = champions.glance("headstart-shapes")
    assert asked == ["Basic bmlnaHQ6c2VjcmV0"]
    if expected == "unknown":
        assert f"answers {code}" in found.unknown
    else:
        assert found.unknown == ""
        assert (found.champion.version if found.champion else None) == expected
