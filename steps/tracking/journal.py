"""A result as its files tell it: the comparison, and the journal of every training in it."""

from __future__ import annotations

import contextlib
import csv
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from steps import artifacts

# What a search leaves beside the trainings of its arm.
TUNING = "tuning.json"
CODE = ("steps", "flows", "headstart", "dvc.yaml")
LOCK, ENVIRONMENT = "dvc.lock", "requirements.lock"


@dataclass(frozen=True)
class Training:
    """One arm with one seed, on one part of the training pool.

    Attributes:
        arm: its name.
        seed: its seed.
        folder: with weights, history and journal.
        journal: `run.json`.
        history: the rows of `history.csv`, one an epoch.
        scores: its metrics on the test split.
        resample: which part of the training pool; 1 is the experiment's own.
        tuning: `tuning.json` of its arm; empty in a result that was made before there was one.
    """

    arm: str
    seed: int
    folder: Path
    journal: dict[str, Any]
    history: list[dict[str, float]]
    scores: dict[str, Any]
    resample: int = 1
    tuning: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What people call it."""
        return name_of(self.arm, self.resample, self.seed)


@dataclass(frozen=True)
class Result:
    """All of one comparison.

    Attributes:
        experiment: its name in params.yaml.
        identity: SHA-256 over the comparison and every journal; two results are one when it is the same.
        comparison: `comparison.json`.
        trainings: every arm with every seed, on every resample.
    """

    experiment: str
    identity: str
    comparison: dict[str, Any]
    trainings: tuple[Training, ...]

    @property
    def winner(self) -> Training:
        """The best run of the best arm, which compare chose by validation."""
        found = self.comparison
        name = name_of(found["best_arm"], found.get("best_resample", 1), found["best_seed"])
        return next(training for training in self.trainings if training.name == name)

    def of_arm(self, arm: str) -> dict[str, Any]:
        """What the comparison says of an arm."""
        return next(one for one in self.comparison["arms"] if one["arm"] == arm)

    def epochs_to_target(self, training: Training) -> int | None:
        """The epochs a training took to the comparison's target; None where it never reached it.

        The comparison has one value a run, resample by resample, and names the seeds once or with each run.
        """
        found = self.of_arm(training.arm)
        reached: list[int | None] = found["epochs_to_target_by_seed"]
        seeds: list[int] = found["seeds"]
        first = seeds.index(training.seed)
        once = seeds.index(seeds[0], 1) if seeds[0] in seeds[1:] else len(seeds)
        return reached[(training.resample - 1) * once + first]


def name_of(arm: str, resample: int, seed: int) -> str:
    """What people call a training."""
    return f"{arm} seed {seed}" if resample == 1 else f"{arm} resample {resample} seed {seed}"


def read(experiment: str) -> Result:
    """Read the files compare, evaluate and train left.

    Raises:
        UserError: one is missing; the message names the step which makes it.
    """
    comparison_file = artifacts.report_dir(experiment) / "comparison.json"
    comparison = artifacts.read_json(comparison_file, "python -m steps.compare")
    scores = artifacts.read_json(
        artifacts.evaluation_dir(experiment) / "scores.json", "python -m steps.evaluate"
    )
    trainings = tuple(
        _training(experiment, arm, run, found)
        for arm, runs in scores["arms"].items()
        for run, found in runs.items()
    )
    return Result(experiment, identity(experiment), comparison, trainings)


def identity(experiment: str) -> str:
    """SHA-256 over the comparison and every journal, of searches too, without reading more than these files.

    Raises:
        UserError: there is no comparison yet.
    """
    comparison = artifacts.report_dir(experiment) / "comparison.json"
    artifacts.read_json(comparison, "python -m steps.compare")
    root = artifacts.arms_dir(experiment)
    journals = sorted([*root.glob("*/*seed-*/run.json"), *root.glob(f"*/{TUNING}")])
    parts = {str(path.relative_to(root)): artifacts.sha256_file(path) for path in journals}
    return artifacts.sha256_json(parts | {"comparison": artifacts.sha256_file(comparison)})


def _training(experiment: str, arm: str, run: str, scores: dict[str, Any]) -> Training:
    """A training by its name among the scores: `1` is seed 1, `2-1` is seed 1 of the second resample."""
    before, _, seed = run.rpartition("-")
    resample = int(before or 1)
    folder = artifacts.seed_dir(experiment, arm, int(seed), resample)
    journal = artifacts.read_json(folder / "run.json", "python -m steps.train")
    with (folder / "history.csv").open(newline="") as stream:
        history = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    path = folder.parent / TUNING
    tuning = artifacts.read_json(path, "python -m steps.train") if path.exists() else {}
    return Training(arm, int(seed), folder, journal, history, scores, resample, tuning)


def origin(experiment: str, kept: Path | None = None) -> dict[str, str]:
    """What a result came from, as tags: commit, parameters, DVC's lock file, flow run, environment, machine.

    `git_dirty` tells whether the code, of all files, differed from the commit.

    Args:
        experiment: its name.
        kept: where `keep_origin` put the files; None looks at those of the clone.
    """
    settings = sorted(artifacts.settings_file(experiment, "compare").parent.rglob("*.json"))
    found = {str(path): artifacts.sha256_file(path) for path in settings}
    lock, environment = (_hashed((kept or Path()) / name) for name in (LOCK, ENVIRONMENT))
    # Only code can be had from the commit alone; parameters and lock files are published with the result.
    changes = _git("status", "--porcelain", "--", *CODE)
    return {
        "headstart.git_commit": _git("rev-parse", "HEAD") or "unknown",
        "headstart.git_dirty": "unknown" if changes is None else str(bool(changes)).lower(),
        "headstart.params_sha256": artifacts.sha256_json(found),
        "headstart.dvc_lock_sha256": lock,
        "headstart.environment_sha256": environment,
        "headstart.flow_run": os.environ.get("HEADSTART_FLOW_RUN") or "none",
        "headstart.machine": machine(),
    }


def keep_origin(experiment: str, folder: Path) -> None:
    """Copy the files that a result came from, those that there are, so that they go with it as they are now.

    Args:
        experiment: its name.
        folder: where they are put, each by its own name.
    """
    validation = artifacts.validation_dir(experiment) / "validation.json"
    for path in (Path(LOCK), artifacts.PARAMS_FILE, Path(ENVIRONMENT), validation):
        if path.exists():
            shutil.copyfile(path, folder / path.name)


@cache
def machine() -> str:
    """What kind of machine this is: on the same kind, the same training ends in the same bytes."""
    model = platform.processor() or "unknown processor"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model
        )
    return f"{platform.system()} {platform.machine()}, {model}, Python {platform.python_version()}"


def _hashed(path: Path) -> str:
    return artifacts.sha256_file(path) if path.exists() else "none"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
