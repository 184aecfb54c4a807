"""How long a night takes that has nothing to do.

The same clone each time, as a worker finds it: everything is up to date and registered. Three ways: the look
for causes alone, `headstart nightly` without a Prefect server, and the flow against a server of one's own.

    python -m benchmarks.nightly --repeats 5                          the small twin, built and run first
    python -m benchmarks.nightly --repeats 5 --clone FOLDER           another clone, which must be up to date

The goal is at most 10 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import twin
from tests.twin import Twin

GOAL_SECONDS = 10.0
STARTED_SECONDS = 180.0
LOOK = """
import json, sys
from time import perf_counter
began = perf_counter()
from flows import night
from flows.stages import Stages, chosen
from steps import artifacts, params
checked = params.load(artifacts.PARAMS_FILE)
found = night.look(Stages(), chosen([], checked), checked)
heavy = [name for name in ("torch", "mlflow", "prefect", "pandas") if name in sys.modules]
print("LOOK " + json.dumps({"seconds": perf_counter() - began, "quiet": found.quiet, "heavy": heavy}))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clone", type=Path, default=None, help="A clone in which everything is up to date.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = prepared(Path(folder) / "twin") if given.clone is None else Twin(given.clone.resolve())
        show(clone, measure(clone, given.repeats, Path(folder)))


def prepared(root: Path) -> Twin:
    """The twin with both of its experiments run and registered."""
    made = twin.build(root)
    made.headstart("run")
    return made


def measure(clone: Twin, repeats: int, folder: Path) -> dict[str, list[float]]:
    """The wall seconds of each repeat, by way."""
    times: dict[str, list[float]] = {"look": [], "command": [], "command with a server": []}
    for _ in range(repeats):
        said = json.loads(look(clone).stdout.split("LOOK ")[1])
        assert said["quiet"], "there is a cause: run `headstart run` in the clone first"
        assert not said["heavy"], said["heavy"]
        times["look"].append(said["seconds"])
        times["command"].append(night(clone, {}))
    with server(folder) as environment:
        times["command with a server"] = [night(clone, environment) for _ in range(repeats)]
    return times


def look(clone: Twin) -> subprocess.CompletedProcess[str]:
    """The look for causes in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", LOOK], cwd=clone.root, env=clone.environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip


def night(clone: Twin, environment: dict[str, str]) -> float:
    """The wall seconds of one night, its process included."""
    began = time.perf_counter()
    said = clone.headstart("nightly", environment=environment)
    assert "nothing to do" in said, said
    return time.perf_counter() - began


@contextmanager
def server(folder: Path) -> Iterator[dict[str, str]]:
    """A Prefect server; gives the environment that names it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    home = {"PREFECT_HOME": str(folder / "prefect"), "DO_NOT_TRACK": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
        env=os.environ | environment | home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + STARTED_SECONDS
        while not answers(f"{environment['PREFECT_API_URL']}/health"):
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.5)
        yield environment
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    """Whether a page is there."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def show(clone: Twin, times: dict[str, list[float]]) -> None:
    """Print the table."""
    load = os.getloadavg()[0]
    print(
        f"{clone.root.name}: {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, load {load:.1f}; the goal is {GOAL_SECONDS:g} s"
    )
    for way, seconds in times.items():
        middle, least, most = statistics.median(seconds), min(seconds), max(seconds)
        print(f"{way:<24} median {middle:5.2f} s   {least:.2f} to {most:.2f}, n = {len(seconds)}")


if __name__ == "__main__":
    main()
