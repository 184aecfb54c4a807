"""The page that lists all experiments. It belongs to no stage: whoever finishes last writes it anew."""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from steps import artifacts, metrics
from steps.report import charts, history, pages


@dataclass(frozen=True)
class Listed:
    """One experiment of the list.

    Attributes:
        folder: where its report lies, ready for a link.
        it: as in comparison.json.
        best: the best arm as in comparison.json.
        before: the newest line of the history that tells of another result; None when there is none.
        spark: the best arm's mean over the history; None with fewer than two results.
        results: how many results the history knows.
    """

    folder: str
    it: dict[str, Any]
    best: dict[str, Any]
    before: dict[str, Any] | None
    spark: Markup | None
    results: int


def write(reports: Path, histories: Path = history.FOLDER) -> Path:
    """Write `index.html` from every `comparison.json` below `reports`; give its path.

    Two stages may end at the same moment. Each puts its own folder in place first and then takes turns
    here, so the later one sees both.

    Args:
        reports: one folder an experiment.
        histories: one file an experiment, by `history.record`.
    """
    reports.mkdir(parents=True, exist_ok=True)
    path = reports / "index.html"
    with (reports / ".index.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with artifacts.new_file(path) as partial:
            found = [listed(folder, it, histories) for folder, it in read_all(reports).items()]
            partial.write_text(pages.render("index.html.j2", experiments=found), "utf-8")
    return path


def read_all(reports: Path) -> dict[str, dict[str, Any]]:
    """Every comparison below `reports`, by name of its folder; half-written folders are hidden ones."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(reports.glob("*/comparison.json")):
        if path.parent.name.startswith("."):
            continue
        try:
            found[path.parent.name] = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            continue  # another stage is putting its new folder in this one's place, and lists it after
    return found


def listed(folder: str, it: dict[str, Any], histories: Path) -> Listed:
    """An experiment with what its history tells.

    Means of another metric are no earlier values of this one, so they are left out.
    """
    metric = it["metric"]["name"]
    lines = [
        one for one in history.read(history.file_of(it["experiment"], histories)) if one["metric"] == metric
    ]
    now = history.identity(it)
    earlier = [one for one in lines if one["identity"] != now]
    best = next(arm for arm in it["arms"] if arm["arm"] == it["best_arm"])
    series = [one["mean"] for one in (lines if lines and lines[-1]["identity"] == now else [*lines, best])]
    told = f"{len(series)} results, the newest {metrics.figure(metric, series[-1])}"
    return Listed(
        folder=quote(folder, safe=""),
        it=it,
        best=best,
        before=earlier[-1] if earlier else None,
        spark=charts.sparkline(series, told) if len(series) > 1 else None,
        results=len(series),
    )
