"""curve: train the arms on fewer and on more labels; how much data a pretrained start is worth.

Every budget is a part of the next larger one; validation and test stay as they are, and so do the rates that
the search found at the experiment's own budget. A budget smaller than that gets as many steps, a larger one
as many epochs: so no point is worse for want of steps (as Nakkiran et al., Deep Double Descent, 2020, warn
when epochs are equal), and arms at one budget get the same.

A finished point is kept below `.headstart/points/`, under a key of all that it depends on: another budget or
another arm trains what is new, and nothing else.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from steps import answers, artifacts, data, entry, ledger, metrics, params
from steps.errors import UserError
from steps.params import CurveSettings, EmbedSettings, TrainSettings

if TYPE_CHECKING:
    from steps.trainable import Job

PREDICTIONS, POINTS, LOOKS = "predictions.parquet", "points.json", "looks.json"
# Of a finished point.
POINT, SAID = "point.json", "said.parquet"


def curve(experiment: str) -> None:
    """Write `work/<experiment>/curve/`: predictions on the test split, and what each training was.

    The experiment's own budget is not trained again: its trainings are those of train.

    Raises:
        UserError: a budget is larger than the training pool, or smaller than the number of classes.
        TrainingError: a loss is not finite.
    """
    settings = params.read_settings(CurveSettings, artifacts.settings_file(experiment, "curve"))
    own = int((data.read_split(experiment)["split"] == "train").sum())
    with artifacts.new_folder(artifacts.curve_dir(experiment)) as folder:
        points, frames = [], []
        wanted = budgets(experiment, settings, own)
        if wanted:
            plan = Plan(experiment, settings, own, _features(experiment, settings))
            for labels in wanted:
                for point, frame in _at(plan, labels):
                    points.append(point)
                    frames.append(frame)
            pd.concat(frames, ignore_index=True).to_parquet(folder / PREDICTIONS, index=False)
            tested = ledger.test_sha256(data.read_split(experiment).query("split == 'test'"))
            artifacts.write_json(folder / LOOKS, ledger.looks(experiment, tested))
        artifacts.write_json(folder / POINTS, points)
    count = len(points)
    entry.say(f"{experiment}: {count} trainings on other budgets" if count else f"{experiment}: no curve")


@dataclass(frozen=True)
class Plan:
    """What all trainings of a curve share.

    Attributes:
        experiment: its name.
        settings: of curve.
        own: the experiment's own label budget.
        features: the folder with the features of the whole training pool, of validation and of test.
    """

    experiment: str
    settings: CurveSettings
    own: int
    features: Path


def budgets(experiment: str, settings: CurveSettings, own: int) -> list[int]:
    """The label budgets to train on, rising, without the experiment's own.

    Raises:
        UserError: a budget is larger than the training pool.
    """
    counts = {
        int((data.read_pool(experiment, None if one == "all" else one)["split"] == "train").sum())
        for one in settings.curve.labels
    }
    return sorted(counts - {own})


def _at(plan: Plan, labels: int) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Every arm and seed at one budget."""
    rows = data.read_pool(plan.experiment, labels)
    short = sorted(set(rows["label"]) - set(rows["label"][rows["split"] == "train"]))
    if short:
        raise UserError(f"curve.labels: {labels} leaves no sample of class {short[0]!r}; raise it")
    test = rows[rows["split"] == "test"]
    found = []
    for arm in plan.settings.arms:
        for seed in plan.settings.seeds:
            point, said = _point(plan, arm, seed, labels, rows)
            frame = pd.DataFrame(
                {"id": test["id"].to_numpy(), "arm": arm, "labels": labels, "seed": seed, **said}
            )
            found.append((point, frame))
    return found


def _point(
    plan: Plan, arm: str, seed: int, labels: int, rows: pd.DataFrame
) -> tuple[dict[str, Any], pd.DataFrame]:
    """One training: what it was, and what it says of the test split, as columns."""
    from steps import trainable

    settings = _settings(plan.experiment, arm, seed)
    training = settings.training.model_copy(update={"epochs": epochs(settings, plan.own, labels)})
    settings = settings.model_copy(update={"training": training})
    job = trainable.load(plan.experiment, arm, settings, rows=rows, features_folder=plan.features)
    digest = artifacts.sha256_json(trainable.run_key(job, seed))[:12]
    path = artifacts.points_dir(plan.experiment) / f"{arm}-{labels}-{seed}-{digest}"
    if not path.exists():
        _train(job, seed, labels, path)
    point: dict[str, Any] = artifacts.read_json(path / POINT, "curve")
    return point, pd.read_parquet(path / SAID)


def _settings(experiment: str, arm: str, seed: int) -> TrainSettings:
    """What train used for the arm, with the rates that its search chose."""
    path = artifacts.seed_dir(experiment, arm, seed) / "run.json"
    journal = artifacts.read_json(path, f"python -m steps.train {experiment} {arm}")
    return params.parse(TrainSettings, journal["settings"], str(path))


def epochs(settings: TrainSettings, own: int, labels: int) -> int:
    """How many epochs a budget gets: as many steps as the experiment's own budget, or as many epochs.

    Args:
        settings: of the arm.
        own: the experiment's own budget.
        labels: the budget.
    """
    size, wanted = settings.training.batch_size, settings.training.epochs
    ratio = math.ceil(own / size) / math.ceil(labels / size)
    return max(wanted, math.ceil(wanted * ratio))


def _features(experiment: str, settings: CurveSettings) -> Path:
    """The folder with the features of the whole training pool, of validation and of test."""
    from steps import embedding

    # Task, model and machine are the experiment's: the same for every arm.
    one = _settings(experiment, settings.arms[0], settings.seeds[0])
    wanted = EmbedSettings(task=one.task, model=one.model, machine=one.machine)
    rows = data.read_pool(experiment, None)
    rows = rows[rows["split"] != ""]
    # The same key that embed writes down; the order of the rows is that of the file they are in.
    digest = artifacts.sha256_json(embedding.key(wanted, rows) | {"ids": list(rows["id"])})[:16]
    folder = Path(".headstart/cache/pool") / f"{experiment}-{digest}"
    if not folder.exists():
        said = f"embed the training pool of {experiment}"
        with artifacts.new_folder(folder) as partial, entry.Progress(said, len(rows)) as progress:
            embedding.write(experiment, wanted, rows, partial, progress.reached, random_too=False)
    return folder


def _train(job: Job, seed: int, labels: int, path: Path) -> None:
    """Train one network, score it on the test split, and keep what came of it."""
    from steps import freezing, trainable

    label = f"{job.experiment}/{job.arm_name}, {labels} labels, seed {seed}"
    model, training = trainable.build(job, seed), job.settings.training
    steps = training.epochs * data.batches_of(len(job.part("train")), training.batch_size)
    with entry.Progress(label, steps) as progress:
        fitted = trainable.fit(job, model, seed, log=lambda values, step: progress.reached(step))
    if job.arm.tune == "lora":
        freezing.merge_lora(model)
    said = job.task.predict(model, trainable.inputs(job, model, 0, "test"), job.ask(job.device))
    point = {
        "arm": job.arm_name,
        "labels": labels,
        "seed": seed,
        "epochs": fitted.epochs,
        "steps": fitted.steps,
        "best_epoch": fitted.best_epoch,
        "best": fitted.best,
        "seconds": round(fitted.seconds, 3),
    }
    test = job.part("test")
    ledger.record(job.experiment, ledger.test_sha256(test), [f"curve/{path.name}"])
    with artifacts.new_folder(path) as folder:
        artifacts.write_json(folder / POINT, point)
        table = pd.DataFrame(answers.columns(job.task, test, said, job.classes))
        table.to_parquet(folder / SAID, index=False)
    metric = job.kind.metrics[0]
    value = fitted.best[f"validation_{metric}"]
    entry.say(f"{label}: validation {metrics.SHOWN[metric]} {value:.3f}, {fitted.seconds:.1f} s")


def main() -> int:
    """Run `python -m steps.curve <experiment>`."""
    return entry.run(curve, "experiment")


if __name__ == "__main__":
    sys.exit(main())
