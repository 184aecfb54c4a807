"""The wrapping table: every step as a Prefect task.

Each task runs one DVC stage. Prefect's result cache is off: DVC alone knows what is up to date. Only the
steps that reach out of the machine are tried again, and never where the user has to change something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import task_run
from prefect.tasks import exponential_backoff

from flows.stages import Outcome, Stages, Stopped, UnreachableError, stage_name
from steps.errors import UserError

# Before the first time that something is tried again; twice as long before each further one. At night
# nobody waits for it.
RETRY_SECONDS, NIGHT_SECONDS = 2, 10


def run_stage(step: str, stages: Stages, of: str, anew: bool = False) -> Outcome:
    """Bring the stage of a step up to date, its lines going to the run's log.

    Args:
        step: which step.
        stages: the clone's.
        of: of what: an experiment, `<experiment>/<arm>`, a pretrained slug, or nothing.
        anew: run it also where nothing has changed.
    """
    stage = stage_name(step, of)
    if anew:
        return _logged(step, of, lambda tell: stages.run(stage, tell, force=True))
    return _logged(step, of, lambda tell: stages.run(stage, tell))


def run_outside(step: str, stages: Stages, of: str, anew: bool = False) -> Outcome:
    """Run a step that is no stage; otherwise as `run_stage`, and always run."""
    return _logged(step, of, lambda tell: stages.run_outside(step, of, tell=tell))


def _logged(step: str, of: str, run: Callable[[Callable[[str], None]], Outcome]) -> Outcome:
    logger = get_run_logger()
    title = f"{step} {of}".strip()
    logger.info("started", extra={"title": title, "event": "started"})
    try:
        outcome = run(lambda line: logger.info(line, extra={"title": title, "event": "line"}))
    except Exception as error:
        logger.warning("failed: %s", error, extra={"title": title, "event": "failed"})
        raise
    logger.info(
        "%s, %.1f s",
        outcome.how,
        outcome.seconds,
        extra={"title": title, "event": "ended", "outcome": outcome},
    )
    return outcome


def worth_retrying(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again may help: not where the user has to change something, or stopped the run."""
    return not isinstance(state.data, UserError | Stopped)


def unreachable(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether it was a remote that did not answer: all else of the step comes out the same again."""
    return isinstance(state.data, UnreachableError)


def patient(wrapped: Task[..., Outcome], retries: int) -> Task[..., Outcome]:
    """A task that is tried again so often, waiting twice as long each time, and not all clones in step.

    A task that does not reach out of the machine is given as it is.
    """
    if wrapped.retry_condition_fn is None:
        return wrapped
    delays = exponential_backoff(NIGHT_SECONDS)(retries)
    return wrapped.with_options(
        retries=retries, retry_delay_seconds=delays, retry_jitter_factor=1.0, task_run_name=_run_name
    )


def _run_name() -> str:
    return f"{task_run.task_name} {task_run.parameters['of']}".strip()


def _wrap(
    step: str,
    call: Callable[[str, Stages, str, bool], Outcome],
    retries: int,
    condition: Callable[[Task[Any, Any], TaskRun, State[Any]], bool] = worth_retrying,
) -> Task[..., Outcome]:
    def run(stages: Stages, of: str = "", anew: bool = False) -> Outcome:
        return call(step, stages, of, anew)

    wrapped = task(
        name=step,
        task_run_name=_run_name,
        retries=retries,
        retry_delay_seconds=exponential_backoff(RETRY_SECONDS),
        retry_condition_fn=condition if retries else None,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    return wrapped(run)


# step, how it is run, how often it is tried again
resolve = _wrap("resolve", run_stage, retries=0)
ingest = _wrap("ingest", run_stage, retries=2, condition=unreachable)
validate = _wrap("validate", run_stage, retries=0)
split = _wrap("split", run_stage, retries=0)
fetch = _wrap("fetch", run_stage, retries=2)
embed = _wrap("embed", run_stage, retries=0)
baseline = _wrap("baseline", run_stage, retries=0)
train = _wrap("train", run_stage, retries=0)
evaluate = _wrap("evaluate", run_stage, retries=0)
curve = _wrap("curve", run_stage, retries=0)
compare = _wrap("compare", run_stage, retries=0)
register = _wrap("register", run_outside, retries=1)

OF_STEP = {
    one.name: one
    for one in (
        resolve, ingest, validate, split, fetch, embed, baseline, train, evaluate, curve, compare, register,
    )
}  # fmt: skip
