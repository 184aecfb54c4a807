"""A night on the small twin that is killed in the middle of a training, and the night after it."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import twin
from tests.twin import Twin

pytestmark = [pytest.mark.flow, pytest.mark.faults, pytest.mark.long]
DEADLINE_SECONDS = 600.0
# The arm that is killed in mid-training, and its epochs.
ARM, EPOCHS = "full", 20


def kill_when_it_trains(clone: Twin) -> None:
    """Kill a night and all it started once the arm has left a state of its training."""
    night = clone.start("nightly")
    states = clone.root / f".headstart/checkpoints/topics/{ARM}"
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not list(states.glob("*/*/*/state.json")):
        assert night.poll() is None, night.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for one in [*psutil.Process(night.pid).children(recursive=True), psutil.Process(night.pid)]:
        one.send_signal(signal.SIGKILL)
    night.communicate()


def whole_night(clone: Twin) -> str:
    """A night that is left alone; gives what it said."""
    night = clone.start("nightly")
    said: str = night.communicate(timeout=DEADLINE_SECONDS)[0]
    assert night.returncode == 0, said
    return said


def newest(root: Path) -> dict[str, Any]:
    path = max(
        (root / ".headstart/nightly").glob("*.json"), key=lambda one: json.loads(one.read_text())["number"]
    )
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def counted(root: Path) -> tuple[int, int, int]:
    """Comparisons, trainings and versions in the MLflow store."""
    with closing(sqlite3.connect(root / "mlflow/mlflow.db")) as store:
        of_kind = "SELECT COUNT(*) FROM tags WHERE key = 'headstart.kind' AND value = ?"
        runs = [store.execute(of_kind, (kind,)).fetchone()[0] for kind in ("comparison", "training")]
        versions = "SELECT COUNT(*) FROM model_versions WHERE name = 'headstart-topics'"
        return runs[0], runs[1], store.execute(versions).fetchone()[0]


@pytest.mark.survives(
    "nights",
    "kill -9 of a whole night while it trains",
    how="SIGKILL to `headstart nightly` and all it started, in the middle of an arm",
    held="marked and taken over by the next night, resumed from the last state, one run and one version",
)
def test_a_killed_night_is_taken_over(tmp_path: Path) -> None:
    clone = twin.build(tmp_path / "twin")
    clone.edit_params(
        nightly={"experiments": ["topics"]},
        experiments__topics__arms={"frozen": None},
        experiments__topics__training__seeds=[1],
        experiments__topics__training__batch_size=4,
        experiments__topics__training__epochs=EPOCHS,
        experiments__topics__machine={"checkpoint_seconds": 0.0},
    )
    kill_when_it_trains(clone)
    broken = newest(clone.root)
    assert broken["experiments"]["topics"]["outcome"] == "broken off"
    said = whole_night(clone)
    assert "goes on from step" in said, said
    night = newest(clone.root)
    assert night["experiments"]["topics"]["outcome"] == "promoted"
    assert [one["kind"] for one in night["experiments"]["topics"]["causes"]] == ["unfinished"]
    assert night["took_over"] == ["nightly topics"]
    assert "The run nightly topics had died; its work was taken over." in said
    # What was done before is not done again.
    assert "ingest@topics" not in [one["stage"] for one in night["experiments"]["topics"]["ran"]]
    assert counted(clone.root) == (1, 2, 1)
    assert "nothing to do" in whole_night(clone)
    assert counted(clone.root) == (1, 2, 1)
