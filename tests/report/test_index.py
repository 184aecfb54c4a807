import fcntl
import json
import threading
from pathlib import Path
from typing import Any

from steps.report import index


def comparison(name: str, helps: Any) -> dict[str, Any]:
    return {
        "experiment": name,
        "task": "text-classification",
        "arms": [{}, {}],
        "seeds": [1, 2, 3],
        "best_arm": "full",
        "verdict": {"fine_tuning_helps": helps, "text": f"On {name} `full` <b>it</b> is."},
    }


def put(reports: Path, name: str, helps: Any = True) -> None:
    (reports / name).mkdir(parents=True)
    (reports / name / "comparison.json").write_text(json.dumps(comparison(name, helps)), "utf-8")


def test_all_experiments_are_listed_with_their_verdicts(tmp_path: Path) -> None:
    put(tmp_path, "news", False)
    put(tmp_path, "digits")
    put(tmp_path, "toys", "undecided")
    page = index.write(tmp_path).read_text("utf-8")
    assert page.index('href="digits/report.html"') < page.index('href="news/report.html"')
    for words in ("The pretrained start helps", "The pretrained start does not help", "Undecided"):
        assert words in page
    assert "&lt;b&gt;it&lt;/b&gt;" in page


def test_an_experiment_that_is_gone_is_no_longer_listed(tmp_path: Path) -> None:
    put(tmp_path, "digits")
    index.write(tmp_path)
    (tmp_path / "digits/comparison.json").unlink()
    assert "Nothing has been compared yet" in index.write(tmp_path).read_text("utf-8")


def test_half_written_folders_are_not_listed(tmp_path: Path) -> None:
    put(tmp_path, ".digits.partial-12")
    assert index.read_all(tmp_path) == []


def test_a_stage_that_ends_while_another_lists_waits_and_lists_both(tmp_path: Path) -> None:
    put(tmp_path, "digits")
    with (tmp_path / ".index.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(target=index.write, args=(tmp_path,))
        other.start()
        other.join(0.2)
        assert other.is_alive()
        put(tmp_path, "news")
    other.join(10)
    assert 'href="news/report.html"' in (tmp_path / "index.html").read_text("utf-8")
