"""What came out, as a table for people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flows.summary import Summary


def show(console: Console, summaries: Iterable[Summary]) -> None:
    """Print the table of all arms, then each experiment's verdict and where its results are."""
    summaries = list(summaries)
    if not summaries:
        return
    console.print(_table(summaries))
    for summary in summaries:
        console.print()
        # The verdict comes as Markdown: `arm` in backquotes.
        verdict = Text(summary.verdict.replace("`", ""), style="bold")
        console.print(verdict, soft_wrap=not console.is_terminal)
        for name, value in _addresses(summary):
            console.print(f"  {name:<9} {escape(value)}", highlight=False, soft_wrap=True)
    console.print()


def _table(summaries: list[Summary]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("experiment")
    table.add_column("arm")
    table.add_column("test metric")
    table.add_column("mean, interval", no_wrap=True)
    for name in ("seeds", "epochs to target", "seconds to target"):
        table.add_column(name, justify="right")
    for summary in summaries:
        for index, row in enumerate(summary.rows):
            cells = (
                summary.experiment if index == 0 else "", row.arm, summary.metric, row.score,
                str(row.seeds), row.epochs, row.seconds,
            )  # fmt: skip
            table.add_row(*cells, style="bold green" if row.is_best else None)
    return table


def _addresses(summary: Summary) -> list[tuple[str, str]]:
    lines = [("report", f"{summary.report}/report.html")]
    if summary.model is None:
        return [*lines, ("model", f"not registered; `headstart publish {summary.experiment}` does it")]
    assert summary.tracking_uri is not None
    local = not summary.tracking_uri.startswith("http")
    look = f"mlflow ui --backend-store-uri {summary.tracking_uri}" if local else summary.tracking_uri
    return [*lines, ("model", summary.model), ("MLflow", look)]
