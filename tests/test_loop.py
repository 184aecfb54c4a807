from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, log_loss
from torch import Tensor, nn
from torch.nn import functional

from steps import freezing, loop
from steps.data import Batches, FeatureSamples
from steps.errors import TrainingError
from steps.params import Arm, Training
from steps.schedule import warmup_cosine

ARM = Arm(start="pretrained", tune="head", learning_rate=0.05)


def clusters(samples: int, seed: int = 0, batch_size: int = 8) -> Batches:
    """Three classes that a linear model separates."""
    random = np.random.default_rng(seed)
    labels = np.arange(samples) % 3
    points = random.normal(size=(samples, 5)) + 5 * np.eye(5)[labels]
    inputs = FeatureSamples(torch.tensor(points, dtype=torch.float32))
    return Batches(inputs, torch.tensor(labels), batch_size)


def linear(seed: int = 1, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(5, 3))


def nothing(values: dict[str, float], step: int) -> None:
    """Log to nobody."""


def fit(model: nn.Module, seed: int = 1, log: loop.Log = nothing, **training: Any) -> loop.Fitted:
    settings = Training(**{"epochs": 4, "batch_size": 8, **training})
    groups = freezing.parameter_groups(model, ARM)
    return loop.fit(model, clusters(29), clusters(20, seed=9), groups, settings, seed=seed, log=log)


def weights(model: nn.Module) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())


def test_learns_what_can_be_learned() -> None:
    fitted = fit(linear(), epochs=20)
    assert fitted.best["validation_accuracy"] > 0.95
    assert fitted.steps == 20 * math.ceil(29 / 8)


def test_follows_a_plain_loop_written_out() -> None:
    """The same as PyTorch's own unfused AdamW, step by step, clipping and schedule included."""
    model, mirror = linear(), linear()
    fit(model, epochs=3, clip_norm=0.1, warmup_fraction=0.25)

    train, order = clusters(29), torch.Generator().manual_seed(1)
    linear_layer = mirror[1]  # type: ignore[index]
    optimizer = torch.optim.AdamW(
        [
            {"params": [linear_layer.weight], "weight_decay": 0.01},
            {"params": [linear_layer.bias], "weight_decay": 0.0},
        ],
        lr=0.05,
    )
    step, total = 0, 3 * 4
    for _ in range(3):
        for inputs, labels in train.shuffled(order):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * warmup_cosine(step, total, 3)
            optimizer.zero_grad()
            functional.cross_entropy(mirror(inputs), labels).backward()  # type: ignore[no-untyped-call]
            squares = sum(float(p.grad.pow(2).sum()) for p in mirror.parameters() if p.grad is not None)
            for parameter in mirror.parameters():
                assert parameter.grad is not None
                parameter.grad *= min(1.0, 0.1 / (math.sqrt(squares) + 1e-6))
            optimizer.step()
            step += 1
    for ours, theirs in zip(model.parameters(), mirror.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_same_seed_same_bytes_other_seed_other_bytes() -> None:
    first, second, other = linear(dropout=0.3), linear(dropout=0.3), linear(dropout=0.3)
    fit(first, seed=1)
    fit(second, seed=1)
    fit(other, seed=2)
    assert weights(first) == weights(second)
    assert weights(first) != weights(other)


def test_arms_of_one_seed_see_the_same_batches() -> None:
    class Spy(nn.Module):
        def __init__(self, draws: int) -> None:
            super().__init__()
            self.layer, self.draws, self.seen = nn.Linear(5, 3), draws, list[Tensor]()

        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                self.seen.append(inputs.clone())
                torch.rand(self.draws)  # one arm uses more random numbers than the other
            return self.layer(inputs)  # type: ignore[no-any-return]

    first, second = Spy(1), Spy(50)
    fit(first)
    fit(second)
    assert len(first.seen) == 16
    assert all(torch.equal(a, b) for a, b in zip(first.seen, second.seen, strict=True))


def test_keeps_the_weights_of_the_best_epoch() -> None:
    epochs: list[dict[str, float]] = []
    model = linear()
    # Rates far too high: validation loss goes up and down.
    groups = [{"params": list(model.parameters()), "lr": 3.0, "weight_decay": 0.0}]
    validation = clusters(20, seed=9)
    fitted = loop.fit(
        model, clusters(29), validation, groups, Training(epochs=8, batch_size=8),
        seed=1, log=lambda values, step: epochs.append(values) if "epoch" in values else None,
    )  # fmt: skip
    losses = [row["validation_log_loss"] for row in epochs]
    assert losses[-1] != min(losses), "the last epoch is the best: this test shows nothing"
    assert fitted.best_epoch == 1 + int(np.argmin(losses))
    assert loop.judge(model, validation) == pytest.approx(fitted.best)


def test_stops_when_patience_runs_out() -> None:
    model = linear()
    groups = [{"params": list(model.parameters()), "lr": 5.0, "weight_decay": 0.0}]
    fitted = loop.fit(
        model, clusters(29), clusters(20, seed=9), groups, Training(epochs=50, batch_size=8, patience=2),
        seed=1, log=nothing,
    )  # fmt: skip
    assert fitted.stopped_early
    assert fitted.epochs == fitted.best_epoch + 2 < 50


def test_log_tells_every_step_and_every_epoch() -> None:
    calls: list[tuple[dict[str, float], int]] = []
    fit(linear(), epochs=2, warmup_fraction=0.25, log=lambda values, step: calls.append((values, step)))
    steps = [(values, step) for values, step in calls if "epoch" not in values]
    assert [step for _, step in steps] == list(range(1, 9))
    assert [values["learning_rate"] for values, _ in steps] == pytest.approx(
        [0.05 * warmup_cosine(step, 8, 2) for step in range(8)]
    )
    epochs = [values for values, _ in calls if "epoch" in values]
    assert [values["epoch"] for values in epochs] == [1, 2]
    assert epochs[0]["train_loss"] == pytest.approx(np.mean([v["train_loss"] for v, _ in steps[:4]]))


class BreaksAt(nn.Module):
    """Gives a loss (or a gradient) that is not finite at one step."""

    def __init__(self, step: int, *, gradient: bool = False) -> None:
        super().__init__()
        self.layer, self.at, self.gradient, self.calls = nn.Linear(5, 3), step, gradient, 0

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layer(inputs)
        if self.training:
            self.calls += 1
            if self.calls == self.at and self.gradient:
                # Square root at 0: a value of 0 and an infinite slope, which times 0 is no number.
                logits = logits + (logits.sum() * 0).abs().sqrt()
            elif self.calls == self.at:
                logits = logits * math.nan
        return logits


def test_loss_that_is_not_finite_stops_with_the_step_named() -> None:
    with pytest.raises(
        TrainingError, match=r"loss is nan in epoch 2, step 6, at learning rate 0\.0\d+: lower"
    ):
        fit(BreaksAt(6))


def test_gradient_that_is_not_finite_stops_with_the_step_named() -> None:
    with pytest.raises(TrainingError, match="gradient is not finite in epoch 1, step 3"):
        fit(BreaksAt(3, gradient=True))


def test_predict_keeps_the_order_and_counts_the_short_batch_once() -> None:
    batches = clusters(70)
    model = linear(dropout=0.9)
    model.train()
    found = loop.predict(model, batches.samples, batch_size=16)
    assert found.shape == (70, 3)
    assert found.dtype == np.float32
    with torch.no_grad():  # dropout is off, whatever mode the model came in
        expected = functional.softmax(model[1](batches.samples.batch(list(range(70)))), dim=1)  # type: ignore[index]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_predict_of_nothing_is_empty() -> None:
    assert len(loop.predict(linear(), FeatureSamples(torch.empty(0, 5)))) == 0


def test_judge_agrees_with_scikit_learn() -> None:
    batches, model = clusters(50), linear()
    found = loop.judge(model, batches)
    probabilities = loop.predict(model, batches.samples).astype(float)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    truth, predicted = batches.labels.numpy(), probabilities.argmax(axis=1)
    assert found["validation_accuracy"] == pytest.approx((truth == predicted).mean())
    assert found["validation_macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert found["validation_log_loss"] == pytest.approx(log_loss(truth, probabilities), rel=1e-5)
