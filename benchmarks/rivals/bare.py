"""PyTorch without a loop of anyone's: forward, backward and step, one after the other."""

from __future__ import annotations

from time import perf_counter

import torch
from torch.nn import functional

from benchmarks.rivals import ours
from benchmarks.rivals.work import Outcome, Work
from steps import freezing


def steps_only(work: Work, seed: int) -> Outcome:
    """Seconds of the steps of one epoch, from the end of the first, on batches that are ready.

    The network, its memory format, torch's settings, the batches and the optimizer are ours; no batch is
    assembled, no gradient clipped, no loss read, no rate changed, nothing logged.
    """
    run = ours.Run(work, seed)
    freezing.freeze(run.model, run.arm)
    fed = run.feed()
    ready = list(fed.train.shuffled(torch.Generator().manual_seed(seed)))
    optimizer = torch.optim.AdamW(freezing.parameter_groups(run.model, run.arm), fused=True)
    torch.manual_seed(seed)
    freezing.train_mode(run.model)
    ends = []
    for inputs, labels in ready:
        optimizer.zero_grad()
        functional.cross_entropy(run.model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        ends.append(perf_counter())
    seconds = ends[-1] - ends[0]
    return run.outcome(seconds, f"{seconds / (len(ends) - 1) * 1000:.0f} ms a step")
