"""The report as one HTML file that needs nothing else, and the model card for a model hub."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from steps import metrics

TEMPLATES = Path(__file__).parent / "templates"
# The hub's names of tasks and licences.
LICENCES = {
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "bsd-2-clause",
    "cc-by-4.0",
    "cc0-1.0",
    "gpl-3.0",
    "openrail",
}


def report(comparison: Mapping[str, Any], drawn: Mapping[str, Mapping[str, bytes]]) -> str:
    """The report.

    Args:
        comparison: as in comparison.json.
        drawn: PNG bytes by dress and name, as `plots.draw` gives them.
    """
    images = {dress: {name: _data_uri(png) for name, png in plots.items()} for dress, plots in drawn.items()}
    return render("report.html.j2", it=comparison, images=images, bars=bars(comparison))


def model_card(comparison: Mapping[str, Any]) -> str:
    """The model card of the best arm, in Markdown with the hub's header."""
    best = next(arm for arm in comparison["arms"] if arm["arm"] == comparison["best_arm"])
    return render("model_card.md.j2", it=comparison, best=best, licence=licence(comparison, best))


def licence(comparison: Mapping[str, Any], best: Mapping[str, Any]) -> str | None:
    """The hub's name of the licence of the pretrained weights; None when trained from scratch."""
    if best["start"] != "pretrained":
        return None
    name = str(comparison["pretrained"]["licence"]).lower()
    return name if name in LICENCES else "other"


def render(template: str, **values: Any) -> str:  # noqa: ANN401 - whatever the template shows
    """Fill a template; `.html.j2` is escaped for HTML, `.md.j2` by its own filter `md`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "figure": lambda value, metric: metrics.figure(metric, value),
        "signed": signed,
        "percent": lambda value: f"{100 * value:.0f}",
        "count": lambda value: f"{value:,}",
        "seconds": seconds,
        "md": markdown,
        "ticks": lambda text: re.split(r"`([a-z0-9_]+)`", text),
        "quoted": lambda text: json.dumps(str(text), ensure_ascii=True),
    }
    environment.globals |= {"shown": metrics.SHOWN}
    return environment.get_template(template).render(**values)


def signed(value: float, metric: str) -> str:
    """A difference with its sign; the minus is a real one."""
    text = metrics.figure(metric, value)
    return f"−{text[1:]}" if text.startswith("-") else f"+{text}"


def seconds(value: float | None) -> str:
    """A time as people say it, e.g. `4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def markdown(text: object) -> str:
    """Text that Markdown takes as it is: one line, its marks escaped."""
    line = " ".join(str(text).split())
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", line)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def bars(comparison: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """For each arm where its interval and mean lie between the ends of all intervals, in per cent."""
    arms = comparison["arms"]
    low, high = min(arm["ci_low"] for arm in arms), max(arm["ci_high"] for arm in arms)
    span = (high - low) or 1.0
    return {
        arm["arm"]: {
            key: round(100 * (arm[name] - low) / span, 2)
            for key, name in (("low", "ci_low"), ("mean", "mean"), ("high", "ci_high"))
        }
        for arm in arms
    }


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
