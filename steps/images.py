"""An image as networks, baselines and people see it, and masks of class numbers as text."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

# The pixels of a mask that belong to no class and are not judged.
IGNORED = 255
# As many classes as the other numbers of a byte leave room for.
MOST_CLASSES = IGNORED
# Of EXIF: the orientations in which width and height change places.
ORIENTATION, SWAPPED = 0x0112, (5, 6, 7, 8)


def upright(image: Image.Image) -> Image.Image:
    """RGB, turned as its camera says, transparency on white; decodes the whole file."""
    _exif(image)  # kept by the image from here on
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the upright image, by its header alone."""
    width, height = image.size
    if image.format == "TIFF":  # here Pillow has done so itself
        return width, height
    return (height, width) if _exif(image).get(ORIENTATION) in SWAPPED else (width, height)


def _exif(image: Image.Image) -> Image.Exif:
    """What the camera says, out of the header.

    Pillow's own way for PNG decodes the pixels to see whether more stands behind them: a gigabyte, where the
    header was to tell that there is too much. What stands there is not heard, for the size and in `upright`.
    """
    return Image.Image.getexif(image)


def mask_text(numbers: NDArray[np.uint8], level: int = 6) -> str:
    """A mask of class numbers, shape (height, width), as a grey PNG in base64.

    Args:
        numbers: of each pixel its class, or `IGNORED`.
        level: of the compression, 1 the quickest.
    """
    with io.BytesIO() as buffer:
        Image.fromarray(numbers).save(buffer, "PNG", compress_level=level)
        return base64.b64encode(buffer.getvalue()).decode("ascii")


def mask_of(text: str) -> NDArray[np.uint8]:
    """The class numbers that `mask_text` wrote, shape (height, width).

    Raises:
        ValueError: the text is no such mask.
    """
    with _mask(text) as image:
        return np.array(image, dtype=np.uint8)


def mask_size(text: str) -> tuple[int, int]:
    """Width and height of a mask, without decoding it.

    Raises:
        ValueError: the text is no mask.
    """
    with _mask(text) as image:
        return image.size


@contextmanager
def _mask(text: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as image:
            if image.mode != "L":
                raise ValueError(f"a mask is a grey PNG, this one is {image.mode}")
            yield image
    except (OSError, SyntaxError, binascii.Error) as error:
        raise ValueError(f"is no mask: {' '.join(str(error).split())}") from None
