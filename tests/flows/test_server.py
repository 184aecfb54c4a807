from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def pages(tmp_path: Path, held: dict[str, str]) -> Iterator[None]:
    """A process that shows the pages of the clone in `tmp_path`."""
    (tmp_path / ".headstart").mkdir(exist_ok=True)
    with (tmp_path / server.UI_LOCK).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(json.dumps(held))
        stream.flush()
        yield


def test_the_server_of_the_pages_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pages(tmp_path, {"prefect": "http://127.0.0.1:4321"}):
        server.prepare(tmp_path / "prefect", pages=False)
        assert "PREFECT_API_URL" not in os.environ
        server.prepare(tmp_path / "prefect")
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"


def test_a_server_of_the_users_own_goes_before_the_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    with pages(tmp_path, {"prefect": "http://127.0.0.1:4321"}):
        server.prepare(tmp_path / "prefect")
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:9/api"


@pytest.mark.parametrize("written", ["", "{", "[]", '{"mark": "x"}'])
def test_pages_that_start_or_were_killed_have_no_server(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pages(tmp_path, {}):
        (tmp_path / server.UI_LOCK).write_text(written)
        assert server.shown_by_ui() is None
    (tmp_path / server.UI_LOCK).write_text('{"prefect": "http://127.0.0.1:4321"}')
    assert server.shown_by_ui() is None


def test_a_server_is_needed_to_register_at() -> None:
    with pytest.raises(UserError, match=r"no Prefect server .*`headstart ui`.*PREFECT_API_URL"):
        server.needed()


def test_a_message_does_not_show_the_password_of_an_address() -> None:
    os.environ["PREFECT_API_URL"] = "http://me:s3cr3t@127.0.0.1:9/api"
    with pytest.raises(
        UserError, match=r"PREFECT_API_URL=http://127\.0\.0\.1:9/api does not answer"
    ) as caught:
        server.reach()
    assert "s3cr3t" not in str(caught.value)
