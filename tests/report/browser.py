"""Pages in a real browser: what axe-core finds, what is wider than the screen, and whether anything ran."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
POLICY = '<meta http-equiv="Content-Security-Policy"'
# A window cannot be as narrow as a phone, so each page lies in a frame.
FRAME = '<iframe id="frame{at}" width="{width}" height="900" style="border:0" srcdoc="{page}"></iframe>'
BEFORE = "<script class='ours'>window.called = 0; window.alert = () => { window.called += 1; };</script>"
AFTER = """<script class="ours">
addEventListener("load", async () => {
  const found = await axe.run(document, {resultTypes: ["violations"]});
  const grave = found.violations.filter(one => ["serious", "critical"].includes(one.impact));
  const handlers = [...document.querySelectorAll("*")].filter(
    one => [...one.attributes].some(attribute => attribute.name.startsWith("on")));
  const beyond = [...document.querySelectorAll("main, main *")].filter(
    one => one.getBoundingClientRect().right > innerWidth + 0.5 && !one.closest(".wide, pre"));
  const told = {
    beyond: beyond.slice(0, 5).map(one => one.outerHTML.slice(0, 120)),
    width: innerWidth, scrolls: document.documentElement.scrollWidth, called: window.called,
    scripts: document.querySelectorAll("script:not(.ours)").length, handlers: handlers.length,
    frames: document.querySelectorAll("iframe, object, embed, form").length,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    violations: grave.map(
      one => [one.id, one.nodes.length, one.nodes[0].html.slice(0, 200), one.nodes[0].failureSummary]),
    text: document.body.innerText,
  };
  const out = parent.document.createElement("pre");
  out.className = "told";
  out.textContent = JSON.stringify(told);
  parent.document.body.append(out);
});
</script>"""
# Boxes that the mouse would show, some of them at the edge.
SHOWN = """<style>
svg:nth-of-type(40n) > .spot .pop, .moment:last-of-type .shown { display: block !important; }
</style>"""


@dataclass(frozen=True)
class Told:
    """What one rendering of a page told.

    Attributes:
        width: of the frame.
        scrolls: width of the document.
        beyond: the first elements that lie beyond the right edge.
        called: how often `alert` was.
        scripts: script elements of the page.
        handlers: elements with an attribute such as `onload`.
        frames: elements that could bring in another page, or send a form.
        dark: whether it was in its dark dress.
        violations: of axe-core, serious or critical ones: rule, how many, the first, why.
        text: what can be read.
    """

    width: int
    scrolls: int
    beyond: list[str]
    called: int
    scripts: int
    handlers: int
    frames: int
    dark: bool
    violations: list[list[Any]]
    text: str


def chromium() -> str | None:
    """The browser, where there is one."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def look(page: str, widths: tuple[int, ...], dark: bool) -> list[Told]:
    """Open a page, all its folds open and its policy taken away, in frames of these widths."""
    start = page.index(POLICY)
    bare = page[:start] + page[page.index(">", start) + 1 :]
    axe = f"<script class='ours'>{axe_source()}</script>"
    opened = bare.replace("<details", "<details open").replace("<head>", f"<head>{BEFORE}", 1)
    whole = opened.replace("</body>", f"{SHOWN}{axe}{AFTER}</body>")
    frames = [FRAME.format(at=at, width=width, page=html.escape(whole)) for at, width in enumerate(widths)]
    written = f"<!doctype html><meta charset='utf-8'><body style='margin:0'>{''.join(frames)}</body>"
    found = dump(written, dark).split('<pre class="told">')[1:]
    told = [Told(**json.loads(html.unescape(one.split("</pre>")[0]))) for one in found]
    assert len(told) == len(widths), "a frame told nothing"
    return sorted(told, key=lambda one: one.width)


def dump(page: str, dark: bool = False) -> str:
    """The document after its scripts have run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(page, "utf-8")
        command = [
            str(chromium()), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--hide-scrollbars", f"--user-data-dir={folder}/profile", "--window-size=1500,1000",
            "--virtual-time-budget=20000", "--dump-dom",
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            path.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def axe_source() -> str:
    """The script of axe-core, out of its Python package."""
    spec = find_spec("axe_core_python")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "axe.min.js").read_text("utf-8")
