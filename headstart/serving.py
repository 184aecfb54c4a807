"""`headstart predict`, `serve`, `container`: registered models at work."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from headstart import terminal
from steps.errors import UserError

Reference = Annotated[
    str, typer.Argument(metavar="EXPERIMENT|MODEL[@ALIAS]", help="E.g. digits, or digits@challenger.")
]


def predict(
    experiment: Annotated[str, typer.Argument(help="Whose champion predicts.")],
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Files, texts, a folder or a table.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    out: Annotated[Path | None, typer.Option(help="The CSV file to write, for a folder or table.")] = None,
    batch: Annotated[
        bool,
        typer.Option("--batch", help="For many: goes on after a stop; --out ends .csv, .jsonl or .parquet."),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="With --batch: by a Ray cluster there, or one `local` to here."),
    ] = None,
) -> None:
    """Ask an experiment's champion. Labels, boxes, answers, whatever its task gives."""
    if batch and (out is None or as_json):
        raise UserError("--batch needs --out FILE, whose end (.csv, .jsonl, .parquet) says what is written")
    if ray is not None and not batch:
        raise UserError("--ray is for --batch: leave it out, or predict a folder or table with --batch")
    # A path is meant from where the user stands, a text is left as it is.
    absolute = [terminal.absolute(one) for one in inputs]
    options = ["--json"] * as_json + (["--out", str(out.absolute())] if out else [])
    options += ["--ray", ray] if ray else []
    terminal.enter_clone()
    # A text may begin with a dash.
    raise typer.Exit(
        terminal.run_step("batch" if batch else "predict", experiment, *options, "--", *absolute)
    )


def serve(
    reference: Reference,
    host: Annotated[str, typer.Option(help="The address to bind to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 5001,
) -> None:
    """Answer predictions over HTTP. A new champion takes over without losing a request."""
    terminal.enter_clone()
    # In this process's place: a signal to stop must reach the server, which ends what is under way.
    command = [sys.executable, "-m", "steps.serve", f"--host={host}", f"--port={port}", "--", reference]
    sys.stdout.flush()
    os.execv(sys.executable, command)


def container(reference: Reference, folder: Annotated[Path, typer.Argument(help="New or empty.")]) -> None:
    """Write a model and MLflow's recipe for a container. Ready for `docker build`."""
    folder = folder.absolute()
    terminal.enter_clone()
    raise typer.Exit(terminal.run_step("container", "--", reference, str(folder)))
