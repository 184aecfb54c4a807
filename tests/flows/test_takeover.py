"""Runs of dead workers and late runs, against a real Prefect."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Late, Pending, Running, Scheduled

from flows import takeover

pytestmark = pytest.mark.flow
OWN = uuid.uuid4()


@flow(name="headstart-nightly")
def night(experiments: list[str] | None = None, force: bool = False) -> None:
    """Stands in for the nightly flow."""


@pytest.fixture
def client(prefect: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as found:
        yield found
        for run in found.read_flow_runs(**takeover.NEWEST):
            found.delete_flow_run(run.id)


def made(client: SyncPrefectClient, state: Any, **about: Any) -> FlowRun:
    """A run of a killed worker, as Prefect has it."""
    run = client.create_flow_run(night, state=Pending(), **about)
    client.set_flow_run_state(run.id, state, force=True)
    return client.read_flow_run(run.id)


def beat(client: SyncPrefectClient, run: FlowRun) -> None:
    """A heartbeat, as Prefect's engine sends it."""
    event = {
        "id": str(uuid.uuid4()), "event": takeover.HEARTBEAT, "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run.id}"},
    }  # fmt: skip
    client._client.post("/events", json=[event]).raise_for_status()


def heard(client: SyncPrefectClient, run: FlowRun) -> None:
    """Wait until the server has stored the heartbeat."""
    import time

    deadline = time.monotonic() + 60
    while not takeover._heartbeats(client, run.id):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def state(client: SyncPrefectClient, run: FlowRun) -> tuple[str, str]:
    found = client.read_flow_run(run.id).state
    assert found is not None
    return str(found.name), found.message or ""


@pytest.mark.survives(
    "processes",
    "a worker killed while a night trains",
    how="a run that stays Running in Prefect, and the lock file of its process",
    held="marked as crashed by the next night of the clone, by the lock that the kernel let go",
)
def test_the_run_that_a_lock_file_names_is_marked(client: SyncPrefectClient) -> None:
    run = made(client, Running())
    holder = {"pid": 12, "flow_run": str(run.id)}
    assert takeover.crash_former(holder) == [run.name]
    assert state(client, run) == ("Crashed", "its process (pid 12) was killed; taken over")
    assert takeover.crash_former(holder) == []
    assert takeover.crash_former({}) == []
    assert takeover.crash_former({"flow_run": str(uuid.uuid4())}) == []
    assert takeover.crash_former({"flow_run": "none"}) == []


@pytest.mark.survives(
    "processes",
    "a worker on another machine cut off",
    how="heartbeats that stop, with the server's clock an hour later",
    held="marked as crashed after four missed heartbeats, by the server's clock; live runs are left alone",
)
def test_a_run_without_heartbeats_is_marked_and_others_are_left(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, mute, waiting = made(client, Running()), made(client, Running()), made(client, Pending())
    beat(client, silent)
    heard(client, silent)
    assert takeover.crash_silent(OWN) == []
    now = takeover._now(client)
    monkeypatch.setattr(takeover, "_now", lambda client: now + timedelta(minutes=11))
    assert takeover.crash_silent(OWN) == []
    monkeypatch.setattr(takeover, "_now", lambda client: now + timedelta(minutes=61))
    assert takeover.crash_silent(silent.id) == [waiting.name]
    assert takeover.crash_silent(OWN) == [silent.name]
    assert state(client, silent)[0] == "Crashed"
    assert state(client, silent)[1].startswith("no heartbeat for 6")
    # It never sent one: nothing can be known of it.
    assert state(client, mute)[0] == "Running"
    assert "never started" in state(client, waiting)[1]


def test_our_own_clock_is_not_asked(client: SyncPrefectClient) -> None:
    now = takeover._now(client)
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=30)
    assert now.tzinfo is not None


@pytest.mark.survives(
    "nights",
    "five late runs after days without a worker",
    how="late and scheduled runs of one deployment, and one with other parameters",
    held="the run that starts does the work, the late ones are cancelled, other work is left alone",
)
def test_late_runs_become_one(client: SyncPrefectClient) -> None:
    deployment = client.create_deployment(client.create_flow(night), name="nightly")
    now = datetime.now(UTC)

    def due(days: int, state: Any, **parameters: Any) -> FlowRun:
        run = client.create_flow_run_from_deployment(
            deployment, parameters=parameters, state=Scheduled(scheduled_time=now - timedelta(days=days))
        )
        if state is not None:
            client.set_flow_run_state(run.id, state, force=True)
        return client.read_flow_run(run.id)

    late = [due(days, Late(scheduled_time=now - timedelta(days=days))) for days in (5, 4, 2)]
    other = due(3, None, experiments=["shapes"])
    to_come = due(-1, None)
    own = due(3, Running())
    assert takeover.collapse(own) is None
    assert [state(client, run)[0] for run in late] == ["Cancelled"] * 3
    assert "does what it would have done" in state(client, late[0])[1]
    assert [state(client, run)[0] for run in (other, to_come, own)] == ["Scheduled", "Scheduled", "Running"]

    later = due(1, Running(), force=False)
    why = takeover.collapse(own)
    assert why is not None
    assert why.startswith(f"{later.name}, which was due later, is under way")
    assert takeover.collapse(later) is None
    assert takeover.collapse(made(client, Running())) is None


def test_times_of_any_kind_are_compared_in_utc() -> None:
    naive = datetime(2026, 11, 26, 3, 0)  # as a database may give it
    assert takeover._utc(naive) == datetime(2026, 11, 26, 3, 0, tzinfo=UTC)
