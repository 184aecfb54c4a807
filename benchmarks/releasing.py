"""How long the commands on a version take after a year: `why`, `history`, `promote`, `rollback`.

    python -m benchmarks.releasing

A registered result in a local SQLite store, and a ledger of 365 entries before it. Each command is a whole
process, from the shell's view; told are the median and the slowest of five.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from statistics import median
from time import perf_counter

from steps.register import register
from steps.tracking import aliases, store
from tests.tracking import made

ROOT = Path(__file__).parent.parent
ENTRIES, RUNS = 365, 5
COMMANDS = (
    ("why", "colours@champion"),
    ("history", "colours"),
    ("rollback", "colours"),
    ("promote", "colours@previous"),
)


def main() -> None:
    """Print the seconds of each command."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        _make(Path(folder))
        times: dict[str, list[float]] = {name: [] for name, *_ in COMMANDS}
        for _ in range(RUNS):
            for name, *arguments in COMMANDS:
                times[name].append(_seconds(name, *arguments))
    for name, found in times.items():
        print(f"{name}: median {median(found):.2f} s, slowest {max(found):.2f} s, of {RUNS}")


def _make(folder: Path) -> None:
    """A clone with a registered result, and a ledger of many entries about two versions of it."""
    made.clone(folder)
    made.store(folder)
    for name in ("dvc.yaml", "requirements.lock"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "params.yaml").write_text("experiments: {}\n")
    (folder / "steps").symlink_to(ROOT / "steps")
    register("colours")
    with store.opened() as opened:
        model = "headstart-colours"
        first = opened.client.get_model_version(model, "1")
        assert first.source is not None
        opened.client.create_model_version(model, first.source, first.run_id, tags=first.tags)
        aliases.promote(opened, model, "2", why="as good")
        while len(aliases.history(opened, model)) < ENTRIES:
            aliases.rollback(opened, model, why="not worse by more than the margin of 0.01")


def _seconds(*arguments: str) -> float:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "headstart.cli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return perf_counter() - started


if __name__ == "__main__":
    main()
