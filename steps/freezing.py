"""Which tensors train, and at which rate and decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from steps.network import Network
from steps.params import Arm


def parameter_groups(model: nn.Module, arm: Arm) -> list[dict[str, Any]]:
    """Groups for an optimizer: head and backbone, each with and without weight decay.

    Decay is for matrices and convolutions; biases and norms, whose tensors have one dimension, are left
    alone (He et al., Bag of Tricks, 2019, section 3.1). What does not require a gradient is in no group:
    an optimizer would decay it all the same.

    Args:
        model: a network, or a head alone.
        arm: its rates; the backbone's is the head's where none is given.

    Returns:
        Groups with `name`, `params`, `lr` and `weight_decay`, the head's first.
    """
    parts = (
        {"head": model.head, "backbone": model.backbone} if isinstance(model, Network) else {"head": model}
    )
    rates = {"head": arm.learning_rate, "backbone": arm.backbone_learning_rate or arm.learning_rate}
    groups: list[dict[str, Any]] = []
    for name, part in parts.items():
        trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in trained if parameter.ndim > 1]
        vectors = [parameter for parameter in trained if parameter.ndim <= 1]
        for parameters, decay in ((matrices, arm.weight_decay), (vectors, 0.0)):
            if parameters:
                groups.append({"name": name, "params": parameters, "lr": rates[name], "weight_decay": decay})
    return groups
