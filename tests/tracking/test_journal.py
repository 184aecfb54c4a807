from __future__ import annotations

import platform
from pathlib import Path

import pytest

from steps import artifacts
from steps.errors import UserError
from steps.tracking import journal
from steps.tracking.journal import Result, Training
from tests.twin import git


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


def test_only_code_that_differs_from_the_commit_makes_it_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps/one.py").write_text("1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    for name in ("params.yaml", "dvc.lock", "notes.txt"):
        (tmp_path / name).write_text(f"{name}\n")
    found = journal.origin("toys")
    assert found["headstart.git_dirty"] == "false"
    assert len(found["headstart.git_commit"]) == 40
    (tmp_path / "steps/two.py").write_text("2\n")
    assert journal.origin("toys")["headstart.git_dirty"] == "true"


def test_the_origin_goes_with_the_result_as_it_was_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADSTART_FLOW_RUN", "0f1e")
    kept = tmp_path / "kept"
    kept.mkdir()
    artifacts.write_json(artifacts.validation_dir("toys") / "validation.json", {"accepted": 1})
    (tmp_path / "dvc.lock").write_text("then\n")
    (tmp_path / "requirements.lock").write_text("mlflow\n")
    journal.keep_origin("toys", kept)
    (tmp_path / "dvc.lock").write_text("now\n")
    assert {path.name for path in kept.iterdir()} == {"dvc.lock", "requirements.lock", "validation.json"}
    then, now = journal.origin("toys", kept), journal.origin("toys")
    assert then["headstart.dvc_lock_sha256"] == artifacts.sha256_file(kept / "dvc.lock")
    assert then["headstart.dvc_lock_sha256"] != now["headstart.dvc_lock_sha256"]
    assert then["headstart.environment_sha256"] == artifacts.sha256_file(tmp_path / "requirements.lock")
    assert then["headstart.flow_run"] == "0f1e"
    assert then["headstart.machine"].startswith(f"{platform.system()} {platform.machine()}, ")
