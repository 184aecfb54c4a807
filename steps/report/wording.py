"""Figures and labels as readers see them, for HTML and Markdown."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from steps import metrics
from steps.kinds import KINDS

# A name of 5,000 characters, a thousand times, would fill the page; the tables as CSV hold it whole.
LABEL, SHORT = 160, 40


# What stands for a figure that is not there, e.g. the ends of an interval over one run.
NONE = "–"


def signed(value: float | None, metric: str) -> str:
    """A difference with its sign; the minus is a real one."""
    if value is None:
        return NONE
    text = metrics.figure(metric, value)
    return f"−{text[1:]}" if text.startswith("-") else f"+{text}"


def level(value: float | None, metric: str) -> str:
    """A value that may lie below zero, with a real minus."""
    if value is None:
        return NONE
    return metrics.figure(metric, value).replace("-", "−")


def points(value: float | None) -> str:
    """A share in per cent, with one digit."""
    return NONE if value is None else f"{100 * value:.1f}"


def plain(value: float | None, digits: int = 3) -> str:
    """A number that is no share, e.g. LogME, with a real minus."""
    if value is None:
        return NONE
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def seconds(value: float | None) -> str:
    """A time as people say it, e.g. `4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if value is None:
        return NONE
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def p_value(value: float | None) -> str:
    """A p as journals print it: two significant digits, and a bound below a thousandth."""
    if value is None:
        return NONE
    if value < 0.001:
        return "<\u00a00.001"
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def count(value: float | None) -> str:
    """A count with its thousands; a fitted one is rounded to whole ones."""
    return NONE if value is None else f"{round(value):,}".replace("-", "−")


def times(value: float | None) -> str:
    """A ratio, e.g. `2.4`, with as many digits as tell something."""
    if value is None:
        return NONE
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def setting(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """A value of a search space: a range, choices, or one value."""
    if isinstance(value, list | tuple):
        numbers = len(value) == 2 and all(_is_number(one) for one in value)
        return (" to " if numbers else ", ").join(setting(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def label(text: object, length: int = LABEL) -> str:
    """Text on one line, without signs that no screen shows, cut when it is too long."""
    # Of what is cut anyway no more is read than that blanks and unseen signs may need.
    start = str(text)[: 20 * length]
    line = " ".join("".join(map(_seen, start)).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def piece(text: str) -> str:
    """A part of a text: blanks at its ends stay, signs that no screen shows go."""
    return "".join(map(_seen, text))


def _seen(sign: str) -> str:
    kind = unicodedata.category(sign)
    if kind == "Cc" or kind.startswith("Z"):
        return " "
    return "�" if kind == "Cs" else sign


def short(text: object) -> str:
    """A label for a place with little room."""
    return label(text, SHORT)


def markdown(text: object) -> str:
    """Text that Markdown takes as it is: one line, its marks escaped."""
    line = " ".join(str(text).split())
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", line)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def quoted(text: object) -> str:
    """A string that YAML reads as it is."""
    return json.dumps(str(text), ensure_ascii=True)


def ticks(text: str) -> list[str]:
    """Text cut at its back-ticks: names stand at the odd places."""
    return re.split(r"`([a-z0-9_]+)`", text)


def sentence(text: str) -> str:
    """Text as a sentence begins: its first letter a capital, all others, and abbreviations, as they are."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]


def unit(metric: str) -> str:
    """What stands behind a value."""
    about = metrics.METRICS[metric]
    return " %" if about.percent else about.unit


def points_of(metric: str) -> str:
    """What stands behind a difference of two values."""
    about = metrics.METRICS[metric]
    return " points" if about.percent else about.unit


def counted(task: str) -> str:
    """What the samples that arms are trained on are called."""
    kind = KINDS[task]
    if kind.classified:
        return "labels"
    return "samples" if kind.own_labels else "labelled samples"


def training(task: str) -> str:
    """The same where it says what they are for, e.g. `training labels`."""
    return f"training {counted(task).removeprefix('labelled ')}"
