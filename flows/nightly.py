"""The nightly flow: look for a cause, do what it asks for, say what came of it.

Where there is no cause it ends within seconds. Where there is one, only the experiments that it touches are
run, and of them only the stages that DVC finds out of date. Whatever happens, the champion of yesterday
serves until a better one has passed the gate.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows import night as nights
from flows import notify, records, takeover, tasks
from flows.causes import Look
from flows.lock import one_run
from flows.night import Night, Result
from flows.pipeline import FLOW_RUN, Report, chosen, prefect_errors_named, run_one, stopped_with_the_run
from flows.stages import Stages, Stopped
from steps import artifacts, params
from steps.errors import BusyError, HeadstartError, StageError, UserError
from steps.params import Params
from steps.report import index

# Tells a step on whose behalf it changes the registry.
WHO = "HEADSTART_WHO"
# What a program may want to know of a message.
FACTS = ("causes", "outcome", "champion", "decision", "failures", "seconds")


class NightFailedError(HeadstartError):
    """At least one experiment stopped; the others went on, and every champion is where it was."""

    def __init__(self, night: Night, ours: bool) -> None:
        super().__init__("\n  ".join(f"{one.look.experiment}: {one.text}" for one in night.failed))
        self.night = night
        self.exit_code = StageError.exit_code if ours else UserError.exit_code


def _run_name() -> str:
    return f"nightly {', '.join(flow_run.parameters['experiments'] or ['all'])}"


@flow(name="headstart-nightly", flow_run_name=_run_name, persist_result=False)
def nightly(experiments: list[str] | None = None, force: bool = False) -> Night | State[Night]:
    """Train anew what there is a cause for.

    Args:
        experiments: by name; left out those of `nightly.experiments` in params.yaml, or all.
        force: build them anew even where there is no cause.

    Raises:
        NightFailedError: an experiment stopped, with its reason; the others went on.
        UserError: params.yaml is wrong, or DVC cannot work here; nothing was started.
    """
    own = _own_run()
    crashed = takeover.crash_silent(own.id)
    later = takeover.collapse(own)
    if later is not None:
        return Cancelled(message=later)
    stages = Stages(environment={FLOW_RUN: str(own.id), WHO: f"nightly (flow run {own.id})"})
    try:
        with one_run(flow_run=str(own.id)) as former, stopped_with_the_run(stages):
            crashed += takeover.crash_former(former)
            night, ours = _night(stages, experiments, force, crashed, own)
    except BusyError as busy:
        return Cancelled(message=f"{busy}; the next night looks again")
    except Stopped as stopped:
        return Cancelled(message=str(stopped))
    if night.failed:
        raise NightFailedError(night, ours)
    return night


def run(experiments: list[str], *, force: bool = False) -> Night:
    """Run the flow in this process, as the command line does.

    Raises:
        Stopped: the run was cancelled in Prefect, or left its work to another.
        HeadstartError: as the flow's own.
    """
    with prefect_errors_named():
        state: State[Any] = nightly(experiments, force, return_state=True)
        if state.is_cancelled():
            raise Stopped(f"the night was cancelled: {state.message}")
        night = state.result()
    assert isinstance(night, Night)
    return night


def _night(
    stages: Stages, asked: list[str] | None, force: bool, crashed: list[str], own: FlowRun
) -> tuple[Night, bool]:
    """The night, and whether what failed is our own mistake."""
    began, night = monotonic(), None
    try:
        checked = params.load(artifacts.PARAMS_FILE)
        names = chosen(asked or list(checked.nightly.experiments or ()), checked)
        night = nights.look(stages, names, checked, force=force)
        night.crashed = crashed
        night.begin(flow_run=str(own.id), who=f"nightly (flow run {own.id})", asked=force)
        if night.quiet and stages.up_to_date("resolve"):
            ours = False
            night.results = [nights.rest(look) for look in night.looks]
        else:
            tasks.resolve(stages)
            ours = _work(stages, night, checked)
    except Stopped:
        raise
    except HeadstartError as error:
        _failed_whole(error, own, night)
        raise
    night.seconds = monotonic() - began
    night.end()
    _tell(night)
    return night, ours


def _work(stages: Stages, night: Night, checked: Params) -> bool:
    """Run what there is a cause for; gives whether a failure was our own mistake."""
    ours = False
    for look in night.looks:
        if not look.to_run:
            night.results.append(nights.rest(look))
            continue
        result, error = _one(stages, look, night, checked)
        night.results.append(result)
        ours = ours or (error is not None and error.exit_code != UserError.exit_code)
        night.end()
    # A result restored by `dvc pull` or from DVC's cache of runs is on no page of this clone yet.
    index.write(artifacts.REPORTS)
    return ours


def _one(stages: Stages, look: Look, night: Night, checked: Params) -> tuple[Result, HeadstartError | None]:
    """Run one experiment, and what became of it."""
    name, began, report = look.experiment, monotonic(), Report([look.experiment])
    before = nights.noted(name)
    run_one(stages, name, checked, report, anew=look.anew, retries=checked.nightly.retries)
    error = report.failures.get(name)
    if error is not None:
        result = nights.failure(look, str(error), night.before)
    elif name in report.unpublished:
        result = nights.failure(look, report.unpublished[name], night.before, published=False)
    else:
        result = nights.concluded(look, before)
    if result.end == "failed" and result.failures == 0:
        result.failures = 1 + records.failed_before(night.before, name)
        often = records.in_a_row(result.failures)
        result.text = f"{often}: {result.text}" if often else result.text
    result.outcomes, result.seconds = report.outcomes, monotonic() - began
    return result, error


def _tell(night: Night) -> None:
    """One artifact for the night, and one message for each experiment that something happened to."""
    create_markdown_artifact(nights.markdown(night), key="headstart-nightly")
    for one in night.results:
        kind = nights.TOLD.get(one.end)
        if kind is not None:
            facts = {name: value for name, value in one.as_json().items() if name in FACTS}
            facts["night"] = night.record["name"]
            notify.emit(kind, one.look.experiment, nights.message(one), **facts)  # type: ignore[arg-type]
    if night.quiet:
        notify.emit("nothing", "nightly", "no experiment has a cause to train anew")


def _failed_whole(error: HeadstartError, own: FlowRun, night: Night | None) -> None:
    """Write down and tell that the night could not look, or could not begin."""
    record = nights.whole_failure(night, error)
    records.write(record | {"flow_run": str(own.id)})
    often = records.in_a_row(record["failures"])
    said = f"failed {often}" if often else "failed"
    notify.emit("failed", "nightly", f"the night {said}, every champion still serves: {error}")


def _own_run() -> FlowRun:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run
