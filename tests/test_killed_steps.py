"""Every stage is killed once; what comes out in the end is what an unbroken run makes."""

from __future__ import annotations

import re
import time
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from tests import twin
from tests.twin import ARMS, Twin

pytestmark = [pytest.mark.flow, pytest.mark.faults]

STEPS = ("resolve", "ingest", "validate", "split", "fetch", "embed", "baseline", "train", "evaluate",
         "curve", "compare", "register")  # fmt: skip
# Killed by themselves; the others go with the whole run. `fetch` is not among them: the flow tries what
# needs a network again, so a run whose fetch alone was killed goes on to its end.
ALONE = frozenset({"resolve", "validate", "baseline", "evaluate", "compare"})
DEADLINE_SECONDS = 240.0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    made = twin.build(tmp_path_factory.mktemp("unbroken") / "twin")
    made.headstart("run", "topics")
    return made


@pytest.fixture
def fresh(tmp_path: Path) -> Twin:
    return twin.build(tmp_path / "twin")


def processes_of(root: Path, module: str) -> list[psutil.Process]:
    """Processes that run a module in a clone."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if process.info["cwd"] == str(root) and module in (process.info["cmdline"] or []):
            found.append(process)
    return found


def kill_in(clone: Twin, step: str, *, alone: bool) -> str:
    """Start a run and kill it when a step has begun; gives what the run said.

    Args:
        clone: where.
        step: which.
        alone: only the step's own processes; else the whole run with it.
    """
    run = clone.start("run", "topics")
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (found := processes_of(clone.root, f"steps.{step}")):
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # Different steps are hit at different moments: while they import, read or write.
    time.sleep(0.05 + 0.1 * (STEPS.index(step) % 4))
    doomed = found if alone else [*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)]
    for process in doomed:
        if process.is_running():
            process.kill()
    said, _ = run.communicate(timeout=DEADLINE_SECONDS)
    return said


def weights(root: Path) -> dict[str, bytes]:
    return {
        f"{arm}/{path.parent.name}": path.read_bytes()
        for arm in ARMS
        for path in sorted((root / "work/topics/arms" / arm).glob("seed-*/model.safetensors"))
    }


def data_hashes(root: Path) -> dict[str, str]:
    """What dvc.lock says of outputs without a time of day in them."""
    stages = YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"]
    outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ())}
    kept = ("data/topics", "work/topics/split.parquet", "work/topics/features", "work/params")
    return {path: outs[path] for path in kept}


@pytest.mark.survives(
    "processes",
    "`kill -9` in each stage and inside register",
    how="SIGKILL to each of the twelve steps in turn, alone or with the run, up to 0.4 s after its start",
    held="the next run goes on; weights and data are those of an unbroken run, and there is one version",
)
def test_every_step_is_killed_once(unbroken: Twin, fresh: Twin) -> None:
    hit = set()
    for step in STEPS:
        said = kill_in(fresh, step, alone=step in ALONE)
        assert "Traceback" not in said
        if step in ALONE and re.search(r"was killed from outside|exit code -9", said):
            hit.add(step)
    assert len(hit) >= 4, f"kills that came in time: {hit}"
    said = fresh.headstart("run", "topics")
    assert "headstart-topics version 1 @champion" in said
    assert weights(fresh.root) == weights(unbroken.root)
    assert data_hashes(fresh.root) == data_hashes(unbroken.root)
    assert not list((fresh.root / "work").rglob(".*.partial-*"))
    assert fresh.headstart("results") == unbroken.headstart("results")
