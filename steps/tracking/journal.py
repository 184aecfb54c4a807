"""A result as its files tell it: the comparison, and the journal of every training in it."""

from __future__ import annotations

import csv
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps import artifacts


@dataclass(frozen=True)
class Training:
    """One arm with one seed.

    Attributes:
        arm: its name.
        seed: its seed.
        folder: with weights, history and journal.
        journal: `run.json`.
        history: the rows of `history.csv`, one an epoch.
        scores: its metrics on the test split.
    """

    arm: str
    seed: int
    folder: Path
    journal: dict[str, Any]
    history: list[dict[str, float]]
    scores: dict[str, Any]

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.arm} seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """All of one comparison.

    Attributes:
        experiment: its name in params.yaml.
        identity: SHA-256 over the comparison and every journal; two results are one when it is the same.
        comparison: `comparison.json`.
        trainings: every arm with every seed.
    """

    experiment: str
    identity: str
    comparison: dict[str, Any]
    trainings: tuple[Training, ...]

    @property
    def winner(self) -> Training:
        """The best seed of the best arm, which compare chose by validation."""
        best = (self.comparison["best_arm"], self.comparison["best_seed"])
        return next(training for training in self.trainings if (training.arm, training.seed) == best)

    def epochs_to_target(self, training: Training) -> int | None:
        """The epochs a training took to the comparison's target; None where it never reached it."""
        of_arm = next(arm for arm in self.comparison["arms"] if arm["arm"] == training.arm)
        reached: int | None = of_arm["epochs_to_target_by_seed"][of_arm["seeds"].index(training.seed)]
        return reached


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
        _training(experiment, arm, int(seed), found)
        for arm, seeds in scores["arms"].items()
        for seed, found in seeds.items()
    )
    return Result(experiment, identity(experiment), comparison, trainings)


def identity(experiment: str) -> str:
    """SHA-256 over the comparison and every journal of a result, without reading more than these files.

    Raises:
        UserError: there is no comparison yet.
    """
    comparison = artifacts.report_dir(experiment) / "comparison.json"
    artifacts.read_json(comparison, "python -m steps.compare")
    root = artifacts.arms_dir(experiment)
    journals = sorted(root.glob("*/seed-*/run.json"))
    parts = {str(path.relative_to(root)): artifacts.sha256_file(path) for path in journals}
    return artifacts.sha256_json(parts | {"comparison": artifacts.sha256_file(comparison)})


def _training(experiment: str, arm: str, seed: int, scores: dict[str, Any]) -> Training:
    folder = artifacts.seed_dir(experiment, arm, seed)
    journal = artifacts.read_json(folder / "run.json", "python -m steps.train")
    with (folder / "history.csv").open(newline="") as stream:
        history = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    return Training(arm, seed, folder, journal, history, scores)


def origin(experiment: str) -> dict[str, str]:
    """What a result came from, as tags: the code's commit, the parameters and the lock file of DVC."""
    settings = sorted(artifacts.settings_file(experiment, "compare").parent.rglob("*.json"))
    found = {str(path): artifacts.sha256_file(path) for path in settings}
    lock, changes = Path("dvc.lock"), _git("status", "--porcelain")
    return {
        "headstart.git_commit": _git("rev-parse", "HEAD") or "unknown",
        "headstart.git_dirty": "unknown" if changes is None else str(bool(changes)).lower(),
        "headstart.params_sha256": artifacts.sha256_json(found),
        "headstart.dvc_lock_sha256": artifacts.sha256_file(lock) if lock.exists() else "none",
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
