"""How often a look for drift sees what has changed, and how often it alarms for nothing.

    python -m benchmarks.drift [METHOD]

The images are scikit-learn's digits as PNG files, the features those of EfficientNet-Lite0 as `embed` makes
them, and the answers those of a model without mistakes. For every cell so many looks are simulated: reference
and new items are drawn from all digits without overlap, the new ones are changed, and all tests of a look are
made and corrected together. METHOD is `mmd` (as by default) or `classifier`.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from steps import artifacts, drift, fetch, monitor, params, resolve
from steps.params import EmbedSettings

ROOT = Path(__file__).parent.parent
REFERENCE, SIZES = 400, (30, 100, 300)
LOOKS, PERMUTATIONS, LEVEL = 100, 199, 0.05
TESTS = ("brightness", "contrast", "size")


@dataclass(frozen=True)
class Shift:
    """What happens to new images.

    Attributes:
        name: in words.
        change: of an image.
        share: of the new images that are changed.
        weights: by how much each digit becomes more frequent.
    """

    name: str
    change: Callable[[Image.Image, np.random.Generator], Image.Image] | None = None
    share: float = 1.0
    weights: tuple[float, ...] = (1.0,) * 10


def _brighter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return Image.fromarray((np.asarray(image, np.float64) * 1.1).clip(0, 255).astype(np.uint8))


def _noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    noise = rng.normal(0, 12, (image.height, image.width))
    return Image.fromarray((np.asarray(image, np.float64) + noise).clip(0, 255).astype(np.uint8))


def _inverted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(255 - np.asarray(image))


SHIFTS = (
    Shift("nothing (false alarms)"),
    Shift("10 % brighter", _brighter),
    Shift("noise of 12 grey values of 255", _noisy),
    Shift("blurred by half a pixel", lambda image, rng: image.filter(ImageFilter.GaussianBlur(0.5))),
    Shift("turned by 10 degrees", lambda image, rng: image.rotate(10, Image.Resampling.BILINEAR)),
    Shift("one in ten inverted", _inverted, 0.1),
    Shift("the digit 0 three times as frequent", weights=(3.0,) + (1.0,) * 9),
)


@dataclass(frozen=True)
class Known:
    """What is known of all images after a change: features, shape (images, features), and plain facts."""

    features: NDArray[np.float32]
    facts: dict[str, NDArray[np.float64]]


def main() -> None:
    """Print a row for each shift: the share of looks that alarm, and that the embedding alone alarms."""
    method = sys.argv[1] if len(sys.argv) > 1 else "mmd"
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        settings = _fetched()
        images, labels = _digits()
        plain = _known(images, None, settings)
        print(f"{method}, {REFERENCE} reference items, level {LEVEL}, {LOOKS} looks a cell, by new items")
        heads = " | ".join(f"{size} new" for size in SIZES)
        print(f"| change | {heads} |\n| --- |{' ---: |' * len(SIZES)}")
        for shift in SHIFTS:
            changed = plain if shift.change is None else _known(images, shift, settings)
            cells = [_power(shift, plain, changed, labels, size, method) for size in SIZES]
            print(f"| {shift.name} | {' | '.join(cells)} |", flush=True)


def _fetched() -> EmbedSettings:
    """The weights of the experiment `digits`, in the working directory."""
    checked = params.load(ROOT / artifacts.PARAMS_FILE)
    for path, settings in resolve.settings_files(checked).items():
        artifacts.write_json(path, settings.model_dump(mode="json"))
    found = params.read_settings(EmbedSettings, artifacts.settings_file("digits", "embed"))
    fetch.fetch(found.model.pretrained)
    return found


def _digits() -> tuple[list[Image.Image], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    loaded = load_digits()
    grey = np.round(loaded.images * (255 / 16)).astype(np.uint8)
    return [Image.fromarray(one) for one in grey], loaded.target.astype(np.int64)


def _known(images: list[Image.Image], shift: Shift | None, settings: EmbedSettings) -> Known:
    rng = np.random.default_rng(0)
    contents = []
    for image in images:
        with io.BytesIO() as buffer:
            changed = image if shift is None or shift.change is None else shift.change(image, rng)
            changed.save(buffer, "PNG")
            contents.append(buffer.getvalue())
    rows = [monitor.facts_of(one) for one in contents]
    facts = {name: np.array([row[name] for row in rows]) for name in TESTS}
    return Known(monitor.embed_new(list(contents), settings), facts)


def _power(
    shift: Shift, plain: Known, changed: Known, labels: NDArray[np.int64], size: int, method: str
) -> str:
    rng = np.random.default_rng(size)
    looks = [_look(shift, plain, changed, labels, size, method, rng) for _ in range(LOOKS)]
    whole = np.mean([verdict.drifted for verdict in looks])
    alone = np.mean([verdict.tests[0].p <= LEVEL for verdict in looks])
    return f"{100 * whole:.0f} % ({100 * alone:.0f} %)"


def _look(
    shift: Shift,
    plain: Known,
    changed: Known,
    labels: NDArray[np.int64],
    size: int,
    method: str,
    rng: np.random.Generator,
) -> drift.Verdict:
    """One simulated look."""
    order = rng.permutation(len(labels))
    reference, others = order[:REFERENCE], order[REFERENCE:]
    weights = np.array(shift.weights)[labels[others]]
    new = rng.choice(others, size, replace=False, p=weights / weights.sum())
    touched = rng.random(size) < shift.share
    features = np.where(touched[:, None], changed.features[new], plain.features[new])
    tests = [drift.METHODS[method](plain.features[reference], features, PERMUTATIONS)]
    for name in TESTS:
        before = plain.facts[name][reference]
        after = np.where(touched, changed.facts[name][new], plain.facts[name][new])
        tests.append(drift.numbers(name, "", before.tolist(), after.tolist()))
    sides = [drift.counts([str(one) for one in labels[side]]) for side in (reference, new)]
    tests.append(drift.classes("classes", "", sides[0], sides[1], PERMUTATIONS))
    return drift.judge(tests, LEVEL)


if __name__ == "__main__":
    main()
