"""What the techniques do on our data: every one with the same splits, seeds, steps and tuning.

    python -m benchmarks.techniques digits bbc-news
    python -m benchmarks.techniques --cheap

Reads what the pipeline made (`dvc repro`). Every technique gets the same search: three rates (two for texts),
one seed that the experiment does not use, judged by the validation log-loss. Then it is trained with the
experiment's own seeds, and the test split is read, once for each. What is done is kept in
`.headstart/techniques/`, under all that it depends on, so that a run that was stopped goes on. `--cheap`
leaves the search out and takes two seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import trials
from steps import artifacts, data, evidence, ledger, params
from steps.arms import PRESETS
from steps.evidence import Answers, Crossed
from steps.params import Arm, Params
from steps.resume import code_sha256
from steps.trainable import Job

TECHNIQUES = (
    "scratch", "frozen", "bottom_half", "full", "lp_ft", "llrd", "gradual", "reinit_top_1", "reinit_top_2",
    "lora", "bitfit", "l2_sp", "ema", "soup",
)  # fmt: skip
# Of the rates that params.yaml has; a text network takes a quarter of an hour for every further one.
FACTORS = {"timm": (1 / 3, 1.0, 3.0), "transformers": (1 / 3, 1.0)}
TUNING_SEED = 101
# A gain is told over both; costs are those of the second times so much.
REFERENCES = ("scratch", "full")
KEPT = Path(".headstart/techniques")


def arm_of(checked: Params, experiment: str, technique: str) -> Arm:
    """The preset, at the rates that params.yaml has for the kind of tuning nearest to it."""
    raw = params.Params.model_validate(
        checked.model_dump(exclude_unset=True)
        | {
            "arms": {**checked.model_dump(exclude_unset=True)["arms"], technique: {"preset": technique}},
        }
    )
    near = {"scratch": "scratch", "frozen": "frozen"}.get(technique, "full")
    arm, tuned = raw.chosen(experiment, technique), checked.chosen(experiment, near)
    if technique in ("lora", "bitfit"):  # small parts take other rates: the defaults of their kind
        return arm
    rates = {"learning_rate": tuned.learning_rate, "backbone_learning_rate": tuned.backbone_learning_rate}
    return arm.model_copy(update=rates)


def kept_at(job: Job, seed: int, kind: str) -> Path:
    """Where a training's result is kept: under all that it depends on."""
    key = {
        "settings": job.settings.model_dump(mode="json"),
        "data": data.fingerprint(job.rows[job.rows["split"] != ""]),
        "pretrained": job.pretrained_files_sha256,
        "code": code_sha256(),
    }
    digest = artifacts.sha256_json(key)[:12]
    return KEPT / f"{job.experiment}-{job.arm_name}-{digest}-seed-{seed}.{kind}"


def tuned(checked: Params, experiment: str, technique: str, factors: tuple[float, ...]) -> tuple[Arm, float]:
    """The arm at the best of the rates, and the factor."""
    base = arm_of(checked, experiment, technique)
    losses = [tuning_loss(checked, experiment, technique, base, factor) for factor in factors]
    factor = factors[int(np.argmin(losses))]
    return trials.scaled(base, factor), factor


def tuning_loss(checked: Params, experiment: str, technique: str, base: Arm, factor: float) -> float:
    """The validation log-loss with the rates multiplied; infinite where the training breaks down."""
    job = trials.job_of(checked, experiment, technique, trials.scaled(base, factor))
    path = kept_at(job, TUNING_SEED, "json")
    if not path.exists():
        found = trials.train(job, TUNING_SEED).fitted.best
        artifacts.write_json(path, found)
        print(f"{experiment} {technique} x{factor:.2f}: {found['validation_log_loss']:.3f}", flush=True)
    return float(json.loads(path.read_text())["validation_log_loss"])


def run(
    checked: Params, experiment: str, technique: str, arm: Arm, seed: int
) -> tuple[Answers, dict[str, Any]]:
    """One training's answers on the test split, and what it cost."""
    job = trials.job_of(checked, experiment, technique, arm)
    path = kept_at(job, seed, "npz")
    if not path.exists():
        done = trials.train(job, seed)
        cost = {
            "cpu_seconds": done.cpu_seconds,
            "trained": done.trained,
            "best_epoch": done.fitted.best_epoch,
        }
        tested = ledger.test_sha256(job.part("test"))
        ledger.record(experiment, tested, [f"techniques/{path.stem}"])
        np.savez(path, probabilities=trials.test_probabilities(job, done.network), cost=json.dumps(cost))
        print(f"{experiment} {technique} seed {seed}: {cost}", flush=True)
    with np.load(path) as kept:
        probabilities, cost = kept["probabilities"].astype(np.float64), json.loads(str(kept["cost"]))
    return Answers(technique, seed, list(job.part("test")["id"]), trials.test_truth(job), probabilities), cost


def table(checked: Params, experiment: str, factors: tuple[float, ...], seeds: tuple[int, ...]) -> str:
    """Markdown: a row for each technique."""
    confidence = checked.experiments[experiment].evaluation.confidence
    answers: list[Answers] = []
    costs: dict[str, list[dict[str, Any]]] = {}
    rates: dict[str, tuple[Arm, float]] = {}
    for technique in TECHNIQUES:
        arm, factor = rates[technique] = tuned(checked, experiment, technique, factors)
        done = [run(checked, experiment, technique, arm, seed) for seed in seeds]
        answers += [one for one, _ in done]
        costs[technique] = [cost for _, cost in done]
    crossed = evidence.cross(answers)
    full = np.mean([cost["cpu_seconds"] for cost in costs[REFERENCES[1]]])
    rows = [
        f"{experiment}: {len(seeds)} seeds, {len(crossed.truth)} test items, {confidence:.0%} intervals",
        "",
        "| technique | accuracy, % | over scratch, points | over full, points | CPU time | trained | rates |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for technique in TECHNIQUES:
        found = evidence.estimate(crossed, technique, "accuracy", confidence)
        gains = " | ".join(gain(crossed, technique, reference, confidence) for reference in REFERENCES)
        arm, factor = rates[technique]
        cost = np.mean([one["cpu_seconds"] for one in costs[technique]]) / full
        edge = "" if len(factors) == 1 or factor == 1.0 else " *"
        accuracy = f"{100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"
        rows.append(
            f"| {technique} | {accuracy} | {gains} | {cost:.2f} | {costs[technique][0]['trained']:,} | "
            f"{arm.learning_rate:.2g} / {arm.backbone_learning_rate:.2g}{edge} |"
        )
    return "\n".join(rows)


def gain(crossed: Crossed, technique: str, reference: str, confidence: float) -> str:
    """By how many points it is better, with its interval."""
    if technique == reference:
        return "–"
    over = evidence.improvement(crossed, technique, reference, "accuracy", confidence)
    return f"{100 * over.value:+.1f} ({100 * over.low:+.1f} to {100 * over.high:+.1f})"


def main() -> None:
    """Print the table of each experiment."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("experiments", nargs="*")
    parser.add_argument("--cheap", action="store_true", help="no search for rates, two seeds")
    options = parser.parse_args()
    checked = params.load(artifacts.PARAMS_FILE)
    KEPT.mkdir(parents=True, exist_ok=True)
    assert set(TECHNIQUES) <= PRESETS.keys()
    for experiment in options.experiments or list(checked.experiments):
        seeds = checked.experiments[experiment].training.seeds
        library = checked.pretrained[checked.experiments[experiment].model.pretrained].library
        factors = (1.0,) if options.cheap else FACTORS[library]
        print(table(checked, experiment, factors, seeds[:2] if options.cheap else seeds), flush=True)
        print()


if __name__ == "__main__":
    main()
