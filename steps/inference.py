"""Running a network over samples, batch by batch, in eval mode and without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from steps.data import PREDICT_BATCH, Samples, by_length, to_device

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> Callable[[], Any]:
    """A context in which matrices are multiplied in that precision."""
    if precision == "float32":
        return nullcontext
    return lambda: torch.autocast(device.type, PRECISIONS[precision])


def outputs(
    network: nn.Module,
    samples: Samples,
    device: torch.device | None = None,
    batch_size: int = PREDICT_BATCH,
    *,
    cut: int = 0,
    precision: str = "float32",
) -> Iterator[tuple[list[int], Any]]:
    """What a network makes of all samples: places of a batch, and its output on the device.

    Args:
        network: takes inputs and, beyond 0, a cut.
        samples: images or texts, or activations after `cut` layers.
        device: where to compute; the CPU when not given.
        batch_size: samples at a time; texts of like length together, the longest first.
        cut: the layer that the samples' activations come out of.
        precision: as in `machine.precision`.
    """
    device = device or torch.device("cpu")
    _ready(network, device)
    for indices in by_length(samples, batch_size):
        # Around each batch and not around the whole: whoever takes the outputs may train between two of them.
        with torch.inference_mode():
            inputs = to_device(samples.batch(indices), device)
            with autocast(device, precision)():
                found = network(inputs, cut) if cut else network(inputs)
        yield indices, found


def _ready(network: nn.Module, device: torch.device) -> None:
    """Bring a network to the device and into eval mode; where it is so already, only ask.

    Moving takes as long as a small batch even so. Every module is asked for its mode: normalisations may
    train in a network that does not.
    """
    first = next(network.parameters(), None)
    if first is None or first.device != device:
        network.to(device)
    if any(module.training for module in network.modules()):
        network.eval()


def probabilities(
    network: nn.Module,
    samples: Samples,
    device: torch.device | None = None,
    batch_size: int = PREDICT_BATCH,
    *,
    cut: int = 0,
    precision: str = "float32",
) -> NDArray[np.float32]:
    """Probabilities of all samples in their order; arguments as in `outputs`.

    Returns:
        Shape (samples, classes), float32.
    """
    found: NDArray[np.float32] | None = None
    for indices, logits in outputs(network, samples, device, batch_size, cut=cut, precision=precision):
        rows = functional.softmax(logits.float(), dim=1).cpu().numpy()
        if found is None:
            found = np.empty((len(samples), rows.shape[1]), dtype=np.float32)
        found[indices] = rows
    return np.empty((0, 0), dtype=np.float32) if found is None else found
