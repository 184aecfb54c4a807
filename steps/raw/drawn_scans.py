"""`drawn-scans`: SYNTHETIC 16-bit scans, drawn by seeded chance, several of each patient. Of no person."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from steps.raw import RawData, RawSample

PATIENTS, SCANS, SIDE, SEED = 72, 3, 64, 20_260_502
NAMES = ("clear", "spot")
# Values of the air, the body and what lies in it: a small part of what 16 bits can tell apart, so that the
# upper 8 of them show next to nothing and a window is needed.
AIR, BODY, INNER, SPOT, NOISE = 30_000.0, 30_900.0, 30_300.0, 450.0, 60.0


def drawn_scans() -> RawData:
    """216 scans of 64 pixels: three of each of 72 patients, every other one with a bright spot inside.

    The scans of a patient share the shape of the body, so that a model could learn who it is: `group` keeps
    them together.
    """
    return RawData(_drawn())


def _drawn() -> Iterator[RawSample]:
    for patient in range(PATIENTS):
        body = np.random.default_rng([SEED, patient])
        shape = body.uniform([0.36, 0.28, -0.06, 0.10], [0.46, 0.42, 0.06, 0.16])
        for number in range(SCANS):
            values = _scan(np.random.default_rng([SEED, patient, number]), shape, patient % 2 == 1)
            with io.BytesIO() as buffer:
                Image.fromarray(values).save(buffer, "PNG")
                yield RawSample(
                    f"steps/raw/drawn_scans.py: patient {patient}, scan {number}",
                    buffer.getvalue(),
                    NAMES[patient % 2],
                    id=f"scan-{patient:02}-{number}",
                    group=f"patient-{patient:02}",
                )


def _scan(rng: np.random.Generator, shape: NDArray[np.float64], spotted: bool) -> NDArray[np.uint16]:
    """A body with two dark hollows, shape (side, side); the spot is in one of them."""
    width, height, lean, hollow = shape
    rows, columns = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE - 0.5 + rng.uniform(-0.04, 0.04, (2, 1, 1))
    columns = columns + lean * rows
    values = np.where((columns / width) ** 2 + (rows / height) ** 2 < 1, BODY, AIR)
    for side in (-1, 1):
        inside = ((columns - side * width / 2) / hollow) ** 2 + (rows / (0.7 * height)) ** 2 < 1
        values = np.where(inside, INNER, values)
    if spotted:
        across = rng.choice([-1, 1]) * width / 2 + rng.uniform(-0.05, 0.05)
        along = rng.uniform(-0.4, 0.4) * height
        distance = (columns - across) ** 2 + (rows - along) ** 2
        values = values + SPOT * np.exp(-distance / (2 * rng.uniform(0.025, 0.045) ** 2))
    grain = gaussian_filter(rng.normal(0, NOISE, (SIDE, SIDE)), 0.7)
    return np.asarray((values + 2 * grain).clip(0, 65_535), dtype=np.uint16)
