"""A proxy in front of a server of a test: it may be slow, answer in its place, or lose what it answered."""

from __future__ import annotations

import http.client
import http.server
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

# Of one connection or of one hop only; each side makes its own.
_OF_A_HOP = {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"}
_ANSWER_SECONDS = 120.0


class LostError(Exception):
    """The connection to who asked is to be closed without an answer."""


@dataclass(frozen=True)
class Answer:
    """What a request is answered with."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True)
class Request:
    """A request that has arrived and not been handed on.

    Attributes:
        method: e.g. POST.
        path: without the query.
        number: how many of this method and path there have been, with this one.
        body: as it came.
        forward: asks the server; LostError where that is gone.
        forward_half: sends the server the head and half of the body, and gives the connection.
    """

    method: str
    path: str
    number: int
    body: bytes
    forward: Callable[[], Answer]
    forward_half: Callable[[], http.client.HTTPConnection]

    @property
    def changes(self) -> bool:
        """Whether it is one that changes something; a search is asked for by POST, too."""
        return self.method != "GET" and not self.path.endswith(("/search", "/filter"))


Rule = Callable[[Request], Answer]


def untouched(request: Request) -> Answer:
    """Hand it on as it is."""
    return request.forward()


@dataclass
class Between:
    """A proxy.

    Attributes:
        url: its address.
        rule: what it does with a request; may be changed at any time.
        seen: how many requests there were, by method and path.
    """

    url: str
    rule: Rule = untouched
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)


@contextmanager
def between(port: int) -> Iterator[Between]:
    """Stand before the server that listens, or will listen, on this port of this machine."""
    proxy = Between("")
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Head and body of an answer leave apart, and the other end is slow to confirm the first.
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.headers.get("Upgrade"):
                _tunnel(self, port)
                return
            path, body = self.path.partition("?")[0], _body(self)
            with lock:
                proxy.seen[self.command, path] += 1
                number = proxy.seen[self.command, path]
            request = Request(
                self.command,
                path,
                number,
                body,
                forward=lambda: _asked(self, port, body),
                forward_half=lambda: _half(self, port, body),
            )
            try:
                _give(self, proxy.rule(request))
            except (LostError, OSError):  # OSError: who asked waits no longer
                self.close_connection = True

        do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET  # noqa: N815 - the names http.server calls

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        # Connections that are kept open would be waited for.
        server.socket.close()


def _body(handler: http.server.BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    pieces = []
    while size := int(handler.rfile.readline(), 16):
        pieces.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(pieces)


def _head(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> dict[str, str]:
    kept = {name: value for name, value in handler.headers.items() if name.lower() not in _OF_A_HOP}
    return kept | {"Content-Length": str(len(body)), "Connection": "close"}


def _asked(handler: http.server.BaseHTTPRequestHandler, port: int, body: bytes) -> Answer:
    """Ask the server over a connection of its own.

    Raises:
        LostError: it is not there, or ends in the middle.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS)
    try:
        connection.request(handler.command, handler.path, body, _head(handler, body))
        answer = connection.getresponse()
        return Answer(answer.status, tuple(answer.getheaders()), answer.read())
    except (OSError, http.client.HTTPException) as error:
        raise LostError from error
    finally:
        connection.close()


def _half(handler: http.server.BaseHTTPRequestHandler, port: int, body: bytes) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS)
    connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
    for name, value in _head(handler, body).items():
        connection.putheader(name, value)
    connection.endheaders(body[: len(body) // 2])
    return connection


def _give(handler: http.server.BaseHTTPRequestHandler, answer: Answer) -> None:
    handler.send_response(answer.status)
    for name, value in answer.headers:
        if name.lower() not in _OF_A_HOP:
            handler.send_header(name, value)
    if answer.status not in (204, 304):
        handler.send_header("Content-Length", str(len(answer.body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(answer.body)


def _tunnel(handler: http.server.BaseHTTPRequestHandler, port: int) -> None:
    """Hand a connection that leaves HTTP, a WebSocket, on as it is until either end closes it."""
    handler.close_connection = True
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as server:
        lines = [f"{handler.command} {handler.path} HTTP/1.1", *str(handler.headers).splitlines()]
        server.sendall("\r\n".join([*(line for line in lines if line), "", ""]).encode())
        back = threading.Thread(target=_pump, args=(server, handler.connection), daemon=True)
        back.start()
        _pump(handler.connection, server)
        back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while content := source.recv(65536):
            target.sendall(content)
    for one in (source, target):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
