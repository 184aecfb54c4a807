"""What the orchestration costs over the steps' own time.

The same stages of the small twin, from nothing each time, in three ways: every step called directly,
`dvc repro`, and the Prefect flow. Then the same again with nothing to do. Run it on an idle machine:

    python -m benchmarks.orchestration --repeats 3

The goal is at most 1.5 s a stage over the step called directly.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from tests import twin
from tests.twin import Twin

GOAL_SECONDS = 1.5
# In a process of its own, as `headstart run` is; tells the seconds of its parts.
FLOW = """
import json, sys
from time import perf_counter
began = perf_counter()
from flows import server
server.prepare()
from flows import pipeline
server.reach()
ready = perf_counter()
report = pipeline.run([])
ended = perf_counter()
stages = {one.stage: one.seconds for one in report.outcomes}
print("FLOW " + json.dumps({"start": ready - began, "flow": ended - ready, "stages": stages}))
"""


@dataclass
class Times:
    """Seconds of each repeat.

    Attributes:
        direct: of each stage, its step called directly.
        flow: of each stage, as the flow's task.
        totals: by what was timed as a whole.
    """

    direct: dict[str, list[float]] = field(default_factory=dict)
    flow: dict[str, list[float]] = field(default_factory=dict)
    totals: dict[str, list[float]] = field(default_factory=dict)

    def total(self, name: str, seconds: float) -> None:
        """Note one whole."""
        self.totals.setdefault(name, []).append(seconds)


def commands(clone: Twin) -> dict[str, list[str]]:
    """Each stage's command, in an order in which they can run."""
    order = clone.run("dvc", "repro", "--dry", "--force").stdout.splitlines()
    names = [line.split("'")[1] for line in order if line.startswith("Running stage '")]
    said = [line.removeprefix("> python -m ").split() for line in order if line.startswith("> ")]
    return dict(zip(names, said, strict=True))


def forget(clone: Twin) -> None:
    """Remove all that was made, DVC's memory of it included."""
    for name in ("data", "work", "reports", "dvc.lock", ".dvc/cache", ".dvc/tmp"):
        path = clone.root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def timed(clone: Twin, *arguments: str) -> float:
    """The wall seconds of `python -m <arguments>`."""
    began = perf_counter()
    clone.run(*arguments)
    return perf_counter() - began


def measure(clone: Twin, times: Times) -> None:
    """One repeat of everything."""
    forget(clone)
    for stage, command in commands(clone).items():
        times.direct.setdefault(stage, []).append(timed(clone, *command))
    times.total("direct calls", sum(seconds[-1] for seconds in times.direct.values()))
    forget(clone)
    times.total("dvc repro", timed(clone, "dvc", "repro"))
    times.total("dvc repro, nothing to do", timed(clone, "dvc", "repro"))
    forget(clone)
    # Registering is no stage and would take the time of a server: none answers there.
    for again in (False, True):
        done = clone.run("benchmarks_flow", environment={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
        said = json.loads(done.stdout.split("FLOW ")[1])
        ending = ", nothing to do" if again else ""
        times.total(f"flow{ending}", sum(said["stages"].values()))
        times.total(f"flow with register and what is between the stages{ending}", said["flow"])
        times.total(f"Prefect's start{ending}", said["start"])
        if not again:
            for stage, seconds in said["stages"].items():
                times.flow.setdefault(stage, []).append(seconds)


def show(times: Times) -> None:
    """Print the tables."""
    repeats = len(next(iter(times.direct.values())))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, n = {repeats}\n"
    )
    print(f"{'stage':<24}{'direct':>9}{'flow':>9}{'over':>9}   spread of over (s)")
    over_all = []
    for stage, direct in times.direct.items():
        over = [flow - own for flow, own in zip(times.flow[stage], direct, strict=True)]
        over_all += over
        means = [statistics.mean(values) for values in (direct, times.flow[stage], over)]
        figures = "".join(f"{mean:>9.2f}" for mean in means)
        print(f"{stage:<24}{figures}   {min(over):.2f} to {max(over):.2f}")
    mean = statistics.mean(over_all)
    print(f"\nover the step's own time: {mean:.2f} s a stage, n = {len(over_all)}, "
          f"{min(over_all):.2f} to {max(over_all):.2f}; the goal is {GOAL_SECONDS} s\n")  # fmt: skip
    for name, values in times.totals.items():
        print(f"{name:<66}{statistics.mean(values):>8.1f} s   {min(values):.1f} to {max(values):.1f}")


def main() -> None:
    """Run `python -m benchmarks.orchestration`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    times = Times()
    with tempfile.TemporaryDirectory() as folder:
        clone = twin.build(Path(folder) / "twin")
        (clone.root / "benchmarks_flow.py").write_text(FLOW)
        for _ in range(repeats):
            measure(clone, times)
    show(times)


if __name__ == "__main__":
    main()
