"""compare: weigh the arms against each other; write the comparison, the report and the model card."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from steps import artifacts, entry, exhibits, results, weighing
from steps.exhibits import Samples
from steps.report import history, index, pages, plots, tables
from steps.report.sheet import Sheet
from steps.results import Results


def compare(experiment: str) -> None:
    """Write `reports/<experiment>/`, and `reports/index.html` over all experiments.

    Raises:
        TrainingError: predictions or a history are not finite.
        HeadstartError: the arms were not trained and tested on the same data, seeds and items.
        DataError: a sample that the report shows cannot be read.
    """
    found, samples = results.read(experiment), Samples(experiment)
    duplicates, suspects = exhibits.near_duplicates(samples), exhibits.suspects(found, samples)
    comparison = weighing.weigh(
        found,
        exhibits.facts(samples, found.crossed.ids),
        {"near_duplicates": len(duplicates), "suspects": len(suspects)},
    )
    curves = {arm: [list(run.curve(found.metric).values) for run in runs] for arm, runs in found.runs.items()}
    best = comparison["best_arm"]
    at = found.runs[best].index(weighing.best_run(found.runs[best], found.metric))
    sheet = Sheet(
        comparison=comparison,
        curves=curves,
        points=exhibits.points(found, samples, best, at),
        mistakes=exhibits.mistakes(found, samples),
        suspects=suspects,
        duplicates=duplicates,
        cases=exhibits.cases(found, samples, best, at),
    )
    write(found, sheet)
    history.record(comparison, datetime.now(UTC), history.file_of(experiment))
    index.write(artifacts.REPORTS)
    entry.say(comparison["verdict"]["text"])
    entry.say(f"report: {artifacts.report_dir(experiment) / 'report.html'}")


def write(found: Results, sheet: Sheet) -> None:
    """Write the folder of the experiment's report."""
    comparison: dict[str, Any] = sheet.comparison
    best = comparison["best_arm"]
    counts = weighing.confusion_counts(found, best) if found.kind.classified else None
    with artifacts.new_folder(artifacts.report_dir(found.experiment)) as folder:
        artifacts.write_json(folder / "comparison.json", comparison)
        table_of_curves(found).to_csv(folder / "curves.csv", index=False, lineterminator="\n")
        (folder / "plots").mkdir()
        for name, png in plots.draw(comparison, sheet.curves, counts).items():
            (folder / "plots" / f"{name}.png").write_bytes(png)
        tables.write(comparison, folder / "tables")
        (folder / "report.html").write_text(pages.report(sheet), "utf-8")
        (folder / "model_card.md").write_text(pages.model_card(comparison), "utf-8")


def table_of_curves(found: Results) -> pd.DataFrame:
    """All histories in one long table, for `dvc plots`; arms are judged by the column `validation`."""
    judged = f"validation_{found.metric}"
    frames = [
        run.history.assign(arm=arm, seed=run.seed, resample=run.resample, validation=run.history[judged])
        for arm, runs in found.runs.items()
        for run in runs
    ]
    table = pd.concat(frames, ignore_index=True)
    front = ["arm", "seed", "resample", "epoch"]
    return table[front + [name for name in table.columns if name not in front]]


def main() -> int:
    """Run `python -m steps.compare <experiment>`."""
    return entry.run(compare, "experiment")


if __name__ == "__main__":
    sys.exit(main())
