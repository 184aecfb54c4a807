from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows import summary
from flows.summary import ArmRow, Summary


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, value: Any) -> None:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def old(metric: str = "accuracy") -> dict[str, Any]:
    """What the first release wrote, as far as it is read here."""
    arm = {"seeds": [1, 2, 3], "values": [0.1, 0.2, 0.3], "mean": 0.8, "ci_low": 0.75, "ci_high": 0.85}
    gain = {"value": 0.1, "ci_low": -0.00004, "ci_high": 0.2}
    return {
        "metric": {"name": metric, "higher_is_better": metric != "log_loss"},
        "arms": [
            arm | {"arm": "scratch", "epochs_to_target": None, "seconds_to_target": None},
            arm | {"arm": "full", "epochs_to_target": 4, "seconds_to_target": 2.34, "improvement": gain},
        ],
        "best_arm": "full",
        "verdict": {"text": "`full` beats `scratch`."},
    }


def comparison(metric: str = "accuracy") -> dict[str, Any]:
    """Schema 2, as far as it is read here."""
    found = old(metric)
    scratch, full = found["arms"]
    half = {"ci_low": 1.0, "ci_high": 3.0}
    tuning = {"trials": 4, "failed": 0}
    scratch |= {"improvement": None, "speedup": None, "tuning": tuning}
    full["improvement"] |= {"p": 0.01, "p_holm": 0.02, "call": "helps"}
    full |= {
        "speedup": {"epochs": {"value": 2.44, **half}, "steps": {"value": 9.0, **half}, "censored": 0},
        "tuning": {"trials": 12, "failed": 2},
    }
    saved = {"arm": "full", "labels": 1143.4, "ci_low": 80.0, "ci_high": 2000.0, "more_than": False}
    return found | {
        "schema": 2,
        "seeds": [1, 2, 3],
        "resamples": 2,
        "train_labels": 100,
        "test_size": 1805,
        "reference": "scratch",
        "efficiency": {"labels": [25, 50], "arms": [], "saved": [saved]},
    }


def read(name: str) -> Summary:
    found = summary.read(name)
    assert found is not None
    return found


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
    found = read("digits")
    assert found.rows == (
        ArmRow("scratch", "80.0 (75.0 to 85.0)", trials="4"),
        ArmRow(
            "full", "80.0 (75.0 to 85.0)", "+10.0 (+0.0 to +20.0)", "helps", "4", "2.4", "1,143",
            "12 (2 failed)", is_best=True,
        ),
    )  # fmt: skip
    assert found.metric == "accuracy in %"
    assert found.about == "100 training labels, 1,805 test items, 3 seeds, 2 resamples"
    assert found.model == "headstart-digits version 3 @champion"
    table = summary.markdown(["digits"])
    assert (
        "| **full** | 80.0 (75.0 to 85.0) | +10.0 (+0.0 to +20.0) | helps | 4 | 2.4 | 1,143 | 12 (2 failed) |"
        in table
    )
    assert "| times sooner than scratch |" in table
    assert "\n`full` beats `scratch`. headstart\\-digits version 3 @champion\n" in table


@pytest.mark.parametrize(
    ("labels", "more_than", "text"),
    [(None, False, "-"), (None, True, "beyond curve"), (300.4, True, "> 300"), (42.0, False, "42")],
)
def test_labels_saved_may_be_more_than_the_curve_tells(
    labels: float | None, more_than: bool, text: str
) -> None:
    found = comparison()
    found["efficiency"]["saved"][0] |= {"labels": labels, "more_than": more_than}
    write("reports/digits/comparison.json", found)
    assert read("digits").rows[1].saved == text


def test_what_was_not_measured_is_a_dash() -> None:
    found = comparison()
    found["efficiency"] = None
    found["arms"][1]["speedup"] = None
    write("reports/digits/comparison.json", found)
    assert (read("digits").rows[1].saved, read("digits").rows[1].sooner) == ("-", "-")


def test_a_result_of_the_first_release_can_still_be_read() -> None:
    write("reports/digits/comparison.json", old())
    full = read("digits").rows[1]
    assert full == ArmRow("full", "80.0 (75.0 to 85.0)", "+10.0 (+0.0 to +20.0)", epochs="4", is_best=True)
    assert (read("digits").about, read("digits").reference) == ("", "-")
    assert (
        "| **full** | 80.0 (75.0 to 85.0) | +10.0 (+0.0 to +20.0) | - | 4 | - | - | - |"
        in summary.markdown(["digits"])
    )


def test_log_loss_is_no_percentage() -> None:
    write("reports/digits/comparison.json", comparison("log_loss"))
    found = read("digits")
    assert found.rows[1].score == "0.800 (0.750 to 0.850)"
    assert found.rows[1].gain == "+0.100 (+0.000 to +0.200)"
    assert found.metric == "log-loss"
    assert found.model is None


@pytest.mark.parametrize(
    ("task", "metric", "score", "shown", "counted"),
    [
        ("object-detection", "coco_map", "80.0 (75.0 to 85.0)", "COCO mAP in %", "labelled samples"),
        ("causal-language-model", "perplexity", "0.80 (0.75 to 0.85)", "perplexity", "samples"),
        ("masked-image-model", "psnr", "0.80 (0.75 to 0.85)", "PSNR", "samples"),
        ("image-classification", "macro_f1", "80.0 (75.0 to 85.0)", "macro-F1 in %", "labels"),
    ],
)
def test_every_metric_in_its_unit(task: str, metric: str, score: str, shown: str, counted: str) -> None:
    write("reports/x/comparison.json", comparison(metric) | {"task": task, "test_groups": 40})
    found = read("x")
    assert (found.rows[1].score, found.metric, found.counted) == (score, shown, counted)
    what = "labels" if counted == "labels" else "samples"
    assert found.about == f"100 training {what}, 1,805 test items in 40 groups, 3 seeds, 2 resamples"
    assert f"| {counted} saved |" in summary.markdown(["x"])


def test_what_has_no_result_yet_is_left_out() -> None:
    write("reports/b/comparison.json", comparison())
    write("reports/a/comparison.json", comparison())
    assert summary.finished() == ["a", "b"]
    assert summary.read("c") is None
    assert "### c" not in summary.markdown(["a", "c"])
    assert "### a" in summary.markdown(["a", "c"])
    assert summary.markdown(["c"]) == "No results yet.\n"


def test_hostile_names_stay_text_in_markdown() -> None:
    found = comparison()
    hostile = "<img src=x> | [a](b) **`c`"
    found["arms"][1]["arm"] = found["best_arm"] = found["reference"] = hostile
    found["arms"][1]["improvement"]["call"] = "| x |"
    found["verdict"]["text"] = "`full` beats <b>it</b>\n# `scratch` and [a](b)."
    write("reports/digits/comparison.json", found)
    made = summary.markdown(["digits"])
    assert "<" not in made.replace("\\<", "")
    line = next(line for line in made.splitlines() if line.startswith("| **"))
    assert len(line.replace("\\|", "").split("|")) == 10, "a column more"
    assert "`full` beats &lt;b&gt;it&lt;/b&gt; \\# `scratch` and \\[a\\]\\(b\\)." in made
