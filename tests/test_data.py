from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steps import artifacts, data
from steps.data import Batches, FeatureSamples
from steps.errors import UserError


def numbered(samples: int, size: int) -> Batches:
    return Batches(FeatureSamples(torch.arange(samples).unsqueeze(1)), torch.arange(samples), size)


@given(samples=st.integers(1, 60), size=st.integers(2, 20), seed=st.integers(0, 5))
def test_an_epoch_shows_every_sample_once_and_no_batch_of_one(samples: int, size: int, seed: int) -> None:
    batches = numbered(samples, size)
    seen = list(batches.shuffled(torch.Generator().manual_seed(seed)))
    assert len(seen) == len(batches)
    assert sorted(int(label) for _, labels in seen for label in labels) == list(range(samples))
    assert all(torch.equal(inputs.squeeze(1), labels) for inputs, labels in seen)  # type: ignore[union-attr]
    # Batch normalisation cannot train on one sample.
    assert samples == 1 or all(len(labels) > 1 for _, labels in seen)


def test_order_depends_on_the_seed_and_changes_every_epoch() -> None:
    batches = numbered(40, 8)

    def epochs(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return [[int(x) for _, labels in batches.shuffled(generator) for x in labels] for _ in range(2)]

    assert epochs(3) == epochs(3)
    assert epochs(3) != epochs(4)
    assert epochs(3)[0] != epochs(3)[1]


def test_in_order_is_in_order() -> None:
    assert [labels.tolist() for _, labels in numbered(5, 2).in_order()] == [[0, 1], [2, 3], [4]]


def rows() -> pd.DataFrame:
    return pd.DataFrame(
        {"sha256": ["a", "b", "c"], "label": ["x", "y", "x"], "split": ["train", "test", "train"]}
    )


def test_fingerprint_knows_content_label_and_split_but_no_order() -> None:
    found = data.fingerprint(rows())
    assert found == data.fingerprint(rows().iloc[::-1])
    for column, value in (("sha256", "z"), ("label", "y"), ("split", "validation")):
        changed = rows()
        changed.loc[0, column] = value
        assert data.fingerprint(changed) != found, column


def test_classes_are_sorted_and_labels_are_their_places() -> None:
    assert data.classes_of(rows()) == ["x", "y"]
    assert data.label_indices(rows()["label"], ["x", "y"]).tolist() == [0, 1, 0]


def test_a_missing_file_names_the_step_that_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="made by `validate`"):
        data.read_split("e")
    artifacts.validation_dir("e").mkdir(parents=True)
    rows().assign(id=["1", "2", "3"]).to_parquet(artifacts.validation_dir("e") / "accepted.parquet")
    with pytest.raises(UserError, match="made by `split`"):
        data.read_split("e")
