"""Thumbnails inside the page: each is there once, however often it is shown, and all keep to a budget."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Callable

from markupsafe import Markup

from steps.report import svg

# Scans of a few pixels are to be seen as they are, not blurred.
TINY = 32
_KINDS: dict[str, Callable[[bytes], bool]] = {
    "image/png": lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"),
    "image/jpeg": lambda data: data.startswith(b"\xff\xd8\xff"),
    "image/webp": lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP",
}


def kind_of(data: bytes) -> str | None:
    """The type of an image by its first bytes; None for what is no PNG, JPEG or WebP."""
    return next((kind for kind, fits in _KINDS.items() if fits(data)), None)


class Pictures:
    """Gives thumbnails ids, until the budget is spent.

    Attributes:
        left_out: how many found no room.
    """

    def __init__(self, budget: int) -> None:
        """Start with nothing.

        Args:
            budget: bytes that all thumbnails may take in the page.
        """
        self.left_out = 0
        self._budget = budget
        self._found: dict[str, tuple[str, Markup]] = {}

    def add(self, data: bytes | None) -> str | None:
        """The id of a thumbnail; None when there is none, it is no image, or the budget is spent."""
        kind = kind_of(data) if data else None
        if data is None or kind is None:
            return None
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._found:
            name = f"t{len(self._found)}"
            drawn = _symbol(name, kind, data)
            if len(drawn) > self._budget:
                self.left_out += 1
                return None
            self._budget -= len(drawn)
            self._found[digest] = name, drawn
        return self._found[digest][0]

    def definitions(self) -> Markup:
        """All thumbnails, for one hidden drawing at the start of the page."""
        return svg.join(drawn for _, drawn in self._found.values())


def _symbol(name: str, kind: str, data: bytes) -> Markup:
    address = f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
    wide = struct.unpack(">I", data[16:20])[0] if kind == "image/png" and len(data) >= 20 else TINY + 1
    image = svg.element(
        "image", href=address, width="100", height="100", class_="tiny" if wide <= TINY else None
    )
    return svg.element("symbol", image, id=name, viewBox="0 0 100 100")
