"""rank: weigh pretrained backbones against each other for an experiment's data, before any training.

The scores are those of `transferability` and a cross-validated linear probe, on train and validation alone.
Random features and pixels or TF-IDF stand beside them: what a backbone does not beat, it does not help with.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from steps import artifacts, classical, data, entry, metrics, params
from steps.classical import Transferability
from steps.errors import DataError, UserError
from steps.kinds import KINDS
from steps.params import EmbedSettings, Experiment
from steps.scans import Rule
from steps.settings import suggest

# Outside of DVC's care: it saves time and never changes a result.
CACHE = Path(".headstart/cache/candidates")
# To be raised when features are laid out another way.
FORMAT = 1
# A pipe has no width: lines must not be folded at 80.
PIPE_WIDTH = 200
# Fewer pairs have no rank correlation worth the name.
FEWEST_PAIRS = 3
SCORES = {"LogME": "log_me", "H-score": "h_score", "N-LEEP": "n_leep", "probe": "probe"}


@dataclass(frozen=True)
class Row:
    """One kind of features.

    Attributes:
        name: a slug under `pretrained:`, or what the yardstick is.
        is_backbone: it is a pretrained one, not a yardstick.
        scores: how well it suits the labels.
        fine_tuned: what the best fine-tuned arm on it reached on the test split, where a report tells.
    """

    name: str
    is_backbone: bool
    scores: Transferability
    fine_tuned: float | None

    def score(self, name: str) -> float:
        """One of `SCORES`; of the probe its value."""
        found = getattr(self.scores, SCORES[name])
        return float(getattr(found, "value", found))


def rank(experiment: str) -> None:
    """Print a table of the experiment's backbone, its candidates and two yardsticks, the best first.

    Raises:
        UserError: there is no such experiment, it has no classes, or a step before or a backbone is missing.
        DataError: a sample cannot be read.
    """
    checked = params.load(artifacts.PARAMS_FILE)
    if experiment not in checked.experiments:
        raise UserError(f"there is no experiment {experiment!r}{suggest(experiment, checked.experiments)}")
    settings = checked.experiments[experiment]
    if not KINDS[settings.task].classified:
        raise UserError(
            f"rank weighs features by how well they tell classes apart, and task {settings.task} has none: "
            f"`headstart run {experiment}` compares what was trained on them"
        )
    rows = in_order(weigh(experiment, settings))
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH, force_terminal=False)
    console.print(table(rows, settings), highlight=False)
    for line in notes(rows, settings):
        entry.say(line)


def weigh(experiment: str, settings: Experiment) -> list[Row]:
    """A row for each backbone and yardstick."""
    rows = data.read_split(experiment)
    classes = data.classes_of(rows)
    seen = rows[rows["split"].isin(["train", "validation"])].reset_index(drop=True)
    labels = data.label_indices(seen["label"], classes)
    backbones = (settings.model.pretrained, *settings.candidates)
    for slug in backbones:  # before the first of them is computed for minutes
        check_fetched(experiment, slug)
    tuned = fine_tuned(experiment, settings, data.fingerprint(rows[rows["split"] != ""]))
    found = []
    for name, matrix in sources(experiment, settings, seen).items():
        scores = classical.transferability_of(matrix, labels, len(classes), settings.evaluation.confidence)
        found.append(Row(name, name in backbones, scores, tuned.get(name)))
    return found


# ---------------------------------------------------------------------------------------------- features


def sources(experiment: str, settings: Experiment, seen: pd.DataFrame) -> dict[str, NDArray[np.floating]]:
    """Features of every backbone and yardstick, a row for each sample of train and validation."""
    own = settings.model.pretrained
    found: dict[str, NDArray[np.floating]] = {}
    for slug in dict.fromkeys((own, *settings.candidates)):
        folder = embedded(experiment, settings, slug, seen)
        found[slug] = data.read_features(folder, seen["id"])
    folder = embedded(experiment, settings, own, seen)
    if (folder / data.RANDOM_FEATURES).exists():  # a SavedModel has no architecture that could be at random
        found["random weights"] = data.read_features(folder, seen["id"], data.RANDOM_FEATURES)
    if KINDS[settings.task].content == "text":
        return found | {"TF-IDF": classical.dense(classical.tf_idf(seen["text"].tolist())[0])}
    try:
        files = [artifacts.data_dir(experiment) / str(path) for path in seen["path"]]
        return found | {"pixels": classical.pixels(files, Rule.of(settings.model))}
    except OSError as error:
        raise DataError(f"{experiment}: an image cannot be read: {error}; run ingest and validate") from None


def embedded(experiment: str, settings: Experiment, slug: str, seen: pd.DataFrame) -> Path:
    """The folder with a backbone's features of these samples, computed where it is not there yet.

    Beside those of the experiment's own backbone lie those of its architecture with random weights.
    """
    model = settings.model.model_copy(update={"pretrained": slug})
    chosen = EmbedSettings(task=settings.task, model=model, machine=settings.machine)
    own = slug == settings.model.pretrained
    folder = CACHE / key(chosen, seen, own)
    if folder.exists():
        return folder
    from steps import embedding  # torch, which takes seconds, and is not needed the second time

    total = (embedding.turns(chosen) if own else 1) * len(seen)
    with artifacts.new_folder(folder) as partial, entry.Progress(f"embed {slug}", total) as progress:
        embedding.write(experiment, chosen, seen, partial, progress.reached, random_too=own)
    return folder


def key(settings: EmbedSettings, seen: pd.DataFrame, random_too: bool) -> str:
    """A name for what features depend on: samples, weights, and how samples are fed."""
    folder = artifacts.pretrained_dir(settings.model.pretrained)
    files = artifacts.sha256_files(folder)
    ids = hashlib.sha256("\n".join(sorted(seen["id"])).encode()).hexdigest()
    return artifacts.sha256_json(
        {
            "format": FORMAT,
            "data": data.fingerprint(seen),
            "ids": ids,
            "pretrained": files,
            "task": settings.task,
            "model": settings.model.model_dump(mode="json"),
            "random": random_too,
        }
    )


def check_fetched(experiment: str, slug: str) -> None:
    """Make sure that a backbone is here.

    Raises:
        UserError: it is not; the message says what to run.
    """
    folder = artifacts.pretrained_dir(slug)
    if not (folder / "model.safetensors").exists():
        raise UserError(
            f"{folder} is missing: the backbone {slug} is not fetched yet; run `dvc repro fetch@{slug}` or "
            f"`headstart rank {experiment}`"
        )


# ------------------------------------------------------------------------------- what came of them in the end


def fine_tuned(experiment: str, settings: Experiment, used: str) -> dict[str, float]:
    """What fine-tuning reached on the same data, by backbone, and without pretraining, as reports tell it.

    Of each report the arm that was best on validation, of those that train the backbone. Reports of other
    data, other splits or another metric do not count.

    Args:
        experiment: whose data it is.
        settings: its metric and own backbone.
        used: fingerprint of the samples of its splits.
    """
    found: dict[str, float] = {}
    # The experiment's own report last: it is the one that counts.
    for path in sorted(
        artifacts.REPORTS.glob("*/comparison.json"), key=lambda it: it.parent.name == experiment
    ):
        report = artifacts.read_json(path, "compare")
        if report.get("schema") != 2 or report["metric"]["name"] != settings.evaluation.metric:
            continue
        if report["provenance"]["data_sha256"] != used:
            continue
        slug = report["pretrained"]["name"]
        for name, start in {slug: "pretrained", "random weights": "random"}.items():
            best = best_arm(report, start)
            if best is not None and (start == "pretrained" or slug == settings.model.pretrained):
                found[name] = best
    return found


def best_arm(report: Mapping[str, Any], start: str) -> float | None:
    """The mean test result of the arm that was best on validation, of those with this start."""
    arms = [arm for arm in report["arms"] if arm["start"] == start and arm["tune"] != "head"]
    if not arms:
        return None
    sign = 1 if report["metric"]["higher_is_better"] else -1
    return float(max(arms, key=lambda arm: sign * arm["validation"]["mean"])["mean"])


# -------------------------------------------------------------------------------------------------- shown


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The best first: by the mean of the ranks that the four scores give, then by name."""
    ranks = {
        row.name: sum(sum(other.score(name) > row.score(name) for other in rows) for name in SCORES)
        for row in rows
    }
    return sorted(rows, key=lambda row: (ranks[row.name], row.name))


def table(rows: Sequence[Row], settings: Experiment) -> Table:
    """The rows as they are shown; yardsticks dim."""
    metric = settings.evaluation.metric
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("features")
    for name in list(SCORES)[:-1]:
        shown.add_column(name, justify="right")
    shown.add_column(f"probe accuracy, {100 * settings.evaluation.confidence:g} % interval", no_wrap=True)
    shown.add_column(f"fine-tuned {metrics.SHOWN[metric]}", justify="right")
    for row in rows:
        probe = row.scores.probe
        value, low, high = (metrics.figure("accuracy", one) for one in (probe.value, probe.low, probe.high))
        shown.add_row(
            row.name, f"{row.scores.log_me:.3f}", f"{row.scores.h_score:.2f}", f"{row.scores.n_leep:.3f}",
            f"{value}  {low} to {high}", figure(metric, row.fine_tuned),
            style=None if row.is_backbone else "dim",
        )  # fmt: skip
    return shown


def figure(metric: str, value: float | None) -> str:
    """A result, a dash where there is none."""
    return "-" if value is None else metrics.figure(metric, value)


def notes(rows: Sequence[Row], settings: Experiment) -> list[str]:
    """Who leads by what, and whether the scores foretold what fine-tuning reached."""
    backbones = [row for row in rows if row.is_backbone]
    items = rows[0].scores.probe.items
    lines = [f"Scores are of {items} training and validation items; higher is better. {leaders(backbones)}"]
    yardstick = max((row for row in rows if not row.is_backbone), key=lambda row: row.score("probe"))
    if all(row.score("probe") <= yardstick.score("probe") for row in backbones):
        lines.append(
            f"By the probe no backbone is better than {yardstick.name}: if pretraining helps here, then by "
            "fine-tuning alone."
        )
    correlations = correlate(rows, settings.evaluation.metric)
    if correlations:
        pairs = sum(row.fine_tuned is not None for row in rows)
        said = ", ".join(f"{name} {value:+.2f}" for name, value in correlations.items())
        lines.append(f"Spearman's rank correlation with the fine-tuned results of {pairs}: {said}.")
    return lines


def leaders(backbones: Sequence[Row]) -> str:
    """Which backbone is first by which score."""
    if len(backbones) < 2:
        return "Name others under the experiment's `candidates:` to compare them."
    first: dict[str, list[str]] = {}
    for name in SCORES:
        best = max(backbones, key=lambda row, name=name: row.score(name))  # type: ignore[misc]
        first.setdefault(best.name, []).append(name)
    if len(first) == 1:
        return f"By all of them {next(iter(first))} leads."
    return "; ".join(f"{backbone} leads by {', '.join(names)}" for backbone, names in first.items()) + "."


def correlate(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """Spearman's correlation of each score with what fine-tuning reached; empty of fewer than three pairs."""
    from scipy.stats import spearmanr

    known = [row for row in rows if row.fine_tuned is not None]
    if len(known) < FEWEST_PAIRS:
        return {}
    sign = 1 if metrics.HIGHER_IS_BETTER[metric] else -1
    reached = [sign * row.fine_tuned for row in known if row.fine_tuned is not None]
    found = {}
    for name in SCORES:
        scores = [row.score(name) for row in known]
        if len(set(scores)) > 1 and len(set(reached)) > 1:  # what never varies has no correlation
            found[name] = float(spearmanr(scores, reached).statistic)
    return {name: value for name, value in found.items() if not math.isnan(value)}


def main() -> int:
    """Run `python -m steps.rank <experiment>`."""
    return entry.run(rank, "experiment")


if __name__ == "__main__":
    sys.exit(main())
