"""A run as it is seen: in a terminal one line a stage, elsewhere every line with the time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

if TYPE_CHECKING:
    from flows.stages import Outcome

# Prefect's loggers of task runs; the flow marks the records that are for the terminal with a title.
LOGGER = "prefect.task_runs"
TITLE_WIDTH, TOOK_WIDTH = 26, 10
SAID_LINES = 20
HOW = {"ran": "done", "restored": "restored from the cache", "unchanged": "unchanged"}


@contextmanager
def shown(console: Console) -> Iterator[None]:
    """Show the stages of the run that goes on inside the block."""
    handler = _Live(console) if console.is_terminal else _Plain(console)
    logger = logging.getLogger(LOGGER)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


class _Stages(logging.Handler):
    """Sorts the flow's records into what happened to a stage."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on what the flow marked; everything else is Prefect's own talk."""
        title = getattr(record, "title", None)
        if title is None:
            return
        event = record.event  # type: ignore[attr-defined]  # set together with the title
        if event == "started":
            self.started(title)
        elif event == "line":
            self.line(title, record.getMessage())
        elif event == "failed":
            self.failed(title)
        else:
            self.ended(title, record.outcome)  # type: ignore[attr-defined]

    def started(self, title: str) -> None:
        """A stage is looked at."""

    def line(self, title: str, text: str) -> None:
        """A stage said something."""

    def failed(self, title: str) -> None:
        """A stage failed; why, is told at the end of the run."""

    def ended(self, title: str, outcome: Outcome) -> None:
        """A stage is up to date."""

    def show(self, sign: str, style: str, title: str, took: str, text: str) -> None:
        """Print one line and keep it; what is too long for the terminal is cut."""
        line = f"[{style}]{sign}[/] {title:<{TITLE_WIDTH}} [dim]{took:>{TOOK_WIDTH}}[/]  {escape(text)}"
        self.console.print(line, highlight=False, no_wrap=True, overflow="ellipsis")


class _Plain(_Stages):
    """For files and pipes: every line as it comes, with the time."""

    def line(self, title: str, text: str) -> None:
        """Print it."""
        self._print(title, text)

    def failed(self, title: str) -> None:
        """Print that it failed."""
        self._print(title, "failed")

    def ended(self, title: str, outcome: Outcome) -> None:
        """Print what became of it."""
        took = f" in {elapsed(outcome.seconds)}" if outcome.how == "ran" else ""
        self._print(title, HOW[outcome.how] + took)

    def _print(self, title: str, text: str) -> None:
        self.console.out(f"{time.strftime('%H:%M:%S')}  {title:<{TITLE_WIDTH}} {text}", highlight=False)


class _Live(_Stages):
    """For terminals: the stage that runs with its last line, and one line for each that ended."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.bar: Progress | None = None
        self.said: list[str] = []
        self.since = 0.0

    def started(self, title: str) -> None:
        """Show it as running."""
        self.since, self.said = time.monotonic(), []
        columns = (
            SpinnerColumn(), TextColumn(f"{title:<{TITLE_WIDTH}}"), TimeElapsedColumn(),
            TextColumn("[dim]{task.description}[/]", table_column=Column(no_wrap=True, overflow="ellipsis")),
        )  # fmt: skip
        # Nobody else prints meanwhile; and what is imported meanwhile (colorama) would keep rich's stand-in.
        self.bar = Progress(
            *columns, console=self.console, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self.bar.add_task("")
        self.bar.start()

    def line(self, title: str, text: str) -> None:
        """Show it in place of the line before."""
        self.said.append(text)
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], description=escape(beside(title, text)))

    def failed(self, title: str) -> None:
        """Keep what it said last: with an error nobody foresaw, that is all there is."""
        self._quiet()
        for text in self.said[-SAID_LINES:]:
            self.console.out(f"    {text}", highlight=False)
        self.show("✗", "red", title, elapsed(time.monotonic() - self.since), "failed")

    def ended(self, title: str, outcome: Outcome) -> None:
        """Keep its last line."""
        self._quiet()
        if outcome.how == "ran":
            said = beside(title, outcome.last_line)
            self.show("✓", "green", title, elapsed(outcome.seconds), said)
        else:
            self.show("·", "dim", title, "", HOW[outcome.how])

    def close(self) -> None:
        """Take the line of the running stage away."""
        self._quiet()
        super().close()

    def _quiet(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def beside(title: str, text: str) -> str:
    """A line as it is shown beside its title, without what that says already, as in `train digits/full`."""
    subject = title.partition(" ")[2]
    for end in (" ", ": "):
        if subject and text.startswith(subject + end):
            return text.removeprefix(subject + end)
    return text


def elapsed(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
