"""`shapes-boxes`: a SYNTHETIC data set for object detection, drawn by seeded chance on parts of photographs.

Every image has up to four circles, squares and triangles, turned, striped or plain and partly transparent.
The grounds are parts of the two photographs that scikit-learn ships (CC BY 2.0, with attribution there).
"""

from __future__ import annotations

import importlib.metadata
import io
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from steps.raw import RawData, RawSample
from steps.raw.boxes import stratum, target

IMAGES, SEED = 160, 20260
SHAPES = ("circle", "square", "triangle")
# Width and height of an image, radius of a shape, in pixels.
SIDES, RADII = (96, 129), (9, 22)
# How often an image has none, one, two, three and four shapes.
COUNTS = (0.1, 0.25, 0.25, 0.25, 0.15)
# Drawn so many times as large, then made smaller: smooth edges.
FINER = 4
# Pixels between the boxes of two shapes.
GAP = 2

Box = tuple[int, int, int, int]


def shapes_boxes() -> RawData:
    """160 synthetic images of 96 to 128 pixels a side; the same bytes every time."""
    return RawData(_samples())


def _samples() -> Iterator[RawSample]:
    from sklearn.datasets import load_sample_images

    grounds = [Image.fromarray(image) for image in load_sample_images().images]
    version = importlib.metadata.version("scikit-learn")
    for number in range(IMAGES):
        rng = np.random.default_rng([SEED, number])
        image, boxes, labels = _picture(rng, grounds)
        with io.BytesIO() as buffer:
            image.save(buffer, "PNG")
            content = buffer.getvalue()
        yield RawSample(
            f"synthetic: shape picture {number} on scikit-learn {version}: load_sample_images()",
            content,
            stratum(labels),
            id=f"shapes-{number:03}",
            target=target(boxes, labels, image.size),
        )


def _picture(
    rng: np.random.Generator, grounds: list[Image.Image]
) -> tuple[Image.Image, list[Box], list[str]]:
    size = (int(rng.integers(*SIDES)), int(rng.integers(*SIDES)))
    image = _ground(rng, grounds, size)
    boxes: list[Box] = []
    labels: list[str] = []
    for _ in range(rng.choice(len(COUNTS), p=COUNTS)):
        label, radius = str(rng.choice(SHAPES)), int(rng.integers(*RADII))
        place = _place(rng, size, radius, boxes)
        if place is None:
            continue
        mask = _mask(rng, label, radius)
        boxes.append(_pasted(rng, image, mask, place))
        labels.append(label)
    return image, boxes, labels


def _ground(rng: np.random.Generator, grounds: list[Image.Image], size: tuple[int, int]) -> Image.Image:
    """A part of a photograph, once to twice the size and made smaller."""
    whole, scale = grounds[rng.integers(len(grounds))], rng.uniform(1.0, 2.0)
    width, height = (math.ceil(side * scale) for side in size)
    left, top = rng.integers(whole.width - width), rng.integers(whole.height - height)
    part = whole.crop((int(left), int(top), int(left) + width, int(top) + height))
    return part.resize(size, Image.Resampling.BICUBIC)


def _place(rng: np.random.Generator, size: tuple[int, int], radius: int, boxes: list[Box]) -> Box | None:
    """Left, top, width and height of a free square for a shape; None where twenty tries found none."""
    side = 2 * radius + 1
    for _ in range(20):
        left, top = (int(rng.integers(1, edge - side - 1)) for edge in size)
        if all(
            left + side + GAP <= x or x + w + GAP <= left or top + side + GAP <= y or y + h + GAP <= top
            for x, y, w, h in boxes
        ):
            return left, top, side, side
    return None


def _mask(rng: np.random.Generator, label: str, radius: int) -> NDArray[np.uint8]:
    """How much of every pixel the shape covers, 0 to 255; shape (2 radius + 1, 2 radius + 1)."""
    side = (2 * radius + 1) * FINER
    drawn = Image.new("L", (side, side))
    pen, middle = ImageDraw.Draw(drawn), side / 2
    reach = radius * FINER
    corners = {"circle": 64, "square": 4, "triangle": 3}[label]
    turn = rng.uniform(0, 2 * math.pi)
    angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
    pen.polygon(
        [(middle + reach * math.cos(one), middle + reach * math.sin(one)) for one in angles], fill=255
    )
    return np.asarray(drawn.resize((side // FINER, side // FINER), Image.Resampling.BOX))


def _pasted(rng: np.random.Generator, image: Image.Image, mask: NDArray[np.uint8], place: Box) -> Box:
    """Put a shape there; the box of the pixels that it covers by half or more."""
    left, top, side, _ = place
    colour = rng.integers(0, 256, 3)
    paint = np.tile(colour, (side, side, 1))
    if rng.random() < 0.5:
        stripes = np.add.outer(np.arange(side), np.arange(side)) // int(rng.integers(2, 5)) % 2 == 1
        paint[stripes] = rng.integers(0, 256, 3)
    under = np.asarray(image.crop((left, top, left + side, top + side)), dtype=np.float64)
    share = (mask / 255 * rng.uniform(0.6, 1.0))[..., None]
    mixed = np.round(share * paint + (1 - share) * under).astype(np.uint8)
    image.paste(Image.fromarray(mixed), (left, top))
    rows, columns = np.nonzero(mask >= 128)
    x, y = int(columns.min()), int(rows.min())
    return left + x, top + y, int(columns.max()) - x + 1, int(rows.max()) - y + 1
