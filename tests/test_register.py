from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from steps import artifacts, contest, data, frozen, register
from steps.errors import HeadstartError, TrackingError, UnreadableError
from steps.kinds import KINDS
from steps.predict import predict
from steps.tracking import aliases, registry, store
from tests.tracking import made, servers

ROOT = Path(__file__).resolve().parents[1]
ARRAY = "probabilities"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def _noted(name: str = "colours") -> dict[str, Any]:
    found: dict[str, Any] = artifacts.read_json(artifacts.registration_file(name), "register")
    return found


def _versions(name: str = "colours") -> list[Any]:
    with store.opened() as opened:
        return list(opened.client.search_model_versions(f"name = 'headstart-{name}'"))


def _champion(name: str = "colours") -> registry.Version:
    with store.opened() as opened:
        found = registry.champion(opened, f"headstart-{name}")
    assert found is not None
    return found


def _history(name: str = "colours") -> list[aliases.Entry]:
    with store.opened() as opened:
        return aliases.history(opened, f"headstart-{name}")


def _current(name: str = "colours") -> dict[str, str]:
    with store.opened() as opened:
        return aliases.current(opened, f"headstart-{name}")


def _again(name: str = "colours") -> None:
    """Register the same result anew, as after a process that was killed before it said so."""
    artifacts.registration_file(name).unlink()
    register.register(name)


def _set_gate(**settings: object) -> None:
    path = artifacts.settings_file("colours", "register")
    found = artifacts.read_json(path, "resolve")
    artifacts.write_json(path, {"gate": found["gate"] | settings})


def _leave_out(name: str) -> None:
    """One sample leaves the test split."""
    split = pd.read_parquet(artifacts.split_file("colours"))
    split.loc[split["id"] == name, "split"] = ""
    split.to_parquet(artifacts.split_file("colours"))
    path = artifacts.evaluation_dir("colours") / "predictions.parquet"
    said = pd.read_parquet(path)
    said[said["id"] != name].to_parquet(path)


def _crown(arm: str) -> None:
    """Make another arm the best: a new result whose winner has other bytes."""
    path = artifacts.report_dir("colours") / "comparison.json"
    artifacts.write_json(path, artifacts.read_json(path, "compare") | {"best_arm": arm})


def _say(arm: str, right: float) -> None:
    """Let the arm's seed 2 be right on this share of the test split, whatever it predicted."""
    path = artifacts.evaluation_dir("colours") / "predictions.parquet"
    frame = pd.read_parquet(path)
    classes = made.CLASSES["image-classification"]
    places = np.flatnonzero((frame["arm"] == arm) & (frame["seed"] == 2))
    for rank, place in enumerate(places):
        truth = classes.index(str(frame.at[place, "label"]))
        said = truth if rank < right * len(places) else (truth + 1) % len(classes)
        frame.at[place, "probabilities"] = np.eye(len(classes), dtype=np.float32)[said]
    frame.to_parquet(path)


def test_a_server_that_is_away_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made.write_settings("colours", "image-classification")
    artifacts.write_json(artifacts.report_dir("colours") / "comparison.json", {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{servers.free_port()}")
    with pytest.raises(TrackingError, match="headstart publish"):
        register.register("colours")
    assert not artifacts.registration_file("colours").exists()


@pytest.mark.flow
@pytest.mark.parametrize("task", made.CLASSES)
def test_the_winner_becomes_a_version_that_predicts_as_evaluated(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = made.clone(tmp_path, task)
    register.register(name)
    noted = _noted(name)
    assert (noted["version"], noted["aliases"], noted["new"]) == ("1", ["champion"], True)
    assert (noted["arm"], noted["seed"]) == ("full", 2)
    assert noted["decision"]["promote"]
    assert "first version" in noted["decision"]["reason"]
    version = _champion(name)
    for tag in (
        "git_commit",
        "data_sha256",
        "weights_sha256",
        "params_sha256",
        "dvc_lock_sha256",
        "model_sha256",
    ):
        assert version.tags[f"headstart.{tag}"]
    assert "first version" in version.tags["headstart.reason"]

    # The model loads from its own copy of the code, in another folder and process.
    loaded = _load_elsewhere(tmp_path, name)
    assert Path(loaded["code"]).is_relative_to(tmp_path / "mlflow")
    test = pd.read_parquet(artifacts.evaluation_dir(name) / "predictions.parquet").query(
        "arm == 'full' and seed == 2"
    )
    assert loaded["labels"] == list(test["predicted"])
    assert np.array_equal(np.array(loaded[ARRAY]), np.stack(list(test[ARRAY])).astype(np.float64))
    assert loaded["inputs"] == (["image"] if task == "image-classification" else ["text"])

    # The second time nothing is done, and mlflow is not even imported.
    capsys.readouterr()
    done = _step("steps.register", name, "-X", "importtime")
    assert "nothing new to register, version 1 of headstart-" in done.stdout
    assert not any(f"| {heavy}\n" in done.stderr for heavy in ("mlflow", "torch", "pandas"))
    assert not _noted(name)["new"]
    assert len(_versions(name)) == 1

    sample = f"data/{name}/samples/red-0.png" if task == "image-classification" else "cow and hay"
    predict(name, [sample], as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["input"] == sample
    assert said["probability"] == max(said["probabilities"].values())


@pytest.mark.flow
def test_the_same_bytes_never_make_a_second_version(tmp_path: Path) -> None:
    made.clone(tmp_path)
    made.store(tmp_path)
    register.register("colours")
    first = _noted()
    artifacts.registration_file("colours").unlink()
    register.register("colours")
    assert _noted() == first | {"new": False}
    _crown("frozen")
    register.register("colours")
    assert _noted()["version"] == "2"
    _crown("full")
    register.register("colours")
    assert (_noted()["version"], _noted()["new"]) == ("1", False)
    assert len(_versions()) == 2


@pytest.mark.flow
@pytest.mark.survives(
    "registry",
    "an upload that breaks off",
    how="the client fails in the middle of register",
    held="no version before the files are whole; the next try makes exactly one",
)
def test_an_upload_that_was_broken_off_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    made.clone(tmp_path)
    made.store(tmp_path)
    with monkeypatch.context() as broken:

        def log_model_artifacts(*arguments: object) -> None:
            raise OSError("pulled the plug")

        broken.setattr(mlflow.MlflowClient, "log_model_artifacts", log_model_artifacts)
        with pytest.raises(TrackingError, match="pulled the plug"):
            register.register("colours")
    assert not artifacts.registration_file("colours").exists()
    assert not _versions()
    register.register("colours")
    assert _noted()["aliases"] == ["champion"]
    with store.opened() as opened:
        experiment = opened.client.get_experiment_by_name("headstart/colours")
        assert experiment is not None
        models = opened.client.search_logged_models([experiment.experiment_id])
    assert [str(model.status) for model in models] == ["READY"]
    assert not list(Path(".headstart").glob("model-*"))


@pytest.mark.flow
def test_the_gate_decides_on_the_champion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.clone(tmp_path)
    made.store(tmp_path)
    monkeypatch.setattr(register, "PROOF_TOLERANCE", 1.0)  # what the arms said is made up below
    _say("full", 0.9)
    register.register("colours")
    _crown("scratch")
    _say("scratch", 0.3)
    register.register("colours")
    noted = _noted()
    assert (noted["version"], noted["aliases"]) == ("2", ["challenger"])
    assert not noted["decision"]["promote"]
    assert "worse than the champion" in noted["decision"]["reason"]
    assert "36 test items" in noted["decision"]["reason"]
    assert _champion().number == "1"
    worse = next(version for version in _versions() if str(version.version) == "2")
    assert worse.tags["headstart.reason"] == noted["decision"]["reason"]
    first, refused = _history()
    assert (first.what, first.after, first.evidence["tests"]) == ("promote", {"champion": "1"}, [])
    assert (refused.what, refused.after) == ("keep", {"champion": "1", "challenger": "2"})
    assert refused.why == noted["decision"]["reason"]
    assert refused.evidence == noted["decision"]["evidence"]
    assert refused.evidence["tests"] == [worse.tags["headstart.test_sha256"]]
    assert (refused.evidence["candidate"], refused.evidence["champion"]) == ("2", "1")
    assert [one["check"] for one in refused.evidence["checks"]] == ["looks", "whole", "slices", "calibration"]
    # Both were tested on one set, which is in MLflow once.
    assert worse.tags["headstart.frozen_run"] == _champion().tags["headstart.frozen_run"]

    _crown("frozen")
    _say("frozen", 1.0)
    register.register("colours")
    assert _champion().number == "3"
    assert _current() == {"champion": "3", "previous": "1", "challenger": "2"}
    latency = _history()[-1].evidence["checks"][-1]
    assert (latency["check"], latency["passed"]) == ("latency", True)
    assert 0.2 < latency["ratio"] < 5
    # Somebody rolls back by hand: the same result does not undo it.
    with store.opened() as opened:
        opened.client.set_registered_model_alias("headstart-colours", "champion", "1")
    register.register("colours")
    _again()
    assert _champion().number == "1"
    assert _noted()["aliases"] == []
    assert "it was champion (not worse than the champion" in _noted()["decision"]["reason"]
    assert [one.what for one in _history()] == ["promote", "keep", "promote", "found"]
    # What is worn out refuses even the best, and takes no look.
    _set_gate(looks=2)
    _crown("scratch")
    _say("scratch", 1.0)
    path = artifacts.report_dir("colours") / "comparison.json"
    artifacts.write_json(path, artifacts.read_json(path, "compare") | {"test_size": 36.0})
    register.register("colours")
    assert "is worn out: it has served 2 decisions" in _noted()["decision"]["reason"]
    assert "until `headstart promote headstart-colours@2` moves it" in _noted()["decision"]["reason"]
    assert _history()[-1].evidence["tests"] == []


@pytest.mark.flow
def test_after_a_change_of_the_data_both_are_tested_on_both_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.clone(tmp_path)
    made.store(tmp_path)
    _set_gate(margin=1.0, slices=False, calibration=None, latency=None)
    register.register("colours")
    before = _champion().tags["headstart.test_sha256"]
    # Other test items, and one that the champion was trained on.
    rows = data.read_split("colours")
    _leave_out("red-0")
    trained = rows[rows["split"] == "train"].iloc[0]
    split = pd.read_parquet(artifacts.split_file("colours"))
    split.loc[split["id"] == trained["id"], "split"] = "test"
    split.to_parquet(artifacts.split_file("colours"))
    path = artifacts.evaluation_dir("colours") / "predictions.parquet"
    said = pd.read_parquet(path)
    copies = said[said["id"] == "red-1"].assign(id=trained["id"], label=trained["label"])
    pd.concat([said, copies]).to_parquet(path)
    _crown("frozen")
    # Another clone has not put the champion's test set aside: it comes from MLflow.
    shutil.rmtree(".headstart/frozen")

    register.register("colours")
    told = capsys.readouterr().out
    assert "1 of 36 items of its own test set are left out, a model was trained on them" in told
    assert "the champion (version 1) predicts 35 test items anew" in told
    assert "the candidate (version 2) predicts 36 test items anew" in told
    entry = _history()[-1]
    today = frozen.root_of("colours") / entry.evidence["tests"][0]
    assert (today / "items.parquet").exists()
    assert entry.evidence["tests"] == [today.name, before]
    assert entry.evidence["excluded"] == {today.name: 1, before: 0}
    assert "on its own test set, " in entry.why
    assert "on the champion's test set, " in entry.why
    whole = [one for one in entry.evidence["checks"] if one["check"] == "whole"]
    assert [one["items"] for one in whole] == [35, 36]
    # What each says is what evaluate wrote of it, whoever asks.
    shown = pd.read_parquet(path)
    mine = shown[(shown["arm"] == "frozen") & (shown["seed"] == 2)]
    right = mine[mine["id"].isin(rows[rows["split"] == "test"]["id"])]
    assert whole[0]["candidate"] == (right["predicted"] == right["label"]).mean()

    # The old set is in MLflow no more, and here neither: that is told, and nothing is skipped.
    champion = _champion()
    assert champion.number == "2"
    _leave_out("red-2")
    _crown("scratch")
    shutil.rmtree(".headstart/frozen")
    for folder in tmp_path.glob("mlflow/artifacts/colours/*/artifacts/frozen"):
        shutil.rmtree(folder)
    register.register("colours")
    reason = _noted()["decision"]["reason"]
    assert f"the frozen test set {today.name[:8]} of version 2 cannot be had any more" in reason
    assert "until `headstart promote headstart-colours@3` moves it" in reason
    assert _current()["champion"] == "2"


@pytest.mark.flow
def test_another_task_or_other_classes_leave_the_champion_until_it_is_moved_by_hand(tmp_path: Path) -> None:
    made.clone(tmp_path)
    made.store(tmp_path)
    register.register("colours")
    with store.opened() as opened:
        opened.client.set_model_version_tag("headstart-colours", "1", "headstart.task", "image-multilabel")
    _crown("frozen")
    register.register("colours")
    assert _noted()["decision"]["reason"] == (
        "the task changed (version 1 was made for image-multilabel, this one for image-classification); the "
        "champion stays until `headstart promote headstart-colours@2` moves it"
    )
    assert _current() == {"champion": "1", "challenger": "2"}
    version = _champion()
    sides = [
        contest.Contender(replace(version, tags={"headstart.task": "image-classification"}), role)
        for role in ("candidate", "champion")
    ]
    for side, classes in zip(sides, (["blue", "red"], ["red", "blue", "green"]), strict=True):
        vars(side)["settings"] = {"classes": classes}
    ring = contest.Ring(None, "x", None, None, None, sides[0], sides[1], [])  # type: ignore[arg-type]
    assert contest.other_problem(ring) == "the classes differ (1 only on one side, e.g. 'green')"


@pytest.mark.flow
@pytest.mark.survives(
    "registry",
    "a new version comes where the alias was deleted",
    how="the alias `champion` removed before register",
    held="it becomes challenger; the last champion and the commands are named",
)
def test_no_version_is_crowned_past_an_alias_that_was_deleted_by_hand(tmp_path: Path) -> None:
    made.clone(tmp_path)
    made.store(tmp_path)
    register.register("colours")
    with store.opened() as opened:
        opened.client.delete_registered_model_alias("headstart-colours", "champion")
    _crown("frozen")
    register.register("colours")
    noted = _noted()
    assert (noted["version"], noted["aliases"]) == ("2", ["challenger"])
    assert noted["decision"]["reason"] == (
        "the alias `champion` is gone from headstart-colours, and no gate took it: version 1 had it last; "
        "`headstart promote headstart-colours@1` puts it back, `headstart promote headstart-colours@2` takes "
        "this one"
    )
    assert [one.what for one in _history()] == ["promote", "found", "keep"]
    _again()
    assert len(_history()) == 3
    assert _current() == {"challenger": "2"}


def test_without_a_champion_the_ways_are_told_that_there_are() -> None:
    said = np.array([[0.5, 0.5]] * 2)
    winner: Any = SimpleNamespace(
        kind=KINDS["image-classification"], test=pd.DataFrame({"probabilities": list(said)})
    )
    version = registry.Version("m", "3", "run", {}, ())
    lost = aliases.Entry("m", 4, "", "", "promote", {}, {"champion": "3", "previous": "1"}, "", {}, "", "")
    decision = register.without_champion(winner, version, lost)
    assert not decision.promote
    assert decision.reason.endswith(
        "version 3 had it last; `headstart promote m@3` puts it back, `headstart rollback m` takes the one "
        "before"
    )
    assert register.without_champion(winner, version, None).promote
    said[1, 0] = np.nan
    broken = register.without_champion(winner, version, None)
    assert (broken.promote, broken.reason) == (False, "the candidate's predictions are not finite")


@pytest.mark.flow
@pytest.mark.survives(
    "registry",
    "the champion changes while the gate decides",
    how="a rollback in mid-decision, a promotion between decision and move",
    held="nothing moves until it was decided anew against the new champion",
)
def test_a_decision_that_was_broken_off_is_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.clone(tmp_path)
    made.store(tmp_path)
    _set_gate(margin=1.0, slices=False, calibration=None, latency=None)
    register.register("colours")
    _crown("frozen")

    def pulled(*arguments: object) -> None:
        raise OSError("pulled the plug")

    # After the ledger and the aliases, before the tags.
    with monkeypatch.context() as broken:
        broken.setattr(registry, "tag", pulled)
        with pytest.raises(OSError, match="pulled the plug"):
            register.register("colours")
    moved = _history()
    assert [one.what for one in moved] == ["promote", "promote"]
    register.register("colours")
    assert _history() == moved
    assert _noted()["aliases"] == ["champion"]
    assert _noted()["decision"]["evidence"] == moved[-1].evidence
    assert _champion().tags["headstart.reason"] == moved[-1].why

    # Another machine promotes while this one decides: the decision is taken anew, against the new champion.
    _crown("scratch")
    decide, seen = contest.decide, []

    def slow(
        opened: Any, experiment: str, versions: tuple[registry.Version, registry.Version], *rest: Any
    ) -> Any:
        seen.append([one.number for one in versions])
        decision = decide(opened, experiment, versions, *rest)
        if len(seen) == 1:
            aliases.rollback(opened, "headstart-colours", why="by hand")
        return decision

    monkeypatch.setattr(contest, "decide", slow)
    register.register("colours")
    assert seen == [["3", "2"], ["3", "1"]]
    assert _history()[-1].evidence["champion"] == "1"
    assert [one.what for one in _history()] == ["promote", "promote", "rollback", "promote"]

    # It does so in the very moment between the decision and its move: nothing moves before it is taken anew.
    _crown("full")
    promote = aliases.promote
    monkeypatch.setattr(contest, "decide", decide)

    def raced(opened: Any, model: str, version: str, **why: Any) -> aliases.Entry:
        monkeypatch.setattr(aliases, "promote", promote)
        promote(opened, model, "2", why="by another machine")
        return promote(opened, model, version, **why)

    path = artifacts.report_dir("colours") / "comparison.json"
    artifacts.write_json(path, artifacts.read_json(path, "compare") | {"test_size": 36.0})
    monkeypatch.setattr(aliases, "promote", raced)
    register.register("colours")
    last = _history()[4:]
    assert [(one.what, one.after["champion"]) for one in last] == [("promote", "2"), ("promote", "1")]
    assert [one.evidence.get("champion") for one in last] == [None, "2"]


@pytest.mark.faults
@pytest.mark.survives(
    "registry",
    "`kill -9` anywhere inside register",
    how="the process ends before each of the calls that change MLflow in turn",
    held="one version, one decision, the right champion",
)
def test_killed_at_any_call_it_ends_with_one_version_one_decision_and_the_right_champion(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "tests.killed_register", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    unbroken = report["unbroken"]
    assert unbroken["versions"] == ["1", "2"]
    assert unbroken["aliases"] == {"champion": "2", "previous": "1"}
    assert unbroken["ledger"] == ["promote 1", "promote 2"]
    assert report["calls"] >= 20
    assert len(report["killed"]) == report["calls"]
    for at, found in enumerate(report["killed"], 1):
        assert found == unbroken, f"killed at call {at}"


@pytest.mark.flow
def test_a_model_that_does_not_predict_as_evaluated_is_refused(tmp_path: Path) -> None:
    made.clone(tmp_path)
    made.store(tmp_path)
    _say("full", 0.0)
    with pytest.raises(HeadstartError, match="is off its evaluation by"):
        register.register("colours")
    assert not _versions()


@pytest.mark.flow
def test_the_model_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    made.clone(tmp_path)
    made.store(tmp_path)
    register.register("colours")
    with store.opened():
        model = registry.load(_champion())
    large = io.BytesIO()
    Image.new("L", (2000, 501)).save(large, "PNG")
    sent = [
        Path("data/colours/samples/red-0.png"),
        "/etc/passwd",
        b"",
        b"junk",
        large.getvalue(),
        Path("none.png"),
    ]
    with pytest.raises(UnreadableError) as told:
        model.predict(pd.DataFrame({"image": pd.Series(sent, dtype=object)}))
    reasons = told.value.reasons
    assert set(reasons) == {1, 2, 3, 4, 5}
    assert "2000 x 501 pixels are more than the 1000000 allowed" in reasons[4]
    assert "no such file" in reasons[5]
    assert len(model.predict(pd.DataFrame({"image": []}, dtype=object))) == 0


@pytest.mark.flow
def test_mlflow_serves_the_champion(tmp_path: Path) -> None:
    made.clone(tmp_path)
    made.store(tmp_path)
    register.register("colours")
    served = tmp_path / "served"
    served.mkdir()
    environment = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow/mlflow.db",
        "OMP_NUM_THREADS": "1",
        # The model brings its code along.
        "PYTHONPATH": "",
    }
    arguments = [
        "models",
        "serve",
        "--model-uri",
        "models:/headstart-colours@champion",
        "--env-manager",
        "local",
    ]
    sample = base64.b64encode(Path("data/colours/samples/red-0.png").read_bytes()).decode()
    with servers.mlflow_process(arguments, served, "/health", environment) as address:
        plain = _post(address, {"dataframe_records": [{"image": sample}]})
        assert _post(address, {"dataframe_split": {"columns": ["image"], "data": [[sample]]}}) == plain
        assert _post(address, {"inputs": {"image": [f"data:image/png;base64,{sample}"]}}) == plain
        with pytest.raises(urllib.error.HTTPError) as refused:
            _post(address, {"dataframe_records": [{"image": "/etc/passwd"}]})
        assert refused.value.code == 400
    (said,) = plain["predictions"]
    stored = pd.read_parquet(artifacts.evaluation_dir("colours") / "predictions.parquet")
    own = stored[(stored["arm"] == "full") & (stored["seed"] == 2) & (stored["id"] == "red-0")].iloc[0]
    assert said["label"] == own["predicted"]
    assert list(said["probabilities"]) == made.CLASSES["image-classification"]
    np.testing.assert_allclose(list(said["probabilities"].values()), own[ARRAY], rtol=0, atol=1e-6)
    assert said["probability"] == max(said["probabilities"].values())


def _post(address: str, body: object) -> Any:
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def _step(module: str, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *options, "-m", module, name],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


SCRIPT = """
import json, sys
from pathlib import Path
import mlflow, pandas as pd
root, name, column, contents = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow/mlflow.db")
model = mlflow.pyfunc.load_model(f"models:/headstart-{name}@champion")
values = [Path(root, one).read_bytes() for one in contents] if column == "image" else contents
said = model.predict(pd.DataFrame({column: pd.Series(values, dtype=object)}))
import steps.serving
print(json.dumps({
    "code": steps.serving.__file__,
    "inputs": model.metadata.get_input_schema().input_names(),
    "labels": list(said["label"]),
    "probabilities": [list(row.values()) for row in said["probabilities"]],
}))
"""


def _load_elsewhere(root: Path, name: str) -> dict[str, Any]:
    rows = made.test_rows(name)
    images = rows["path"].notna().all()
    contents = [f"data/{name}/{path}" for path in rows["path"]] if images else list(rows["text"])
    elsewhere = root / "elsewhere"
    elsewhere.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root), name, "image" if images else "text", json.dumps(contents)],
        cwd=elsewhere,
        env=environment | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
