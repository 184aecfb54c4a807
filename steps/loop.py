"""The loop: fit a model on batches, and predict with it. It knows no files and no servers.

Shapes: a batch of `b` samples gives logits (b, classes); labels are class indices (b,), int64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from steps import metrics
from steps.data import PREDICT_BATCH, Batches, Samples, in_turn, to_device
from steps.errors import TrainingError
from steps.params import Training
from steps.schedule import warmup_cosine

# Called with values and the number of steps taken: after every step, and with `epoch` after every epoch.
Log = Callable[[dict[str, float], int], None]


@dataclass(frozen=True)
class Fitted:
    """What came of a training; the model itself holds the best weights.

    Attributes:
        best: validation metrics of the best epoch, by name.
        best_epoch: from 1.
        epochs: how many were run.
        steps: optimizer steps taken.
        stopped_early: patience ran out.
    """

    best: dict[str, float]
    best_epoch: int
    epochs: int
    steps: int
    stopped_early: bool


def fit(
    model: nn.Module,
    train: Batches,
    validation: Batches,
    groups: list[dict[str, Any]],
    training: Training,
    *,
    seed: int,
    log: Log,
    device: torch.device | None = None,
) -> Fitted:
    """Train with AdamW, warm-up and cosine; leave the model with the weights of its best epoch.

    The best epoch is the one of lowest validation loss. The order of the samples depends on the seed alone,
    so that two arms with one seed see the same batches.

    Args:
        model: takes the batches' inputs and gives logits.
        train: labelled batches, shuffled every epoch.
        validation: labelled batches to judge an epoch by.
        groups: the optimizer's parameter groups, as `freezing.parameter_groups` makes them.
        training: epochs, patience, warm-up and clipping.
        seed: of the order and of dropout.
        log: gets `train_loss` and `learning_rate` after each step; after each epoch also `epoch` and the
            validation metrics.
        device: where to compute; the CPU when not given.

    Raises:
        TrainingError: a loss or gradient is not finite; the message names the step and the learning rate.
    """
    device = device or torch.device("cpu")
    model.to(device)
    total = training.epochs * len(train)
    warmup = round(total * training.warmup_fraction)
    # Fused: one kernel for all tensors of a group, 1.3 times the step rate of a small transformer here.
    optimizer = torch.optim.AdamW(groups, fused=device.type in ("cpu", "cuda"))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, total, warmup))
    trained = [parameter for group in groups for parameter in group["params"]]
    order = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)

    best: dict[str, float] = {}
    best_state: dict[str, Tensor] = {}
    best_epoch, step, epoch = 0, 0, 0
    for epoch in range(1, training.epochs + 1):
        model.train()
        losses: list[float] = []
        for inputs, labels in train.shuffled(order):
            rate = float(schedule.get_last_lr()[0])
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(to_device(inputs, device)), labels.to(device))
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(trained, training.clip_norm)
            _check_finite(loss, norm, epoch, step + 1, rate)
            optimizer.step()
            schedule.step()
            step += 1
            losses.append(loss.item())
            log({"train_loss": losses[-1], "learning_rate": rate}, step)
        judged = judge(model, validation, device)
        if not math.isfinite(judged["validation_log_loss"]):
            raise TrainingError(_advice(f"the validation loss is not finite after epoch {epoch}", step, rate))
        log({"epoch": epoch, "train_loss": float(np.mean(losses)), "learning_rate": rate, **judged}, step)
        if not best or judged["validation_log_loss"] < best["validation_log_loss"]:
            best, best_epoch = judged, epoch
            best_state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        elif training.patience is not None and epoch - best_epoch >= training.patience:
            break
    model.load_state_dict(best_state)
    return Fitted(best, best_epoch, epoch, step, stopped_early=epoch < training.epochs)


def judge(model: nn.Module, batches: Batches, device: torch.device | None = None) -> dict[str, float]:
    """Validation metrics of a model: accuracy, macro-F1 and log-loss."""
    probabilities = predict(model, batches.samples, device).astype(np.float64)
    truth = batches.labels.numpy()
    return {
        f"validation_{name}": metrics.score(name, truth, probabilities) for name in metrics.HIGHER_IS_BETTER
    }


@torch.inference_mode()
def predict(
    model: nn.Module, samples: Samples, device: torch.device | None = None, batch_size: int = PREDICT_BATCH
) -> NDArray[np.float32]:
    """Probabilities of all samples in their order, in eval mode.

    Returns:
        Shape (samples, classes), float32.
    """
    device = device or torch.device("cpu")
    model.to(device).eval()
    parts = [
        functional.softmax(model(to_device(samples.batch(indices), device)).float(), dim=1).cpu().numpy()
        for indices in in_turn(len(samples), batch_size)
    ]
    return np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)


def _check_finite(loss: Tensor, norm: Tensor, epoch: int, step: int, rate: float) -> None:
    if not math.isfinite(loss.item()):
        raise TrainingError(_advice(f"the loss is {loss.item()} in epoch {epoch}", step, rate))
    if not math.isfinite(norm.item()):
        raise TrainingError(_advice(f"the gradient is not finite in epoch {epoch}", step, rate))


def _advice(what: str, step: int, rate: float) -> str:
    return (
        f"{what}, step {step}, at learning rate {rate:.2g}: lower the arm's learning rates or raise "
        "`training.warmup_fraction`, and look for unusual samples"
    )
