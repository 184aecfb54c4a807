"""Several processes train one network: as one would, told of in one voice, and stopped together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from torch.nn import functional

from steps import artifacts, loop, parallel, train
from steps.errors import ParamsError
from steps.parallel import Ranks
from steps.params import LIMITS, Limits, Machine, TrainSettings, parse
from tests import together
from tests.tracking import made

ROOT = Path(__file__).resolve().parent.parent
MEMORY = Path("/dev/shm")
# A step of gloo between two processes is no wider than this apart from one process.
CLOSE = 1e-5


def environment(**more: str) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR", **more,
    }  # fmt: skip


def measured(*parts: str) -> Iterator[dict[str, Any]]:
    """What the driver reports."""
    folder = Path(mkdtemp(prefix="headstart-together-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
    command = [sys.executable, "-m", "tests.together", str(folder), *parts]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        yield json.loads((folder / "report.json").read_text())
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def report() -> Iterator[dict[str, Any]]:
    yield from measured("alike", "exact", "not_finite", "search", "resumed")


# Who computes what


@pytest.mark.parametrize(
    ("size", "parts", "count"), [(8, 1, 2), (29, 1, 3), (21, 3, 2), (14, 3, 4), (6, 6, 2)]
)
def test_every_sample_is_computed_by_one_process_or_by_all(size: int, parts: int, count: int) -> None:
    shares = [Ranks(rank, count).own(size, parts) for rank in range(count)]
    if size // parts < count:
        assert shares == [list(range(size))] * count
        return
    assert sorted(chain.from_iterable(shares)) == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= parts


@pytest.mark.parametrize("size", [12, 14, 17])
def test_the_parts_of_all_processes_are_the_parts_of_one(size: int) -> None:
    """Batch normalisation sees the same samples together."""
    places = torch.arange(size)
    alone = [some.tolist() for _, some in loop.parts(places, places, 3)]
    found: list[list[int]] = [[], [], []]
    for rank in range(2):
        own = torch.tensor(Ranks(rank, 2).own(size, 3))
        for number, (_, some) in enumerate(loop.parts(own, own, 3)):
            found[number] += some.tolist()
    assert found == alone


def test_alone_there_is_nobody_to_ask() -> None:
    before = torch.get_rng_state()
    with parallel.ALONE.draws(1, 2):
        drawn = torch.rand(3)
    torch.set_rng_state(before)
    assert torch.equal(torch.rand(3), drawn)
    model = torch.nn.Linear(2, 2)
    assert parallel.ALONE.wrapped(model) is model
    assert parallel.ALONE.shared(lambda: 3) == 3
    assert parallel.ALONE.mean(0.1) == 0.1


def test_batch_norm_over_one_process_is_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_sum", lambda values: values.detach().clone())
    inputs = torch.randn(5, 3, 4, 4, dtype=torch.float64) * 3 + 50
    given = [torch.rand(3, dtype=torch.float64) for _ in range(4)]
    gradients, results = [], []
    for work in (functional.batch_norm, parallel.batch_norm):
        mean, variance, weight, bias = (one.clone() for one in given)
        values = inputs.clone().requires_grad_()
        weight.requires_grad_()
        found = work(values, mean, variance, weight, bias, True, 0.3, 1e-5)
        found.square().sum().mul(found.sum()).backward()  # type: ignore[no-untyped-call]
        results.append([found, mean, variance])
        gradients.append([values.grad, weight.grad])
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(gradients[1], gradients[0])


# Settings


def test_one_process_cannot_lower_the_batch_of_all() -> None:
    with pytest.raises(ParamsError, match=r"does not go with `processes`.*raise `accumulate`"):
        parse(Machine, {"processes": 2, "auto_batch_size": True}, "machine")


def settings(**machine: Any) -> TrainSettings:
    raw = {
        "task": "image-classification", "model": {"pretrained": "toy"}, "training": {}, "arm": {},
        "machine": machine,
    }  # fmt: skip
    return TrainSettings.model_validate(raw)


def test_an_arm_that_gains_nothing_trains_in_one_process() -> None:
    many = settings(processes=4)
    assert many.arm is not None
    assert train.processes_of(many) == 4
    assert train.processes_of(settings(), 3) == 3, "torchrun was started by hand"
    for change in ({"tune": "head"}, {"tune": "head", "solver": "lbfgs", "augment": ("flip",), "views": 2}):
        alone = many.model_copy(update={"arm": many.arm.model_copy(update=change)})
        assert train.processes_of(alone, 3) == train.processes_of(alone) == 1


def test_what_is_written_says_how_many_there_were() -> None:
    assert train.with_processes(settings(), 3).machine.processes == 3
    with pytest.raises(Exception, match="raise `accumulate`"):
        train.with_processes(settings(auto_batch_size=True), 2)


# What comes of it


@pytest.mark.slow
@pytest.mark.parametrize("case", together.ALIKE)
def test_two_processes_train_what_one_does(report: dict[str, Any], case: str) -> None:
    found = report["alike"][case]
    assert found["processes"] == 2
    assert found["apart"] < CLOSE < 1000 * CLOSE < found["moved"], found


@pytest.mark.slow
@pytest.mark.parametrize("case", together.EXACT)
def test_batch_normalisations_see_the_whole_batch(report: dict[str, Any], case: str) -> None:
    """In float64: where they learn, AdamW makes of a rounding error a step of full length."""
    assert 0 < report["exact"][case] < CLOSE / 100


@pytest.mark.slow
def test_what_is_not_finite_in_one_stops_all(report: dict[str, Any]) -> None:
    found = report["not_finite"]
    assert found["codes"] == [0, 0], "each raised an error that was foreseen"
    first, second = found["said"]
    assert first == second
    assert "the loss is nan in epoch 1, step 3" in first


@pytest.mark.slow
def test_a_search_takes_the_same_way(report: dict[str, Any]) -> None:
    alone, two = (report["search"][count]["tuning"] for count in ("1", "2"))
    assert two["chosen"] == alone["chosen"]
    assert two["failed"] == alone["failed"] == 1
    for one, other in zip(two["history"], alone["history"], strict=True):
        assert one["values"] == other["values"]
        assert one["failed"] == other["failed"]
        assert one["log_loss"] == pytest.approx(other["log_loss"], abs=1e-6)
    assert two["history"][0] == two["history"][2], "the same values are not trained twice"


def ends_as_unbroken(found: dict[str, Any], count: int) -> None:
    assert found["kills"] == [[-signal.SIGKILL] * count] * 2
    assert found["broken"] == found["whole"]
    assert "goes on from step 11 " in found["printed"]


@pytest.mark.slow
@pytest.mark.survives(
    "processes",
    "all processes of a training over several are killed",
    how="SIGKILL to both, twice",
    held="the same bytes as an unbroken training of two processes",
)
def test_killed_processes_end_as_unbroken_ones(report: dict[str, Any]) -> None:
    ends_as_unbroken(report["resumed"], 2)


@pytest.mark.long
def test_killed_processes_end_as_unbroken_ones_also_where_sums_have_an_order() -> None:
    (found,) = measured("resumed_of_three")
    ends_as_unbroken(found["resumed_of_three"], 3)


# From the command line


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A clone where every arm has two processes."""
    monkeypatch.chdir(tmp_path)
    name = made.clone(tmp_path)
    for arm in ("full", "scratch"):
        path = artifacts.settings_file(name, "train", arm)
        found = json.loads(path.read_text())
        found["machine"]["processes"] = 2
        found["training"]["seeds"] = [1]
        artifacts.write_json(path, found)
    limits = Limits(checkpoint_seconds=0.0).model_dump(mode="json")
    artifacts.write_json(artifacts.settings_file(name, LIMITS), limits)
    return name


def command(name: str, *before: str) -> list[str]:
    return [sys.executable, *before, "-m", "steps.train", name, "full"]


def change(name: str, section: str, **values: Any) -> None:
    path = artifacts.settings_file(name, "train", "full")
    found = json.loads(path.read_text())
    found[section] |= values
    artifacts.write_json(path, found)


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
def test_params_yaml_starts_them_and_one_speaks(experiment: str) -> None:
    done = run(command(experiment))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first.endswith("the declared values are taken")
    assert second.startswith("colours/full seed 1: validation accuracy")
    journal = json.loads((artifacts.seed_dir(experiment, "full", 1) / "run.json").read_text())
    assert journal["settings"]["machine"]["processes"] == 2
    assert not artifacts.checkpoints_dir(experiment, "full").exists()


@pytest.mark.faults
@pytest.mark.survives(
    "processes",
    "a gradient that is not finite in one of several processes",
    how="a learning rate of 1e30",
    held="all stop with one line and exit code 2",
)
def test_an_error_of_theirs_is_one_line(experiment: str, tmp_path: Path) -> None:
    change(experiment, "arm", learning_rate=1e30)
    told = tmp_path / "error.json"
    done = subprocess.run(
        command(experiment), env=environment(HEADSTART_ERROR_FILE=str(told)), capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the gradient is not finite in epoch ")
    assert json.loads(told.read_text())["type"] == "TrainingError"


@pytest.mark.long
def test_torchrun_by_hand_does_the_same(experiment: str) -> None:
    folder = artifacts.seed_dir(experiment, "full", 1)
    run(command(experiment))
    ours = artifacts.sha256_file(folder / "model.safetensors")
    change(experiment, "machine", processes=1)
    shutil.rmtree(folder.parent)
    done = run(command(experiment, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"))
    assert done.returncode == 0, done.stderr
    assert artifacts.sha256_file(folder / "model.safetensors") == ours
    assert json.loads((folder / "run.json").read_text())["settings"]["machine"]["processes"] == 2


# Broken on purpose


def processes_below(parent: int) -> dict[int, int]:
    """The ids of a process's children, by their rank."""
    found: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        try:
            stat, told = (folder / "stat").read_text(), (folder / "environ").read_bytes()
        except (OSError, ValueError):
            continue
        if folder.name.isdigit() and int(stat.rpartition(")")[2].split()[1]) == parent:
            ranks = [one[5:] for one in told.split(b"\0") if one.startswith(b"RANK=")]
            found |= {int(rank): int(folder.name) for rank in ranks}
    return found


def underway(experiment: str) -> tuple[subprocess.Popen[str], dict[int, int]]:
    """A training of two processes that has taken its first steps."""
    change(experiment, "training", epochs=300)
    started = subprocess.Popen(
        command(experiment), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    states, end = artifacts.checkpoints_dir(experiment, "full"), time.monotonic() + 60
    while not list(states.glob("*/*/step-*")):
        assert time.monotonic() < end, "no step in a minute"
        assert started.poll() is None, started.communicate()
        time.sleep(0.05)
    return started, processes_below(started.pid)


def gone(pids: list[int]) -> bool:
    """None of them is left within some seconds."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if not any(Path(f"/proc/{pid}/stat").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@needs_proc
@pytest.mark.faults
@pytest.mark.survives(
    "processes",
    "one process of a training over several is killed",
    how="SIGKILL to the second of two",
    held="the other is stopped, one line says which and what to do",
)
def test_one_that_is_killed_stops_all(experiment: str) -> None:
    started, ranks = underway(experiment)
    os.kill(ranks[1], signal.SIGKILL)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 1
    (line,) = said.splitlines()
    assert line.startswith("error: process 2 of 2 was ended by SIGKILL, and the others with it: run again")
    assert gone(list(ranks.values()))


@needs_proc
@pytest.mark.faults
@pytest.mark.parametrize("with_what", [signal.SIGKILL, signal.SIGTERM])
def test_who_starts_them_takes_them_along(experiment: str, with_what: signal.Signals) -> None:
    started, ranks = underway(experiment)
    assert len(ranks) == 2
    started.send_signal(with_what)
    started.communicate(timeout=60)
    assert started.returncode in (-signal.SIGKILL, 128 + signal.SIGTERM)
    assert gone(list(ranks.values()))
