"""A real Prefect server, and who it tells: an HTTP receiver and a mail server, each as small as can be."""

from __future__ import annotations

import base64
import email
import email.policy
import http.server
import json
import socketserver
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from tests.tracking import servers


@contextmanager
def prefect_process(folder: Path) -> Iterator[str]:
    """Run Prefect's server with a database of its own; gives the address of its API when it answers."""
    port = servers.free_port()
    api = f"http://127.0.0.1:{port}/api"
    settings = {
        "PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    }  # fmt: skip
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with servers.running(command, folder, f"{api}/health", settings):
        yield api


def post(url: str, **content: Any) -> Any:
    """Ask Prefect's API."""
    request = urllib.request.Request(
        url, json.dumps(content).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@dataclass
class Hook:
    """What an HTTP receiver got, and how it answers.

    Attributes:
        url: where it listens.
        got: the JSON bodies.
        headers: of each request.
        code: that it answers with.
        seconds: that it waits before.
    """

    url: str = ""
    got: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    code: int = 200
    seconds: float = 0.0


@contextmanager
def webhook() -> Iterator[Hook]:
    hook = Hook()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hook.got.append(json.loads(body))
            hook.headers.append(dict(self.headers))
            time.sleep(hook.seconds)
            try:
                self.send_response(hook.code)
                self.send_header("Content-Length", "0")
                self.end_headers()
            except OSError:  # who asked has gone
                pass

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook.url = f"http://127.0.0.1:{server.server_address[1]}/hook/s3cr3t-path"
    with _served(server):
        yield hook


@dataclass
class Mailbox:
    """What a mail server got.

    Attributes:
        port: where it listens, without encryption.
        logins: user and password of each login.
        mails: the messages.
        to: the receivers of each.
    """

    port: int = 0
    logins: list[tuple[str, str]] = field(default_factory=list)
    mails: list[EmailMessage] = field(default_factory=list)
    to: list[list[str]] = field(default_factory=list)


@contextmanager
def mail_server() -> Iterator[Mailbox]:
    box = Mailbox()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.say("220 here")
            receivers: list[str] = []
            for raw in self.rfile:
                line = raw.decode().strip()
                word = line[:4].upper()
                if word == "EHLO":
                    self.say("250-here", "250 AUTH PLAIN")
                elif word == "AUTH":
                    _, user, password = base64.b64decode(line.split()[2]).decode().split("\0")
                    box.logins.append((user, password))
                    self.say("235 welcome")
                elif word == "MAIL":
                    receivers = []
                    self.say("250 ok")
                elif word == "RCPT":
                    receivers.append(line.partition("<")[2].partition(">")[0])
                    self.say("250 ok")
                elif word == "DATA":
                    self.say("354 go on")
                    lines = iter(self.rfile.readline, b".\r\n")
                    told = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
                    assert isinstance(told, EmailMessage)
                    box.mails.append(told)
                    box.to.append(receivers)
                    self.say("250 ok")
                elif word == "QUIT":
                    self.say("221 bye")
                    return
                else:
                    self.say("250 ok")

        def say(self, *lines: str) -> None:
            self.wfile.write("".join(f"{line}\r\n" for line in lines).encode())

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    box.port = server.server_address[1]
    with _served(server):
        yield box


@contextmanager
def _served(server: socketserver.TCPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
