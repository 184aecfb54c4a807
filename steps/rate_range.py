"""rate_range: let the learning rate grow from step to step, watch the loss, and propose a rate.

The range test of Smith, Cyclical Learning Rates for Training Neural Networks, 2017, section 3.3, with the
rate growing exponentially. It reads the train split alone and writes a curve and a table for the user; no
other step reads them.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from steps import artifacts, data, entry, freezing, params, trainable
from steps.arms import Arm
from steps.data import Batches, to_device
from steps.errors import TrainingError, UserError
from steps.network import Inputs, Network, Probe
from steps.params import TrainSettings
from steps.report import plots
from steps.settings import as_yaml
from steps.tasks import Criterion

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 100
# Decay of the moving average that says whether to go on, and of the average to both sides that is read: both
# are over about 18 steps, one decade of rates.
RUNNING, CENTRED = 0.9, 0.8
DIVERGED = 4.0
# Fewer points make no curve; a smaller fall, as a share of the loss, may be chance.
LEAST_POINTS, LEAST_FALL = 10, 0.02


@dataclass(frozen=True)
class Curve:
    """What a range test saw, a value for each step.

    Attributes:
        rates: of the head.
        losses: of the batch, before the step.
        smoothed: their average over the steps around; not finite where the loss is not.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]


@dataclass(frozen=True)
class Proposal:
    """What a curve says.

    Attributes:
        rate: the one proposed: the middle of the slope.
        steepest: where the loss falls fastest.
        onset: where it begins to fall.
        lowest: where it is lowest.
    """

    rate: float
    steepest: float
    onset: float
    lowest: float


def rate_range(experiment: str, arm: str) -> None:
    """Propose learning rates for an arm of params.yaml; write `work/<experiment>/lr/<arm>.png` and `.csv`.

    Raises:
        UserError: there is no such arm, it has no use for a rate, or its data or weights are not there yet.
        TrainingError: no rate makes the loss fall.
    """
    checked = params.load(artifacts.PARAMS_FILE)
    chosen, about = checked.chosen(experiment, arm), checked.experiments[experiment]
    if chosen.solver == "lbfgs":
        raise UserError(
            f"arm {arm} has no learning rate to look for: its `solver: lbfgs` finds its own steps"
        )
    settings = TrainSettings(
        task=about.task, model=about.model, training=about.training, arm=chosen, machine=about.machine
    )
    curve = watch(trainable.load(experiment, arm, settings), about.training.seeds[0])
    found = propose(curve.rates, curve.smoothed)
    picture = artifacts.rate_range_dir(experiment) / f"{arm}.png"
    write(curve, found, f"{experiment}, arm {arm}", picture)
    for line in advice(experiment, arm, chosen, found):
        entry.say(line)
    entry.say(f"The curve is in {picture}, its figures in {picture.with_suffix('.csv')}.")


def watch(job: trainable.Job, seed: int) -> Curve:
    """Run the test on the network that a training with this seed would start with.

    Raises:
        UserError: the arm's head learns from features that are not stored yet.
    """
    stored = artifacts.features_dir(job.experiment) / data.FEATURES
    if (job.on_features or job.arm.head_first) and not stored.exists():
        raise UserError(
            f"{stored} is missing; it is made by `embed`: run `dvc repro embed@{job.experiment}` or "
            f"`headstart run {job.experiment}`"
        )
    model = trainable.build(job, seed)
    if job.arm.tune == "gradual":
        # The rates are those of all layers that will train.
        assert isinstance(model, Network)
        for name in freezing.thaw_epochs(model, job.arm, job.settings.training.epochs):
            freezing.thaw(model, name)
    # Nothing is stored for so few steps: frozen layers simply run.
    batches = job.batches("train", trainable.inputs(job, model, 0, "train"))
    view_of = trainable.view_of(job, seed)
    with entry.Progress(f"learning rates of {job.experiment}/{job.arm_name}", STEPS) as progress:
        return range_test(
            model,
            batches,
            freezing.parameter_groups(model, job.arm),
            job.recipe.objective,
            device=job.device,
            seed=seed,
            clip_norm=job.settings.training.clip_norm,
            view_of=view_of,
            progress=progress.reached,
        )


def range_test(
    model: Network | Probe,
    batches: Batches,
    groups: list[dict[str, Any]],
    objective: Criterion,
    *,
    start: int = 0,
    device: torch.device,
    seed: int,
    clip_norm: float = math.inf,
    view_of: Callable[[int], int | None] = lambda epoch: None,
    progress: Callable[[int], None] = lambda done: None,
) -> Curve:
    """Train for up to `STEPS` steps, each at a higher rate; the model is of no use afterwards.

    The test ends early when the moving average of the loss is not finite, or `DIVERGED` times its lowest.

    Args:
        model: as a training starts with it, frozen.
        batches: the train split.
        groups: as `freezing.parameter_groups` makes them, the head's first: its rate is what grows, and the
            others keep their ratio to it.
        objective: the arm's loss.
        start: the cut that the inputs are at.
        device: where to compute.
        seed: of the order and of dropout.
        clip_norm: as in the training.
        view_of: the augmented view of an epoch.
        progress: told of the steps done.
    """
    model.to(device)
    objective.to(device)
    ratios = [group["lr"] / groups[0]["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups)
    torch.manual_seed(seed)
    rates, losses, running = np.geomspace(LOWEST, HIGHEST, STEPS).tolist(), list[float](), list[float]()
    freezing.train_mode(model)
    for rate, (inputs, targets) in zip(rates, _endless(batches, seed, view_of), strict=False):
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = rate * ratio
        inputs, targets = to_device(inputs, device), to_device(targets, device)
        losses.append(_step(model, optimizer, objective, inputs, targets, start, clip_norm))
        running.append(_running(losses))
        if not math.isfinite(running[-1]) or running[-1] > DIVERGED * min(running):
            break
        progress(len(losses))
    return Curve(rates[: len(losses)], losses, smooth(losses))


def _endless(
    batches: Batches, seed: int, view_of: Callable[[int], int | None]
) -> Iterator[tuple[Inputs, Any]]:
    """Epoch after epoch."""
    order, epoch = torch.Generator().manual_seed(seed), 0
    while True:
        epoch += 1
        for indices in batches.order(order):
            yield batches.batch(indices, view_of(epoch))


def _step(
    model: Network | Probe,
    optimizer: torch.optim.Optimizer,
    objective: Criterion,
    inputs: Inputs,
    targets: Any,  # noqa: ANN401 - the task's affair
    start: int,
    clip_norm: float,
) -> float:
    """One step of the optimizer; gives the loss before it."""
    optimizer.zero_grad()
    inputs, targets = objective.mixed(inputs, targets)
    outputs = model(objective.forced(inputs, targets), start)
    loss = objective.share(outputs, targets, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(trained, clip_norm)
    optimizer.step()
    return loss.item()


def _running(losses: list[float]) -> float:
    """The newest value of the moving average, without its bias towards zero (as in Adam)."""
    return float(np.average(losses, weights=RUNNING ** np.arange(len(losses) - 1, -1, -1)))


def smooth(losses: list[float]) -> list[float]:
    """The average over the steps before and after, whose weights fall with the distance.

    A moving average lags behind, by half a decade of rates here; this one does not. What is beyond twice the
    first losses counts as that much, or the end of the test would hide what was before.
    """
    values = np.asarray(losses, dtype=np.float64)
    finite = np.isfinite(values)
    known = values[finite]
    capped = np.minimum(known, 2 * np.median(known[:LEAST_POINTS])) if len(known) else known
    places = np.arange(len(known))
    weights = CENTRED ** np.abs(places[:, None] - places)
    values[finite] = weights @ capped / weights.sum(axis=1)
    return values.tolist()  # type: ignore[no-any-return]


def propose(rates: list[float], losses: list[float]) -> Proposal:
    """Read a rate off the curve of a range test.

    Two readings are in use. The steepest point is where the loss falls fastest; it depends on the slope at
    one place, so that chance moves it by a factor of several between seeds. The valley rule takes the whole
    slope, here from a tenth of the fall to nine tenths, and its middle on the logarithmic axis; it depends on
    two places that are easy to see, and stays well below the rates at which the loss rises again. (Where the
    loss is lowest would be no good end of the slope: the valley's floor may be long and flat.) So the middle
    of the slope is what is proposed.

    Args:
        rates: rising, equally far apart on a logarithmic axis.
        losses: smoothed, one for each rate; the last may be not finite.

    Raises:
        TrainingError: too few points, or no fall that could not be chance.
    """
    values: NDArray[np.float64] = np.asarray(losses, dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values) < LEAST_POINTS:
        raise TrainingError(
            f"the loss diverged after {len(losses)} steps, at a learning rate of "
            f"{rates[len(losses) - 1]:.2g} already: look for unusual samples"
        )
    logs = np.log10(rates[: len(values)])
    bottom = int(values.argmin())
    # The first values are an average of few batches: their median is the level that the loss falls from.
    level = float(np.median(values[:LEAST_POINTS]))
    fall = level - float(values[bottom])
    if bottom < LEAST_POINTS or fall < LEAST_FALL * abs(level):
        raise TrainingError(
            f"no learning rate from {rates[0]:.2g} to {rates[-1]:.2g} makes the loss fall: "
            "the arm trains too little, or the labels have nothing to do with the samples"
        )
    still_high = np.flatnonzero(values[:bottom] > level - 0.1 * fall)
    onset = int(still_high[-1]) if len(still_high) else 0
    end = onset + int(np.argmax(values[onset:] <= values[bottom] + 0.1 * fall))
    slopes = np.gradient(values, logs)[onset : bottom + 1]
    return Proposal(
        rate=float(10 ** ((logs[onset] + logs[end]) / 2)),
        steepest=float(rates[onset + int(slopes.argmin())]),
        onset=float(rates[onset]),
        lowest=float(rates[bottom]),
    )


def advice(experiment: str, arm: str, settings: Arm, found: Proposal) -> list[str]:
    """The proposal in words, and as it is written in params.yaml."""
    assert settings.learning_rate is not None
    assert settings.backbone_learning_rate is not None
    rates = {"learning_rate": found.rate}
    if settings.start == "pretrained" and settings.tune != "head":
        ratio = settings.backbone_learning_rate / settings.learning_rate
        rates["backbone_learning_rate"] = found.rate * ratio
    shown = {name: float(f"{rate:.2g}") for name, rate in rates.items()}
    return [
        f"The loss falls from {found.onset:.2g} on, fastest at {found.steepest:.2g}, and is lowest at "
        f"{found.lowest:.2g}; now the rate is {settings.learning_rate:.2g}.",
        "Proposed, the middle of the slope; in params.yaml:",
        "experiments:",
        f"  {experiment}:",
        "    arms:",
        f"      {arm}: {as_yaml(shown)}",
    ]


# --------------------------------------------------------------------------------------------- the files


def write(curve: Curve, found: Proposal, title: str, picture: Path) -> None:
    """Write the picture, and beside it the table."""
    dress = plots.DRESSES["light"]
    content = plots.png(lambda: draw(curve, found, title, dress), dress)
    with artifacts.new_file(picture) as partial:
        partial.write_bytes(content)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["step", "learning_rate", "loss", "smoothed"])
    writer.writerows(
        [step, *values]
        for step, values in enumerate(zip(curve.rates, curve.losses, curve.smoothed, strict=True), 1)
    )
    with artifacts.new_file(picture.with_suffix(".csv")) as partial:
        partial.write_text(table.getvalue(), "utf-8")


def draw(curve: Curve, found: Proposal, title: str, dress: plots.Dress) -> Figure:
    """The loss over the rate, and the rates that were read off it."""
    figure = Figure(figsize=(6.4, 3.8), dpi=plots.DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(curve.rates, curve.losses, ".", color=dress.reference, markersize=3, alpha=0.7, label="batch")
    axes.plot(curve.rates, curve.smoothed, color=dress.arms[0], linewidth=2, label="smoothed")
    axes.axvline(found.rate, color=dress.arms[1], linewidth=1.4, label=f"proposed, {found.rate:.2g}")
    axes.axvline(
        found.steepest, color=dress.ink, linewidth=1, linestyle=(0, (4, 3)),
        label=f"steepest, {found.steepest:.2g}",
    )  # fmt: skip
    axes.set_xscale("log")
    finite = [value for value in curve.smoothed if math.isfinite(value)]
    # Where it diverges, the loss would dwarf all else.
    axes.set_ylim(0, 1.5 * max(finite[:LEAST_POINTS]))
    axes.set_xlabel("learning rate of the head")
    axes.set_ylabel("training loss")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def main() -> int:
    """Run `python -m steps.rate_range <experiment> <arm>`."""
    return entry.run(rate_range, "experiment", "arm")


if __name__ == "__main__":
    sys.exit(main())
