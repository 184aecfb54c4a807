from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headstart import reproduce
from headstart.reproduce import Recorded
from steps.errors import UserError
from steps.tracking import journal
from tests import twin
from tests.twin import Twin

STAGES: dict[str, Any] = {
    "resolve": {"deps": [{"path": "params.yaml"}], "outs": [{"path": "work/params"}]},
    "ingest@x": {"deps": [{"path": "raw"}], "outs": [{"path": "data/x"}]},
    "fetch@toy": {"deps": [{"path": "work/params/pretrained"}], "outs": [{"path": "work/pretrained/toy"}]},
    "embed@x": {
        "deps": [{"path": "data/x"}, {"path": "work/pretrained/toy"}],
        "outs": [{"path": "work/x/features"}],
    },
    "train@x-full": {
        "deps": [{"path": "work/x/features"}, {"path": "work/params/x"}, {"path": "steps/train.py"}],
        "outs": [{"path": "work/x/arms/full"}],
    },
    "train@x-other": {"outs": [{"path": "work/x/arms/other"}]},
    "evaluate@x": {"deps": [{"path": "work/x/arms"}, {"path": "data/x"}]},
}  # fmt: skip


def test_a_training_needs_what_was_made_before_it_and_nothing_else() -> None:
    before = ["embed@x", "fetch@toy", "ingest@x", "resolve"]
    assert reproduce.upstream(STAGES, "train@x-full") == before
    assert reproduce.upstream(STAGES, "evaluate@x") == sorted([*before, "train@x-full", "train@x-other"])
    with pytest.raises(UserError, match="has no stage train@y-full"):
        reproduce.upstream(STAGES, "train@y-full")


def _links(**changes: Any) -> dict[str, Any]:
    """What `headstart why --json` says of a version that can be had again, but for the changes."""
    facts = {"commit": "abc", "dirty": "false"} | changes
    check = facts.pop("check", "ok")
    return {"commit": {"check": check, "facts": facts}, "dvc.lock": {"check": changes.get("lock", "ok")}}


@pytest.mark.parametrize(
    ("changes", "missing", "told"),
    [
        (
            {"dirty": "true"},
            "",
            "made from code that differs from its commit abc, so nobody can have that code again",
        ),
        ({"dirty": "unknown", "commit": "unknown"}, "", "was made outside of git"),
        ({"check": "not here"}, "", "made by commit abc, which is not here; `git fetch`"),
        ({"lock": "differs"}, "", "is not the one that was recorded"),
        ({}, "params.yaml", "was published without params.yaml, by an earlier release"),
    ],
)
def test_what_cannot_be_had_again_is_refused_with_a_reason(
    tmp_path: Path, changes: dict[str, Any], missing: str, told: str
) -> None:
    for name in set(reproduce.NEEDED) - {missing}:
        (tmp_path / name).touch()
    links = _links(**changes)
    with pytest.raises(UserError) as found:
        reproduce._hold("version 1 of x", links, links["commit"]["facts"]["commit"], tmp_path)
    assert told in str(found.value)
    assert "version 1 of x" in str(found.value)


def test_what_may_make_the_bytes_differ_is_told_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = Recorded("v", "x", "full", "seed-1", "abc", "0", "a mainframe", "0" * 64, tmp_path)
    machine, environment = reproduce.warnings(there)
    assert machine == f"note: it was trained on a mainframe; here is {journal.machine()}"
    assert "requirements.lock was another then" in environment
    assert (
        reproduce.warnings(
            Recorded("v", "x", "full", "seed-1", "abc", "0", journal.machine(), "none", tmp_path)
        )
        == []
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    """A twin with its texts run to the end."""
    found = twin.build(tmp_path_factory.mktemp("reproduce") / "clone")
    (found.root / ".git/info/exclude").write_text(".home\n")
    found.edit_params(experiments__topics__training__epochs=1)
    for stage in ("evaluate@topics", "compare@topics"):
        found.run("dvc", "repro", stage)
    found.run("steps.register", "topics")
    return found


@pytest.mark.long
def test_a_version_is_trained_again_to_the_same_bytes(made: Twin) -> None:
    # What is trained again must come from what was recorded: nothing here may be as it was.
    kept = {name: made.root / name for name in ("data", "work", "params.yaml", "dvc.lock", "raw")}
    aside = made.root.parent / "aside"
    aside.mkdir()
    for name, path in kept.items():
        path.rename(aside / name)
    (made.root / "params.yaml").write_text("experiments: {}\n")
    try:
        told = made.headstart("reproduce", "topics@champion")
    finally:
        (made.root / "params.yaml").unlink()
        for name, path in kept.items():
            (aside / name).rename(path)
    assert "version 1 of headstart-topics: the weights are byte-equal" in told
    assert "note:" not in told
    assert not list((made.root / ".headstart").glob("reproduce-*"))


@pytest.mark.long
def test_other_bytes_are_judged_by_the_metric(made: Twin, tmp_path: Path) -> None:
    """Where another hash was recorded the weights differ; the metric is in the recorded interval, or not."""
    clone, origin = tmp_path / "clone", tmp_path / "origin"
    _train(made, clone, origin)
    done = _compare(made, clone, origin)
    assert "the weights differ" in done
    assert "within" in done
    assert "True" in done
    comparison = json.loads((origin / "comparison.json").read_text())
    for arm in comparison["arms"]:
        arm["ci_low"] = arm["ci_high"] = 2.0
    (origin / "comparison.json").write_text(json.dumps(comparison))
    done = _compare(made, clone, origin)
    assert "outside of 2.0000 to 2.0000" in done
    assert "False" in done


RECORDED = """
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from headstart import reproduce
clone, origin = Path(sys.argv[1]), Path(sys.argv[2])
recorded = reproduce.read("topics@champion", origin)
"""
TRAINED = """
reproduce.prepare(recorded, clone)
reproduce._step(clone, "train", recorded.experiment, recorded.arm)
"""
COMPARED = """
shutil.copyfile(sys.argv[3], origin / "comparison.json")
print(reproduce.compare(replace(recorded, weights="0" * 64), clone))
"""


def _train(made: Twin, clone: Path, origin: Path) -> None:
    _python(made, RECORDED + TRAINED, clone, origin)


def _compare(made: Twin, clone: Path, origin: Path) -> str:
    """Compare with the comparison that lies there, and with other weights than were trained."""
    recorded = clone.with_name("comparison.json")
    shutil.copyfile(origin / "comparison.json", recorded)
    return _python(made, RECORDED + COMPARED, clone, origin, recorded)


def _python(made: Twin, script: str, *paths: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, paths)],
        cwd=made.root,
        env=made.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_the_clone_is_kept_where_it_is_wanted(made: Twin, tmp_path: Path) -> None:
    wanted = tmp_path / "kept"
    wanted.mkdir()
    (wanted / "mine").touch()
    told = made.headstart("reproduce", "topics@champion", "--keep", str(wanted), expect=2)
    assert "is there and not empty; give --keep a new folder" in told
    (wanted / "mine").unlink()
    made.headstart("reproduce", "topics@champion", "--keep", str(wanted))
    assert (wanted / "work/topics/arms").exists()


@pytest.mark.long
def test_data_that_are_nowhere_are_told(made: Twin) -> None:
    aside = made.root.parent / "cache"
    shutil.move(made.root / ".dvc/cache", aside)
    try:
        told = made.headstart("reproduce", "topics@champion", expect=2)
    finally:
        shutil.rmtree(made.root / ".dvc/cache", ignore_errors=True)
        shutil.move(aside, made.root / ".dvc/cache")
    assert "are in DVC's cache, and `dvc pull` could not bring them; `dvc remote list`" in told
