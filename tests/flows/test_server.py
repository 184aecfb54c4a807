from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from flows import server
from steps.errors import UserError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    # What `prepare` sets is taken back with everything else.
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_without_a_server_prefect_lives_in_the_clone(tmp_path: Path) -> None:
    server.prepare(tmp_path / "prefect")
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_with_a_server_the_users_own_prefect_is_left_alone(tmp_path: Path) -> None:
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    server.prepare(tmp_path / "prefect")
    assert "PREFECT_HOME" not in os.environ
    assert not (tmp_path / "prefect").exists()


def test_a_server_that_does_not_answer_is_told_at_once() -> None:
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    started = time.monotonic()
    with pytest.raises(
        UserError, match=r"127\.0\.0\.1:9/api does not answer .*`prefect server start`, or unset"
    ):
        server.reach()
    assert time.monotonic() - started < 5
