"""What Prefect's server does by itself: tells people of our events, and marks runs whose process died.

The server acts, not the run: a receiver that is down, slow or broken costs a message and no night.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, CallWebhook, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.types import SecretDict
from pydantic import SecretStr

from flows import notify
from steps.errors import UserError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

Way = Literal["webhook", "email"]
WAYS: tuple[Way, ...] = ("webhook", "email")
# Flow runs send a heartbeat every 180 s (PREFECT_FLOWS_HEARTBEAT_FREQUENCY); five missing ones are a death.
# A shorter time would end living runs of a machine that keeps Prefect's default.
DEAD_AFTER = timedelta(minutes=15)
DEAD_RUNS = "headstart-dead-runs"
ENDINGS = ("Completed", "Failed", "Cancelled", "Crashed")
MODES = ("starttls", "ssl", "insecure")

# `chat` has its marks escaped already; `tojson` makes JSON of whatever it is given.
WEBHOOK_BODY = """{
  "text": {{ event.payload.chat | tojson }},
  "headstart": {
    "kind": {{ event.payload.kind | tojson }},
    "experiment": {{ event.payload.experiment | tojson }},
    "title": {{ event.payload.title | tojson }},
    "text": {{ event.payload.text | tojson }},
    "facts": {{ event.payload.facts | tojson }},
    "time": {{ event.occurred | string | tojson }},
    "event": {{ event.id | string | tojson }}
  }
}"""
# An e-mail is plain text: nothing in it is a mark.
EMAIL_SUBJECT = "{{ event.payload.title }}"
EMAIL_BODY = """{{ event.payload.text }}
{% for name, value in event.payload.facts.items() %}
{{ name }}: {{ value }}{% endfor %}

{{ event.occurred }}
"""


def dead_runs(client: SyncPrefectClient, flows: list[str]) -> str:
    """Mark a flow run as crashed whose heartbeats have ended, so that it holds no place any more.

    Args:
        client: of the server.
        flows: the names of those it is done for.

    Returns:
        What was done: `created`, `updated` or `unchanged`.
    """
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{ending}" for ending in ENDINGS)},
        match={"prefect.resource.id": ["prefect.flow-run.*"]},
        # The flows of others on the same server are none of our business.
        match_related={"prefect.resource.role": "flow", "prefect.resource.name": flows},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=DEAD_AFTER,
    )
    minutes = round(DEAD_AFTER.total_seconds() / 60)
    message = f"Its process died: no heartbeat for {minutes} minutes."
    action = ChangeFlowRunState(state=StateType.CRASHED, message=message)
    return _settle(client, DEAD_RUNS, "Runs whose process died let go of their place.", trigger, action)


def tell(
    client: SyncPrefectClient, way: Way, environment: Mapping[str, str] = os.environ
) -> Iterator[tuple[str, str]]:
    """Have the server tell people of what happens.

    Args:
        client: of the server.
        way: by which way; the receiver's address stands in the environment, and goes to Prefect's store of
            secrets.
        environment: where the addresses, tokens and passwords are.

    Yields:
        The name of each automation, and what was done: `created`, `updated` or `unchanged`.

    Raises:
        UserError: a variable is missing or wrong.
    """
    block_id = _saved(BLOCKS[way](environment), f"headstart-{way}")
    action = _action(way, block_id)
    for kind in notify.TOLD:
        trigger = EventTrigger(
            expect={f"headstart.{kind}"},
            match={"prefect.resource.id": ["headstart.*"]},
            posture=Posture.Reactive,
            threshold=1,
        )
        name = _name(kind, way)
        yield name, _settle(client, name, f"Tells of {notify.TITLES[kind]} by {way}.", trigger, action)


def silence(client: SyncPrefectClient) -> Iterator[str]:
    """Tell nobody any more; gives the names of the automations that were removed."""
    for kind in notify.TOLD:
        for way in WAYS:
            for found in client.read_automations_by_name(_name(kind, way)):
                client.delete_automation(found.id)
                yield found.name


def email_address(environment: Mapping[str, str]) -> str:
    """The address of a mail server and a mailbox as Apprise reads it.

    Raises:
        UserError: a variable is missing or wrong.
    """
    to, host = _needed("HEADSTART_EMAIL_TO", environment), _needed("HEADSTART_SMTP_HOST", environment)
    user, password = environment.get("HEADSTART_SMTP_USER"), environment.get("HEADSTART_SMTP_PASSWORD")
    sender = environment.get("HEADSTART_EMAIL_FROM") or user or ""
    if "@" not in sender:
        raise UserError("set HEADSTART_EMAIL_FROM to the sender's address, such as headstart@example.org")
    mode = environment.get("HEADSTART_SMTP_MODE", "starttls")
    if mode not in MODES:
        raise UserError(f"HEADSTART_SMTP_MODE is {mode!r}, must be one of {', '.join(MODES)}")
    port = environment.get("HEADSTART_SMTP_PORT", {"starttls": "587", "ssl": "465"}.get(mode, "25"))
    if not port.isdigit():
        raise UserError(f"HEADSTART_SMTP_PORT is {port!r}, must be a number")
    login = f"{_quoted(user)}:{_quoted(password or '')}@" if user else ""
    options = {"smtp": host, "from": sender, "to": to, "format": "text", "mode": mode}
    scheme = "mailto" if mode == "insecure" else "mailtos"
    return f"{scheme}://{login}{host}:{port}/?{urllib.parse.urlencode(options)}"


def check(way: Way, environment: Mapping[str, str] = os.environ) -> None:
    """Look whether the environment has all that a way needs; changes nothing.

    Raises:
        UserError: a variable is missing or wrong.
    """
    BLOCKS[way](environment)


def _webhook(environment: Mapping[str, str]) -> Webhook:
    url = _needed("HEADSTART_WEBHOOK_URL", environment)
    if not url.startswith(("http://", "https://")):
        raise UserError("HEADSTART_WEBHOOK_URL must begin with https:// or http://")
    headers = {"Content-Type": "application/json"}
    if token := environment.get("HEADSTART_WEBHOOK_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    return Webhook(method="POST", url=SecretStr(url), headers=SecretDict(headers))


def _email(environment: Mapping[str, str]) -> SlackWebhook:
    # Prefect has no block of its own for a mail server; this one hands any address on to Apprise.
    return SlackWebhook(url=SecretStr(email_address(environment)))


BLOCKS: dict[Way, Callable[[Mapping[str, str]], Webhook | SlackWebhook]] = {
    "webhook": _webhook,
    "email": _email,
}


def _action(way: Way, block_id: UUID) -> ActionTypes:
    if way == "webhook":
        return CallWebhook(block_document_id=block_id, payload=WEBHOOK_BODY)
    return SendNotification(block_document_id=block_id, subject=EMAIL_SUBJECT, body=EMAIL_BODY)


def _saved(block: Webhook | SlackWebhook, name: str) -> UUID:
    found = block.save(name, overwrite=True)
    assert isinstance(found, UUID)  # not awaited: there is no loop here
    return found


def _settle(
    client: SyncPrefectClient, name: str, description: str, trigger: EventTrigger, action: ActionTypes
) -> str:
    """Make the automation as it shall be; one that was switched off in the UI stays so."""
    wanted = AutomationCore(name=name, description=description, trigger=trigger, actions=[action])
    found = client.read_automations_by_name(name)
    if not found:
        client.create_automation(wanted)
        return "created"
    for extra in found[1:]:
        client.delete_automation(extra.id)
    wanted.enabled = found[0].enabled
    if _same(found[0], wanted):
        return "unchanged"
    client.update_automation(found[0].id, wanted)
    return "updated"


def _same(found: AutomationCore, wanted: AutomationCore) -> bool:
    def content(one: AutomationCore) -> object:
        told = one.model_dump(mode="json", include=set(AutomationCore.model_fields))
        told["trigger"].pop("id", None)
        return told

    return content(found) == content(wanted)


def _name(kind: notify.Kind, way: Way) -> str:
    return f"headstart-{kind}-{way}"


def _needed(name: str, environment: Mapping[str, str]) -> str:
    value = environment.get(name, "").strip()
    if not value:
        raise UserError(f"set {name} in the environment; docs/notifications.md tells what it holds")
    return value


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")
