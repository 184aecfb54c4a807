"""The page that lists all experiments. It belongs to no stage: whoever finishes last writes it anew."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from steps import artifacts
from steps.report import pages


def write(reports: Path) -> Path:
    """Write `index.html` from every `comparison.json` below `reports`; give its path.

    Two stages may end at the same moment. Each puts its own folder in place first and then takes turns
    here, so the later one sees both.
    """
    reports.mkdir(parents=True, exist_ok=True)
    path = reports / "index.html"
    with (reports / ".index.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with artifacts.new_file(path) as partial:
            partial.write_text(pages.render("index.html.j2", comparisons=read_all(reports)), "utf-8")
    return path


def read_all(reports: Path) -> list[dict[str, Any]]:
    """Every comparison below `reports`, by name of experiment; half-written folders are hidden ones."""
    found: list[dict[str, Any]] = []
    for path in sorted(reports.glob("*/comparison.json")):
        if path.parent.name.startswith("."):
            continue
        try:
            found.append(json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            continue  # another stage is putting its new folder in this one's place, and lists it after
    return found
