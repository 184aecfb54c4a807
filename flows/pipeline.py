"""The flow: one experiment, or all of params.yaml, from raw data to a registered model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Thread
from uuid import UUID

import httpx
from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun, PrefectHTTPStatusError
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows import summary, takeover, tasks
from flows.lock import one_run
from flows.stages import Outcome, Stages, Stopped, of_experiment
from flows.stages import chosen as chosen
from steps import artifacts, params
from steps.errors import HeadstartError, StageError, TrackingError, UserError
from steps.params import Params
from steps.report import index

POLL_SECONDS = 2.0
AGAIN = "what was done is kept; run again to go on where it was"
# Tells a step which flow run it belongs to.
FLOW_RUN = "HEADSTART_FLOW_RUN"


@dataclass
class Report:
    """What a run did.

    Attributes:
        experiments: those asked for, in their order.
        outcomes: of every stage that ended well, in the order they ran.
        failures: the error of each experiment that stopped, by its name.
        unpublished: why the tracking server does not have an experiment's results, by its name.
    """

    experiments: list[str]
    outcomes: list[Outcome] = field(default_factory=list)
    failures: dict[str, HeadstartError] = field(default_factory=dict)
    unpublished: dict[str, str] = field(default_factory=dict)

    @property
    def nothing_changed(self) -> bool:
        """Every stage was up to date already."""
        stages = [outcome for outcome in self.outcomes if not outcome.stage.startswith("register@")]
        return not self.failures and all(outcome.how == "unchanged" for outcome in stages)


class PipelineFailedError(HeadstartError):
    """At least one experiment stopped; the others went on."""

    def __init__(self, report: Report) -> None:
        failures = report.failures
        lines = [str(error) for error in failures.values()]
        head = "" if len(lines) == 1 else f"{len(lines)} experiments failed:\n  "
        super().__init__(head + "\n  ".join(lines))
        self.report = report
        ours = [error for error in failures.values() if error.exit_code != UserError.exit_code]
        self.exit_code = StageError.exit_code if ours else UserError.exit_code


def one_experiment(
    stages: Stages, name: str, checked: Params, *, anew: bool = False, retries: int | None = None
) -> Iterator[Outcome]:
    """The steps of one experiment in their order; DVC knows which of them have anything to do.

    Args:
        stages: the clone's.
        name: of the experiment.
        checked: params.yaml.
        anew: run every stage of the experiment, changed or not. Weights are pinned and are not fetched again.
        retries: how often what reaches out of the machine is tried again, more patiently than by day.
    """
    for step, of in [*of_experiment(name, checked), ("register", name)]:
        task = tasks.OF_STEP[step]
        call = task if retries is None else tasks.patient(task, retries)
        yield call(stages, of, anew=anew and step != "fetch")


def _run_name() -> str:
    return f"headstart {', '.join(flow_run.parameters['experiments'] or ['all'])}"


@flow(name="headstart", flow_run_name=_run_name, persist_result=False)
def pipeline(experiments: list[str] | None = None) -> Report | State[Report]:
    """Run experiments of params.yaml, all of them unless some are named.

    Raises:
        ParamsError: params.yaml is wrong, or has no such experiment; nothing was started.
        BusyError: another run holds this clone.
        PipelineFailedError: an experiment stopped, with its reason; the others went on.
    """
    checked = params.load(artifacts.PARAMS_FILE)
    report = Report(chosen(experiments or [], checked))
    run_id = own_run_id()
    stages = Stages(environment={FLOW_RUN: run_id} if run_id else None)
    with one_run(flow_run=run_id) as former, stopped_with_the_run(stages):
        takeover.crash_former(former)
        try:
            report.outcomes.append(tasks.resolve(stages))
            for name in report.experiments:
                run_one(stages, name, checked, report)
        except Stopped as stopped:
            return Cancelled(message=str(stopped))
    # A result restored by `dvc pull` or from DVC's cache of runs is on no page of this clone yet.
    index.write(artifacts.REPORTS)
    create_markdown_artifact(summary.markdown(report.experiments), key="headstart-results")
    if report.failures:
        raise PipelineFailedError(report)
    return report


def run(experiments: list[str]) -> Report:
    """Run the flow in this process, as the command line does.

    Raises:
        Stopped: the run was cancelled in Prefect.
        HeadstartError: as the flow's own.
    """
    try:
        with prefect_errors_named():
            report = pipeline(experiments)
    except CancelledRun:
        raise Stopped("the run was cancelled in Prefect; run again to go on where it was") from None
    assert isinstance(report, Report)
    return report


@contextmanager
def prefect_errors_named() -> Iterator[None]:
    """Tell of a Prefect server that refuses, or is lost, in one line.

    Raises:
        UserError: it does not let us in.
        HeadstartError: it answers with an error, or no longer.
    """
    try:
        yield
    except PrefectHTTPStatusError as error:
        code = error.response.status_code
        if code in (401, 403):
            raise UserError(
                f"the Prefect server does not let us in ({code}); set PREFECT_API_AUTH_STRING to "
                "user:password, or PREFECT_API_KEY to a key that has not expired"
            ) from None
        raise HeadstartError(f"the Prefect server answers {code}; {AGAIN}") from error
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise HeadstartError(f"the Prefect server was lost ({reason}); {AGAIN}") from error


def run_one(
    stages: Stages,
    name: str,
    checked: Params,
    report: Report,
    *,
    anew: bool = False,
    retries: int | None = None,
) -> None:
    """Run one experiment into the report; what stops it does not stop the others."""
    try:
        for outcome in one_experiment(stages, name, checked, anew=anew, retries=retries):
            report.outcomes.append(outcome)
    except Stopped:
        raise
    except TrackingError as error:
        report.unpublished[name] = str(error)
    except HeadstartError as error:
        report.failures[name] = error


def own_run_id() -> str:
    """The id of the flow run that is going on; empty in none."""
    context = FlowRunContext.get()
    return "" if context is None or context.flow_run is None else str(context.flow_run.id)


@contextmanager
def stopped_with_the_run(stages: Stages) -> Iterator[None]:
    """Stop the stages when this run is cancelled in Prefect, which tells nobody: it has to be asked."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:  # called as a plain function
        yield
        return
    done = Event()
    # Prefect keeps its settings, the server's address among them, in the context.
    watch = partial(copy_context().run, _watch, context.flow_run.id, stages, done)
    watcher = Thread(target=watch, name="headstart-cancel", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(run_id: UUID, stages: Stages, done: Event) -> None:
    with get_client(sync_client=True) as client:
        while not done.wait(POLL_SECONDS):
            try:
                state = client.read_flow_run(run_id).state
            except Exception:
                continue
            if state is not None and (state.is_cancelling() or state.is_cancelled()):
                stages.stop()
                return
