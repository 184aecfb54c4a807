"""Headstart's side, by the rooms that `steps.train` uses."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.rivals.work import DROPOUT, Clock, Given, Outcome, Part, Work, accuracy, give, warm_up
from steps import artifacts, data, freezing, loop, network, resume
from steps.data import Batches, Samples
from steps.features import PrefixCache
from steps.loop import Fed, Recipe, Stage
from steps.network import Network
from steps.objective import Objective
from steps.params import Arm, Machine, Training

MACHINE = Machine(device="cpu")
CACHE, CHECKPOINTS, KILLED = Path(".headstart/cache"), Path(".headstart/checkpoints"), Path("killed.json")


class Run:
    """One training, ready to start."""

    def __init__(self, work: Work, seed: int, **choices: Any) -> None:  # noqa: ANN401 - of an arm
        self.device = network.prepare_device(MACHINE.device)
        self.work, self.seed, self.given = work, seed, give(work)
        self.arm = arm(work, **choices)
        training = Training(epochs=work.epochs, batch_size=work.batch_size)
        objective = Objective(self.arm, self.given.train.labels, self.given.classes)
        self.recipe = Recipe(self.arm, training, objective, MACHINE)
        self.model = build(work, self.given, seed)
        warm_up(self.logits(self.given.train), self.given.train.labels, self.model)

    def logits(self, part: Part) -> Callable[[list[int]], Tensor]:
        """Of the samples of a split at some places."""

        def of(indices: list[int]) -> Tensor:
            return self.model(part.samples.batch(indices))  # type: ignore[no-any-return]

        return of

    def fit(
        self, log: loop.Log = lambda values, step: None, keeper: loop.Keeper | None = None
    ) -> loop.Fitted:
        """Freeze, compute what is frozen once, train."""
        freezing.freeze(self.model, self.arm)
        stage = Stage(1, lambda: freezing.parameter_groups(self.model, self.arm), self.feed)
        return loop.fit(
            self.model, [stage], self.recipe, seed=self.seed, log=log, device=self.device, keeper=keeper
        )

    def feed(self) -> Fed:
        """The batches, cut as deep as the freezing allows."""
        cut = freezing.boundary(self.model)
        size = self.work.batch_size
        train, judge = (
            Batches(self.at(cut, part), part.labels, size)
            for part in (self.given.train, self.given.validation)
        )
        return Fed(train, judge, cut)

    def at(self, cut: int, part: Part) -> Samples:
        """A split's samples after so many frozen layers."""
        if not cut:
            return part.samples
        return PrefixCache(CACHE, 1 << 34).samples(
            self.model.backbone,
            cut,
            part.samples,
            part.hashes,
            weights_sha256=artifacts.sha256_file(self.work.pretrained / "model.safetensors"),
            transform={"max_tokens": self.work.max_tokens, "image_size": self.work.image_size},
            device=self.device,
        )

    def outcome(self, seconds: float, note: str = "") -> Outcome:
        """With the accuracy on the test split."""
        return Outcome(seconds, accuracy(self.logits(self.given.test), self.given.test, self.model), note)


def arm(work: Work, **choices: Any) -> Arm:  # noqa: ANN401 - of an arm
    """What trains, and how fast."""
    head, backbone = work.rates
    if work.tune == "head":
        return Arm(tune="head", learning_rate=head, **choices)
    bottom = 0.5 if work.tune == "top half" else 0
    return Arm(freeze_bottom=bottom, learning_rate=head, backbone_learning_rate=backbone, **choices)


def build(work: Work, given: Given, seed: int) -> Network:
    """The pretrained backbone, and a head drawn from the seed."""
    backbone = network.build_backbone(work.pretrained, pretrained=True)
    torch.manual_seed(seed)
    return network.classifier(backbone, given.classes, DROPOUT)


def frozen_names(work: Work, given: Given) -> set[str]:
    """The parameters that stay as they are, as a rival's model names them."""
    model = build(work, given, 0)
    freezing.freeze(model, arm(work))
    names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return {name.replace("backbone.model.", "backbone.") for name in names}


def train(work: Work, seed: int) -> Outcome:
    """Seconds of a whole training, nothing of it computed before."""
    run = Run(work, seed)
    clock = Clock()
    run.fit()
    return run.outcome(clock.read())


def steps_only(work: Work, seed: int) -> Outcome:
    """Seconds of the steps alone: from the end of the first to the end of the last of the only epoch."""
    assert work.epochs == 1
    run, ends = Run(work, seed), list[float]()

    def log(values: dict[str, float], step: int) -> None:
        if "epoch" not in values:
            ends.append(perf_counter())

    run.fit(log)
    return run.outcome(ends[-1] - ends[0], f"{(ends[-1] - ends[0]) / (len(ends) - 1) * 1000:.0f} ms a step")


# ------------------------------------------------------------------------------------------------- resuming


class _Timed(resume.Checkpoints):
    """Knows when it last saved."""

    saved: float | None = None

    def save(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        super().save(step, tensors, values)
        self.saved = perf_counter()


def _keeper(work: Work, seed: int, every_seconds: float) -> _Timed:
    return _Timed(CHECKPOINTS / f"seed-{seed}", {"work": repr(work), "seed": seed}, every_seconds, print)


def unbroken(work: Work, seed: int, every_seconds: float) -> Outcome:
    """A training with checkpoints that runs through."""
    run, keeper = Run(work, seed), _keeper(work, seed, every_seconds)
    clock = Clock()
    run.fit(keeper=keeper)
    seconds = clock.read()
    keeper.clear()
    return run.outcome(seconds, _digest(run))


def killed(work: Work, seed: int, every_seconds: float, at: float) -> None:
    """The same, ended by SIGKILL after a share of the steps; leaves word of its seconds."""
    run, keeper = Run(work, seed), _keeper(work, seed, every_seconds)
    last = round(at * work.epochs * len(data.in_turn(len(run.given.train.labels), work.batch_size)))
    clock = Clock()

    def log(values: dict[str, float], step: int) -> None:
        if step == last:
            assert keeper.saved is not None, "killed before the first checkpoint"
            artifacts.write_json(KILLED, {"seconds": clock.read(), "lost": perf_counter() - keeper.saved})
            os.kill(os.getpid(), signal.SIGKILL)

    run.fit(log, keeper)


def resumed(work: Work, seed: int, every_seconds: float) -> Outcome:
    """What is left of it; the seconds are those of both parts without what the kill lost."""
    run, keeper = Run(work, seed), _keeper(work, seed, every_seconds)
    before = artifacts.read_json(KILLED, "killed")
    clock = Clock()
    run.fit(keeper=keeper)
    seconds = clock.read() + before["seconds"] - before["lost"]
    keeper.clear()
    KILLED.unlink()
    return run.outcome(seconds, f"{_digest(run)}, {before['lost']:.1f} s lost")


def _digest(run: Run) -> str:
    return f"weights {network.state_sha256(dict(run.model.state_dict()))[:12]}"
