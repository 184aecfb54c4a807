"""A SavedModel from a folder to a registered model: its features, torch's heads upon them.

Where TensorFlow is not installed a stand-in that speaks with us as its process does takes its place.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from steps import artifacts, data, params, rank, rate_range, resolve, show
from steps.errors import HeadstartError, ParamsError, UserError, WeightsError
from steps.params import Params
from steps.savedmodel import GRAPH, INTERPRETER
from steps.serving import Served
from steps.sources.weights import fingerprint
from steps.tracking.packaging import FORMAT
from steps.trainable import load, proof_of_stored_features, settings_of
from tests import twin
from tests.sources.test_savedmodel import MAKE, stand_in
from tests.tasks import clone
from tests.tracking import made

SIDE = 32
EVERY = "(Images(), Texts(), Two(), Reads(), Maps())"
# The arms of a SavedModel: of the twin's, one as it is, one as another head, one left out.
ARMS: dict[str, Any] = {"scratch": None, "full": {"preset": "frozen_lbfgs"}}
SMALL: dict[str, Any] = {
    "split": {"test": 0.3, "validation": 0.2},
    "training": {"epochs": 2, "batch_size": 8, "seeds": [1, 2]},
    "tuning": {"trials": 1},
}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "images": {
        "task": "image-classification",
        "data": {"source": "folder", "path": "raw/shapes"},
        "model": {"pretrained": "tf", "image_size": SIDE},
        "curve": {"labels": [9]},
    },
    "texts": {
        "task": "text-classification",
        "data": {"source": "table", "path": "raw/topics.csv", "text": "body", "label": "topic"},
        "model": {"pretrained": "tf"},
    },
}


def saved(root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a SavedModel, by TensorFlow or for the stand-in; there is a folder in it."""
    interpreter = os.environ.get(INTERPRETER) or (sys.executable if find_spec("tensorflow") else None)
    if interpreter is not None:
        code = MAKE.replace("SIDE", str(SIDE)).replace(EVERY, f"({kind.title()}(),)")
        subprocess.run([interpreter, "-c", code], cwd=root, check=True, capture_output=True)
        return root / kind
    stand_in(root, monkeypatch, kind=kind.removesuffix("s"))
    (root / kind / "variables").mkdir(parents=True)
    (root / kind / GRAPH).write_text(kind)
    (root / kind / "variables/variables.index").write_text("v")
    return root / kind


def entry_of(folder: Path) -> dict[str, Any]:
    pin = fingerprint(folder)
    return {"source": "tfhub", "path": folder.name, "sha256": pin, "licence": "ours", "image_size": SIDE}


def whole(kind: str, pretrained: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The content of a params.yaml with this one experiment."""
    found = twin.params({"toy-vision": "0" * 64, "toy-text": "0" * 64})
    experiment = {**SMALL, "evaluation": {"reference": "frozen"}, "arms": ARMS, **EXPERIMENTS[kind]}
    return found | {
        "experiments": {clone.NAME: experiment | changes},
        "pretrained": found["pretrained"] | {"tf": pretrained},
    }


@pytest.fixture
def content(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The content of params.yaml of a clone that lies in the working directory."""
    kind: str = request.param
    monkeypatch.chdir(tmp_path)
    if kind == "images":
        twin.draw_shapes(tmp_path / "raw/shapes", each=12)
    else:
        twin.write_topics(tmp_path / "raw/topics.csv", each=12)
    found = whole(kind, entry_of(saved(tmp_path, kind, monkeypatch)))
    (tmp_path / "requirements.lock").write_text("# none\n")
    made.store(tmp_path)
    for path, settings in resolve.settings_files(params.parse(Params, found, "params.yaml")).items():
        artifacts.write_json(path, settings.model_dump(mode="json"))
    return found


def probabilities(row_id: str, arm: str, seed: int) -> list[float]:
    """What evaluate wrote of a test item."""
    tested = pd.read_parquet(artifacts.evaluation_dir(clone.NAME) / "predictions.parquet")
    (found,) = tested.query("id == @row_id and arm == @arm and seed == @seed")["probabilities"]
    return [float(one) for one in found]


@pytest.mark.flow
@pytest.mark.parametrize("content", ["images"], indirect=True)
def test_a_savedmodel_becomes_a_registered_model(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compared = clone.run()

    # What is told apart, proved and packaged is the SavedModel, not the empty file of torch's weights.
    pretrained = artifacts.pretrained_dir("tf")
    provenance = json.loads((pretrained / "provenance.json").read_text())
    features = artifacts.features_dir(clone.NAME)
    told = json.loads((features / "features.json").read_text())
    assert told["pretrained_sha256"] == artifacts.weights_sha256(pretrained) == provenance["sha256"]
    assert {f"images/{GRAPH}", "images/variables/variables.index"} < set(told["pretrained_files"])
    assert not (features / data.RANDOM_FEATURES).exists()
    for arm in ("frozen", "full"):
        journal = json.loads((artifacts.seed_dir(clone.NAME, arm, 1) / "run.json").read_text())
        assert journal["pretrained_sha256"] == provenance["sha256"]
        assert journal["frozen"]["unchanged"]
        assert journal["parameters"] == provenance["parameters"] + journal["trainable_parameters"]

    named = {one["name"] for one in compared["baselines"]}
    assert named == {"majority", "features_knn", "features_logistic", "pixels_logistic"}
    assert [one["name"] for one in compared["ranking"]] == ["pretrained", "pixels"]
    assert compared["probe"] is None
    (points,) = (one["points"] for one in compared["efficiency"]["arms"] if one["arm"] == "full")
    assert [one["labels"] for one in points] == [9, compared["train_labels"]]
    assert [arm["arm"] for arm in compared["arms"]] == ["frozen", "full"]

    # In a process of its own it says what evaluate wrote.
    row: Any = next(clone.test_rows().itertuples())
    image = (artifacts.data_dir(clone.NAME) / row.path).read_bytes()
    (said,) = clone.predicted([{"image": base64.b64encode(image).decode()}])
    expected = probabilities(row.id, compared["best_arm"], compared["best_seed"])
    assert list(said["probabilities"].values()) == pytest.approx(expected, abs=1e-5)
    (folder,) = (path.parent for path in tmp_path.glob("mlflow/**/data/model/settings.json"))
    assert (folder / "pretrained/images/variables/variables.index").is_file()
    needed = (folder.parents[1] / "requirements.txt").read_text().split()
    assert f"tensorflow-cpu=={provenance['tensorflow']}" in needed

    # What looks at arms and backbones beside the graph.
    YAML().dump(content, tmp_path / "params.yaml")
    capsys.readouterr()
    show.show(clone.NAME, "frozen")
    assert re.search(r"SavedModel +\d+ +pretrained +frozen", capsys.readouterr().out)
    rank.rank(clone.NAME)
    shown = capsys.readouterr().out
    assert "By the probe" in shown or "tf " in shown
    assert "random weights" not in shown


@pytest.mark.flow
@pytest.mark.parametrize("content", ["texts"], indirect=True)
def test_a_savedmodel_reads_texts_as_they_are(
    content: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clone.run(until="evaluate")
    mistakes = pd.read_parquet(artifacts.evaluation_dir(clone.NAME) / "mistakes.parquet")
    assert set(mistakes["tokens"]) <= {"[]"}, "it tells nothing of single words"
    pretrained, trained = artifacts.pretrained_dir("tf"), artifacts.seed_dir(clone.NAME, "frozen", 2)

    # As register lays it out.
    served = tmp_path / "served"
    shutil.copytree(pretrained, served / "pretrained")
    shutil.copytree(trained, served / "trained")
    settings = json.loads(artifacts.settings_file(clone.NAME, "compare").read_text())
    classes = json.loads((trained / "run.json").read_text())["classes"]
    about = {"format": FORMAT, "task": settings["task"], "model": settings["model"], "classes": classes}
    artifacts.write_json(served / "settings.json", about | {"max_pixels": 1})
    rows = clone.test_rows()
    table = pd.DataFrame({"text": list(rows["text"])})
    model = Served(served)
    said = model.predict(table)
    for name, found in zip(rows["id"], said["probabilities"], strict=True):
        assert list(found.values()) == pytest.approx(probabilities(name, "frozen", 2), abs=1e-6)
    assert model.predict(table.head(0)).empty
    assert model.extractor is not None
    assert model.predict(table.head(1))["label"].tolist() == said["label"].tolist()[:1]

    YAML().dump(content, tmp_path / "params.yaml")
    rate_range.rate_range(clone.NAME, "frozen")
    assert "Proposed" in capsys.readouterr().out

    # A machine without TensorFlow, and other bytes than those that were read.
    if not find_spec("tensorflow"):
        monkeypatch.delenv(INTERPRETER)
        with pytest.raises(WeightsError, match="texts: TensorFlow is not installed; run `pip install"):
            Served(served).predict(table)
    (pretrained / "texts" / GRAPH).write_bytes(b"another")
    with pytest.raises(HeadstartError, match="tf/texts is not what fetch wrote"):
        proof_of_stored_features(load(clone.NAME, "frozen", settings_of(clone.NAME, "frozen")))


REFERENCE = {"source": "tfhub", "path": "mine", "sha256": "1" * 64, "image_size": 32}


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "images",
            {"arms": {}},
            r"experiments\.toy\.arms: 'tf' is a SavedModel, which torch cannot train: only arms with "
            r"`tune: head` go with it, so leave out with `null` scratch, full$",
        ),
        (
            "images",
            {"arms": {}, "evaluation": {"reference": "scratch"}},
            "evaluation.reference: 'tf' is a SavedModel, which torch cannot train: name an arm with",
        ),
        (
            "images",
            {"arms": ARMS | {"frozen": {"augment": ["flip"]}}},
            "computed once, of images as they are: leave out with `null`, or without `augment`, frozen$",
        ),
        (
            "images",
            {"model": {"pretrained": "tf", "image_size": 64}},
            "experiments.toy.model.image_size: 'tf' takes images of 32 x 32 pixels, is 64: set it to 32$",
        ),
        (
            "images",
            {"candidates": ["large"]},
            "experiments.toy.candidates: 'large' takes images of 64 x 64 pixels, the experiment's have 32$",
        ),
        (
            "images",
            {"model": {"pretrained": "tf", "image_size": 32, "bands": [0]}},
            "images of three channels",
        ),
        (
            "images",
            {
                "task": "semantic-segmentation",
                "data": {"source": "masks", "path": "raw", "classes": {"a": 0, "b": 1}},
            },
            "one row of features for each sample: task semantic-segmentation needs more than that$",
        ),
        (
            "texts",
            {
                "task": "text-pair-classification",
                "data": {"source": "table", "path": "a.csv", "text": "a", "pair": "b", "label": "c"},
            },
            "'tf' is a SavedModel, which takes one text: task text-pair-classification has two$",
        ),
    ],
)
def test_what_does_not_go_with_a_savedmodel_is_told_in_a_line(
    kind: str, changes: dict[str, Any], message: str
) -> None:
    content = whole(kind, REFERENCE, **changes)
    content["pretrained"]["large"] = REFERENCE | {"image_size": 64}
    with pytest.raises(ParamsError) as raised:
        params.parse(Params, content, "params.yaml")
    assert re.search(message, str(raised.value), re.MULTILINE), raised.value


def test_a_savedmodel_with_heads_alone_is_accepted() -> None:
    for kind in EXPERIMENTS:
        found = params.parse(Params, whole(kind, REFERENCE), "params.yaml")
        assert found.arm_names(clone.NAME) == ["frozen", "full"]


def test_rank_says_that_it_needs_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = {"source": "table", "path": "raw", "table": "a.csv", "image": "file", "labels": "kinds"}
    heads = ARMS | {"full": None}
    content = whole("images", REFERENCE, task="image-multilabel", data=table, arms=heads)
    YAML().dump(content, tmp_path / "params.yaml")
    with pytest.raises(UserError, match="and task image-multilabel has none"):
        rank.rank(clone.NAME)
