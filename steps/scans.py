"""Medical and satellite images: DICOM, TIFF of many bands, more than 8 bits a value.

What Pillow reads as 8 bits is no affair of this room, but for `picture`, which shows any image to people. A
`Rule` says how a scan's values become what a network is fed.
"""

from __future__ import annotations

import hashlib
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from steps.errors import DataError
from steps.images import SWAPPED, upright, upright_size
from steps.params import Model

# The formats we promise that Pillow reads; its rarer decoders are the less tested ones.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
DICOM_SUFFIXES = (".dcm", ".dicom")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# The place in a PNG of how many bits its values have.
PNG_BITS = 24
# What follows it, for grey and for red, green and blue without transparency.
OPAQUE = (0, 2)
# Pillow's modes of values that do not fit into 8 bits.
DEEP_MODES = ("I", "F")
# Of TIFF: how a camera was held, how values are packed and how many a pixel has, which stands for nothing,
# grey values from white to black, and what is no image of its own: a smaller copy (1) or a mask (4).
TIFF_ORIENTATION, TIFF_COMPRESSION, TIFF_SAMPLES, GDAL_NODATA = 274, 259, 277, 42113
MIN_IS_WHITE, NO_IMAGE = 0, 1 | 4
# Values of one image, all bands together: 8 GiB of float32.
MOST_VALUES = 1 << 31
# Pixels of one image: twice what Pillow warns of, where it refuses by itself.
MOST_PIXELS = 178_956_970
_opening = threading.Lock()
# The part of the values that a picture for people leaves out at either end, in per cent.
TAIL = 1.0
# DICOM's elements that name a person or tell when and where one was born or lives.
PERSONAL = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientBirthTime", "PatientBirthName", "PatientAddress",
    "PatientTelephoneNumbers", "PatientMotherBirthName", "OtherPatientIDs", "OtherPatientNames",
    "MedicalRecordLocator", "IssuerOfPatientID", "ResponsiblePerson", "MilitaryRank",
)  # fmt: skip
Values = NDArray[Any]


@dataclass(frozen=True)
class Rule:
    """How values become what networks see, as `model` in params.yaml has it.

    Attributes:
        bands: which, from 0; None for grey three times or red, green and blue.
        window: centre and width of the values between black and white.
        mean: of each band, taken away; then values are no bytes but float32.
        std: of each band, divided by.
        fill: what stands for values that are missing; None refuses them.
    """

    bands: tuple[int, ...] | None = None
    window: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fill: float | None = None

    @classmethod
    def of(cls, model: Model) -> Rule:
        """The rule of an experiment."""
        return cls(model.bands, model.window, model.band_mean, model.band_std, model.fill)

    @property
    def channels(self) -> int:
        """Of what networks see."""
        return 3 if self.bands is None else len(self.bands)

    @property
    def plain(self) -> bool:
        """Whether nothing is asked for: then 8-bit images are read as they always are."""
        return self.bands is None and self.window is None and self.mean is None

    @property
    def dtype(self) -> type[np.uint8] | type[np.float32]:
        """Of what networks see."""
        return np.uint8 if self.mean is None else np.float32


# Nothing is said of scans.
PLAIN = Rule()


@dataclass(frozen=True)
class Scan:
    """An image as its file has it, upright.

    Attributes:
        values: shape (height, width, bands), in the file's own unit.
        bits: of a value, as the file says.
        window: centre and width that the file itself asks for.
        inverted: small values are bright.
        missing: the value that stands for nothing.
        medical: of DICOM.
    """

    values: Values
    bits: int
    window: tuple[float, float] | None = None
    inverted: bool = False
    missing: float | None = None
    medical: bool = False

    @property
    def absent(self) -> NDArray[np.bool_]:
        """Where there is no value: not a number, infinite, or the one that stands for nothing."""
        found = ~np.isfinite(self.values)
        return found if self.missing is None else found | (self.values == self.missing)


@dataclass(frozen=True)
class Header:
    """What a file tells before its values are read.

    Attributes:
        size: width and height, upright.
        bands: how many.
        bits: of a value.
        personal: names of DICOM's elements that name a person and are not empty; never their values.
    """

    size: tuple[int, int]
    bands: int
    bits: int
    personal: tuple[str, ...] = field(default=())


# ------------------------------------------------------------------------------------------------- which file


def is_scan(content: Path | bytes, rule: Rule | None = None) -> bool:
    """Whether the file is read here: DICOM, or deep values or many bands that Pillow would spoil or refuse.

    Args:
        content: a file or its bytes.
        rule: with one that asks for something, every TIFF and 16-bit PNG is.
    """
    head = _head(content)
    if _is_dicom(content, head):
        return True
    if rule is not None and not rule.plain:
        return head.startswith(TIFF_MAGIC) or _is_deep_png(head)
    if not head.startswith(TIFF_MAGIC):
        return False
    try:
        with opened(content, any_size=True) as image:
            return image.mode in DEEP_MODES or _spoilt(image)
    except DataError:
        return True


def is_deep(content: Path | bytes) -> bool:
    """Whether an image has more than 8 bits a value, or is a scan: its values are looked at as they are."""
    head = _head(content)
    if head.startswith(PNG_MAGIC):
        return _is_deep_png(head) and head[PNG_BITS + 1] in OPAQUE
    if not head.startswith(TIFF_MAGIC) or is_scan(content):
        return is_scan(content)
    with opened(content, any_size=True) as image:
        return image.mode.startswith("I;16")


def _spoilt(image: Image.Image) -> bool:
    """Whether Pillow would read one of several bands alone, or mix up the rows of an image that lies."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    alone = len(image.getbands()) == 1 and tags.get(TIFF_SAMPLES, 1) > 1
    return alone or (tags.get(TIFF_ORIENTATION, 1) in SWAPPED and tags.get(TIFF_COMPRESSION, 1) == 1)


def _head(content: Path | bytes) -> bytes:
    if isinstance(content, bytes):
        return content[:132]
    with content.open("rb") as stream:
        return stream.read(132)


def _is_dicom(content: Path | bytes, head: bytes) -> bool:
    named = isinstance(content, Path) and content.suffix.lower() in DICOM_SUFFIXES
    return head[128:132] == b"DICM" or named


def _is_deep_png(head: bytes) -> bool:
    return head.startswith(PNG_MAGIC) and head[PNG_BITS : PNG_BITS + 1] == b"\x10"


def opened(content: Path | bytes, any_size: bool = False) -> Image.Image:
    """An image of Pillow's of which only the header is read.

    Args:
        content: a file or its bytes.
        any_size: leaves judging the size to the caller.

    Raises:
        DataError: it is no image, or far too large.
    """
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if size == 0:
        raise DataError("the file is empty (0 bytes)")
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        with _without_limit():
            image = Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        raise DataError(f"is no image ({', '.join(FORMATS)}, DICOM)") from None
    width, height = image.size
    if width * height > MOST_PIXELS and not any_size:
        image.close()
        raise DataError(f"is far too large: {width} x {height} pixels")
    return image


@contextmanager
def _without_limit() -> Iterator[None]:
    """Pillow warns at one size and refuses at another; we have one limit of our own.

    Pillow's is one for all threads: if two put it away at once, the second would never bring it back.
    """
    with _opening:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def size_of(content: Path | bytes) -> tuple[int, int]:
    """Width and height of any image we read, upright, by its header alone.

    Raises:
        DataError: it is no image.
    """
    if is_scan(content):
        return header(content).size
    with opened(content, any_size=True) as image:
        return upright_size(image)


# ---------------------------------------------------------------------------------------------------- reading


def header(content: Path | bytes) -> Header:
    """What a scan's file tells before its values are read.

    Raises:
        DataError: it is none we read.
    """
    head = _head(content)
    with _told():
        if _is_dicom(content, head):
            return _dicom_header(_dicom(content, with_pixels=False))
        if head.startswith(TIFF_MAGIC):
            return _tiff_header(content)
        with opened(content, any_size=True) as image:
            return Header(upright_size(image), min(3, len(image.getbands())), 16 if _is_deep_png(head) else 8)


def read(content: Path | bytes) -> Scan:
    """The values of a scan.

    Raises:
        DataError: it is none we read.
    """
    head, found = _head(content), header(content)
    values = found.size[0] * found.size[1] * found.bands
    if found.size[0] * found.size[1] > MOST_PIXELS or values > MOST_VALUES:
        raise DataError(f"is far too large: {found.size[0]} x {found.size[1]} pixels, {found.bands} bands")
    with _told():
        if _is_dicom(content, head):
            return _dicom_scan(_dicom(content, with_pixels=True))
        if head.startswith(TIFF_MAGIC):
            return _tiff_scan(content)
        return _png_scan(content)


@contextmanager
def _told() -> Iterator[None]:
    """Whatever a decoder meets a hostile file with becomes one line, and nothing else is said of it."""
    logs = [logging.getLogger(name) for name in ("pydicom", "tifffile")]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings(action="ignore"):
            yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(" ".join(str(error).split()) or type(error).__name__) from None
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _dicom(content: Path | bytes, with_pixels: bool) -> Any:  # noqa: ANN401 - pydicom's data set
    import pydicom
    from pydicom.errors import InvalidDicomError

    source = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        data = pydicom.dcmread(source, stop_before_pixels=not with_pixels)
    except InvalidDicomError:
        raise DataError("is no DICOM file: the header with `DICM` is missing") from None
    if "Rows" not in data or "Columns" not in data or "BitsAllocated" not in data:
        what = data.get("Modality")
        raise DataError(f"is DICOM{f' of modality {what}' if what else ''} but holds no image")
    frames = int(data.get("NumberOfFrames") or 1)
    if frames > 1:
        raise DataError(f"holds {frames} frames; save each as a file of its own")
    return data


def _dicom_header(data: Any) -> Header:  # noqa: ANN401 - pydicom's data set
    colour = data.get("PhotometricInterpretation") == "PALETTE COLOR"
    bands = 3 if colour else int(data.get("SamplesPerPixel") or 1)
    personal = tuple(name for name in PERSONAL if str(data.get(name) or "").strip())
    return Header((int(data.Columns), int(data.Rows)), bands, int(data.BitsStored), personal)


def _dicom_scan(data: Any) -> Scan:  # noqa: ANN401 - pydicom's data set
    """Values in the unit of the file's rescale slope and intercept, or colours as red, green and blue."""
    from pydicom import pixels

    from steps import dicom_codecs

    dicom_codecs.register()
    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(data.dir()):
        raise DataError("is DICOM but holds no pixels")
    values, bits = pixels.pixel_array(data), int(data.BitsStored)
    kind = str(data.get("PhotometricInterpretation"))
    if kind == "PALETTE COLOR":
        values = pixels.apply_color_lut(values, data)
        bits = 8 * values.dtype.itemsize
    elif values.ndim == 2 and ("RescaleSlope" in data or "ModalityLUTSequence" in data):
        values = pixels.apply_modality_lut(values, data)
    if values.ndim == 2:
        values = values[..., None]
    if bits == 1:
        values = values * np.uint8(255)
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    native = values.astype(values.dtype.newbyteorder("="))
    return Scan(native, bits, _own_window(data), kind == "MONOCHROME1", medical=True)


def _own_window(data: Any) -> tuple[float, float] | None:  # noqa: ANN401 - pydicom's data set
    """The first of the windows that the file asks for."""
    found = []
    for name in ("WindowCenter", "WindowWidth"):
        value = data.get(name)
        if value is None or value == "":
            return None
        found.append(float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value))
    return (found[0], found[1]) if found[1] > 0 else None


@contextmanager
def _tiff(content: Path | bytes) -> Iterator[tuple[Any, Any]]:
    """The first image of a TIFF: tifffile's series and its first page."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content) if isinstance(content, bytes) else content) as file:
        series = file.series[0]
        images = sum(not page.subfiletype & NO_IMAGE for page in file.pages)
        if images > len(series.pages):
            raise DataError(f"holds {images} images; save each as a file of its own")
        yield series, series.keyframe


def _axes(series: Any) -> tuple[str, tuple[int, ...]]:  # noqa: ANN401 - tifffile's
    """The axes of an image, those of length 1 left out; rows, columns, and bands if there are any."""
    kept = [
        (name, length)
        for name, length in zip(series.axes, series.shape, strict=True)
        if length > 1 or name in "YX"
    ]
    axes = "".join(name for name, _ in kept)
    if sorted(axes.replace("S", "C")) not in (["X", "Y"], ["C", "X", "Y"]):
        pages = " x ".join(f"{length} ({name})" for name, length in kept)
        raise DataError(f"holds more than one image, {pages}; save each as a file of its own")
    return axes, tuple(length for _, length in kept)


def _tiff_header(content: Path | bytes) -> Header:
    with _tiff(content) as (series, page):
        axes, shape = _axes(series)
        lengths = dict(zip(axes, shape, strict=True))
        width, height = lengths["X"], lengths["Y"]
        bands = lengths.get("C", lengths.get("S", 1))
        if _orientation(page) in SWAPPED:
            width, height = height, width
        return Header((width, height), bands, 8 * series.dtype.itemsize)


def _orientation(page: Any) -> int:  # noqa: ANN401 - tifffile's
    tag = page.tags.get(TIFF_ORIENTATION)
    return 1 if tag is None else int(tag.value)


def _tiff_scan(content: Path | bytes) -> Scan:
    with _tiff(content) as (series, page):
        axes, shape = _axes(series)
        values = np.asarray(series.asarray()).reshape(shape)
        if values.dtype.kind not in "uif":
            raise DataError(f"its values are {values.dtype}; whole or real numbers are needed")
        bands = [at for at, name in enumerate(axes) if name not in "YX"]
        order = (axes.index("Y"), axes.index("X"), *bands)
        values = values.transpose(order)
        values = values if bands else values[..., None]
        tag = page.tags.get(GDAL_NODATA)
        missing = None if tag is None else float(str(tag.value).strip("\0 "))
        inverted = int(page.photometric) == MIN_IS_WHITE
        native = values.astype(values.dtype.newbyteorder("="))
        return Scan(_turned(native, _orientation(page)), 8 * values.dtype.itemsize, None, inverted, missing)


def _turned(values: Values, orientation: int) -> Values:
    """Upright, as Pillow's `exif_transpose` turns images."""
    if orientation in SWAPPED:
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return np.ascontiguousarray(values)


def _png_scan(content: Path | bytes) -> Scan:
    import imagecodecs

    values = imagecodecs.png_decode(content if isinstance(content, bytes) else content.read_bytes())
    values = values[..., None] if values.ndim == 2 else values
    if values.shape[2] in (2, 4):
        alpha = values[..., -1:]
        if (alpha != np.iinfo(values.dtype).max).any():
            raise DataError("is a PNG of 16 bits with transparent pixels; save it without transparency")
        values = values[..., :-1]
    return Scan(np.ascontiguousarray(values), 8 * values.dtype.itemsize)


# ------------------------------------------------------------------------------------- what networks are fed


def fed(scan: Scan, rule: Rule) -> Values:
    """What a network sees of a scan before it is a square: shape (height, width, channels).

    uint8, or float32 where the rule knows each band's mean.

    Raises:
        DataError: the rule does not say enough for such a scan; the message tells what is missing.
    """
    values = _filled(_chosen(scan.values, rule), _chosen(scan.absent, rule), rule)
    if rule.mean is not None:
        assert rule.std is not None
        mean, std = np.asarray(rule.mean, np.float32), np.asarray(rule.std, np.float32)
        standard = (values.astype(np.float32) - mean) / std
        return np.asarray(-standard if scan.inverted else standard)
    shown = _bytes(values, scan, rule)
    shown = 255 - shown if scan.inverted else shown
    # Grey where three channels are wanted.
    return shown if shown.shape[2] == rule.channels else np.repeat(shown, rule.channels, axis=2)


def _chosen(values: Values, rule: Rule) -> Values:
    count = values.shape[2]
    if rule.bands is None:
        if count in (1, 3):
            return values
        raise DataError(
            f"has {count} bands: say in params.yaml which are used, e.g. `model.bands: [{min(count - 1, 2)}, "
            f"{min(count - 1, 1)}, 0]` for three of them"
        )
    if max(rule.bands) >= count:
        raise DataError(f"has {count} bands, 0 to {count - 1}, but `model.bands` names {max(rule.bands)}")
    return values[..., list(rule.bands)]


def _filled(values: Values, absent: Values, rule: Rule) -> Values:
    if not absent.any():
        return values
    if rule.fill is None:
        raise DataError(
            f"{int(absent.any(axis=2).sum()):,} pixels have no value (NaN, infinite or the file's no-data "
            "value): say with `model.fill` what stands for them"
        )
    # A fraction or a number below zero would not fit into whole numbers.
    return np.where(absent, np.float32(rule.fill), values)


def _bytes(values: Values, scan: Scan, rule: Rule) -> NDArray[np.uint8]:
    if rule.window is None and scan.values.dtype == np.uint8:
        return values.clip(0, 255).astype(np.uint8)
    window = rule.window or scan.window
    if window is not None:
        return windowed(values, window)
    if scan.values.dtype == np.uint16 and not scan.medical and rule.bands is None:
        # As Pillow's images of 16 bits are read where nothing is said.
        return (values.astype(np.uint32) >> 8).astype(np.uint8)
    low, high = float(values.min()), float(values.max())
    raise DataError(
        f"its values are {scan.values.dtype}, here {low:g} to {high:g}: say which are black and white "
        "with `model.window: [centre, width]`, or give `model.bands` with `band_mean` and `band_std`"
    )


def windowed(values: Values, window: tuple[float, float]) -> NDArray[np.uint8]:
    """Values of a window as bytes: black at its lower end and below, white at its upper end and above.

    DICOM's LINEAR_EXACT (PS3.3, C.11.2.1.3.2).
    """
    centre, width = window
    scaled = (values.astype(np.float32) - np.float32(centre - width / 2)) * np.float32(255 / width)
    return np.asarray((scaled + np.float32(0.5)).clip(0, 255), dtype=np.uint8)


def square(values: Values, fit: Callable[[Image.Image], Image.Image]) -> Values:
    """Values of any channels as a square.

    Args:
        values: uint8 or float32, shape (height, width, channels).
        fit: makes a square of an image, whatever its mode.
    """
    if values.dtype == np.uint8 and values.shape[2] == 3:
        return np.asarray(fit(Image.fromarray(values)), dtype=np.uint8)
    bands = [
        np.asarray(fit(Image.fromarray(np.ascontiguousarray(values[..., at]))))
        for at in range(values.shape[2])
    ]
    return np.stack(bands, axis=2).astype(values.dtype)


def fitted(image: Image.Image, side: int, whole: bool) -> Image.Image:
    """An image as a square: its middle cut out, or the whole of it squeezed."""
    if whole:
        return image.resize((side, side), Image.Resampling.BICUBIC)
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


# ---------------------------------------------------------------------------------------------- for people


def picture(content: Path | bytes) -> Image.Image:
    """Any image we read as people see it: upright, 8 bits, red, green and blue.

    A scan's values are shown from the smallest to the largest, but for one per cent at either end, or in the
    window its file asks for; of many bands their mean.

    Raises:
        DataError: it is no image.
    """
    if not is_deep(content):
        try:
            with opened(content) as image:
                return upright(image)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise DataError(f"is no image we can read: {' '.join(str(error).split())}") from None
    return shown(read(content))


def shown(scan: Scan) -> Image.Image:
    """A scan as people see it, see `picture`."""
    values = scan.values
    if values.dtype == np.uint8 and values.shape[2] in (1, 3):
        found = values
    else:
        seen = np.where(scan.absent, np.nan, values.astype(np.float32))
        if seen.shape[2] not in (1, 3):
            seen = seen.mean(axis=2, keepdims=True)
        known = seen[np.isfinite(seen)]
        low, high = np.percentile(known, (TAIL, 100 - TAIL)) if known.size else (0.0, 1.0)
        own = scan.window or (float(low + high) / 2, max(float(high - low), 1e-6))
        found = windowed(np.nan_to_num(seen, nan=float(low)), own)
    found = 255 - found if scan.inverted else found
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(found, (*found.shape[:2], 3))))


def patient(content: Path | bytes) -> str | None:
    """A name for the person a DICOM file is of that tells nobody who it is: a hash of the patient's number.

    None of other files, and where the number is missing. It is no secret for whoever knows the numbers
    there may be, so it must not be published with the scans.
    """
    if not _is_dicom(content, _head(content)):
        return None
    try:
        with _told():
            number = str(_dicom(content, with_pixels=False).get("PatientID") or "").strip()
    except DataError:
        return None
    return f"patient-{hashlib.sha256(number.encode()).hexdigest()[:12]}" if number else None
