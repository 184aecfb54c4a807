"""Tables of a million rows: what keeps time and memory in bounds; benchmarks/scale.py measures both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import scale
from benchmarks.scale import Cost
from steps import artifacts, bootstrap, data, results, suite
from steps.errors import HeadstartError
from steps.tasks import Expectation
from tests import evaluated
from tests.evaluated import Made

# What a million rows may take beside what the step takes for itself, less than 0.3 GB.
BYTES_A_ROW = 1700
# Below so much more memory the allocator's own steps are all that is measured.
NOISE = 40 * 2**20


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def grown(step: str, few: Cost, many: Cost, rows: int) -> None:
    """Hold the memory that the further rows take."""
    assert many.bytes - few.bytes <= NOISE + BYTES_A_ROW * rows, f"{step}: {few} and {many}"


@pytest.mark.long
def test_no_step_takes_more_memory_than_a_million_rows_may() -> None:
    # Below that the blocks in which steps work are not full yet, and grow with the rows, too.
    few, many = (scale.measured(rows) for rows in (100_000, 200_000))
    for step in scale.STEPS:
        grown(step, few[step], many[step], 100_000)


def accepted(rows: int) -> None:
    """Samples as validate leaves them, and the settings of split."""
    scale.write_settings(rows)
    keys = [f"{at:064x}" for at in range(rows)]
    frame = pd.DataFrame({"id": [f"sample {at}" for at in range(rows)], "content": keys})
    frame = frame.assign(label=[scale.LABELS[at % 5] for at in range(rows)], sha256=keys, size=9)
    frame = frame.assign(near_group=keys, split_key=keys, text=keys).reindex(
        columns=[*data.COLUMNS, "content", "near_group", "split_key"]
    )
    folder = artifacts.validation_dir(scale.NAME)
    folder.mkdir(parents=True, exist_ok=True)
    data.write_table(frame, folder / "accepted.parquet")


def test_split_takes_little_memory_a_row() -> None:
    costs = []
    for rows in (1000, 20_000):
        accepted(rows)
        costs.append(scale.run("split"))
    grown("split", costs[0], costs[1], 19_000)


def test_the_exponent_is_the_slope_without_what_every_start_takes() -> None:
    start = Cost(2.0, 2.0, 0)
    sizes = (10_000, 100_000, 1_000_000)
    costs = [Cost(9.0, 2.0 + rows * 1e-5, 0) for rows in sizes]
    assert scale.exponent(sizes, costs, start) == pytest.approx(1.0)
    square = [Cost(9.0, 2.0 + rows**2 * 1e-8, 0) for rows in sizes]
    assert scale.exponent(sizes, square, start) == pytest.approx(2.0)
    noisy = [Cost(9.0, 2.01, 0), *costs[1:]]
    assert scale.exponent(sizes, noisy, start) == pytest.approx(1.0), "10,000 rows are as good as none"
    assert np.isnan(scale.exponent(sizes[:2], noisy[:2], start))


def test_draws_of_very_many_items_are_held_in_smaller_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    before = np.concatenate(list(bootstrap.item_weights(1000, 40, seed=3, chunk=20)))
    monkeypatch.setattr(bootstrap, "MOST_COUNTS", 4000)
    found = list(bootstrap.item_weights(1000, 40, seed=3, chunk=20))
    assert [len(one) for one in found] == [4] * 10
    assert np.array_equal(np.concatenate(found), before), "an even number of items draws alike"
    monkeypatch.setattr(bootstrap, "MOST_COUNTS", 10)
    assert [len(one) for one in bootstrap.item_weights(1000, 3)] == [1, 1, 1]


def test_a_table_of_texts_is_made_objects_only_where_values_are_looked_at() -> None:
    frame = pd.DataFrame({"id": ["a", "b"], "content": ["x", None], "size": [1, 2]}).astype(
        {"id": "str", "content": "str"}
    )
    found = suite._plain(frame, {"id"})
    assert list(found) == ["id", "content", "size"], "all are there"
    assert found["id"].dtype == object
    assert found["id"].tolist() == ["a", "b"]
    assert found["content"].dtype == found["size"].dtype == bool
    asked = [
        Expectation("ids_unique", "ExpectColumnValuesToBeUnique", {"column": "id"}),
        Expectation("columns_present", "ExpectTableColumnsToMatchSet", {"column_set": ["content"]}),
    ]
    assert suite._asked(asked) == {"id"}


def test_splits_are_joined_alike_whatever_their_order() -> None:
    made = Made(items=40)
    evaluated.make(made)
    straight = data.read_split(made.experiment)
    path = artifacts.split_file(made.experiment)
    sides = pd.read_parquet(path)
    data.write_table(sides.iloc[::-1], path)
    pd.testing.assert_frame_equal(data.read_split(made.experiment), straight)
    few = data.read_split(made.experiment, columns=["id", "group"])
    pd.testing.assert_frame_equal(few, straight[["id", "group", "split"]])
    doubled = pd.concat([sides, sides.head(1)])
    data.write_table(doubled, path)
    with pytest.raises(Exception, match="not a one-to-one merge"):
        data.read_split(made.experiment)


def test_predictions_are_read_run_by_run() -> None:
    made = Made(items=30)
    evaluated.make(made)
    path = evaluated.predictions_of(made.experiment)
    whole = pd.read_parquet(path)
    mixed = whole.sample(frac=1, random_state=1)
    mixed.to_parquet(path, index=False)
    settings = results.read_settings(made.experiment)
    found = {(one.arm, one.seed): one for one in results.read_predictions(path, settings, made.labels)}
    assert len(found) == 9
    for (arm, seed), one in found.items():
        rows = mixed[(mixed["arm"] == arm) & (mixed["seed"] == seed)]
        assert one.ids == rows["id"].tolist()
        said = np.stack(rows["probabilities"].tolist()).astype(np.float64)
        assert np.array_equal(one.probabilities, said)
    mixed[mixed["arm"] != "full"].to_parquet(path, index=False)
    with pytest.raises(HeadstartError, match="has nothing of arm 'full', seed 1"):
        list(results.read_predictions(path, settings, made.labels))
