"""Plots as PNG, each in a light and a dark dress. The same numbers give the same bytes."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

# Comes with matplotlib, so the bytes do not depend on the fonts of the machine.
FONT = "DejaVu Sans"
DPI = 200
LABEL_LENGTH = 16
LEGEND_WIDTH = 80  # characters
# Beyond these many classes there is no room for figures in the cells, or for labels.
CLASSES_WITH_FIGURES, CLASSES_WITH_LABELS = 16, 40


@dataclass(frozen=True)
class Dress:
    """Colours of a plot: paper, ink, faint lines, the reference, the other arms in turn, and heat."""

    paper: str
    ink: str
    faint: str
    reference: str
    arms: tuple[str, ...]
    heat: str


# Hues that the colour-blind can tell apart (Okabe and Ito), darker on light paper and lighter on dark.
DRESSES = {
    "light": Dress(
        "#ffffff", "#1f2430", "#dfe3ea", "#6b7280",
        ("#0b66b8", "#c2570c", "#0f8a63", "#a8407f", "#8a6d00", "#4b4fb8"), "#0b66b8",
    ),
    "dark": Dress(
        "#171b24", "#e6e9f0", "#333a49", "#9aa3b5",
        ("#5cb3ff", "#f59e5b", "#3ecf9b", "#e58bc2", "#e0c24a", "#a3a7ff"), "#5cb3ff",
    ),
}  # fmt: skip


def draw(
    comparison: Mapping[str, Any],
    curves: Mapping[str, Sequence[Sequence[float]]],
    counts: NDArray[np.float64],
) -> dict[str, dict[str, bytes]]:
    """Both plots in both dresses.

    Args:
        comparison: as in comparison.json.
        curves: by arm, for each seed the metric on validation after each epoch.
        counts: confusion of the best arm, shape (classes, classes), rows the truth.

    Returns:
        PNG bytes by dress and name, e.g. `["light"]["learning_curves"]`.
    """
    return {
        name: {
            "learning_curves": png(lambda: learning_curves(comparison, curves, dress), dress),  # noqa: B023
            "confusion": png(lambda: confusion(counts, comparison["classes"], dress), dress),  # noqa: B023
        }
        for name, dress in DRESSES.items()
    }


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
    scale = 1 if metric == "log_loss" else 100
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
    unit = "" if metric == "log_loss" else ", %"
    axes.set_ylabel(f"validation {metrics.SHOWN[metric]}{unit}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(left=1 if max(map(_longest, curves.values())) > 1 else 0.5)
    figure.legend(loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    return figure


def colours_of(comparison: Mapping[str, Any], arms: list[str], dress: Dress) -> dict[str, str]:
    """Colour of the arms that get one: all when they are few, else those that matter most.

    The order is that of drawing: the judged arm last, on top.
    """
    reference, judged = comparison["reference"], comparison["verdict"]["arm"]
    rest = [arm for arm in arms if arm not in (reference, judged)]
    by_validation = sorted(
        (one for one in comparison["arms"] if one["arm"] in rest),
        key=lambda one: one["validation"]["mean"],
        reverse=comparison["metric"]["higher_is_better"],
    )
    kept = {one["arm"] for one in by_validation[: len(dress.arms) - 1]}
    rest = [arm for arm in rest if arm in kept]
    colours = {reference: dress.reference} | dict(zip(rest, dress.arms[1:], strict=False))
    return colours | ({judged: dress.arms[0]} if judged else {})


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
