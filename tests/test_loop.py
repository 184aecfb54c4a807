from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, log_loss
from torch import Tensor, nn
from torch.nn import functional

from steps import freezing, inference, loop, network
from steps.averaging import copied
from steps.data import Batches, FeatureSamples
from steps.errors import TrainingError
from steps.loop import Fed, Recipe, Stage
from steps.network import Network, Probe
from steps.objective import Objective
from steps.params import Arm, Machine, Training
from steps.schedule import warmup_cosine

ARM = Arm(tune="head", learning_rate=0.05)
VISION = {"library": "timm", "name": "test_efficientnet", "mean": [0.5] * 3, "std": [0.5] * 3}


def clusters(samples: int, seed: int = 0, batch_size: int = 8) -> Batches:
    """Three classes that a linear model separates."""
    random = np.random.default_rng(seed)
    labels = np.arange(samples) % 3
    points = random.normal(size=(samples, 5)) + 5 * np.eye(5)[labels]
    inputs = FeatureSamples(torch.tensor(points, dtype=torch.float32))
    return Batches(inputs, torch.tensor(labels), batch_size)


def linear(seed: int = 1, dropout: float = 0.0) -> Probe:
    torch.manual_seed(seed)
    return network.probe(5, 3, dropout)


class Instead(Probe):
    """A probe that does something else with its inputs."""

    def __init__(self, compute: Any) -> None:
        super().__init__(network.build_head(5, 3, 0.0))
        self.compute = compute

    def forward(self, inputs: Tensor, start: int = 0) -> Tensor:
        return self.compute(self, inputs)  # type: ignore[no-any-return]


def nothing(values: dict[str, float], step: int) -> None:
    """Log to nobody."""


def fit(
    model: Probe,
    seed: int = 1,
    log: loop.Log = nothing,
    arm: Arm = ARM,
    machine: Machine | None = None,
    keeper: loop.Keeper | None = None,
    **training: Any,
) -> loop.Fitted:
    settings = Training(**{"epochs": 4, "batch_size": 8, **training})
    train = clusters(29)
    recipe = Recipe(arm, settings, Objective(arm, train.labels, 3), machine or Machine(device="cpu"))
    fed = Fed(train, clusters(20, seed=9))
    stage = Stage(1, lambda: freezing.parameter_groups(model, arm), lambda: fed)
    return loop.fit(model, [stage], recipe, seed=seed, log=log, keeper=keeper)


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
    linear_layer: Any = mirror.head.get_submodule("1")
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
    def spy(draws: int, seen: list[Tensor]) -> Probe:
        def compute(probe: Probe, inputs: Tensor) -> Tensor:
            if probe.training:
                seen.append(inputs.clone())
                torch.rand(draws)  # one arm uses more random numbers than the other
            return probe.head(inputs)  # type: ignore[no-any-return]

        return Instead(compute)

    first, second = list[Tensor](), list[Tensor]()
    fit(spy(1, first))
    fit(spy(50, second))
    assert len(first) == 16
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_keeps_the_weights_of_the_best_epoch() -> None:
    epochs: list[dict[str, float]] = []
    model = linear()
    fitted = fit(
        model, arm=ARM.model_copy(update={"learning_rate": 3.0}), epochs=8,  # the loss goes up and down
        log=lambda values, step: epochs.append(values) if "epoch" in values else None,
    )  # fmt: skip
    losses = [row["validation_log_loss"] for row in epochs]
    assert losses[-1] != min(losses), "the last epoch is the best: this test shows nothing"
    assert fitted.best_epoch == 1 + int(np.argmin(losses))
    assert loop.judge(model, clusters(20, seed=9)) == pytest.approx(fitted.best)


def test_stops_when_patience_runs_out() -> None:
    fitted = fit(linear(), arm=ARM.model_copy(update={"learning_rate": 5.0}), epochs=50, patience=2)
    assert fitted.stopped_early
    assert fitted.epochs == fitted.best_epoch + 2 < 50


def test_a_batch_in_parts_has_the_same_gradient() -> None:
    """Also with class weights, whose mean is over the batch and not over the part."""
    arm = ARM.model_copy(update={"class_weights": True, "label_smoothing": 0.1})
    whole, parted = linear(), linear()
    fit(whole, arm=arm)
    fit(parted, arm=arm, machine=Machine(device="cpu", accumulate=4))
    assert weights(whole) != weights(linear())
    for ours, theirs in zip(whole.parameters(), parted.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_parts_are_even_and_as_many_as_asked() -> None:
    labels = torch.arange(20)
    sizes = [len(some) for _, some in loop.parts(labels[:, None], labels, 3)]
    assert sizes == [7, 7, 6]
    texts = {"input_ids": labels[:, None], "attention_mask": labels[:, None] + 100}
    found = list(loop.parts(texts, labels, 3))
    for one, some in found:
        assert isinstance(one, dict)
        assert torch.equal(one["input_ids"][:, 0], some)
        assert torch.equal(one["attention_mask"][:, 0], some + 100)
    assert torch.cat([some for _, some in found]).tolist() == labels.tolist()


def test_ema_is_judged_and_kept() -> None:
    """The kept weights are the average, computed here by hand from the weights after each step."""
    arm, model, seen = ARM.model_copy(update={"ema": 0.9}), linear(), list[dict[str, Tensor]]()
    seen.append(copied(model.state_dict()))
    fitted = fit(
        model, arm=arm, epochs=1,
        log=lambda values, step: seen.append(copied(model.state_dict())) if "epoch" not in values else None,
    )  # fmt: skip
    average = dict(seen[0])
    for step, state in enumerate(seen[1:], start=1):
        decay = min(0.9, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * tensor for name, tensor in state.items()}
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, average[name])
        assert not torch.equal(tensor, seen[-1][name])
    assert loop.judge(model, clusters(20, seed=9)) == pytest.approx(fitted.best)


def test_a_soup_is_at_least_as_good_as_its_first_epoch() -> None:
    arm = ARM.model_copy(update={"soup": "greedy", "learning_rate": 3.0})
    epochs: list[dict[str, float]] = []
    model = linear()
    fitted = fit(
        model, arm=arm, epochs=8,
        log=lambda values, step: epochs.append(values) if "epoch" in values else None,
    )  # fmt: skip
    assert fitted.averaged_epochs[0] == fitted.best_epoch
    assert fitted.best["validation_log_loss"] <= min(row["validation_log_loss"] for row in epochs)
    assert loop.judge(model, clusters(20, seed=9)) == pytest.approx(fitted.best)


def test_bf16_computes_in_bf16_and_keeps_weights_in_float32() -> None:
    seen: list[torch.dtype] = []

    def compute(probe: Probe, inputs: Tensor) -> Tensor:
        found: Tensor = probe.head(inputs)
        seen.append(found.dtype)
        return found

    model = Instead(compute)
    fitted = fit(model, machine=Machine(device="cpu", precision="bf16"), epochs=20)
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert fitted.best["validation_accuracy"] > 0.95


# ------------------------------------------------------------------------------------- interruptions


class Memory:
    """Keeps every state; the newest can be taken up."""

    def __init__(self) -> None:
        self.states: list[Any] = []
        self.found: Any = None

    def due(self) -> bool:
        return True

    def save(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        texts = json.dumps(values)
        self.states.append((copied(tensors), texts, torch.get_rng_state()))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if self.found is None:
            return None
        tensors, texts, random = self.found
        torch.set_rng_state(random)
        return copied(tensors), json.loads(texts)


@pytest.mark.parametrize(
    "changes", [{}, {"ema": 0.9}, {"soup": "greedy"}, {"soup": "uniform", "balanced_sampling": True}]
)
def test_goes_on_from_any_state_to_the_same_bytes(changes: dict[str, Any]) -> None:
    arm, kept = ARM.model_copy(update=changes), Memory()
    told: list[Any] = []
    unbroken = linear(dropout=0.3)
    expected = fit(
        unbroken,
        arm=arm,
        keeper=kept,
        epochs=3,
        log=lambda values, step: told.append(without_time(values, step)),
    )
    assert len(kept.states) == 3 * 4 + 3, "after each step and each epoch"
    for state in kept.states:
        memory, again = Memory(), list[Any]()
        memory.found = state
        torch.rand(3)
        model = linear(dropout=0.3)
        found = fit(
            model, arm=arm, keeper=memory, epochs=3,
            log=partial(telling, again),
        )  # fmt: skip
        assert weights(model) == weights(unbroken)
        epochs = [one for one in told if "epoch" in one[0]]
        assert [one for one in again if "epoch" in one[0]] == epochs
        assert found.resumed_from == json.loads(state[1])["steps"]
        assert (found.best, found.best_epoch, found.steps) == (
            expected.best, expected.best_epoch, expected.steps,
        )  # fmt: skip


def telling(told: list[Any], values: dict[str, float], step: int) -> None:
    told.append(without_time(values, step))


def without_time(values: dict[str, float], step: int) -> tuple[dict[str, float], int]:
    return {name: value for name, value in values.items() if name != "seconds"}, step


def pictures(samples: int, seed: int) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 3, 32, 32, generator=generator)
    return Batches(FeatureSamples(inputs), torch.arange(samples) % 3, 6)


def thawed(model: Network, arm: Arm, name: str) -> list[dict[str, Any]]:
    return freezing.parameter_groups(model, arm, [freezing.thaw(model, name)])


def thawing(seed: int, keeper: loop.Keeper | None = None, **changes: Any) -> tuple[Network, loop.Fitted]:
    """A network whose layers are freed one by one."""
    torch.manual_seed(seed)
    model = network.classifier(network.architecture(VISION), 3, 0.2)
    arm = Arm(tune="gradual", learning_rate=0.01, backbone_learning_rate=0.01, **changes)
    freezing.freeze(model, arm)
    train = pictures(17, 0)
    training = Training(epochs=3, batch_size=6)
    stages = [Stage(1, lambda: freezing.parameter_groups(model, arm), lambda: Fed(train, pictures(9, 1)))]
    for name, epoch in freezing.thaw_epochs(model, arm, 3).items():
        stages.append(Stage(epoch, partial(thawed, model, arm, name), lambda: Fed(train, pictures(9, 1))))
    recipe = Recipe(arm, training, Objective(arm, train.labels, 3), Machine(device="cpu"))
    return model, loop.fit(model, stages, recipe, seed=seed, log=nothing, keeper=keeper)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"ema": 0.5}, {"soup": "uniform"}, {"l2_sp": 0.1}])
def test_gradual_unfreezing_goes_on_to_the_same_bytes(changes: dict[str, Any]) -> None:
    kept = Memory()
    unbroken, _ = thawing(1, kept, **changes)
    for state in kept.states[::2]:
        memory = Memory()
        memory.found = state
        assert weights(thawing(1, memory, **changes)[0]) == weights(unbroken)


def test_weights_before_a_thawing_count_with_what_was_frozen_then() -> None:
    """If the first epoch was the best, what was freed later must be back at its start."""
    torch.manual_seed(1)
    start = copied(network.classifier(network.architecture(VISION), 3, 0.2).state_dict())
    model, fitted = thawing(1)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
    freed = {1: 0, 2: 1, 3: 2}[fitted.best_epoch]
    layers = model.backbone.layers
    allowed = {id(p) for layer in layers[len(layers) - freed :] for p in layer.parameters()}
    allowed |= {id(p) for p in model.head.parameters()}
    for name, parameter in model.named_parameters():
        assert name not in changed or id(parameter) in allowed, name


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


def breaks_at(step: int, *, gradient: bool = False) -> Probe:
    """Gives a loss (or a gradient) that is not finite at one step."""
    calls: list[int] = []

    def compute(probe: Probe, inputs: Tensor) -> Tensor:
        logits: Tensor = probe.head(inputs)
        if probe.training:
            calls.append(1)
            if len(calls) == step and gradient:
                # Square root at 0: a value of 0 and an infinite slope, which times 0 is no number.
                return logits + (logits.sum() * 0).abs().sqrt()
            if len(calls) == step:
                return logits * math.nan
        return logits

    return Instead(compute)


def test_loss_that_is_not_finite_stops_with_the_step_named() -> None:
    with pytest.raises(
        TrainingError,
        match=r"loss is nan in epoch 2, step 6, at learning rate 0\.0\d+ \(no checkpoint was taken before",
    ):
        fit(breaks_at(6))


def test_loss_that_is_not_finite_names_the_last_good_checkpoint() -> None:
    with pytest.raises(TrainingError, match="the last good checkpoint is of step 5"):
        fit(breaks_at(6), keeper=Memory())


def test_gradient_that_is_not_finite_stops_with_the_step_named() -> None:
    with pytest.raises(TrainingError, match="gradient is not finite in epoch 1, step 3"):
        fit(breaks_at(3, gradient=True))


def short_of_memory(limit: int) -> Probe:
    """A machine on which so many samples at a time are the most."""

    def compute(probe: Probe, inputs: Tensor) -> Tensor:
        if probe.training and len(inputs) > limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return probe.head(inputs)  # type: ignore[no-any-return]

    return Instead(compute)


def test_out_of_memory_says_what_to_set() -> None:
    with pytest.raises(TrainingError, match=r"step 1 with 8 samples at a time: set `machine.auto_batch_size"):
        fit(short_of_memory(4))


def test_out_of_memory_is_left_to_whoever_looks_for_a_size() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        fit(short_of_memory(4), machine=Machine(device="cpu", auto_batch_size=True))


def test_other_errors_are_not_taken_for_want_of_memory() -> None:
    def compute(probe: Probe, inputs: Tensor) -> Tensor:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        fit(Instead(compute))


def test_predict_keeps_the_order_and_counts_the_short_batch_once() -> None:
    batches = clusters(70)
    model = linear(dropout=0.9)
    model.train()
    found = inference.probabilities(model, batches.samples, batch_size=16)
    assert found.shape == (70, 3)
    assert found.dtype == np.float32
    with torch.no_grad():  # dropout is off, whatever mode the model came in
        expected = functional.softmax(
            model.head.get_submodule("1")(batches.samples.batch(list(range(70)))), dim=1
        )
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_a_part_that_trains_in_a_network_that_does_not_is_put_in_eval_mode() -> None:
    """As batch normalisations are left once their statistics were learnt anew."""
    batches, model = clusters(20), linear(dropout=0.9)
    model.eval()
    expected = inference.probabilities(model, batches.samples)
    model.head.train()
    np.testing.assert_array_equal(inference.probabilities(model, batches.samples), expected)


def test_predict_of_nothing_is_empty() -> None:
    assert len(inference.probabilities(linear(), FeatureSamples(torch.empty(0, 5)))) == 0


def test_judge_agrees_with_scikit_learn() -> None:
    batches, model = clusters(50), linear()
    found = loop.judge(model, batches)
    probabilities = inference.probabilities(model, batches.samples).astype(float)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    truth, predicted = batches.labels.numpy(), probabilities.argmax(axis=1)
    assert found["validation_accuracy"] == pytest.approx((truth == predicted).mean())
    assert found["validation_macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert found["validation_log_loss"] == pytest.approx(log_loss(truth, probabilities), rel=1e-5)


def test_a_compiled_network_trains_to_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the back end that compiles nothing: that the loop uses it, and trains the network itself."""
    calls: list[object] = []
    compile_ = torch.compile

    def spy(module: Any, **named: Any) -> Any:
        calls.append(module)
        return compile_(module, backend="eager", **named)

    monkeypatch.setattr(torch, "compile", spy)
    plain, compiled = linear(dropout=0.3), linear(dropout=0.3)
    fit(plain)
    fit(compiled, machine=Machine(device="cpu", compile=True))
    assert calls == [compiled]
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
