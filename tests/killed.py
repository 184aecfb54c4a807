"""Kills trainings and lets them go on: the driver of test_killed.py, a process of its own.

A process that has run pytest or threads is a bad parent to fork, and importing torch takes seconds. So this
one imports all that a training needs, once, and does nothing else itself: every piece of work is done in a
fork of it, which may be killed.

    python -m tests.killed FOLDER RANDOM_SEED
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import timm  # noqa: F401 - imported here, not in every fork
import torch
import transformers.models.bert.modeling_bert  # noqa: F401

from steps import artifacts, checkpoint, resume, train
from steps.params import LIMITS, Limits
from tests.tracking import made

KILLS = 12
TASKS = {"image-classification": 3, "text-classification": 5}
ARM, SEEDS = "full", (1, 2)


# The experiment


def make(task: str, epochs: int) -> None:
    """Files of an experiment in the working directory, up to split; about 40 steps over both seeds."""
    name = made.EXPERIMENT[task]
    made.write_settings(name, task)
    made.write_pretrained(task)
    made.write_data(name, task, per_class=16)
    split = pd.read_parquet(artifacts.split_file(name))
    split["split"] = ["validation" if number % 4 == 0 else "train" for number in range(len(split))]
    split.to_parquet(artifacts.split_file(name))
    change(name, lambda settings: settings["training"].update(epochs=epochs, batch_size=5))


def change(name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the arm's settings."""
    path = artifacts.settings_file(name, "train", ARM)
    settings = json.loads(path.read_text())
    edit(settings)
    artifacts.write_json(path, settings)


def save_after_every_step(name: str) -> None:
    limits = Limits(checkpoint_seconds=0.0).model_dump(mode="json")
    artifacts.write_json(artifacts.settings_file(name, LIMITS), limits)


def result(name: str) -> dict[str, Any]:
    """What two trainings must agree in: the weights' bytes, and the history but for the time it took."""
    found: dict[str, Any] = {}
    for seed in SEEDS:
        folder = artifacts.seed_dir(name, ARM, seed)
        history = pd.read_csv(folder / checkpoint.HISTORY, dtype=str).drop(columns="seconds")
        found[str(seed)] = {
            "weights": artifacts.sha256_file(folder / checkpoint.WEIGHTS),
            "history": history.to_csv(index=False),
        }
    return found


# Processes


class Child:
    """A fork that trains, and tells when it begins and ends to write a checkpoint.

    Attributes:
        told: the time, whether it is a beginning, the training's seed and the step, of each word it sent.
    """

    def __init__(self, work: Callable[[], object], log: Path) -> None:
        self.log = log
        self.told: list[tuple[float, bool, int, int]] = []
        self.pipe, theirs = os.pipe()
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self._be(work, theirs)
                status = 0
            finally:
                os._exit(status)
        os.close(theirs)
        self.rest = b""

    def _be(self, work: Callable[[], object], pipe: int) -> None:
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        save = resume.Checkpoints.save

        def telling(kept: resume.Checkpoints, step: int, *state: Any) -> None:
            seed = kept.folder.parent.name.removeprefix("seed-")
            os.write(pipe, f"1 {seed} {step}\n".encode())
            save(kept, step, *state)
            os.write(pipe, f"0 {seed} {step}\n".encode())

        setattr(resume.Checkpoints, "save", telling)  # noqa: B010 - mypy allows no other way
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            raise

    def hear(self, until: float | None) -> bool:
        """Take its next words, or wait until that time; False: it has ended."""
        wait = None if until is None else max(0.0, until - time.monotonic())
        if not select.select([self.pipe], [], [], wait)[0]:
            return True
        content = os.read(self.pipe, 65536)
        now = time.monotonic()
        *lines, self.rest = (self.rest + content).split(b"\n")
        for line in lines:
            begins, seed, step = (int(word) for word in line.split())
            self.told.append((now, bool(begins), seed, step))
        return bool(content)

    def steps(self, begun: bool = True) -> set[tuple[int, int]]:
        """Seed and step of each checkpoint it has begun (or ended) to write."""
        return {(seed, step) for _, begins, seed, step in self.told if begins == begun}

    def wait(self) -> str:
        """Let it end; gives what it printed."""
        while self.hear(None):
            pass
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        self.seconds = time.monotonic() - self.started
        self.killed = os.WIFSIGNALED(status)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
            raise RuntimeError(f"the training failed:\n{self.log.read_text()}")
        return self.log.read_text()

    def kill_after(self, seconds: float) -> str:
        """Kill it after so long, unless it ends before."""
        end = self.started + seconds
        while time.monotonic() < end and self.hear(end):
            pass
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def kill_at(self, writing: bool, number: int, delay: float) -> str:
        """Kill it so long after it began (or ended) to write its n-th checkpoint, unless it ends before."""
        while sum(begins == writing for _, begins, _, _ in self.told) < number and self.hear(None):
            pass
        end = time.monotonic() + delay
        while time.monotonic() < end:
            pass
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()


def run(name: str, log: str = "log.txt") -> Child:
    """A fork that trains the arm; where its checkpoints are, there it goes on."""
    return Child(lambda: train.train(name, ARM), Path(log))


def finished(name: str) -> tuple[dict[str, Any], str]:
    """Train to the end; gives the result and what was printed."""
    printed = run(name).wait()
    return result(name), printed


def states(name: str) -> Path:
    return artifacts.checkpoints_dir(name, ARM)


def afresh(name: str) -> None:
    for folder in (states(name), artifacts.arms_dir(name)):
        shutil.rmtree(folder, ignore_errors=True)


# What is measured


def kill_and_go_on(name: str, chance: random.Random) -> dict[str, Any]:
    """Kill trainings at random moments, half of them while they write; let each end, and compare.

    A training is killed a few times and then ends, be it before its next kill or as all kills are used up.
    Then another begins afresh.
    """
    afresh(name)
    whole = run(name)
    whole.wait()
    times = [when for when, *_ in whole.told]
    spans = [later - earlier for earlier, later in pairwise(times)]
    usual = {"in a write": statistics.median(spans[::2]), "between writes": statistics.median(spans[1::2])}
    afresh(name)
    kills: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    steps, reached = 0, (0, 0)
    while len(kills) < KILLS or reached != (0, 0) or not results:
        child = run(name)
        plan = chance.choice([*usual, "in a write", "at any time"]) if len(kills) < KILLS else "let it end"
        if plan == "let it end":
            printed = child.wait()
        elif plan == "at any time":
            printed = child.kill_after(chance.uniform(0, whole.seconds * 0.7))
        else:
            number, delay = chance.randint(1, len(whole.told) // 6), chance.uniform(0, usual[plan])
            printed = child.kill_at(plan == "in a write", number, delay)
        steps += len(child.steps())
        if kills and "then" not in kills[-1]:
            kills[-1]["then"] = printed
        if child.killed:
            # Without states there is nothing to go on from: none was written yet, or its work was done when
            # it was killed, and the next begins anew.
            there = states(name).exists()
            reached = max([reached, *child.steps(begun=False)]) if there else (0, 0)
            kills.append({"plan": plan, "reached": reached, **traces(name, child)})
        else:
            results.append({"result": result(name), "left": states(name).exists()})
            reached = (0, 0)
            afresh(name)
    return {
        "kills": kills,
        "results": results,
        "steps": steps,
        "steps_of_one": len(whole.steps()),
        "usual": usual,
        "whole": whole.seconds,
    }


def traces(name: str, child: Child) -> dict[str, Any]:
    """Where a kill hit: seconds from the start, whether amid a checkpoint, and what is half-done of it."""
    _, writing, seed, step = child.told[-1] if child.told else (0.0, False, 0, 0)
    half_done = [path.name for path in states(name).glob(f"*/*/.step-*-{child.pid}")]
    return {"seconds": child.seconds, "writing": writing, "at": (seed, step), "half_done": half_done}


def with_another_rate(name: str) -> dict[str, Any]:
    """Kill a training, change its learning rate, and train: nothing of the old state may come in."""
    afresh(name)
    run(name).kill_at(True, 9, 0.0)
    stale = sorted(path.name for path in states(name).glob("*/*"))
    change(name, lambda settings: settings["arm"].update(learning_rate=0.02))
    found, printed = finished(name)
    afresh(name)
    unbroken, _ = finished(name)
    change(name, lambda settings: settings["arm"].update(learning_rate=0.01))
    return {"stale": stale, "printed": printed, "found": found, "unbroken": unbroken}


def with_damage(name: str) -> dict[str, Any]:
    """Kill a training, damage its newest checkpoint by a bit, and let it go on."""
    afresh(name)
    run(name).kill_at(True, 9, 0.0)
    steps = sorted(path.name for path in states(name).glob("*/*/step-*"))
    (newest,) = states(name).glob(f"*/*/{steps[-1]}/{resume.TENSORS}")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    found, printed = finished(name)
    return {"steps": steps, "printed": printed, "found": found}


def measure(task: str, epochs: int, seed: int) -> dict[str, Any]:
    """All about one experiment, made in the working directory."""
    name = made.EXPERIMENT[task]
    Child(lambda: make(task, epochs), Path("log.txt")).wait()
    unbroken, _ = finished(name)
    save_after_every_step(name)
    return {
        "unbroken": unbroken,
        "killed": kill_and_go_on(name, random.Random(seed)),
        "another_rate": with_another_rate(name),
        "damage": with_damage(name),
    }


def main() -> None:
    folder, seed = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    torch.set_num_threads(1)
    # The forks inherit it: the code they run is this process's, whatever is edited meanwhile.
    resume.code_sha256()
    report: dict[str, Any] = {"seed": seed}
    for task, epochs in TASKS.items():
        (folder / task).mkdir()
        with chdir(folder / task):
            began = time.monotonic()
            report[task] = measure(task, epochs, seed)
            report[task]["seconds"] = time.monotonic() - began
    (folder / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
