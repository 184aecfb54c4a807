"""`headstart reproduce`: train a version again, from what was recorded of it, in a fresh clone; compare."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from headstart import terminal
from headstart.releasing import Reference
from steps import artifacts
from steps.errors import HeadstartError, UserError

# What must have been published with the result.
NEEDED = ("dvc.lock", "params.yaml", "comparison.json")
DIFFERENT = 1


@dataclass(frozen=True)
class Recorded:
    """What is known of a version's making.

    Attributes:
        name: of the version, for people.
        experiment: whose winner it is.
        arm: that was trained.
        run: the name of the run's folder, e.g. `seed-1`.
        commit: of the code.
        weights: SHA-256 of the trained weights.
        machine: it was trained on.
        environment: SHA-256 of requirements.lock.
        origin: the folder with what was published beside it.
    """

    name: str
    experiment: str
    arm: str
    run: str
    commit: str
    weights: str
    machine: str | None
    environment: str | None
    origin: Path

    @property
    def stage(self) -> str:
        """Of DVC, that trained it."""
        return f"train@{self.experiment}-{self.arm}"


def reproduce(
    reference: Reference,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="FOLDER", help="Make the clone here and leave it.")
    ] = None,
) -> None:
    """Train a version again in a fresh clone. Says whether it comes out the same."""
    target = None if keep is None else keep.absolute()
    terminal.enter_clone()
    if target is not None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there and not empty; give --keep a new folder")
    with _room(target) as (clone, origin):
        recorded = read(reference, origin)
        _say(f"{recorded.name}: arm {recorded.arm}, {recorded.run}, commit {recorded.commit[:12]}")
        for line in warnings(recorded):
            _say(line)
        prepare(recorded, clone)
        _step(clone, "train", recorded.experiment, recorded.arm)
        same = compare(recorded, clone)
    raise typer.Exit(0 if same else DIFFERENT)


@contextmanager
def _room(target: Path | None) -> Iterator[tuple[Path, Path]]:
    """A folder for the clone, and one for what was published; both are gone afterwards, unless kept."""
    # On the disk of the clone: its cache may then be linked and not copied.
    below = Path(".headstart").absolute()
    below.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="reproduce-", dir=below) as folder:
        yield target or Path(folder) / "clone", Path(folder) / "origin"


# ------------------------------------------------------------------------------------------ what was recorded


def read(reference: str, origin: Path) -> Recorded:
    """Read where a version comes from, and hold that it can be had again.

    Args:
        reference: as `headstart why` takes it.
        origin: a folder that gets what was published with the result.

    Raises:
        UserError: something that is needed was not recorded, or is not here; the message says what to do.
    """
    command = [sys.executable, "-m", "steps.why", "--json", f"--files={origin}", "--", reference]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # What differs now, e.g. bytes in the registry, does not change what was recorded.
    if not done.stdout:
        raise UserError(done.stderr.strip().removeprefix("error: ") or "`headstart why` failed")
    found = json.loads(done.stdout)
    links = {link["name"]: link for link in found["links"]}
    name = f"version {found['version']} of {found['model']}"
    commit = links["commit"]["facts"].get("commit", "unknown")
    _hold(name, links, commit, origin)
    resample, seed = int(found["resample"] or 1), int(found["seed"])
    return Recorded(
        name,
        found["experiment"],
        found["arm"],
        artifacts.run_name(resample, seed),
        commit,
        links["run"]["facts"]["weights_sha256"],
        links["environment"]["facts"].get("machine"),
        links["environment"]["facts"].get("sha256"),
        origin,
    )


def _hold(name: str, links: Mapping[str, Any], commit: str, origin: Path) -> None:
    missing = [one for one in NEEDED if not (origin / one).exists()]
    if missing:
        raise UserError(
            f"{name} was published without {', '.join(missing)}, by an earlier release or outside of a "
            "clone; `headstart why` tells what is known, and the next version will have all"
        )
    if links["dvc.lock"]["check"] != "ok":
        raise UserError(f"{name}: the dvc.lock that was published with it is not the one that was recorded")
    dirty = links["commit"]["facts"].get("dirty")
    if commit == "unknown" or dirty != "false":
        why = (
            "outside of git"
            if commit == "unknown"
            else f"from code that differs from its commit {commit[:12]}"
        )
        raise UserError(
            f"{name} was made {why}, so nobody can have that code again; commit the code before `headstart "
            "run`, and what it registers can be reproduced"
        )
    if links["commit"]["check"] != "ok":
        raise UserError(
            f"{name} was made by commit {commit}, which is not here; `git fetch` the branch it is on"
        )


def warnings(recorded: Recorded) -> list[str]:
    """What may make the bytes differ, before anything is trained."""
    lines = []
    if recorded.machine != _machine():
        there = recorded.machine or "a machine that was not noted"
        lines.append(f"note: it was trained on {there}; here is {_machine()}")
    here = Path("requirements.lock")
    if recorded.environment != (artifacts.sha256_file(here) if here.exists() else "none"):
        lines.append("note: requirements.lock was another then; this environment is used all the same")
    return lines


def _machine() -> str:
    from steps.tracking import journal

    return journal.machine()


# ------------------------------------------------------------------------------------------- the fresh clone


def prepare(recorded: Recorded, clone: Path) -> None:
    """Make the clone, put the recorded files in place, and bring what the training reads; nothing trained.

    Raises:
        UserError: the data are neither in the cache nor in a remote.
        HeadstartError: git or DVC failed.
    """
    root = _output("git", "rev-parse", "--show-toplevel")
    _run(["git", "clone", "--quiet", "--no-checkout", "--", root, str(clone)])
    _run(["git", "-C", str(clone), "checkout", "--quiet", "--detach", recorded.commit])
    for name in ("dvc.lock", "params.yaml"):
        shutil.copyfile(recorded.origin / name, clone / name)
    local = Path(".dvc/config.local")  # may hold the remote's credentials
    if local.exists():
        shutil.copyfile(local, clone / local)
    _dvc(clone, "config", "--local", "cache.dir", _output(sys.executable, "-m", "dvc", "cache", "dir"))
    _bring(clone, upstream(read_lock(clone), recorded.stage))


def read_lock(clone: Path) -> dict[str, Any]:
    """The stages of a clone's dvc.lock."""
    from ruamel.yaml import YAML

    found: dict[str, Any] = YAML(typ="safe").load((clone / "dvc.lock").read_text("utf-8"))["stages"]
    return found


def upstream(stages: Mapping[str, Any], *targets: str) -> list[str]:
    """The stages whose outputs these stages read, directly or not; sorted, without themselves.

    Args:
        stages: of dvc.lock.
        targets: names of stages.

    Raises:
        UserError: dvc.lock has no such stage.
    """
    makers = {out["path"]: name for name, stage in stages.items() for out in stage.get("outs", [])}
    found: set[str] = set()
    waiting = list(targets)
    while waiting:
        name = waiting.pop()
        if name not in stages:
            raise UserError(f"the recorded dvc.lock has no stage {name}")
        for dep in stages[name].get("deps", []):
            for maker in {makers[path] for path in makers if _meet(path, dep["path"])} - found:
                found.add(maker)
                waiting.append(maker)
    return sorted(found - set(targets))


def _meet(one: str, other: str) -> bool:
    """Whether two paths are one, or one lies in the other."""
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _bring(clone: Path, stages: list[str]) -> None:
    """Bring outputs of stages from the cache, or from the remote."""
    if _dvc(clone, "checkout", "--quiet", *stages, check=False) == 0:
        return
    if _dvc(clone, "pull", "--quiet", *stages, check=False) != 0:
        raise UserError(
            f"not all outputs of {', '.join(stages)} are in DVC's cache, and `dvc pull` could not bring "
            "them; `dvc remote list` tells where they may be"
        )


# --------------------------------------------------------------------------------------------- the comparison


def compare(recorded: Recorded, clone: Path) -> bool:
    """Say whether the weights are the same bytes, or else whether the metric is where it was."""
    trained = (
        clone / artifacts.arms_dir(recorded.experiment) / recorded.arm / recorded.run / "model.safetensors"
    )
    found = artifacts.sha256_file(trained)
    if found == recorded.weights:
        _say(f"{recorded.name}: the weights are byte-equal, sha256 {found[:12]}")
        return True
    _say(f"{recorded.name}: the weights differ, sha256 {found[:12]} and not {recorded.weights[:12]}")
    metric, value, (low, high) = _measure(recorded, clone)
    inside = low <= value <= high
    where = "within" if inside else "outside of"
    _say(f"{recorded.name}: test {metric} of {recorded.arm} is {value:.4f}, {where} {low:.4f} to {high:.4f}")
    return inside


def _measure(recorded: Recorded, clone: Path) -> tuple[str, float, tuple[float, float]]:
    """Metric, the arm's mean now, and the interval of the mean that was recorded."""
    evaluate = f"evaluate@{recorded.experiment}"
    stages = [one for one in upstream(read_lock(clone), evaluate) if one != recorded.stage]
    _bring(clone, stages)
    _step(clone, "evaluate", recorded.experiment)
    comparison = json.loads((recorded.origin / "comparison.json").read_text("utf-8"))
    metric = comparison["metric"]["name"]
    arm = next(one for one in comparison["arms"] if one["arm"] == recorded.arm)
    path = clone / artifacts.evaluation_dir(recorded.experiment) / "scores.json"
    runs = json.loads(path.read_text("utf-8"))["arms"][recorded.arm]
    return metric, fmean(run[metric] for run in runs.values()), (arm["ci_low"], arm["ci_high"])


# --------------------------------------------------------------------------------------------- other programs


def _say(line: str) -> None:
    terminal.console().out(line, highlight=False)


def _step(clone: Path, step: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"steps.{step}", *arguments]
    _run(command, clone)


def _dvc(clone: Path, *arguments: str, check: bool = True) -> int:
    command = [sys.executable, "-m", "dvc", *arguments]
    if check:
        _run(command, clone)
        return 0
    return subprocess.run(command, cwd=clone, capture_output=True, check=False).returncode


def _run(command: list[str], folder: Path | None = None) -> None:
    # An error that this clone's flow would read is not its own.
    environment = {name: value for name, value in os.environ.items() if name != "HEADSTART_ERROR_FILE"}
    done = subprocess.run(command, cwd=folder, env=environment, check=False)
    if done.returncode:
        raise HeadstartError(f"`{' '.join(command)}` failed with exit code {done.returncode}, see above")


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HeadstartError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout.strip()
