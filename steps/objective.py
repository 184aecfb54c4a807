"""The loss of a batch: cross-entropy, with what an arm adds to it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from steps.params import Arm

Inputs = Tensor | dict[str, Tensor]
# Images (b, ...) and labels (b,) to mixed images and soft targets (b, classes).
Mixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Objective:
    """Cross-entropy with class weights, label smoothing and mixed inputs.

    Args:
        arm: `label_smoothing` and `class_weights`.
        labels: of all training samples, shape (samples,), to weigh classes by.
        classes: how many there are.
        mixer: mixup or CutMix, or None.
    """

    def __init__(self, arm: Arm, labels: Tensor, classes: int, mixer: Mixer | None = None) -> None:
        self.smoothing, self.mixer = arm.label_smoothing, mixer
        self.weights = balanced_weights(labels, classes) if arm.class_weights else None

    def to(self, device: torch.device) -> None:
        """Compute there from now on."""
        self.weights = None if self.weights is None else self.weights.to(device)

    def mixed(self, inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor]:
        """Inputs and targets after mixup or CutMix, if there is any; texts are not mixed."""
        if self.mixer is None or not isinstance(inputs, Tensor):
            return inputs, targets
        return self.mixer(inputs, targets)

    def forced(self, inputs: Inputs, targets: Tensor) -> Inputs:
        """As they are: a classifier is told nothing of the labels."""
        return inputs

    def share(self, logits: Tensor, targets: Tensor, whole: Tensor) -> Tensor:
        """This part's share of the mean loss over its whole batch; the shares add up to it.

        Args:
            logits: shape (part, classes).
            targets: class indices (part,), or soft targets (part, classes).
            whole: the targets of the whole batch that the part is of.
        """
        weights = None if self.weights is None else self.weights.to(logits.dtype)
        total = functional.cross_entropy(
            logits, targets, weights, reduction="sum", label_smoothing=self.smoothing
        )
        return total / self._mass(whole)

    def _mass(self, targets: Tensor) -> Tensor | int:
        # As torch has it: weighted by class where targets are classes, else by the number of samples.
        if self.weights is None or targets.ndim > 1:
            return len(targets)
        return self.weights[targets].sum()


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """`samples / (classes present * samples of the class)`, as scikit-learn's `balanced`; 0 for absent ones.

    Returns:
        Shape (classes,), float32.
    """
    counts = torch.bincount(labels, minlength=classes).float()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0.0)
