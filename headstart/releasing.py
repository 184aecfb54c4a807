"""`headstart promote`, `rollback`, `history`, `why`: which version is champion, since when, from what."""

from __future__ import annotations

from typing import Annotated

import typer

from headstart import terminal

Model = Annotated[str, typer.Argument(metavar="MODEL", help="An experiment, or its registered model.")]
Reference = Annotated[
    str, typer.Argument(metavar="MODEL@VERSION", help="E.g. digits@challenger, or headstart-digits@3.")
]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="The reason, for the ledger.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of the page.")]


def promote(reference: Reference, why: Why = "by hand") -> None:
    """Make a version the champion by hand. The champion before becomes `previous`."""
    terminal.enter_clone()
    raise typer.Exit(terminal.run_step("release", "promote", f"--why={why}", "--", reference))


def rollback(model: Model, why: Why = "by hand") -> None:
    """Make the champion before the champion again."""
    terminal.enter_clone()
    raise typer.Exit(terminal.run_step("release", "rollback", f"--why={why}", "--", model))


def history(
    model: Model,
    as_json: AsJson = False,
    mend: Annotated[
        bool, typer.Option("--mend", help="Put an altered ledger back as this clone saw it.")
    ] = False,
) -> None:
    """Tell which version was champion since when, by whom, and why. Checks that nothing was altered."""
    terminal.enter_clone()
    options = ["--json"] * as_json + ["--mend"] * mend
    raise typer.Exit(terminal.run_step("release", "history", *options, "--", model))


def why(reference: Reference, as_json: AsJson = False) -> None:
    """Tell where a version comes from, down to the bytes. Every link is checked."""
    terminal.enter_clone()
    raise typer.Exit(terminal.run_step("why", *["--json"] * as_json, "--", reference))
