"""Trainings are killed at any moment, go on, and end with the bytes and the history of an unbroken one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from tests import killed

pytestmark = pytest.mark.slow

RANDOM_SEED = 1
ROOT = Path(__file__).resolve().parent.parent
# To write and sync a thousand checkpoints on a disk would take most of the time; to a kill it is the same.
MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def report() -> Iterator[dict[str, Any]]:
    """What the driver measured, on both experiments."""
    folder = Path(mkdtemp(prefix="headstart-killed-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
    command = [sys.executable, "-m", "tests.killed", str(folder), str(RANDOM_SEED)]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        yield json.loads((folder / "report.json").read_text())
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=list(killed.TASKS))
def measured(report: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = report[request.param]
    return found


def said_to_go_on(printed: str, seed: int) -> list[int]:
    """The steps from which a process said that it goes on with this seed."""
    return [int(step) for step in re.findall(rf"full seed {seed}: goes on from step (\d+) ", printed)]


def test_kills_hit_in_and_out_of_writing(report: dict[str, Any]) -> None:
    kills = [kill for task in killed.TASKS for kill in report[task]["killed"]["kills"]]
    trainings = sum(len(report[task]["killed"]["results"]) for task in killed.TASKS)
    writing = [kill for kill in kills if kill["writing"]]
    half_done = [kill for kill in kills if kill["half_done"]]
    print(  # noqa: T201 - for who reads the log
        f"random seed {report['seed']}: {len(kills)} kills of {trainings} trainings, {len(writing)} while a "
        f"checkpoint was written, {len(half_done)} left it half-done"
    )
    for kill in kills:
        print({name: value for name, value in kill.items() if name != "then"})  # noqa: T201
    assert len(kills) >= 20
    assert len(writing) >= 6
    assert len(half_done) >= 3
    assert len(kills) - len(writing) >= 3


@pytest.mark.survives(
    "processes",
    "`kill -9` in mid-training",
    how="SIGKILL at 24 random moments, half of them while a checkpoint is written",
    held="weights and history are those of an unbroken training, byte by byte",
)
def test_a_killed_training_ends_as_an_unbroken_one(measured: dict[str, Any]) -> None:
    unbroken = measured["unbroken"]
    assert len({seed["weights"] for seed in unbroken.values()}) == len(killed.SEEDS)
    for one in measured["killed"]["results"]:
        assert one["result"] == unbroken
        assert not one["left"], "states of a training that is complete"


def test_a_killed_training_goes_on_where_it_was(measured: dict[str, Any]) -> None:
    """No more than a step is lost beside the one under way: when its state was just being replaced."""
    went_on = 0
    for kill in measured["killed"]["kills"]:
        assert "is damaged" not in kill["then"]
        (seed, step), at = kill["reached"], kill["at"]
        # Nothing is said where the process that came next was killed before it had got so far.
        for found in said_to_go_on(kill["then"], seed):
            went_on += 1
            assert step - 1 <= found <= max(step, at[1]), kill
    assert went_on >= killed.KILLS // 2
    done, one = measured["killed"]["steps"], measured["killed"]["steps_of_one"]
    assert one >= 40
    assert done <= len(measured["killed"]["results"]) * one + killed.KILLS < killed.KILLS * one


@pytest.mark.survives(
    "processes",
    "a parameter is changed after a kill",
    how="SIGKILL, then another learning rate",
    held="the old state is not used; the result is that of a fresh training",
)
def test_a_changed_parameter_never_goes_on_from_a_stale_state(measured: dict[str, Any]) -> None:
    found = measured["another_rate"]
    assert len(found["stale"]) == 1
    assert "goes on" not in found["printed"]
    assert found["found"] == found["unbroken"]
    assert found["found"]["1"]["weights"] != measured["unbroken"]["1"]["weights"]


@pytest.mark.survives(
    "disk",
    "a checkpoint with one flipped bit",
    how="a bit of the newest state is flipped after a kill",
    held="the state before it is used, the damage is told, the result is the same",
)
def test_a_damaged_state_falls_back_says_so_and_ends_the_same(measured: dict[str, Any]) -> None:
    found = measured["damage"]
    before, newest = (int(name.removeprefix("step-")) for name in found["steps"])
    reason = "sha256 of state.safetensors differs"
    assert f"step-{newest:08d} is damaged ({reason}); going on from step {before}\n" in found["printed"]
    assert said_to_go_on(found["printed"], 1) == [before]
    assert found["found"] == measured["unbroken"]
