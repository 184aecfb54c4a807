from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from steps import artifacts, curve, data, ledger, loop, trainable
from steps.errors import UserError
from steps.params import Curve, CurveSettings
from steps.trainable import Job
from tests.tracking import made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A clone with an experiment of a toy backbone, trained on its nine labels, three of each class."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        name = made.build("image-classification")
        write_pool(name)
        return folder, name


def write_pool(experiment: str) -> None:
    """The training pool in an order in which every three labels are one of each class."""
    rows = data.read_split(experiment)
    train = rows[rows["split"] == "train"]
    order = train.groupby("label").cumcount().sort_values(kind="stable").index
    place = np.full(len(rows), -1)
    place[rows.index.get_indexer(order)] = np.arange(len(order))
    data.write_table(pd.DataFrame({"id": rows["id"], "place": place}), artifacts.pool_file(experiment))


@pytest.fixture
def experiment(built: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder, name = built
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return name


def settle(experiment: str, *labels: int | str, arms: tuple[str, ...] = ("scratch", "frozen")) -> None:
    settings = CurveSettings(curve=Curve.model_validate({"labels": labels}), seeds=(1, 2), arms=arms)
    artifacts.write_json(artifacts.settings_file(experiment, "curve"), settings.model_dump(mode="json"))


def written(experiment: str) -> tuple[list[dict[str, object]], pd.DataFrame]:
    folder = artifacts.curve_dir(experiment)
    return json.loads((folder / "points.json").read_text()), pd.read_parquet(folder / "predictions.parquet")


def test_without_budgets_nothing_is_trained(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    settle(experiment)
    curve.curve(experiment)
    assert [path.name for path in artifacts.curve_dir(experiment).iterdir()] == ["points.json"]
    assert "no curve" in capsys.readouterr().out


def test_every_arm_and_seed_at_every_budget_but_the_experiments_own(experiment: str) -> None:
    settle(experiment, 3, 6, "all")
    curve.curve(experiment)
    points, predictions = written(experiment)
    rows = data.read_split(experiment)
    found = {(one["arm"], one["labels"], one["seed"]) for one in points}
    assert found == {
        (arm, labels, seed) for arm in ("scratch", "frozen") for labels in (3, 6) for seed in (1, 2)
    }
    tested = set(rows["id"][rows["split"] == "test"])
    for _, part in predictions.groupby(["arm", "labels", "seed"]):
        assert set(part["id"]) == tested
        np.testing.assert_allclose(np.stack(part["probabilities"].tolist()).sum(axis=1), 1, atol=1e-5)
    looks = ledger.looks(experiment, ledger.test_sha256(rows[rows["split"] == "test"]))
    told = json.loads((artifacts.curve_dir(experiment) / "looks.json").read_text())
    assert told["models"] == looks["models"] >= len(points) + 6


def test_what_was_trained_once_is_kept(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(experiment, 6)
    curve.curve(experiment)
    before = written(experiment)
    trained: list[str] = []

    def count(job: Job, *arguments: object, **keywords: object) -> loop.Fitted:
        trained.append(f"{job.arm_name} {len(job.train_labels)}")
        return fit(job, *arguments, **keywords)  # type: ignore[arg-type]

    fit = trainable.fit
    monkeypatch.setattr(trainable, "fit", count)
    curve.curve(experiment)
    assert trained == []
    after = written(experiment)
    assert before[0] == after[0]
    pd.testing.assert_frame_equal(before[1], after[1])
    settle(experiment, 6, 5, arms=("scratch",))
    curve.curve(experiment)
    assert trained == ["scratch 5", "scratch 5"]


def test_a_budget_that_leaves_a_class_out_is_refused(experiment: str) -> None:
    settle(experiment, 2)
    with pytest.raises(UserError, match="2 leaves no sample of class"):
        curve.curve(experiment)
    assert not artifacts.curve_dir(experiment).exists()


def test_a_budget_beyond_the_pool_is_refused(experiment: str) -> None:
    settle(experiment, 5000)
    with pytest.raises(UserError, match="5000 is more than the"):
        curve.curve(experiment)


@pytest.mark.parametrize(
    ("own", "labels", "epochs"), [(100, 25, 50), (100, 100, 20), (100, 400, 20), (100, 41, 34)]
)
def test_fewer_labels_get_as_many_steps_and_more_labels_as_many_epochs(
    experiment: str, own: int, labels: int, epochs: int
) -> None:
    settings = trainable.settings_of(experiment, "scratch")
    training = settings.training.model_copy(update={"epochs": 20, "batch_size": 20})
    assert curve.epochs(settings.model_copy(update={"training": training}), own, labels) == epochs
