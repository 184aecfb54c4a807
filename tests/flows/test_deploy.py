"""Deployments and automations at a real Prefect server, and the messages that come out of them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import automations, deploy, notify
from flows.deploy import Done
from steps.errors import UserError
from steps.operation import Nightly
from tests.flows.receivers import Hook, Mailbox, mail_server, post, prefect_process, webhook

ROOT = Path(__file__).resolve().parents[2]
NIGHTLY = Nightly(cron="30 2 * * *", timezone="Europe/Vienna")
EMAIL = {"HEADSTART_EMAIL_TO": "team@example.org", "HEADSTART_SMTP_HOST": "mail.example.org"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prefect_process(tmp_path_factory.mktemp("prefect")) as address:
        yield address


@pytest.fixture
def client(api: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as found:
        yield found


def told(done: list[Done]) -> dict[str, str]:
    return {one.name: one.what for one in done}


def waited(condition: Callable[[], object], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def happen(api: str, folder: Path, body: str) -> str:
    """Run a flow of these lines in a process of its own, as a night does; give what it printed."""
    lines = textwrap.indent(textwrap.dedent(body), "    ")
    script = (
        f"from prefect import flow\nfrom flows.notify import emit\n@flow\ndef night():\n{lines}\nnight()\n"
    )
    script = f"import time\nbegan = time.monotonic()\n{script}print(time.monotonic() - began)\n"
    settings = {"PREFECT_API_URL": api, "PREFECT_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | settings,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# -------------------------------------------------------------------------------------------- deployments


@pytest.mark.flow
def test_deploying_twice_changes_nothing_the_second_time(client: SyncPrefectClient) -> None:
    first = told(deploy.deploy("twice", NIGHTLY))
    assert set(first) == {
        "pool twice",
        "headstart-nightly/nightly",
        "headstart/pipeline",
        automations.DEAD_RUNS,
    }
    second = deploy.deploy("twice", NIGHTLY)
    assert set(told(second).values()) == {"unchanged"}
    assert "cron 30 2 * * * Europe/Vienna" in next(one.about for one in second if "nightly" in one.name)


@pytest.mark.flow
def test_a_new_clock_is_told_and_what_was_switched_off_stays_so(client: SyncPrefectClient) -> None:
    deploy.deploy("clock", NIGHTLY)
    found = client.read_deployment_by_name("headstart-nightly/nightly")
    client.update_deployment_schedule(found.id, found.schedules[0].id, active=False)
    done = deploy.deploy("clock", Nightly(cron="0 5 * * 1"))
    assert told(done)["headstart-nightly/nightly"] == "updated"
    found = client.read_deployment_by_name("headstart-nightly/nightly")
    assert isinstance(found.schedules[0].schedule, CronSchedule)
    assert found.schedules[0].schedule.cron == "0 5 * * 1"
    assert not found.schedules[0].active
    assert any("switched off" in one.about for one in done)
    client.update_deployment_schedule(found.id, found.schedules[0].id, active=True)


@pytest.mark.flow
def test_what_a_deployment_says(client: SyncPrefectClient) -> None:
    deploy.deploy("says", NIGHTLY)
    nightly = client.read_deployment_by_name("headstart-nightly/nightly")
    pipeline = client.read_deployment_by_name("headstart/pipeline")
    for one in (nightly, pipeline):
        assert one.work_pool_name == "says"
        # No folder of this machine: each worker has its own clone.
        assert str(ROOT) not in one.model_dump_json()
        assert deploy.CLONE_VARIABLE in str(one.pull_steps)
    assert nightly.global_concurrency_limit is not None
    assert nightly.global_concurrency_limit.limit == 1
    assert pipeline.global_concurrency_limit is None
    assert pipeline.schedules == []
    parameters = (nightly.parameter_openapi_schema or {})["properties"]
    assert set(parameters) == {"experiments", "force"}
    assert all(one["description"] for one in parameters.values())


@pytest.mark.flow
def test_the_clock_makes_runs(api: str, client: SyncPrefectClient) -> None:
    """Fails with an SQLAlchemy that Prefect's scheduler cannot insert with, without a word in its log."""
    deploy.deploy("runs", NIGHTLY)
    found = client.read_deployment_by_name("headstart-nightly/nightly")
    wanted = {
        "deployments": {"id": {"any_": [str(found.id)]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    assert waited(lambda: post(f"{api}/flow_runs/filter", **wanted), 90)
    times = [one["expected_start_time"] for one in post(f"{api}/flow_runs/filter", **wanted)]
    # 2:30 in Vienna, in winter or summer.
    assert {datetime.fromisoformat(at).astimezone(UTC).strftime("%H:%M") for at in times} <= {
        "00:30",
        "01:30",
    }


def test_a_worker_runs_in_its_clone(tmp_path: Path) -> None:
    command, environment = deploy.worker("pool", clone=tmp_path)
    assert environment[deploy.CLONE_VARIABLE] == str(tmp_path)
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path)
    assert command[command.index("--limit") + 1] == "1"
    assert deploy.worker_name(tmp_path) != deploy.worker_name(tmp_path / "other")


# ---------------------------------------------------------------------------------------------- messages


@pytest.fixture
def hook() -> Iterator[Hook]:
    with webhook() as found:
        yield found


@pytest.fixture
def box() -> Iterator[Mailbox]:
    with mail_server() as found:
        yield found


@pytest.mark.flow
def test_each_kind_arrives_by_both_ways(
    api: str, client: SyncPrefectClient, hook: Hook, box: Mailbox, tmp_path: Path
) -> None:
    list(automations.silence(client))
    settings = {
        **EMAIL, "HEADSTART_WEBHOOK_URL": hook.url, "HEADSTART_WEBHOOK_TOKEN": "t0ken",
        "HEADSTART_EMAIL_TO": "team@example.org,boss@example.org", "HEADSTART_SMTP_HOST": "127.0.0.1",
        "HEADSTART_SMTP_PORT": str(box.port), "HEADSTART_SMTP_MODE": "insecure",
        "HEADSTART_SMTP_USER": "headstart@example.org", "HEADSTART_SMTP_PASSWORD": "p@ss/w:rd&x=%20",
    }  # fmt: skip
    for way in automations.WAYS:
        assert [what for _, what in automations.tell(client, way, settings)] == ["created"] * 4
        assert [what for _, what in automations.tell(client, way, settings)] == ["unchanged"] * 4
    # The server looks for new automations every few seconds.
    time.sleep(3)
    happen(api, tmp_path, """
        for kind in ("promoted", "refused", "failed", "drift", "nothing"):
            text = f'<b>{kind}</b> "quoted" {{{{ event.id }}}} password=s3cr3t'
            emit(kind, "digits", text, gain=1.5, token="s3cr3t")
    """)  # fmt: skip
    # Each receiver has a mail of his own.
    assert waited(lambda: len(hook.got) >= 4 and len(box.mails) >= 8), (hook.got, box.mails)
    assert sorted(one["headstart"]["kind"] for one in hook.got) == sorted(notify.TOLD)
    for body, headers in zip(hook.got, hook.headers, strict=True):
        assert headers["Authorization"] == "Bearer t0ken"
        about = body["headstart"]
        assert about["text"].startswith(f'<b>{about["kind"]}</b> "quoted" {{{{ event.id }}}} password=')
        assert about["facts"] == {"gain": 1.5, "token": "[hidden]"}
        assert "&lt;b&gt;" in body["text"]
        assert "s3cr3t" not in str(body)
    assert box.logins[0] == ("headstart@example.org", "p@ss/w:rd&x=%20")
    assert sorted(box.to) == [["boss@example.org"]] * 4 + [["team@example.org"]] * 4
    subjects = {str(mail["subject"]) for mail in box.mails}
    assert subjects == {f"Headstart digits: {notify.TITLES[kind]}" for kind in notify.TOLD}
    for mail in box.mails:
        part = mail.get_body(("plain",))
        assert part is not None, mail
        assert mail.get_body(("html",)) is None
        content = part.get_content()
        assert '</b> "quoted" {{ event.id }}' in content
        assert "gain: 1.5" in content
        assert "s3cr3t" not in str(mail)
    assert len(list(automations.silence(client))) == 8


@pytest.mark.faults
@pytest.mark.survives(
    "servers",
    "who is told of events is slow, answers 500, or is away",
    how="a receiver that waits 8 s and answers 500, then none at all",
    held="the run does not wait for it, and the next message arrives",
)
def test_a_receiver_that_fails_does_not_hurt_a_night(
    api: str, client: SyncPrefectClient, hook: Hook, tmp_path: Path
) -> None:
    list(automations.silence(client))
    list(automations.tell(client, "webhook", {"HEADSTART_WEBHOOK_URL": hook.url}))
    time.sleep(3)
    hook.code, hook.seconds = 500, 8
    printed = happen(api, tmp_path, 'emit("failed", "digits", "slow")')
    assert float(printed.split()[-1]) < 30
    assert waited(lambda: len(hook.got) == 1)
    # Nobody listens there any more.
    list(automations.tell(client, "webhook", {"HEADSTART_WEBHOOK_URL": "http://127.0.0.1:9/hook"}))
    time.sleep(3)
    happen(api, tmp_path, 'emit("failed", "digits", "down")')
    # The server goes on, and tells the next time.
    hook.code, hook.seconds = 200, 0
    list(automations.tell(client, "webhook", {"HEADSTART_WEBHOOK_URL": hook.url}))
    time.sleep(3)
    happen(api, tmp_path, 'emit("failed", "digits", "well again")')
    assert waited(lambda: any("well again" in str(one) for one in hook.got))
    list(automations.silence(client))


def test_a_missing_or_wrong_variable_is_named() -> None:
    for missing in EMAIL:
        with pytest.raises(UserError, match=f"set {missing} in the environment"):
            automations.email_address({name: value for name, value in EMAIL.items() if name != missing})
    with pytest.raises(UserError, match="set HEADSTART_EMAIL_FROM"):
        automations.email_address(EMAIL)
    sender = {**EMAIL, "HEADSTART_EMAIL_FROM": "a@example.org"}
    with pytest.raises(UserError, match="HEADSTART_SMTP_MODE is 'plain'"):
        automations.email_address({**sender, "HEADSTART_SMTP_MODE": "plain"})
    with pytest.raises(UserError, match="HEADSTART_SMTP_PORT is 'smtp'"):
        automations.email_address({**sender, "HEADSTART_SMTP_PORT": "smtp"})


def test_mail_is_encrypted_unless_told_otherwise() -> None:
    sender = {**EMAIL, "HEADSTART_EMAIL_FROM": "a@example.org"}
    assert automations.email_address(sender).startswith("mailtos://mail.example.org:587/")
    assert "mode=starttls" in automations.email_address(sender)
    assert ":465/" in automations.email_address({**sender, "HEADSTART_SMTP_MODE": "ssl"})
    assert automations.email_address({**sender, "HEADSTART_SMTP_MODE": "insecure"}).startswith("mailto://")
