"""Bring a result to MLflow, once: a run for the comparison, and below it one for each training."""

from __future__ import annotations

import re
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps import artifacts
from steps.errors import TrackingError
from steps.tracking import addresses, journal, store
from steps.tracking.journal import Result, Training
from steps.tracking.once import once
from steps.tracking.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Metric, Run

RESULT, COMPLETE = "headstart.result", "headstart.complete"
# Of the comparison's run: what the result came from, as files.
ORIGIN = "origin"
# What MLflow takes in one request.
BATCH = 1000


@dataclass(frozen=True)
class Published:
    """Where a result lies in MLflow.

    Attributes:
        experiment_id: MLflow's id of the experiment.
        run_id: of the comparison.
        runs: run id of each training, by the training's name.
        new: it was not there before, or not all of it.
    """

    experiment_id: str
    run_id: str
    runs: dict[str, str]
    new: bool


def publish(opened: Store, result: Result) -> Published:
    """Publish a result, or what is missing of it.

    A run carries the result's identity as a tag, and is marked complete last. So the same result is
    published once, and what a broken connection left half done is completed in place: every value has a
    time that follows from its run, and MLflow keeps equal values once.

    Args:
        opened: the store; the caller holds the clone's lock.
        result: what to publish.
    """
    experiment_id = _experiment(opened, result.experiment)
    parent = _parent(opened, experiment_id, result)
    children = _children(opened, experiment_id, parent.info.run_id)
    if parent.data.tags.get(COMPLETE) == "true":
        ids = {name: run.info.run_id for name, run in children.items()}
        return Published(experiment_id, parent.info.run_id, ids, new=False)
    with tempfile.TemporaryDirectory(prefix="headstart-") as folder:
        kept = Path(folder)
        journal.keep_origin(result.experiment, kept)
        origin = journal.origin(result.experiment, kept)
        ids = {}
        for training in result.trainings:
            run = children.get(training.name) or _create_child(opened, parent, training)
            if run.data.tags.get(COMPLETE) != "true":
                _fill_child(opened, run, training, result, origin)
            ids[training.name] = run.info.run_id
        _fill_parent(opened, parent, result, origin, kept)
    return Published(experiment_id, parent.info.run_id, ids, new=True)


def _experiment(opened: Store, name: str) -> str:
    """The id of the experiment in MLflow, made when it is new.

    Raises:
        TrackingError: it was made where this clone is no longer.
    """
    client, full_name = opened.client, f"headstart/{name}"
    root = store.artifact_root(opened.uri)
    location = None if root is None else (root / name).as_uri()
    found = client.get_experiment_by_name(full_name)
    if found is None:
        found = once(
            partial(_create_experiment, client, full_name, location, {"headstart.experiment": name}),
            partial(client.get_experiment_by_name, full_name),
        )
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if location is not None and found.artifact_location != location:
        raise TrackingError(
            f"{addresses.shown(opened.uri)} keeps the files of {full_name} in {found.artifact_location}, "
            f"no longer in {location}: the store was moved, and it knows full paths only; move it back, or "
            "move it away and run `headstart publish`, which publishes the journals anew"
        )
    return str(found.experiment_id)


def _create_experiment(
    client: MlflowClient, name: str, location: str | None, tags: dict[str, Any]
) -> Experiment:
    return client.get_experiment(client.create_experiment(name, location, tags))


def _parent(opened: Store, experiment_id: str, result: Result) -> Run:
    find = partial(_find_parent, opened, experiment_id, result.identity)
    arms = list(dict.fromkeys(training.arm for training in result.trainings))
    create = partial(
        opened.client.create_run,
        experiment_id,
        run_name=f"{' / '.join(arms)} ({result.identity[:8]})",
        tags={RESULT: result.identity, COMPLETE: "false", "headstart.kind": "comparison"},
    )
    return find() or once(create, find)


def _find_parent(opened: Store, experiment_id: str, identity: str) -> Run | None:
    found = opened.client.search_runs(
        [experiment_id], f"tags.`{RESULT}` = '{identity}'", order_by=["attributes.start_time ASC"]
    )
    return next((run for run in found if run.data.tags.get(COMPLETE) == "true"), found[0] if found else None)


def _children(opened: Store, experiment_id: str, parent_id: str) -> dict[str, Run]:
    """The runs of a comparison's trainings, by the training's name."""
    found: dict[str, Run] = {}
    token: str | None = None
    while True:
        page = opened.client.search_runs(
            [experiment_id], f"tags.`mlflow.parentRunId` = '{parent_id}'", page_token=token
        )
        # Should one be there twice, what is complete counts.
        page.sort(key=lambda run: run.data.tags.get(COMPLETE) == "true")
        found |= {_name_in(run.data.tags): run for run in page}
        token = page.token
        if not token:
            return found


def _name_in(tags: dict[str, str]) -> str:
    """A training's name; what was published before there were resamples is of the first."""
    resample = int(tags.get("headstart.resample", 1))
    return journal.name_of(tags["headstart.arm"], resample, int(tags["headstart.seed"]))


def _create_child(opened: Store, parent: Run, training: Training) -> Run:
    experiment_id, parent_id = parent.info.experiment_id, parent.info.run_id
    create = partial(
        opened.client.create_run,
        experiment_id,
        # So that the run's duration is the training's, and its curves have the right times.
        start_time=int((time.time() - training.journal["seconds"]) * 1000),
        run_name=training.name,
        tags={
            "mlflow.parentRunId": parent_id,
            COMPLETE: "false",
            "headstart.kind": "training",
            "headstart.arm": training.arm,
            "headstart.seed": str(training.seed),
            "headstart.resample": str(training.resample),
        },
    )
    return once(create, lambda: _children(opened, experiment_id, parent_id).get(training.name))


def _fill_child(opened: Store, run: Run, training: Training, result: Result, origin: dict[str, str]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    client, run_id, found = opened.client, run.info.run_id, training.journal
    start = run.info.start_time
    metrics = curves(training, start) + finals(training, result, start)
    for at in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[at : at + BATCH])
    tags = origin | {
        "headstart.task": found["task"],
        "headstart.weights_sha256": found["weights_sha256"],
        "headstart.data_sha256": found["data_sha256"],
        "mlflow.source.name": f"python -m steps.train {result.experiment} {training.arm}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": origin["headstart.git_commit"],
    }
    parameters = [Param(name, str(value)) for name, value in settings(training).items()]
    client.log_batch(run_id, params=parameters, tags=[RunTag(*pair) for pair in tags.items()])
    data = Dataset(result.experiment, found["data_sha256"][:36], "local", "{}")
    client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
    _finish(opened, run, start + int(found["seconds"] * 1000))


def settings(training: Training) -> dict[str, Any]:
    """The parameters of a training, flat, so that two runs compare column by column.

    Beside the settings it was trained with stand what the search of its arm chose, and out of how many.
    """
    found = training.journal["settings"]
    flat = {"arm": training.arm, **found["arm"], **found["model"], **found["training"]}
    flat |= {
        name: training.journal[name]
        for name in (
            "seed",
            "train_labels",
            "validation_labels",
            "parameters",
            "trainable_parameters",
            "device",
        )
    }
    flat["resample"] = training.resample
    # The seeds are those of other runs too; the space is in the comparison.
    for name in ("seeds", "search"):
        flat.pop(name, None)
    if training.tuning:
        flat["tuning_trials"] = training.tuning["trials"]
        flat |= {f"tuned/{key}": value for key, value in training.tuning["chosen"].items()}
    return {name: value for name, value in flat.items() if value is not None}


def curves(training: Training, start: int) -> list[Metric]:
    """What was measured after every epoch; the step is the epoch, the time that of the training.

    Args:
        training: whose history it is.
        start: of the run, in milliseconds.
    """
    from mlflow.entities import Metric

    apart = ("epoch", "step", "seconds")
    return [
        Metric(name, value, start + int(row["seconds"] * 1000), int(row["epoch"]))
        for row in training.history
        for name, value in row.items()
        if name not in apart
    ]


def finals(training: Training, result: Result, start: int) -> list[Metric]:
    """What is known at the end: test metrics, the best validation metrics, the effort."""
    from mlflow.entities import Metric

    found = training.journal
    values = {f"test_{name}": value for name, value in training.scores.items() if name != "per_class"}
    values |= {f"best_{name}": value for name, value in found["best"].items()}
    values |= {
        name: found[name] for name in ("best_epoch", "epochs", "steps", "seconds", "samples_per_second")
    }
    reached = result.epochs_to_target(training)
    if reached is not None:
        values["epochs_to_target"] = reached
    calibration = result.of_arm(training.arm).get("calibration")
    if calibration is not None:
        values["temperature"] = calibration["temperature"]
    end = start + int(found["seconds"] * 1000)
    return [Metric(name, float(value), end, 0) for name, value in values.items()]


def _fill_parent(opened: Store, run: Run, result: Result, origin: dict[str, str], kept: Path) -> None:
    from mlflow.entities import Metric, Param, RunTag

    client, run_id, found = opened.client, run.info.run_id, result.comparison
    values, verdict = evidence(found), found["verdict"]
    parameters = {
        "best_arm": found["best_arm"],
        "metric": found["metric"]["name"],
        "test_size": found["test_size"],
        "fine_tuning_helps": verdict["fine_tuning_helps"],
    }
    tags = origin | {
        "headstart.task": found["task"],
        "headstart.verdict": verdict["text"],
        "headstart.best_arm": found["best_arm"],
        "mlflow.note.content": note(result),
        "mlflow.source.name": f"headstart run {result.experiment}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": origin["headstart.git_commit"],
    }
    if "call" in verdict:
        tags["headstart.call"] = verdict["call"]
    start = run.info.start_time
    client.log_batch(
        run_id,
        [Metric(key, float(value), start, 0) for key, value in values.items() if _is_number(value)],
        [Param(key, str(value)) for key, value in parameters.items()],
        [RunTag(*pair) for pair in tags.items()],
    )
    with store.uploading(opened.uri):
        client.log_artifacts(run_id, str(artifacts.report_dir(result.experiment)), "report")
        client.log_artifact(
            run_id, str(artifacts.evaluation_dir(result.experiment) / "scores.json"), "evaluation"
        )
        if any(kept.iterdir()):
            client.log_artifacts(run_id, str(kept), ORIGIN)
    _finish(opened, run, int(time.time() * 1000))


def evidence(found: dict[str, Any]) -> dict[str, Any]:
    """What two comparisons are told apart by in MLflow, by name of the metric; some may be None.

    Args:
        found: a comparison; one of an earlier release has fewer.
    """
    name, verdict = found["metric"]["name"], found["verdict"]
    values = {
        key: verdict.get(key)
        for key in ("difference", "ci_low", "ci_high", "p", "convergence_speedup", "labels_saved")
    }
    for arm in found["arms"]:
        each = {
            f"test_{name}": arm["mean"],
            f"test_{name}_low": arm["ci_low"],
            f"test_{name}_high": arm["ci_high"],
            "improvement": (arm.get("improvement") or {}).get("value"),
            "seconds": arm["seconds"],
            "tuning_seconds": (arm.get("tuning") or {}).get("seconds"),
        }
        values |= {f"{key}/{arm['arm']}": value for key, value in each.items()}
        if arm["arm"] == found["best_arm"] and arm.get("calibration"):
            values["ece"] = arm["calibration"]["ece"]["value"]
    return values


def note(result: Result) -> str:
    """The result in a few lines of markdown, shown above the run in MLflow."""
    found = result.comparison
    metric, reference = (
        found["metric"]["name"].replace("_", "-"),
        _cell(found.get("reference", "the reference")),
    )
    lines = [
        found["verdict"]["text"],
        "",
        f"| arm | test {metric} | interval | over {reference} | interval | call | runs |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in found["arms"]:
        gain = arm.get("improvement") or {}
        cells = (
            _cell(arm["arm"]),
            _told(arm["mean"]),
            _span(arm),
            _told(gain.get("value"), "+"),
            _span(gain, "+"),
            _cell(gain.get("call", "-")),
            len(arm["values"]),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _cell(text: object) -> str:
    """A name as a cell of a table takes it: on one line, no mark of its own."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(str(text).split()))


def _span(found: dict[str, Any], sign: str = "") -> str:
    """An interval, e.g. `0.750 to 0.850`."""
    if not _is_number(found.get("ci_low")):
        return "-"
    return f"{_told(found['ci_low'], sign)} to {_told(found['ci_high'], sign)}"


def _told(value: object, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if _is_number(value) else "-"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finish(opened: Store, run: Run, end: int) -> None:
    opened.client.set_terminated(run.info.run_id, "FINISHED", end)
    opened.client.set_tag(run.info.run_id, COMPLETE, "true")
