"""What came out, as tables for people; as many columns as the terminal has room for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.summary import ArmRow, Summary

# Blanks between two columns.
GAP = 2


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: its head; a new line where it may be folded.
        cells: from top to bottom.
        rank: where there is no room, the highest goes first.
        justify: numbers to the right.
    """

    name: str
    cells: list[str]
    rank: int
    justify: Literal["left", "right"] = "left"

    @property
    def width(self) -> int:
        """In cells of the terminal."""
        return max(map(cell_len, [*self.name.split("\n"), *self.cells]))


def show(console: Console, summaries: Iterable[Summary]) -> None:
    """Print each experiment's table, its verdict and where its results are."""
    for number, summary in enumerate(summaries):
        if number:
            console.print()
        _show_one(console, summary)
    console.print()


def _show_one(console: Console, summary: Summary) -> None:
    title = Text(clean(summary.experiment), style="bold")
    title.append(f"  {clean(summary.about)}", style="dim not bold")
    console.print(title, soft_wrap=True)
    columns = columns_of(summary)
    shown = fitting(columns, console.width)
    console.print(_table(shown, summary.rows))
    missing = [column.name.replace("\n", " ") for column in columns if column not in shown]
    if missing:
        told = f"A wider terminal, or the report, also has: {', '.join(missing)}."
        console.print(Text(told, style="dim"))
    console.print()
    # The verdict comes as Markdown: `arm` in back-ticks.
    verdict = Text(clean(summary.verdict.replace("`", "")), style="bold")
    console.print(verdict, soft_wrap=not console.is_terminal)
    for name, value in _addresses(summary):
        console.print(Text(f"  {name:<9} {clean(value)}"), soft_wrap=True)


def columns_of(summary: Summary) -> list[Column]:
    """All that the table could show, most important first in rank; what no arm has is left out."""
    rows, reference = summary.rows, clean(summary.reference)
    over = f"over {reference}" if reference != "-" else "over the reference"
    columns = [
        Column("arm", [clean(row.arm) for row in rows], 0),
        Column(clean(summary.metric), [clean(row.score) for row in rows], 0),
        Column(over, [clean(row.gain) for row in rows], 1),
        Column("call", [clean(row.call) for row in rows], 2),
        Column("epochs\nto target", [clean(row.epochs) for row in rows], 3, "right"),
        Column("times\nsooner", [clean(row.sooner) for row in rows], 5, "right"),
        Column(f"{summary.counted}\nsaved", [clean(row.saved) for row in rows], 4, "right"),
        Column("tuning\ntrials", [clean(row.trials) for row in rows], 6, "right"),
    ]
    return [column for column in columns if column.rank == 0 or set(column.cells) != {"-"}]


def fitting(columns: list[Column], width: int) -> list[Column]:
    """The columns there is room for, in their order; arm and score always."""
    kept = list(columns)
    while sum(column.width for column in kept) + GAP * (len(kept) - 1) > width:
        last = max(kept, key=lambda column: column.rank)
        if last.rank == 0:
            break
        kept.remove(last)
    return kept


def _table(columns: list[Column], rows: tuple[ArmRow, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for column in columns:
        # Figures are never cut; names may be folded.
        table.add_column(
            Text(column.name), justify=column.justify, no_wrap=column.name != "arm", overflow="fold"
        )
    for at, row in enumerate(rows):
        cells = [Text(column.cells[at]) for column in columns]
        table.add_row(*cells, style="bold green" if row.is_best else None)
    return table


def clean(text: str) -> str:
    """Text without signs that would steer a terminal."""
    return "".join(sign for sign in text if sign.isprintable())


def _addresses(summary: Summary) -> list[tuple[str, str]]:
    lines = [("report", f"{summary.report}/report.html")]
    if summary.model is None:
        return [*lines, ("model", f"not registered; `headstart publish {summary.experiment}` does it")]
    assert summary.tracking_uri is not None
    local = not summary.tracking_uri.startswith("http")
    look = f"mlflow ui --backend-store-uri {summary.tracking_uri}" if local else summary.tracking_uri
    return [*lines, ("model", summary.model), ("MLflow", look)]
