from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score, f1_score
from seqeval.metrics.sequence_labeling import get_entities
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from steps import network, raw, tasks
from steps.arms import Arm
from steps.data import Batches
from steps.errors import DataError, UserError
from steps.ingest import ingest
from steps.layouts import ConllData, PackageData
from steps.params import Model, Validation
from steps.tasks import token_metrics
from steps.tasks.of_texts import Rows, WindowSamples
from steps.tasks.token_classification import marked
from steps.tasks.token_network import TagLoss
from steps.tasks.token_samples import IGNORED, NO_WORD, WordSamples, cut, first_pieces
from steps.tasks.token_spans import Worded, spans_of, tag_names, tags_of, words_of
from steps.validate import validate
from tests.rawdata import settle_ingest, settle_validate
from tests.tasks import clone

TASK = tasks.get("token-classification")
TAGS = ["O", "B-X", "I-X", "B-Y", "I-Y", "B-A-B", "I-A-B"]
WORDS = ["ada", "met", "bo", "in", "lon", "##don", "##er", ".", ",", "a", "b"]
CONFIG = {
    "model_type": "bert", "vocab_size": 5 + len(WORDS), "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
# Its constructor has no types.
Saved: Any = PreTrainedTokenizerFast


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    return toy(tmp_path)


def toy(folder: Path) -> Path:
    """A folder as fetch leaves it: a tokenizer of word pieces, as BERT's."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: at for at, word in enumerate([*specials, *WORDS])}
    fast = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True)
    )
    Saved(tokenizer_object=fast, **names).save_pretrained(folder)
    description = {"library": "transformers", "name": "bert", "config": CONFIG}
    (folder / "architecture.json").write_text(json.dumps(description))
    return folder


def byte_level(folder: Path) -> Path:
    """A tokenizer as GPT-2's: blanks belong to the word behind them, nothing stands around, nothing pads."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: at for at, sign in enumerate([*alphabet, '".'])}
    fast = Tokenizer(models.BPE(vocabulary, [('"', ".")]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    Saved(tokenizer_object=fast).save_pretrained(folder)
    return folder


def frame(*rows: tuple[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [f"s{at}" for at in range(len(rows))],
            "text": [text for text, _ in rows],
            "label": ["none"] * len(rows),
            "target": [None if target is None else json.dumps(target) for _, target in rows],
        }
    )


# --------------------------------------------------------------------------------------- words and tags


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ada met Bo.", ["Ada", "met", "Bo", "."]),
        ("U.N. (3.5%)", ["U", ".", "N", ".", "(", "3", ".", "5", "%", ")"]),
        ("d\u2019\u00c9tat\n na\u00efve", ["d", "\u2019", "\u00c9tat", "na\u00efve"]),
        ("\u6771\u4eac to \u30c8", ["\u6771", "\u4eac", "to", "\u30c8"]),
        ("snake_case", ["snake_case"]),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in words_of(text)] == words


def test_a_text_may_know_its_words() -> None:
    known = Worded("U.N. met", [[0, 4], [5, 8]])
    assert words_of(known) == [(0, 4), (5, 8)]
    assert known == "U.N. met"
    row = next(frame(("U.N.", {"spans": [], "words": [[0, 4]]})).itertuples())
    assert words_of(str(TASK.content(row, Path()))) == words_of("U.N.")
    assert words_of(TASK.content(row, Path())) == [(0, 4)]  # type: ignore[arg-type]


@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_tags_are_read_as_seqeval_reads_them(tags: list[str]) -> None:
    places = [(at, at + 1) for at in range(len(tags))]
    expected = [(start, end + 1, label) for label, start, end in get_entities(tags)]
    assert spans_of(tags, places) == expected
    assert spans_of(tags_of(expected, places), places) == expected


def test_a_word_is_of_the_first_span_it_touches() -> None:
    words = [(0, 3), (4, 7), (8, 11)]
    assert tags_of([[5, 9, "X"], [8, 11, "Y"]], words) == ["O", "B-X", "I-X"]
    assert tags_of([[0, 3, "X"], [4, 7, "X"]], words) == ["B-X", "B-X", "O"]
    assert tag_names({"b", "a"}) == ["O", "B-a", "I-a", "B-b", "I-b"]


# ---------------------------------------------------------------------------------------------- metrics


def as_said(sentences: list[list[str]]) -> list[dict[str, Any]]:
    return [
        token_metrics.answer("x" * len(tags), spans_of(tags, [(at, at + 1) for at in range(len(tags))]))
        for tags in sentences
    ]


def as_truths(sentences: list[list[str]]) -> list[dict[str, Any]]:
    found = []
    for tags in sentences:
        words = [[at, at + 1] for at in range(len(tags))]
        spans = [[start, end + 1, label] for label, start, end in get_entities(tags)]
        found.append({"spans": spans, "words": words})
    return found


def seqeval_f1(truth: list[list[str]], said: list[list[str]]) -> float:
    with warnings.catch_warnings(action="ignore"):
        return float(f1_score(truth, said)) if truth else 0.0


@st.composite
def both(draw: st.DrawFn) -> tuple[list[list[str]], list[list[str]]]:
    truth = draw(st.lists(st.lists(st.sampled_from(TAGS), min_size=1, max_size=6), min_size=1, max_size=5))
    said = [draw(st.lists(st.sampled_from(TAGS), min_size=len(one), max_size=len(one))) for one in truth]
    return truth, said


@settings(max_examples=150, deadline=None)
@given(both())
def test_f1_is_seqevals_whatever_the_tags_and_shares_are_of_leaving_out(made: Any) -> None:
    truth, said = made
    shares = token_metrics.scores(as_truths(truth), as_said(said))["entity_f1"]
    assert shares.mean() == pytest.approx(seqeval_f1(truth, said))
    rest = [seqeval_f1(truth[:at] + truth[at + 1 :], said[:at] + said[at + 1 :]) for at in range(len(truth))]
    expected = seqeval_f1(truth, said) + (len(truth) - 1) * (np.mean(rest) - np.array(rest))
    np.testing.assert_allclose(shares, expected, atol=1e-9)


@given(both())
def test_accuracy_is_seqevals_of_tags_that_begin_their_entities(made: Any) -> None:
    truth, said = ([_begun(tags) for tags in one] for one in made)
    shares = token_metrics.scores(as_truths(truth), as_said(said))["token_accuracy"]
    assert shares.mean() == pytest.approx(accuracy_score(truth, said))


def _begun(tags: list[str]) -> list[str]:
    places = [(at, at + 1) for at in range(len(tags))]
    return tags_of(spans_of(tags, places), places)


@pytest.mark.parametrize(
    ("truth", "said", "f1"), [([["O"]], [["O"]], 0.0), ([["B-X"]], [["O"]], 0.0), ([["B-X"]], [["I-X"]], 1.0)]
)
def test_one_sentence_and_none_with_entities(truth: Any, said: Any, f1: float) -> None:
    assert token_metrics.scores(as_truths(truth), as_said(said))["entity_f1"].tolist() == [f1]
    assert seqeval_f1(truth, said) == f1


# ---------------------------------------------------------------------------------------------- tokens


def test_the_first_piece_of_a_word_carries_it(pretrained: Path) -> None:
    samples = WordSamples(["Ada met Londoner.", "a"], pretrained, 16)
    assert samples.batch([0])["input_ids"].tolist() == [[2, 5, 6, 9, 10, 11, 12, 3]]
    assert samples.of_word[:8].tolist() == [NO_WORD, 0, 1, 2, NO_WORD, NO_WORD, 3, NO_WORD]
    rows = frame(("Ada met Londoner.", {"spans": [[0, 3, "PER"], [8, 16, "LOC"]]}), ("a", {"spans": []}))
    classes = TASK.classes(rows)
    targets = TASK.targets(rows, classes, samples, Path(), Model(pretrained="x"))
    batch = targets.batch([1, 0])  # type: ignore[union-attr]
    assert isinstance(batch, torch.Tensor)
    assert classes == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert batch.tolist() == [
        [IGNORED, 0, IGNORED, *[IGNORED] * 5],
        [IGNORED, 3, 0, 1, IGNORED, IGNORED, 0, IGNORED],
    ]
    assert samples.batch([1, 0])["input_ids"].shape == batch.shape


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 9))
def test_windows_hold_the_first_piece_of_every_word_and_share_none(begins: list[bool], room: int) -> None:
    firsts = np.where(begins, np.cumsum(begins) - 1, NO_WORD).astype(np.int64)
    windows = cut(firsts, room)
    assert all(end - start <= room for start, end in windows)
    assert all(start == 0 or firsts[start] >= 0 for start, _ in windows)
    kept = [int(word) for start, end in windows for word in firsts[start:end] if word >= 0]
    assert kept == [int(word) for word in firsts if word >= 0]


def test_no_word_of_a_long_text_is_left_out(pretrained: Path) -> None:
    text = " ".join(["Ada", "met", "Londoner", "."] * 7)
    samples = WordSamples([text, "bo"], pretrained, 8)
    assert samples.windowed
    assert samples.counts.tolist() == [7, 1]
    carried = samples.of_word[samples.of_word >= 0].tolist()
    assert carried == [*range(28), 0]
    batch = samples.batch([1, 0])
    assert batch["input_ids"].shape == (8, 8)
    assert batch["attention_mask"].sum().item() == sum(samples.lengths)
    np.testing.assert_array_equal(
        samples.joined([1, 0], np.arange(8, dtype=np.float32)[:, None]).ravel(), [0, np.mean(range(1, 8))]
    )
    assert WordSamples([], pretrained, 8).lengths == []
    with pytest.raises(DataError, match="a text is empty"):
        WordSamples(["a", " "], pretrained, 8)
    with pytest.raises(UserError, match="leaves no room for a word"):
        WordSamples(["a"], pretrained, 2)


def test_a_tokenizer_without_anything_around_and_tokens_of_several_words(tmp_path: Path) -> None:
    samples = WordSamples(['a".b'], byte_level(tmp_path), 9)
    assert samples.rows.padding == 0
    assert samples.words[0] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert samples.of_word.tolist() == [0, 1, 3]
    assert samples.sharing == [{2: 1}]
    blanks = WordSamples(["a  b"], tmp_path, 9)
    assert blanks.of_word[blanks.of_word >= 0].tolist() == [0, 1]


def test_a_word_that_the_tokenizer_does_not_see(pretrained: Path) -> None:
    samples = WordSamples(["a \u200b b"], pretrained, 9)
    assert len(samples.words[0]) == 3
    assert samples.of_word.tolist() == [NO_WORD, 0, 2, NO_WORD]
    firsts, sharing = first_pieces([(0, 1)], np.empty((0, 2), np.int64))
    assert firsts.tolist() == []
    assert sharing == {}


# ---------------------------------------------------------------------------------------------- network


def test_shares_add_up_to_the_mean_over_scored_tokens() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 4, 3), torch.randint(0, 3, (5, 4))
    targets[0, 1:] = targets[3] = IGNORED
    whole = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    loss = TagLoss()
    parts = [loss.share(logits[at : at + 2], targets[at : at + 2], targets) for at in (0, 2, 4)]
    assert torch.stack(parts).sum().item() == pytest.approx(whole.item())
    nothing = torch.full((1, 4), IGNORED)
    assert loss.share(logits[:1], nothing, nothing).item() == 0


def test_it_learns_and_says_what_it_learnt_in_windows_too(pretrained: Path) -> None:
    torch.manual_seed(0)
    one = "Ada met Bo in London ."
    spans: list[Any] = [[0, 3, "PER"], [8, 10, "PER"], [14, 20, "LOC"]]
    long = " ".join([one] * 4)
    longer = [[start + 23 * at, end + 23 * at, label] for at in range(4) for start, end, label in spans]
    rows = frame((one, {"spans": spans}), (long, {"spans": longer}), ("a , b", {"spans": []}))
    model, arm = Model(pretrained="x", max_tokens=10, dropout=0.0), Arm(learning_rate=0.01)
    samples = TASK.samples(tasks.contents(TASK, rows, Path()), model, pretrained)
    classes = TASK.classes(rows)
    targets = TASK.targets(rows, classes, samples, Path(), model)
    description = json.loads((pretrained / "architecture.json").read_text())
    backbone = network.architecture(description, gives="tokens")
    made = network.Network(backbone, TASK.head(backbone, classes, model, arm))
    criterion = TASK.objective(arm, targets, classes)
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.01)
    inputs, wanted = Batches(samples, targets, 4).batch([0, 1, 2])
    losses = []
    for _ in range(30):
        loss = criterion.share(made(inputs), wanted, wanted)
        optimizer.zero_grad(), loss.backward(), optimizer.step()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
    assert losses[-1] < 0.1 < losses[0]
    said = TASK.predict(made, samples, tasks.Ask(classes, model, torch.device("cpu")))
    assert isinstance(said, list)
    assert said[0] == token_metrics.answer(one, [(0, 3, "PER"), (8, 10, "PER"), (14, 20, "LOC")])
    assert said[0]["texts"] == ["Ada", "Bo", "London"]
    assert said[1]["entities"] == ["PER", "PER", "LOC"] * 4
    assert json.loads(json.dumps(said)) == said
    scores = TASK.scores(TASK.truths(rows), said, classes)
    assert set(scores) == {"entity_f1", "token_accuracy"}
    assert {float(shares.mean()) for shares in scores.values()} == {1.0}


# ---------------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize(
    ("text", "spans", "column", "reason"),
    [
        (
            "Ada met Bo",
            [[0, 3, "X"], [8, 11, "X"]],
            "target_error",
            "span 8-11 (X) is no part of the text, which has 10",
        ),
        ("Ada met Bo", [[3, 3, "X"]], "target_error", "is no part"),
        ("Ada met Bo", [[-3, 3, "X"]], "target_error", "is no part"),
        ("Ada met Bo", [[0, 3, " "]], "target_error", "span 0-3 has no label"),
        ("Ada met Bo", [[0, 7, "X"], [4, 10, "Y"]], "tags_error", "span 4-10 'met Bo' (Y) overlaps span 0-7"),
        ("Ada met Bo", [[0, 2, "X"]], "tags_error", "inside of a word, or with a blank"),
        ("Ada met Bo", [[3, 7, "X"]], "tags_error", "span 3-7 ' met' (X) begins or ends"),
    ],
)
def test_spans_that_cannot_be_used_are_told(text: str, spans: Any, column: str, reason: str) -> None:
    rows = frame((text, {"spans": spans}), (text, {"spans": [[0, 3, "X"], [8, 10, "X"]]}), (text, None))
    found = TASK.facts(rows, Path(), Validation())
    other = {"target_error": "tags_error", "tags_error": "target_error"}[column]
    assert reason in found[column][0]
    assert found[other].isna().all()
    assert found[column][1:].isna().all()
    names = [one.name for one in TASK.expectations(Validation())]
    assert {"targets_present", "spans_inside", "tags_consistent", "text_not_empty"} <= set(names)


def test_given_words_say_where_spans_may_end() -> None:
    rows = frame(("U.N. met", {"spans": [[0, 4, "X"]], "words": [[0, 4], [5, 8]]}))
    assert TASK.facts(rows, Path(), Validation())["tags_error"].isna().all()
    assert TASK.truths(rows) == [{"spans": [[0, 4, "X"]], "words": [[0, 4], [5, 8]]}]


def test_simple_methods_know_the_words_of_train_alone() -> None:
    rows = frame(
        ("Ada met Bo", {"spans": [[0, 3, "PER"], [8, 10, "PER"]]}),
        ("Bo met Bo", {"spans": [[0, 2, "LOC"]]}),
        ("Bo met Cy and Ada", {"spans": [[7, 9, "PER"]]}),
    ).assign(split=["train", "train", "test"])
    found = TASK.baselines(rows, TASK.classes(rows), Path())
    # Of Bo's tags, each once, the first in the alphabet.
    assert found["usual-tag"].said == [
        {"entities": ["LOC", "PER"], "starts": [0, 14], "ends": [2, 17], "texts": ["Bo", "Ada"]}
    ]
    assert found["nothing"].said == [{"entities": [], "starts": [], "ends": [], "texts": []}]


def test_a_case_shows_what_was_found_missed_and_made_up() -> None:
    rows = frame(("Ada met Bo in London", {"spans": [[0, 3, "PER"], [14, 20, "LOC"]]}))
    said = token_metrics.answer("Ada met Bo in London", [(0, 3, "PER"), (8, 10, "PER")])
    case = TASK.case(next(rows.itertuples()), said, Path())
    assert case.truth == "PER: Ada; LOC: London"
    assert case.predicted == "PER: Ada; PER: Bo"
    assert case.marks == (
        ("Ada", "right"), (" met ", ""), ("Bo", "wrong"), (" in ", ""), ("London", "missed"),
    )  # fmt: skip
    assert marked("", [], []) == ()
    assert marked("abcd", [(0, 4, "X")], [(0, 2, "X")]) == (("ab", "wrong"), ("cd", "missed"))


def test_the_synthetic_sentences_are_the_same_every_time_and_test_has_names_of_its_own() -> None:
    def read() -> list[raw.RawSample]:
        data = PackageData(source="package", dataset="towns-ner", path="requirements.lock")
        return list(raw.read(data, "token-classification", Path("nowhere")).samples)

    first = read()
    assert first == read()
    assert len({one.content for one in first}) == len(first) == 250
    rows = frame(*((str(one.content), one.target) for one in first))
    found = TASK.facts(rows, Path(), Validation())
    assert found[["target_error", "tags_error", "near_duplicate_of"]].isna().to_numpy().all()
    names: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for one in first:
        assert one.split is not None
        names[one.split] |= {str(one.content)[start:end] for start, end, _ in one.target["spans"]}
    assert not names["test"] & (names["train"] | names["validation"])


def test_rows_are_read_back_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("U.N. B-ORG\nofficial O\n\nAda B-PER\n")
    data = ConllData(source="conll", path=str(tmp_path / "t.txt"))
    found = list(raw.read(data, "token-classification", tmp_path).samples)
    assert [one.content for one in found] == ["U.N. official", "Ada"]
    rows = frame(*((str(one.content), one.target) for one in found))
    assert words_of(TASK.content(next(rows.itertuples()), Path())) == [(0, 4), (5, 13)]  # type: ignore[arg-type]


def test_texts_without_windows_are_batched_as_any_other() -> None:
    rows = Rows(np.array([1, 2, 3], np.int32), np.array([1, 2], np.int64), 0)
    samples = WindowSamples(rows, np.array([1, 1], np.int64))
    assert not samples.windowed
    assert samples.lengths == [1, 2]
    assert samples.batch([1, 0])["input_ids"].tolist() == [[2, 3], [1, 0]]


def test_validate_names_the_spans_and_goes_on_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = [{"text": f"Ada met number {at}", "spans": [[0, 3, "PER"]]} for at in range(3)]
    good += [{"text": f"nobody met number {at}", "spans": []} for at in range(3)]
    bad = [
        {"text": "Ada is out", "spans": [[0, 99, "PER"]]},
        {"text": "Ada is torn", "spans": [[0, 2, "PER"]]},
        {"text": "Ada is not told of"},
    ]
    Path("t.jsonl").write_text("\n".join(json.dumps(row) for row in good + bad))
    settle_ingest("names", "token-classification", source="jsonl", path="t.jsonl")
    settle_validate("names", "token-classification", on_reject="drop", min_per_class=2)
    ingest("names")
    validate("names")
    rejected = pd.read_csv("work/names/validation/rejected.csv")
    assert rejected[["source", "expectation"]].to_numpy().tolist() == [
        ["t.jsonl:9", "targets_present"],
        ["t.jsonl:7", "spans_inside"],
        ["t.jsonl:8", "tags_consistent"],
    ]
    assert "span 0-99 (PER) is no part" in rejected["reason"][1]
    accepted = pd.read_parquet("work/names/validation/accepted.parquet")
    assert TASK.classes(accepted) == ["O", "B-PER", "I-PER"]
    assert len(accepted) == 6


# ---------------------------------------------------------------------------------------------- end to end


def columns(root: Path) -> dict[str, Any]:
    """Sentences of the topics' words; plants and ships are names."""
    from tests import twin

    rng = np.random.default_rng(5)
    lines = []
    for number in range(60):
        # Every third sentence holds no name.
        topic, label = [("kitchen", "O"), ("garden", "B-PLANT"), ("harbour", "B-SHIP")][number % 3]
        words = rng.choice([*twin.TOPICS[topic], *twin.FILLER], size=int(rng.integers(5, 9)))
        lines += [f"{word} {label if word in twin.TOPICS[topic] else 'O'}" for word in words]
        lines.append("")
    (root / "raw").mkdir()
    (root / "raw/all.conll").write_text("\n".join(lines))
    return {
        "task": "token-classification",
        "data": {"source": "conll", "path": "raw/all.conll"},
        "validation": {"min_per_class": 2},
        "model": {"pretrained": "toy-text", "max_tokens": 24},
    }


@pytest.mark.flow
def test_from_columns_to_a_registered_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clone.lay_out(tmp_path, columns(tmp_path))
    found = clone.run()
    assert found["metric"]["name"] == "entity_f1"
    assert {one["arm"] for one in found["arms"]} == {"scratch", "frozen", "full"}
    assert {one["name"] for one in found["baselines"]} == {"usual-tag", "nothing"}
    said = clone.predicted([{"text": "the rose, near a ship"}, {"text": "of and"}])
    assert all(set(one) == {"entities", "starts", "ends", "texts"} for one in said)
    for one, text in zip(said, ("the rose, near a ship", "of and"), strict=True):
        places = zip(one["starts"], one["ends"], strict=True)
        assert [text[start:end] for start, end in places] == one["texts"]
