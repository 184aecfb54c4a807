"""`headstart monitor`: whether new inputs still come from where an experiment's data came from."""

from __future__ import annotations

from typing import Annotated

import typer

from headstart import terminal


def monitor(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Its name in params.yaml.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[INPUT]...", help="Files, a folder or tables; none: what was recorded."),
    ] = None,
) -> None:
    """Tell whether new inputs have drifted from the data. Needs no labels."""
    # A path is meant from where the user stands.
    absolute = [terminal.absolute(one) for one in inputs or []]
    terminal.enter_clone()
    # A text may begin with a dash.
    raise typer.Exit(terminal.run_step("monitor", experiment, "--", *absolute))
