"""Where each step's files lie, and how they are written: whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steps.errors import DiskFullError, HeadstartError, UserError

PARAMS_FILE = Path("params.yaml")
LEFT_OUT = "left-out.json"
REPORTS = Path("reports")


def settings_file(experiment: str, step: str, arm: str | None = None) -> Path:
    """The JSON file of settings that one step of one experiment (and arm) reads."""
    folder = Path("work/params") / experiment
    return folder / f"{step}.json" if arm is None else folder / "arms" / f"{arm}.json"


def pretrained_settings_file(slug: str) -> Path:
    """The settings `fetch` reads for one pretrained reference."""
    return Path("work/params/pretrained") / f"{slug}.json"


def data_dir(experiment: str) -> Path:
    """Samples and `manifest.parquet`, by ingest."""
    return Path("data") / experiment


def validation_dir(experiment: str) -> Path:
    """`validation.json`, `accepted.parquet`, `rejected.csv` and Data Docs, by validate."""
    return Path("work") / experiment / "validation"


def split_file(experiment: str) -> Path:
    """Which sample is in which split, by split."""
    return Path("work") / experiment / "split.parquet"


def pool_file(experiment: str) -> Path:
    """The place of each sample in the training pool, by split."""
    return Path("work") / experiment / "pool.parquet"


def pretrained_dir(slug: str) -> Path:
    """Backbone weights as safetensors with their provenance, by fetch."""
    return Path("work/pretrained") / slug


def features_dir(experiment: str) -> Path:
    """Features of the frozen backbone, memory-mapped, by embed."""
    return Path("work") / experiment / "features"


def arms_dir(experiment: str) -> Path:
    """One folder for each arm, by train."""
    return Path("work") / experiment / "arms"


def run_name(resample: int, seed: int) -> str:
    """The name of a run's folder."""
    return f"seed-{seed}" if resample == 1 else f"resample-{resample}-seed-{seed}"


def run_id(resample: int, seed: int) -> str:
    """A run in results: `1` is seed 1, `2-1` is seed 1 of the second resample."""
    return str(seed) if resample == 1 else f"{resample}-{seed}"


def seed_dir(experiment: str, arm: str, seed: int, resample: int = 1) -> Path:
    """Weights, history and journal of one training."""
    return arms_dir(experiment) / arm / run_name(resample, seed)


def evaluation_dir(experiment: str) -> Path:
    """`predictions.parquet` and `metrics.json`, by evaluate."""
    return Path("work") / experiment / "evaluation"


def report_dir(experiment: str) -> Path:
    """`comparison.json`, `report.html`, `model_card.md` and plots, by compare."""
    return REPORTS / experiment


def baseline_dir(experiment: str) -> Path:
    """What simple methods reach on the same splits, by baseline."""
    return Path("work") / experiment / "baseline"


def curve_dir(experiment: str) -> Path:
    """Predictions of trainings on fewer and more labels, by curve."""
    return Path("work") / experiment / "curve"


def registration_file(experiment: str) -> Path:
    """What became of the winner in the registry, by register; outside of DVC's care."""
    return Path(".headstart/registered") / f"{experiment}.json"


def rate_range_dir(experiment: str) -> Path:
    """Plots and tables of learning-rate range tests."""
    return Path("work") / experiment / "lr"


def prefix_cache_dir() -> Path:
    """Stored activations of frozen layers; may be deleted at any time, outside of DVC's care."""
    return Path(".headstart/cache/prefix")


def checkpoints_dir(experiment: str, arm: str) -> Path:
    """States of trainings under way, by train; outside of DVC's care, which empties a stage's outputs."""
    return Path(".headstart/checkpoints") / experiment / arm


def trials_dir(experiment: str, arm: str) -> Path:
    """Finished trials of a search, by train; each under a key of all that it depends on."""
    return Path(".headstart/trials") / experiment / arm


def points_dir(experiment: str) -> Path:
    """Finished trainings on other label budgets, by curve; each under a key of all that it depends on."""
    return Path(".headstart/points") / experiment


def ledger_file(experiment: str) -> Path:
    """One line for every model that was scored on a test split; only ever added to."""
    return Path(".headstart/ledger") / f"{experiment}.jsonl"


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of `target` when the block ends well.

    Readers see the old folder or the whole new one. When the block fails, the half-written folder is
    removed and `target` is left as it was. What a killed process left behind is removed on the way in.

    Raises:
        DiskFullError: the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in [
        *target.parent.glob(f".{target.name}.partial-*"),
        *target.parent.glob(f".{target.name}.old-*"),
    ]:
        shutil.rmtree(stale, ignore_errors=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        with _disk_full_named(target):
            partial.mkdir()
            yield partial
            if target.exists():
                old = target.with_name(f".{target.name}.old-{os.getpid()}")
                target.rename(old)
                partial.rename(target)
                shutil.rmtree(old)
            else:
                partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Give a path to write to; it takes the place of `target` when the block ends well.

    Raises:
        DiskFullError: the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}{target.suffix}")
    try:
        with _disk_full_named(target):
            yield partial
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _disk_full_named(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(target.parent).free // 2**20
        raise DiskFullError(
            f"the disk is full ({free} MiB free) while writing {target}; "
            "free some space and run again: nothing half-written was kept"
        ) from error


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write JSON with sorted keys, so that equal values are equal bytes."""
    with new_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: Path, made_by: str) -> Any:  # noqa: ANN401 - any JSON value
    """Read a JSON file another step made.

    Raises:
        UserError: the file is not there; the message names the step which makes it.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; it is made by `{made_by}`: run `dvc repro` or `headstart run`"
        ) from None
    except json.JSONDecodeError as error:
        raise HeadstartError(f"{path} is not valid JSON ({error}); run `{made_by}` again") from None


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_below(folder: Path, *, hidden: bool = True) -> list[Path]:
    """All files in a folder and its sub-folders, sorted.

    Args:
        folder: where to look.
        hidden: those too whose name, or that of a folder they are in, begins with a dot.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        path
        for path in found
        if hidden or not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def sha256_files(folder: Path, *, hidden: bool = True) -> dict[str, str]:
    """SHA-256 of each of `files_below`, by its path from the folder."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path) for path in files_below(folder, hidden=hidden)
    }


def sha256_json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """SHA-256 of a JSON value written with sorted keys and no blanks."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def saved_model(pretrained: Path) -> Path | None:
    """The SavedModel among what fetch wrote; None where torch has the weights."""
    description = read_json(pretrained / "architecture.json", "python -m steps.fetch")
    return pretrained / description["folder"] if description["library"] == "savedmodel" else None


def weights_sha256(pretrained: Path) -> str:
    """What tells the weights that fetch wrote apart from others, taken from their bytes.

    Of torch the SHA-256 of the file; of a SavedModel that of the names and bytes of its files, which is the
    `sha256` of the provenance.
    """
    folder = saved_model(pretrained)
    if folder is not None:
        return sha256_json(sha256_files(folder, hidden=False))
    return sha256_file(pretrained / "model.safetensors")
