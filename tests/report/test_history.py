import json
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from steps.errors import HeadstartError
from steps.report import history
from tests.report import example
from tests.report.example import Example

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)


def comparison(mean: float = 0.9) -> dict[str, Any]:
    it = example.sheet(Example(arms=2, points=0, mistakes=0)).comparison
    best = next(arm for arm in it["arms"] if arm["arm"] == it["best_arm"])
    best["mean"] = mean
    return it


def test_a_line_tells_when_and_what(tmp_path: Path) -> None:
    it, path = comparison(), tmp_path / "deep/digits.jsonl"
    east = NOON.astimezone(timezone(timedelta(hours=2)))
    assert history.record(it, east, path)
    [line] = history.read(path)
    verdict = {key: it["verdict"][key] for key in ("call", "arm", "difference", "ci_low", "ci_high")}
    assert line["time"] == "2025-06-01T12:00:00+00:00"
    assert (line["best_arm"], line["mean"], line["verdict"]) == (it["best_arm"], 0.9, verdict)
    assert len(line["identity"]) == 64


def test_the_same_result_is_recorded_once_and_an_old_one_again(tmp_path: Path) -> None:
    path = tmp_path / "digits.jsonl"
    told = [history.record(comparison(mean), NOON, path) for mean in (0.9, 0.9, 0.8, 0.9)]
    assert told == [True, False, True, True]
    assert [line["mean"] for line in history.read(path)] == [0.9, 0.8, 0.9]


def test_no_history_is_an_empty_one(tmp_path: Path) -> None:
    assert history.read(tmp_path / "none.jsonl") == []


def test_a_half_written_line_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "digits.jsonl"
    history.record(comparison(0.9), NOON, path)
    with path.open("a") as stream:
        stream.write('{"time": "2025-')
    assert len(history.read(path)) == 1
    history.record(comparison(0.8), NOON, path)
    assert [line["mean"] for line in history.read(path)] == [0.9, 0.8]


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "digits.jsonl"
    path.write_text("{}\nnonsense\n")
    with pytest.raises(HeadstartError, match=r"digits\.jsonl, line 2 is not JSON"):
        history.read(path)


def test_processes_that_record_at_once_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "digits.jsonl"
    every = [comparison(0.5 + at / 100) for at in range(8)]
    threads = [threading.Thread(target=history.record, args=(one, NOON, path)) for one in every]
    for one in threads:
        one.start()
    for one in threads:
        one.join(10)
    means = sorted(json.loads(line)["mean"] for line in path.read_text().splitlines())
    assert means == [0.5 + at / 100 for at in range(8)]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "..", "<script>"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    path = history.file_of(name, tmp_path)
    assert path.parent == tmp_path
    assert path.resolve().is_relative_to(tmp_path)


def test_plain_names_stay_as_they_are(tmp_path: Path) -> None:
    assert history.file_of("bbc-news_2", tmp_path).name == "bbc-news_2.jsonl"
