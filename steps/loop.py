"""The loop: fit a network on batches, and predict with it. It knows no files and no servers.

Shapes: of a classifier a batch of `b` samples gives logits (b, classes), and targets are class indices
(b,), int64; of other tasks both are what head and criterion agree on, the samples first. Inputs are images or
texts, or, beyond a cut, the stored activations of a frozen prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from steps import freezing, metrics, parallel, probing
from steps.averaging import Ema, Soup, State, copied, put
from steps.data import Batches, in_turn, to_device
from steps.errors import TrainingError, UserError
from steps.inference import autocast, probabilities
from steps.network import Inputs, Network, Probe
from steps.parallel import ALONE, Ranks
from steps.params import Arm, Machine, Training
from steps.resume import flatten_optimizer, restore_optimizer
from steps.schedule import warmup_cosine
from steps.tasks import Criterion

# Called with values and the number of steps taken: after every step, and with `epoch` after every epoch.
Log = Callable[[dict[str, float], int], None]
# Validation metrics of a network: given it, the batches, the device, the cut and the precision.
Judge = Callable[[nn.Module, Batches, torch.device, int, str], dict[str, float]]
# A training of so many seconds is kept when it is done, however long ago it was kept last.
WORTH_KEEPING = 10.0


@dataclass(frozen=True)
class Fed:
    """What an epoch eats.

    Attributes:
        train: labelled batches, in a new order every epoch.
        validation: labelled batches to judge an epoch by.
        cut: the inputs are activations after so many layers; 0: images or texts.
        view_of: the augmented view that an epoch, from 1, trains on; None: the plain one.
    """

    train: Batches
    validation: Batches
    cut: int = 0
    view_of: Callable[[int], int | None] = lambda epoch: None


@dataclass(frozen=True)
class Stage:
    """Epochs in which the same layers train.

    Attributes:
        first_epoch: from 1.
        thaw: frees the stage's layers; gives the parameter groups that join the optimizer.
        feed: gives the batches, after `thaw`.
    """

    first_epoch: int
    thaw: Callable[[], list[dict[str, Any]]]
    feed: Callable[[], Fed]


@dataclass(frozen=True)
class Recipe:
    """How to train: what does not depend on the seed.

    Attributes:
        arm: what trains, at which rate.
        training: the budget.
        objective: the loss.
        machine: where to compute, in which precision and parts.
        judge: gives the validation metrics of an epoch, by name as `validation_<name>`.
        loss: the one of them, without the prefix, that says which epoch is best: the lowest.
    """

    arm: Arm
    training: Training
    objective: Criterion
    machine: Machine = field(default_factory=Machine)
    judge: Judge = lambda network, batches, device, cut, precision: judge(
        network, batches, device, cut, precision
    )
    loss: str = "log_loss"


@dataclass(frozen=True)
class Fitted:
    """What came of a training; the network itself holds the best weights.

    Attributes:
        best: validation metrics of the weights that are kept, by name.
        best_epoch: from 1.
        epochs: how many were run.
        steps: optimizer steps taken.
        stopped_early: patience ran out.
        seconds: of training, those before a break among them.
        resumed_from: the step at which an interrupted training went on; None when it ran through.
        averaged_epochs: the epochs that went into a soup.
    """

    best: dict[str, float]
    best_epoch: int
    epochs: int
    steps: int
    stopped_early: bool
    seconds: float = 0.0
    resumed_from: int | None = None
    averaged_epochs: list[int] = field(default_factory=list)


class Keeper(Protocol):
    """Where the state of a training is kept; `resume.Checkpoints` is one."""

    def due(self) -> bool:
        """It is time to save."""
        ...

    def save(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Keep the state after a step, with the random generators'."""
        ...

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest state, the random generators restored."""
        ...


def fit(
    network: Network | Probe,
    stages: Sequence[Stage],
    recipe: Recipe,
    *,
    seed: int,
    log: Log,
    device: torch.device | None = None,
    keeper: Keeper | None = None,
    micro_batch: int | None = None,
    ranks: Ranks = ALONE,
) -> Fitted:
    """Train with AdamW, warm-up and cosine; leave the network with its best weights.

    Best is the epoch of lowest validation loss (of the averaged weights, with `ema`), or the soup of the
    best epochs. The order of the samples depends on the seed alone, so that two arms with one seed see
    the same batches. A training that was interrupted goes on where the keeper's state was taken, and ends
    with the same bytes as an unbroken one.

    Several processes each compute their part of every batch and take the same steps; the first one judges,
    and alone has a keeper.

    Args:
        network: takes the batches' inputs and a cut, and gives logits.
        stages: the first begins with epoch 1.
        recipe: the arm, the budget, the loss, the machine.
        seed: of the order and of dropout.
        log: gets `train_loss` and `learning_rate` (of the head) after each step; after each epoch also
            `epoch`, `seconds` and the validation metrics. After a break it gets the epochs before once more.
        device: where to compute; the CPU when not given.
        keeper: takes the training's state now and then.
        micro_batch: samples computed at a time, by all processes together; a batch's gradient is the sum over
            its parts.
        ranks: the processes that train this network together.

    Raises:
        TrainingError: a loss or gradient is not finite, or memory does not suffice.
    """
    device = device or torch.device("cpu")
    run = _Run(network, stages, recipe, seed, log, device, keeper, micro_batch, ranks)
    run.resume()
    while run.epoch < recipe.training.epochs and not run.out_of_patience:
        fed = run.enter()
        batches = run.draw_order(fed)
        for indices in batches[run.position :]:
            run.step(fed, indices)
            run.save_if_due()
        run.end_epoch(fed)
        run.save_if_due()
    return run.finish()


class _Run:
    """A training under way: everything that an interruption must not lose.

    Attributes:
        epoch: how many are complete.
        position: batches of the present epoch that are done.
        moving: the network's own tensors that training changes.
    """

    def __init__(
        self,
        network: Network | Probe,
        stages: Sequence[Stage],
        recipe: Recipe,
        seed: int,
        log: Log,
        device: torch.device,
        keeper: Keeper | None,
        micro_batch: int | None,
        ranks: Ranks,
    ) -> None:
        arm, training, machine = recipe.arm, recipe.training, recipe.machine
        self.watched = f"validation_{recipe.loss}"
        self.network, self.stages, self.recipe = network.to(device), stages, recipe
        self.log, self.device, self.keeper, self.ranks, self.seed = log, device, keeper, ranks, seed
        self.micro_batch = micro_batch or training.batch_size // machine.accumulate
        recipe.objective.to(device)
        self.compiled: Any = torch.compile(network) if machine.compile else network
        self.forward: Any = self.compiled
        self.autocast = autocast(device, machine.precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=machine.precision == "fp16")
        self.ema = Ema(arm.ema) if arm.ema is not None else None
        self.soup = Soup(arm.soup) if arm.soup is not None else None
        self.anchor: freezing.Anchor | None = None
        self.optimizer: torch.optim.AdamW | None = None
        self.entered = 0
        self.fed: Fed | None = None
        self.moving: State = {}
        self.order = torch.Generator().manual_seed(seed)
        self.order_before = self.order.get_state()
        self.epoch, self.position, self.steps = 0, 0, 0
        self.losses: list[float] = []
        self.best: dict[str, float] = {}
        self.best_epoch, self.best_state = 0, State()
        self.told: list[tuple[dict[str, float], int]] = []
        self.resumed_from: int | None = None
        self.last_kept: int | None = None
        self.total = 0
        torch.manual_seed(seed)
        self.started = perf_counter()

    # ------------------------------------------------------------------------------------- epochs

    def enter(self) -> Fed:
        """Begin an epoch: free what its stage frees, and give its batches."""
        while self.entered < len(self.stages) and self.stages[self.entered].first_epoch <= self.epoch + 1:
            self._thaw(self.stages[self.entered])
            self.entered += 1
            self.fed = None
        if self.fed is None:
            self.fed = self.stages[self.entered - 1].feed()
            self.total = self.recipe.training.epochs * len(self.fed.train)
        freezing.train_mode(self.network)
        return self.fed

    def _thaw(self, stage: Stage) -> None:
        groups = [{**group, "rate": group["lr"]} for group in stage.thaw()]
        if self.optimizer is None:
            # Fused: one kernel for all tensors of a group, 1.3 times the step rate of a small transformer.
            self.optimizer = torch.optim.AdamW(groups, fused=self.device.type in ("cpu", "cuda"))
        else:
            for group in groups:
                self.optimizer.add_param_group(group)
        self.forward = self.ranks.wrapped(self.compiled)
        self.moving = freezing.moving(self.network)
        if self.anchor is None:
            self.anchor = freezing.Anchor(self.network, self.recipe.arm)
        # What is freed now was at its start in every epoch before.
        if self.best_state:
            self.best_state |= copied({k: v for k, v in self.moving.items() if k not in self.best_state})
        for average in (self.ema, self.soup):
            if average is not None:
                average.cover(self.moving)

    def draw_order(self, fed: Fed) -> list[list[int]]:
        """The epoch's batches."""
        self.order_before = self.order.get_state()
        return fed.train.order(self.order)

    def step(self, fed: Fed, indices: list[int]) -> None:
        """One step of the optimizer, on the samples at these places."""
        assert self.optimizer is not None
        assert self.anchor is not None
        warmup = round(self.total * self.recipe.training.warmup_fraction)
        factor = warmup_cosine(self.steps, self.total, warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        self.optimizer.zero_grad()
        try:
            loss = self._backward(fed, indices)
        except RuntimeError as error:
            raise self._told_of_memory(error) from error
        self.scaler.unscale_(self.optimizer)
        self.anchor.pull()
        trained = [one for group in self.optimizer.param_groups for one in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, self.recipe.training.clip_norm)
        self._check_finite(loss, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.steps += 1
        self.position += 1
        if self.ema is not None:
            self.ema.update(self.moving, self.steps)
        self.losses.append(loss)
        self.log({"train_loss": loss, "learning_rate": self._rate()}, self.steps)

    def _backward(self, fed: Fed, indices: list[int]) -> float:
        """Gradients of a batch's mean loss, part by part; gives the loss."""
        objective, loss = self.recipe.objective, 0.0
        count = math.ceil(len(indices) / self.micro_batch)
        own = self.ranks.own(len(indices), count)
        inputs, targets, whole = self._read(fed, indices, own)
        # Gradients of several processes are averaged, and the parts' shares are to be added up.
        times = 1 if len(own) == len(indices) else self.ranks.count
        if length(inputs) != len(own):  # a long text is several rows
            count = math.ceil(length(inputs) * times / self.micro_batch)
        pieces = parts(inputs, targets, count)
        with self.ranks.draws(self.seed, self.steps), self._statistics(times):
            for number, (some, of_them) in enumerate(pieces, 1):
                with self.ranks.meeting(self.forward, last=number == count):
                    with self.autocast():
                        outputs = self.forward(objective.forced(some, of_them), fed.cut)
                    share = objective.share(in_full(outputs), of_them, whole) * times
                    self.scaler.scale(share).backward()  # type: ignore[no-untyped-call]
                loss += share.item()
        return self.ranks.mean(loss)

    def _read(self, fed: Fed, indices: list[int], own: list[int]) -> tuple[Inputs, Any, Any]:
        """Of a batch, on the device: inputs and targets at its own places, and the targets of all."""
        arm, view = self.recipe.arm, fed.view_of(self.epoch + 1)
        whole = len(own) == len(indices)
        # What is mixed is mixed with its neighbours, whoever computes them.
        if whole or arm.mixup or arm.cutmix:
            inputs, targets = self._on_device(*fed.train.batch(indices, view))
            inputs, targets = self.recipe.objective.mixed(inputs, targets)
            return (inputs, targets, targets) if whole else (at(inputs, own), at(targets, own), targets)
        inputs, targets = self._on_device(*fed.train.batch([indices[place] for place in own], view))
        return inputs, targets, to_device(targets_of(fed.train, indices, view), self.device)

    def _on_device(self, inputs: Inputs, targets: Any) -> tuple[Inputs, Any]:  # noqa: ANN401 - the task's affair
        return to_device(inputs, self.device), to_device(targets, self.device)

    def _statistics(self, times: int) -> AbstractContextManager[Any]:
        """Batch normalisations that learn see the samples of all processes among which they are dealt out."""
        if times > 1 and freezing.learning_norms(self.network):
            return parallel.WholeBatch()
        return nullcontext()

    def end_epoch(self, fed: Fed) -> None:
        """Judge the epoch, and keep its weights if they are the best."""
        with self.ema.in_place_of(self.moving) if self.ema is not None else nullcontext():
            judged = self._judge(fed)
            loss = judged[self.watched]
            if not math.isfinite(loss):
                raise self._error(f"the validation loss is not finite after epoch {self.epoch + 1}")
            self.epoch, self.position = self.epoch + 1, 0
            if not self.best or loss < self.best[self.watched]:
                self.best, self.best_epoch, self.best_state = judged, self.epoch, copied(self.moving)
            if self.soup is not None:
                self.soup.add(loss, self.epoch, self.moving)
        row = {
            "epoch": self.epoch,
            "seconds": round(perf_counter() - self.started, 3),
            "train_loss": float(np.mean(self.losses)),
            "learning_rate": self._rate(),
            **judged,
        }
        self.losses = []
        self.told.append((row, self.steps))
        self.log(row, self.steps)

    @property
    def out_of_patience(self) -> bool:
        """No better validation loss for as many epochs as the budget's patience."""
        patience = self.recipe.training.patience
        return patience is not None and bool(self.best) and self.epoch - self.best_epoch >= patience

    def finish(self) -> Fitted:
        """Give the network its best weights."""
        # Other seeds may follow: if they are interrupted, this one is not to be done again.
        if self.last_kept != self.steps and perf_counter() - self.started > WORTH_KEEPING:
            self.save()
        fed, averaged = self.fed or self.enter(), list[int]()
        if self.soup is not None:
            self.best_state, averaged = self.soup.make(lambda state: self._loss_of(state, fed))
            self._use(self.best_state, fed)
            self.best = self._judge(fed)
        else:
            put(self.moving, self.best_state)
        return Fitted(
            self.best,
            self.best_epoch,
            self.epoch,
            self.steps,
            stopped_early=self.epoch < self.recipe.training.epochs,
            seconds=perf_counter() - self.started,
            resumed_from=self.resumed_from,
            averaged_epochs=averaged,
        )

    def _judge(self, fed: Fed) -> dict[str, float]:
        recipe, precision = self.recipe, self.recipe.machine.precision
        return self.ranks.shared(
            lambda: recipe.judge(self.network, fed.validation, self.device, fed.cut, precision)
        )

    def _loss_of(self, state: State, fed: Fed) -> float:
        self._use(state, fed)
        return self._judge(fed)[self.watched]

    def _use(self, state: State, fed: Fed) -> None:
        """Averaged weights need statistics of their own (Izmailov et al., SWA, 2018, section 3.2)."""
        put(self.moving, state)
        refresh_statistics(self.network, fed, self.device)

    # ------------------------------------------------------------------------------- interruptions

    def save_if_due(self) -> None:
        """Hand the state to the keeper, if it wants it."""
        if self.keeper is not None and self.keeper.due():
            self.save()

    def save(self) -> None:
        """Hand the state to the keeper, if there is one."""
        if self.keeper is None:
            return
        assert self.optimizer is not None
        tensors, values = flatten_optimizer(self.optimizer)
        states = {"model": self.moving, "best": self.best_state}
        if self.ema is not None:
            states["ema"] = self.ema.average
        if self.soup is not None:
            states |= {f"soup-{place}": state for place, (_, _, state) in enumerate(self.soup.kept)}
        tensors = {f"optimizer/{name}": tensor for name, tensor in tensors.items()}
        tensors |= {f"{kind}/{name}": one for kind, state in states.items() for name, one in state.items()}
        tensors["order"] = self.order_before if self.position else self.order.get_state()
        self.keeper.save(
            self.steps,
            tensors,
            {
                "optimizer": values,
                "scaler": self.scaler.state_dict(),
                "soup": [[loss, epoch] for loss, epoch, _ in self.soup.kept] if self.soup else [],
                "steps": self.steps,
                "epoch": self.epoch,
                "position": self.position,
                "entered": self.entered,
                "losses": self.losses,
                "best": self.best,
                "best_epoch": self.best_epoch,
                "told": self.told,
                "seconds": perf_counter() - self.started,
            },
        )
        self.last_kept = self.steps

    def resume(self) -> None:
        """Take up the keeper's newest state, if there is one."""
        found = self.ranks.shared(lambda: self.keeper.load() if self.keeper is not None else None)
        if found is None:
            return
        # What is mixed is drawn from it, by all processes alike.
        torch.set_rng_state(self.ranks.shared(torch.get_rng_state))
        tensors, values = found
        for stage in self.stages[: values["entered"]]:
            self._thaw(stage)
        self.entered = values["entered"]
        assert self.optimizer is not None
        restore_optimizer(self.optimizer, _below("optimizer", tensors), values["optimizer"])
        put(self.moving, _below("model", tensors))
        self.best_state = {name: tensor.to(self.device) for name, tensor in _below("best", tensors).items()}
        if self.ema is not None:
            put(self.ema.average, _below("ema", tensors))
        if self.soup is not None:
            self.soup.kept = [
                (loss, epoch, {k: v.to(self.device) for k, v in _below(f"soup-{place}", tensors).items()})
                for place, (loss, epoch) in enumerate(values["soup"])
            ]
        if values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])
        self.order.set_state(tensors["order"])
        self.epoch, self.position = values["epoch"], values["position"]
        self.losses, self.best, self.best_epoch = values["losses"], values["best"], values["best_epoch"]
        self.told = [(row, step) for row, step in values["told"]]
        self.steps = self.resumed_from = self.last_kept = values["steps"]
        self.started = perf_counter() - values["seconds"]
        for row, step in self.told:
            self.log(row, step)

    # ------------------------------------------------------------------------------------- errors

    def _rate(self) -> float:
        assert self.optimizer is not None
        return float(self.optimizer.param_groups[0]["lr"])

    def _check_finite(self, loss: float, norm: Tensor) -> None:
        if not math.isfinite(loss):
            raise self._error(f"the loss is {loss} in epoch {self.epoch + 1}")
        # With float16 the scaler skips such a step and lowers its scale.
        if not self.scaler.is_enabled() and not math.isfinite(norm.item()):
            raise self._error(f"the gradient is not finite in epoch {self.epoch + 1}")

    def _error(self, what: str) -> TrainingError:
        kept = "no checkpoint was taken before"
        if self.last_kept is not None:
            kept = f"the last good checkpoint is of step {self.last_kept}"
        return TrainingError(
            f"{what}, step {self.steps + 1}, at learning rate {self._rate():.2g} ({kept}): lower the arm's "
            "learning rates or raise `training.warmup_fraction`, and look for unusual samples"
        )

    def _told_of_memory(self, error: RuntimeError) -> RuntimeError | UserError:
        from accelerate.utils.memory import should_reduce_batch_size

        if self.recipe.machine.auto_batch_size or not should_reduce_batch_size(error):
            return error
        said = f"out of memory in step {self.steps + 1} with {self.micro_batch} samples at a time: "
        if self.ranks.alone:
            return TrainingError(
                f"{said}set `machine.auto_batch_size: true` or raise `machine.accumulate`; the batch stays "
                "the same"
            )
        # Not as a training of a search that breaks down: the others wait for us, in the middle of a step.
        return UserError(f"{said}raise `machine.accumulate`; the batch stays the same")


def parts(inputs: Inputs, targets: Any, count: int) -> Iterator[tuple[Inputs, Any]]:  # noqa: ANN401 - see Criterion
    """A batch in so many parts, as even as can be."""
    if count == 1:
        yield inputs, targets
        return
    yield from zip(_in_parts(inputs, count), _in_parts(targets, count), strict=True)


def targets_of(batches: Batches, indices: list[int], view: int | None) -> Any:  # noqa: ANN401 - see Criterion
    """The targets alone of the samples at these places."""
    targets = batches.targets
    return targets[indices] if isinstance(targets, Tensor) else targets.batch(indices, view)


def at(batch: Any, places: list[int]) -> Any:  # noqa: ANN401 - inputs, or targets as in Criterion
    """The samples of a batch at these places."""
    if isinstance(batch, dict):
        return {name: tensor[places] for name, tensor in batch.items()}
    return batch[places]


def length(batch: Inputs) -> int:
    """How many samples a batch holds."""
    return len(batch if isinstance(batch, Tensor) else next(iter(batch.values())))


def _in_parts(batch: Inputs, count: int) -> list[Any]:
    if isinstance(batch, Tensor):
        return list(batch.tensor_split(count))
    split = {name: tensor.tensor_split(count) for name, tensor in batch.items()}
    return [{name: tensors[place] for name, tensors in split.items()} for place in range(count)]


def in_full(outputs: Any) -> Any:  # noqa: ANN401 - the head's affair
    """A network's output in float32, whatever precision it was computed in."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.is_floating_point() else outputs
    if isinstance(outputs, dict):
        return {name: in_full(one) for name, one in outputs.items()}
    if isinstance(outputs, list | tuple):
        return [in_full(one) for one in outputs]
    return outputs


def fit_at_once(
    network: Network | Probe, fed: Fed, recipe: Recipe, *, log: Log, device: torch.device | None = None
) -> Fitted:
    """Fit a head on frozen features with full-batch L-BFGS; counts as one epoch.

    Raises:
        TrainingError: the loss is not finite.
    """
    device, started = device or torch.device("cpu"), perf_counter()
    inputs, labels = fed.train.batch(list(range(len(fed.train.labels))))
    assert isinstance(inputs, Tensor), "features, no texts"
    network.to(device)
    solved = probing.solve(network.head, inputs.to(device), labels.to(device), recipe.arm, recipe.objective)
    judged = recipe.judge(network, fed.validation, device, fed.cut, "float32")
    seconds = perf_counter() - started
    row = {
        "epoch": 1,
        "seconds": round(seconds, 3),
        "train_loss": solved.loss,
        "learning_rate": 0.0,
        **judged,
    }
    log(row, solved.iterations)
    return Fitted(judged, 1, 1, solved.iterations, stopped_early=False, seconds=seconds)


@torch.no_grad()
def refresh_statistics(network: nn.Module, fed: Fed, device: torch.device) -> None:
    """Learn anew the statistics of the batch normalisations that train, in one pass over the train split."""
    freezing.train_mode(network)
    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    for indices in fed.train.order(torch.Generator().manual_seed(0)):
        network(to_device(fed.train.batch(indices)[0], device), fed.cut)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def judge(
    network: nn.Module,
    batches: Batches,
    device: torch.device | None = None,
    cut: int = 0,
    precision: str = "float32",
) -> dict[str, float]:
    """Validation metrics of a classifier: accuracy, macro-F1 and log-loss."""
    said = probabilities(network, batches.samples, device, cut=cut, precision=precision).astype(np.float64)
    truth = batches.labels.numpy()
    return {f"validation_{name}": metrics.score(name, truth, said) for name in metrics.OF_CLASSES}


@torch.inference_mode()
def mean_loss(
    network: nn.Module,
    batches: Batches,
    objective: Criterion,
    device: torch.device,
    cut: int = 0,
    precision: str = "float32",
) -> float:
    """The mean over samples of their batch's mean loss, in eval mode."""
    network.to(device).eval()
    objective.to(device)
    total, count = 0.0, len(batches.targets)
    for indices in in_turn(count, batches.batch_size):
        inputs, targets = batches.batch(indices)
        inputs, targets = to_device(inputs, device), to_device(targets, device)
        inputs = objective.forced(inputs, targets)
        with autocast(device, precision)():
            outputs = network(inputs, cut) if cut else network(inputs)
        total += objective.share(in_full(outputs), targets, targets).item() * len(indices)
    return total / count


def _below(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{kind}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{kind}/")
    }
