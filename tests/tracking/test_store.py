from __future__ import annotations

import base64
import os
import threading
import time
from pathlib import Path

import pytest

from steps.errors import TrackingError
from steps.tracking import addresses, store
from tests.tracking import made, servers


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


def test_the_store_is_local_unless_the_environment_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert addresses.address() == "sqlite:///mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert addresses.address() == "http://host:5000"


def test_a_password_is_not_shown() -> None:
    assert addresses.shown("https://me:secret@host:5000/mlflow") == "https://host:5000/mlflow"
    assert addresses.shown("sqlite:///mlflow/mlflow.db") == "sqlite:///mlflow/mlflow.db"


@pytest.mark.parametrize(
    ("uri", "environment", "expected"),
    [
        ("http://host", {}, None),
        ("http://me:s%40@host", {}, "me:s@"),
        ("http://host", {"USERNAME": "you", "PASSWORD": "p%40"}, "you:p%40"),
        ("http://me:s%40@host", {"USERNAME": "you", "PASSWORD": "p"}, "me:s@"),
        ("http://host", {"TOKEN": "t"}, "t"),
        ("http://me:s@host", {"TOKEN": "t"}, "me:s"),
    ],
)
def test_who_asks(
    monkeypatch: pytest.MonkeyPatch,
    uri: str,
    environment: dict[str, str],
    expected: str | None,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    kind, _, said = addresses.credentials(uri).get("Authorization", "").partition(" ")
    assert kind == ("" if expected is None else "Bearer" if expected == "t" else "Basic")
    assert (base64.b64decode(said).decode() if kind == "Basic" else said) == (expected or "")


def test_files_lie_beside_the_database(tmp_path: Path) -> None:
    assert store.artifact_root(addresses.LOCAL) == tmp_path / "mlflow/artifacts"
    assert store.artifact_root("sqlite:////srv/store.db") == Path("/srv/artifacts")
    assert store.artifact_root("http://host:5000") is None


@pytest.mark.flow
def test_the_environment_is_left_as_it_was(tmp_path: Path) -> None:
    made.store(tmp_path)
    with store.opened(), store.opened():
        pass
    assert "MLFLOW_TRACKING_URI" not in os.environ


@pytest.mark.survives(
    "servers",
    "MLflow's server is away",
    how="an address where nothing listens",
    held="told within 3 s without the password; results stay in their journals",
)
def test_a_server_that_is_away_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://me:secret@127.0.0.1:{servers.free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    started = time.monotonic()
    with pytest.raises(TrackingError) as told, store.opened():
        pass
    assert time.monotonic() - started < 3
    message = str(told.value)
    assert addresses.shown(address) in message
    assert "safe in their journals" in message
    assert "headstart publish" in message
    assert "secret" not in message
    assert "\n" not in message


@pytest.mark.survives(
    "servers",
    "MLflow's server answers 500",
    how="a server that only fails",
    held="told at once, nothing is tried for minutes",
)
def test_a_server_that_answers_500_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.answering({}, otherwise=500) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(TrackingError, match="answers 500; the results are safe"), store.opened():
            pass


@pytest.mark.flow
def test_a_server_that_fails_behind_its_health_page_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.answering({"/health": 200}, otherwise=500) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        started = time.monotonic()
        with pytest.raises(TrackingError, match="500") as told, store.opened() as opened:
            opened.client.get_experiment_by_name("any")
        assert time.monotonic() - started < 30
        assert address in str(told.value)


def test_only_one_publishes_at_a_time() -> None:
    order: list[str] = []

    def second() -> None:
        with store.alone():
            order.append("second")

    with store.alone():
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join(timeout=5)
    assert order == ["first", "second"]


def test_a_glance_without_a_store_tells_nothing() -> None:
    assert store.glance("headstart-any", "1") is None
    Path("mlflow").mkdir()
    Path("mlflow/mlflow.db").write_bytes(b"no database")
    assert store.glance("headstart-any", "1") is None


def test_a_glance_at_a_server_has_the_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    version = {"version": "2", "creation_timestamp": 1000, "aliases": ["previous", "champion"]}
    with servers.saying({"model_version": version | {"status": "READY"}}, 200) as (address, asked):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("://", "://me:secret@"))
        assert store.glance("headstart-any", "2") == ["champion", "previous"]
        # A workspace is asked for in a way that only mlflow knows.
        monkeypatch.setenv("MLFLOW_WORKSPACE", "ours")
        assert store.glance("headstart-any", "2") is None
    assert asked == ["Basic bWU6c2VjcmV0"]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ({"error_code": "RESOURCE_DOES_NOT_EXIST"}, 404),
        ({"model_version": {"version": "2", "creation_timestamp": 1, "status": "PENDING_REGISTRATION"}}, 200),
        ({}, 403),
        ({}, 200),
    ],
)
def test_a_glance_that_finds_no_version_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, content: object, code: int
) -> None:
    with servers.saying(content, code) as (address, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert store.glance("headstart-any", "2") is None
