"""Plots as PNG, for DVC and MLflow. The same numbers give the same bytes."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from steps import metrics
from steps.report import palette, wording
from steps.report.palette import DRESSES as DRESSES
from steps.report.palette import Dress as Dress

# Comes with matplotlib, so the bytes do not depend on the fonts of the machine.
FONT = "DejaVu Sans"
DPI = 200
LABEL_LENGTH = 16
LEGEND_WIDTH = 80  # characters
# Beyond these many classes there is no room for figures in the cells, or for labels.
CLASSES_WITH_FIGURES, CLASSES_WITH_LABELS = 16, 40


def draw(
    comparison: Mapping[str, Any],
    curves: Mapping[str, Sequence[Sequence[float]]],
    counts: NDArray[np.float64] | None,
) -> dict[str, bytes]:
    """All plots, on light paper.

    Args:
        comparison: as in comparison.json.
        curves: by arm, for each run the metric on validation after each epoch.
        counts: confusion of the best arm, shape (classes, classes), rows the truth; None without classes.

    Returns:
        PNG bytes by name: `learning_curves`, `confusion` of a classifier, `differences` with more than one
        arm, and `efficiency` where there is a curve over labels.
    """
    dress = DRESSES["light"]
    drawn = {"learning_curves": png(lambda: learning_curves(comparison, curves, dress), dress)}
    if counts is not None:
        drawn["confusion"] = png(lambda: confusion(counts, comparison["classes"], dress), dress)
    if any(arm["improvement"] for arm in comparison["arms"]):
        drawn["differences"] = png(lambda: differences(comparison, dress), dress)
    if comparison["efficiency"]:
        drawn["efficiency"] = png(lambda: efficiency(comparison, dress), dress)
    return drawn


def png(figure: Any, dress: Dress) -> bytes:  # noqa: ANN401 - a callable that draws
    """The figure as a PNG file.

    Args:
        figure: draws it.
        dress: its colours.
    """
    # A matplotlibrc of the user's must not change the picture.
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "font.family": FONT, "font.size": 10, "text.color": dress.ink, "axes.labelcolor": dress.ink,
                "axes.edgecolor": dress.faint, "xtick.color": dress.ink, "ytick.color": dress.ink,
                "figure.facecolor": dress.paper, "axes.facecolor": dress.paper, "axes.grid": True,
                "grid.color": dress.faint, "grid.linewidth": 0.7, "axes.axisbelow": True,
                "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
                "xtick.major.size": 0, "ytick.major.size": 0,
            }
        )  # fmt: skip
        stream = io.BytesIO()
        FigureCanvasAgg(figure()).print_png(stream, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return stream.getvalue()


# ------------------------------------------------------------------------------------ learning curves


def learning_curves(
    comparison: Mapping[str, Any], curves: Mapping[str, Sequence[Sequence[float]]], dress: Dress
) -> Figure:
    """Validation over epochs: the arms' means over seeds with their range, and the target."""
    metric = comparison["metric"]["name"]
    scale = 100 if metrics.METRICS[metric].percent else 1
    colours = colours_of(comparison, list(curves), dress)
    columns = min(4, max(1, LEGEND_WIDTH // (max(map(len, colours)) + 7)))
    height = 3.6 + 0.18 * (len(colours) + 2) / columns
    figure = Figure(figsize=(6.4, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    others = [arm for arm in curves if arm not in colours]
    for arm in others:
        axes.plot(*_mean(curves[arm], scale), color=dress.faint, linewidth=1.2)
    for arm, colour in colours.items():
        _curve(axes, curves[arm], scale, colour, arm)
    if others:
        axes.plot([], [], color=dress.faint, label=f"{len(others)} other arms")
    target = comparison["target"] * scale
    axes.axhline(target, color=dress.ink, linewidth=1, linestyle=(0, (4, 3)), label="target")
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {metrics.SHOWN[metric]}{_unit(metric)}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(left=1 if max(map(_longest, curves.values())) > 1 else 0.5)
    figure.legend(loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    return figure


def colours_of(comparison: Mapping[str, Any], arms: list[str], dress: Dress) -> dict[str, str]:
    """Colour of the arms that get one, in the order of drawing, as `palette.tones` gives them."""
    tones = palette.tones(comparison, arms)
    return {
        arm: dress.reference if tone == palette.REFERENCE else dress.arms[int(tone)]
        for arm, tone in tones.items()
    }


def _longest(seeds: Sequence[Sequence[float]]) -> int:
    return max(len(values) for values in seeds)


def _mean(seeds: Sequence[Sequence[float]], scale: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Epochs that all seeds ran, and the mean over seeds after each."""
    common = min(len(values) for values in seeds)
    return np.arange(1, common + 1), scale * np.mean([values[:common] for values in seeds], axis=0)


def _curve(axes: Axes, seeds: Sequence[Sequence[float]], scale: float, colour: str, label: str) -> None:
    epochs, mean = _mean(seeds, scale)
    table = scale * np.array([values[: len(epochs)] for values in seeds])
    marker = "o" if len(epochs) == 1 else None
    axes.plot(epochs, mean, color=colour, linewidth=2, label=label, marker=marker)
    axes.fill_between(epochs, table.min(axis=0), table.max(axis=0), color=colour, alpha=0.16, linewidth=0)
    for values in seeds:
        # Where some seeds have stopped, the others go on alone.
        tail = np.arange(len(epochs), len(values) + 1)
        axes.plot(tail, scale * np.asarray(values)[len(epochs) - 1 :], color=colour, linewidth=0.8, alpha=0.7)


# ------------------------------------------------------------------------- differences, data efficiency


def differences(comparison: Mapping[str, Any], dress: Dress) -> Figure:
    """Each arm's difference to the reference with its interval, and the band of those that do not matter."""
    metric = comparison["metric"]["name"]
    scale = 100 if metrics.METRICS[metric].percent else 1
    arms = [arm for arm in comparison["arms"] if arm["improvement"]]
    figure = Figure(figsize=(6.4, 1.3 + 0.34 * len(arms)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    margin = scale * comparison["margin"]
    axes.axvspan(-margin, margin, color=dress.faint, alpha=0.7, linewidth=0)
    axes.axvline(0, color=dress.reference, linewidth=1)
    for row, arm in enumerate(arms):
        gain = arm["improvement"]
        colour = dress.arms[0] if arm["arm"] == comparison["best_arm"] else dress.reference
        axes.plot([scale * gain["ci_low"], scale * gain["ci_high"]], [row, row], color=colour, linewidth=2)
        axes.plot(scale * gain["value"], row, "o", color=colour, markersize=6)
    axes.set_yticks(range(len(arms)), [drawable(arm["arm"], at) for at, arm in enumerate(arms)])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"better than {comparison['reference']} by, {metrics.SHOWN[metric]}{_unit(metric)}")
    return figure


def efficiency(comparison: Mapping[str, Any], dress: Dress) -> Figure:
    """The metric over the number of labels, with intervals."""
    metric, found = comparison["metric"]["name"], comparison["efficiency"]
    scale = 100 if metrics.METRICS[metric].percent else 1
    colours = colours_of(comparison, [one["arm"] for one in found["arms"]], dress)
    figure = Figure(figsize=(6.4, 3.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for one in found["arms"]:
        labels = [point["labels"] for point in one["points"]]
        mean, low, high = (
            scale * np.array([point[key] for point in one["points"]]) for key in ("mean", "ci_low", "ci_high")
        )
        colour = colours.get(one["arm"], dress.faint)
        axes.plot(labels, mean, "o-", color=colour, linewidth=2, markersize=4, label=one["arm"])
        axes.vlines(labels, low, high, color=colour, linewidth=1.2)
    axes.set_xscale("log")
    axes.set_xticks(found["labels"], [f"{labels:,}" for labels in found["labels"]])
    axes.minorticks_off()
    axes.set_xlabel(wording.training(comparison["task"]))
    axes.set_ylabel(f"{metrics.SHOWN[metric]}{_unit(metric)}")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def _unit(metric: str) -> str:
    about = metrics.METRICS[metric]
    return ", %" if about.percent else f",{about.unit}" if about.unit else ""


# ----------------------------------------------------------------------------------------- confusion


def confusion(counts: NDArray[np.float64], labels: Sequence[str], dress: Dress) -> Figure:
    """How the items of each class were named, in per cent of the class; rows are the truth."""
    classes = len(labels)
    sums = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0)
    side = float(np.clip(2.4 + 0.34 * classes, 4.2, 8.0))
    figure = Figure(figsize=(side, side), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    heat = LinearSegmentedColormap.from_list("heat", [dress.paper, dress.heat])
    # Even a few per cent must show against an empty cell.
    axes.imshow(share, cmap=heat, norm=PowerNorm(0.6, 0, 1), interpolation="nearest")
    axes.grid(visible=False)
    axes.set_xlabel("predicted", fontsize=1.9 * side)
    axes.set_ylabel("true", fontsize=1.9 * side)
    _ticks(axes, labels)
    if classes <= CLASSES_WITH_FIGURES:
        _write_figures(axes, share, dress)
    return figure


def _ticks(axes: Axes, labels: Sequence[str]) -> None:
    if len(labels) > CLASSES_WITH_LABELS:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    places = range(len(labels))
    shown = [drawable(label, at) for at, label in enumerate(labels)]
    size = 9 if len(labels) <= CLASSES_WITH_FIGURES else 7
    upright = max(len(one) for one in shown) > 3 or len(labels) > CLASSES_WITH_FIGURES
    # A dollar sign in a label is not mathematics.
    axes.set_xticks(places, shown, fontsize=size, rotation=90 if upright else 0, parse_math=False)
    axes.set_yticks(places, shown, fontsize=size, parse_math=False)


def _write_figures(axes: Axes, share: NDArray[np.float64], dress: Dress) -> None:
    for row, column in zip(*np.nonzero(share >= 0.005), strict=True):
        value = float(share[row, column])
        axes.text(
            column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8.5,
            color=dress.paper if value > 0.4 else dress.ink,
        )  # fmt: skip


def drawable(label: str, index: int) -> str:
    """A label short enough, and in signs the font has; else its number, which the report's table gives."""
    text = "".join(" " if unicodedata.category(sign).startswith(("C", "Z")) else sign for sign in label)
    text = " ".join(text.split())
    if not text or any(ord(sign) not in _signs() for sign in text):
        return f"#{index + 1}"
    return text if len(text) <= LABEL_LENGTH else text[: LABEL_LENGTH - 1] + "…"


@cache
def _signs() -> frozenset[int]:
    found = font_manager.findfont(FONT)
    return frozenset(font_manager.get_font(found).get_charmap())
