from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import chdir, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from steps import artifacts, door, serve
from steps.door import Door, RefusedError
from steps.errors import TrackingError, UnreadableError, UserError
from steps.kinds import KINDS
from steps.operation import Serving
from tests.tracking import made

TEXT, PAIR, IMAGE = (
    KINDS[name] for name in ("text-classification", "text-pair-classification", "image-classification")
)
LIMITS = Serving(max_bytes=100_000, max_rows=4, max_characters=20, read_seconds=2, refresh_seconds=0.3)


# ---------------------------------------------------------------------------------------------- what comes in


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "must be application/json or text/csv"),
        ("text/plain", "must be application/json"),
        ("application/vnd.apache.parquet", "must be application/json"),
        ("application/json; charset=latin-1", "only UTF-8"),
        ("application/json; boundary=x", "only UTF-8"),
    ],
)
def test_other_types_are_refused(given: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message) as told:
        door.check_type({b"content-type": given.encode()})
    assert told.value.status == 415


def test_the_types_that_are_taken() -> None:
    assert door.check_type({b"content-type": b"application/json"}) == "application/json"
    assert door.check_type({b"content-type": b'Text/CSV; charset="UTF-8"'}) == "text/csv"
    with pytest.raises(RefusedError, match="compressed"):
        door.check_type({b"content-type": b"text/csv", b"content-encoding": b"gzip"})


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "no JSON: Expecting value"),
        (b"{", 400, "no JSON"),
        (b"\xff{}", 400, "no UTF-8 at byte 0"),
        (b"[" * 200_000, 400, "nested too deeply"),
        (b'{"dataframe_records": [{"text": NaN}]}', 400, "NaN is no number in JSON"),
        (b'{"dataframe_records": [{"text": -Infinity}]}', 400, "-Infinity is no number"),
        (b'{"inputs": [' + b"9" * 5000 + b"]}", 400, "no JSON: Exceeds the limit"),
        (b'{"inputs": {"text": ["\\ud800"]}}', 400, "lone surrogate"),
        (b"[]", 400, 'send {"dataframe_records": '),
        (b'{"rows": []}', 400, 'send {"dataframe_records": '),
        (b'{"inputs": [], "instances": []}', 400, "send "),
        (b'{"dataframe_records": {}}', 400, "send "),
        (b'{"dataframe_records": [{}, {}, {}, {}, {}]}', 413, "5 rows are more than the 4 allowed"),
        (b'{"dataframe_split": {"columns": ["text"], "data": [1,2,3,4,5]}}', 413, "5 rows"),
        (b'{"inputs": {"text": ["a", "b", "c", "d", "e"]}}', 413, "5 rows"),
    ],
)
def test_what_is_no_request_is_told_in_one_line(body: bytes, status: int, message: str) -> None:
    with pytest.raises(RefusedError) as told:
        door.check_json(body, TEXT, LIMITS)
    assert told.value.status == status
    assert message in told.value.line
    assert "\n" not in told.value.line
    assert len(told.value.line) < 250


@pytest.mark.parametrize(
    ("parsed", "message"),
    [
        (pd.DataFrame({"body": ["a"]}), "the column 'text' is missing: send"),
        ({"text": ["a", "b"], "pair": ["c"]}, "send"),
        ([["a", "b"], ["c", "d"]], "the column 'text' is missing"),
        (pd.DataFrame({"text": ["a", None], "pair": ["b", "c"]}), "row 1: 'text' is empty"),
        (pd.DataFrame({"text": ["a"], "pair": [float("nan")]}), "row 0: 'pair' is empty"),
        (pd.DataFrame({"text": [3], "pair": ["b"]}), "row 0: 'text' is no text"),
        (pd.DataFrame({"text": ["a" * 21], "pair": ["b"]}), "21 characters are more than the 20 allowed"),
        (pd.DataFrame({"text": ["\ud800"], "pair": ["b"]}, dtype=object), "lone surrogate"),
        (pd.DataFrame({"text": ["a"] * 5, "pair": ["b"] * 5}), "5 rows are more than the 4"),
    ],
)
def test_rows_that_do_not_fit_the_model_are_refused(parsed: Any, message: str) -> None:
    with pytest.raises(RefusedError) as told:
        door.framed(parsed, PAIR, LIMITS)
    assert message in told.value.line


def test_the_models_columns_are_taken_and_the_others_left() -> None:
    frame = door.framed({"more": [1], "pair": ["b"], "text": ["a"]}, PAIR, LIMITS)
    assert list(frame.columns) == ["text", "pair"]
    # Pictures are as long as they are; their pixels are looked at, not their characters.
    assert len(door.framed({"image": ["A" * 1000]}, IMAGE, LIMITS)) == 1


# ---------------------------------------------------------------------------------------- the door by itself


@dataclass
class _Version:
    """Stands for a version with MLflow's server around it."""

    version: str = "7"
    status: int = 200
    body: bytes = b'{"predictions": []}'
    asked: list[bytes] = field(default_factory=list)
    waits: asyncio.Event | None = None

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        self.asked.append(message["body"])
        if self.waits is not None:
            await self.waits.wait()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


async def _post(
    at: Door, *parts: bytes, path: str = "/invocations", method: str = "POST", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    given = {"content-type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    scope = {
        "type": "http", "path": path, "method": method,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    waiting = list(parts or [b""])
    answer: list[Any] = []

    async def receive() -> Any:
        if not waiting:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: Any) -> None:
        answer.append(message)

    await at(scope, receive, send)
    told = {name.decode(): value.decode() for name, value in answer[0]["headers"]}
    return answer[0]["status"], told, b"".join(one["body"] for one in answer[1:])


def _door(now: _Version) -> Door:
    return Door(lambda: now, TEXT, LIMITS, lambda: {"status": "ok"})


GOOD = b'{"dataframe_records": [{"text": "a"}]}'


def test_a_request_is_handed_on_whole_and_the_version_told() -> None:
    now = _Version()
    status, headers, body = asyncio.run(_post(_door(now), GOOD[:9], GOOD[9:]))
    assert (status, headers["x-headstart-version"], body) == (200, "7", now.body)
    assert now.asked == [GOOD]


def test_a_request_that_turns_out_too_large_is_read_no_further() -> None:
    now = _Version()
    status, headers, body = asyncio.run(_post(_door(now), *[b"x" * 30_000] * 9))
    assert status == 413
    assert headers["connection"] == "close"
    assert json.loads(body)["message"] == "the request has more than the 100000 bytes allowed"
    assert now.asked == []


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/docs", "GET", 404),
        ("/openapi.json", "GET", 404),
        ("/../etc/passwd", "GET", 404),
        ("/invocations", "GET", 405),
        ("/health", "POST", 405),
        ("/health", "GET", 200),
        ("/ping", "GET", 200),
    ],
)
def test_pages(path: str, method: str, status: int) -> None:
    found, headers, _ = asyncio.run(_post(_door(_Version()), path=path, method=method))
    assert found == status
    assert headers["x-headstart-version"] == "7"


@pytest.mark.parametrize(("theirs", "ours"), [(400, 400), (422, 400), (500, 500), (504, 504)])
def test_nothing_of_mlflows_errors_gets_out(theirs: int, ours: int) -> None:
    now = _Version(status=theirs, body=b'{"message": "/srv/x", "stack_trace": "Traceback"}')
    status, _, body = asyncio.run(_post(_door(now), GOOD))
    assert status == ours
    assert b"/srv" not in body
    assert b"Traceback" not in body


def test_when_too_many_wait_the_next_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "WAITING", 2)

    async def work() -> list[int]:
        now = _Version(waits=asyncio.Event())
        at = _door(now)
        first = [asyncio.create_task(_post(at, GOOD)) for _ in range(2)]
        while len(now.asked) < 2:
            await asyncio.sleep(0)
        status, headers, _ = await _post(at, GOOD)
        assert headers["retry-after"] == "1"
        assert now.waits is not None
        now.waits.set()
        return [status, *[(await one)[0] for one in first], (await _post(at, GOOD))[0]]

    assert asyncio.run(work()) == [503, 200, 200, 200]


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (UnreadableError({0: "is no image"}, 1), 400, "1 of 1 inputs cannot be read: row 0: is no image"),
        (RuntimeError("/srv/secret"), 500, "the model failed; the server's log says why"),
    ],
)
def test_what_the_model_raises_reaches_the_client_as_a_line(
    raised: Exception, status: int, line: str
) -> None:
    class Asking(_Version):
        async def app(self, scope: Any, receive: Any, send: Any) -> None:
            def predict(frame: pd.DataFrame) -> pd.DataFrame:
                raise raised

            ask = door.guarded(predict, TEXT, LIMITS)
            try:
                await asyncio.to_thread(ask, pd.DataFrame({"text": ["a"]}))
            except type(raised):
                self.status, self.body = 400, b"what MLflow says"
            await super().app(scope, receive, send)

    found, _, body = asyncio.run(_post(_door(Asking()), GOOD))
    assert (found, json.loads(body)["message"]) == (status, line)


@pytest.mark.parametrize("arguments", [[], ["digits", "--colour", "x"], ["digits", "--port", "x"]])
def test_a_wrong_call_is_told_in_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["serve", *arguments])
    assert serve.main() == 2
    told = capsys.readouterr().err
    assert "usage: python -m steps.serve" in told
    assert told.count("\n") == 1


def test_a_taken_port_is_told_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="choose others with --host and --port"):
            serve.serve("digits", port=taken.getsockname()[1])
    with pytest.raises(UserError, match="--host"):
        serve.serve("digits", host="no.such.host.invalid")


@contextmanager
def _listening(app: Any, seconds: float) -> Iterator[int]:
    """Uvicorn with our connections in a thread; gives its port."""
    import uvicorn

    from steps.connection import patient

    config = uvicorn.Config(app, http=patient(seconds), ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield bound.getsockname()[1]
        server.should_exit = True
        thread.join()


def test_a_head_that_does_not_come_is_not_waited_for() -> None:
    with _listening(_door(_Version()), 0.3) as port:
        head = b"GET /ping HTTP/1.1\r\nHost: x\r\n"
        for first in (b"", head + b"X-Slow: ", head + b"\r\n" + head):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
                link.sendall(first)
                found = b""
                while piece := link.recv(65536):
                    found += piece
                # A whole request before it is answered all the same.
                assert found.startswith(b"HTTP/1.1 200 ") == first.endswith(b"\r\n" + head)


# --------------------------------------------------------------------------------------------- a real server


@dataclass
class Server:
    """A server process in a folder with the models it serves."""

    root: Path
    process: subprocess.Popen[str]
    port: int
    log: Path
    pictures: list[str]

    def post(self, body: bytes, **headers: str) -> tuple[int, str, dict[str, Any]]:
        """Status, version and JSON of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {"Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        connection.request("POST", "/invocations", body, given)
        return _read(connection)

    def get(self, path: str) -> tuple[int, str, dict[str, Any]]:
        """Status, version and JSON of a page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path)
        return _read(connection)

    def raw(self, *parts: bytes, pause: float = 0.0) -> bytes:
        """What is answered to bytes that are sent one after another."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as link:
            for part in parts:
                try:
                    link.sendall(part)
                except OSError:
                    break
                time.sleep(pause)
            found = b""
            while True:
                try:
                    piece = link.recv(65536)
                except ConnectionResetError:
                    return found
                if not piece:
                    return found
                found += piece

    def until(self, **wanted: str) -> dict[str, Any]:
        """The health page, when it says so."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            told = self.get("/health")[2]
            if all(told[name] == value for name, value in wanted.items()):
                return told
            time.sleep(0.1)
        raise AssertionError(f"{wanted} but {told}\n{self.log.read_text()}")


def _read(connection: http.client.HTTPConnection) -> tuple[int, str, dict[str, Any]]:
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    found = json.loads(content) if content.strip().startswith(b"{") else {}
    return answer.status, answer.headers["X-Headstart-Version"], found


def _asked(*pictures: str) -> bytes:
    return json.dumps({"dataframe_records": [{"image": one} for one in pictures]}).encode()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with a registered model of two versions, the first of them champion."""
    from steps.register import register
    from steps.tracking import aliases, store

    root = tmp_path_factory.mktemp("serve")
    name = made.clone(root)
    made.store(root)
    with chdir(root), pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register(name)
        made.write_report(name, "image-classification", "frozen")
        register(name)
        with store.opened() as opened:
            assert set(aliases.current(opened, f"headstart-{name}").values()) <= {"1", "2"}
            if aliases.current(opened, f"headstart-{name}")[aliases.CHAMPION] != "1":
                aliases.promote(opened, f"headstart-{name}", "1", why="the test begins with it")
        artifacts.write_json(
            artifacts.settings_file(name, "serving"),
            LIMITS.model_copy(update={"record": True}).model_dump(mode="json"),
        )
    return root


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    """A server of `colours` on a free port."""
    log = root / "serve.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "steps.serve", "colours", "--port", "0"],
            cwd=root, env=environment, stdout=subprocess.PIPE, stderr=stream, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "answers at" in line, f"{line}{log.read_text()}"
            port = int(line.rpartition(":")[2].split("/")[0])
            files = sorted((root / "data/colours/samples").glob("*-0.png"))
            pictures = [base64.b64encode(file.read_bytes()).decode() for file in files]
            server = Server(root, process, port, log, pictures)
            server_up = time.monotonic() + 30
            while True:
                try:
                    server.get("/ping")
                    break
                except OSError:
                    assert time.monotonic() < server_up, log.read_text()
                    time.sleep(0.05)
            yield server
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    with serving(models) as found:
        yield found


@contextmanager
def registry(root: Path) -> Iterator[Any]:
    from steps.tracking import store

    with chdir(root), pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with store.opened() as opened:
            yield opened


@pytest.mark.flow
def test_it_predicts_what_the_model_says(server: Server) -> None:
    from steps.tracking import registry as versions

    with registry(server.root) as opened:
        found = versions.version(opened, "headstart-colours", "1")
        assert found is not None
        said = versions.load(found).predict(pd.DataFrame({"image": server.pictures}))
    status, version, answer = server.post(_asked(*server.pictures))
    assert (status, version) == (200, "1")
    assert [row["label"] for row in answer["predictions"]] == list(said["label"])
    for row, wanted in zip(answer["predictions"], said["probabilities"], strict=True):
        assert row["probabilities"] == pytest.approx(wanted, abs=1e-6)
    csv = "image\n" + "\n".join(server.pictures) + "\n"
    assert server.post(csv.encode(), Content_Type="text/csv")[2] == answer


@pytest.mark.flow
def test_health_and_mlflows_own_pages(server: Server) -> None:
    status, version, told = server.get("/health")
    assert (status, version) == (200, "1")
    assert told["status"] == "ok"
    assert told["serves"] == "colours@champion"
    assert told["version"] == "1"
    assert told["reason"] is None
    assert told["since"].startswith("20")
    assert server.get("/ping")[0] == server.get("/version")[0] == 200


def _large() -> str:
    with io.BytesIO() as buffer:
        Image.new("1", (2000, 1000)).save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.flow
@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"{}", {}, 400, 'send {"dataframe_records": [{"image": "..."}]}'),
        (b'{"dataframe_records": [{"image": NaN}]}', {}, 400, "NaN is no number"),
        (b'{"dataframe_records": [{"image": null}]}', {}, 400, "'image' is empty"),
        (b'{"dataframe_records": [{"picture": "x"}]}', {}, 400, "the column 'image' is missing"),
        (b'{"instances": ["x", "y"]}', {}, 400, "send "),
        (b'{"inputs": {"image": [["x"]]}}', {}, 400, "send "),
        (b'{"dataframe_split": {"columns": ["image"], "data": 3}}', {}, 400, "send "),
        (b'{"dataframe_split": {"columns": ["image"], "data": [["x", "y"]]}}', {}, 400, "send "),
        (b"[" * 90_000, {}, 400, "nested too deeply"),
        (_asked("/etc/passwd"), {}, 400, "no base64"),
        (_asked("iVBORw=="), {}, 400, "row 0: is no image we can read"),
        (_asked(_large()), {}, 400, "2000 x 1000 pixels are more than the 1000000 allowed"),
        (_asked(*"abcde"), {}, 413, "5 rows are more than the 4 allowed"),
        (b'image\n"open', {"Content_Type": "text/csv"}, 400, "send "),
        (b"\xff\xfe", {"Content_Type": "text/csv"}, 400, "send "),
        (b"PAR1", {"Content_Type": "application/vnd.apache.parquet"}, 415, "must be application/json"),
        (b"x" * 100_001, {}, 413, "more than the 100000 bytes allowed"),
    ],
)
@pytest.mark.survives(
    "serving",
    "hostile requests",
    how="seventeen: not JSON, NaN, nested 90,000 deep, paths, bombs of pixels, too many rows or bytes",
    held="one line and a 4xx, nothing of the server's insides; the next request is answered",
)
def test_a_hostile_request_is_told_in_one_line(
    server: Server, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    found, version, answer = server.post(body, **headers)
    assert (found, version) == (status, server.get("/health")[1])
    assert message in answer["message"]
    assert "\n" not in answer["message"]
    assert len(answer["message"]) < 300
    for secret in ("Traceback", 'File "', str(server.root), "site-packages"):
        assert secret not in json.dumps(answer)
    assert server.post(_asked(server.pictures[0]))[0] == 200


@pytest.mark.flow
@pytest.mark.survives(
    "serving",
    "a request that does not say how long it is",
    how="chunks without a Content-Length",
    held="refused with 413 once it is too large",
)
def test_a_body_without_a_length_is_counted_while_it_comes(server: Server) -> None:
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    piece = b"%x\r\n" % 50_000 + b"x" * 50_000 + b"\r\n"
    answer = server.raw(head + b"Transfer-Encoding: chunked\r\n\r\n", piece, piece, piece)
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.flow
def test_a_large_body_is_refused_by_its_header(server: Server) -> None:
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    started = time.monotonic()
    answer = server.raw(head + b"Expect: 100-continue\r\nContent-Length: 100000000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - started < 10


@pytest.mark.flow
@pytest.mark.survives(
    "serving",
    "a client that sends a byte now and then",
    how="half a request, a byte every half second",
    held="let go with 408 after the time-out",
)
def test_a_client_that_does_not_end_its_request_is_let_go(server: Server) -> None:
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    answer = server.raw(head + b"Content-Length: 1000\r\n\r\n", *[b" "] * 6, pause=0.5)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"not whole after 2 seconds" in answer
    assert server.raw(b"no request at all\r\n\r\n").startswith(b"HTTP/1.1 400 ")


@pytest.mark.flow
@pytest.mark.survives(
    "serving",
    "the champion changes under load",
    how="eight clients ask while the alias moves",
    held="no request fails; each answer is wholly of the version it names",
)
def test_a_new_champion_takes_over_without_losing_a_request(server: Server) -> None:
    from steps.tracking import aliases

    said: dict[str, set[str]] = {"1": set(), "2": set()}
    wrong: list[Any] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                status, version, answer = server.post(_asked(server.pictures[0]))
            except OSError as error:
                wrong.append(error)
                continue
            if status == 200:
                said[version].add(json.dumps(answer["predictions"][0]["probabilities"], sort_keys=True))
            else:
                wrong.append((status, answer))

    clients = [threading.Thread(target=ask) for _ in range(8)]
    for one in clients:
        one.start()
    try:
        with registry(server.root) as opened:
            aliases.promote(opened, "headstart-colours", "2", why="test")
            server.until(version="2")
            time.sleep(1)
    finally:
        done.set()
        for one in clients:
            one.join()
    assert wrong == []
    # Whatever says that it is of a version is what this version says, to the last digit.
    assert len(said["1"]) == len(said["2"]) == 1
    assert said["1"] != said["2"]


@pytest.mark.flow
@pytest.mark.survives(
    "serving",
    "an altered version becomes champion",
    how="a version whose files are not those that were registered",
    held="the old one goes on answering, the health page says why",
)
def test_a_version_that_was_altered_does_not_take_over(server: Server) -> None:
    from steps.tracking import aliases
    from steps.tracking.registry import FILES_SHA

    with registry(server.root) as opened:
        client, name = opened.client, "headstart-colours"
        good = client.get_model_version(name, "2")
        tags = dict(good.tags) | {FILES_SHA: "0" * 64}
        bad = client.create_model_version(name, good.source, good.run_id, tags=tags)
        before = aliases.current(opened, name)[aliases.CHAMPION]
        aliases.promote(opened, name, str(bad.version), why="test")
        told = server.until(status="degraded")
        assert told["version"] == before
        assert "is not what was registered" in told["reason"]
        assert str(server.root) not in told["reason"]
        assert server.post(_asked(server.pictures[0]))[:2] == (200, before)
        assert "goes on answering" in server.log.read_text()
        aliases.rollback(opened, name, why="test")
        assert server.until(status="ok")["reason"] is None


@pytest.mark.faults
@pytest.mark.survives(
    "serving",
    "SQLite is locked while a model is served",
    how="another process holds the database",
    held="the health page says so, requests are answered",
)
def test_a_registry_that_is_away_is_told_and_endured(server: Server) -> None:
    # Somebody holds the database for good, as a backup that hangs does.
    with closing(sqlite3.connect(server.root / "mlflow/mlflow.db", isolation_level=None)) as held:
        held.execute("BEGIN EXCLUSIVE")
        told = server.until(status="degraded")
        assert "database is locked" in told["reason"]
        assert "\n" not in told["reason"]
        assert server.post(_asked(server.pictures[0]))[0] == 200
        held.execute("ROLLBACK")
    server.until(status="ok")


@pytest.mark.flow
def test_told_to_stop_it_answers_what_is_under_way_and_records_it(server: Server) -> None:
    """The last of the server's tests: it stops it."""
    answers: list[int] = []
    body = _asked(*server.pictures)
    links = []
    for _ in range(6):
        link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        link.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        links.append(link)
    time.sleep(0.05)
    server.process.send_signal(signal.SIGTERM)
    for link in links:
        answers.append(link.getresponse().status)
        link.close()
    assert answers == [200] * 6
    assert server.process.wait(timeout=30) == 0
    files = [*(server.root / ".headstart/recorded/colours").glob("*/*.parquet")]
    rows = pd.concat([pd.read_parquet(file) for file in files])
    assert list(rows.columns) == ["time", "version", "image", "said"]
    assert set(rows["version"]) <= {"1", "2"}
    assert len(rows) >= 6 * len(server.pictures)
    assert {base64.b64encode(one).decode() for one in rows["image"]} == set(server.pictures)
    assert {"label", "probability", "probabilities"} == set(json.loads(rows["said"].iloc[0]))


@pytest.mark.flow
def test_what_cannot_be_served_is_told_before_it_starts(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="no registered model 'colour'"):
        serve.serve("colour", port=0)
    with pytest.raises(UserError, match="alias 'champoin'"):
        serve.serve("colours@champoin", port=0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match="serving needs its model registry"):
        serve.serve("colours", port=0)
