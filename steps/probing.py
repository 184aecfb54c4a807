"""A linear head on frozen features, fitted exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steps.errors import TrainingError
from steps.params import Arm
from steps.tasks import Criterion

ITERATIONS = 500


@dataclass(frozen=True)
class Solved:
    """Where L-BFGS ended: the mean loss without the penalty, and how often it was computed."""

    loss: float
    iterations: int


def solve(head: nn.Module, features: Tensor, labels: Tensor, arm: Arm, objective: Criterion) -> Solved:
    """Fit a head to the optimum of its mean loss plus `weight_decay / 2 * |W|^2`, with full-batch L-BFGS.

    Computed in float64, dropout off. With a linear head this is scikit-learn's LogisticRegression with
    `C = 1 / (samples * weight_decay)`. Source: Liu and Nocedal, L-BFGS, 1989; strong-Wolfe line search.

    Args:
        head: (samples, features) to (samples, classes); gets the solution.
        features: shape (samples, features).
        labels: class indices (samples,).
        arm: its `weight_decay`.
        objective: label smoothing and class weights.

    Raises:
        TrainingError: the loss is not finite.
    """
    head.eval().double()
    inputs = features.detach().clone().double()
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    calls, last = 0, math.nan

    def closure() -> Tensor:
        nonlocal calls, last
        optimizer.zero_grad()
        loss = objective.share(head(inputs), labels, labels)
        penalty = sum((matrix.pow(2).sum() for matrix in matrices), torch.zeros((), dtype=torch.float64))
        total = loss + arm.weight_decay / 2 * penalty.to(loss.device)
        total.backward()  # type: ignore[no-untyped-call]
        calls, last = calls + 1, loss.item()
        return total

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    head.float()
    if not math.isfinite(last):
        raise TrainingError(
            "the head's loss is not finite: look for features that are not, or raise `weight_decay`"
        )
    return Solved(last, calls)
