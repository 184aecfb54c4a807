"""How long compare takes on a large result: 7 arms, 5 seeds, 10,000 test items, 10 classes.

    python -m benchmarks.comparing

The result is made up; no network is trained for it. The bootstrap is the usual one of 10,000 draws.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from time import perf_counter

from tests import evaluated
from tests.evaluated import Made

ROOT = Path(__file__).parent.parent
ARMS = ("scratch", "frozen", "full", "bottom_half", "llrd", "lora", "reinit_top")


def main() -> None:
    """Print the seconds and the memory of one `python -m steps.compare`."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        skill = {arm: 1.2 + 0.3 * at for at, arm in enumerate(ARMS)}
        evaluated.make(Made(skill=skill, items=10_000, seeds=(1, 2, 3, 4, 5)))
        started = perf_counter()
        command = [sys.executable, "-m", "steps.compare", "made-up"]
        subprocess.run(command, check=True, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True)
        seconds = perf_counter() - started
        page = Path("reports/made-up/report.html").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"compare: {seconds:.1f} s, {peak:.2f} GiB at most, report {page / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
