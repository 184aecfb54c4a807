"""How time and memory of the steps on tables grow with the number of rows.

    python -m benchmarks.scale [ROWS...]

The rows are short texts of five classes; every tenth repeats another nearly, every thousandth exactly, and a
third are in groups. No network is trained: what `evaluate` and the other steps would have written is made up,
for three arms and three seeds on a fifth of the rows. Each step runs in a process of its own. The exponent is
the slope of log seconds over log rows, after the time that the step takes on 1,000 rows was subtracted: 1 is
linear. Sizes that take hardly more than these are left out of it.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from steps import artifacts, data
from steps.params import IngestSettings, Split, SplitSettings, ValidateSettings, parse
from tests import evaluated
from tests.evaluated import Made

ROOT = Path(__file__).parent.parent
ROWS, START = (10_000, 100_000, 1_000_000), 1000
NAME = "large"
LABELS = ["arts", "economy", "nature", "science", "sport"]
# Of the rows, those in the test split.
TESTED = 5
# A process begins with the largest size of the one that it was forked from, so a small one stands between.
MEASURE = """
import resource, subprocess, sys, time
started = time.perf_counter()
code = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(code)
"""


@dataclass(frozen=True)
class Cost:
    """What one step took: seconds of wall-clock time and of the processor, and its largest resident size."""

    seconds: float
    cpu: float
    bytes: int


def main() -> None:
    """Print seconds, peak memory and exponent of every step."""
    sizes = [int(one.replace("_", "")) for one in sys.argv[1:]] or list(ROWS)
    found = {rows: measured(rows) for rows in (START, *sizes)}
    for step in STEPS:
        costs = [found[rows][step] for rows in sizes]
        cells = "  ".join(f"{cost.cpu:8.1f} s {cost.bytes / 1e9:5.2f} GB" for cost in costs)
        print(f"{step:9} {cells}  exponent {exponent(sizes, costs, found[START][step]):.2f}", flush=True)


def exponent(sizes: Sequence[int], costs: Sequence[Cost], start: Cost) -> float:
    """The slope of the processor's log seconds over log rows, without what every start takes.

    Sizes where that is nearly all are left out: their difference is noise. With fewer than two left there is
    no slope.
    """
    told = [(rows, cost.cpu - start.cpu) for rows, cost in zip(sizes, costs, strict=True)]
    told = [(rows, seconds) for rows, seconds in told if seconds > start.cpu / 4]
    if len(told) < 2:
        return float("nan")
    rows, seconds = np.array(told).T
    return float(np.polyfit(np.log(rows), np.log(seconds), 1)[0])


def measured(rows: int) -> dict[str, Cost]:
    """What every step takes on so many rows, in a folder that is removed then."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        costs = {}
        for step, prepare in STEPS.items():
            prepare(rows)
            costs[step] = run(step)
            cost = costs[step]
            took = f"{cost.seconds:8.1f} s wall, {cost.cpu:8.1f} s of the processor"
            print(f"{rows:>9,} rows: {step:9} {took}, {cost.bytes / 1e9:.2f} GB", file=sys.stderr, flush=True)
        return costs


def run(step: str) -> Cost:
    """One step in a process of its own; its standard output is not shown.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", f"steps.{step}", NAME]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{step} failed:\n{done.stdout}{done.stderr}")
    seconds, cpu, kibibytes = map(float, done.stdout.split()[-3:])
    return Cost(seconds, cpu, int(kibibytes) * 1024)


# ------------------------------------------------------------------------------------------------ the data


def prepare_ingest(rows: int) -> None:
    """A table of texts, and the settings of all steps but compare."""
    write_settings(rows)
    rng = np.random.default_rng(0)
    words = np.array(
        [f"{first}{last}" for first in "bdfgklmnprst" for last in ("a", "en", "ilo", "ust", "orv")]
    )
    with Path("raw.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["body", "topic", "author"])
        text = "nothing"
        for at in range(rows):
            if at % 1000 != 999:  # an exact copy of the one before
                text = f"{text}!" if at % 10 == 9 else f"{' '.join(rng.choice(words, 6))} {at}"
            author = f"author {at // 6}" if at % 3 == 0 else ""
            # A copy has the label of what it is a copy of, so that none contradicts another.
            writer.writerow([text, LABELS[(at - at % 10) // 10 % len(LABELS)], author])


def write_settings(rows: int) -> None:
    """The settings of ingest, validate and split."""
    source = {"source": "table", "path": "raw.csv", "text": "body", "label": "topic", "group": "author"}
    settings = {
        "ingest": parse(IngestSettings, {"task": "text-classification", "data": source}, "scale"),
        "validate": parse(ValidateSettings, {"task": "text-classification", "validation": {}}, "scale"),
        "split": SplitSettings(split=Split(train_labels=rows // 4), resamples=3),
    }
    for step, one in settings.items():
        artifacts.write_json(artifacts.settings_file(NAME, step), one.model_dump(mode="json"))


def prepare_compare(rows: int) -> None:
    """What the other steps write for compare, in the place of what validate and split wrote."""
    tested = rows // TESTED
    made = Made(experiment=NAME, items=tested, labels=LABELS, texts=True, groups=max(2, tested // 3))
    evaluated.make(made)
    accepted = data.read_accepted(NAME)
    more = pd.DataFrame({"id": [f"more-{at}" for at in range(rows - len(accepted))]})
    more = more.assign(text="a text that is trained on", label=LABELS[0], size=25)
    more["sha256"] = [f"{at:064x}" for at in range(len(more))]
    whole = pd.concat([accepted, more.reindex(columns=accepted.columns)], ignore_index=True)
    data.write_table(whole, artifacts.validation_dir(NAME) / "accepted.parquet")
    split = data.read_made(artifacts.split_file(NAME), "split")
    sides = pd.concat([split, more[["id"]].assign(split="train")], ignore_index=True)
    data.write_table(sides, artifacts.split_file(NAME))


def nothing(rows: int) -> None:
    """The step before has left all that is needed."""


STEPS: dict[str, Callable[[int], None]] = {
    "ingest": prepare_ingest,
    "validate": nothing,
    "split": nothing,
    "compare": prepare_compare,
}


if __name__ == "__main__":
    main()
