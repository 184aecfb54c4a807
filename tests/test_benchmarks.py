"""The arithmetic and the table of the speed benchmark; the measuring itself is no test."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import training
from benchmarks.rivals.work import Outcome
from benchmarks.training import Result, Row, Spread


def never() -> tuple[training.Side, training.Side]:
    raise AssertionError("a table measures nothing")


def result(
    ours: list[tuple[float, float]], rival: list[tuple[float, float]], goal: float, **kinds: bool
) -> Result:
    """Of (seconds, accuracy) pairs, a repeat each."""
    row = Row("frozen", "Trainer", goal, never, **kinds)  # type: ignore[arg-type]
    return Result(row, [Outcome(*one) for one in ours], [Outcome(*one) for one in rival])


def test_ratio_is_of_the_pairs_of_each_repeat() -> None:
    found = result([(1, 0.9), (2, 0.9)], [(10, 0.8), (40, 0.8)], 12)
    # 10 / 1 and 40 / 2; the ratio of the sums would be 50 / 3.
    assert found.ratio == Spread(15.0, 10.0, 20.0)
    assert found.accuracies == pytest.approx((0.9, 0.8))


def test_goal_is_a_lower_limit_unless_it_is_said_to_be_an_upper_one() -> None:
    ours, rival = [(10.4, 0.9)], [(10.0, 0.9)]
    assert result(ours, rival, 0.92).met
    assert not result(ours, rival, 1.0).met
    upper = result(ours, rival, 1.05, at_most=True)
    assert upper.ratio.mean == pytest.approx(1.04)
    assert upper.met
    assert not result(ours, rival, 1.03, at_most=True).met


def test_time_to_an_accuracy_counts_only_when_it_is_reached() -> None:
    fast = [(1.0, 0.80)]
    assert result(fast, [(9.0, 0.80)], 2, same_accuracy=True).met
    assert not result(fast, [(9.0, 0.81)], 2, same_accuracy=True).met
    assert result(fast, [(9.0, 0.81)], 2).met


def test_order_alternates() -> None:
    assert [training.order(repeat)[0] for repeat in range(4)] == ["ours", "rival", "ours", "rival"]
    assert all(set(training.order(repeat)) == {"ours", "rival"} for repeat in range(2))


def test_table() -> None:
    found = [
        result([(1, 0.9), (2, 0.92)], [(10, 0.8), (40, 0.8)], 12),
        result([(10.6, 0.5)], [(10.0, 0.5)], 1.05, at_most=True),
    ]
    lines = training.table(found).splitlines()
    assert lines[2] == "| frozen | Trainer | 1.5 | 25.0 | 15.0 (10.0 to 20.0) | ≥ 12 | met | 91.0 | 80.0 |"
    assert lines[3] == (
        "| frozen | Trainer | 10.6 | 10.0 | 1.06 (1.06 to 1.06) | ≤ 1.05 | **not met** | 50.0 | 50.0 |"
    )
    assert {line.count("|") for line in lines} == {len(training.HEADER) + 1}


def test_every_side_gets_a_process_of_its_own_and_nothing_left_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        side, seed = command[-2:]
        if side != "before":
            # What a killed run left is there for the one that resumes it, and gone for the next.
            kept = (tmp_path / ".headstart").exists()
            assert kept == (side == "ours")
        (tmp_path / ".headstart").mkdir(exist_ok=True)
        started.append([side, seed])
        said = f'chatter\nRESULT {{"seconds": {seed}.0, "accuracy": 0.5, "note": ""}}\n'
        return subprocess.CompletedProcess(command, 0, said, "")

    monkeypatch.setattr(subprocess, "run", run)
    found = training.measure("resume", 2, tmp_path)
    assert started == [
        ["before", "1"], ["ours", "1"], ["rival", "1"], ["rival", "2"], ["before", "2"], ["ours", "2"]
    ]  # fmt: skip
    assert [one.seconds for one in found.ours] == [1.0, 2.0]
    assert "resume, repeat 2, rival: 2.00 s" in capsys.readouterr().err


def test_a_failed_side_stops_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "No module named 'fastai'")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match="fastai, ours, failed") as stopped:
        training.measure("fastai", 1, tmp_path)
    assert "No module named 'fastai'" in str(stopped.value)


def test_works_fit_into_their_data() -> None:
    """The digits are 1,797."""
    assert all(sum(training._images("all", train, 1).sizes) <= 1797 for train in (240, 500, 1100))
