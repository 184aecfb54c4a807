import fcntl
import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steps.report import history, index
from tests.report import example
from tests.report.example import Example


def comparison(name: str, call: str = "helps") -> dict[str, Any]:
    it = example.sheet(Example(experiment=name, arms=2, points=0, mistakes=0)).comparison
    it["verdict"] |= {"call": call, "text": f"On {name} `full` <b>it</b> is."}
    return it


def put(reports: Path, folder: str, it: dict[str, Any] | None = None) -> None:
    (reports / folder).mkdir(parents=True, exist_ok=True)
    (reports / folder / "comparison.json").write_text(json.dumps(it or comparison(folder)), "utf-8")


def written(reports: Path) -> str:
    return index.write(reports, reports / ".histories").read_text("utf-8")


def best_of(it: dict[str, Any]) -> dict[str, Any]:
    return next(arm for arm in it["arms"] if arm["arm"] == it["best_arm"])


def test_all_experiments_are_listed_with_their_verdicts(tmp_path: Path) -> None:
    for name, call in {"news": "hurts", "digits": "helps", "toys": "undecided", "same": "equal"}.items():
        put(tmp_path, name, comparison(name, call))
    page = written(tmp_path)
    assert page.index('href="digits/report.html"') < page.index('href="news/report.html"')
    for words in (
        "The pretrained start helps",
        "The pretrained start does not help",
        "Undecided",
        "No difference that matters",
    ):
        assert words in page
    assert "&lt;b&gt;it&lt;/b&gt;" in page


def test_a_comparison_from_before_there_were_calls_is_listed(tmp_path: Path) -> None:
    it = comparison("old")
    del it["verdict"]["call"]
    it["verdict"]["fine_tuning_helps"] = False
    put(tmp_path, "old", it)
    assert "The pretrained start does not help" in written(tmp_path)


def test_the_result_before_and_how_it_went_are_told(tmp_path: Path) -> None:
    it = comparison("digits")
    for day, mean in enumerate((0.61, 0.72, 0.834), start=1):
        best_of(it)["mean"] = mean
        path = history.file_of("digits", tmp_path / ".histories")
        history.record(it, datetime(2025, 6, day, tzinfo=UTC), path)
    put(tmp_path, "digits", it)
    page = written(tmp_path)
    assert "Before, on 2025-06-02: 72.0 %" in page
    assert 'aria-label="3 results, the newest 83.4"' in page
    assert "3 results so far" in page


def test_a_result_that_was_not_recorded_follows_the_last_that_was(tmp_path: Path) -> None:
    it = comparison("digits")
    best_of(it)["mean"] = 0.61
    history.record(it, datetime(2025, 6, 1, tzinfo=UTC), history.file_of("digits", tmp_path / ".histories"))
    best_of(it)["mean"] = 0.7
    put(tmp_path, "digits", it)
    listed = index.listed("digits", it, tmp_path / ".histories")
    assert listed.results == 2
    assert listed.before is not None
    assert listed.before["mean"] == 0.61


def test_another_metric_is_no_result_before(tmp_path: Path) -> None:
    it = comparison("digits")
    history.record(it, datetime(2025, 6, 1, tzinfo=UTC), history.file_of("digits", tmp_path / ".histories"))
    it["metric"] = {"name": "log_loss", "higher_is_better": False}
    listed = index.listed("digits", it, tmp_path / ".histories")
    assert (listed.before, listed.spark) == (None, None)


def test_one_result_has_no_line_and_nothing_before(tmp_path: Path) -> None:
    put(tmp_path, "digits")
    page = written(tmp_path)
    assert "Before" not in page
    assert 'class="spark"' not in page


def test_hostile_names_lead_nowhere_else_and_stay_text(tmp_path: Path) -> None:
    put(tmp_path, "a&b", comparison("//evil.example/<script>alert(1)</script>"))
    page = written(tmp_path)
    assert 'href="a%26b/report.html"' in page
    assert "<script" not in page
    assert 'href="//' not in page


def test_an_experiment_that_is_gone_is_no_longer_listed(tmp_path: Path) -> None:
    put(tmp_path, "digits")
    written(tmp_path)
    (tmp_path / "digits/comparison.json").unlink()
    assert "Nothing has been compared yet" in written(tmp_path)


def test_half_written_folders_are_not_listed(tmp_path: Path) -> None:
    put(tmp_path, ".digits.partial-12")
    assert index.read_all(tmp_path) == {}


def test_a_stage_that_ends_while_another_lists_waits_and_lists_both(tmp_path: Path) -> None:
    put(tmp_path, "digits")
    with (tmp_path / ".index.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(target=written, args=(tmp_path,))
        other.start()
        other.join(0.2)
        assert other.is_alive()
        put(tmp_path, "news")
    other.join(10)
    assert 'href="news/report.html"' in (tmp_path / "index.html").read_text("utf-8")
