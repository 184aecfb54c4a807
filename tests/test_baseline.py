from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from steps import artifacts, baseline, classical, data, ledger, params
from steps.errors import UserError
from steps.params import BaselineSettings, Evaluation, Model
from tests.tracking import made

FILES = ("baseline.json", "map.parquet", "predictions.parquet", "suspects.parquet")
IMAGES, TEXTS = "image-classification", "text-classification"


def prepare(task: str, per_class: int = 20, width: int = 24) -> str:
    """An experiment up to embed, its features made up: of the pretrained ones alone classes can be told."""
    name = made.EXPERIMENT[task]
    made.write_data(name, task, per_class)
    rows = data.read_split(name)
    # As many as can be train and validation: made.py leaves them few.
    split = np.resize(["train", "train", "validation", "test", "test"], len(rows))
    rows[["id"]].assign(split=split).to_parquet(artifacts.split_file(name))
    settings = BaselineSettings(task=task, model=Model(pretrained="toy"), evaluation=Evaluation())
    artifacts.write_json(artifacts.settings_file(name, "baseline"), settings.model_dump(mode="json"))
    random = np.random.default_rng(0)
    labels = data.label_indices(rows["label"], data.classes_of(rows))
    folder = artifacts.features_dir(name)
    folder.mkdir(parents=True)
    means = 2 * random.normal(size=(labels.max() + 1, width))
    # In another order than the rows: they are found by id.
    order = random.permutation(len(rows))
    features = means[labels] + random.normal(size=(len(rows), width))
    np.save(folder / "features.npy", features[order].astype(np.float32))
    np.save(folder / "random.npy", random.normal(size=(len(rows), width)).astype(np.float32))
    rows[["id"]].iloc[order].to_parquet(folder / "index.parquet", index=False)
    return name


@pytest.fixture(scope="module", params=[IMAGES, TEXTS])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An experiment of which the step has run, and its clone; for reading only."""
    root = tmp_path_factory.mktemp("done")
    with chdir(root):
        name = prepare(request.param)
        baseline.baseline(name)
    return name, root


@pytest.fixture
def name(done: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """The experiment of which the step has run, where the working directory is its clone."""
    monkeypatch.chdir(done[1])
    return done[0]


@pytest.fixture
def copied(tmp_path: Path, done: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """The same to be changed and run again."""
    shutil.copytree(done[1], tmp_path / "clone")
    monkeypatch.chdir(tmp_path / "clone")
    return done[0]


@pytest.mark.parametrize("done", [TEXTS], indirect=True)
def test_the_same_inputs_give_the_same_bytes_and_another_look_at_the_test_split(
    copied: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = data.read_split(copied)
    tested = ledger.test_sha256(rows[rows["split"] == "test"])
    assert ledger.looks(copied, tested) == {"scored": 6, "models": 6}
    assert "baseline/features_knn/" in artifacts.ledger_file(copied).read_text()
    folder = artifacts.baseline_dir(copied)
    assert sorted(path.name for path in folder.iterdir()) == list(FILES)
    before = {file: (folder / file).read_bytes() for file in FILES}
    baseline.baseline(copied)
    said = capsys.readouterr().out
    assert said.startswith("best of 6 baselines: ")
    assert said.count("\n") == 1
    assert before == {file: (folder / file).read_bytes() for file in FILES}
    assert ledger.looks(copied, tested) == {"scored": 12, "models": 6}


@pytest.mark.parametrize("done", [IMAGES], indirect=True)
def test_the_number_of_threads_changes_no_byte(done: tuple[str, Path], tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(done[1], clone)
    folder = artifacts.baseline_dir(done[0])
    command = [sys.executable, "-m", "steps.baseline", done[0]]
    environment = os.environ | {"OMP_NUM_THREADS": "3", "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run(command, cwd=clone, env=environment, check=True, capture_output=True)
    for file in FILES:
        assert (clone / folder / file).read_bytes() == (done[1] / folder / file).read_bytes(), file


def test_predictions_are_of_every_test_item_by_every_baseline(name: str) -> None:
    found = pd.read_parquet(artifacts.baseline_dir(name) / "predictions.parquet")
    kind = "pixels" if name == made.EXPERIMENT[IMAGES] else "tfidf"
    names = [
        "majority", f"{kind}_logistic", "features_knn", "features_logistic", "random_knn", "random_logistic",
    ]  # fmt: skip
    assert list(found.columns) == ["id", "baseline", "label", "predicted", "probabilities"]
    assert found["baseline"].unique().tolist() == names
    rows = data.read_split(name)
    test, classes = rows[rows["split"] == "test"], data.classes_of(rows)
    right = {}
    for one, part in found.groupby("baseline"):
        assert part["id"].tolist() == test["id"].tolist()
        assert part["label"].tolist() == test["label"].tolist()
        table = np.stack(part["probabilities"].tolist())
        assert table.dtype == np.float32
        assert table.sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert part["predicted"].tolist() == [classes[at] for at in table.argmax(axis=1)]
        right[one] = (part["predicted"] == part["label"]).mean()
    assert right["features_logistic"] > 0.9
    assert right["features_knn"] > 0.9
    assert right[f"{kind}_logistic"] > 0.9
    assert right["random_logistic"] < 0.75
    about = json.loads((artifacts.baseline_dir(name) / "baseline.json").read_text())
    assert [one["name"] for one in about["baselines"]] == names
    assert all(one["about"] for one in about["baselines"])
    assert set(about["baselines"][3]["chosen"]) == {"C"}


def test_a_baseline_is_fitted_on_train_alone(name: str) -> None:
    rows = data.read_split(name)
    features = data.read_features(artifacts.features_dir(name), rows["id"])
    labels = data.label_indices(rows["label"], data.classes_of(rows))
    train, test = ((rows["split"] == side).to_numpy() for side in ("train", "test"))
    about = json.loads((artifacts.baseline_dir(name) / "baseline.json").read_text())
    strength = next(one for one in about["baselines"] if one["name"] == "features_logistic")["chosen"]["C"]
    scaler = StandardScaler().fit(features[train])
    model = LogisticRegression(C=strength / features.shape[1], tol=1e-8, max_iter=10_000)
    model.fit(scaler.transform(features[train]), labels[train])
    found = pd.read_parquet(artifacts.baseline_dir(name) / "predictions.parquet")
    said = np.stack(found.loc[found["baseline"] == "features_logistic", "probabilities"].tolist())
    assert np.allclose(said, model.predict_proba(scaler.transform(features[test])), atol=0.01)


def test_the_ranking_never_sees_the_test_split(name: str) -> None:
    ranking = json.loads((artifacts.baseline_dir(name) / "baseline.json").read_text())["ranking"]
    kind = "pixels" if name == made.EXPERIMENT[IMAGES] else "tfidf"
    assert [one["name"] for one in ranking] == ["pretrained", "random", kind]
    for key in ("logme", "h_score", "nleep"):
        assert ranking[0][key] > ranking[1][key]
    assert ranking[0]["probe"]["ci_low"] > ranking[1]["probe"]["value"]
    # Other contents of the test split change nothing.
    path = artifacts.settings_file(name, "baseline")
    settings = params.read_settings(BaselineSettings, path)
    used = data.read_split(name)
    sources = baseline.read_sources(name, settings, used)
    for source in sources.values():
        source[(used["split"] == "test").to_numpy()] = "?" if baseline.is_text(source) else 7
    classes = data.classes_of(used)
    labels = data.label_indices(used["label"], classes)
    assert baseline.rank(sources, used, labels, len(classes), 0.95) == ranking


def test_the_map_has_a_place_for_every_sample(name: str) -> None:
    found = pd.read_parquet(artifacts.baseline_dir(name) / "map.parquet")
    rows = data.read_split(name)
    assert list(found.columns) == ["id", "x", "y"]
    assert sorted(found["id"]) == sorted(rows["id"])
    splits = rows.set_index("id").loc[found["id"], "split"].tolist()
    assert splits == sorted(splits, key=lambda split: split != "test")
    assert found[["x", "y"]].abs().max().max() == 1
    # Classes that features tell apart lie apart.
    labels = rows.set_index("id").loc[found["id"], "label"].to_numpy()
    places = found[["x", "y"]].to_numpy()
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + 9 * np.eye(len(places))
    assert (labels[distances.argmin(axis=1)] == labels).mean() > 0.9


def test_wrong_labels_are_found(name: str) -> None:
    used = data.read_split(name)
    classes = data.classes_of(used)
    features = data.read_features(artifacts.features_dir(name), used["id"])
    wrong = used.index[[3, 30]]
    right = used.loc[wrong, "label"].tolist()
    used.loc[wrong, "label"] = [classes[(classes.index(label) + 1) % len(classes)] for label in right]
    labels = data.label_indices(used["label"], classes)
    found = baseline.suspects(features, used, labels, classes)
    assert set(used.loc[wrong, "id"]) == set(found["id"].iloc[:2])
    first = found.set_index("id").loc[used.loc[wrong, "id"]]
    assert first["suggested"].tolist() == right
    assert first["label"].tolist() == used.loc[wrong, "label"].tolist()
    assert first["split"].tolist() == used.loc[wrong, "split"].tolist()
    assert (first["confidence"] > 0.5).all()
    # The step writes these columns of the same rows without wrong labels.
    written = pd.read_parquet(artifacts.baseline_dir(name) / "suspects.parquet")
    assert list(written.columns) == ["id", "split", "label", "suggested", "confidence"]
    assert not set(used.loc[wrong, "id"]) & set(written["id"])


def test_a_step_that_has_not_run_is_named(copied: str) -> None:
    name = copied
    shutil.rmtree(artifacts.baseline_dir(name))
    (artifacts.features_dir(name) / "index.parquet").unlink()
    with pytest.raises(UserError, match="it is made by `embed`"):
        baseline.baseline(name)
    assert not artifacts.baseline_dir(name).exists()


# ------------------------------------------------------------------------------------------------------ parts


def frame(labels: list[str], splits: list[str] | None = None) -> pd.DataFrame:
    names = [f"id-{at}" for at in range(len(labels))]
    return pd.DataFrame({"id": names, "label": labels, "split": splits or ["train"] * len(labels)})


@pytest.mark.parametrize("sizes", [[20, 3, 1], [1, 1, 1, 30], [2, 2], [1, 1]])
def test_small_classes_stop_no_search_for_wrong_labels(sizes: list[int]) -> None:
    labels = np.repeat(np.arange(len(sizes)) * 2, sizes)  # classes between them have no row
    classes = [f"class {at}" for at in range(2 * len(sizes))]
    features = np.random.default_rng(0).normal(size=(len(labels), 5)).astype(np.float32)
    found = baseline.suspects(features, frame([classes[at] for at in labels]), labels, classes)
    assert len(found) <= len(labels)
    counts = pd.Series([classes[at] for at in labels]).value_counts()
    assert (counts.loc[found["label"]] > 1).all()


def test_no_wrong_labels_is_an_empty_table_of_texts(tmp_path: Path) -> None:
    labels = np.arange(40) % 2
    features = np.stack([labels * 10.0, np.arange(40) / 40], axis=1).astype(np.float32)
    found = baseline.suspects(features, frame(["a" if at == 0 else "b" for at in labels]), labels, ["a", "b"])
    baseline.write(found, tmp_path / "suspects.parquet")
    read = pd.read_parquet(tmp_path / "suspects.parquet")
    assert len(read) == 0
    assert list(read.columns) == ["id", "split", "label", "suggested", "confidence"]


def test_so_many_suspects_are_told_and_no_more() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 300)
    features = random.normal(size=(300, 5)).astype(np.float32)
    features[:, 0] += 8 * np.where(np.arange(300) < 150, 1 - labels, labels)  # half of the labels are turned
    found = baseline.suspects(features, frame(["ab"[at] for at in labels]), labels, ["a", "b"])
    assert len(found) == baseline.MOST_SUSPECTS


@pytest.mark.parametrize(("test", "others"), [(10, 20), (10, 4000), (3000, 500), (1500, 3)])
def test_the_map_takes_the_test_split_first_and_evenly(test: int, others: int) -> None:
    split = pd.Series(["train"] * others + ["test"] * test)
    found = baseline.chosen_rows(split)
    assert len(found) == len(set(found)) == min(test + others, 1500)
    kept = int((split.iloc[found] == "test").sum())
    assert kept == min(test, 1500)
    steps = np.diff(found[:kept])
    assert set(steps) <= {1} or steps.max() - steps.min() <= 1


@pytest.mark.parametrize(("rows", "width"), [(2, 5), (12, 1), (29, 40), (40, 1), (35, 3)])
def test_a_map_of_few_rows_or_features(rows: int, width: int) -> None:
    features = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    found = baseline.draw_map(features, frame(["a"] * rows))
    assert found[["x", "y"]].abs().max().max() == pytest.approx(1)
    assert found.notna().all().all()
    same = baseline.draw_map(np.ones_like(features), frame(["a"] * rows))
    assert np.isfinite(same[["x", "y"]]).all().all()


def test_a_thousand_items_take_seconds() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(1000) % 10
    features = random.normal(size=(1000, 384)).astype(np.float32)
    features += 2 * random.normal(size=(10, 384)).astype(np.float32)[labels]
    used = frame([str(at) for at in labels], ["test"] * 800 + ["train"] * 100 + ["validation"] * 100)
    started = process_time()
    baseline.draw_map(features, used)
    baseline.suspects(features, used, labels, [str(at) for at in range(10)])
    classical.transferability_of(features[800:], labels[800:], 10, 0.95)
    assert process_time() - started < 12


def test_it_starts_without_torch() -> None:
    code = "import sys; import steps.baseline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
