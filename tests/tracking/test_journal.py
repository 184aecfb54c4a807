from __future__ import annotations

from pathlib import Path

import pytest

from steps import artifacts
from steps.errors import UserError
from steps.tracking import journal
from steps.tracking.journal import Result, Training


def test_the_winner_is_the_one_compare_chose() -> None:
    trainings = tuple(
        Training(arm, seed, Path(), {}, [], {}) for arm in ("scratch", "full") for seed in (1, 2)
    )
    arms = [
        {"arm": "scratch", "seeds": [1, 2], "epochs_to_target_by_seed": [3, None]},
        {"arm": "full", "seeds": [1, 2], "epochs_to_target_by_seed": [2, 1]},
    ]
    comparison = {"best_arm": "full", "best_seed": 2, "arms": arms}
    result = Result("toys", "0", comparison, trainings)
    assert (result.winner.arm, result.winner.seed, result.winner.name) == ("full", 2, "full seed 2")
    assert [result.epochs_to_target(training) for training in trainings] == [3, None, 2, 1]


def test_the_runs_of_other_resamples_have_names_and_places_of_their_own() -> None:
    trainings = tuple(
        Training("full", seed, Path(), {}, [], {}, resample) for resample in (1, 2) for seed in (3, 1)
    )
    arm = {"arm": "full", "epochs_to_target_by_seed": [4, None, 6, 7]}
    comparison = {"best_arm": "full", "best_seed": 3, "best_resample": 2}
    for seeds in ([3, 1], [3, 1, 3, 1]):  # named once, or with each run
        result = Result("toys", "0", comparison | {"arms": [arm | {"seeds": seeds}]}, trainings)
        assert result.winner.name == "full resample 2 seed 3"
        assert [result.epochs_to_target(training) for training in trainings] == [4, None, 6, 7]


def test_a_result_is_another_when_a_journal_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"steps\.compare"):
        journal.identity("toys")
    artifacts.write_json(artifacts.report_dir("toys") / "comparison.json", {"a": 1})
    run = artifacts.seed_dir("toys", "full", 1) / "run.json"
    artifacts.write_json(run, {"weights_sha256": "a"})
    first = journal.identity("toys")
    assert journal.identity("toys") == first
    artifacts.write_json(run, {"weights_sha256": "b"})
    second = journal.identity("toys")
    assert second != first
    artifacts.write_json(artifacts.seed_dir("toys", "full", 1, 2) / "run.json", {"weights_sha256": "c"})
    third = journal.identity("toys")
    assert third not in (first, second)
    artifacts.write_json(run.parent.parent / "tuning.json", {"trials": 4})
    assert journal.identity("toys") not in (first, second, third)


def test_the_origin_is_known_outside_of_git_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    first = journal.origin("toys")
    assert first["headstart.git_commit"] == first["headstart.git_dirty"] == "unknown"
    artifacts.write_json(artifacts.settings_file("toys", "compare"), {"a": 1})
    assert journal.origin("toys")["headstart.params_sha256"] != first["headstart.params_sha256"]
