from __future__ import annotations

import base64
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steps import arrivals, artifacts, recording
from steps.errors import DiskFullError
from steps.kinds import KINDS
from steps.recording import Recorder

IMAGE, PAIR = KINDS["image-classification"], KINDS["text-pair-classification"]
SAID = pd.DataFrame([{"label": "red", "probability": np.float64(0.5), "probabilities": {"red": 0.5}}])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _pictures(*contents: bytes) -> pd.DataFrame:
    return pd.DataFrame({"image": [base64.b64encode(one).decode() for one in contents]})


def _files() -> list[Path]:
    return sorted(Path(".headstart/recorded/digits").glob("*/*.parquet"))


def test_requests_are_written_with_their_answers() -> None:
    recorder = Recorder("digits", IMAGE, 10**9)
    recorder.add("3", _pictures(b"one"), SAID)
    recorder.add("4", pd.DataFrame({"image": ["data:image/png;base64,dHdv"]}), SAID)
    recorder.close()
    (file,) = _files()
    found = pd.read_parquet(file)
    assert list(found.columns) == ["time", "version", "image", "said"]
    assert list(found["version"]) == ["3", "4"]
    assert list(found["image"]) == [b"one", b"two"]
    assert json.loads(found["said"][0]) == {
        "label": "red",
        "probability": 0.5,
        "probabilities": {"red": 0.5},
    }
    assert file.parent.name == found["time"][0][:10]
    assert (recorder.written, recorder.dropped) == (2, 0)


def test_monitor_reads_what_was_recorded() -> None:
    recorder = Recorder("topics", PAIR, 10**9)
    recorder.add("3", pd.DataFrame({"text": ["a"], "pair": ["b"]}), SAID)
    recorder.close()
    (item,) = arrivals.recorded(arrivals.unseen("topics"), PAIR)
    assert (item.content, item.label, item.version) == (("a", "b"), "red", "3")


def test_nobody_waits_and_what_does_not_fit_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "QUEUE_BYTES", 100)
    monkeypatch.setattr(recording, "FLUSH_SECONDS", 1000)
    recorder = Recorder("digits", IMAGE, 10**9)
    for _ in range(5):
        recorder.add("1", _pictures(b"x" * 27), SAID)  # 36 letters of base64
    recorder.close()
    assert (recorder.written, recorder.dropped) == (2, 3)


def test_a_file_is_written_when_it_is_time_or_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "FLUSH_SECONDS", 0.05)
    recorder = Recorder("digits", IMAGE, 10**9)
    recorder.add("1", _pictures(b"x"), SAID)
    _until(lambda: recorder.written == 1)
    monkeypatch.setattr(recording, "FLUSH_SECONDS", 1000)
    monkeypatch.setattr(recording, "FLUSH_BYTES", 20)
    recorder.add("1", _pictures(b"y" * 30), SAID)
    _until(lambda: recorder.written == 2)
    recorder.close()
    assert len(_files()) == 2


def _until(holds: Any) -> None:
    import time

    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_oldest_goes_when_there_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    day = Path(".headstart/recorded/digits/2020-01-01")
    day.mkdir(parents=True)
    (day / "000000-old.parquet").write_bytes(b"x" * 50_000)
    recorder = Recorder("digits", IMAGE, 60_000)
    recorder.add("1", _pictures(bytes(np.random.default_rng(0).integers(0, 256, 30_000, np.uint8))), SAID)
    recorder.close()
    (kept,) = _files()
    assert not kept.name.endswith("-old.parquet")
    assert not day.exists()


def test_a_full_disk_costs_the_records_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(target: Path) -> Any:
        raise DiskFullError("the disk is full")

    recorder = Recorder("digits", IMAGE, 10**9)
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(artifacts, "new_file", full)
        patch.setattr(recording, "FLUSH_BYTES", 1)
        recorder.add("1", _pictures(b"x"), SAID)
        _until(lambda: recorder.dropped == 1)
    assert "1 requests were not recorded: the disk is full" in caplog.text
    recorder.add("1", _pictures(b"y"), SAID)
    recorder.close()
    assert recorder.written == 1
