"""Flow runs that nobody works on any more, and those that came too late: told apart by what can be known.

A worker that was killed tells nobody: its run stays `Running`, and holds its place. Two things give it away.
In the same clone the kernel let go of the clone's lock, so its holder has ended: that is certain. Anywhere
else, Prefect's heartbeats have stopped; they are compared by the server's clock alone, because two machines'
clocks may be an hour apart.
"""

from __future__ import annotations

import email.utils
import itertools
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Crashed

FLOWS = ("headstart", "headstart-nightly", "headstart-stage")
HEARTBEAT = "prefect.flow-run.heartbeat"
# So many heartbeats may be missed: a machine may sleep, a network may be away.
MISSED = 4
# A run that a worker took and never started; pulling an image may take its time.
PENDING = timedelta(hours=1)
# As many as Prefect gives at once, those that are due last.
NEWEST: dict[str, Any] = {"sort": FlowRunSort.EXPECTED_START_TIME_DESC, "limit": 200}
# What a run of the nightly flow means where its parameters say nothing.
DEFAULTS: Mapping[str, Any] = {"experiments": None, "force": False}


def crash_former(holder: Mapping[str, Any]) -> list[str]:
    """Mark the run of this clone that was killed, by what its lock file says.

    Args:
        holder: what the last holder of the clone noted; empty where it ended by itself.

    Returns:
        The names of the runs that were marked, one at most.
    """
    run_id = holder.get("flow_run")
    if not run_id:
        return []
    with get_client(sync_client=True) as client, suppress(ObjectNotFound, ValueError):
        run = client.read_flow_run(UUID(run_id))
        if run.state is not None and not run.state.is_final():
            return [_crash(client, run, f"its process (pid {holder.get('pid')}) was killed; taken over")]
    return []


def crash_silent(own: UUID) -> list[str]:
    """Mark the runs of our flows, on any machine, whose heartbeats have stopped.

    Args:
        own: the run that asks.

    Returns:
        The names of the runs that were marked.
    """
    with get_client(sync_client=True) as client:
        now = _now(client)
        running = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(FLOWS))),
            flow_run_filter=_in_states(StateType.RUNNING, StateType.PENDING, StateType.CANCELLING),
            **NEWEST,
        )
        reasons = {run.id: _silence(client, run, now) for run in running if run.id != own}
        return [_crash(client, run, reason) for run in running if (reason := reasons.get(run.id))]


def collapse(own: FlowRun) -> str | None:
    """Leave one of the runs of a deployment that are due: the one that has started.

    Runs pile up while no worker is there. Each would look at the same data at the same time, so whichever
    starts does the work of all, and those that wait are cancelled. Where a later one is under way already,
    this one has nothing to do. Runs with other parameters are other work and are left alone.

    Args:
        own: the run that asks.

    Returns:
        Why this run has nothing to do; None where it has to go on.
    """
    if own.deployment_id is None or own.expected_start_time is None:
        return None
    with get_client(sync_client=True) as client:
        now = _now(client)
        found = client.read_flow_runs(
            flow_run_filter=_in_states(
                StateType.SCHEDULED,
                StateType.RUNNING,
                deployment=FlowRunFilterDeploymentId(any_=[own.deployment_id]),
                # Prefect has the runs of many nights to come, too.
                expected_start_time=FlowRunFilterExpectedStartTime(before_=now),
            ),
            **NEWEST,
        )
        due = [run for run in found if _is_rival(run, own, now)]
        for run in due:
            if run.state_type == StateType.RUNNING and _place(run) > _place(own):
                return f"{run.name}, which was due later, is under way and does what this one would have done"
        for run in due:
            if run.state_type == StateType.SCHEDULED:
                text = f"late; {own.name}, which has started, does what it would have done"
                state: State[Any] = Cancelled(message=text)
                client.set_flow_run_state(run.id, state, force=True)
    return None


def _crash(client: SyncPrefectClient, run: FlowRun, reason: str) -> str:
    """Mark a run as crashed, which gives its place to the next."""
    client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
    return run.name


def _in_states(
    *types: StateType,
    deployment: FlowRunFilterDeploymentId | None = None,
    expected_start_time: FlowRunFilterExpectedStartTime | None = None,
) -> FlowRunFilter:
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))
    return FlowRunFilter(state=state, deployment_id=deployment, expected_start_time=expected_start_time)


def _silence(client: SyncPrefectClient, run: FlowRun, now: datetime) -> str | None:
    """Why a run is taken for dead; None where it is not."""
    if run.state is None:
        return None
    since = now - _utc(run.state.timestamp)
    if run.state_type == StateType.PENDING:
        return f"was taken {_minutes(since)} ago and never started" if since > PENDING else None
    beats = _heartbeats(client, run.id)
    if not beats:
        return None  # it sends none: nothing can be known
    silent = now - beats[0]
    apart = [later - earlier for later, earlier in itertools.pairwise(beats)]
    usual = max([timedelta(seconds=get_current_settings().flows.heartbeat_frequency or 180), *apart])
    if silent <= MISSED * usual:
        return None
    return f"no heartbeat for {_minutes(silent)}; its worker was killed or cut off"


def _heartbeats(client: SyncPrefectClient, run_id: UUID) -> list[datetime]:
    """When the server got the last heartbeats of a run, the newest first."""
    wanted = EventFilter(
        event=EventNameFilter(name=[HEARTBEAT]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run_id}"]),
    )
    # Of a clock that runs ahead an event may seem to come from tomorrow.
    wanted.occurred.until = wanted.occurred.until + timedelta(days=1)
    found = client.read_events(wanted, limit=5).events
    return sorted((_utc(one.received) for one in found), reverse=True)


def _is_rival(run: FlowRun, own: FlowRun, now: datetime) -> bool:
    """Whether another run of the deployment is due, and is the same work."""
    if run.id == own.id or run.expected_start_time is None or run.state is None:
        return False
    if run.state_type == StateType.SCHEDULED and (
        _utc(run.expected_start_time) > now or run.state.name == "AwaitingRetry"
    ):
        return False
    return _meaning(run.parameters) == _meaning(own.parameters)


def _meaning(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**DEFAULTS, **parameters}


def _place(run: FlowRun) -> tuple[datetime, str]:
    assert run.expected_start_time is not None
    return _utc(run.expected_start_time), str(run.id)


def _now(client: SyncPrefectClient) -> datetime:
    """The server's time; our own where it does not tell."""
    told = client.hello().headers.get("date")
    return email.utils.parsedate_to_datetime(told) if told else datetime.now(UTC)


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _minutes(time: timedelta) -> str:
    return f"{round(time.total_seconds() / 60)} minutes"
