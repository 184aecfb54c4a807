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

from steps import artifacts, metrics, slices
from steps.kinds import KINDS
from steps.report import charts, palette, wording
from steps.report.pictures import Pictures
from steps.report.sheet import MapPoint, Mistake, Sheet, Told

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
    "unknown",
}
# Of what a provenance tells, where weights are from.
ORIGIN = (
    "source", "package", "model", "handle", "folder", "version", "revision", "file", "licence",
)  # fmt: skip
# Sources whose `model` is a repository of the hub.
HUBS = ("hub", "hf", "timm")
# The hub's names of tasks, where they are not ours.
PIPELINES = {
    "text-pair-classification": "text-classification",
    "image-multilabel": "image-classification",
    "text-multilabel": "text-classification",
    "semantic-segmentation": "image-segmentation",
    "summarisation": "summarization",
    "masked-language-model": "fill-mask",
    "causal-language-model": "text-generation",
    "replaced-token-detection": "feature-extraction",
    "next-sentence-prediction": "feature-extraction",
    "masked-image-model": "image-feature-extraction",
}
# The hub's names of metrics, where they are not ours.
HUB_METRICS = {
    "macro_f1": "f1", "micro_f1": "f1", "entity_f1": "f1", "squad_f1": "f1", "token_accuracy": "accuracy",
    "rouge_1": "rouge", "rouge_2": "rouge", "rouge_l": "rouge", "coco_map": "mean_average_precision",
    "coco_map_50": "mean_average_precision",
}  # fmt: skip
# What a model of a task without classes of its own is for.
USES = {
    "image-multilabel": "Names every label that holds for an image, with its probability; none may hold.",
    "text-multilabel": "Names every label that holds for a text, with its probability; none may hold.",
    "object-detection": "Finds objects of these kinds in images, each with a box and a score.",
    "semantic-segmentation": "Gives every pixel of an image one of these classes.",
    "token-classification": "Marks entities of these kinds in texts, from their first letter to their last.",
    "question-answering": "Answers a question with a passage of the text that it is given, word for word; "
    "where the text holds no answer, what it names may be wrong.",
    "summarisation": "Writes a short summary of a text. What it writes may be wrong or not be in the text: "
    "a person must read it before anyone relies on it.",
    "masked-language-model": "Pretrained to guess hidden words: a start for fine-tuning on texts like these, "
    "and a measure of how usual a text is among them.",
    "causal-language-model": "Pretrained to guess the next word: a start for fine-tuning on texts like "
    "these, and a measure of how usual a text is among them.",
    "replaced-token-detection": "Pretrained to tell words that were exchanged: a start for fine-tuning on "
    "texts like these.",
    "next-sentence-prediction": "Pretrained to tell what follows what, and to guess hidden words: a start "
    "for fine-tuning on texts like these.",
    "masked-image-model": "Pretrained to fill in hidden parts of images: a start for fine-tuning on images "
    "like these.",
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Above these rows a table shows its first ones and folds the rest.
FOLD = 40
MOST_BYTES = 3_000_000
# Shares of the strongest weight from which a word is marked, and marked more.
LETTERS = 6
# What a piece of a text may be, beside plain.
MARKS = ("right", "missed", "wrong")
STRENGTHS = (0.35, 0.5, 0.7, 0.85)


@dataclass(frozen=True)
class Limits:
    """How much of what has no end the page shows.

    Attributes:
        points: on the map.
        pictures: bytes that all thumbnails may take.
        rows: of a table.
        samples: in the gallery, and among likely label errors.
        tokens: of one text in the gallery; of a text in pieces `LETTERS` times as many signs.
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
    cases = [_case(one, pictures, limits) for one in sheet.cases[: limits.samples]]
    drawn = _map(it, sheet.points, pictures, limits.points)
    values = {
        "it": it,
        "sheet": sheet,
        "limits": limits,
        "contents": contents(sheet),
        "rows": _Rows(limits.rows),
        "mistakes": [(one, picture, spoken(one, limits.tokens)) for one, picture in mistakes],
        "suspects": suspects,
        "cases": cases,
        "marked": any(one.marks for one, _, _ in cases),
        "map": drawn,
        "map_mistakes": _told_mistakes(sheet.points),
        "tones": palette.tones(it, list(sheet.curves)),
        "learning": charts.learning(it, sheet.curves) if sheet.curves else None,
        "curve_rows": charts.curve_rows(it, sheet.curves) if sheet.curves else None,
        "efficiency": charts.efficiency(it) if it["efficiency"] else None,
        "efficiency_tones": _efficiency_tones(it),
        "confusion": charts.confusion(it["confusion"], it["classes"]) if it["confusion"] else None,
        "frequent": charts.frequent(it["confusion"] or [], it["classes"]),
        "panels": _panels(it) if KINDS[it["task"]].classified else [],
        "distribution": charts.distribution(it) if it["distribution"] else None,
        "distribution_tones": charts.distribution_tones(it) if it["distribution"] else {},
        "origin": origin(it),
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
    classified, counted = KINDS[it["task"]].classified, wording.counted(it["task"])
    found = {
        "arms": ("The arms on the test split", True),
        "notes": ("Notes", it["notes"]),
        "metrics": ("Every metric", not classified),
        "differences": (f"Differences to {it['reference']}", any(arm["improvement"] for arm in it["arms"])),
        "learning": ("How fast they learn", sheet.curves),
        "efficiency": (f"How many {counted} they need", it["efficiency"]),
        "baselines": ("Against what needs no training", it["baselines"]),
        "ranking": ("Ranked before any training", it["ranking"]),
        "pairs": ("Every arm against every other", it["pairs"]),
        "classes": ("Class by class", it["per_class"]),
        "slices": ("Parts of the test split", it["slices"]),
        "confusion": ("What is taken for what", classified),
        "calibration": ("How sure it is, and how right", classified),
        "distribution": ("Item by item", it["distribution"]),
        "map": ("Map of the embeddings", sheet.points),
        "cases": ("What it says", sheet.cases),
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
    told = it["slice_metric"]
    alike = metrics.METRICS[told].percent == metrics.METRICS[metric].percent
    return {
        "arm_strip": charts.values(metric, it["arms"]),
        "gain_strip": charts.differences(metric, gains, it["margin"]),
        "baseline_strip": charts.values(metric, [*it["arms"], *it["baselines"]], line=reference["mean"]),
        "class_strip": charts.values("accuracy", classes),
        # The margin is in the unit of the metric that arms are judged by.
        "slice_strip": charts.differences(
            told,
            [one["difference"] for one in it["slices"] if one["difference"]],
            it["margin"] if alike else 0.0,
        ),
    }


def _map(
    it: Mapping[str, Any], points: Sequence[MapPoint], pictures: Pictures, most: int
) -> charts.Drawn | None:
    if not points or not most:
        return None
    chosen = set(charts.chosen_points(points, most))
    found = [pictures.add(point.thumbnail) if at in chosen else None for at, point in enumerate(points)]
    classified = KINDS[it["task"]].classified
    labels = it["classes"] if classified else sorted({point.label for point in points if point.label})
    return charts.embedding(points, labels, found, most, classified)


def _case(
    case: Told, pictures: Pictures, limits: Limits
) -> tuple[Told, list[tuple[str, str]], list[tuple[str, str]]]:
    """A case with the ids of its pictures and their captions, and its text in pieces."""
    shown = [(pictures.add(picture), caption) for caption, picture in case.pictures]
    left, pieces = LETTERS * limits.tokens, []
    for text, kind in case.marks:
        if left <= 0:
            pieces.append(("…", ""))
            break
        pieces.append((wording.piece(text[:left]), kind if kind in MARKS else ""))
        left -= len(text)
    return case, [(name, caption) for name, caption in shown if name], pieces


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
        origin=origin(comparison),
        pipeline=PIPELINES.get(comparison["task"], comparison["task"]),
        use=USES.get(comparison["task"]),
        hub_metrics=HUB_METRICS,
        run=artifacts.run_id(comparison["best_resample"], comparison["best_seed"]),
    )


def licence(comparison: Mapping[str, Any], best: Mapping[str, Any]) -> str | None:
    """The hub's name of the licence of the pretrained weights; None when trained from scratch."""
    if best["start"] != "pretrained":
        return None
    name = str(comparison["pretrained"]["licence"] or "unknown").lower()
    return name if name in LICENCES else "other"


def base_model(comparison: Mapping[str, Any], best: Mapping[str, Any]) -> str | None:
    """The pretrained weights as a hub id, `owner/name`; None when they do not come from the hub."""
    about = comparison["pretrained"]
    if best["start"] != "pretrained" or about.get("source") not in HUBS:
        return None
    return next(
        (str(about[key]) for key in ("model", "repo", "id", "name") if HUB_ID.fullmatch(str(about.get(key)))),
        None,
    )


def origin(comparison: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Where the pretrained weights are from, as far as it is known."""
    about = comparison["pretrained"]
    return [(key, about[key]) for key in ORIGIN if about.get(key) not in (None, "")]


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
        "sentence": wording.sentence,
        "unit": wording.unit,
        "points_of": wording.points_of,
        "counted": wording.counted,
        "training": wording.training,
        "weakest": lambda classes: sorted(enumerate(classes, 1), key=lambda one: one[1]["f1"]["value"]),
    }
    environment.globals |= {
        "shown": metrics.SHOWN,
        "higher": metrics.HIGHER_IS_BETTER,
        "kinds": KINDS,
        "means": slices.MEANS,
        "dresses": palette.DRESSES,
        "fold": FOLD,
    }
    return environment
