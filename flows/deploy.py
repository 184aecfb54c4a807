"""Deployments: what a Prefect server runs by the clock, from its pages, or when another program asks.

A deployment names a flow of ours and no folder: each worker runs it in the clone that it was started in
(`worker`). So many clones can serve one pool, and a clone may move.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from flows import automations
from steps.errors import UserError

if TYPE_CHECKING:
    from steps.operation import Nightly

POOL = "headstart"
# Where a worker's clone is; the pull step below reads it in the worker's own environment.
CLONE_VARIABLE = "HEADSTART_CLONE"
PULL_STEPS = [
    {"prefect.deployments.steps.set_working_directory": {"directory": f"{{{{ ${CLONE_VARIABLE} }}}}"}}
]
# How soon a run starts that somebody asked for; Prefect's own 10 and 15 s are long before a page.
POLL_SECONDS = 5
PAGE, MOST_WORKERS = 200, 10_000
SCHEDULE = "nightly"


@dataclass(frozen=True)
class Deployed:
    """A flow as it is deployed.

    Attributes:
        flow: the name of the flow.
        name: of the deployment.
        entrypoint: module and function.
        tags: that its runs are found by.
        alone: a run that comes while another one goes on waits for its end. It is not cancelled: a flow that
            leaves its work to the latest run that is due must find that one.
        nightly: it runs by params.yaml's clock.
    """

    flow: str
    name: str
    entrypoint: str
    tags: tuple[str, ...] = ("headstart",)
    alone: bool = False
    nightly: bool = False

    @property
    def title(self) -> str:
        """As Prefect's command line names it."""
        return f"{self.flow}/{self.name}"

    def load(self) -> Flow[..., Any]:
        """The flow itself."""
        module, _, function = self.entrypoint.rpartition(".")
        flow = getattr(importlib.import_module(module), function)
        assert isinstance(flow, Flow), self.entrypoint
        return flow


DEPLOYMENTS = (
    Deployed("headstart-nightly", "nightly", "flows.nightly.nightly", alone=True, nightly=True),
    Deployed("headstart", "pipeline", "flows.pipeline.pipeline"),
)
# Every flow of ours, also those that are not deployed here: their runs count as dead without heartbeats.
FLOWS = ("headstart", "headstart-nightly", "headstart-stage")


@dataclass(frozen=True)
class Done:
    """What became of one thing at the server.

    Attributes:
        name: of the deployment, pool or automation.
        what: `created`, `updated`, `unchanged`, or `removed`.
        about: what a reader wants to know of it; may be empty.
    """

    name: str
    what: str
    about: str = ""


def deploy(
    pool: str, nightly: Nightly, notify: automations.Way | None = None, silent: bool = False
) -> list[Done]:
    """Register pool, deployments and automations at Prefect's server; a second time changes nothing.

    What was paused or switched off in Prefect's pages stays so.

    Args:
        pool: the work pool; made, of type `process`, where there is none of this name.
        nightly: when the nightly run starts.
        notify: how people are told of what happens; left out, that stays as it is.
        silent: nobody is told any more.

    Raises:
        UserError: the server refuses, or a variable of the receiver is missing; then nothing was changed.
    """
    if notify:
        automations.check(notify)
    with get_client(sync_client=True) as client:
        try:
            done = [_settle_pool(client, pool)]
            done += [_settle(client, one, pool, nightly) for one in DEPLOYMENTS]
            done.append(Done(automations.DEAD_RUNS, automations.dead_runs(client, list(FLOWS))))
            if silent:
                done += [Done(name, "removed") for name in automations.silence(client)]
            if notify:
                done += [Done(name, what) for name, what in automations.tell(client, notify)]
        except PrefectHTTPStatusError as error:
            raise UserError(_refused(error)) from error
    return done


def worker(pool: str, limit: int | None = None, clone: Path = Path()) -> tuple[list[str], dict[str, str]]:
    """The command of a worker that runs deployments in a clone, and what it needs in its environment.

    Args:
        pool: the work pool that it takes runs from.
        limit: how many runs at a time; a clone admits one, the others wait at the server.
        clone: the folder with params.yaml.
    """
    root = clone.resolve()
    command = [
        sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process",
        "--name", worker_name(root), "--limit", str(limit or 1),
    ]  # fmt: skip
    return command, {
        CLONE_VARIABLE: str(root),
        # Ours before any installed one: the code of the clone that the worker serves.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        "PREFECT_WORKER_QUERY_SECONDS": str(POLL_SECONDS),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
        "DO_NOT_TRACK": "1",
    }


def sign_of_life(pool: str, clone: Path = Path()) -> datetime | None:
    """When the clone's worker was last heard of, by the server's clock; None if never.

    Args:
        pool: that it works for.
        clone: the folder with params.yaml.
    """
    name = worker_name(clone)
    with get_client(sync_client=True) as client:
        for at in range(0, MOST_WORKERS, PAGE):
            found = client.read_workers_for_work_pool(pool, offset=at, limit=PAGE)
            for one in found:
                if one.name == name:
                    return one.last_heartbeat_time
            if len(found) < PAGE:
                break
    return None


def worker_name(clone: Path) -> str:
    """The name of a clone's worker: the same after a restart, another one in every clone of a machine."""
    return f"{socket.gethostname()} {clone.resolve().as_posix().strip('/').replace('/', '.')}"[-200:]


def _settle_pool(client: SyncPrefectClient, pool: str) -> Done:
    try:
        found = client.read_work_pool(pool)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        made = WorkPoolCreate(
            name=pool, type="process", base_job_template=template, description="Clones of Headstart."
        )
        client.create_work_pool(made)
        return Done(f"pool {pool}", "created", "process")
    return Done(f"pool {pool}", "unchanged", found.type + (", paused" if found.is_paused else ""))


def _settle(client: SyncPrefectClient, one: Deployed, pool: str, nightly: Nightly) -> Done:
    """Create or update one deployment."""
    flow = one.load()
    assert flow.name == one.flow, one
    before = _read(client, one)
    flow_id = client.create_flow_from_name(one.flow)
    client.create_deployment(
        flow_id, one.name,
        description=flow.description,
        entrypoint=one.entrypoint,
        pull_steps=PULL_STEPS,
        work_pool_name=pool,
        tags=list(one.tags),
        schedules=[_schedule(before, nightly)] if one.nightly else [],
        paused=bool(before and before.paused),
        concurrency_limit=1 if one.alone else None,
        concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
        if one.alone
        else None,
        parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
        enforce_parameter_schema=True,
    )  # fmt: skip
    after = _read(client, one)
    assert after is not None
    what = "created" if before is None else "unchanged" if _content(before) == _content(after) else "updated"
    return Done(one.title, what, _about(after))


def _schedule(before: DeploymentResponse | None, nightly: Nightly) -> DeploymentScheduleCreate:
    known = {one.slug: one.active for one in before.schedules} if before else {}
    clock = CronSchedule(cron=nightly.cron, timezone=nightly.timezone)
    return DeploymentScheduleCreate(schedule=clock, slug=SCHEDULE, active=known.get(SCHEDULE, True))


def _read(client: SyncPrefectClient, one: Deployed) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(one.title)
    except ObjectNotFound:
        return None


def _content(one: DeploymentResponse) -> dict[str, Any]:
    """What makes a deployment what it is, without its times and numbers."""
    fields = {
        "description", "entrypoint", "pull_steps", "work_pool_name", "tags", "paused",
        "concurrency_options", "parameter_openapi_schema", "enforce_parameter_schema",
    }  # fmt: skip
    limit = one.global_concurrency_limit
    schedules = [
        found.model_dump(mode="json", include={"schedule", "active", "slug"}) for found in one.schedules
    ]
    told = one.model_dump(mode="json", include=fields)
    return {**told, "limit": limit.limit if limit else None, "schedules": schedules}


def _about(one: DeploymentResponse) -> str:
    told = [
        f"cron {found.schedule.cron} {found.schedule.timezone}" + ("" if found.active else ", switched off")
        for found in one.schedules
        if isinstance(found.schedule, CronSchedule)
    ]
    return ", ".join([*told, *(["paused"] if one.paused else [])])


def _refused(error: PrefectHTTPStatusError) -> str:
    code, host = error.response.status_code, error.request.url.host
    if code in (401, 403):
        advice = "set PREFECT_API_AUTH_STRING to user:password"
        return f"the Prefect server at {host} does not let us in ({code}); {advice}"
    detail = " ".join(error.response.text.split())[:200]
    return f"the Prefect server at {host} answers {code}: {detail}"
