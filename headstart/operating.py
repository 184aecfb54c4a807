"""Commands for whoever operates Headstart: the pages of a clone, and what Prefect's server runs by itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from headstart import terminal

if TYPE_CHECKING:
    from flows.deploy import Done
    from flows.ui import Shown

CHECK_SECONDS = 0.5


def ui(
    prefect_port: Annotated[int, typer.Option(help="Of Prefect's pages; 0 takes a free one.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Of MLflow's pages; 0 takes a free one.")] = 5000,
    host: Annotated[
        str, typer.Option(help="The address they listen at; only this machine reaches the default.")
    ] = "127.0.0.1",
) -> None:
    """Show Prefect's and MLflow's pages, and work, until Ctrl-C. The worker serves the deployments."""
    started = time.monotonic()
    terminal.enter_clone()
    from flows import server
    from steps import artifacts, params

    nightly = params.load(artifacts.PARAMS_FILE).nightly  # a mistake is told before anything starts
    server.prepare(pages=False)
    from flows import ui as pages

    console = terminal.console()
    if host not in pages.LOOPBACK:
        warning = f"Whoever reaches {host} may run deployments and read results; docs/ui.md tells what to do."
        console.print(warning, style="yellow", highlight=False, soft_wrap=True)
    console.print("Starting Prefect, MLflow and a worker; Ctrl-C stops them.", highlight=False)
    try:
        with pages.running(host, prefect_port, mlflow_port, nightly) as shown:
            _show(console, shown, time.monotonic() - started)
            while True:
                time.sleep(CHECK_SECONDS)
                shown.services.check()
    except KeyboardInterrupt:
        console.print("All of them are stopped.", highlight=False)


def deploy(
    pool: Annotated[str, typer.Option(help="The work pool that runs them; made where it is missing.")] = "",
    notify: Annotated[
        Literal["webhook", "email", "off"] | None,
        typer.Option(help="Tell people of champions, refusals, failures and drift."),
    ] = None,
) -> None:
    """Register the deployments at your Prefect server. PREFECT_API_URL names it; again changes nothing."""
    terminal.enter_clone()
    from flows import server
    from steps import artifacts, params

    nightly = params.load(artifacts.PARAMS_FILE).nightly
    server.prepare()
    server.needed()
    from flows import deploy as deploying

    way = None if notify == "off" else notify
    done = deploying.deploy(pool or deploying.POOL, nightly, way, silent=notify == "off")
    console = terminal.console()
    for one in done:
        console.print(_line(one), highlight=False, soft_wrap=True)


def _show(console: Console, shown: Shown, seconds: float) -> None:
    """Say where to look."""
    clock = next((one.about for one in shown.deployments if "cron" in one.about), "")
    found = shown.addresses
    later = "" if found.has_reports else "  (the first run makes it)"
    for line in (
        f"Prefect  {found.prefect}  nightly: {clock}",
        f"MLflow   {found.mlflow}",
        f"Reports  {found.reports}{later}",
        f"Ready after {seconds:.0f} s.",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _line(one: Done) -> str:
    return f"{one.what:<9} {one.name}" + (f": {one.about}" if one.about else "")
