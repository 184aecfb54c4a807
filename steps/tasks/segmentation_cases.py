"""Masks as readers of the report see them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steps.images import IGNORED, mask_of
from steps.tasks import Case

# Longest side of the pictures, in pixels.
SIDE = 192
# How much of a pixel is the colour of its class; the rest is the image in grey.
COVER = 0.65
# Colours that the colour-blind tell apart (Okabe and Ito, Color Universal Design, 2008), with their names.
COLOURS = (
    ("black", (0, 0, 0)), ("orange", (230, 159, 0)), ("sky blue", (86, 180, 233)),
    ("green", (0, 158, 115)), ("yellow", (240, 228, 66)), ("blue", (0, 114, 178)),
    ("vermilion", (213, 94, 0)), ("pink", (204, 121, 167)), ("white", (255, 255, 255)),
)  # fmt: skip
# Classes in a picture's words at most, the largest first.
NAMED = 5


def case(target: dict[str, Any], said: dict[str, Any], path: Path) -> Case:
    """An image with its true and its predicted mask.

    Args:
        target: of the row.
        said: of the model.
        path: the image's file.
    """
    from steps.tasks.of_images import picture

    names: list[str] = target["classes"]
    image, truth, found = picture(path), mask_of(target["mask"]), mask_of(said["mask"])
    return Case(
        _words(truth, names),
        _words(found, names),
        (
            ("image", _webp(image)),
            (f"true mask: {_legend(truth, names)}", _webp(_painted(image, truth))),
            (f"predicted mask: {_legend(found, names)}", _webp(_painted(image, found))),
        ),
    )


def _order(mask: NDArray[np.uint8]) -> list[tuple[int, float]]:
    """The classes in a mask with their shares of the pixels judged, the largest first."""
    counts = np.bincount(mask[mask != IGNORED])
    largest = np.argsort(-counts, kind="stable")
    return [(int(at), float(counts[at] / counts.sum())) for at in largest if counts[at]]


def _words(mask: NDArray[np.uint8], names: list[str]) -> str:
    order = _order(mask)
    parts = [f"{names[at]} {100 * share:.1f} %" for at, share in order[:NAMED]]
    return ", ".join(parts) + (f", {len(order) - NAMED} more" if len(order) > NAMED else "")


def _legend(mask: NDArray[np.uint8], names: list[str]) -> str:
    parts = [f"{names[at]} is {COLOURS[at % len(COLOURS)][0]}" for at, _ in sorted(_order(mask))]
    if (mask == IGNORED).any():
        parts.append("what is not coloured is not judged")
    return ", ".join(parts)


def _painted(image: Image.Image, mask: NDArray[np.uint8]) -> Image.Image:
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float64)
    table = np.array([COLOURS[at % len(COLOURS)][1] for at in range(IGNORED + 1)], dtype=np.float64)
    mixed = COVER * table[mask] + (1 - COVER) * grey
    return Image.fromarray(np.where((mask == IGNORED)[..., None], grey, mixed).astype(np.uint8))


def _webp(image: Image.Image) -> bytes:
    small = image.copy()
    if max(small.size) < SIDE:  # a few large pixels tell more than a small picture
        whole = SIDE // max(small.size)
        small = small.resize((small.width * whole, small.height * whole), Image.Resampling.NEAREST)
    small.thumbnail((SIDE, SIDE))
    with io.BytesIO() as stream:
        small.save(stream, "WEBP", quality=70, method=4)
        return stream.getvalue()
