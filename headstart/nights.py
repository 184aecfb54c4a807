"""`headstart nightly`: look for a cause to train anew, and do what it asks for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from headstart import terminal

if TYPE_CHECKING:
    from rich.console import Console

    from flows.night import Night

Experiments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[EXPERIMENT]...", help="Names in params.yaml; those of `nightly` if none."),
]


def nightly(
    experiments: Experiments = None,
    force: Annotated[bool, typer.Option("--force", help="Build anew even where there is no cause.")] = False,
) -> None:
    """Train anew where there is a cause. Data, drift, code, parameters, age; without one it ends at once."""
    terminal.enter_clone()
    from flows import lock, server
    from flows.stages import chosen
    from steps import artifacts, params

    checked = params.load(artifacts.PARAMS_FILE)  # a mistake is told before anything starts
    names = chosen(experiments or list(checked.nightly.experiments or ()), checked)
    killed = lock.check_free()
    server.prepare()
    console = terminal.console()
    if os.environ.get("PREFECT_API_URL"):
        server.reach()  # where there is a server, every night is to be seen there
    elif not force and not killed and _nothing_to_do(console, names):
        return
    from flows import nightly as flow
    from headstart import display

    server.reach()
    with display.shown(console):
        try:
            night, failed = flow.run(names, force=force), None
        except flow.NightFailedError as error:
            night, failed = error.night, error
    _show(console, night)
    if failed is not None:
        raise failed


def _nothing_to_do(console: Console, names: list[str]) -> bool:
    """Look without Prefect; where there is no cause that is all there is to do, and is written down."""
    from time import monotonic

    from flows import lock, night
    from flows.stages import Stages
    from steps import artifacts, params

    began, stages = monotonic(), Stages()
    with lock.one_run():
        found = night.look(stages, names, params.load(artifacts.PARAMS_FILE))
        if not found.quiet or not stages.up_to_date("resolve"):
            return False
        found.results = [night.rest(one) for one in found.looks]
        found.seconds = monotonic() - began
        found.end()
    _show(console, found)
    return True


def _show(console: Console, night: Night) -> None:
    """One line for each experiment, and what it was because of."""
    from rich.markup import escape

    from flows.night import SIGNS

    console.print()
    for one in night.results:
        console.print(
            f"[bold]{escape(one.look.experiment)}[/]  {SIGNS[one.end]}: {escape(one.text)}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        for cause in one.look.causes:
            console.print(f"  because of {escape(str(cause))}", highlight=False, soft_wrap=True)
    for run in night.crashed:
        console.print(f"The run {escape(run)} had died; its work was taken over.", highlight=False)
