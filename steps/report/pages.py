"""The report as one HTML file that needs nothing else, and the model card for a model hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from steps import artifacts, metrics
from steps.report import charts, palette, wording
from steps.report.pictures import Pictures
from steps.report.sheet import MapPoint, Mistake, Sheet

TEMPLATES = Path(__file__).parent / "templates"
# The hub's names of licences.
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
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Above these rows a table shows its first ones and folds the rest.
FOLD = 40
MOST_BYTES = 3_000_000
# Shares of the strongest weight from which a word is marked, and marked more.
STRENGTHS = (0.35, 0.5, 0.7, 0.85)


@dataclass(frozen=True)
class Limits:
    """How much of what has no end the page shows.

    Attributes:
        points: on the map.
        pictures: bytes that all thumbnails may take.
        rows: of a table.
        samples: in the gallery, and among likely label errors.
        tokens: of one text in the gallery.
    """

    points: int
    pictures: int
    rows: int
    samples: int
    tokens: int


# The next one is taken when the page came out too large.
LIMITS = (
    Limits(1000, 1_300_000, 1200, 24, 160),
    Limits(400, 700_000, 500, 24, 120),
    Limits(150, 300_000, 150, 12, 80),
    Limits(0, 0, 40, 6, 40),
)


# --------------------------------------------------------------------------------------------- report


def report(sheet: Sheet) -> str:
    """The report, in at most 3 MB.

    Points, pictures and rows are thinned until it fits, and the page says so; the CSV files hold all rows.

    Args:
        sheet: all that it shows.
    """
    for limits in LIMITS:
        page = _report(sheet, limits)
        if len(page.encode("utf-8")) <= MOST_BYTES:
            return page
    raise AssertionError("every list of the report is limited, so the last limits must fit")


def _report(sheet: Sheet, limits: Limits) -> str:
    it = sheet.comparison
    pictures = Pictures(limits.pictures)
    # Pictures are given out in the order of what they tell.
    mistakes = [(one, pictures.add(one.thumbnail)) for one in sheet.mistakes[: limits.samples]]
    suspects = [(one, pictures.add(one.thumbnail)) for one in sheet.suspects[: limits.samples]]
    drawn = _map(sheet.points, it["classes"], pictures, limits.points)
    values = {
        "it": it,
        "sheet": sheet,
        "limits": limits,
        "contents": contents(sheet),
        "rows": _Rows(limits.rows),
        "mistakes": [(one, picture, spoken(one, limits.tokens)) for one, picture in mistakes],
        "suspects": suspects,
        "map": drawn,
        "map_mistakes": _told_mistakes(sheet.points),
        "tones": palette.tones(it, list(sheet.curves)),
        "learning": charts.learning(it, sheet.curves) if sheet.curves else None,
        "curve_rows": charts.curve_rows(it, sheet.curves) if sheet.curves else None,
        "efficiency": charts.efficiency(it) if it["efficiency"] else None,
        "efficiency_tones": _efficiency_tones(it),
        "confusion": charts.confusion(it["confusion"], it["classes"]) if it["confusion"] else None,
        "frequent": charts.frequent(it["confusion"] or [], it["classes"]),
        "panels": _panels(it),
        "definitions": pictures.definitions(),
        "pictures_left_out": pictures.left_out,
        **strips(it),
    }
    return render("report.html.j2", **values)


class _Rows:
    """Cuts lists to the limit of rows; the template asks how many are left out."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, rows: Sequence[Any]) -> Sequence[Any]:
        return rows[: self.most]


def contents(sheet: Sheet) -> dict[str, str]:
    """The sections that the report has, by id, in their order."""
    it = sheet.comparison
    found = {
        "arms": ("The arms on the test split", True),
        "notes": ("Notes", it["notes"]),
        "differences": (f"Differences to {it['reference']}", any(arm["improvement"] for arm in it["arms"])),
        "learning": ("How fast they learn", sheet.curves),
        "efficiency": ("How many labels they need", it["efficiency"]),
        "baselines": ("Against what needs no training", it["baselines"]),
        "ranking": ("Ranked before any training", it["ranking"]),
        "pairs": ("Every arm against every other", it["pairs"]),
        "classes": ("Class by class", it["per_class"]),
        "slices": ("Parts of the test split", it["slices"]),
        "confusion": ("What is taken for what", True),
        "calibration": ("How sure it is, and how right", True),
        "map": ("Map of the embeddings", sheet.points),
        "mistakes": ("Mistakes it is sure of", sheet.mistakes),
        "suspects": ("Labels that are likely wrong", sheet.suspects),
        "duplicates": ("Near duplicates", sheet.duplicates),
        "data": ("The data", True),
        "cost": ("What it cost", True),
        "ledger": ("How often the test split was asked", True),
        "provenance": ("What it rests on", True),
        "again": ("Make it again", True),
    }
    return {name: title for name, (title, present) in found.items() if present}


def strips(it: Mapping[str, Any]) -> dict[str, charts.Strip]:
    """The scales that rows of a table share."""
    metric = it["metric"]["name"]
    gains = [arm["improvement"] for arm in it["arms"] if arm["improvement"]]
    reference = next(arm for arm in it["arms"] if arm["arm"] == it["reference"])
    classes = [one["f1"] for one in it["per_class"]]
    return {
        "arm_strip": charts.values(metric, it["arms"]),
        "gain_strip": charts.differences(metric, gains, it["margin"]),
        "baseline_strip": charts.values(metric, [*it["arms"], *it["baselines"]], line=reference["mean"]),
        "class_strip": charts.values("accuracy", classes),
        "slice_strip": charts.differences(
            metric, [one["difference"] for one in it["slices"] if one["difference"]], it["margin"]
        ),
    }


def _map(
    points: Sequence[MapPoint], classes: Sequence[str], pictures: Pictures, most: int
) -> charts.Drawn | None:
    if not points or not most:
        return None
    chosen = set(charts.chosen_points(points, most))
    found = [pictures.add(point.thumbnail) if at in chosen else None for at, point in enumerate(points)]
    return charts.embedding(points, classes, found, most)


def _told_mistakes(points: Sequence[MapPoint]) -> list[MapPoint]:
    return [point for point in points if point.predicted is not None and point.predicted != point.label]


def _efficiency_tones(it: Mapping[str, Any]) -> dict[str, str]:
    if not it["efficiency"]:
        return {}
    arms = [one["arm"] for one in it["efficiency"]["arms"]]
    tones = palette.tones(it, arms)
    return {arm: tones.get(arm, "x") for arm in arms}


def _panels(it: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Markup]]:
    """Reliability of the best arm, and of the reference beside it."""
    by_name = {arm["arm"]: arm for arm in it["arms"]}
    names = dict.fromkeys([it["best_arm"], it["reference"]])
    return [
        (
            by_name[name],
            charts.reliability(by_name[name], f"reliability-{at}", "0" if at == 0 else palette.REFERENCE),
        )
        for at, name in enumerate(names)
    ]


@dataclass(frozen=True)
class Piece:
    """A word piece as it is shown.

    Attributes:
        text: what is written.
        gap: whether a blank stands before it.
        kind: `p1` to `p4` where it speaks for the predicted class, `m1` to `m4` against it, else empty.
    """

    text: str
    gap: bool
    kind: str


def spoken(mistake: Mistake, most: int) -> list[Piece]:
    """The words of a mistake; weight is told in four steps relative to the strongest of them."""
    tokens = mistake.tokens[:most]
    strongest = max((abs(weight) for _, weight in tokens), default=0.0)
    pieces = [_piece(text, weight / strongest if strongest else 0.0) for text, weight in tokens]
    return pieces + ([Piece("…", True, "")] if len(mistake.tokens) > most else [])


def _piece(text: str, weight: float) -> Piece:
    glued = text.startswith("##")
    # Marks of a word's start, of SentencePiece and of byte-level BPE.
    bare = text[2:] if glued else text.lstrip("▁Ġ")
    step = sum(abs(weight) >= least for least in STRENGTHS)
    kind = f"{'p' if weight > 0 else 'm'}{step}" if step else ""
    return Piece(wording.short(bare), not glued, kind)


# ----------------------------------------------------------------------------------------- model card


def model_card(comparison: Mapping[str, Any]) -> str:
    """The model card of the best arm, in Markdown with the hub's header."""
    best = next(arm for arm in comparison["arms"] if arm["arm"] == comparison["best_arm"])
    return render(
        "model_card.md.j2",
        it=comparison,
        best=best,
        licence=licence(comparison, best),
        base_model=base_model(comparison, best),
        datasets=datasets(comparison),
        run=artifacts.run_id(comparison["best_resample"], comparison["best_seed"]),
    )


def licence(comparison: Mapping[str, Any], best: Mapping[str, Any]) -> str | None:
    """The hub's name of the licence of the pretrained weights; None when trained from scratch."""
    if best["start"] != "pretrained":
        return None
    name = str(comparison["pretrained"]["licence"]).lower()
    return name if name in LICENCES else "other"


def base_model(comparison: Mapping[str, Any], best: Mapping[str, Any]) -> str | None:
    """The pretrained weights as a hub id, `owner/name`; None when they do not come from the hub."""
    about = comparison["pretrained"]
    if best["start"] != "pretrained" or about.get("source") != "hub":
        return None
    return next(
        (str(about[key]) for key in ("repo", "id", "name") if HUB_ID.fullmatch(str(about.get(key)))), None
    )


def datasets(comparison: Mapping[str, Any]) -> list[str]:
    """The data as hub ids; empty when they do not come from the hub."""
    origin = comparison["data"]["origin"]
    if origin.get("source") != "hub":
        return []
    found = (
        str(origin[key]) for key in ("repo", "dataset", "path") if HUB_ID.fullmatch(str(origin.get(key)))
    )
    return [one for one, _ in zip(found, range(1), strict=False)]


# ------------------------------------------------------------------------------------------ templates


def render(template: str, **values: Any) -> str:  # noqa: ANN401 - whatever the template shows
    """Fill a template; `.html.j2` is escaped for HTML, `.md.j2` by its own filter `md`."""
    page = _environment().get_template(template).render(**values)
    # A lone surrogate is in no encoding; JSON can hold one.
    return page.encode("utf-8", "replace").decode("utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "figure": wording.level,
        "signed": wording.signed,
        "points": wording.points,
        "count": wording.count,
        "plain": wording.plain,
        "seconds": wording.seconds,
        "p": wording.p_value,
        "times": wording.times,
        "setting": wording.setting,
        "label": wording.label,
        "short": wording.short,
        "md": wording.markdown,
        "ticks": wording.ticks,
        "quoted": wording.quoted,
        "weakest": lambda classes: sorted(enumerate(classes, 1), key=lambda one: one[1]["f1"]["value"]),
    }
    environment.globals |= {
        "shown": metrics.SHOWN,
        "dresses": palette.DRESSES,
        "fold": FOLD,
    }
    return environment
