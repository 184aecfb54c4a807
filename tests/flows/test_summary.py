from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows import summary
from flows.summary import ArmRow


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, value: Any) -> None:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def comparison(metric: str = "accuracy") -> dict[str, Any]:
    arm = {"seeds": [1, 2, 3], "values": [0.1, 0.2, 0.3], "mean": 0.8, "ci_low": 0.75, "ci_high": 0.85}
    return {
        "metric": {"name": metric, "higher_is_better": metric != "log_loss"},
        "arms": [
            arm | {"arm": "scratch", "epochs_to_target": None, "seconds_to_target": None},
            arm | {"arm": "full", "epochs_to_target": 4, "seconds_to_target": 2.34},
        ],
        "best_arm": "full",
        "verdict": {"text": "`full` beats `scratch`."},
    }


def test_a_result_with_its_registered_model() -> None:
    write("reports/digits/comparison.json", comparison())
    write(
        ".headstart/registered/digits.json",
        {
            "model": "headstart-digits",
            "version": "3",
            "aliases": ["champion"],
            "tracking_uri": "sqlite:///x.db",
        },
    )
    found = summary.read("digits")
    assert found is not None
    scratch, full = found.rows
    assert scratch == ArmRow("scratch", "80.0 % (75.0 to 85.0)", 3, "-", "-", is_best=False)
    assert (full.epochs, full.seconds, full.is_best) == ("4", "2.3", True)
    assert found.model == "headstart-digits version 3 @champion"
    assert "| digits | **full** | accuracy | 80.0 % (75.0 to 85.0) | 3 | 4 | 2.3 |" in summary.markdown(
        ["digits"]
    )


def test_log_loss_is_no_percentage() -> None:
    write("reports/digits/comparison.json", comparison("log_loss"))
    found = summary.read("digits")
    assert found is not None
    assert found.rows[0].score == "0.800 (0.750 to 0.850)"
    assert found.model is None


def test_what_has_no_result_yet_is_left_out() -> None:
    write("reports/b/comparison.json", comparison())
    write("reports/a/comparison.json", comparison())
    assert summary.finished() == ["a", "b"]
    assert summary.read("c") is None
    assert "| c |" not in summary.markdown(["a", "c"])
