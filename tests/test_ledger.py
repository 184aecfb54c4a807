from __future__ import annotations

import threading
from pathlib import Path

import pandas as pd
import pytest

from steps import artifacts, ledger


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_look_is_counted_and_every_model_once() -> None:
    ledger.record("pets", "split a", ["full/1/x", "full/2/y"])
    ledger.record("pets", "split a", ["full/1/x"])
    ledger.record("pets", "split b", ["full/1/x"])
    assert ledger.looks("pets", "split a") == {"scored": 3, "models": 2}
    assert ledger.looks("pets", "split b") == {"scored": 1, "models": 1}
    assert ledger.looks("others", "split a") == {"scored": 0, "models": 0}


def test_what_a_killed_process_left_is_no_look() -> None:
    ledger.record("pets", "a", ["one"])
    with artifacts.ledger_file("pets").open("a") as stream:
        stream.write('{"time": "2026')
    assert ledger.looks("pets", "a") == {"scored": 1, "models": 1}


@pytest.mark.survives(
    "disk",
    "a ledger whose last line is half written",
    how="a writer killed in mid-line",
    held="the line is left as it is, all others count",
)
def test_the_ledger_goes_on_after_a_half_written_line() -> None:
    ledger.record("pets", "a", ["one"])
    with artifacts.ledger_file("pets").open("a") as stream:
        stream.write('{"time": "2026')
    ledger.record("pets", "a", ["two"])
    assert ledger.looks("pets", "a") == {"scored": 2, "models": 2}


def test_writers_at_the_same_time_lose_nothing() -> None:
    threads = [
        threading.Thread(target=ledger.record, args=("pets", "a", [f"{writer}/{at}" for at in range(50)]))
        for writer in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.looks("pets", "a") == {"scored": 400, "models": 400}


def test_the_split_is_known_by_contents_and_labels_alone() -> None:
    rows = pd.DataFrame({"sha256": ["a", "b"], "label": ["x", "y"]}).assign(target=None)
    same = ledger.test_sha256(rows[::-1])
    assert ledger.test_sha256(rows) == same
    assert ledger.test_sha256(rows.assign(label=["x", "x"])) != same
    assert ledger.test_sha256(rows.assign(sha256=["a", "c"])) != same
    assert ledger.test_sha256(rows.assign(target=["[1]", ""])) != same
