"""An image with the boxes drawn that are there, and with those that a model found."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from steps.scans import picture
from steps.tasks import Case

# The longer side, in pixels; smaller images are made larger, or the words would cover them.
SIDE = 240
# Hues that the colour-blind can tell apart (Okabe and Ito); the lines differ as well.
TRUE, FOUND = "#56b4e9", "#e69f00"
# Weaker boxes are not drawn: there are up to a hundred, most of them guesses.
SHOWN_FROM = 0.3
WIDTH, DASH, TEXT = 2, 6, 11


def case(file: Path, truth: dict[str, Any], said: dict[str, Any]) -> Case:
    """The image twice: with the true boxes in solid lines, and with the found ones, dashed.

    Args:
        file: of the image.
        truth: `boxes` and `labels`.
        said: `boxes`, `labels` and `scores`.
    """
    sure = [place for place, score in enumerate(said["scores"]) if score >= SHOWN_FROM]
    boxes = [said["boxes"][place] for place in sure]
    labels = [said["labels"][place] for place in sure]
    texts = [f"{said['labels'][place]} {said['scores'][place]:.2f}" for place in sure]
    plain = picture(file)
    ratio = SIDE / max(plain.size)
    small = plain.resize([max(1, round(side * ratio)) for side in plain.size], Image.Resampling.BICUBIC)
    return Case(
        counted(truth["labels"]),
        counted(labels),
        (
            ("true boxes", _drawn(small, ratio, truth["boxes"], truth["labels"], TRUE, dashed=False)),
            (
                f"found, with a score from {SHOWN_FROM:g}",
                _drawn(small, ratio, boxes, texts, FOUND, dashed=True),
            ),
        ),
    )


def counted(labels: Sequence[str]) -> str:
    """What there is, e.g. `2 x circle, square`; `nothing` where there is no box."""
    counts = Counter(labels)
    return (
        ", ".join(f"{counts[one]} x {one}" if counts[one] > 1 else one for one in sorted(counts)) or "nothing"
    )


def _drawn(
    image: Image.Image,
    ratio: float,
    boxes: Sequence[Sequence[float]],
    texts: Sequence[str],
    colour: str,
    *,
    dashed: bool,
) -> bytes:
    """WebP of the image with boxes, each with its text."""
    canvas = image.copy()
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT)
    # The first is the surest: it lies on top.
    for box, text in reversed([*zip(boxes, texts, strict=True)]):
        left, top, width, height = (one * ratio for one in box)
        corners = (left, top, left + width, top + height)
        for line in _edges(corners, dashed):
            pen.line(line, fill=colour, width=WIDTH)
        _write(pen, (left, top), text, font, colour, canvas.size)
    with io.BytesIO() as buffer:
        canvas.save(buffer, "WEBP", quality=85)
        return buffer.getvalue()


def _edges(corners: tuple[float, float, float, float], dashed: bool) -> Iterator[tuple[float, ...]]:
    """The lines of a rectangle, whole or as dashes."""
    left, top, right, bottom = corners
    if not dashed:
        yield left, top, right, top, right, bottom, left, bottom, left, top
        return
    for start, stop, at in ((left, right, top), (left, right, bottom)):
        yield from ((one, at, end, at) for one, end in _dashes(start, stop))
    for start, stop, at in ((top, bottom, left), (top, bottom, right)):
        yield from ((at, one, at, end) for one, end in _dashes(start, stop))


def _dashes(start: float, stop: float) -> Iterator[tuple[float, float]]:
    at = start
    while at < stop:
        yield at, min(at + DASH, stop)
        at += 2 * DASH


def _write(
    pen: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    colour: str,
    size: tuple[int, int],
) -> None:
    """The text above the corner, or below it where there is no room, black on the colour."""
    width, height = pen.textlength(text, font=font), TEXT + 2
    x = max(0.0, min(corner[0], size[0] - width - 2))
    y = corner[1] - height if corner[1] >= height else corner[1]
    pen.rectangle((x, y, x + width + 2, y + height), fill=colour)
    pen.text((x + 1, y), text, fill="black", font=font)
