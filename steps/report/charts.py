"""The charts of the report as inline SVG. The numbers of each stand in a table beside it as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from steps import metrics
from steps.report import palette, svg, wording
from steps.report.sheet import MapPoint
from steps.report.svg import Frame, Scale, element, percent

# Points of a line beyond these are closer than pixels; boxes beyond these too narrow to be met by a mouse.
LINE_POINTS, HOVERS = 240, 60
# Beyond these many classes a matrix has no room for figures, or for names.
FIGURES, NAMED = 20, 24
CLASS_COLOURS = 12
FOCUSED = 40


# ---------------------------------------------------------------------------------- intervals in a row


@dataclass(frozen=True)
class Strip:
    """One scale shared by the rows of a table.

    Attributes:
        scale: of the values.
        marks: values and labels of the axis.
        line: a value to mark with a line through all rows.
        band: a range to shade through all rows.
    """

    scale: Scale
    marks: list[tuple[float, str]]
    line: float | None = None
    band: tuple[float, float] | None = None

    @property
    def style(self) -> str:
        """The line and the band as CSS variables, for the table."""
        places: dict[str, float] = {}
        if self.line is not None:
            places["--z"] = self.scale(self.line)
        if self.band is not None:
            places["--b0"], places["--b1"] = map(self.scale, self.band)
        return ";".join(f"{key}:{percent(value)}" for key, value in places.items())

    def draw(self, low: float, value: float, high: float, kind: str = "") -> Markup:
        """An interval with its value; the numbers stand beside it, so readers of screens pass it over."""
        ends = {"x1": percent(self.scale(low)), "x2": percent(self.scale(high))}
        return element(
            "svg",
            element("line", class_="range", y1="50%", y2="50%", **ends),
            element("circle", class_="dot", cx=percent(self.scale(value)), cy="50%", r=4.5),
            class_=f"strip {kind}".strip(),
            aria_hidden="true",
        )

    def axis(self) -> Markup:
        """Labels of the scale."""
        return element(
            "svg",
            *(
                svg.text(label, percent(self.scale(value)), "14", "tick", "middle")
                for value, label in self.marks
            ),
            class_="strip axis",
            aria_hidden="true",
        )


def differences(metric: str, intervals: Sequence[Mapping[str, float]], margin: float) -> Strip:
    """The scale of differences to the reference, with the band of those that do not matter."""
    ends = [0.0, -1.6 * margin, 1.6 * margin]
    low, high = svg.around([*ends, *(one[key] for one in intervals for key in ("ci_low", "ci_high"))], 0.08)
    marks = [
        (at, wording.signed(at, metric) if at else "0")
        for at in svg.ticks(low, high, 5)
        if _inside(at, low, high)
    ]
    return Strip(Scale(low, high), marks, line=0.0, band=(-margin, margin))


def values(metric: str, intervals: Sequence[Mapping[str, float]], line: float | None = None) -> Strip:
    """The scale of values with their intervals."""
    low, high = svg.around((one[key] for one in intervals for key in ("ci_low", "ci_high")), 0.05)
    marks = [(at, _tick(metric, at)) for at in svg.ticks(low, high, 6) if _inside(at, low, high)]
    return Strip(Scale(low, high), marks, line=line)


def _inside(value: float, low: float, high: float) -> bool:
    """Whether a label in the middle of its mark stays within the scale."""
    return 0.04 <= (value - low) / (high - low) <= 0.96


def _tick(metric: str, value: float) -> str:
    if not metrics.METRICS[metric].percent:
        return f"{value:g}".replace("-", "−")
    return f"{100 * value:.6g}".replace("-", "−")


# ------------------------------------------------------------------------------------- learning curves


def learning(comparison: Mapping[str, Any], curves: Mapping[str, Sequence[Sequence[float]]]) -> Markup:
    """Validation over epochs: the arms' means over runs with their range, and the target."""
    metric = comparison["metric"]["name"]
    tones = palette.tones(comparison, list(curves))
    longest = max(len(run) for runs in curves.values() for run in runs)
    everything = [value for runs in curves.values() for run in runs for value in run]
    low, high = _limits(metric, [*everything, comparison["target"]])
    x, y = Scale(1 if longest > 1 else 0.5, max(longest, 1.5)), Scale(low, high, up=True)
    others = [_line(x, y, curves[arm], "line other") for arm in curves if arm not in tones]
    series = [_series(x, y, curves[arm], tone) for arm, tone in tones.items()]
    about = _told(comparison, curves, tones)
    return svg.chart(
        Frame("learning", about, 320, active=True),
        svg.y_axis(y, [(at, _tick(metric, at)) for at in svg.ticks(low, high)]),
        svg.x_axis(x, [(at, str(at)) for at in svg.whole_ticks(longest)]),
        svg.stretched(*others, *series, _level(y, comparison["target"], "target")),
        _moments(x, metric, {arm: curves[arm] for arm in tones}, tones),
    )


def _limits(metric: str, found: Sequence[float]) -> tuple[float, float]:
    low, high = svg.around(found, 0.03)
    bounds = metrics.BOUNDS[metric]
    return max(low, bounds[0]), min(high, bounds[1])


def _level(y: Scale, value: float, kind: str) -> Markup:
    return svg.path([(0, y(value)), (100, y(value))], kind)


def common(runs: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """The epochs that all runs have, shape (runs, epochs)."""
    epochs = min(map(len, runs))
    return np.array([run[:epochs] for run in runs], dtype=np.float64)


def _line(x: Scale, y: Scale, runs: Sequence[Sequence[float]], kind: str) -> Markup:
    mean = common(runs).mean(axis=0)
    places = [(x(at + 1), y(float(mean[at]))) for at in svg.thin(len(mean), LINE_POINTS)]
    return svg.path(places, kind)


def _series(x: Scale, y: Scale, runs: Sequence[Sequence[float]], tone: str) -> Markup:
    """The range over runs, the mean, and thin lines where some runs go on alone."""
    table = common(runs)
    at = svg.thin(table.shape[1], LINE_POINTS)
    tops = [(x(one + 1), y(float(table[:, one].max()))) for one in at]
    floors = [(x(one + 1), y(float(table[:, one].min()))) for one in reversed(at)]
    tails = [
        svg.path([(x(one + 1), y(run[one])) for one in range(table.shape[1] - 1, len(run))], "tail")
        for run in runs
        if len(run) > table.shape[1]
    ]
    drawn = [svg.path(tops + floors, "spread", closed=True), *tails, _line(x, y, runs, "line")]
    return element("g", *drawn, class_=f"series s-{tone}")


def _moments(
    x: Scale, metric: str, curves: Mapping[str, Sequence[Sequence[float]]], tones: Mapping[str, str]
) -> Markup:
    """A box for each epoch with the arms' means, shown while the mouse or the focus is there."""
    means = {arm: common(runs).mean(axis=0) for arm, runs in curves.items()}
    longest = max(map(len, means.values()))
    shown = svg.thin(longest, HOVERS)
    wide = 100 / max(len(shown) - 1, 1)
    focused = {shown[at] for at in svg.thin(len(shown), 10)}
    boxes = []
    for epoch in shown:
        lines = [("b", f"epoch {epoch + 1}")]
        present = sorted(
            (arm for arm in means if epoch < len(means[arm])),
            key=lambda arm: float(means[arm][epoch]),
            reverse=metrics.HIGHER_IS_BETTER[metric],
        )
        lines += [
            (
                f"s-{tones[arm]}",
                f"{metrics.figure(metric, float(means[arm][epoch]))}  {wording.label(arm, 16)}",
            )
            for arm in present
        ]
        here = x(epoch + 1)
        left = max(0.0, here - wide / 2)
        reach = element(
            "rect",
            class_="reach",
            x=percent(left),
            width=percent(min(100.0, here + wide / 2) - left),
            height="100%",
        )
        cross = element("line", class_="cross", x1=percent(here), x2=percent(here), y1="0", y2="100%")
        box = element(
            "svg", svg.bubble(here, 0, lines, 160, None), x=percent(here), y="0", width="1", height="1"
        )
        told = "; ".join(line for _, line in lines)
        marks: dict[str, str | int] = (
            {"tabindex": 0, "role": "img", "aria_label": told}
            if epoch in focused
            else {"aria_hidden": "true"}
        )
        boxes.append(element("g", reach, element("g", cross, box, class_="shown"), class_="moment", **marks))
    return svg.join(boxes)


def _told(
    comparison: Mapping[str, Any], curves: Mapping[str, Sequence[Sequence[float]]], tones: Mapping[str, str]
) -> str:
    metric = comparison["metric"]["name"]
    ends = ", ".join(
        f"{wording.short(arm)} from {metrics.figure(metric, first)} to {metrics.figure(metric, last)}"
        for arm in tones
        for mean in (common(curves[arm]).mean(axis=0).tolist(),)
        for first, last in ((mean[0], mean[-1]),)
    )
    return f"Lines of validation {metrics.SHOWN[metric]} over epochs, means over runs: {ends}."


def curve_rows(
    comparison: Mapping[str, Any], curves: Mapping[str, Sequence[Sequence[float]]], most: int = 25
) -> tuple[list[str], list[tuple[int, list[float | None]]]]:
    """The learning curves as a table: the arms, and for some epochs the mean of each."""
    arms = list(palette.tones(comparison, list(curves)))
    means = [common(curves[arm]).mean(axis=0) for arm in arms]
    longest = max(map(len, means))
    rows = [
        (at + 1, [float(mean[at]) if at < len(mean) else None for mean in means])
        for at in svg.thin(longest, most)
    ]
    return arms, rows


# ------------------------------------------------------------------------------------- data efficiency


def efficiency(comparison: Mapping[str, Any]) -> Markup:
    """The metric over the number of labels, on a logarithmic axis, with intervals."""
    found, metric = comparison["efficiency"], comparison["metric"]["name"]
    labels = wording.counted(comparison["task"])
    tones = palette.tones(comparison, [one["arm"] for one in found["arms"]])
    points = [point for one in found["arms"] for point in one["points"]]
    low, high = _limits(metric, [point[key] for point in points for key in ("ci_low", "ci_high")])
    counts = sorted({point["labels"] for point in points})
    x = Scale(counts[0] / 1.12, counts[-1] * 1.12, log=True)
    y = Scale(low, high, up=True)
    told = "; ".join(
        f"{wording.short(one['arm'])} "
        + ", ".join(
            f"{metrics.figure(metric, p['mean'])} with {p['labels']:,} {labels}" for p in one["points"]
        )
        for one in found["arms"]
    )
    lines = [
        svg.path(
            [(x(p["labels"]), y(p["mean"])) for p in one["points"]],
            f"line series s-{tones.get(one['arm'], 'x')}",
        )
        for one in found["arms"]
    ]
    shown = [counts[at] for at in svg.thin(len(counts), 7)]
    return svg.chart(
        Frame("efficiency", f"{wording.sentence(metrics.SHOWN[metric])} over {labels}: {told}.", 300),
        svg.y_axis(y, [(at, _tick(metric, at)) for at in svg.ticks(low, high)]),
        svg.x_axis(x, [(at, f"{at:,}") for at in shown]),
        svg.stretched(*lines),
        *(_dots(x, y, (metric, labels), one, tones.get(one["arm"], "x")) for one in found["arms"]),
    )


def _dots(x: Scale, y: Scale, words: tuple[str, str], one: Mapping[str, Any], tone: str) -> Markup:
    (metric, labels), parts = words, []
    for point in one["points"]:
        here = percent(x(point["labels"]))
        low, high = (metrics.figure(metric, point[key]) for key in ("ci_low", "ci_high"))
        mean = metrics.figure(metric, point["mean"])
        title = f"{one['arm']}, {point['labels']:,} {labels}: {mean} ({low} to {high})"
        whisker = element(
            "line",
            class_="whisker",
            x1=here,
            x2=here,
            y1=percent(y(point["ci_low"])),
            y2=percent(y(point["ci_high"])),
        )
        dot = element("circle", class_="dot", cx=here, cy=percent(y(point["mean"])), r=4)
        parts.append(element("g", element("title", wording.label(title)), whisker, dot))
    return element("g", *parts, class_=f"series s-{tone}")


# --------------------------------------------------------------------------------------- distribution


def distribution(comparison: Mapping[str, Any]) -> Markup:
    """How the test items lie by what each scores: the best arm filled, the reference as a line over it."""
    found = comparison["distribution"]
    edges, metric = found["edges"], found["metric"]
    most = max(max(one["counts"]) for one in found["arms"])
    x, y = Scale(edges[0], edges[-1]), Scale(0, 1.04 * most, up=True)
    tones = palette.tones(comparison, [one["arm"] for one in found["arms"]])
    steps = [
        svg.path(_steps(x, y, edges, one["counts"]), "spread" if at == 0 else "line", closed=at == 0)
        for at, one in enumerate(found["arms"])
    ]
    drawn = [
        element("g", step, class_=f"series s-{tones.get(one['arm'], 'x')}{' bars' if at == 0 else ''}")
        for at, (step, one) in enumerate(zip(steps, found["arms"], strict=True))
    ]
    told = "; ".join(
        f"{wording.short(one['arm'])} from {metrics.figure(metric, one['quartiles'][0])} to "
        f"{metrics.figure(metric, one['quartiles'][4])}, half of the items between "
        f"{metrics.figure(metric, one['quartiles'][1])} and {metrics.figure(metric, one['quartiles'][3])}"
        for one in found["arms"]
    )
    marks = [(at, f"{at:,.0f}") for at in svg.ticks(0, most, 4) if at == int(at)]
    return svg.chart(
        Frame("distribution", f"Test items by {metrics.SHOWN[metric]}: {told}.", 240),
        svg.y_axis(y, marks),
        svg.x_axis(x, [(at, _tick(metric, at)) for at in svg.ticks(edges[0], edges[-1], 8)]),
        svg.stretched(*drawn),
    )


def _steps(x: Scale, y: Scale, edges: Sequence[float], counts: Sequence[int]) -> list[tuple[float, float]]:
    """The outline of a histogram, from the ground to the ground."""
    inner = [(x(edge), y(count)) for at, count in enumerate(counts) for edge in (edges[at], edges[at + 1])]
    return [(x(edges[0]), y(0)), *inner, (x(edges[-1]), y(0))]


def distribution_tones(comparison: Mapping[str, Any]) -> dict[str, str]:
    """The tone of each arm in the drawing of the distribution."""
    arms = [one["arm"] for one in comparison["distribution"]["arms"]]
    tones = palette.tones(comparison, arms)
    return {arm: tones.get(arm, "x") for arm in arms}


# ------------------------------------------------------------------------------------------ confusion


def confusion(table: Sequence[Sequence[float]], classes: Sequence[str]) -> Markup:
    """How the items of each class were named: rows the truth, columns the prediction."""
    count = len(classes)
    side, dense = 100 / count, count > FIGURES
    names = [wording.label(label, 14) or f"#{at + 1}" for at, label in enumerate(classes)]
    long = max(map(len, names)) > 3 or dense
    cells = [
        _cell(row, column, side, table[row][column], names, dense)
        for row in range(count)
        for column in range(count)
        if table[row][column] >= 0.005
    ]
    named = _labels(names, side, upright=long) if count <= NAMED else _numbers(count, side)
    room = min(110, 14 + 7 * max(map(len, names))) if count <= NAMED else 34
    kind = ("heat dense" if count > 8 else "heat") + (" long" if long and count <= NAMED else "")
    about = (
        f"Matrix of {count} true and predicted classes; the most frequent confusions are listed beside it."
    )
    frame = Frame("confusion", about, 0, room, kind)
    edge = element("rect", class_="edge", width="100%", height="100%")
    return svg.chart(frame, *cells, edge, named)


def _cell(row: int, column: int, side: float, share: float, names: Sequence[str], dense: bool) -> Markup:
    # Even a few per cent must show beside an empty cell; full strength would swallow the figures.
    strength = 0.5 * share**0.6 if row == column else 0.55 * share**0.36
    title = f"{names[row]} taken for {names[column]}: {100 * share:.0f} %"
    square = element(
        "rect", element("title", title), class_="hit" if row == column else "miss",
        x=percent(column * side), y=percent(row * side), width=percent(side), height=percent(side),
        fill_opacity=strength,
    )  # fmt: skip
    if dense:
        return square
    figure = svg.text(
        f"{100 * share:.0f}",
        percent((column + 0.5) * side),
        percent((row + 0.5) * side),
        "cell",
        "middle",
        dy=".35em",
    )
    return square + figure


def _labels(names: Sequence[str], side: float, upright: bool) -> Markup:
    parts = []
    for at, name in enumerate(names):
        middle = percent((at + 0.5) * side)
        parts.append(svg.text(name, "-7", middle, "tick", "end", dy=".35em"))
        turned = svg.text(
            name, "7" if upright else "0", "0" if upright else "-8", "tick", None if upright else "middle",
            transform="rotate(-90)" if upright else None, dy=".35em" if upright else None,
        )  # fmt: skip
        parts.append(element("svg", turned, x=middle, y="0", width="1", height="1"))
    return svg.join(parts)


def _numbers(count: int, side: float) -> Markup:
    """The numbers of some classes, as the table of classes gives them."""
    parts = []
    for number in svg.whole_ticks(count, 10):
        middle = percent((number - 0.5) * side)
        parts.append(svg.text(f"{number}", "-7", middle, "tick", "end", dy=".35em"))
        parts.append(svg.text(f"{number}", middle, "-8", "tick", "middle"))
    return svg.join(parts)


def frequent(
    table: Sequence[Sequence[float]], classes: Sequence[str], most: int = 8
) -> list[tuple[str, str, float]]:
    """The most frequent confusions: true class, predicted class, share of the true class."""
    found = [
        (classes[row], classes[column], share)
        for row, shares in enumerate(table)
        for column, share in enumerate(shares)
        if row != column and share >= 0.0005
    ]
    return sorted(found, key=lambda one: -one[2])[:most]


# ---------------------------------------------------------------------------------------- calibration


def reliability(arm: Mapping[str, Any], name: str, tone: str) -> Markup:
    """How often the network was right when it was so sure, with the items of each bin below."""
    bins = [one for one in arm["calibration"]["bins"] if one["items"]]
    scale, up = Scale(0, 1), Scale(0, 1, up=True)
    most = max((one["items"] for one in bins), default=1)
    marks = [(at / 100, str(at)) for at in (0, 25, 50, 75, 100)]
    told = "; ".join(
        f"{100 * one['confidence']:.0f} % sure, {100 * one['accuracy']:.0f} % right" for one in bins
    )
    return svg.chart(
        Frame(name, f"Accuracy over confidence: {told}.", 250, 36),
        svg.y_axis(up, marks),
        svg.x_axis(scale, marks),
        svg.stretched(svg.path([(0, 100), (100, 0)], "target")),
        element("g", *(_bin(one, scale, up, most) for one in bins), class_=f"series s-{tone}"),
    )


def _bin(one: Mapping[str, Any], scale: Scale, up: Scale, most: int) -> Markup:
    x, y = percent(scale(one["confidence"])), percent(up(one["accuracy"]))
    tall = 22 * one["items"] / most
    title = (
        f"{100 * one['confidence']:.0f} % sure, {100 * one['accuracy']:.0f} % right "
        f"({100 * one['ci_low']:.0f} to {100 * one['ci_high']:.0f}), {one['items']:,} items"
    )
    return element(
        "g",
        element("title", title),
        element("line", class_="count", x1=x, x2=x, y1="100%", y2=percent(100 - tall)),
        element(
            "line",
            class_="whisker",
            x1=x,
            x2=x,
            y1=percent(up(one["ci_low"])),
            y2=percent(up(one["ci_high"])),
        ),
        element("circle", class_="dot", cx=x, cy=y, r=4),
    )


# --------------------------------------------------------------------------------- map of embeddings


@dataclass(frozen=True)
class Drawn:
    """The map, and what its legend says.

    Attributes:
        markup: the drawing.
        legend: tone and label of each colour.
        shown: how many points are drawn.
    """

    markup: Markup
    legend: list[tuple[str, str]]
    shown: int


def embedding(
    points: Sequence[MapPoint],
    classes: Sequence[str],
    pictures: Sequence[str | None],
    most: int,
    classified: bool = True,
) -> Drawn:
    """The map: coloured by class while there are colours, mistakes as crosses.

    Args:
        points: all of them.
        classes: in their order.
        pictures: for each point the id of its thumbnail.
        most: how many to draw: mistakes first, then an even share of the others.
        classified: whether samples are of classes, so that they can be named wrongly.
    """
    chosen = chosen_points(points, most)
    few = len(classes) <= CLASS_COLOURS
    tones = {label: f"k-{at}" for at, label in enumerate(classes)} if few else {}
    x = Scale(*svg.around((point.x for point in points), 0.03))
    y = Scale(*svg.around((point.y for point in points), 0.04), up=True)
    order = sorted(chosen, key=lambda at: _wrong(points[at]))
    marks = [_mark(points[at], x, y, tones) for at in order]
    focused = set([at for at in order if _wrong(points[at])][:FOCUSED])
    spots = [_spot(points[at], x, y, pictures[at], at in focused) for at in order]
    wrong = sum(map(_wrong, points))
    told = f", {wrong:,} of them named wrongly, as told below" if classified else ""
    about = f"{len(points):,} samples in two dimensions{told}."
    frame = Frame("map", about, 440, 0, "cloud", active=True)
    edge = element("rect", class_="edge", width="100%", height="100%", rx=8)
    rest = [("k-right", "right"), ("k-wrong", "wrong")] if classified else [("k-right", "test item")]
    legend = [(tone, label) for label, tone in tones.items()] or rest
    drawn = svg.chart(frame, edge, element("g", *marks, aria_hidden="true"), *spots)
    return Drawn(drawn, legend, len(chosen))


def chosen_points(points: Sequence[MapPoint], most: int) -> list[int]:
    """Which points are drawn: mistakes first, up to half, then an even share of the others; in order."""
    if len(points) <= most:
        return list(range(len(points)))
    wrong = [at for at, point in enumerate(points) if _wrong(point)]
    rest = [at for at, point in enumerate(points) if not _wrong(point)]
    kept = [wrong[at] for at in svg.thin(len(wrong), max(2, most // 2))] if most else []
    others = [rest[at] for at in svg.thin(len(rest), max(2, most - len(kept)))] if most else []
    return sorted(kept + others)


def _wrong(point: MapPoint) -> bool:
    return point.predicted is not None and point.predicted != point.label


def _mark(point: MapPoint, x: Scale, y: Scale, tones: Mapping[str, str]) -> Markup:
    tone = tones.get(point.label, "k-wrong" if _wrong(point) else "k-right")
    px, py = percent(x(point.x)), percent(y(point.y))
    if _wrong(point):
        return element("svg", element("path", d="M-5-5L5 5M-5 5L5-5"), class_=f"x {tone}", x=px, y=py)
    kind = "o" if point.predicted is not None or point.score else "o open"
    return element("circle", class_=f"{kind} {tone}", cx=px, cy=py, r=3.5)


def _spot(point: MapPoint, x: Scale, y: Scale, picture: str | None, focus: bool) -> Markup:
    """What shows the sample: an unseen disc over its mark with a box beside it."""
    px, py = x(point.x), y(point.y)
    room = 15 if picture else 23
    said = [] if point.predicted is None else [("", f"said: {point.predicted}")]
    named = [("b", f"true: {point.label}"), *said]
    if point.score or not point.label:
        named = [("b", one) for one in (point.label, point.score) if one]
    lines = [*named, ("faint", point.text or point.split)]
    lines = [(kind, wording.label(line, room)) for kind, line in lines]
    text, label, predicted = map(wording.short, (point.text, point.label, point.predicted))
    told = f"{text}: true {label}, said {predicted}" if point.predicted is not None else f"{text}: {label}"
    marks: dict[str, str | int] = (
        {"tabindex": 0, "role": "img", "aria_label": told} if focus else {"aria_hidden": "true"}
    )
    reach = element("circle", class_="reach", r=8)
    return element(
        "svg",
        element("g", reach, svg.bubble(px, py, lines, 176, picture), class_="spot", **marks),
        x=percent(px),
        y=percent(py),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ sparkline


def sparkline(series: Sequence[float], name: str) -> Markup:
    """How a figure went over time, small enough for a line of text."""
    low, high = svg.around(series, 0.15)
    x, y = Scale(0, max(len(series) - 1, 1)), Scale(low, high, up=True)
    places = [(x(at), y(series[at])) for at in svg.thin(len(series), LINE_POINTS)]
    last = element("circle", class_="dot", cx=percent(places[-1][0]), cy=percent(places[-1][1]), r=3)
    line = [svg.stretched(svg.path(places, "line"))] if len(places) > 1 else []
    return element("svg", *line, last, class_="spark", role="img", aria_label=name)
