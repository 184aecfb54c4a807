"""train: fit one arm with each of its seeds; write weights, history and journal of every one."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import nn

from steps import artifacts, checkpoint, data, entry, features, freezing, loop, network, params, tasks
from steps.data import Batches, FeatureSamples
from steps.errors import HeadstartError
from steps.params import Arm, TrainSettings


@dataclass(frozen=True)
class Job:
    """One arm of one experiment: what all its seeds share."""

    experiment: str
    arm_name: str
    arm: Arm
    settings: TrainSettings
    pretrained: Path
    classes: list[str]
    rows: pd.DataFrame
    device: torch.device

    @property
    def only_head(self) -> bool:
        """The backbone stays as it is: its features, computed before, are the inputs."""
        return self.arm.tune == "head"


def train(experiment: str, arm: str) -> None:
    """Write `work/<experiment>/arms/<arm>/`, one folder a seed.

    Raises:
        TrainingError: a loss is not finite.
        DataError: a sample cannot be read.
        HeadstartError: the pretrained weights changed under a training that must not touch them.
    """
    settings = params.read_settings(TrainSettings, artifacts.settings_file(experiment, "train", arm))
    with artifacts.new_folder(artifacts.arms_dir(experiment) / arm) as folder:
        if settings.arm is None:
            artifacts.write_json(folder / artifacts.LEFT_OUT, {"experiment": experiment, "arm": arm})
            entry.say(f"{experiment} leaves {arm} out")
            return
        rows = data.read_split(experiment)
        pretrained = artifacts.pretrained_dir(settings.model.pretrained)
        classes = data.classes_of(rows)
        job = Job(
            experiment, arm, settings.arm, settings, pretrained, classes, rows, network.prepare_device()
        )
        fit_on, judge_by = batches(job, "train"), batches(job, "validation")
        for seed in settings.training.seeds:
            (folder / f"seed-{seed}").mkdir()
            train_seed(job, seed, fit_on, judge_by, folder / f"seed-{seed}")


def batches(job: Job, split: str) -> Batches:
    """The labelled samples of a split: features where the backbone is frozen, else images or texts."""
    part = job.rows[job.rows["split"] == split]
    if job.only_head:
        samples: data.Samples = features.read(artifacts.features_dir(job.experiment), part["id"])
    else:
        task = tasks.get(job.settings.task)
        contents = tasks.contents(task, part, artifacts.data_dir(job.experiment))
        samples = task.samples(contents, job.settings.model, job.pretrained)
    labels = torch.from_numpy(data.label_indices(part["label"], job.classes))
    return Batches(samples, labels, job.settings.training.batch_size)


def build(job: Job, seed: int, fit_on: Batches) -> nn.Module:
    """The network to train, or the head alone where the backbone is frozen.

    The generator is set anew before the head is drawn, so a seed's first head is the same in every arm.
    """
    dropout = job.settings.model.dropout
    if job.only_head:
        assert isinstance(fit_on.samples, FeatureSamples)
        torch.manual_seed(seed)
        return network.build_head(fit_on.samples.features.shape[1], len(job.classes), dropout)
    torch.manual_seed(seed)
    backbone = network.build_backbone(job.pretrained, pretrained=job.arm.start == "pretrained")
    torch.manual_seed(seed)
    return network.Network(backbone, len(job.classes), dropout)


def train_seed(job: Job, seed: int, fit_on: Batches, judge_by: Batches, folder: Path) -> None:
    """Fit one model, and write its weights, history and journal."""
    model = build(job, seed, fit_on)
    label = f"{job.experiment}/{job.arm_name} seed {seed}"
    started = perf_counter()
    with entry.Progress(label, job.settings.training.epochs * len(fit_on)) as progress:
        history = History(folder / checkpoint.HISTORY, progress)
        fitted = loop.fit(
            model,
            fit_on,
            judge_by,
            freezing.parameter_groups(model, job.arm),
            job.settings.training,
            seed=seed,
            log=history.log,
            device=job.device,
        )
    seconds = perf_counter() - started
    history.write()
    written = checkpoint.save_weights(model, folder)
    journal = {
        **described(job, seed, model, len(fit_on.labels), len(judge_by.labels)),
        "weights_sha256": written,
        "frozen": proof_of_freezing(job),
        "steps": fitted.steps,
        "epochs": fitted.epochs,
        "best_epoch": fitted.best_epoch,
        "stopped_early": fitted.stopped_early,
        "best": fitted.best,
        "seconds": round(seconds, 3),
        "samples_per_second": round(fitted.epochs * len(fit_on.labels) / seconds, 1),
    }
    artifacts.write_json(folder / checkpoint.JOURNAL, journal)
    accuracy, log_loss = fitted.best["validation_accuracy"], fitted.best["validation_log_loss"]
    entry.say(
        f"{label}: validation accuracy {accuracy:.3f}, log-loss {log_loss:.3f} "
        f"in epoch {fitted.best_epoch} of {fitted.epochs}, {seconds:.1f} s"
    )


def described(
    job: Job, seed: int, model: nn.Module, train_labels: int, validation_labels: int
) -> dict[str, Any]:
    """The part of the journal that is known before the training."""
    parameters = list(model.parameters())
    untouched = provenance(job)["parameters"] if job.only_head else 0
    return {
        "experiment": job.experiment,
        "task": job.settings.task,
        "arm": job.arm_name,
        "seed": seed,
        "start": job.arm.start,
        "tune": job.arm.tune,
        "classes": job.classes,
        "weights": "head" if job.only_head else "network",
        "parameters": untouched + sum(parameter.numel() for parameter in parameters),
        "trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "train_labels": train_labels,
        "validation_labels": validation_labels,
        "batch_size": job.settings.training.batch_size,
        "device": job.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "settings": job.settings.model_dump(mode="json"),
        "data_sha256": data.fingerprint(job.rows[job.rows["split"] != ""]),
        "pretrained_sha256": artifacts.sha256_file(job.pretrained / "model.safetensors"),
    }


def proof_of_freezing(job: Job) -> dict[str, Any]:
    """How many tensors had to stay as they were, checked against what fetch wrote.

    Raises:
        HeadstartError: they changed.
    """
    if not job.only_head:
        return {"tensors": 0, "unchanged": True}
    fetched = provenance(job)
    weights = job.pretrained / "model.safetensors"
    used = features.key(artifacts.features_dir(job.experiment))["pretrained_sha256"]
    if not artifacts.sha256_file(weights) == fetched["converted_sha256"] == used:
        raise HeadstartError(f"{weights} is not what fetch wrote or embed read; run `dvc repro` again")
    return {"tensors": fetched["tensors"], "unchanged": True}


def provenance(job: Job) -> dict[str, Any]:
    """What fetch wrote of the pretrained weights."""
    found: dict[str, Any] = artifacts.read_json(job.pretrained / "provenance.json", "python -m steps.fetch")
    return found


class History:
    """Takes the loop's log: one row an epoch for history.csv, and word of the progress.

    Attributes:
        rows: a row for each epoch, as in history.csv.
    """

    def __init__(self, path: Path, progress: entry.Progress) -> None:
        self.path, self.progress = path, progress
        self.rows: list[dict[str, float]] = []
        self.started = perf_counter()

    def log(self, values: dict[str, float], step: int) -> None:
        """Take values after a step, or (with `epoch`) after an epoch."""
        if "epoch" not in values:
            self.progress.reached(step)
            return
        seconds = round(perf_counter() - self.started, 3)
        self.rows.append({"epoch": values["epoch"], "step": step, "seconds": seconds, **values})
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
