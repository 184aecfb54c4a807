"""What pinning found and changed, as a table for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headstart.results import GAP, clean

STYLES = {"pinned": "dim", "not pinned": "yellow", "moved": "yellow"}
# Of a hash, as many digits as tell it apart.
SHORT = 12


def show(console: Console, report: Path, *, check: bool) -> None:
    """Print what `steps.pin` reported: a line for each reference, then what changed in params.yaml.

    Args:
        console: to print on.
        report: the rows, as JSON.
        check: nothing was changed; told is what would be.
    """
    rows: list[dict[str, Any]] = json.loads(report.read_text("utf-8"))
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for name in ("reference", "model", "revision", "sha256"):
        table.add_column(name, no_wrap=name != "model", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    for name in ("licence", "state"):
        table.add_column(name, overflow="fold")
    for row in rows:
        cells = [
            row["slug"],
            f"{row['source']} {row['model']}",
            _short(row["revision"]),
            _short(row["sha256"]),
        ]
        cells += [_size(row["size"]), row["licence"] or "-", row["state"]]
        table.add_row(*(Text(clean(cell)) for cell in cells), style=STYLES[row["state"]])
    console.print(table)
    _show_changes(console, rows, check)


def _show_changes(console: Console, rows: list[dict[str, Any]], check: bool) -> None:
    changed = [row for row in rows if row["changes"]]
    if not changed:
        console.print("Everything is pinned to what there is today.", highlight=False)
        return
    console.print()
    console.print("What params.yaml would get:" if check else "Changed in params.yaml:", highlight=False)
    for row in changed:
        for key, (before, after) in row["changes"].items():
            former = "" if before is None else f"{before} -> "
            line = f"  pretrained.{row['slug']}.{key}: {former}{after}"
            console.print(Text(clean(line)), soft_wrap=True)


def _short(digits: str) -> str:
    return digits[:SHORT] or "-"


def _size(bytes_: int | None) -> str:
    if bytes_ is None:
        return "-"
    return f"{bytes_ / 2**20:,.1f} MiB" if bytes_ >= 2**20 / 10 else f"{bytes_ / 2**10:,.1f} KiB"
