"""Events of what happened: made in Prefect, turned into messages by its automations.

An event is kept by Prefect and shown in its feed. Whether somebody is told is the affair of the automations
that `headstart deploy --notify` makes at the server: a receiver that is down cannot hurt a run.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal, get_args

from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.logging import get_logger
from prefect.settings import PREFECT_API_URL

from flows.redaction import HIDDEN, is_secret, redacted

Kind = Literal["promoted", "refused", "failed", "drift", "nothing"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# What somebody is told of; that there was nothing to do is in the feed alone.
TOLD: tuple[Kind, ...] = ("promoted", "refused", "failed", "drift")
TITLES: dict[Kind, str] = {
    "promoted": "new champion",
    "refused": "candidate refused",
    "failed": "failed",
    "drift": "inputs have drifted",
    "nothing": "nothing to do",
}

# Of a text, of a fact, and how many facts; a message is read on a telephone.
TEXT, FACT, FACTS, DEPTH = 2000, 300, 30, 4
READ = 100_000

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)")


def emit(kind: Kind, experiment: str, text: str, /, **facts: Any) -> None:  # noqa: ANN401 - any JSON value
    """Make the event `headstart.<kind>` of an experiment; never raises, and waits for nobody.

    Without a Prefect server, and outside of a run, there is nobody to tell, and nothing is done.

    Args:
        kind: what happened.
        experiment: the resource of the event is `headstart.<experiment>`.
        text: what happened in a sentence or two.
        facts: what a program may want to know beside it, as JSON values.
    """
    logger = get_logger(__name__)
    try:
        told = message(kind, experiment, text, facts)
        if PREFECT_API_URL.value() is None and FlowRunContext.get() is None:
            logger.debug("no Prefect server to tell: %s", told["text"])
            return
        resource = {
            "prefect.resource.id": f"headstart.{told['experiment']}",
            "prefect.resource.name": told["experiment"],
        }
        emit_event(f"headstart.{kind}", resource, payload=told)
    except Exception as error:
        logger.warning("no event headstart.%s: %s", kind, redacted(str(error)))


def message(kind: Kind, experiment: str, text: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What an event carries: everything in it may be read by anybody.

    Returns:
        `kind`, `experiment`, `title`, `text` and `facts` as plain text without secrets; `chat`, title and
        text as chat programs take them, with their marks escaped.
    """
    assert kind in KINDS, kind
    name = plain(experiment, FACT)
    title = f"Headstart {name}: {TITLES[kind]}"
    said = plain(text, TEXT)
    return {
        "kind": kind,
        "experiment": name,
        "title": title,
        "text": said,
        "chat": f"*{chat(title)}*\n{chat(said)}",
        "facts": _facts(facts),
    }


def plain(text: object, length: int) -> str:
    """Text on one line, without secrets and signs that nobody sees, and not too long."""
    read = str(text)
    if len(read) > READ:  # a secret that is cut in half is not known as one any more
        read = read[:READ].rsplit(maxsplit=1)[0]
    # First cleaned: a sign that nobody sees could stand in the midst of a secret.
    line = redacted(" ".join("".join(map(_seen, _ESCAPES.sub("", read))).split()))
    return line if len(line) <= length else line[: length - 1] + "…"


def chat(text: str) -> str:
    """Plain text as chat programs show it: no links, nobody is called, nothing is bold."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # A word joiner, which nobody sees, stands between a mark and what would make it one.
    return re.sub(r"([*_~`|@#\[\]])", "\\1\N{WORD JOINER}", escaped).replace("://", ":\N{WORD JOINER}//")


def _facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as JSON values without secrets, as many as a message can bear."""
    return {
        plain(name, FACT): HIDDEN if is_secret(str(name)) else _value(value, DEPTH)
        for name, value in list(facts.items())[:FACTS]
    }


def _value(value: object, depth: int) -> Any:  # noqa: ANN401 - any JSON value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        # JSON has no word for what is no number.
        return value if value - value == 0 else str(value)
    if depth > 0 and isinstance(value, Mapping):
        return {
            plain(name, FACT): HIDDEN if is_secret(str(name)) else _value(one, depth - 1)
            for name, one in list(value.items())[:FACTS]
        }
    if depth > 0 and isinstance(value, list | tuple | set | frozenset):
        return [_value(one, depth - 1) for one in list(value)[:FACTS]]
    return plain(value, FACT)


def _seen(sign: str) -> str:
    kind = unicodedata.category(sign)
    if kind == "Cc" or kind.startswith("Z"):
        return " "
    # Half of a pair has no bytes; what only formats (a turned direction, a tag) is seen by nobody.
    return "" if kind in ("Cf", "Cs", "Co", "Cn") else sign
