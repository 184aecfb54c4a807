"""Every number of the report as tables, for those who want to calculate on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from steps import artifacts

Row = dict[str, Any]
ENDS = ("value", "ci_low", "ci_high")


def frames(comparison: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The tables by name; one that has no rows is left out.

    Args:
        comparison: as in comparison.json.

    Returns:
        E.g. `arms`, one row an arm. Intervals are three columns: `ece`, `ece_ci_low`, `ece_ci_high`.
    """
    rows = {name: made(comparison) for name, made in TABLES.items()}
    return {name: _frame(found) for name, found in rows.items() if found}


def write(comparison: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write each table as `<name>.csv`: UTF-8, LF, floats with all their digits.

    Args:
        comparison: as in comparison.json.
        folder: made when missing.

    Returns:
        The paths, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, frame in sorted(frames(comparison).items()):
        path = folder / f"{name}.csv"
        with artifacts.new_file(path) as partial:
            # Without a float_format, pandas writes what repr() gives.
            partial.write_bytes(frame.to_csv(index=False, lineterminator="\n").encode("utf-8", "replace"))
        paths.append(path)
    return paths


def run_names(comparison: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Resample and seed of every run, in the order of an arm's values."""
    return [
        (resample, seed) for resample in range(1, comparison["resamples"] + 1) for seed in comparison["seeds"]
    ]


def _frame(rows: list[Row]) -> pd.DataFrame:
    """Whole numbers stay whole where some are missing."""
    frame = pd.DataFrame(rows)
    for name in frame.columns:
        present = [row[name] for row in rows if row.get(name) is not None]
        if present and all(type(value) is int for value in present):
            frame[name] = pd.array([row.get(name) for row in rows], dtype="Int64")
    return frame


def _interval(name: str, found: Mapping[str, Any] | None) -> Row:
    """Three columns of an interval; empty where there is none."""
    return {name if key == "value" else f"{name}_{key}": found[key] if found else None for key in ENDS}


def _verdict(it: Mapping[str, Any]) -> list[Row]:
    plain = {key: it["verdict"][key] for key in it["verdict"] if key != "text"}
    return [{"experiment": it["experiment"], "metric": it["metric"]["name"], "margin": it["margin"], **plain}]


def _arms(it: Mapping[str, Any]) -> list[Row]:
    return [_arm(arm) for arm in it["arms"]]


def _arm(arm: Mapping[str, Any]) -> Row:
    gain = arm["improvement"] or dict.fromkeys((*ENDS, "p", "p_holm", "call"))
    speedup = arm["speedup"] or {"epochs": None, "steps": None, "seconds": None, "censored": None}
    stability = arm["stability"]
    return {
        **{key: arm[key] for key in ("arm", "start", "tune", "mean", "ci_low", "ci_high")},
        **_interval("improvement", gain),
        **{key: gain[key] for key in ("p", "p_holm", "call")},
        **{f"test_{name}": value for name, value in sorted(arm["test"].items())},
        "validation": arm["validation"]["mean"],
        **{f"stability_{key}": stability[key] for key in ("runs", "sd", "low", "high", "failed")},
        **_interval("failed_share", stability["failed_share"]),
        **{key: arm[key] for key in ("epochs_to_target", "steps_to_target", "seconds_to_target", "seconds")},
        **_interval("speedup_epochs", speedup["epochs"]),
        **_interval("speedup_steps", speedup["steps"]),
        **_interval("speedup_seconds", speedup["seconds"]),
        "speedup_censored": speedup["censored"],
        **_interval("area", arm["area"]),
        **_calibrated(arm),
        **{key: arm[key] for key in ("train_labels", "parameters", "trainable_parameters")},
        "frozen_tensors": arm["frozen"]["tensors"],
    }


def _calibrated(arm: Mapping[str, Any]) -> Row:
    """How far its probabilities can be believed; nothing where there are none."""
    found = arm["calibration"]
    if found is None:
        return {}
    return {
        **_interval("ece", found["ece"]),
        "temperature": found["temperature"],
        **_interval("ece_scaled", found["ece_scaled"]),
    }


def _metrics(it: Mapping[str, Any]) -> list[Row]:
    return [
        {"arm": arm["arm"], "metric": name, **found}
        for arm in it["arms"]
        for name, found in arm["metrics"].items()
    ]


def _distribution(it: Mapping[str, Any]) -> list[Row]:
    found = it["distribution"] or {"arms": []}
    return [
        {
            "arm": one["arm"], "metric": found["metric"], "from": found["edges"][at],
            "to": found["edges"][at + 1], "items": count,
        }
        for one in found["arms"]
        for at, count in enumerate(one["counts"])
    ]  # fmt: skip


def _quartiles(it: Mapping[str, Any]) -> list[Row]:
    names = ("lowest", "first_quartile", "median", "third_quartile", "highest")
    found = it["distribution"] or {"arms": []}
    return [
        {"arm": one["arm"], "metric": found["metric"], **dict(zip(names, one["quartiles"], strict=True))}
        for one in found["arms"]
    ]


def _runs(it: Mapping[str, Any]) -> list[Row]:
    names = run_names(it)
    return [
        {
            "arm": arm["arm"], "resample": resample, "seed": seed, "value": arm["values"][at],
            "validation": arm["validation"]["values"][at], "epochs": arm["epochs"][at],
            "best_epoch": arm["best_epoch"][at], "epochs_to_target": arm["epochs_to_target_by_seed"][at],
        }
        for arm in it["arms"]
        for at, (resample, seed) in enumerate(names)
    ]  # fmt: skip


def _pairs(it: Mapping[str, Any]) -> list[Row]:
    return [
        {key: pair[key] for key in pair if key != "mcnemar"}
        | {f"mcnemar_{key}": value for key, value in (pair["mcnemar"] or {}).items()}
        for pair in it["pairs"]
    ]


def _baselines(it: Mapping[str, Any]) -> list[Row]:
    return [
        {key: one[key] for key in ("name", "about", "mean", "ci_low", "ci_high")}
        | _interval("improvement", one["improvement"])
        for one in it["baselines"]
    ]


def _efficiency(it: Mapping[str, Any]) -> list[Row]:
    return [
        {"arm": one["arm"], **{key: point[key] for key in ("labels", "mean", "ci_low", "ci_high")}}
        for one in (it["efficiency"] or {"arms": []})["arms"]
        for point in one["points"]
    ]


def _labels_saved(it: Mapping[str, Any]) -> list[Row]:
    return [dict(one) for one in (it["efficiency"] or {"saved": []})["saved"]]


def _per_class(it: Mapping[str, Any]) -> list[Row]:
    return [
        {"label": one["label"], "support": one["support"]}
        | _interval("precision", one["precision"])
        | _interval("recall", one["recall"])
        | _interval("f1", one["f1"])
        | {"few": one["few"]}
        for one in it["per_class"]
    ]


def _slices(it: Mapping[str, Any]) -> list[Row]:
    front = ("slice", "value", "items", "mean", "ci_low", "ci_high", "reference_mean")
    return [
        {"metric": it["slice_metric"]}
        | {key: one[key] for key in front}
        | _interval("difference", one["difference"])
        | _interval("rest", one["rest"])
        | {"few": one["few"]}
        for one in it["slices"]
    ]  # fmt: skip


def _calibration(it: Mapping[str, Any]) -> list[Row]:
    return [{"arm": arm["arm"]} | _calibrated(arm) for arm in it["arms"] if arm["calibration"]]


def _reliability(it: Mapping[str, Any]) -> list[Row]:
    return [
        {"arm": arm["arm"], "bin": at, **one}
        for arm in it["arms"]
        if arm["calibration"]
        for at, one in enumerate(arm["calibration"]["bins"])
    ]


def _ranking(it: Mapping[str, Any]) -> list[Row]:
    return [
        {key: one[key] for key in ("name", "about", "logme", "h_score", "nleep")}
        | _interval("probe", one["probe"])
        | {"fine_tuned": one["fine_tuned"]}
        for one in it["ranking"]
    ]


def _tuning(it: Mapping[str, Any]) -> list[Row]:
    return [
        {"arm": arm["arm"]}
        | {key: arm["tuning"][key] for key in ("trials", "failed", "steps", "seconds", "objective")}
        for arm in it["arms"]
    ]


def _search_space(it: Mapping[str, Any]) -> list[Row]:
    """One row a setting; ranges and choices as they are written in params.yaml."""
    return [
        {
            "arm": arm["arm"], "setting": key,
            "space": str(tuning["space"][key]) if key in tuning["space"] else None,
            "chosen": str(tuning["chosen"][key]) if key in tuning["chosen"] else None,
        }
        for arm in it["arms"]
        for tuning in (arm["tuning"],)
        for key in sorted({*tuning["space"], *tuning["chosen"]})
    ]  # fmt: skip


def _confusion(it: Mapping[str, Any]) -> list[Row]:
    classes = it["classes"]
    return [
        {"label": classes[row], "predicted": classes[column], "share": value}
        for row, shares in enumerate(it["confusion"] or [])
        for column, value in enumerate(shares)
    ]


TABLES: dict[str, Callable[[Mapping[str, Any]], list[Row]]] = {
    "verdict": _verdict,
    "arms": _arms,
    "metrics": _metrics,
    "runs": _runs,
    "pairs": _pairs,
    "baselines": _baselines,
    "efficiency": _efficiency,
    "labels_saved": _labels_saved,
    "per_class": _per_class,
    "slices": _slices,
    "distribution": _distribution,
    "quartiles": _quartiles,
    "calibration": _calibration,
    "reliability": _reliability,
    "ranking": _ranking,
    "tuning": _tuning,
    "search_space": _search_space,
    "confusion": _confusion,
}
