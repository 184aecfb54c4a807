"""The command line. Nothing heavy is imported before a command needs it: `--help` answers at once.

Exit codes: 0 fine, 1 our mistake, 2 the user's, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from headstart import (
    __version__,
    monitoring,
    nights,
    operating,
    releasing,
    reproduce,
    serving,
    spreading,
    terminal,
)
from steps.errors import HeadstartError, UserError

if TYPE_CHECKING:
    from flows.pipeline import Report

STOPPED = 130
SIGNS = {"ok": "[green]ok  [/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}

app = typer.Typer(
    name="headstart",
    help="From a small labelled data set to a model you can trust.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Experiments = Annotated[
    list[str] | None, typer.Argument(metavar="[EXPERIMENT]...", help="Names in params.yaml; all if none.")
]

ExperimentName = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Its name in params.yaml.")]
ArmName = Annotated[str, typer.Argument(metavar="ARM", help="Its name under `arms:`.")]


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """From a small labelled data set to a model you can trust."""
    if version:
        print(f"headstart {__version__}")  # noqa: T201
    elif context.invoked_subcommand is None:
        print(context.get_help())  # noqa: T201
    else:
        return
    raise typer.Exit


@app.command()
def run(experiments: Experiments = None) -> None:
    """Run experiments, from raw data to a registered model. What is up to date is not done again."""
    terminal.enter_clone()
    from flows import lock, server
    from steps import artifacts, params

    checked = params.load(artifacts.PARAMS_FILE)  # a mistake is told before anything starts
    lock.check_free()
    server.prepare()
    from flows import pipeline
    from headstart import display

    names = pipeline.chosen(experiments or [], checked)
    console = terminal.console()
    server.reach()
    with display.shown(console):
        try:
            report, failed = pipeline.run(names), None
        except pipeline.PipelineFailedError as error:
            report, failed = error.report, error
    _conclude(console, report)
    if failed is not None:
        raise failed


@app.command()
def results(experiments: Experiments = None) -> None:
    """Show the results there are."""
    terminal.enter_clone()
    from flows import summary
    from headstart.results import show

    found = {name: summary.read(name) for name in experiments or summary.finished()}
    missing = [name for name, one in found.items() if one is None]
    if missing or not found:
        what = f"experiment {missing[0]!r} has" if missing else "there are"
        raise UserError(f"{what} no results yet; `headstart run` makes them")
    show(terminal.console(), filter(None, found.values()))


@app.command("show")
def show_arm(experiment: ExperimentName, arm: ArmName) -> None:
    """Show what an arm stands for, and does with every layer."""
    terminal.enter_clone()
    raise typer.Exit(terminal.run_step("show", experiment, arm))


@app.command()
def lr(experiment: ExperimentName, arm: ArmName) -> None:
    """Propose a learning rate for an arm. It is looked for on the training data."""
    terminal.enter_clone()
    raise typer.Exit(terminal.run_step("rate_range", experiment, arm))


@app.command()
def rank(experiment: ExperimentName) -> None:
    """Weigh pretrained backbones for the data, before any training."""
    terminal.enter_clone()
    from flows import lock
    from flows.stages import Stages
    from steps import artifacts, params
    from steps.settings import suggest

    checked = params.load(artifacts.PARAMS_FILE)
    if experiment not in checked.experiments:
        raise UserError(f"there is no experiment {experiment!r}{suggest(experiment, checked.experiments)}")
    settings = checked.experiments[experiment]
    backbones = dict.fromkeys((settings.model.pretrained, *settings.candidates))
    console, stages = terminal.console(), Stages()
    data = [f"{step}@{experiment}" for step in ("ingest", "validate", "split")]
    with lock.one_run():
        for stage in ["resolve", *data, *(f"fetch@{slug}" for slug in backbones)]:
            outcome = stages.run(stage, lambda line: None)
            if outcome.how == "ran":
                console.out(f"{stage}: {outcome.last_line}", highlight=False)
    raise typer.Exit(terminal.run_step("rank", experiment))


@app.command()
def pin(
    experiment: ExperimentName,
    candidates: Annotated[bool, typer.Option("--candidates", help="Those of `candidates:` too.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail if something moved.")] = False,
) -> None:
    """Pin an experiment's pretrained weights in params.yaml. With newest revision, hash and licence."""
    terminal.enter_clone()
    from headstart.pin import show

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "rows.json"
        options = ["--candidates"] * candidates + ["--check"] * check
        code = terminal.run_step("pin", experiment, *options, "--report", str(report))
        if report.exists():
            show(terminal.console(), report, check=check)
    raise typer.Exit(code)


@app.command()
def publish(experiments: Experiments = None) -> None:
    """Bring to MLflow what it missed. Runs, curves, and the registered model."""
    terminal.enter_clone()
    from flows import summary

    names = experiments or summary.finished()
    if not names:
        raise UserError("there are no results yet; `headstart run` makes them")
    codes = [terminal.run_step("register", name) for name in names]
    raise typer.Exit(max(codes))


@app.command()
def doctor() -> None:
    """Look whether all that a run needs is here; say what to change."""
    terminal.enter_clone()
    from rich.markup import escape

    from headstart.doctor import examine

    console = terminal.console()
    failed = 0
    for finding in examine():
        failed += finding.level == "fail"
        line = f"{SIGNS[finding.level]}  {finding.subject:<28} {escape(finding.text)}"
        console.print(line, highlight=False, soft_wrap=True)
    if failed:
        raise UserError(f"{failed} check{'s' * (failed != 1)} failed; each line above says what to change")


# commands of their own modules
app.command("predict")(serving.predict)
app.command("serve")(serving.serve)
app.command("container")(serving.container)
app.command("nightly")(nights.nightly)
app.command("promote")(releasing.promote)
app.command("rollback")(releasing.rollback)
app.command("history")(releasing.history)
app.command("why")(releasing.why)
app.command("reproduce")(reproduce.reproduce)
app.command("spread")(spreading.spread)
app.command("worker")(spreading.worker)
app.command("ui")(operating.ui)
app.command("deploy")(operating.deploy)
app.command("monitor")(monitoring.monitor)


def main() -> int:
    """Run the command line and give its exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = app(standalone_mode=False)
    except HeadstartError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _fail(f"{error.format_message()} See `headstart --help`.", UserError.exit_code)
    if code == STOPPED:  # what typer makes of Ctrl-C
        print("stopped; run again to go on where it was", file=sys.stderr)  # noqa: T201
    return code if isinstance(code, int) else 0


def _conclude(console: Console, report: Report) -> None:
    """Say what came out of a run."""
    from flows import summary
    from headstart.results import show

    console.print()
    done = [name for name in report.experiments if name not in report.failures]
    found = [one for one in map(summary.read, done) if one is not None]
    show(console, found)
    for name, reason in report.unpublished.items():
        console.print(f"[yellow]not published[/] {name}: {reason}; later: `headstart publish {name}`",
                      highlight=False, soft_wrap=True)  # fmt: skip
    if report.nothing_changed and not any(one.is_new for one in found):
        console.print(f"Nothing changed: all {len(report.outcomes)} steps were up to date.", highlight=False)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)  # noqa: T201
    return code


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
