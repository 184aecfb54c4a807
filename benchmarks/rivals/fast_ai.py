"""fastai's `fine_tune`, as its own users run it.

`vision_learner` with timm's architecture and the same weights, its own head and optimizer, batch
size, schedule and discriminative rates: `fine_tune(epochs)`. The images are in memory as tensors, normalised
as the backbone was trained.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.rivals.work import Clock, Outcome, Part, Work, accuracy, give, warm_up
from steps import artifacts


def fine_tune(work: Work, seed: int, base_lr: float = 2e-3) -> Outcome:
    """Seconds of `Learner.fine_tune(work.epochs)`; its other settings are fastai's defaults."""
    from fastai.vision import all as fastai  # type: ignore[import-not-found, import-untyped, unused-ignore]
    from safetensors.torch import load_file

    logging.getLogger("fastai").setLevel(logging.ERROR)
    given = give(work)
    name = artifacts.read_json(work.pretrained / "architecture.json", "fetch")["name"]
    torch.manual_seed(seed)
    loaders = fastai.DataLoaders.from_dsets(
        _pairs(given.train), _pairs(given.validation), bs=work.batch_size, num_workers=0, device="cpu"
    )
    learner: Any = fastai.vision_learner(
        loaders,
        name,
        normalize=False,
        n_out=given.classes,
        pretrained=False,
        loss_func=functional.cross_entropy,
        metrics=fastai.accuracy,
    )
    learner.model[0].model.load_state_dict(load_file(work.pretrained / "model.safetensors"))
    warm_up(lambda indices: _logits(learner.model, given.train, indices), given.train.labels, learner.model)
    with learner.no_bar(), learner.no_logging():
        clock = Clock()
        learner.fine_tune(work.epochs, base_lr=base_lr)
        seconds = clock.read()
    good = accuracy(lambda indices: _logits(learner.model, given.test, indices), given.test, learner.model)
    return Outcome(seconds, good, f"fine_tune({work.epochs}), batches of {work.batch_size}")


def _pairs(part: Part) -> list[tuple[Tensor, Tensor]]:
    inputs = part.samples.batch(list(range(len(part.samples))))
    assert isinstance(inputs, Tensor)
    return list(zip(inputs.contiguous(), part.labels, strict=True))


def _logits(model: torch.nn.Module, part: Part, indices: list[int]) -> Tensor:
    found: Tensor = model(part.samples.batch(indices))
    return found
