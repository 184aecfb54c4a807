from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steps import artifacts
from steps.errors import TrackingError
from steps.predict import predict
from steps.register import register
from steps.tracking import journal, publish, store
from steps.tracking.journal import Result
from steps.tracking.publish import Published
from tests.tracking import made, servers

pytestmark = pytest.mark.flow
ROOT = Path(__file__).resolve().parents[2]
# Publishes in a process of its own, without registering.
SCRIPT = """
from steps.tracking import journal, publish, store
with store.alone(), store.opened() as opened:
    publish.publish(opened, journal.read("colours"))
"""


@pytest.fixture(autouse=True)
def _clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made.clone(tmp_path)
    made.store(tmp_path)


def _publish() -> Published:
    with store.alone(), store.opened() as opened:
        return publish.publish(opened, journal.read("colours"))


def _runs(published: Published) -> list[Any]:
    with store.opened() as opened:
        return list(opened.client.search_runs([published.experiment_id]))


def test_a_result_is_published_once_and_compares_at_a_glance(tmp_path: Path) -> None:
    for name in ("dvc.lock", "requirements.lock"):
        (tmp_path / name).write_text(f"{name}\n")
    first, second = _publish(), _publish()
    assert first.new
    assert not second.new
    assert (second.run_id, second.runs) == (first.run_id, first.runs)
    runs = {run.info.run_name: run for run in _runs(first)}
    assert len(runs) == 7
    arms = ("scratch", "frozen", "full")
    assert {f"{arm} seed {seed}" for arm in arms for seed in (1, 2)} < set(runs)
    assert all(run.info.status == "FINISHED" for run in runs.values())

    child, parent = runs["full seed 2"], next(run for run in runs.values() if run.info.run_id == first.run_id)
    assert child.data.tags["mlflow.parentRunId"] == first.run_id
    assert child.data.params["start"] == "pretrained"
    assert child.data.params["tune"] == "all"
    assert child.data.params["backbone_learning_rate"] == "0.001"
    scores = artifacts.read_json(artifacts.evaluation_dir("colours") / "scores.json", "evaluate")["arms"][
        "full"
    ]["2"]
    found = artifacts.read_json(artifacts.seed_dir("colours", "full", 2) / "run.json", "train")
    assert child.data.metrics["test_accuracy"] == scores["accuracy"]
    assert child.data.metrics["best_validation_log_loss"] == found["best"]["validation_log_loss"]
    assert "epochs_to_target" not in child.data.metrics
    assert runs["full seed 1"].data.metrics["epochs_to_target"] == 2
    assert child.inputs.dataset_inputs[0].dataset.name == "colours"
    assert child.data.params["resample"] == "1"
    assert (child.data.params["tuning_trials"], child.data.params["tuned/learning_rate"]) == ("1", "0.01")
    assert not {"seeds", "search"} & child.data.params.keys()
    assert child.data.metrics["temperature"] == 1.5
    _check_parent(parent)

    with store.opened() as opened:
        curve = opened.client.get_metric_history(child.info.run_id, "validation_log_loss")
        files = {file.path for file in opened.client.list_artifacts(first.run_id, "report")}
        tables = [file.path for file in opened.client.list_artifacts(first.run_id, "report/tables")]
    assert [point.step for point in curve] == [1, 2]
    assert {f"report/{name}" for name in ("comparison.json", "report.html", "learning_curves.png")} <= files
    assert "report/model_card.md" in files
    with store.opened() as opened:
        origin = [file.path for file in opened.client.list_artifacts(first.run_id, "origin")]
    assert origin == ["origin/dvc.lock", "origin/requirements.lock"]
    assert parent.data.tags["headstart.dvc_lock_sha256"] == artifacts.sha256_file(tmp_path / "dvc.lock")
    assert child.data.tags["headstart.flow_run"] == "none"
    assert tables == ["report/tables/arms.csv"]
    root = tmp_path / "mlflow/artifacts/colours"
    assert (root / first.run_id / "artifacts/report/comparison.json").exists()


def _check_parent(parent: Any) -> None:
    """The comparison's run has the evidence."""
    found = parent.data
    assert found.params["best_arm"] == found.tags["headstart.best_arm"] == "full"
    assert found.tags["headstart.call"] == "undecided"
    assert found.tags["headstart.verdict"] == "A made-up verdict over made-up data."
    assert found.metrics["test_accuracy_low/full"] < found.metrics["test_accuracy/full"]
    assert found.metrics["test_accuracy/full"] <= found.metrics["test_accuracy_high/full"]
    assert found.metrics["test_accuracy/scratch"] > 0
    expected = {"difference": 0.0, "ci_low": -0.1, "p": 0.9, "labels_saved": 12.0, "ece": 0.125}
    assert {name: found.metrics[name] for name in expected} == expected
    assert "convergence_speedup" not in found.metrics, "it is null"
    assert "improvement/full" in found.metrics
    assert "improvement/scratch" not in found.metrics
    note = found.tags["mlflow.note.content"]
    assert "A made-up verdict" in note
    assert "| +0.000 | -0.100 to +0.100 | undecided | 2 |" in note


def test_runs_of_another_resample_are_runs_of_their_own() -> None:
    _add_resample()
    first, second = _publish(), _publish()
    assert (first.new, second.new) == (True, False)
    assert first.runs == second.runs
    runs = {run.info.run_name: run for run in _runs(first)}
    assert len(runs) == 9
    child = runs["full resample 2 seed 1"]
    assert child.info.run_id == first.runs["full resample 2 seed 1"]
    assert child.data.params["resample"] == child.data.tags["headstart.resample"] == "2"
    assert child.data.metrics["epochs_to_target"] == 7
    assert runs["full seed 1"].data.metrics["epochs_to_target"] == 2


def _add_resample() -> None:
    """Let the arm `full` be trained on a second part of the pool, as the first."""
    scores_file = artifacts.evaluation_dir("colours") / "scores.json"
    scores = artifacts.read_json(scores_file, "evaluate")
    runs = scores["arms"]["full"]
    for seed in (1, 2):
        runs[f"2-{seed}"] = runs[str(seed)]
        shutil.copytree(
            artifacts.seed_dir("colours", "full", seed), artifacts.seed_dir("colours", "full", seed, 2)
        )
    artifacts.write_json(scores_file, scores)
    path = artifacts.report_dir("colours") / "comparison.json"
    comparison = artifacts.read_json(path, "compare")
    full = next(arm for arm in comparison["arms"] if arm["arm"] == "full")
    full["epochs_to_target_by_seed"] = [2, None, 7, 8]
    artifacts.write_json(path, comparison)


def test_a_result_of_the_first_release_can_still_be_published() -> None:
    path = artifacts.report_dir("colours") / "comparison.json"
    old = artifacts.read_json(path, "compare")
    for key in ("schema", "seeds", "resamples", "reference", "best_resample"):
        del old[key]
    for key in ("call", "p", "labels_saved"):
        del old["verdict"][key]
    for arm in old["arms"]:
        for key in ("improvement", "speedup", "calibration", "tuning"):
            del arm[key]
        (artifacts.arms_dir("colours") / arm["arm"] / "tuning.json").unlink()
    artifacts.write_json(path, old)
    published = _publish()
    parent = next(run for run in _runs(published) if run.info.run_id == published.run_id)
    assert "headstart.call" not in parent.data.tags
    assert parent.data.metrics["test_accuracy_low/full"] < 1
    assert "ece" not in parent.data.metrics
    child = next(run for run in _runs(published) if run.info.run_name == "full seed 1")
    assert "tuning_trials" not in child.data.params


def test_names_cannot_break_the_table_of_the_note() -> None:
    arm = {"arm": "a|b\n<i>`c`", "values": [1.0], "mean": 1.0, "ci_low": 0.5, "ci_high": 1.0}
    comparison = {"metric": {"name": "macro_f1"}, "verdict": {"text": "No."}, "arms": [arm]}
    *_, row = publish.note(Result("toys", "0", comparison, ())).splitlines()
    assert row == r"| a\|b \<i\>\`c\` | 1.000 | 0.500 to 1.000 | - | - | - | 1 |"


def test_what_was_published_by_halves_is_completed_and_never_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = publish._finish
    calls: list[str] = []

    def broken(opened: Any, run: Any, end: int) -> None:
        calls.append(run.info.run_id)
        if len(calls) == 4:
            raise ConnectionError("pulled the plug")
        whole(opened, run, end)

    monkeypatch.setattr(publish, "_finish", broken)
    with pytest.raises(ConnectionError):
        _publish()
    monkeypatch.setattr(publish, "_finish", whole)
    published = _publish()
    assert published.new
    runs = _runs(published)
    assert len(runs) == 7
    assert all(run.data.tags["headstart.complete"] == "true" for run in runs)
    with store.opened() as opened:
        for run in runs:
            if run.info.run_id != published.run_id:
                assert len(opened.client.get_metric_history(run.info.run_id, "train_loss")) == 2
    assert not _publish().new


def test_two_at_once_publish_once() -> None:
    command = [sys.executable, "-c", SCRIPT]
    started = [subprocess.Popen(command, env=_environment()) for _ in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    assert len(_runs(_publish())) == 7


def test_another_result_is_another_run() -> None:
    first = _publish()
    path = artifacts.report_dir("colours") / "comparison.json"
    changed = artifacts.read_json(path, "compare")
    artifacts.write_json(path, changed | {"target": 0.75})
    second = _publish()
    assert second.new
    assert second.experiment_id == first.experiment_id
    assert len(_runs(second)) == 14


def test_a_store_that_was_moved_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _publish()
    elsewhere = tmp_path / "moved"
    elsewhere.mkdir()
    for name in ("mlflow", "work", "reports", "data"):
        (tmp_path / name).rename(elsewhere / name)
    monkeypatch.chdir(elsewhere)
    with pytest.raises(TrackingError, match="the store was moved") as told:
        _publish()
    assert "headstart publish" in str(told.value)
    assert not (tmp_path / "mlflow").exists()


def test_a_real_server_gets_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served = tmp_path / "server"
    served.mkdir()
    (tmp_path / "mlflow/mlflow.db").rename(served / "store.db")
    arguments = ["server", "--backend-store-uri", f"sqlite:///{served}/store.db", "--workers", "1"]
    arguments += ["--artifacts-destination", str(served / "files")]
    with servers.mlflow_process(arguments, served, "/health", {}) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        first, second = _publish(), _publish()
        assert first.new
        assert not second.new
        assert len(_runs(first)) == 7
        register("colours")
        assert "is now version 1 of headstart-colours" in capsys.readouterr().out
        assert store.glance("headstart-colours", "1") == ["champion"]
        assert store.glance("headstart-colours", "2") is None
        register("colours")
        assert "nothing new to register" in capsys.readouterr().out
        predict("colours", ["data/colours/samples/red-0.png"])
        assert capsys.readouterr().out.startswith("data/colours/samples/red-0.png")
    assert (served / "files").exists()
    assert not list((tmp_path / "mlflow").iterdir())


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
