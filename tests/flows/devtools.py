"""A real browser without a screen, driven over its DevTools protocol as a person would: look, click, type."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.report.browser import chromium

WIDTH, HEIGHT = 1200, 800
SECONDS = 60.0
# What a person sees as one button, link or tab of this text; the innermost one.
FIND = """((text, kinds) => {
  const seen = one => { const box = one.getBoundingClientRect();
    return box.width > 0 && box.height > 0 && getComputedStyle(one).visibility !== 'hidden'; };
  const found = [...document.querySelectorAll(kinds)].filter(
    one => seen(one) && (one.innerText || one.getAttribute('aria-label') || one.title || '').trim() === text);
  const best = found.filter(one => !found.some(other => other !== one && one.contains(other)))[0];
  if (!best) return null;
  best.scrollIntoView({block: 'center'});
  const box = best.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
})"""
KINDS = "a, button, label, [role=button], [role=menuitem], [role=tab], [role=option], li, span, p, h1, h2, td"


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")
        self.size(HEIGHT)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; gives its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            told = json.loads(self._socket.recv(timeout=SECONDS))
            if told.get("id") == self._number:
                assert "error" not in told, f"{method}: {told['error']}"
                result: dict[str, Any] = told["result"]
                return result

    def size(self, height: int, width: int = WIDTH) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def goto(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def text(self) -> str:
        """What can be read."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def wait_for(self, *texts: str, seconds: float = SECONDS) -> str:
        """Wait until the page shows all of these; give all it shows."""
        deadline = time.monotonic() + seconds
        while True:
            shown = self.text()
            missing = [text for text in texts if text not in shown]
            if not missing:
                return shown
            assert time.monotonic() < deadline, f"{missing} not in {self.evaluate('location.href')}:\n{shown}"
            time.sleep(0.2)

    def click(self, text: str, kinds: str = KINDS, seconds: float = SECONDS) -> None:
        """Press the mouse on what bears this text, as soon as it is there."""
        self.press(f"{FIND}({json.dumps(text)}, {json.dumps(kinds)})", seconds)

    def press(self, script: str, seconds: float = SECONDS) -> None:
        """Press the mouse where a script says, as soon as it says so: [x, y], or null."""
        deadline = time.monotonic() + seconds
        before = None
        while True:
            place = self.evaluate(script)
            if place and place == before:  # it does not move any more
                break
            before = place
            assert time.monotonic() < deadline, f"not to be pressed: {script[-200:]}\n{self.text()}"
            time.sleep(0.2)
        at = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
        self.call("Input.dispatchMouseEvent", type="mousePressed", **at)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **at)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        """What the screen shows, with as few colours as a picture of pages needs."""
        from PIL import Image

        taken = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(taken)).convert("RGB").quantize(192, dither=Image.Dither.NONE).save(
            path, optimize=True
        )


@contextmanager
def opened(folder: Path) -> Iterator[Page]:
    """A browser with one empty tab; it ends with the block."""
    command = [
        str(chromium()), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={folder}",
        f"--window-size={WIDTH},{HEIGHT}", "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with closing(connect(_tab(folder, process), max_size=None, proxy=None)) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tab(folder: Path, process: subprocess.Popen[bytes]) -> str:
    """The address of the first tab, as soon as the browser tells it."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the browser ended"
        try:
            port = (folder / "DevToolsActivePort").read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                pages = [one for one in json.load(answer) if one["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
        except (OSError, IndexError):
            pass
        time.sleep(0.1)
    raise AssertionError("the browser does not answer")
