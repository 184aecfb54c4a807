from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from steps import artifacts, gate, register
from steps.errors import HeadstartError, TrackingError, UnreadableError
from steps.predict import predict
from steps.tracking import registry, store
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

    # Killed after the version was made, before the gate spoke.
    with store.opened() as opened:
        opened.client.delete_registered_model_alias("headstart-colours", "champion")
    artifacts.registration_file("colours").unlink()
    register.register("colours")
    assert _noted()["aliases"] == ["champion"]


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
    assert (noted["version"], noted["aliases"], noted["decision"]["promote"]) == ("2", [], False)
    assert "worse than the champion" in noted["decision"]["reason"]
    assert "36 test items" in noted["decision"]["reason"]
    assert _champion().number == "1"
    worse = next(version for version in _versions() if str(version.version) == "2")
    assert worse.tags["headstart.reason"] == noted["decision"]["reason"]

    _crown("frozen")
    _say("frozen", 1.0)
    register.register("colours")
    assert _champion().number == "3"
    # Somebody rolls back by hand: the same result does not undo it.
    with store.opened() as opened:
        opened.client.set_registered_model_alias("headstart-colours", "champion", "1")
    register.register("colours")
    artifacts.registration_file("colours").unlink()
    register.register("colours")
    assert _champion().number == "1"
    assert _noted()["aliases"] == []


@pytest.mark.flow
def test_the_champion_predicts_a_changed_test_split_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made.clone(tmp_path)
    made.store(tmp_path)
    register.register("colours")
    # One sample leaves the test split.
    split = pd.read_parquet(artifacts.split_file("colours"))
    split.loc[split["id"] == "red-0", "split"] = ""
    split.to_parquet(artifacts.split_file("colours"))
    path = artifacts.evaluation_dir("colours") / "predictions.parquet"
    said = pd.read_parquet(path)
    said[said["id"] != "red-0"].to_parquet(path)
    _crown("frozen")

    judged: list[gate.Tested] = []
    decide = gate.decide

    def watched(candidate: gate.Tested, champion: gate.Tested | None, rule: gate.Rule) -> gate.Decision:
        assert champion is not None
        judged.append(champion)
        return decide(candidate, champion, rule)

    monkeypatch.setattr(gate, "decide", watched)
    register.register("colours")
    assert "the champion (version 1) predicts it anew" in capsys.readouterr().out
    stored = said[(said["arm"] == "full") & (said["seed"] == 2) & (said["id"] != "red-0")]
    assert list(judged[0].ids) == list(stored["id"])
    assert np.array_equal(judged[0].probabilities, np.stack(list(stored[ARRAY])).astype(np.float64))


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
