"""How the learning rates in params.yaml were chosen: every arm gets the same number of trials.

    python -m benchmarks.rates digits

Reads what the pipeline made (`dvc repro`), trains each arm with five rates around its own and seeds
that the experiment does not use, and prints the validation results. The test split is not read.
"""

from __future__ import annotations

import sys

import pandas as pd

from benchmarks import trials
from steps import artifacts, params
from steps.params import Params

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
SEEDS = (101, 102)


def trial(checked: Params, experiment: str, name: str, factor: float, seed: int) -> dict[str, float]:
    """Best validation results of one arm, its rates multiplied by the factor."""
    arm = trials.scaled(checked.chosen(experiment, name), factor)
    fitted = trials.train(trials.job_of(checked, experiment, name, arm), seed).fitted
    assert arm.learning_rate is not None
    return {"learning_rate": arm.learning_rate, "best_epoch": fitted.best_epoch, **fitted.best}


def main() -> None:
    """Print one row for each arm and factor: means over the seeds."""
    checked = params.load(artifacts.PARAMS_FILE)
    for experiment in sys.argv[1:] or list(checked.experiments):
        for arm in checked.arm_names(experiment):
            for factor in FACTORS:
                runs = pd.DataFrame([trial(checked, experiment, arm, factor, seed) for seed in SEEDS]).mean()
                shown = {
                    "rate": f"{runs['learning_rate']:.5f}",
                    "log-loss": f"{runs['validation_log_loss']:.4f}",
                    "accuracy": f"{runs['validation_accuracy']:.4f}",
                    "epoch": f"{runs['best_epoch']:.1f}",
                }
                said = "  ".join(f"{name} {value}" for name, value in shown.items())
                print(f"{experiment:12} {arm:10} x{factor:<4} {said}", flush=True)


if __name__ == "__main__":
    main()
