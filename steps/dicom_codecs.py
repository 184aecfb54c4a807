"""Decoders of DICOM's compressed images that pydicom has no library for here; imagecodecs does the work.

pydicom finds such a module by name and asks it for what it expects of one: `DECODER_DEPENDENCIES`,
`is_available` and the function that decodes a frame.
"""

from __future__ import annotations

from typing import Any

from pydicom import uid

# The transfer syntaxes: JPEG without loss (two ways), JPEG-LS (two ways), JPEG of 12 bits.
SYNTAXES = (
    uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEGLSNearLossless, uid.JPEGExtended12Bit,
)  # fmt: skip
DECODER_DEPENDENCIES = dict.fromkeys(SYNTAXES, ("imagecodecs",))
LABEL = "imagecodecs"


def register() -> None:
    """Let pydicom decode with this module; again does nothing."""
    from pydicom.pixels import get_decoder

    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        if LABEL not in decoder.available_plugins:
            decoder.add_plugin(LABEL, (__name__, "decode_frame"))


def is_available(syntax: str) -> bool:
    """Whether a transfer syntax can be decoded."""
    return syntax in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: Any) -> bytes:  # noqa: ANN401 - pydicom's DecodeRunner
    """The values of a frame, the bands of a pixel beside each other.

    Args:
        source: the frame as it is stored.
        runner: knows what the file says of it, and is told what came out.
    """
    import imagecodecs

    if runner.transfer_syntax in (uid.JPEGLSLossless, uid.JPEGLSNearLossless):
        values = imagecodecs.jpegls_decode(source)
    elif runner.transfer_syntax == uid.JPEGExtended12Bit:
        values = imagecodecs.jpeg8_decode(source)
    else:
        values = imagecodecs.ljpeg_decode(source)
    if values.ndim == 3:
        runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 * values.dtype.itemsize)
    return bytes(values.tobytes())
