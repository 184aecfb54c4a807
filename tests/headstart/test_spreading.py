from __future__ import annotations

import logging
import os
import sys
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from rich.console import Console

from headstart import spreading
from steps.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("command", [spreading.spread, spreading.worker])
def test_without_a_server_for_all_machines_it_says_what_to_set(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(UserError, match="set PREFECT_API_URL"):
        command()


def test_a_worker_is_told_where_its_clone_is_and_takes_one_stage_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[list[str]] = []
    monkeypatch.chdir(ROOT / "docs")
    monkeypatch.setattr("flows.server.reach", lambda: None)
    monkeypatch.setattr(os, "execv", lambda program, command: started.append(command))
    told = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PYTHONPATH": "elsewhere"}
    with patch.dict(os.environ, told):
        spreading.worker("night", name="third")
        clone, path = os.environ["HEADSTART_CLONE"], os.environ["PYTHONPATH"]
    assert started == [
        [
            sys.executable, "-m", "prefect", "worker", "start", "--pool", "night", "--type", "process",
            "--limit", "1", "--name", "third",
        ]
    ]  # fmt: skip
    assert clone == str(ROOT)
    assert path.split(os.pathsep) == [str(ROOT), "elsewhere"]


def test_what_the_flow_marks_is_told_line_by_line_and_prefects_own_talk_is_not() -> None:
    written = StringIO()
    with spreading._shown(Console(file=written, width=200)):
        for name in spreading.LOGGERS:
            logger = logging.getLogger(name)
            logger.setLevel(logging.INFO)
            logger.info("talk")
            logger.info("runs on host:/first", extra={"title": "train digits-full", "event": "line"})
            logger.info("started", extra={"title": "train digits-full", "event": "started"})
    lines = written.getvalue().splitlines()
    assert [line[10:] for line in lines] == ["train digits-full          runs on host:/first"] * 2
