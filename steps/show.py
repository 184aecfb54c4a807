"""show: print what an arm of params.yaml stands for and what it does with every layer; it changes nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from steps import artifacts, data, entry, freezing, network, params, tasks
from steps.arms import Arm, Choices
from steps.errors import UserError
from steps.kinds import KINDS
from steps.network import Layer, Network, Probe, Width
from steps.params import Experiment
from steps.scans import Rule
from steps.settings import as_yaml

# A pipe has no width: lines must not be folded at 80.
PIPE_WIDTH = 200


@dataclass(frozen=True)
class Row:
    """What an arm does with one layer.

    Attributes:
        parameters: how many numbers it has.
        trained: how many of them ever train.
        starts: "pretrained" or "random".
        from_epoch: the first epoch in which it trains, from 1; None when it never does.
        rate: the highest learning rate it gets, before warm-up and cosine; None when it never trains.
        decay: weight decay of its matrices; None when none of them trains.
    """

    name: str
    parameters: int
    trained: int
    starts: str
    from_epoch: int | None
    rate: float | None
    decay: float | None


def show(experiment: str, arm: str) -> None:
    """Print the arm, expanded, and a table of the backbone's layers and the head.

    Raises:
        UserError: there is no such arm, it does not fit the backbone, or the backbone is not fetched yet.
    """
    checked = params.load(artifacts.PARAMS_FILE)
    chosen, settings = checked.chosen(experiment, arm), checked.experiments[experiment]
    classes = known_classes(experiment, settings)
    built = build(experiment, chosen, settings, classes or ["first", "second"])
    if isinstance(built, Probe):
        rows = rows_of_probe(built, chosen, settings)
    else:
        rows = rows_of(built, chosen, settings.training.epochs)
    entry.say(f"{experiment}, arm {arm}")
    for line in expansion(chosen):
        entry.say(f"  {line}")
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH, force_terminal=False)
    console.print(table(rows, chosen), highlight=False)
    for line in notes(chosen, settings, rows, classes):
        entry.say(line)


def expansion(arm: Arm) -> list[str]:
    """Lines of YAML: what differs from the defaults, and the rates that are in use."""
    default = Choices()
    said = {name: getattr(arm, name) for name in Choices.model_fields}
    differs = {name: value for name, value in said.items() if value != getattr(default, name)}
    if arm.start == "random" or arm.tune == "head":
        differs.pop("backbone_learning_rate")  # filled in, and in no use
    if arm.solver == "lbfgs":
        differs.pop("learning_rate")
    return [f"{name}: {as_yaml(value)}" for name, value in differs.items()]


def known_classes(experiment: str, settings: Experiment) -> list[str] | None:
    """The classes, as far as they are known before the data are split."""
    if artifacts.split_file(experiment).exists():
        return tasks.get(settings.task).classes(data.read_split(experiment))
    labels = settings.validation.labels
    return None if labels is None else list(labels)


def build(experiment: str, arm: Arm, settings: Experiment, classes: list[str]) -> Network | Probe:
    """The network as a training of this arm starts with it, but for the values of its weights.

    Of a SavedModel the head alone: torch has no more of it.
    """
    slug = settings.model.pretrained
    folder: Path = artifacts.pretrained_dir(slug)
    if not (folder / "architecture.json").exists():
        raise UserError(
            f"the backbone {slug} is not fetched yet: run `dvc repro fetch@{slug}` or "
            f"`headstart run {experiment}`"
        )
    task = tasks.get(settings.task)
    if artifacts.saved_model(folder) is not None:
        told = artifacts.read_json(folder / "architecture.json", "python -m steps.fetch")
        width: Any = Width(told["features"])
        return Probe(task.head(width, classes, settings.model, arm))
    # Shapes and names tell all there is to show; nobody waits for the weights.
    gives = KINDS[settings.task].gives
    channels = Rule.of(settings.model).channels
    backbone = network.build_backbone(
        folder, pretrained=False, drop_path=arm.drop_path, gives=gives, channels=channels
    )
    built = Network(backbone, task.head(backbone, classes, settings.model, arm))
    freezing.freeze(built, arm)
    return built


def rows_of(built: Network, arm: Arm, epochs: int) -> list[Row]:
    """A row for each layer, bottom to top, the head last.

    Raises:
        UserError: more layers are drawn anew than there are.
    """
    layers = built.backbone.layers
    if arm.reinit_top > len(layers):
        raise UserError(f"reinit_top: {arm.reinit_top} is more than the {len(layers)} layers of the backbone")
    thawed = freezing.thaw_epochs(built, arm, epochs) if arm.tune == "gradual" else {}
    for name in thawed:
        freezing.thaw(built, name)
    rates = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in freezing.parameter_groups(built, arm)
        for parameter in group["params"]
    }
    kept = 0 if arm.start == "random" else len(layers) - arm.reinit_top
    starts = ["pretrained" if place < kept else "random" for place in range(len(layers) + 1)]
    return [
        row(layer, start, thawed.get(layer.name, 1), rates)
        for layer, start in zip(built.layers(), starts, strict=True)
    ]


def rows_of_probe(built: Probe, arm: Arm, settings: Experiment) -> list[Row]:
    """A row for the SavedModel as a whole, and one for the head."""
    folder = artifacts.pretrained_dir(settings.model.pretrained)
    told = artifacts.read_json(folder / "provenance.json", "python -m steps.fetch")
    rates = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in freezing.parameter_groups(built, arm)
        for parameter in group["params"]
    }
    (head,) = built.layers()
    below = Row("SavedModel", told["parameters"], 0, "pretrained", None, None, None)
    return [below, row(head, "random", 1, rates)]


def row(layer: Layer, starts: str, epoch: int, rates: dict[int, tuple[float, float]]) -> Row:
    """What the groups of an optimizer do with a layer.

    Args:
        layer: one of the network's.
        starts: as in the row.
        epoch: from which on it trains, if it does.
        rates: learning rate and weight decay, by id of the parameter.
    """
    parameters = layer.parameters()
    trained = [parameter for parameter in parameters if id(parameter) in rates]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    return Row(
        layer.name,
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() for parameter in trained),
        starts,
        epoch if trained else None,
        max((rates[id(parameter)][0] for parameter in trained), default=None),
        max((rates[id(parameter)][1] for parameter in matrices), default=None),
    )


def table(rows: list[Row], arm: Arm) -> Table:
    """The rows as they are shown, with a last line of totals."""
    shown = Table(box=None, pad_edge=False, show_footer=True, header_style="bold", footer_style="bold")
    parameters, trained = sum(row.parameters for row in rows), sum(row.trained for row in rows)
    shown.add_column("layer", "total")
    shown.add_column("parameters", f"{parameters:,}", justify="right")
    shown.add_column("starts", "")
    shown.add_column("trains", f"{trained:,} of {parameters:,} ({share(trained, parameters)})")
    shown.add_column("learning rate", "", justify="right")
    shown.add_column("weight decay", "", justify="right")
    for row in rows:
        solved = arm.solver == "lbfgs" and row.rate is not None
        rate = "solved for" if solved else number(row.rate)
        cells = (row.name, f"{row.parameters:,}", row.starts, trains(row), rate, number(row.decay))
        shown.add_row(*cells, style="dim" if row.trained == 0 else "")
    return shown


def trains(row: Row) -> str:
    """Whether a layer trains, how much of it, and from when on."""
    if row.from_epoch is None:
        return "frozen"
    much = "yes" if row.trained == row.parameters else f"{row.trained:,} of {row.parameters:,}"
    return much if row.from_epoch == 1 else f"{much}, from epoch {row.from_epoch}"


def number(value: float | None) -> str:
    """A rate with three figures, as YAML has it; a dash where there is none."""
    return "-" if value is None else as_yaml(float(f"{value:.3g}"))


def share(part: int, whole: int) -> str:
    """Per cent, with a figure even where it is very little."""
    return f"{100 * part / whole:.3g} %"


def notes(arm: Arm, settings: Experiment, rows: list[Row], classes: list[str] | None) -> list[str]:
    """What the table does not say."""
    lines = []
    if classes is None:
        lines.append("The classes are not known before the data are split: the head is shown with two.")
    if arm.head_first:
        lines.append("The head is fitted first, on features of the backbone as it starts; then all as above.")
    if arm.tune == "gradual":
        bottom = freezing.bottom_layers(arm, len(rows) - 1)
        late = [row.name for row in rows[bottom:] if row.from_epoch is None]
        if late:
            lines.append(f"Not reached in {settings.training.epochs} epochs: {', '.join(late)}.")
    if arm.solver == "adamw":
        lines.append("Each rate is a peak: the warm-up climbs to it, then it falls to zero along a cosine.")
    return lines


def main() -> int:
    """Run `python -m steps.show <experiment> <arm>`."""
    return entry.run(show, "experiment", "arm")


if __name__ == "__main__":
    sys.exit(main())
