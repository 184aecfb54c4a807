"""Experiments and arms spread over the slots of a work pool, in as many clones as there are workers.

The owner's flow gives each stage that is ready to the pool, as a run of the flow `headstart-stage`. A worker
takes the owner's commit into a clone of its own, brings what the stage needs from the DVC remote, runs it,
pushes what came out, and answers with the stage's entry of dvc.lock. Only the owner merges entries.
docs/decisions/2026-11-26-many-workers-one-lock.md tells why.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar
from uuid import UUID

from httpx import HTTPStatusError, TransportError
from prefect import State, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun, ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling, Crashed

from flows import sharing, summary, tasks
from flows.lock import one_run
from flows.merging import LOCK, Clone, Entry, Inputs, check, inputs_of, outputs_alone
from flows.pipeline import FLOW_RUN, PipelineFailedError, Report, chosen, own_run_id
from flows.sharing import Look, Request
from flows.stages import Outcome, Stages, Stopped, Tell, UnreachableError
from steps import artifacts, errors, params
from steps.errors import BusyError, HeadstartError, StageError, TrackingError, UserError
from steps.report import index

Found = TypeVar("Found")

# Where a worker's clone is; `headstart worker` sets it.
CLONE_VARIABLE = "HEADSTART_CLONE"
FLOW = "headstart-stage"
RECEIPT = "headstart-receipt"
BEAT_SECONDS = 5.0
DEAD_SECONDS = 60.0
# The network: tries, and the wait before the second; it doubles.
TRIES, BACK_OFF = 4, 2.0
# Of what would lose work: some eight minutes.
PATIENT_TRIES = 9


# ----------------------------------------------------------------------------------------------- the worker


@flow(name=FLOW, flow_run_name="{stage}", persist_result=False)
def one_stage(
    stage: str, commit: str, cmd: str, deps: dict[str, str], lock: dict[str, dict[str, Any]]
) -> None:
    """Run one stage in the worker's own clone, and answer with its entry of dvc.lock.

    Args:
        stage: its name in dvc.yaml.
        commit: whose code it is run with.
        cmd: the command, as the owner's dvc.yaml has it.
        deps: the hash of all it depends on, by path, as the owner has it.
        lock: the outputs of the stages that come before it, by name.

    Raises:
        HeadstartError: the step's own, or why it could not be run; the answer tells it too.
    """
    where = os.environ.get(CLONE_VARIABLE)
    if not where:
        raise UserError(f"{CLONE_VARIABLE} is not set; start the worker with `headstart worker --pool NAME`")
    os.chdir(where)
    logger = get_run_logger()
    with _answering(stage) as answer, _when_free():
        answer.done(*do_stage(stage, commit, Inputs(cmd, deps), lock, logger.info))


def do_stage(
    stage: str, commit: str, inputs: Inputs, lock: dict[str, dict[str, Any]], tell: Tell
) -> tuple[Entry, Outcome]:
    """Bring what a stage needs into the clone in the working directory, run it, push what came out.

    Args:
        stage: its name in dvc.yaml.
        commit: whose code it is run with.
        inputs: what it is made from, as the owner has it.
        lock: the outputs of the stages that come before it, by name.
        tell: gets the lines it says.

    Returns:
        Its entry of dvc.lock, and what became of it.

    Raises:
        HeadstartError: the step's own, or why it could not be run.
    """
    check_out(commit)
    clone = Clone()
    clone.replace_lock(lock)
    if lock:
        dvc("pull", "--force", *lock)
    differing = inputs.differing(clone.inputs(stage))
    if differing:
        raise StageError(f"{stage}: {Path.cwd()} has other inputs than the owner: {', '.join(differing[:5])}")
    outcome = Stages().run(stage, tell)
    dvc("push", stage)
    entry = clone.entry(stage)
    assert entry is not None
    check(stage, entry, inputs, clone.outs(stage))
    return entry, outcome


class _Answer:
    """What the owner sees of this run: an artifact that is written anew with every sign of life."""

    def __init__(self, client: SyncPrefectClient, run_id: UUID, stage: str) -> None:
        where = f"{socket.gethostname()}:{Path.cwd()}"
        self.about: dict[str, Any] = {"state": "running", "stage": stage, "where": where}
        self._client = client
        data = json.dumps(self.about)
        made = client.create_artifact(
            ArtifactCreate(type=RECEIPT, description=stage, data=data, flow_run_id=run_id)
        )
        self._id = made.id

    def done(self, entry: Entry, outcome: Outcome) -> None:
        """The stage ended well. The entry goes as text: a database may sort the keys of a mapping."""
        self.about |= {
            "state": "done",
            "entry": json.dumps(entry),
            "how": outcome.how,
            "seconds": outcome.seconds,
            "last_line": outcome.last_line,
        }

    def failed(self, error: HeadstartError) -> None:
        """The stage ended with an error of its own."""
        about = {"type": type(error).__name__, "exit_code": error.exit_code, "message": str(error)}
        self.about |= {"state": "failed", "error": about}

    def send(self, beat: int) -> None:
        """Write it."""
        data = json.dumps({**self.about, "beat": beat})
        self._client.update_artifact(self._id, ArtifactUpdate(data=data))


@contextmanager
def _answering(stage: str) -> Iterator[_Answer]:
    """Give signs of life while the block runs, and the answer at its end."""
    with get_client(sync_client=True) as client:
        answer = again(partial(_Answer, client, UUID(str(flow_run.id)), stage))
        over = Event()
        # Prefect keeps its settings, the server's address among them, in the context.
        beats = Thread(
            target=partial(copy_context().run, _beat, answer, over), name="headstart-beat", daemon=True
        )
        beats.start()
        try:
            yield answer
        except HeadstartError as error:
            answer.failed(error)
            raise
        finally:
            over.set()
            beats.join()
            if answer.about["state"] != "running":
                again(partial(answer.send, -1), PATIENT_TRIES)


def _beat(answer: _Answer, over: Event) -> None:
    beat = 0
    while not over.wait(BEAT_SECONDS):
        beat += 1
        with suppress(Exception):  # a server that is away for a moment misses a beat, no more
            answer.send(beat)


@contextmanager
def _when_free() -> Iterator[None]:
    """Hold the worker's clone as soon as nobody else does."""
    while True:
        try:
            held = one_run()
            held.__enter__()
        except BusyError:
            time.sleep(1)
            continue
        break
    try:
        yield
    finally:
        held.__exit__(None, None, None)


def check_out(commit: str) -> None:
    """Take the owner's commit.

    Raises:
        UserError: the clone has changes of its own, or its remote does not have the commit.
        UnreachableError: the remote does not answer.
    """
    changed = changed_files()
    if changed:
        raise UserError(
            f"{Path.cwd()} is a worker's clone, but {changed[0]} was changed in it; commit or undo that"
        )
    if git("rev-parse", "HEAD").strip() == commit:
        return
    if not _has(commit):
        _fetch()
    if not _has(commit):
        raise UserError(f"the remote of {Path.cwd()} does not have the commit {commit[:12]}; `git push` it")
    # A worker's dvc.lock is written anew for every stage; where it is committed it must not be in the way.
    if git("ls-files", "--", str(LOCK)):
        git("checkout", "--quiet", "--", str(LOCK))
    else:
        LOCK.unlink(missing_ok=True)
    git("checkout", "--quiet", "--detach", commit)


def _has(commit: str) -> bool:
    try:
        git("cat-file", "-e", f"{commit}^{{commit}}")
    except StageError:
        return False
    return True


def _fetch() -> None:
    def fetch() -> None:
        try:
            git("fetch", "--quiet", "--all")
        except StageError as error:
            raise UnreachableError(str(error)) from None

    again(fetch)


# ------------------------------------------------------------------------------------------------ the owner


def _run_name() -> str:
    return f"headstart, spread: {', '.join(flow_run.parameters['experiments'] or ['all'])}"


@flow(name="headstart-spread", flow_run_name=_run_name, persist_result=False)
def spread(
    experiments: list[str] | None, pool: str, dead_after: float = DEAD_SECONDS
) -> Report | State[Report]:
    """Run experiments of params.yaml with a work pool's help.

    Args:
        experiments: those to run; all where none is named.
        pool: the work pool's name.
        dead_after: seconds without a sign of life after which a worker's run is given to another.

    Raises:
        UserError: params.yaml is wrong, the clone has changes that no worker can have, there is no DVC remote
            or no such pool; nothing was started.
        BusyError: another run holds this clone.
        PipelineFailedError: an experiment stopped, with its reason; the others went on.
    """
    report = Report(chosen(experiments or [], params.load(artifacts.PARAMS_FILE)))
    run_id = own_run_id()
    with one_run(flow_run=run_id), get_client(sync_client=True) as client:
        commit = shareable_commit()
        with Home(commit, run_id) as home:
            graph = home.clone.graph(f"compare@{name}" for name in report.experiments)
            home.graph = sharing.with_order(graph, report.experiments)
            work = sharing.Sharing(home.graph, home, PrefectPool(client, pool), _tell, dead_after)
            try:
                work.run()
            except Stopped as stopped:
                return Cancelled(message=str(stopped))
    _into(report, work)
    index.write(artifacts.REPORTS)
    create_markdown_artifact(summary.markdown(report.experiments), key="headstart-results")
    create_markdown_artifact(places(work), key="headstart-places")
    if report.failures:
        raise PipelineFailedError(report)
    return report


def run(experiments: list[str], pool: str, dead_after: float) -> Report:
    """Run the flow in this process, as the command line does.

    Raises:
        Stopped: the run was cancelled in Prefect.
        HeadstartError: as the flow's own.
    """
    try:
        report = spread(experiments, pool, dead_after)
    except CancelledRun:
        raise Stopped("the run was cancelled in Prefect; run again to go on where it was") from None
    assert isinstance(report, Report)
    return report


def _tell(stage: str, text: str) -> None:
    get_run_logger().info(text, extra={"title": stage.replace("@", " "), "event": "line"})


def _into(report: Report, work: sharing.Sharing) -> None:
    """What became of stages, told by experiments."""
    report.outcomes.extend(work.outcomes.values())
    for name in report.experiments:
        last = f"{sharing.REGISTER}@{name}"
        failed = sharing.blocked_by(last, work.graph, work.failures)
        if failed is None:
            continue
        error = work.failures[failed]
        if failed == last and isinstance(error, TrackingError):
            report.unpublished[name] = str(error)
        else:
            report.failures[name] = error


def places(work: sharing.Sharing) -> str:
    """Which stage was made where, as Markdown."""
    from steps.report.wording import markdown as escaped

    lines = ["| stage | made by | how | seconds |", "| --- | --- | --- | ---: |"]
    for stage, outcome in work.outcomes.items():
        where = escaped(work.where.get(stage, "the owner"))
        lines.append(f"| {escaped(stage)} | {where} | {outcome.how} | {outcome.seconds:.1f} |")
    return "\n".join(lines) + "\n"


def shareable_commit() -> str:
    """The commit of this clone, if workers can have it and the data.

    Raises:
        UserError: something is not committed or not pushed, or there is no DVC remote.
    """
    changed = changed_files()
    if changed:
        raise UserError(
            f"{changed[0]} is not committed, so no worker can have it; commit and push, then run again"
        )
    commit = git("rev-parse", "HEAD").strip()
    if not git("branch", "--remotes", "--contains", commit).strip():
        raise UserError(
            f"the commit {commit[:12]} is in no branch of a remote; `git push` it for the workers"
        )
    if not Clone().has_remote():
        raise UserError(
            "workers bring data from DVC's default remote: `dvc remote add -d NAME URL` names one"
        )
    return commit


class Home:
    """The owner's clone: `sharing.Owner`.

    Its own stages run one at a time in a thread beside the flow's, as Prefect tasks.
    """

    def __init__(self, commit: str, run_id: str = "") -> None:
        self.commit = commit
        self.clone = Clone()
        self.stages = Stages(environment={FLOW_RUN: run_id} if run_id else None)
        self.graph: dict[str, tuple[str, ...]] = {}
        self._pushed: set[str] = set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="headstart-own")

    def __enter__(self) -> Home:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def settled(self, stage: str) -> Outcome | None:
        """Up to date; or made before, and brought from DVC's cache or remote."""
        started = time.monotonic()
        if self.clone.up_to_date(stage):
            self._pushed.discard(stage)  # whether the remote has it is not known
            return Outcome(stage, "unchanged", time.monotonic() - started)
        entry = self.clone.entry(stage)
        if entry is None or self.clone.inputs(stage).differing(inputs_of(entry)):
            return None
        with suppress(HeadstartError):  # what cannot be brought is made anew
            dvc("pull", "--force", stage, tries=1)
        if not self.clone.up_to_date(stage):
            return None
        return Outcome(stage, "restored", time.monotonic() - started)

    def request(self, stage: str) -> Request:
        """The stage with its inputs; what it needs is in the remote then."""
        needs = sharing.before(stage, self.graph)
        unsure = [need for need in needs if need not in self._pushed]
        if unsure:
            dvc("push", *unsure)
            self._pushed.update(unsure)
        entries = {need: self.clone.entry(need) for need in needs}
        lock = {need: outputs_alone(entry) for need, entry in entries.items() if entry is not None}
        return Request(stage, self.commit, self.clone.inputs(stage), lock)

    def take_in(self, request: Request, entry: Entry) -> None:
        """Check the entry, write it into dvc.lock, bring the outputs: the next stage's status needs them."""
        stage = request.stage
        check(stage, entry, request.inputs, self.clone.outs(stage))
        self.clone.merge(stage, entry)
        dvc("pull", "--force", stage)
        self._pushed.add(stage)

    def start(self, stage: str) -> _Own:
        """Run a stage here as the pipeline does."""
        step, _, of = stage.partition("@")
        run = partial(tasks.OF_STEP[step], self.stages, of)
        return _Own(self._thread.submit(copy_context().run, run))

    def stop(self) -> None:
        """End what runs here."""
        self.stages.stop()


@dataclass(frozen=True)
class _Own:
    future: Future[Outcome]

    def outcome(self) -> Outcome | None:
        """The outcome when there is one."""
        return self.future.result() if self.future.done() else None


class PrefectPool:
    """A work pool: `sharing.Pool`.

    Raises:
        UserError: there is no such pool.
    """

    def __init__(self, client: SyncPrefectClient, name: str) -> None:
        self._client, self._name = client, name
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            raise UserError(
                f"Prefect has no work pool {name!r}; `headstart worker --pool {name}` makes it"
            ) from None
        self._deployment = client.create_deployment(
            client.create_flow_from_name(FLOW),
            deployment_name(name),
            work_pool_name=name,
            entrypoint="flows.spread.one_stage",
            description="One stage of an experiment, in a worker's own clone.",
            tags=["headstart"],
        )

    def submit(self, request: Request, number: int) -> str:
        """Make a flow run; the same request and number give back the run there is."""
        create = partial(
            self._client.create_flow_run_from_deployment,
            self._deployment,
            parameters={
                "stage": request.stage,
                "commit": request.commit,
                "cmd": request.inputs.cmd,
                "deps": request.inputs.deps,
                "lock": request.lock,
            },
            name=request.stage,
            tags=["headstart"],
            idempotency_key=f"headstart-{request.sha256}-{number}",
        )
        try:
            return str(again(create, PATIENT_TRIES).id)
        except (TransportError, HTTPStatusError) as error:
            raise UnreachableError(f"Prefect's server does not take {request.stage}: {error}") from None

    def look(self, run: str) -> Look | None:
        """The run's state with its answer; None where the server does not answer."""
        wanted = {"flow_run_id": {"any_": [run]}, "type": {"any_": [RECEIPT]}}
        try:
            state = self._client.read_flow_run(UUID(run)).state
            # The client's own `read_artifacts` sends what is left out as null, which the server refuses.
            found = self._client.request("POST", "/artifacts/filter", json={"artifacts": wanted}).json()
        except (TransportError, HTTPStatusError) as error:
            if is_mistake(error):
                raise
            return None
        answer = json.loads(found[0]["data"]) if found else None
        if state is None:
            return seen("SCHEDULED", "", answer)
        return seen(state.type.value, state.message or "", answer)

    def end(self, run: str, why: str, *, crashed: bool) -> None:
        """Set the run's state, so that its slot is free; whether it still exists is no matter."""
        with suppress(Exception):
            over: State[Any] = Crashed(message=why) if crashed else Cancelling(message=why)
            self._client.set_flow_run_state(UUID(run), over, force=crashed)

    def stopped(self) -> bool:
        """Whether this flow run was cancelled in Prefect."""
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            return False
        try:
            state = self._client.read_flow_run(context.flow_run.id).state
        except (TransportError, HTTPStatusError) as error:
            if is_mistake(error):
                raise
            return False
        return state is not None and (state.is_cancelling() or state.is_cancelled())


def is_mistake(error: Exception) -> bool:
    """Whether the server refused what it was asked, which no waiting mends; otherwise it is away or busy."""
    return (
        isinstance(error, HTTPStatusError)
        and error.response.status_code < 500
        and (error.response.status_code not in (408, 425, 429))
    )


def deployment_name(pool: str) -> str:
    """Each pool has a deployment of its own, so that two owners with two pools do not move one about."""
    return f"stage-{pool}"


def seen(state: str, message: str, answer: dict[str, Any] | None) -> Look:
    """What a run's state in Prefect and its answer come to; the answer counts, however the run ended."""
    about = answer or {}
    where, beat = str(about.get("where", "")), int(about.get("beat", 0))
    if about.get("state") == "done":
        outcome = Outcome(about["stage"], about["how"], about["seconds"], about["last_line"])
        return Look("done", beat, where, json.loads(about["entry"]), outcome)
    if about.get("state") == "failed":
        error = _error(about["error"])
        if about["error"]["type"] == UnreachableError.__name__:  # another worker may reach it
            return Look("lost", beat, where, why=str(error))
        return Look("failed", beat, where, error=error)
    if state in ("CANCELLING", "CANCELLED"):
        return Look("stopped", beat, where)
    if state in ("COMPLETED", "FAILED", "CRASHED"):
        return Look("lost", beat, where, why=message)
    if answer is not None:
        return Look("running", beat, where)
    return Look("starting" if state in ("PENDING", "RUNNING") else "waiting", beat, where)


def _error(about: dict[str, Any]) -> HeadstartError:
    """The worker's error, of its own class where it is one of ours."""
    kind = getattr(errors, str(about["type"]), None)
    if not (isinstance(kind, type) and issubclass(kind, HeadstartError)):
        kind = UserError if about["exit_code"] == UserError.exit_code else StageError
    return kind(str(about["message"]))


# --------------------------------------------------------------------------------------- processes, network


def git(*arguments: str) -> str:
    """What git says.

    Raises:
        StageError: it fails, with its last line.
    """
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise StageError(f"git {arguments[0]}: {said[-1]}")
    return done.stdout


def changed_files() -> list[str]:
    """Files under git that differ from the commit; dvc.lock is no code."""
    lines = git("status", "--porcelain", "--untracked-files=no").splitlines()
    return [line[3:] for line in lines if line[3:] != str(LOCK)]


def dvc(verb: str, *arguments: str, tries: int = TRIES) -> None:
    """Push or pull, again where the network fails.

    Raises:
        UnreachableError: it failed every time; the last reason.
    """

    def call() -> None:
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", verb, "--quiet", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
            reason = said[-1].removeprefix("ERROR: ") if said else f"exit code {done.returncode}"
            raise UnreachableError(f"dvc {verb} {' '.join(arguments)}: {reason}")

    again(call, tries=tries)


def again(call: Callable[[], Found], tries: int = TRIES) -> Found:
    """Call, and where it fails call again, waiting longer each time; not where only the user can help."""
    for attempt in range(1, tries + 1):
        try:
            return call()
        except (Stopped, UserError):
            raise
        except Exception as error:
            if attempt == tries or is_mistake(error):
                raise
            time.sleep(BACK_OFF * 2 ** (attempt - 1))
    raise AssertionError("unreachable")
