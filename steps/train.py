"""train: choose an arm's hyperparameters, then fit it with each of its seeds on each resample.

Every run leaves its weights, history and journal; the search leaves `tuning.json` beside them.

With `machine.processes`, or when torchrun started it, several processes train together. The first one does
all that is told here; the others only train what it tells them to.
"""

from __future__ import annotations

import csv
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from steps import (
    artifacts,
    checkpoint,
    data,
    entry,
    freezing,
    metrics,
    network,
    processes,
    resume,
    trainable,
    tuning,
)
from steps.errors import TrainingError, UserError
from steps.kinds import KINDS
from steps.loop import Fitted
from steps.network import Layer, Network, Probe
from steps.parallel import ALONE, Ranks
from steps.params import TrainSettings
from steps.resume import Checkpoints, code_sha256
from steps.trainable import Job
from steps.tuning import Attempt

# The folder, beside those of the runs, with states of the search's trainings.
TRIALS = "trials"


def train(experiment: str, arm: str) -> None:
    """Write `work/<experiment>/arms/<arm>/`: one folder a run, and what the search chose and cost.

    An interrupted training goes on where it was: its states lie below `.headstart/checkpoints/` until the
    arm is complete, under a key of everything that determines the weights.

    Raises:
        TrainingError: a loss is not finite, memory does not suffice, or a checkpoint is another run's.
        DataError: a sample cannot be read.
        UserError: the arm does not fit the backbone, its search allows what does not fit together, the device
            is not there, or the cache is too small.
        HeadstartError: tensors changed in a training that must not touch them, or one of several processes
            was killed.
    """
    code_sha256()  # as it is now, before a long training in which somebody may edit it
    settings = trainable.settings_of(experiment, arm)
    device = network.prepare_device(settings.machine.device)
    if not processes.inside() and processes_of(settings) > 1:
        processes.launch("steps.train", [experiment, arm], processes_of(settings), device)
        return
    with processes.joined(device) as ranks:
        together = ranks if processes_of(settings, ranks.count) > 1 else ALONE
        settings = with_processes(settings, together.count)
        if not ranks.first:
            follow(experiment, arm, ranks)
            return
        lead(experiment, arm, settings, together)
        ranks.shared(lambda: None)


def processes_of(settings: TrainSettings, count: int | None = None) -> int:
    """How many processes are of use to an arm, of those that there are or are asked for.

    A head on stored features takes a step sooner than two processes can agree on one.
    """
    arm = settings.arm
    if arm is None or arm.solver == "lbfgs" or trainable.on_features(arm, KINDS[settings.task]):
        return 1
    return settings.machine.processes if count is None else count


def with_processes(settings: TrainSettings, count: int) -> TrainSettings:
    """The settings of so many processes, whatever they said: what is written shall be true.

    Raises:
        UserError: they do not go with several.
    """
    if count > 1 and settings.machine.auto_batch_size:
        raise UserError("machine.auto_batch_size does not go with several processes: raise `accumulate`")
    machine = settings.machine.model_copy(update={"processes": count})
    return settings.model_copy(update={"machine": machine})


def lead(experiment: str, arm: str, settings: TrainSettings, ranks: Ranks) -> None:
    """Search, train and write, with the help of the other processes where there are any."""
    states = artifacts.checkpoints_dir(experiment, arm)
    with artifacts.new_folder(artifacts.arms_dir(experiment) / arm) as folder:
        if settings.arm is None:
            artifacts.write_json(folder / artifacts.LEFT_OUT, {"experiment": experiment, "arm": arm})
            entry.say(f"{experiment} leaves {arm} out")
            return
        job = trainable.load(experiment, arm, settings)
        searched = tuning.search(job, partial(attempt, states=states / TRIALS, ranks=ranks), trial_key)
        artifacts.write_json(folder / tuning.FILE, searched.as_json())
        job = job.with_settings(job.settings.model_copy(update={"arm": searched.arm}))
        for resample in range(1, settings.training.resamples + 1):
            if resample > 1:
                job = trainable.load(experiment, arm, job.settings, resample=resample)
            for seed in settings.training.seeds:
                name = artifacts.run_name(resample, seed)
                (folder / name).mkdir()
                train_run(job, seed, folder / name, states / name, ranks)
    resume.remove(states)


@dataclass(frozen=True)
class Order:
    """What the first process has all others train with it."""

    settings: TrainSettings
    resample: int
    seed: int


def follow(experiment: str, arm: str, ranks: Ranks) -> None:
    """Train what the first process says, until it has nothing more; what comes of it is the first one's."""
    job: Job | None = None
    while True:
        order = ranks.shared(_nothing)
        if order is None:
            return
        if job is None or job.resample != order.resample:
            job = trainable.load(experiment, arm, order.settings, resample=order.resample)
        job = job.with_settings(order.settings)
        # All processes break down alike; the first one tells of it, and knows what is next.
        with suppress(TrainingError):
            model = trainable.build(job, order.seed)
            trainable.fit(job, model, order.seed, log=lambda values, step: None, ranks=ranks)


def _nothing() -> Order | None:
    return None


def train_run(job: Job, seed: int, folder: Path, states: Path, ranks: Ranks) -> None:
    """Fit one model, and write its weights, history and journal."""
    of_resample = f"resample {job.resample} " if job.resample > 1 else ""
    label = f"{job.experiment}/{job.arm_name} {of_resample}seed {seed}"
    history = History()
    trained = fit(job, seed, states, label, trainable.run_key(job, seed), history, ranks)
    history.write(folder / checkpoint.HISTORY)
    model, fitted = trained.model, trained.fitted
    trainable_parameters = sum(one.numel() for one in model.parameters() if one.requires_grad)
    if job.arm.tune == "lora":
        freezing.merge_lora(model)
    described = journal(job, seed, model, fitted)
    written = checkpoint.save_weights(model.head if job.only_head else model, folder)
    described |= {
        "resample": job.resample,
        "trainable_parameters": trainable_parameters,
        "frozen": trained.frozen,
        "weights_sha256": written,
    }
    artifacts.write_json(folder / checkpoint.JOURNAL, described)
    entry.say(
        f"{label}: validation {told(fitted.best, job)} "
        f"in epoch {fitted.best_epoch} of {fitted.epochs}, {fitted.seconds:.1f} s"
    )


def told(best: dict[str, float], job: Job) -> str:
    """The task's first metric and the loss, of validation, in words."""
    names = dict.fromkeys([watched(job), job.kind.loss])
    return ", ".join(f"{metrics.SHOWN[name]} {best[f'validation_{name}']:.3f}" for name in names)


def watched(job: Job) -> str:
    """The metric that people see while it trains."""
    return job.kind.metrics[0]


# ---------------------------------------------------------------------------------- trainings of the search


def attempt(job: Job, label: str, *, states: Path, ranks: Ranks) -> Attempt:
    """One training of the search; one that breaks down is told of, and the search goes on."""
    key, history, started = trial_key(job), History(), perf_counter()
    try:
        fitted = fit(job, trial_seed(job), states, label, key, history, ranks).fitted
        found = Attempt(fitted.best, fitted.epochs, fitted.steps, fitted.seconds, None, job.kind.loss)
    except TrainingError as error:
        reason, seconds = " ".join(str(error).split()), perf_counter() - started
        found = Attempt({}, len(history.rows), history.step, seconds, reason, job.kind.loss)
    # The outcome is kept instead.
    resume.remove(states_of(states, key))
    return found


def trial_key(job: Job) -> dict[str, Any]:
    """Everything that determines what comes of a trial."""
    return trainable.run_key(job, trial_seed(job))


def trial_seed(job: Job) -> int:
    """The seed of a trial's job, which has just one."""
    (seed,) = job.settings.training.seeds
    return seed


# ------------------------------------------------------------------------------------------- one training


@dataclass(frozen=True)
class Trained:
    """A network that was fitted.

    Attributes:
        model: with its best weights.
        fitted: what came of the training.
        frozen: the proof of what stayed as it was.
    """

    model: Network | Probe
    fitted: Fitted
    frozen: dict[str, Any]


def fit(
    job: Job, seed: int, states: Path, label: str, key: dict[str, Any], history: History, ranks: Ranks
) -> Trained:
    """Build the network and fit it; with less at a time where memory does not suffice and may be saved.

    Args:
        job: what to train.
        seed: of the training.
        states: the folder for its states, each below a name of its key.
        label: what is trained, in words.
        key: everything that determines the weights.
        history: takes the log.
        ranks: who trains it together.
    """
    once = partial(fit_once, job, seed, states, label, key, history, ranks)
    if not job.machine.auto_batch_size:
        return once(None)
    from accelerate.utils.memory import find_executable_batch_size

    found: Trained = find_executable_batch_size(
        lambda size: once(size),
        starting_batch_size=first_micro_batch(job),
        reduce_batch_size_fn=Halving(job),
    )()
    return found


def fit_once(
    job: Job,
    seed: int,
    states: Path,
    label: str,
    key: dict[str, Any],
    history: History,
    ranks: Ranks,
    micro_batch: int | None,
) -> Trained:
    """Build the network and fit it."""
    ranks.shared(lambda: Order(job.settings, job.resample, seed))
    model = trainable.build(job, seed)
    proof = freezing.Proof(model)
    training = job.settings.training
    steps = training.epochs * data.batches_of(len(job.part("train")), training.batch_size)
    with entry.Progress(label, steps) as progress:
        history.begin(progress, watched(job))
        kept = Told(label, states_of(states, key), key, job.machine.checkpoint_seconds)
        fitted = trainable.fit(
            job, model, seed, log=history.log, keeper=kept, micro_batch=micro_batch, ranks=ranks
        )
    if job.on_features:
        return Trained(model, fitted, trainable.proof_of_stored_features(job))
    thawed: list[Layer] = []
    if job.arm.tune == "gradual" and isinstance(model, Network):
        when = freezing.thaw_epochs(model, job.arm, fitted.epochs)
        thawed = [layer for layer in model.backbone.layers if layer.name in when]
    return Trained(model, fitted, proof.check(model, thawed))


def states_of(states: Path, key: dict[str, Any]) -> Path:
    """Where the states of a training with this key lie."""
    return states / artifacts.sha256_json(key)[:12]


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
    train_labels = len(job.part("train"))
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
        step: the newest one it was told of.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.step = 0
        self.watched = ""
        self.progress: entry.Progress | None = None

    def begin(self, progress: entry.Progress, watched: str) -> None:
        """A training begins, or begins anew with less at a time; the progress tells of the metric watched."""
        self.rows, self.step, self.progress, self.watched = [], 0, progress, watched

    def log(self, values: dict[str, float], step: int) -> None:
        """Take values after a step, or (with `epoch`) after an epoch."""
        assert self.progress is not None
        self.step = step
        self.progress.reached(step)
        if "epoch" not in values:
            return
        self.rows.append({"epoch": values["epoch"], "step": step, "seconds": values["seconds"], **values})
        self.progress.note(
            f"epoch {values['epoch']:.0f}, loss {values['train_loss']:.3f}, "
            f"validation {metrics.SHOWN[self.watched]} {values[f'validation_{self.watched}']:.3f}"
        )

    def write(self, path: Path) -> None:
        """Write history.csv; what is measured with full precision stays so."""
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)


def main() -> int:
    """Run `python -m steps.train <experiment> <arm>`."""
    if processes.reporting():
        return processes.reported(lambda: train(*sys.argv[1:]))
    return entry.run(train, "experiment", "arm")


if __name__ == "__main__":
    sys.exit(main())
