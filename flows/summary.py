"""What came out of experiments, read from their reports. Light: the command line starts with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.artifacts import registration_file, report_dir

# Stands where a result says nothing: never reached, not measured, or older than the measure.
NOTHING = "-"


@dataclass(frozen=True)
class ArmRow:
    """One line of the table; what a result does not say is "-".

    Attributes:
        arm: its name.
        score: the metric's mean over runs with its interval.
        gain: the improvement over the reference with its interval; positive is better whatever the metric.
        call: what that means: helps, hurts, equal or undecided.
        epochs: until the target was reached.
        sooner: how many times fewer epochs than the reference needed.
        saved: labels that the reference would need beyond the arm's to be as good.
        trials: of the search for hyperparameters.
        is_best: the arm chosen on validation.
    """

    arm: str
    score: str
    gain: str = NOTHING
    call: str = NOTHING
    epochs: str = NOTHING
    sooner: str = NOTHING
    saved: str = NOTHING
    trials: str = NOTHING
    is_best: bool = False


@dataclass(frozen=True)
class Summary:
    """One experiment's result.

    Attributes:
        experiment: its name.
        metric: what arms are judged by, in words, with its unit.
        about: what it was measured on.
        reference: the arm that the others are compared with; "-" in a result that does not say.
        rows: one an arm.
        verdict: in one sentence, arms in back-ticks.
        report: the folder with the whole of it.
        model: the registered model as one line, or None where it is not registered.
        tracking_uri: of the MLflow store it is registered in, or None.
        is_new: the last run made this version of the model.
        counted: what the samples that arms are trained on are called.
    """

    experiment: str
    metric: str
    about: str
    reference: str
    rows: tuple[ArmRow, ...]
    verdict: str
    report: Path
    model: str | None
    tracking_uri: str | None
    is_new: bool = False
    counted: str = "labels"


def read(experiment: str) -> Summary | None:
    """The experiment's result; None where `compare` has not made one yet.

    A result of an earlier release, restored from DVC's cache, lacks some figures: they are "-".
    """
    found = _json(report_dir(experiment) / "comparison.json")
    if found is None:
        return None
    from steps.metrics import (
        METRICS,
    )  # it brings numpy, which the command line does without until there is a result

    name = str(found["metric"]["name"])
    registered = _json(registration_file(experiment))
    return Summary(
        experiment,
        METRICS[name].shown + (" in %" if METRICS[name].percent else ""),
        _about(found),
        str(found.get("reference", NOTHING)),
        tuple(_row(arm, found, name) for arm in found["arms"]),
        str(found["verdict"]["text"]),
        report_dir(experiment),
        _model(registered) if registered else None,
        str(registered["tracking_uri"]) if registered else None,
        bool(registered and registered.get("new")),
        _counted(found),
    )


def finished() -> list[str]:
    """Every experiment that has a result, by name."""
    return sorted(path.parent.name for path in Path("reports").glob("*/comparison.json"))


def markdown(experiments: list[str]) -> str:
    """The results as Prefect's artifact shows them."""
    parts = [_section(one) for one in map(read, experiments) if one is not None]
    return "\n".join(parts or ["No results yet.\n"])


def _section(found: Summary) -> str:
    """One experiment: the table, the verdict, the model."""
    # Imported here: the command line has no use for it, and it brings numpy.
    from steps.report.wording import markdown as escaped

    reference = escaped(found.reference)
    names = (
        "arm", f"{escaped(found.metric)}, mean and interval", f"over {reference}", "call", "epochs to target",
        f"times sooner than {reference}", f"{found.counted} saved", "tuning trials",
    )  # fmt: skip
    lines = [
        f"### {escaped(found.experiment)}",
        "",
        found.about,
        "",
        f"| {' | '.join(names)} |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in found.rows:
        arm = f"**{escaped(row.arm)}**" if row.is_best else escaped(row.arm)
        call = row.call if row.call == NOTHING else escaped(row.call)
        cells = (arm, row.score, row.gain, call, row.epochs, row.sooner, row.saved, row.trials)
        lines.append(f"| {' | '.join(cells)} |")
    model = escaped(found.model) if found.model else "Not registered."
    return "\n".join([*lines, "", f"{_verdict(found.verdict)} {model}", ""])


def _verdict(text: str) -> str:
    """A verdict as Markdown: arms stay in their back-ticks, all else is escaped."""
    from steps.report.wording import markdown as escaped
    from steps.report.wording import ticks

    parts = ticks(" ".join(text.split()))
    # Escaping takes blanks at the ends away, which are words' distances here.
    blanks = [(part[:1] == " ", part[1:] and part[-1] == " ") for part in parts]
    return "".join(
        f"`{part}`" if at % 2 else f"{' ' * bool(before)}{escaped(part)}{' ' * bool(after)}"
        for at, (part, (before, after)) in enumerate(zip(parts, blanks, strict=True))
    )


# -------------------------------------------------------------------------------------------- the figures


def _row(arm: dict[str, Any], found: dict[str, Any], metric: str) -> ArmRow:
    gain, epochs = arm.get("improvement"), arm.get("epochs_to_target")
    speedup = ((arm.get("speedup") or {}).get("epochs") or {}).get("value")
    return ArmRow(
        str(arm["arm"]),
        _interval(metric, arm["mean"], arm["ci_low"], arm["ci_high"]),
        _interval(metric, gain["value"], gain["ci_low"], gain["ci_high"], sign="+") if gain else NOTHING,
        str((gain or {}).get("call", NOTHING)),
        NOTHING if epochs is None else f"{epochs:g}",
        NOTHING if speedup is None else _times(speedup),
        _saved(arm["arm"], found),
        _trials(arm.get("tuning")),
        arm["arm"] == found["best_arm"],
    )


def _about(found: dict[str, Any]) -> str:
    """What was measured on what, as far as the result says it."""
    seeds, resamples = len(found.get("seeds", ())), found.get("resamples", 1)
    told = [
        (found.get("train_labels"), f"training {_counted(found).removeprefix('labelled ')}"[:-1]),
        (found.get("test_size"), "test item"),
        (seeds, "seed"),
        (resamples if resamples > 1 else None, "resample"),
    ]
    said = [f"{count:,} {what}{'s' * (count != 1)}" for count, what in told if count]
    if found.get("test_groups"):
        said[1] += f" in {found['test_groups']:,} groups"
    return ", ".join(said)


def _counted(found: dict[str, Any]) -> str:
    """What the samples that arms are trained on are called; a result of an earlier release is of labels."""
    from steps.report.wording import counted

    return counted(found.get("task", "image-classification"))


def _interval(metric: str, value: float, low: float, high: float, sign: str = "") -> str:
    return f"{_figure(metric, value, sign)} ({_figure(metric, low, sign)} to {_figure(metric, high, sign)})"


def _figure(metric: str, value: float, sign: str = "") -> str:
    from steps.metrics import METRICS

    about = METRICS[metric]
    scaled, digits = (100 * value, 1) if about.percent else (value, about.digits)
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return f"{round(scaled, digits) + 0.0:{sign}.{digits}f}"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


def _saved(arm: str, found: dict[str, Any]) -> str:
    """Labels saved; "> 300" where the reference's curve ends before it is as good."""
    saved = (found.get("efficiency") or {}).get("saved", [])
    one = next((entry for entry in saved if entry["arm"] == arm), None)
    if one is None or (one["labels"] is None and not one["more_than"]):
        return NOTHING
    if one["labels"] is None:
        return "beyond curve"
    return f"{'> ' if one['more_than'] else ''}{round(one['labels']):,}"


def _trials(tuning: dict[str, Any] | None) -> str:
    if not tuning:
        return NOTHING
    failed = tuning.get("failed", 0)
    return f"{tuning['trials']}" + (f" ({failed} failed)" if failed else "")


def _model(registered: dict[str, Any]) -> str:
    aliases = "".join(f" @{alias}" for alias in registered["aliases"])
    return f"{registered['model']} version {registered['version']}{aliases}"


def _json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
