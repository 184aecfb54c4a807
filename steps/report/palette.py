"""Colours of the report and the plots, in a light and a dark dress, and which arm gets which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Dress:
    """Colours of a plot: paper, ink, faint lines, the reference, the other arms in turn, and heat.

    `classes` are those of the map of the embeddings.
    """

    paper: str
    ink: str
    faint: str
    reference: str
    arms: tuple[str, ...]
    heat: str
    classes: tuple[str, ...]


# Hues that the colour-blind can tell apart (Okabe and Ito), darker on light paper and lighter on dark.
_LIGHT = ("#0b66b8", "#c2570c", "#0f8a63", "#a8407f", "#8a6d00", "#4b4fb8")
_DARK = ("#5cb3ff", "#f59e5b", "#3ecf9b", "#e58bc2", "#e0c24a", "#a3a7ff")
DRESSES = {
    "light": Dress(
        "#ffffff", "#1f2430", "#dfe3ea", "#6b7280", _LIGHT, "#0b66b8",
        (*_LIGHT, "#b3261e", "#007c89", "#7a5244", "#4f7a00", "#d01b72", "#5f6b7a"),
    ),
    "dark": Dress(
        "#171b24", "#e6e9f0", "#333a49", "#9aa3b5", _DARK, "#5cb3ff",
        (*_DARK, "#ff8a80", "#4fd3e0", "#c9a08f", "#a9d15a", "#ff7ab6", "#a3afbf"),
    ),
}  # fmt: skip
REFERENCE = "ref"


def tones(comparison: Mapping[str, Any], arms: Sequence[str]) -> dict[str, str]:
    """The tone of the arms that get one: all when they are few, else those that matter most.

    A tone is `ref` for the reference, `0` for the judged arm, else `1` to `5`. The order is that of
    drawing: the judged arm last, on top.
    """
    reference, judged = comparison["reference"], comparison["verdict"]["arm"]
    rest = [arm for arm in arms if arm not in (reference, judged)]
    by_validation = sorted(
        (one for one in comparison["arms"] if one["arm"] in rest),
        key=lambda one: one["validation"]["mean"],
        reverse=comparison["metric"]["higher_is_better"],
    )
    kept = {one["arm"] for one in by_validation[: len(_LIGHT) - 1]}
    drawn = [arm for arm in rest if arm in kept]
    found = {reference: REFERENCE} if reference in arms else {}
    found |= {arm: str(at) for at, arm in enumerate(drawn, start=1)}
    return found | ({judged: "0"} if judged in arms else {})
