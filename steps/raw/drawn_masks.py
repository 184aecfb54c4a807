"""`shapes-masks`: SYNTHETIC images, drawn by seeded chance, with the mask of every shape. No photographs."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from steps.images import mask_text
from steps.raw import RawData, RawSample, masks

IMAGES, SIDE, SEED = 120, 96, 20_260_501
NAMES = ["ground", "disc", "square", "triangle"]
# Shapes on one image, and their radius in pixels.
FEWEST, MOST = 1, 3
SMALL, LARGE = 14, 28


def shapes_masks() -> RawData:
    """120 images of 96 pixels: discs, squares and triangles on textured ground.

    Ground and shapes are of random colours and textures, so that a colour alone tells nothing; some noise is
    on all of it. A shape may cover another.
    """
    return RawData(_drawn())


def _drawn() -> Iterator[RawSample]:
    for number in range(IMAGES):
        # Of each image its own generator: one more image changes none of the others.
        image, mask = _scene(np.random.default_rng([SEED, number]))
        with io.BytesIO() as buffer:
            Image.fromarray(image).save(buffer, "PNG")
            target = {"classes": NAMES, "mask": mask_text(mask)}
            source = f"steps/raw/drawn_masks.py: image {number}"
            yield masks.sample(source, buffer.getvalue(), target, id=f"shapes-{number:03}")


def _scene(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image (side, side, 3) and its class numbers (side, side)."""
    image, mask = _texture(rng), np.zeros((SIDE, SIDE), dtype=np.uint8)
    for _ in range(int(rng.integers(FEWEST, MOST + 1))):
        kind = int(rng.integers(1, len(NAMES)))
        inside = _shape(rng, kind)
        image = np.where(inside[..., None], _texture(rng), image)
        mask[inside] = kind
    noisy = image + rng.normal(0, 8, image.shape)
    return noisy.clip(0, 255).astype(np.uint8), mask


def _texture(rng: np.random.Generator) -> NDArray[np.float64]:
    """A colour with blurred noise on it, shape (side, side, 3)."""
    noise = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8))
    blurred = np.asarray(noise.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 3)))), dtype=np.float64)
    spread = (blurred - blurred.mean()) / blurred.std()
    return np.asarray(rng.uniform(40, 215, 3) + spread[..., None] * rng.uniform(5, 20))


def _shape(rng: np.random.Generator, kind: int) -> NDArray[np.bool_]:
    """Where a disc, square or triangle of random place, size and turn is; shape (side, side)."""
    radius, turn = float(rng.uniform(SMALL, LARGE)), float(rng.uniform(0, 2 * np.pi))
    centre = rng.uniform(SMALL, SIDE - SMALL, 2)
    corners = {1: 48, 2: 4, 3: 3}[kind]
    angles = turn + np.arange(corners) * (2 * np.pi / corners)
    points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    canvas = Image.new("1", (SIDE, SIDE))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points], fill=1)
    return np.asarray(canvas, dtype=np.bool_)
