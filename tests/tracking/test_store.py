from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from steps.errors import TrackingError
from steps.tracking import store
from tests.tracking import made, servers


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_the_store_is_local_unless_the_environment_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.address() == "sqlite:///mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert store.address() == "http://host:5000"


def test_a_password_is_not_shown() -> None:
    assert store.shown("https://me:secret@host:5000/mlflow") == "https://host:5000/mlflow"
    assert store.shown("sqlite:///mlflow/mlflow.db") == "sqlite:///mlflow/mlflow.db"


def test_files_lie_beside_the_database(tmp_path: Path) -> None:
    assert store.artifact_root(store.LOCAL) == tmp_path / "mlflow/artifacts"
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
    assert store.shown(address) in message
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
