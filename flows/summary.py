"""What came out of experiments, read from their reports. Light: the command line starts with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.artifacts import registration_file, report_dir

PERCENT = ("accuracy", "macro_f1")


@dataclass(frozen=True)
class ArmRow:
    """One line of the table.

    Attributes:
        arm: its name.
        score: the metric's mean over seeds with its interval.
        seeds: how many.
        epochs: until the target was reached; "-" where it never was.
        seconds: until the target was reached; "-" where it never was.
        is_best: the arm chosen on validation.
    """

    arm: str
    score: str
    seeds: int
    epochs: str
    seconds: str
    is_best: bool


@dataclass(frozen=True)
class Summary:
    """One experiment's result.

    Attributes:
        experiment: its name.
        metric: what arms are judged by.
        rows: one an arm.
        verdict: in one sentence.
        report: the folder with the whole of it.
        model: the registered model as one line, or None where it is not registered.
        tracking_uri: of the MLflow store it is registered in, or None.
        is_new: the last run made this version of the model.
    """

    experiment: str
    metric: str
    rows: tuple[ArmRow, ...]
    verdict: str
    report: Path
    model: str | None
    tracking_uri: str | None
    is_new: bool = False


def read(experiment: str) -> Summary | None:
    """The experiment's result; None where `compare` has not made one yet."""
    found = _json(report_dir(experiment) / "comparison.json")
    if found is None:
        return None
    metric = str(found["metric"]["name"])
    rows = tuple(_row(arm, metric, found["best_arm"]) for arm in found["arms"])
    registered = _json(registration_file(experiment))
    return Summary(
        experiment,
        metric,
        rows,
        str(found["verdict"]["text"]),
        report_dir(experiment),
        _model(registered) if registered else None,
        str(registered["tracking_uri"]) if registered else None,
        bool(registered and registered.get("new")),
    )


def finished() -> list[str]:
    """Every experiment that has a result, by name."""
    return sorted(path.parent.name for path in Path("reports").glob("*/comparison.json"))


def markdown(experiments: list[str]) -> str:
    """The results as Prefect's artifact shows them."""
    lines = [
        "| experiment | arm | metric | mean and interval | seeds | epochs to target | seconds to target |"
    ]
    lines.append("| --- | --- | --- | --- | ---: | ---: | ---: |")
    verdicts = []
    for summary in filter(None, map(read, experiments)):
        for row in summary.rows:
            arm = f"**{row.arm}**" if row.is_best else row.arm
            cells = (summary.experiment, arm, summary.metric, row.score, row.seeds, row.epochs, row.seconds)
            lines.append(f"| {' | '.join(map(str, cells))} |")
        verdicts.append(f"* {summary.verdict} {summary.model or 'Not registered.'}")
    return "\n".join([*lines, "", *verdicts]) + "\n"


def _row(arm: dict[str, Any], metric: str, best: str) -> ArmRow:
    epochs, seconds = arm.get("epochs_to_target"), arm.get("seconds_to_target")
    return ArmRow(
        arm["arm"],
        _score(metric, arm["mean"], arm["ci_low"], arm["ci_high"]),
        len(arm["values"]),
        "-" if epochs is None else f"{epochs:g}",
        "-" if seconds is None else f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}",
        arm["arm"] == best,
    )


def _score(metric: str, mean: float, low: float, high: float) -> str:
    if metric in PERCENT:
        return f"{100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def _model(registered: dict[str, Any]) -> str:
    aliases = "".join(f" @{alias}" for alias in registered["aliases"])
    return f"{registered['model']} version {registered['version']}{aliases}"


def _json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
