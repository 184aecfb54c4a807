from __future__ import annotations

import base64
from pathlib import Path

import pytest

from steps import serving
from steps.errors import DataError


@pytest.mark.parametrize(
    "sent",
    [
        b"\x89PNG",
        bytearray(b"\x89PNG"),
        base64.b64encode(b"\x89PNG").decode(),
        "iVBO\n  Rw==",
        "data:image/png;base64,iVBORw==",
        " DATA:image/png;charset=x;base64,iVBORw==",
    ],
)
def test_an_image_is_sent_as_bytes_base64_or_data_uri(sent: object) -> None:
    assert serving.decoded(sent) == b"\x89PNG"


def test_only_python_code_can_name_a_file() -> None:
    path = Path("some/file.png")
    assert serving.decoded(path) == path
    for name in ("/etc/passwd", "some/file.png", "file:///etc/passwd", "data:text/plain,/etc/passwd"):
        with pytest.raises(DataError, match="no base64"):
            serving.decoded(name)


@pytest.mark.parametrize("sent", [None, 3, 0.5, ["a"]])
def test_anything_else_is_no_image(sent: object) -> None:
    with pytest.raises(DataError, match="is no image, but"):
        serving.decoded(sent)
