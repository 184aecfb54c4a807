"""Commands for many machines: `headstart spread` gives stages away, `headstart worker` takes them."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from headstart import terminal
from steps.errors import UserError

if TYPE_CHECKING:
    from flows.pipeline import Report

# Prefect's loggers of task runs and flow runs; the flow marks the records that are for the terminal.
LOGGERS = ("prefect.task_runs", "prefect.flow_runs")
PoolName = Annotated[str, typer.Option(metavar="NAME", help="The Prefect work pool.")]


def spread(
    experiments: Annotated[
        list[str] | None, typer.Argument(metavar="[EXPERIMENT]...", help="Names in params.yaml; all if none.")
    ] = None,
    pool: PoolName = "headstart",
    dead_after: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="Without a sign of life, a stage is given to another worker.", min=10
        ),
    ] = 60.0,
) -> None:
    """Run experiments with the workers of a pool. They make features and trainings, this clone owns them."""
    terminal.enter_clone()
    from flows import lock, server
    from steps import artifacts, params

    params.load(artifacts.PARAMS_FILE)  # a mistake is told before anything starts
    lock.check_free()
    _need_a_server("spread")
    server.prepare()
    server.reach()
    from flows import spread as flow
    from flows.pipeline import PipelineFailedError

    console = terminal.console()
    with _shown(console):
        try:
            report, failed = flow.run(experiments or [], pool, dead_after), None
        except PipelineFailedError as error:
            report, failed = error.report, error
    _conclude(console, report)
    if failed is not None:
        raise failed


def worker(
    pool: PoolName = "headstart",
    name: Annotated[str | None, typer.Option(help="Of this worker, in Prefect's pages.")] = None,
) -> None:
    """Work for a pool in this clone, until Ctrl-C. One stage at a time; the pool is made if there is none."""
    terminal.enter_clone()
    from flows import server

    _need_a_server("worker")
    server.prepare()
    server.reach()
    here = str(Path.cwd())
    os.environ["HEADSTART_CLONE"] = here
    # A run starts in an empty folder, and has to find this clone's flows before any installed ones.
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.pop("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", None)  # a worker's talk is for its terminal
    command = [
        "worker",
        "start",
        "--pool",
        pool,
        "--type",
        "process",
        "--limit",
        "1",
        *(["--name", name] if name else []),
    ]
    os.execv(sys.executable, [sys.executable, "-m", "prefect", *command])


def _need_a_server(command: str) -> None:
    if not os.environ.get("PREFECT_API_URL"):
        raise UserError(
            f"`headstart {command}` needs a Prefect server that all machines reach; set PREFECT_API_URL"
        )


class _Told(logging.Handler):
    """Every line as it comes, with the time: several stages are under way at once."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print what the flow marked; everything else is Prefect's own talk."""
        title = getattr(record, "title", None)
        event = getattr(record, "event", "")
        if title is not None and event != "started":
            text = record.getMessage()
            self.console.out(f"{time.strftime('%H:%M:%S')}  {title:<26} {text}", highlight=False)


@contextmanager
def _shown(console: Console) -> Iterator[None]:
    handler = _Told(console)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def _conclude(console: Console, report: Report) -> None:
    from flows import summary
    from headstart.results import show

    console.print()
    done = [name for name in report.experiments if name not in report.failures]
    show(console, [one for one in map(summary.read, done) if one is not None])
    for name, reason in report.unpublished.items():
        console.print(f"[yellow]not published[/] {name}: {reason}; later: `headstart publish {name}`",
                      highlight=False, soft_wrap=True)  # fmt: skip
