"""One training outside of the pipeline, on the files that the pipeline made (`dvc repro`)."""

from __future__ import annotations

from dataclasses import dataclass
from time import process_time

import numpy as np
from numpy.typing import NDArray

from steps import data, freezing, inference, trainable
from steps.loop import Fitted
from steps.network import Network, Probe
from steps.params import Arm, Params, TrainSettings
from steps.trainable import Job


@dataclass(frozen=True)
class Trial:
    """A trained network and what came of it.

    Attributes:
        cpu_seconds: of all threads, so that it is nearly the same on a busy machine.
        trained: parameters that were trained.
    """

    network: Network | Probe
    fitted: Fitted
    cpu_seconds: float
    trained: int


def job_of(checked: Params, experiment: str, name: str, arm: Arm) -> Job:
    """The job of an arm that need not be in params.yaml."""
    entry = checked.experiments[experiment]
    settings = TrainSettings(
        task=entry.task, model=entry.model, training=entry.training, arm=arm, machine=entry.machine
    )
    return trainable.load(experiment, name, settings)


def train(job: Job, seed: int) -> Trial:
    """Fit one network; nothing is written but the cache of frozen activations."""
    started = process_time()
    model = trainable.build(job, seed)
    fitted = trainable.fit(job, model, seed, log=_nothing)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    if job.arm.tune == "lora":
        freezing.merge_lora(model)
    return Trial(model, fitted, process_time() - started, trained)


def test_probabilities(job: Job, model: Network | Probe) -> NDArray[np.float32]:
    """What a network says of the test split, shape (items, classes)."""
    return inference.probabilities(model, trainable.inputs(job, model, 0, "test"), job.device)


def test_truth(job: Job) -> NDArray[np.int64]:
    """The class of each test item."""
    return data.label_indices(job.part("test")["label"], job.classes)


def scaled(arm: Arm, factor: float) -> Arm:
    """The arm with all its rates multiplied."""
    assert arm.learning_rate is not None
    assert arm.backbone_learning_rate is not None
    # The head's rate is the only one where nothing else trains.
    return arm.model_copy(
        update={
            "learning_rate": arm.learning_rate * factor,
            "backbone_learning_rate": arm.backbone_learning_rate * factor,
        }
    )


def _nothing(values: dict[str, float], step: int) -> None:
    """Log to nobody."""
