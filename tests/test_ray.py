"""The same features out of a Ray cluster: bytes, order, mistakes, and workers that die."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steps import artifacts, batch, cluster, data, embedding
from steps.errors import UserError
from steps.params import LIMITS, EmbedSettings, Limits, read_settings
from steps.register import register
from tests import afar
from tests.tracking import made

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Afar:
    """A cluster, and the environment of those who may use it."""

    address: str
    environment: dict[str, str]

    def says(self, name: str, given: str) -> Any:
        """What comes of one of the makes; Ray tells of a worker that died in lines before."""
        words = [sys.executable, "-m", "tests.afar", self.address, name, given]
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, check=False, timeout=200
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def afar_off(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Afar]:
    """A cluster of one machine, started as an administrator starts it, with a token."""
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    binary, log = Path(sys.executable).parent / "ray", tmp_path_factory.mktemp("ray") / "log.txt"
    words = [str(binary), "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    environment = os.environ | {
        "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with log.open("w") as stream:
        words += ["--include-dashboard=false"]
        started = subprocess.Popen(words, env=environment, stdout=stream, stderr=stream)
        end = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert started.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield Afar(f"127.0.0.1:{port}", environment)
        started.terminate()
        started.wait(60)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bytes_of(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in artifacts.files_below(artifacts.features_dir(name))}


def at(name: str, address: str) -> None:
    """Have the experiment's features computed there."""
    path = artifacts.settings_file(name, LIMITS)
    artifacts.write_json(path, Limits(ray=address).model_dump(mode="json"))


# Without a cluster


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray is not installed here: `pip install -e \.\[ray\]`"):
        list(cluster.over_ray(afar.times, "1", afar.BATCHES, address="local", threads=1))
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ


def test_a_worker_computes_what_this_process_would(clone: Path) -> None:
    """Batch by batch, with decoding and all, from any working directory."""
    name = made.clone(clone)
    settings = read_settings(EmbedSettings, artifacts.settings_file(name, "embed"))
    rows, pretrained = data.read_used(name), artifacts.pretrained_dir("toy")
    contents = [artifacts.data_dir(name) / path for path in rows["path"]]
    work = embedding.Work(settings, pretrained, contents, (data.FEATURES, data.RANDOM_FEATURES))
    elsewhere = embedding.absolute(work)
    os.chdir("/")
    torch.set_num_threads(1)
    compute = embedding.embedder(elsewhere)
    os.chdir(clone)
    for file in work.names:
        matrix = np.load(artifacts.features_dir(name) / file)
        for places in data.in_turn(len(contents)):
            assert compute(places)[file].tobytes() == matrix[places].tobytes()


@pytest.mark.slow
def test_nobody_there_is_told_at_once() -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=r"no Ray cluster answers at '127\.0\.0\.1:1': start one.*refused"):
        list(cluster.over_ray(afar.times, "1", afar.BATCHES, address="127.0.0.1:1", threads=1))


# With one


@pytest.mark.long
def test_a_cluster_of_its_own_gives_the_same_bytes(clone: Path) -> None:
    """From the command line; nothing is left running, nothing is said but the step's own line."""
    pytest.importorskip("ray")
    name = made.clone(clone)
    before = bytes_of(name)
    at(name, "local")
    words = [sys.executable, "-m", "steps.embed", name]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1].endswith(" samples a second over Ray (local)")
    assert bytes_of(name) == before
    # The cluster's processes are told to end, and do so by themselves.
    end = time.monotonic() + 60
    while left := [one for one in running() if str(clone) in one]:
        assert time.monotonic() < end, left
        time.sleep(0.2)


def running() -> list[str]:
    """What processes work where, but for this one."""
    found = []
    for folder in set(Path("/proc").glob("[0-9]*")) - {Path(f"/proc/{os.getpid()}")}:
        try:
            found.append(f"{(folder / 'cmdline').read_text()} {(folder / 'cwd').readlink()}")
        except OSError:
            continue
    return found


@pytest.mark.long
def test_texts_of_a_cluster_are_the_same_bytes(clone: Path, afar_off: Afar) -> None:
    """Texts come in batches of like length, and back in their own order."""
    name = made.clone(clone, "text-classification")
    before = bytes_of(name)
    at(name, afar_off.address)
    words = [sys.executable, "-m", "steps.embed", name]
    done = subprocess.run(
        words, env=afar_off.environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert bytes_of(name) == before


@pytest.mark.long
def test_a_batch_of_a_cluster_is_the_same_bytes(clone: Path, afar_off: Afar) -> None:
    """Predictions by the champion: pieces that are there already stay, one input cannot be read."""
    made.store(clone)
    name = made.clone(clone)
    register(name)
    sources = sorted(artifacts.data_dir(name).rglob("*.png"))
    Path("inputs").mkdir()
    for number in range(600):
        shutil.copyfile(sources[number % len(sources)], f"inputs/{number:03}.png")
    Path("inputs/300.png").write_bytes(b"no image")
    batch.batch(name, ["inputs"], Path("here.parquet"))
    words = [sys.executable, "-m", "steps.batch", name, "--out", "there.parquet", "--ray", afar_off.address]
    done = subprocess.run(
        [*words, "--", "inputs"],
        env=afar_off.environment, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "1 of 600 inputs cannot be read" in done.stdout
    for file in ("{}.parquet", "{}.parquet.rejected.csv"):
        assert Path(file.format("there")).read_bytes() == Path(file.format("here")).read_bytes()
    assert not list(Path().glob(".*.pieces"))


def test_a_batch_without_a_cluster_says_what_to_change(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.store(clone)
    name = made.clone(clone)
    register(name)
    monkeypatch.setitem(sys.modules, "ray", None)
    source = next(artifacts.data_dir(name).rglob("*.png"))
    with pytest.raises(UserError, match=r"^--ray: Ray is not installed here"):
        batch.batch(name, [str(source)], Path("out.csv"), ray="local")
    assert not list(Path().glob("*out.csv*"))


@pytest.mark.long
def test_results_come_in_order_and_in_silence(afar_off: Afar) -> None:
    found = afar_off.says("times", "3")
    assert [places for places, _ in found] == afar.BATCHES
    for places, (products, told, threads) in found:
        assert products == [3 * place for place in places]
        assert (told, threads) == ("0", 1)


@pytest.mark.long
def test_a_mistake_out_there_is_one_here(afar_off: Afar) -> None:
    assert afar_off.says("fails_at", "5") == "DataError: sample 5 cannot be read"
    assert afar_off.says("gpu", "1").startswith("UserError: machine.device: cuda, but the Ray cluster at ")


@pytest.mark.faults
def test_a_worker_that_dies_is_replaced(afar_off: Afar, tmp_path: Path) -> None:
    found = afar_off.says("dies_once", str(tmp_path))
    assert (tmp_path / "died").exists()
    assert [result for _, result in found] == [places[0] for places in afar.BATCHES]
