"""The door of a model server: what may come in, and in which words the rest is refused.

It stands before MLflow's own scoring server, as an ASGI application around another. A request is read within
limits of size and time, looked at, and handed on to the version that is served at that moment; all of it is
answered by that one, though a new one may take over meanwhile. Whatever goes wrong, the answer is one line of
JSON, never a traceback, a file's path, or the input once more.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd

from steps.errors import DataError
from steps.kinds import Kind
from steps.operation import Serving

VERSION_HEADER = "X-Headstart-Version"
HEALTH, PREDICT = "/health", "/invocations"
# MLflow's own pages that are let through; the others, such as its documentation, load scripts from elsewhere.
OPEN = ("/ping", "/version")
TYPES = ("application/json", "text/csv")
# MLflow's forms of a request in JSON, see its scoring protocol.
FORMS = ("dataframe_records", "dataframe_split", "instances", "inputs")
# Requests that are read or wait for the model at a time; more are told to come back.
WAITING = 64
# Larger ones are parsed in a thread, so that the others do not wait for it.
SMALL_BYTES = 1 << 18
# Who is refused may be sending still, and reads the answer only then.
LINGER_SECONDS = 2.0

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Predict = Callable[[pd.DataFrame], pd.DataFrame]

log = logging.getLogger("headstart.serve")


class RefusedError(Exception):
    """A request that is not answered with a prediction.

    Attributes:
        status: of HTTP.
        line: what the client is told.
    """

    def __init__(self, status: int, line: str) -> None:
        self.status, self.line = status, line
        super().__init__(line)


class GoneError(Exception):
    """The client went away before its request was whole."""


@dataclass
class Slip:
    """What the model's thread tells the door of a request: MLflow's server passes on only its own words."""

    refused: RefusedError | None = None


_SLIP: ContextVar[Slip] = ContextVar("slip")


class Current(Protocol):
    """A version that is served.

    Attributes:
        version: its number.
        app: MLflow's server around it.
    """

    @property
    def version(self) -> str:
        """Its number."""
        ...

    @property
    def app(self) -> App:
        """MLflow's server around it."""
        ...


# ----------------------------------------------------------------------------------------- next to the model


def guarded(
    predict: Predict,
    kind: Kind,
    limits: Serving,
    record: Callable[[pd.DataFrame, pd.DataFrame], None] = lambda asked, said: None,
) -> Callable[[Any], pd.DataFrame]:
    """A model's `predict` that takes what MLflow parsed, looks at it, and puts reasons on the slip.

    Args:
        predict: of the loaded model.
        kind: of its task.
        limits: rows and characters.
        record: is given what was asked and what was said; it must return at once.
    """

    def ask(parsed: Any) -> pd.DataFrame:  # noqa: ANN401 - whatever a client sent
        try:
            asked = framed(parsed, kind, limits)
            said = predict(asked)
        except RefusedError as error:
            _SLIP.get(Slip()).refused = error
            raise
        except DataError as error:
            _SLIP.get(Slip()).refused = RefusedError(400, " ".join(str(error).split()))
            raise
        except Exception:
            log.exception("the model failed")
            _SLIP.get(Slip()).refused = RefusedError(500, "the model failed; the server's log says why")
            raise
        record(asked, said)
        return said

    return ask


def framed(parsed: Any, kind: Kind, limits: Serving) -> pd.DataFrame:  # noqa: ANN401 - whatever a client sent
    """The model's columns of what MLflow parsed, every cell a text.

    Raises:
        RefusedError: columns are missing, or a cell is no text, too long, or not to be written in UTF-8.
    """
    try:
        frame = parsed if isinstance(parsed, pd.DataFrame) else pd.DataFrame(parsed)
    except ValueError:
        raise RefusedError(400, _wanted(kind)) from None
    missing = [name for name in kind.columns if name not in frame.columns]
    if missing:
        raise RefusedError(400, f"the column {missing[0]!r} is missing: {_wanted(kind)}")
    _count(len(frame), limits)
    for name in kind.columns:
        for row, value in enumerate(frame[name]):
            _check_cell(value, f"row {row}: {name!r}", kind, limits)
    return frame[list(kind.columns)].reset_index(drop=True)


def _check_cell(value: object, where: str, kind: Kind, limits: Serving) -> None:
    if not isinstance(value, str):
        absent = value is None or value != value  # NaN differs from itself
        raise RefusedError(400, f"{where} is {'empty' if absent else 'no text'}")
    if kind.content == "text" and len(value) > limits.max_characters:
        told = f"{len(value)} characters are more than the {limits.max_characters} allowed"
        raise RefusedError(400, f"{where}: {told}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RefusedError(400, f"{where} holds half a character (a lone surrogate)") from None


def _count(rows: int, limits: Serving) -> None:
    if rows > limits.max_rows:
        raise RefusedError(413, f"{rows} rows are more than the {limits.max_rows} allowed in one request")


def _wanted(kind: Kind) -> str:
    row = ", ".join(f'"{name}": "..."' for name in kind.columns)
    return f'send {{"dataframe_records": [{{{row}}}]}}, or CSV with the header {",".join(kind.columns)}'


# --------------------------------------------------------------------------------------------- at the network


def check_type(headers: Mapping[bytes, bytes]) -> str:
    """The media type of a request.

    Raises:
        RefusedError: it is compressed, not in UTF-8, or of a type that is not taken.
    """
    given = headers.get(b"content-type", b"").decode("latin-1").lower()
    kind, *parameters = (part.strip() for part in given.split(";"))
    if kind not in TYPES:
        raise RefusedError(415, f"the content type must be {' or '.join(TYPES)}")
    if any(part.replace('"', "") != "charset=utf-8" for part in parameters if part):
        raise RefusedError(415, "only UTF-8 is taken")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RefusedError(415, "compressed requests are not taken")
    return kind


def check_json(body: bytes, kind: Kind, limits: Serving) -> None:
    """Look at a request in JSON before MLflow parses it.

    Raises:
        RefusedError: it is no JSON, of none of MLflow's forms, or has too many rows.
    """
    try:
        found = json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise RefusedError(400, "the JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise RefusedError(400, f"the request is no UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise RefusedError(400, f"the request is no JSON: {error.msg} ({where})") from None
    except ValueError as error:
        raise RefusedError(400, f"the request is no JSON: {error}"[:200]) from None
    if b"\\u" in body:  # only an escape can stand for half a character
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise RefusedError(400, "the JSON holds half a character (a lone surrogate)") from None
    given = [name for name in FORMS if isinstance(found, dict) and name in found]
    if len(given) != 1:
        raise RefusedError(400, _wanted(kind))
    rows = found[given[0]]
    if given[0] == "dataframe_split":
        rows = rows.get("data") if isinstance(rows, dict) else rows
    elif given[0] == "inputs" and isinstance(rows, dict):
        rows = max((one for one in rows.values() if isinstance(one, list)), key=len, default=[])
    if not isinstance(rows, list):
        raise RefusedError(400, _wanted(kind))
    _count(len(rows), limits)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON; leave the row out")


class Door:
    """The ASGI application that stands before MLflow's.

    Args:
        current: gives the version that is served now.
        kind: of its task.
        limits: of size and time.
        health: what the health page tells.
    """

    def __init__(
        self,
        current: Callable[[], Current],
        kind: Kind,
        limits: Serving,
        health: Callable[[], dict[str, Any]],
    ) -> None:
        self.current, self.kind, self.limits, self.health = current, kind, limits, health
        self.waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        now = self.current()
        try:
            status, kind, body = await self._answer(scope, receive, now)
            await _send(send, status, kind, body, now.version)
        except GoneError:
            return
        except RefusedError as error:
            await _refuse(receive, send, error, now.version)
        except Exception:
            log.exception("the server failed")
            await _refuse(
                receive, send, RefusedError(500, "the server failed; its log says why"), now.version
            )

    async def _answer(self, scope: Scope, receive: Receive, now: Current) -> tuple[int, bytes, bytes]:
        path, method = scope["path"], scope["method"]
        if path not in (HEALTH, PREDICT, *OPEN):
            raise RefusedError(
                404, f"there is no such page; predictions are at {PREDICT}, {HEALTH} tells more"
            )
        wanted = "POST" if path == PREDICT else "GET"
        if method != wanted and not (method == "HEAD" and wanted == "GET"):
            raise RefusedError(405, f"{path} takes {wanted}")
        if path == HEALTH:
            return 200, b"application/json", json.dumps(self.health()).encode() + b"\n"
        if path != PREDICT:
            return await _ask({**scope, "method": "GET"}, b"", receive, now.app)
        if self.waiting >= WAITING:
            raise RefusedError(503, f"{WAITING} requests are under way; try again in a moment")
        self.waiting += 1
        try:
            return await self._predict(scope, receive, now)
        finally:
            self.waiting -= 1

    async def _predict(self, scope: Scope, receive: Receive, now: Current) -> tuple[int, bytes, bytes]:
        headers = dict(scope["headers"])
        kind = check_type(headers)
        body = await self._body(headers, receive)
        if kind == "application/json":
            if len(body) <= SMALL_BYTES:
                check_json(body, self.kind, self.limits)
            else:
                await asyncio.to_thread(check_json, body, self.kind, self.limits)
        slip = Slip()
        _SLIP.set(slip)
        status, media, answer = await _ask(scope, body, receive, now.app)
        if status < 400:
            return status, media, answer
        if slip.refused is not None:
            raise slip.refused
        if status == 504:
            raise RefusedError(504, "the model took too long")
        if status >= 500:
            log.error("MLflow's server answers %s: %s", status, answer.decode(errors="replace")[:2000])
            raise RefusedError(500, "the server failed; its log says why")
        raise RefusedError(400, f"the input does not fit the model: {_wanted(self.kind)}")

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The whole body of a request.

        Raises:
            RefusedError: it is too large, by what its header tells or as it turns out, or takes too long.
            GoneError: the client went away.
        """
        limit = self.limits.max_bytes
        large = RefusedError(413, f"the request has more than the {limit} bytes allowed")
        if int(headers.get(b"content-length", b"0")) > limit:
            raise large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.read_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise GoneError
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise large
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            told = f"the request was not whole after {self.limits.read_seconds:g} seconds"
            raise RefusedError(408, told) from None


async def _ask(scope: Scope, body: bytes, receive: Receive, app: App) -> tuple[int, bytes, bytes]:
    """Hand a request on whose body was read already; gives status, media type and body of the answer."""
    given = False
    status, kind, parts = 500, b"application/json", []

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def take(message: Message) -> None:
        nonlocal status, kind
        if message["type"] == "http.response.start":
            status = message["status"]
            kind = dict(message.get("headers", [])).get(b"content-type", kind)
        else:
            parts.append(message.get("body", b""))

    await app(scope, again, take)
    return status, kind, b"".join(parts)


async def _send(
    send: Send, status: int, kind: bytes, body: bytes, version: str, *, last: bool = False
) -> None:
    headers = [
        (b"content-type", kind),
        (b"content-length", str(len(body)).encode()),
        (VERSION_HEADER.lower().encode(), version.encode()),
    ]
    headers += [(b"connection", b"close")] * last + [(b"retry-after", b"1")] * (status == 503)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": last})


async def _refuse(receive: Receive, send: Send, error: RefusedError, version: str) -> None:
    """Tell the one line; whoever is sending still may go on a moment, or it would never read the answer."""
    body = json.dumps({"error_code": _CODES.get(error.status, "BAD_REQUEST"), "message": error.line}).encode()
    await _send(send, error.status, b"application/json", body + b"\n", version, last=True)
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    break
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


# As MLflow's protocol names them, for clients that look at the code.
_CODES = {
    404: "ENDPOINT_NOT_FOUND",
    413: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
