"""Inline SVG: elements with everything escaped, scales and ticks.

A chart is as wide as its column and its text keeps its size: places are per cent of the drawing, never of a
viewBox that would shrink the letters on a phone. Lines, which SVG cannot give in per cent, lie in a nested
drawing of 100 by 100 that is stretched; their strokes are not. Colours are classes, so that one drawing does
for light, dark and paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Value = str | float | int | None


def element(name: str, *children: Markup | str, **attributes: Value) -> Markup:
    """One element; text and attributes are escaped.

    Args:
        name: of the element.
        children: markup as it is, text escaped.
        attributes: `class_` is `class`, `_` is `-`; those that are None are left out; numbers get two digits.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_written(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(escape(child) for child in children)
    return Markup(f"<{name}{written}>{inner}</{name}>" if inner or name == "svg" else f"<{name}{written}/>")


def _written(value: str | float) -> str:
    return number(value) if isinstance(value, float) else str(escape(value))


def number(value: float) -> str:
    """A place with at most two digits behind the point."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"


def percent(value: float) -> str:
    """A place in per cent of the drawing."""
    return f"{number(value)}%"


def join(parts: Iterable[Markup]) -> Markup:
    """Elements one after the other."""
    return Markup("").join(parts)


@dataclass(frozen=True)
class Scale:
    """From values to 0..100 along an axis.

    Attributes:
        low: the value at the start.
        high: the value at the end.
        log: whether equal ratios are equal lengths.
        up: whether larger values lie at smaller places, as on a y axis.
    """

    low: float
    high: float
    log: bool = False
    up: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies; beyond the ends it is held at the end."""
        low, high = self._at(self.low), self._at(self.high)
        share = (self._at(value) - low) / (high - low) if high > low else 0.5
        share = min(1.0, max(0.0, share))
        return 100 * (1 - share if self.up else share)

    def _at(self, value: float) -> float:
        return math.log(value) if self.log else value


def around(values: Iterable[float], room: float = 0.06, least: float = 1e-3) -> tuple[float, float]:
    """The ends of an axis that holds the values with some room on both sides."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    half = max((high - low) * room, least)
    return low - half, high + half


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two ends: 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(at * step, 12) + 0.0 for at in range(first, last + 1)]


def whole_ticks(last: int, about: int = 8) -> list[int]:
    """Whole numbers from 1 to `last`, such as epochs: 1 first, then round ones."""
    step = next(
        size for power in range(12) for size in (10**power, 2 * 10**power, 5 * 10**power)
        if last / size <= about
    )  # fmt: skip
    return [1, *(at for at in range(step, last + 1, step) if at > 1 + step * 0.4)]


def thin(length: int, most: int) -> list[int]:
    """At most `most` places of a list, evenly spread, both ends among them."""
    if length <= most:
        return list(range(length))
    return [round(at * (length - 1) / (most - 1)) for at in range(most)]


# ------------------------------------------------------------------------------------------- drawings


@dataclass(frozen=True)
class Frame:
    """The size of a chart and how it is called.

    Attributes:
        name: start of the ids of its parts; the heading has the id `<name>-h`.
        about: what the chart shows, for those who cannot see it.
        height: in pixels.
        left: room for the labels of the y axis, in pixels.
        kind: further classes.
        active: whether parts of it can be reached by keyboard; then it is a group, not one image.
    """

    name: str
    about: str
    height: int = 300
    left: int = 44
    kind: str = ""
    active: bool = False


def chart(frame: Frame, *children: Markup) -> Markup:
    """The whole drawing."""
    return element(
        "svg",
        element("desc", frame.about, id=f"{frame.name}-d"),
        *children,
        class_=f"chart {frame.kind}".strip(),
        role="group" if frame.active else "img",
        aria_labelledby=f"{frame.name}-h {frame.name}-d",
        style=f"--left:{frame.left}px;--high:{frame.height}px",
    )


def stretched(*children: Markup) -> Markup:
    """Children with places from 0 to 100, stretched over the drawing."""
    return element("svg", *children, viewBox="0 0 100 100", preserveAspectRatio="none")


def path(places: Sequence[tuple[float, float]], kind: str, closed: bool = False) -> Markup:
    """A line through places from 0 to 100."""
    line = "L".join(f"{number(x)} {number(y)}" for x, y in places)
    return element("path", class_=kind, d=f"M{line}{'Z' if closed else ''}")


def text(content: str, x: str, y: str, kind: str, anchor: str | None = None, **more: Value) -> Markup:
    """One line of text."""
    return element("text", content, class_=kind or None, x=x, y=y, text_anchor=anchor, **more)


def y_axis(scale: Scale, marks: Sequence[tuple[float, str]]) -> Markup:
    """Faint lines across, with labels at the left."""
    return join(
        part
        for value, label in marks
        for y in (percent(scale(value)),)
        for part in (
            element("line", class_="grid", x1="0", x2="100%", y1=y, y2=y),
            text(label, "-8", y, "tick", "end", dy=".35em"),
        )
    )


def x_axis(scale: Scale, marks: Sequence[tuple[float, str]]) -> Markup:
    """Labels below the drawing, and its ground line."""
    ground = element("line", class_="ground", x1="0", x2="100%", y1="100%", y2="100%")
    return ground + join(
        text(label, percent(scale(value)), "100%", "tick", "middle", dy="1.5em") for value, label in marks
    )


def bubble(x: float, y: float, lines: Sequence[tuple[str, str]], width: int, picture: str | None) -> Markup:
    """A box with lines of text, and maybe a picture, beside a place; CSS shows it on hover and focus.

    Args:
        x: 0 to 100; the box lies towards the middle of the drawing.
        y: 0 to 100.
        lines: class and text of each; a class `s-<tone>` puts a key of that colour before the text.
        width: of the box, in pixels.
        picture: id of a thumbnail.
    """
    inset = 66 if picture else 10
    height = max(64 if picture else 0, 12 + 16 * len(lines))
    left = 12 if x < 50 else -12 - width
    top = 4 if y < 40 else -4 - height
    written = [_line(left + inset, top + 19 + 16 * at, kind, line) for at, (kind, line) in enumerate(lines)]
    shown = [
        element("use", href=f"#{picture}", x=left + 8, y=top + 8, width=48, height=48)
    ] if picture else []  # fmt: skip
    box = element("rect", class_="box", x=left, y=top, width=width, height=height, rx=6)
    return element("g", box, *shown, *written, class_="pop")


def _line(x: int, y: int, kind: str, line: str) -> Markup:
    if not kind.startswith("s-"):
        return text(line, str(x), str(y), kind)
    key = element("rect", class_=f"key {kind}", x=x, y=y - 8, width=8, height=8, rx=2)
    return key + text(line, str(x + 14), str(y), "")
