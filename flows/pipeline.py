"""The flow: one experiment, or all of params.yaml, from raw data to a registered model."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Thread
from uuid import UUID

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows import summary, tasks
from flows.lock import one_run
from flows.stages import Outcome, Stages, Stopped
from steps import artifacts, params
from steps.errors import HeadstartError, ParamsError, StageError, TrackingError, UserError
from steps.params import Params
from steps.report import index

POLL_SECONDS = 2.0


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


def one_experiment(stages: Stages, name: str, checked: Params) -> Iterator[Outcome]:
    """The steps of one experiment in their order; DVC knows which of them have anything to do."""
    yield tasks.ingest(stages, name)
    yield tasks.validate(stages, name)
    yield tasks.split(stages, name)
    yield tasks.fetch(stages, checked.experiments[name].model.pretrained)
    yield tasks.embed(stages, name)
    yield tasks.baseline(stages, name)
    for arm in checked.arms:
        yield tasks.train(stages, f"{name}/{arm}")
    yield tasks.evaluate(stages, name)
    yield tasks.curve(stages, name)
    yield tasks.compare(stages, name)
    yield tasks.register(stages, name)


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
    stages = Stages()
    with one_run(), _stopped_with_the_run(stages):
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
        report = pipeline(experiments)
    except CancelledRun:
        raise Stopped("the run was cancelled in Prefect; run again to go on where it was") from None
    assert isinstance(report, Report)
    return report


def run_one(stages: Stages, name: str, checked: Params, report: Report) -> None:
    """Run one experiment into the report; what stops it does not stop the others."""
    try:
        for outcome in one_experiment(stages, name, checked):
            report.outcomes.append(outcome)
    except Stopped:
        raise
    except TrackingError as error:
        report.unpublished[name] = str(error)
    except HeadstartError as error:
        report.failures[name] = error


def chosen(names: list[str], checked: Params) -> list[str]:
    """The experiments of these names, each once; all where none is named.

    Raises:
        ParamsError: params.yaml has no such experiment.
    """
    for name in names:
        if name not in checked.experiments:
            close = difflib.get_close_matches(name, checked.experiments, n=1)
            known = ", ".join(checked.experiments)
            hint = f"did you mean {close[0]!r}?" if close else f"there is {known}"
            raise ParamsError(f"params.yaml has no experiment {name!r}; {hint}")
    return list(dict.fromkeys(names)) or list(checked.experiments)


@contextmanager
def _stopped_with_the_run(stages: Stages) -> Iterator[None]:
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
