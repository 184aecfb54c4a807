from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

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


class Lengthy:
    """Samples of given lengths; a batch tells the places and the view it was asked for."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: list[int], view: int | None = None) -> Tensor:
        return torch.tensor([[index, -1 if view is None else view] for index in indices])


def lengthy(lengths: list[int], size: int, balanced: bool = False) -> Batches:
    return Batches(Lengthy(lengths), torch.arange(len(lengths)) % 3, size, balanced)


def skewed(samples: int) -> list[int]:
    """As texts are: most short, few long."""
    return (3 + np.random.default_rng(0).lognormal(3, 0.8, samples)).astype(int).tolist()  # type: ignore[no-any-return]


def padding(batches: list[list[int]], lengths: list[int]) -> int:
    """Tokens that are computed and mean nothing."""
    return sum(max(lengths[at] for at in batch) - lengths[one] for batch in batches for one in batch)


def test_the_order_of_samples_that_cost_alike_is_a_random_permutation_cut() -> None:
    permutation = torch.randperm(9, generator=torch.Generator().manual_seed(5)).tolist()
    expected = [permutation[:4], permutation[4:]]  # 4, 4 and 1: the single one joins
    assert numbered(9, 4).order(torch.Generator().manual_seed(5)) == expected
    assert lengthy([7] * 9, 4).order(torch.Generator().manual_seed(5)) == expected


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("lengths", [[1] * 50, skewed(50)], ids=["alike", "skewed"])
def test_an_epoch_is_replayed_from_the_generators_state(lengths: list[int], balanced: bool) -> None:
    batches = lengthy(lengths, 4, balanced)
    generator = torch.Generator().manual_seed(1)
    batches.order(generator)
    state = generator.get_state()
    epoch = batches.order(generator)
    assert batches.order(generator) != epoch
    generator.set_state(state)
    assert batches.order(generator) == epoch
    generator.set_state(state)
    assert [labels.tolist() for _, labels in batches.shuffled(generator)] == [
        batches.labels[indices].tolist() for indices in epoch
    ]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=80), size=st.integers(2, 9))
def test_buckets_hold_every_sample_once_and_no_batch_is_of_one(lengths: list[int], size: int) -> None:
    batches = lengthy(lengths, size)
    order = batches.order(torch.Generator().manual_seed(0))
    assert sorted(index for indices in order for index in indices) == list(range(len(lengths)))
    assert len(order) == len(batches)
    assert all(2 <= len(indices) <= size + 1 for indices in order) or len(lengths) == 1


@pytest.mark.parametrize(("samples", "share"), [(64, 0.6), (2000, 0.15)])
def test_buckets_pad_less_than_plain_shuffling(samples: int, share: float) -> None:
    lengths, generator = skewed(samples), torch.Generator().manual_seed(2)
    bucketed = sum(padding(lengthy(lengths, 8).order(generator), lengths) for _ in range(10))
    plain = sum(padding(numbered(samples, 8).order(generator), lengths) for _ in range(10))
    assert bucketed < share * plain


def test_buckets_are_mixed_anew_every_epoch() -> None:
    batches, generator = lengthy(skewed(64), 8), torch.Generator().manual_seed(3)
    first, second = batches.order(generator), batches.order(generator)
    assert not {frozenset(indices) for indices in first} & {frozenset(indices) for indices in second}


def test_batches_of_a_bucket_come_in_random_order() -> None:
    lengths = skewed(400)
    order = lengthy(lengths, 10).order(torch.Generator().manual_seed(3))
    longest = [max(lengths[index] for index in indices) for indices in order]
    # Sorted within the four buckets, 36 of 39 would be longer than the one before; at random half are.
    assert 10 < sum(after > before for before, after in pairwise(longest)) < 29


@pytest.mark.parametrize("alike", [True, False])
def test_balanced_sampling_draws_every_class_and_every_sample_of_it_equally_often(alike: bool) -> None:
    labels = torch.tensor([0] * 90 + [1] * 8 + [2] * 2)
    lengths = [5] * 100 if alike else skewed(100)
    batches = Batches(Lengthy(lengths), labels, 16, balanced=True)
    generator, epochs = torch.Generator().manual_seed(0), 60
    drawn = [index for _ in range(epochs) for indices in batches.order(generator) for index in indices]
    assert len(drawn) == 100 * epochs
    # A count is binomial; with five standard deviations on either side one seed in 200,000 fails.
    for label in range(3):
        count = sum(int(labels[index]) == label for index in drawn)
        assert abs(count - 2000) < 5 * (6000 * (1 / 3) * (2 / 3)) ** 0.5, label
    of_two = Counter(drawn)
    assert abs(of_two[98] - 1000) < 5 * (6000 * (1 / 6) * (5 / 6)) ** 0.5


def test_a_batch_is_of_the_view_asked_for() -> None:
    batches = lengthy([3, 4, 5], 2)
    inputs, labels = batches.batch([2, 1], view=4)
    assert (inputs.tolist(), labels.tolist()) == ([[2, 4], [1, 4]], [2, 1])  # type: ignore[union-attr]
    assert batches.batch([0])[0].tolist() == [[0, -1]]  # type: ignore[union-attr]
    features = FeatureSamples(torch.arange(3).unsqueeze(1))
    assert features.batch([1], view=7).tolist() == [[1]]
    assert features.lengths is None


def test_batches_by_length_begin_with_the_longest_and_keep_the_order_of_equals() -> None:
    assert data.by_length(Lengthy([2, 9, 2, 5, 9]), 2) == [[1, 4], [3, 0], [2]]
    assert data.by_length(FeatureSamples(torch.empty(5, 1)), 2) == data.in_turn(5, 2) == [[0, 1], [2, 3], [4]]


def rows() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sha256": ["a", "b", "c"],
            "label": ["x", "y", "x"],
            "target": [None, None, None],
            "split": ["train", "test", "train"],
        }
    )


def test_fingerprint_knows_content_label_and_split_but_no_order() -> None:
    found = data.fingerprint(rows())
    assert found == data.fingerprint(rows().iloc[::-1])
    for column, value in (("sha256", "z"), ("label", "y"), ("split", "validation"), ("target", "[1]")):
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
