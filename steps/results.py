"""What the steps before it left for compare, read and checked: runs, predictions, baselines, curve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from steps import artifacts, data, evidence, params
from steps.convergence import Curve
from steps.errors import HeadstartError, TrainingError
from steps.evidence import Answers, Crossed
from steps.kinds import KINDS, SHARE, Kind
from steps.params import CompareSettings, IngestSettings


@dataclass(frozen=True)
class Run:
    """One training: its journal, and its history with one row an epoch.

    Attributes:
        resample: which part of the training pool it was trained on.
        seed: its seed.
    """

    resample: int
    seed: int
    journal: dict[str, Any]
    history: pd.DataFrame

    @property
    def name(self) -> str:
        """As weights and scores are told by."""
        return artifacts.run_id(self.resample, self.seed)

    def validation(self, metric: str) -> float:
        """The metric on validation of the weights that were kept."""
        return float(self.journal["best"][f"validation_{metric}"])

    def merit(self, metric: str) -> tuple[float, float]:
        """What the best is chosen by: the metric and the task's loss, both on validation."""
        return self.validation(metric), self.validation(KINDS[self.journal["task"]].loss)

    def curve(self, metric: str) -> Curve:
        """The metric on validation over the epochs."""
        column = self.history[f"validation_{metric}"]
        return Curve(column.tolist(), self.history["seconds"].tolist(), self.history["step"].tolist())


@dataclass(frozen=True)
class Results:
    """All that is compared.

    Attributes:
        experiment: its name.
        settings: of compare, the reference arm first.
        classes: labels in the order of the networks' outputs; none where the task has no such thing.
        crossed: the test split.
        validated: the validation split, the same models.
        runs: by arm, one for each resample and seed.
        tuning: by arm, what its search was.
        baselines: answers on the test split by name of the baseline.
        baseline: what baseline wrote beside them.
        points: answers on the test split by arm and label budget, one for each seed; no curve: empty.
        looks: how often the test split was used.
        validation: what validate found.
        data: the settings of ingest.
        pretrained: where the pretrained weights come from.
    """

    experiment: str
    settings: CompareSettings
    classes: list[str]
    crossed: Crossed
    validated: Crossed
    runs: dict[str, list[Run]]
    tuning: dict[str, dict[str, Any]]
    baselines: dict[str, Answers]
    baseline: dict[str, Any]
    points: dict[str, dict[int, list[Answers]]]
    looks: dict[str, Any]
    validation: dict[str, Any]
    data: dict[str, Any]
    pretrained: dict[str, Any]

    @property
    def metric(self) -> str:
        """What arms are judged by."""
        metric = self.settings.evaluation.metric
        assert metric is not None, "resolve fills it in"
        return metric

    @property
    def kind(self) -> Kind:
        """What kind of task it is."""
        return KINDS[self.settings.task]

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return self.settings.evaluation.reference


def read(experiment: str) -> Results:
    """Read what the steps before wrote.

    Raises:
        UserError: a file is missing; the message names the step that makes it.
        TrainingError: predictions or a history are not finite.
        HeadstartError: the arms were not trained and tested on the same data, seeds and items.
    """
    settings = read_settings(experiment)
    ingest = params.read_settings(IngestSettings, artifacts.settings_file(experiment, "ingest"))
    folder = artifacts.evaluation_dir(experiment)
    classes: list[str] = artifacts.read_json(folder / "scores.json", "evaluate")["classes"]
    if KINDS[settings.task].own_labels:
        classes = []  # what stands there only keeps the split even
    runs = read_runs(experiment, settings)
    one_data_set(runs)
    tested, validated = (
        evidence.cross(list(read_predictions(folder / name, settings, classes)), groups)
        for name, groups in (("predictions.parquet", read_groups(experiment)), ("validation.parquet", None))
    )
    found = artifacts.read_json(artifacts.baseline_dir(experiment) / "baseline.json", "baseline")
    validation = artifacts.validation_dir(experiment) / "validation.json"
    pretrained = artifacts.pretrained_dir(settings.model.pretrained) / "provenance.json"
    return Results(
        experiment=experiment,
        settings=settings,
        classes=classes,
        crossed=tested,
        validated=validated,
        runs=runs,
        tuning={arm: read_tuning(experiment, arm) for arm in settings.arms},
        baselines=read_baselines(experiment, settings.task, classes, tested),
        baseline=found,
        points=read_points(experiment, settings.task, classes, tested),
        looks=read_looks(experiment),
        validation=artifacts.read_json(validation, "validate"),
        data=ingest.data.model_dump(mode="json"),
        pretrained=artifacts.read_json(pretrained, "fetch"),
    )


def read_settings(experiment: str) -> CompareSettings:
    """The settings of compare, its reference arm first: that is the order of every table and plot."""
    settings = params.read_settings(CompareSettings, artifacts.settings_file(experiment, "compare"))
    reference = settings.evaluation.reference
    ordered = {reference: settings.arms[reference], **settings.arms}
    return settings.model_copy(update={"arms": ordered})


def runs_of(settings: CompareSettings) -> list[tuple[int, int]]:
    """Resample and seed of every run of an arm."""
    resamples = range(1, settings.training.resamples + 1)
    return [(resample, seed) for resample in resamples for seed in settings.training.seeds]


def read_runs(experiment: str, settings: CompareSettings) -> dict[str, list[Run]]:
    """Journal and history of every arm and run.

    Raises:
        TrainingError: a history is not finite.
    """
    return {
        arm: [read_run(experiment, arm, resample, seed) for resample, seed in runs_of(settings)]
        for arm in settings.arms
    }


def read_run(experiment: str, arm: str, resample: int, seed: int) -> Run:
    """Journal and history of one training.

    Raises:
        TrainingError: the history is not finite.
    """
    folder = artifacts.seed_dir(experiment, arm, seed, resample)
    journal = artifacts.read_json(folder / "run.json", f"python -m steps.train {experiment} {arm}")
    history = pd.read_csv(folder / "history.csv")
    watched = history[["seconds", *watched_of(KINDS[journal["task"]])]]
    if not np.isfinite(watched.to_numpy(dtype=np.float64)).all():
        raise TrainingError(
            f"arm {arm!r}, seed {seed}: {folder / 'history.csv'} holds a value that is not finite; "
            "train it again with a smaller learning rate"
        )
    return Run(resample, seed, journal, history)


def watched_of(kind: Kind) -> list[str]:
    """The columns of a history that tell of validation."""
    return [f"validation_{name}" for name in dict.fromkeys((*kind.metrics, kind.loss))]


def one_data_set(runs: dict[str, list[Run]]) -> None:
    """Make sure that all arms of a resample started from the same data and pretrained weights.

    Raises:
        HeadstartError: they did not.
    """
    first_of = {run.resample: run for of_arm in reversed(runs.values()) for run in reversed(of_arm)}
    for arm, of_arm in runs.items():
        for run in of_arm:
            first = first_of[run.resample].journal
            for key in ("data_sha256", "pretrained_sha256"):
                if run.journal[key] != first[key]:
                    raise HeadstartError(
                        f"arm {arm!r}, seed {run.journal['seed']} and arm {first['arm']!r}, "
                        f"seed {first['seed']} differ in {key}: they cannot be compared; run `dvc repro`"
                    )


def read_groups(experiment: str) -> dict[str, str]:
    """The user's group of each test item that has one, by id.

    Raises:
        UserError: validate or split has not run.
    """
    rows = data.read_split(experiment, columns=["id", "group"])
    rows = rows[(rows["split"] == "test") & rows["group"].notna()]
    return dict(zip(rows["id"], rows["group"], strict=True))


def read_looks(experiment: str) -> dict[str, Any]:
    """How many models the test split has judged, by the time that evaluate and curve had run."""
    found: dict[str, Any] = artifacts.read_json(
        artifacts.evaluation_dir(experiment) / "looks.json", "evaluate"
    )
    later = artifacts.curve_dir(experiment) / "looks.json"
    if later.exists():
        found["models"] = max(found["models"], artifacts.read_json(later, "curve")["models"])
    return found


def read_tuning(experiment: str, arm: str) -> dict[str, Any]:
    """What the search for the arm's hyperparameters was."""
    path = artifacts.arms_dir(experiment) / arm / "tuning.json"
    found: dict[str, Any] = artifacts.read_json(path, f"python -m steps.train {experiment} {arm}")
    return found


# ---------------------------------------------------------------------------------------- the answers


def read_predictions(path: Path, settings: CompareSettings, classes: list[str]) -> Iterator[Answers]:
    """What every arm and run of the experiment said of a split.

    Raises:
        UserError: evaluate has not run.
        HeadstartError: an arm and seed is missing.
    """
    keys = data.read_made(path, "evaluate", ["arm", "resample", "seed"])
    parts = keys.groupby(["arm", "resample", "seed"], sort=False).indices
    # One run at a time becomes rows of lists, which take ten times as much as the same numbers in Arrow.
    table = pq.read_table(path)
    for arm in settings.arms:
        for resample, seed in runs_of(settings):
            if (arm, resample, seed) not in parts:
                raise HeadstartError(f"{path} has nothing of arm {arm!r}, seed {seed}; run evaluate again")
            rows = table.take(parts[arm, resample, seed]).to_pandas()
            whose = Answers.of_shares(arm, seed, [], {}, resample)
            yield _answers(rows, whose, f"arm {arm!r}, seed {seed}", settings.task, classes, "evaluate")


def read_baselines(experiment: str, task: str, classes: list[str], tested: Crossed) -> dict[str, Answers]:
    """What every baseline said of the test split; empty where there are none.

    Raises:
        UserError: baseline has not run.
        HeadstartError: it was tested on other items.
    """
    path = artifacts.baseline_dir(experiment) / "predictions.parquet"
    found = {}
    for name, rows in data.read_made(path, "baseline").groupby("baseline", sort=False):
        whose = Answers.of_shares(str(name), 0, [], {})
        answers = _answers(rows, whose, f"baseline {name!r}", task, classes, "baseline")
        found[str(name)] = _same_items(answers, tested, path)
    return found


def read_points(
    experiment: str, task: str, classes: list[str], tested: Crossed
) -> dict[str, dict[int, list[Answers]]]:
    """What trainings on other label budgets said of the test split; empty where there is no curve.

    Raises:
        UserError: curve has not run.
        HeadstartError: they were tested on other items.
    """
    folder = artifacts.curve_dir(experiment)
    if not artifacts.read_json(folder / "points.json", "curve"):
        return {}
    path = folder / "predictions.parquet"
    found: dict[str, dict[int, list[Answers]]] = {}
    parts: dict[Any, pd.DataFrame] = dict(
        iter(data.read_made(path, "curve").groupby(["arm", "labels", "seed"], sort=False))
    )
    for (arm, labels, seed), rows in parts.items():
        what = f"arm {arm!r}, {labels} labels, seed {seed}"
        whose = Answers.of_shares(arm, seed, [], {})
        answers = _same_items(_answers(rows, whose, what, task, classes, "curve"), tested, path)
        found.setdefault(arm, {}).setdefault(int(labels), []).append(answers)
    return found


def _answers(
    rows: pd.DataFrame, whose: Answers, what: str, task: str, classes: Sequence[str], step: str
) -> Answers:
    """What stands in some rows of predictions.

    Args:
        rows: of one run, one row an item.
        whose: arm, seed and resample; the rest is filled in.
        what: the same for messages.
        task: its name.
        classes: of a classifier.
        step: that wrote the rows.
    """
    ids = rows["id"].tolist()
    if not KINDS[task].classified:
        return replace(whose, ids=ids, shares=_shares(rows, what, task, step))
    truth = pd.Categorical(rows["label"], categories=list(classes)).codes.astype(np.int64)
    probabilities = np.stack(rows["probabilities"].tolist()).astype(np.float64)
    if truth.min() < 0 or probabilities.shape[1] != len(classes):
        raise HeadstartError(f"{what} was tested with other classes; run {step} again")
    return replace(whose, ids=ids, truth=truth, probabilities=probabilities)


def _shares(rows: pd.DataFrame, what: str, task: str, step: str) -> dict[str, NDArray[np.float64]]:
    """Each item's share in every metric of the task."""
    missing = [name for name in KINDS[task].metrics if f"{SHARE}{name}" not in rows]
    if missing:
        raise HeadstartError(f"{what} was tested without {', '.join(missing)}; run {step} again")
    return {name: rows[f"{SHARE}{name}"].to_numpy(dtype=np.float64) for name in KINDS[task].metrics}


def _same_items(answers: Answers, tested: Crossed, path: Path) -> Answers:
    """The answers in the order of the test split.

    Raises:
        TrainingError: they are not finite.
        HeadstartError: they are of other items.
    """
    if answers.broken():
        raise TrainingError(f"{path}: predictions of {answers.arm!r} are not finite")
    if sorted(answers.ids) != sorted(tested.ids):
        raise HeadstartError(f"{path} is of other test items than the arms' predictions; run `dvc repro`")
    return answers.sorted()
