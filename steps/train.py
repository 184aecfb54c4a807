"""train: fit one arm with each of its seeds; write weights, history and journal of every one."""

from __future__ import annotations

import csv
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steps import artifacts, checkpoint, data, entry, freezing, trainable
from steps.errors import TrainingError
from steps.loop import Fitted
from steps.network import Layer, Network, Probe
from steps.params import Limits
from steps.resume import Checkpoints, code_sha256
from steps.trainable import Job


def train(experiment: str, arm: str) -> None:
    """Write `work/<experiment>/arms/<arm>/`, one folder a seed.

    An interrupted training goes on where it was: its states lie below `.headstart/checkpoints/` until the
    arm is complete, under a key of everything that determines the weights.

    Raises:
        TrainingError: a loss is not finite, memory does not suffice, or a checkpoint is another run's.
        DataError: a sample cannot be read.
        UserError: the arm does not fit the backbone, the device is not there, or the cache is too small.
        HeadstartError: tensors changed in a training that must not touch them.
    """
    code_sha256()  # as it is now, before a long training in which somebody may edit it
    settings = trainable.settings_of(experiment, arm)
    states = artifacts.checkpoints_dir(experiment, arm)
    with artifacts.new_folder(artifacts.arms_dir(experiment) / arm) as folder:
        if settings.arm is None:
            artifacts.write_json(folder / artifacts.LEFT_OUT, {"experiment": experiment, "arm": arm})
            entry.say(f"{experiment} leaves {arm} out")
            return
        job = trainable.load(experiment, arm, settings)
        for seed in settings.training.seeds:
            (folder / f"seed-{seed}").mkdir()
            train_seed(job, seed, folder / f"seed-{seed}", states)
    shutil.rmtree(states, ignore_errors=True)


def train_seed(job: Job, seed: int, folder: Path, states: Path) -> None:
    """Fit one model, and write its weights, history and journal."""
    label = f"{job.experiment}/{job.arm_name} seed {seed}"
    fit = partial(fit_once, job, seed, folder, states / f"seed-{seed}", label)
    if job.machine.auto_batch_size:
        from accelerate.utils.memory import find_executable_batch_size

        model, fitted, frozen = find_executable_batch_size(
            lambda size: fit(size),
            starting_batch_size=first_micro_batch(job),
            reduce_batch_size_fn=Halving(job),
        )()
    else:
        model, fitted, frozen = fit(None)
    trainable_parameters = sum(one.numel() for one in model.parameters() if one.requires_grad)
    if job.arm.tune == "lora":
        freezing.merge_lora(model)
    described = journal(job, seed, model, fitted)
    trained = model.head if job.only_head else model
    written = checkpoint.save_weights(trained, folder)
    described |= {
        "trainable_parameters": trainable_parameters,
        "frozen": frozen,
        "weights_sha256": written,
    }
    artifacts.write_json(folder / checkpoint.JOURNAL, described)
    accuracy, log_loss = fitted.best["validation_accuracy"], fitted.best["validation_log_loss"]
    entry.say(
        f"{label}: validation accuracy {accuracy:.3f}, log-loss {log_loss:.3f} "
        f"in epoch {fitted.best_epoch} of {fitted.epochs}, {fitted.seconds:.1f} s"
    )


def fit_once(
    job: Job, seed: int, folder: Path, states: Path, label: str, micro_batch: int | None
) -> tuple[Network | Probe, Fitted, dict[str, Any]]:
    """Build the network and fit it; gives it with the proof of what stayed frozen."""
    model = trainable.build(job, seed)
    proof = freezing.Proof(model)
    steps = job.settings.training.epochs * len(job.batches("train", data.FeatureSamples(job.train_labels)))
    with entry.Progress(label, steps) as progress:
        history = History(folder / checkpoint.HISTORY, progress)
        key = run_key(job, seed)
        kept = Told(label, states / artifacts.sha256_json(key)[:12], key, job.machine.checkpoint_seconds)
        fitted = trainable.fit(job, model, seed, log=history.log, keeper=kept, micro_batch=micro_batch)
    history.write()
    if job.on_features:
        return model, fitted, trainable.proof_of_stored_features(job)
    thawed: list[Layer] = []
    if job.arm.tune == "gradual" and isinstance(model, Network):
        when = freezing.thaw_epochs(model, job.arm, fitted.epochs)
        thawed = [layer for layer in model.backbone.layers if layer.name in when]
    return model, fitted, proof.check(model, thawed)


class Told(Checkpoints):
    """Checkpoints that say where an interrupted training goes on.

    Args:
        label: what is trained, in words.
    """

    def __init__(self, label: str, folder: Path, key: dict[str, Any], every_seconds: float) -> None:
        super().__init__(folder, key, every_seconds, entry.say)
        self.label = label

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """As `Checkpoints` does, with a word about it."""
        found = super().load()
        if found is not None:
            step, epoch = found[1]["steps"], found[1]["epoch"] + 1
            entry.say(f"{self.label}: goes on from step {step} (epoch {epoch})")
        return found


def run_key(job: Job, seed: int) -> dict[str, Any]:
    """Everything that determines the weights: a state is taken up only where all of it is the same."""
    decisive = job.settings.model_copy(update={"machine": job.machine.within(Limits())})
    return {
        "experiment": job.experiment,
        "arm": job.arm_name,
        "seed": seed,
        "settings": decisive.model_dump(mode="json"),
        "data_sha256": data.fingerprint(job.rows[job.rows["split"] != ""]),
        "samples_sha256": artifacts.sha256_json(list(job.rows["id"])),  # and their order
        "pretrained_sha256": job.pretrained_files_sha256,
        "code_sha256": code_sha256(),
        "torch": torch.__version__,
        "device": job.device.type,
        "threads": torch.get_num_threads(),
    }


def first_micro_batch(job: Job) -> int:
    """How many samples to compute at a time, to begin with."""
    return job.settings.training.batch_size // job.machine.accumulate


class Halving:
    """Half as many samples at a time whenever memory did not suffice; the batch stays the same."""

    def __init__(self, job: Job) -> None:
        self.size = first_micro_batch(job)

    def __call__(self) -> int:
        """The next size.

        Raises:
            TrainingError: one sample at a time was too much.
        """
        if self.size == 1:
            raise TrainingError("out of memory with one sample at a time: use a smaller image or text size")
        self.size = max(1, self.size // 2)
        entry.say(f"out of memory: going on with {self.size} samples at a time, the batch stays the same")
        return self.size


def journal(job: Job, seed: int, model: Network | Probe, fitted: Fitted) -> dict[str, Any]:
    """run.json but for what is frozen and the digest of the weights."""
    untouched = 0 if isinstance(model, Network) else trainable.provenance(job)["parameters"]
    train_labels = len(job.train_labels)
    return {
        "experiment": job.experiment,
        "task": job.settings.task,
        "arm": job.arm_name,
        "seed": seed,
        "start": job.arm.start,
        "tune": job.arm.tune,
        "classes": job.classes,
        "weights": "head" if job.only_head else "network",
        "parameters": untouched + sum(parameter.numel() for parameter in model.parameters()),
        "train_labels": train_labels,
        "validation_labels": len(job.part("validation")),
        "batch_size": job.settings.training.batch_size,
        "device": job.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "settings": job.settings.model_dump(mode="json"),
        "data_sha256": data.fingerprint(job.rows[job.rows["split"] != ""]),
        "pretrained_sha256": job.pretrained_sha256,
        "steps": fitted.steps,
        "epochs": fitted.epochs,
        "best_epoch": fitted.best_epoch,
        "averaged_epochs": fitted.averaged_epochs,
        "stopped_early": fitted.stopped_early,
        "resumed_from": fitted.resumed_from,
        "best": fitted.best,
        "seconds": round(fitted.seconds, 3),
        "samples_per_second": round(fitted.epochs * train_labels / fitted.seconds, 1),
    }


class History:
    """Takes the loop's log: one row an epoch for history.csv, and word of the progress.

    Attributes:
        rows: a row for each epoch, as in history.csv.
    """

    def __init__(self, path: Path, progress: entry.Progress) -> None:
        self.path, self.progress = path, progress
        self.rows: list[dict[str, float]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        """Take values after a step, or (with `epoch`) after an epoch."""
        self.progress.reached(step)
        if "epoch" not in values:
            return
        self.rows.append({"epoch": values["epoch"], "step": step, "seconds": values["seconds"], **values})
        self.progress.note(
            f"epoch {values['epoch']:.0f}, loss {values['train_loss']:.3f}, "
            f"validation accuracy {values['validation_accuracy']:.3f}"
        )

    def write(self) -> None:
        """Write history.csv; what is measured with full precision stays so."""
        with self.path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)


def main() -> int:
    """Run `python -m steps.train <experiment> <arm>`."""
    return entry.run(train, "experiment", "arm")


if __name__ == "__main__":
    sys.exit(main())
