"""compare: weigh the arms against each other; write the comparison, the report and the model card."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steps import artifacts, entry, evidence, metrics, params
from steps.errors import HeadstartError, TrainingError, UserError
from steps.evidence import Convergence, Crossed, Curve, Verdict
from steps.params import CompareSettings, IngestSettings
from steps.report import index, pages, plots

# Of comparison.json: raised when a key changes its meaning or goes away.
SCHEMA = 1
LIBRARIES = ("matplotlib", "numpy", "pandas", "scipy")
FEW_ITEMS = 50


@dataclass(frozen=True)
class Run:
    """One training: its journal, and its history with one row an epoch."""

    journal: dict[str, Any]
    history: pd.DataFrame

    def validation(self, metric: str) -> float:
        """The metric on validation of the weights that were kept."""
        return float(self.journal["best"][f"validation_{metric}"])

    def curve(self, metric: str) -> Curve:
        """The metric on validation over the epochs."""
        column = self.history[f"validation_{metric}"]
        return Curve(column.tolist(), self.history["seconds"].tolist())


@dataclass(frozen=True)
class Inputs:
    """All that is compared.

    Attributes:
        experiment: its name.
        settings: of compare.
        classes: labels in the order of the networks' outputs.
        crossed: the test split.
        runs: by arm, one for each seed.
        validation: what validate found.
        data: the settings of ingest.
        pretrained: where the pretrained weights come from.
    """

    experiment: str
    settings: CompareSettings
    classes: list[str]
    crossed: Crossed
    runs: dict[str, list[Run]]
    validation: dict[str, Any]
    data: dict[str, Any]
    pretrained: dict[str, Any]

    @property
    def metric(self) -> str:
        """What arms are judged by."""
        return self.settings.evaluation.metric


def compare(experiment: str) -> None:
    """Write `reports/<experiment>/`, and `reports/index.html` over all experiments.

    Raises:
        TrainingError: predictions or a history are not finite.
        HeadstartError: the arms were not trained and tested on the same data, seeds and items.
    """
    inputs = read(experiment)
    comparison = weigh(inputs)
    counts = confusion(inputs, comparison["best_arm"])
    folder = artifacts.report_dir(experiment)
    with artifacts.new_folder(folder) as partial:
        artifacts.write_json(partial / "comparison.json", comparison)
        table_of_curves(inputs).to_csv(partial / "curves.csv", index=False, lineterminator="\n")
        curves = {arm: [run.curve(inputs.metric).values for run in runs] for arm, runs in inputs.runs.items()}
        drawn = plots.draw(comparison, curves, counts)
        for name, png in drawn["light"].items():
            (partial / f"{name}.png").write_bytes(png)
        (partial / "report.html").write_text(pages.report(comparison, drawn), "utf-8")
        (partial / "model_card.md").write_text(pages.model_card(comparison), "utf-8")
    index.write(folder.parent)
    entry.say(comparison["verdict"]["text"])
    entry.say(f"report: {folder / 'report.html'}")


# ------------------------------------------------------------------------------------------- reading


def read(experiment: str) -> Inputs:
    """Read what train, evaluate, validate and fetch wrote.

    Raises:
        UserError: a file is missing; the message names the step that makes it.
    """
    settings = read_settings(experiment)
    ingest = params.read_settings(IngestSettings, artifacts.settings_file(experiment, "ingest"))
    scores = artifacts.read_json(artifacts.evaluation_dir(experiment) / "scores.json", "evaluate")
    classes: list[str] = scores["classes"]
    runs = read_runs(experiment, settings)
    one_data_set(runs)
    return Inputs(
        experiment=experiment,
        settings=settings,
        classes=classes,
        crossed=evidence.cross(read_predictions(experiment, settings, classes)),
        runs=runs,
        validation=artifacts.read_json(artifacts.validation_dir(experiment) / "validation.json", "validate"),
        data=ingest.data.model_dump(mode="json"),
        pretrained=artifacts.read_json(
            artifacts.pretrained_dir(settings.model.pretrained) / "provenance.json", "fetch"
        ),
    )


def read_settings(experiment: str) -> CompareSettings:
    """The settings of compare, its reference arm first: that is the order of every table and plot."""
    settings = params.read_settings(CompareSettings, artifacts.settings_file(experiment, "compare"))
    reference = settings.evaluation.reference
    ordered = {reference: settings.arms[reference], **settings.arms}
    return settings.model_copy(update={"arms": ordered})


def read_predictions(
    experiment: str, settings: CompareSettings, classes: list[str]
) -> list[evidence.Answers]:
    """What every arm and seed of the experiment said of the test split.

    Raises:
        UserError: evaluate has not run.
        HeadstartError: an arm and seed is missing.
    """
    path = artifacts.evaluation_dir(experiment) / "predictions.parquet"
    if not path.exists():
        raise UserError(f"{path} is missing; it is made by `evaluate`: run `dvc repro` or `headstart run`")
    parts = dict(iter(pd.read_parquet(path).groupby(["arm", "seed"], sort=False)))
    tested: list[evidence.Answers] = []
    for arm in settings.arms:
        for seed in settings.training.seeds:
            if (arm, seed) not in parts:
                raise HeadstartError(f"{path} has nothing of arm {arm!r}, seed {seed}; run evaluate again")
            rows = parts[arm, seed]
            truth = pd.Categorical(rows["label"], categories=classes).codes.astype(np.int64)
            probabilities = np.stack(rows["probabilities"].tolist()).astype(np.float64)
            if truth.min() < 0 or probabilities.shape[1] != len(classes):
                raise HeadstartError(
                    f"arm {arm!r}, seed {seed} was tested with other classes; run evaluate again"
                )
            tested.append(evidence.Answers(arm, seed, rows["id"].tolist(), truth, probabilities))
    return tested


def read_runs(experiment: str, settings: CompareSettings) -> dict[str, list[Run]]:
    """Journal and history of every arm and seed.

    Raises:
        TrainingError: a history is not finite.
    """
    runs: dict[str, list[Run]] = {}
    for arm in settings.arms:
        runs[arm] = []
        for seed in settings.training.seeds:
            folder = artifacts.seed_dir(experiment, arm, seed)
            journal = artifacts.read_json(folder / "run.json", f"python -m steps.train {experiment} {arm}")
            history = pd.read_csv(folder / "history.csv")
            watched = history[["seconds", *(f"validation_{name}" for name in metrics.HIGHER_IS_BETTER)]]
            if not np.isfinite(watched.to_numpy(dtype=np.float64)).all():
                raise TrainingError(
                    f"arm {arm!r}, seed {seed}: {folder / 'history.csv'} holds a value that is not finite; "
                    "train it again with a smaller learning rate"
                )
            runs[arm].append(Run(journal, history))
    return runs


def one_data_set(runs: dict[str, list[Run]]) -> None:
    """Make sure that all arms started from the same data and pretrained weights.

    Raises:
        HeadstartError: they did not.
    """
    first = next(iter(runs.values()))[0].journal
    for arm, of_arm in runs.items():
        for run in of_arm:
            for key in ("data_sha256", "pretrained_sha256"):
                if run.journal[key] != first[key]:
                    raise HeadstartError(
                        f"arm {arm!r}, seed {run.journal['seed']} and arm {first['arm']!r}, "
                        f"seed {first['seed']} differ in {key}: they cannot be compared; run `dvc repro`"
                    )


# ------------------------------------------------------------------------------------------ weighing


def weigh(inputs: Inputs) -> dict[str, Any]:
    """The whole of comparison.json; the same inputs give the same value."""
    settings, metric, runs = inputs.settings, inputs.metric, inputs.runs
    reference = settings.evaluation.reference
    of_reference = [run.curve(metric) for run in runs[reference]]
    target = evidence.target_of(of_reference, metric)
    reached = {
        arm: evidence.convergence([run.curve(metric) for run in of_arm], target, metric)
        for arm, of_arm in runs.items()
    }
    best_arm, judged = choose(inputs)
    first = runs[reference][0].journal
    setting = evidence.Setting(
        inputs.experiment,
        first["train_labels"],
        settings.training.epochs,
        metric,
        settings.evaluation.confidence,
    )
    verdict = evidence.verdict(inputs.crossed, judged, reference, reached, setting)
    comparison: dict[str, Any] = {
        "schema": SCHEMA,
        "experiment": inputs.experiment,
        "task": settings.task,
        "metric": {"name": metric, "higher_is_better": metrics.HIGHER_IS_BETTER[metric]},
        "confidence": settings.evaluation.confidence,
        "classes": inputs.classes,
        "seeds": list(inputs.crossed.seeds),
        "epochs": settings.training.epochs,
        "train_labels": first["train_labels"],
        "validation_labels": first["validation_labels"],
        "test_size": len(inputs.crossed.ids),
        "reference": reference,
        "target": target,
        "arms": [of_arm(inputs, arm, reached[arm]) for arm in runs],
        "best_arm": best_arm,
        "best_seed": best_seed(inputs, best_arm),
        "verdict": asdict(verdict),
        "per_class": per_class(inputs, best_arm),
        "data": of_data(inputs),
        "pretrained": {"name": settings.model.pretrained, **inputs.pretrained},
        "provenance": provenance(inputs),
        "notes": notes(inputs, verdict),
    }
    rounded: dict[str, Any] = _rounded(comparison)
    return rounded


def choose(inputs: Inputs) -> tuple[str, str | None]:
    """The arm that is best on validation, and the best of the pretrained ones beside the reference."""
    metric, evaluation = inputs.metric, inputs.settings.evaluation
    merits = {
        arm: [(run.validation(metric), run.validation("log_loss")) for run in of_arm]
        for arm, of_arm in inputs.runs.items()
    }
    pretrained = {
        arm: merits[arm]
        for arm, settings in inputs.settings.arms.items()
        if settings.start == "pretrained" and arm != evaluation.reference
    }
    return evidence.best(merits, metric), evidence.best(pretrained, metric) if pretrained else None


def best_seed(inputs: Inputs, arm: str) -> int:
    """The seed of the arm that is best on validation."""
    each = {
        str(run.journal["seed"]): [(run.validation(inputs.metric), run.validation("log_loss"))]
        for run in inputs.runs[arm]
    }
    return int(evidence.best(each, inputs.metric))


def of_arm(inputs: Inputs, arm: str, reached: Convergence) -> dict[str, Any]:
    """What comparison.json says of one arm."""
    metric, evaluation = inputs.metric, inputs.settings.evaluation
    crossed, runs = inputs.crossed, inputs.runs[arm]
    journals = [run.journal for run in runs]
    found = evidence.estimate(crossed, arm, metric, evaluation.confidence)
    validation = [run.validation(metric) for run in runs]
    gain: dict[str, float] | None = None
    if arm != evaluation.reference:
        over = evidence.improvement(crossed, arm, evaluation.reference, metric, evaluation.confidence)
        gain = {"value": over.value, "ci_low": over.low, "ci_high": over.high}
    return {
        "arm": arm,
        "start": journals[0]["start"],
        "tune": journals[0]["tune"],
        "seeds": list(crossed.seeds),
        "values": crossed.values(arm, metric),
        "mean": found.value,
        "ci_low": found.low,
        "ci_high": found.high,
        "improvement": gain,
        "test": {name: float(np.mean(crossed.values(arm, name))) for name in metrics.HIGHER_IS_BETTER},
        "validation": {"values": validation, "mean": float(np.mean(validation))},
        "train_labels": journals[0]["train_labels"],
        "epochs": [journal["epochs"] for journal in journals],
        "best_epoch": [journal["best_epoch"] for journal in journals],
        "epochs_to_target": reached.epochs,
        "epochs_to_target_by_seed": reached.by_seed,
        "seconds": float(np.mean([journal["seconds"] for journal in journals])),
        "seconds_to_target": reached.seconds,
        "parameters": journals[0]["parameters"],
        "trainable_parameters": journals[0]["trainable_parameters"],
        "frozen": journals[0]["frozen"],
    }


def per_class(inputs: Inputs, arm: str) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class, means over the arm's seeds."""
    crossed = inputs.crossed
    summaries = [
        metrics.summary(crossed.truth, one, inputs.classes)["per_class"] for one in crossed.probabilities[arm]
    ]
    return [
        {
            "label": label,
            "support": summaries[0][label]["support"],
            **{
                name: float(np.mean([summary[label][name] for summary in summaries]))
                for name in ("precision", "recall", "f1")
            },
        }
        for label in inputs.classes
    ]


def confusion(inputs: Inputs, arm: str) -> NDArray[np.float64]:
    """How often each class is taken for which, mean over the arm's seeds; shape (classes, classes)."""
    crossed, classes = inputs.crossed, len(inputs.classes)
    counts = [
        metrics.confusion(crossed.truth, one.argmax(axis=1), classes) for one in crossed.probabilities[arm]
    ]
    return np.asarray(np.mean(counts, axis=0))


def of_data(inputs: Inputs) -> dict[str, Any]:
    """Where the data come from, and what validate found."""
    found = inputs.validation
    return {
        **{key: found[key] for key in ("rows", "accepted", "rejected", "on_reject")},
        "counts": found["classes"],
        "imbalance": found["imbalance"],
        "not_met": [
            {key: one[key] for key in ("name", "level", "unexpected", "text")}
            for one in found["expectations"]
            if not one["success"]
        ],
        "expectations": len(found["expectations"]),
        "origin": inputs.data,
    }


def provenance(inputs: Inputs) -> dict[str, Any]:
    """Hashes of all that the result rests on. No clock and no machine's name: they differ by run."""
    journals = [run.journal for of_arm in inputs.runs.values() for run in of_arm]
    first = journals[0]
    return {
        "params_sha256": artifacts.sha256_json(
            {
                "compare": inputs.settings.model_dump(mode="json"),
                "train": {arm: of_arm[0].journal["settings"] for arm, of_arm in inputs.runs.items()},
            }
        ),
        "data_sha256": first["data_sha256"],
        "pretrained_sha256": first["pretrained_sha256"],
        "weights_sha256": {
            arm: {str(run.journal["seed"]): run.journal["weights_sha256"] for run in of_arm}
            for arm, of_arm in inputs.runs.items()
        },
        "trained_with": {key: _distinct(journals, key) for key in ("torch", "device", "threads")},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
    }


def _distinct(journals: list[dict[str, Any]], key: str) -> str:
    return ", ".join(sorted({str(journal[key]) for journal in journals}))


def notes(inputs: Inputs, verdict: Verdict) -> list[str]:
    """What a reader should know before trusting the figures."""
    found: list[str] = []
    if verdict.seeds == 1:
        found.append(
            "One seed only: the intervals are over test items and say nothing of the chance between seeds."
        )
    if verdict.items < FEW_ITEMS:
        found.append(f"The test split has only {verdict.items} items: the intervals are rough.")
    untested = [one for at, one in enumerate(inputs.classes) if not (inputs.crossed.truth == at).any()]
    if untested:
        named = ", ".join(map(repr, untested[:5])) + (" and others" if len(untested) > 5 else "")
        found.append(
            f"{len(untested)} of {len(inputs.classes)} classes have no test item: {named}. "
            "Their F1 is 0, which lowers macro-F1 alike for all arms."
        )
    if any(arm.tune == "head" for arm in inputs.settings.arms.values()):
        found.append(
            "Arms that train the head alone read features computed once; their seconds leave that out."
        )
    return found


def _rounded(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Floats to ten decimals: beyond that is the order of summation, which may differ between machines."""
    if isinstance(value, float):
        return round(value, 10)
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value


def table_of_curves(inputs: Inputs) -> pd.DataFrame:
    """All histories in one long table, for `dvc plots`."""
    frames = [
        run.history.assign(arm=arm, seed=run.journal["seed"])
        for arm, of_arm in inputs.runs.items()
        for run in of_arm
    ]
    table = pd.concat(frames, ignore_index=True)
    front = ["arm", "seed", "epoch"]
    return table[front + [name for name in table.columns if name not in front]]


def main() -> int:
    """Run `python -m steps.compare <experiment>`."""
    return entry.run(compare, "experiment")


if __name__ == "__main__":
    sys.exit(main())
