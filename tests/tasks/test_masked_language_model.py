from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from steps import checkpoint, metrics
from steps.errors import DataError, UserError
from steps.kinds import KINDS
from steps.params import Model
from steps.tasks import get, of_documents
from steps.tasks.of_documents import (
    IGNORED,
    DocumentSamples,
    Vocabulary,
    masked,
    perplexity_shares,
    vocabulary_of,
)
from tests.tasks import pretraining
from tests.tasks.pretraining import BERT, MODEL, document

TASK = get("masked-language-model")
MASK = pretraining.SPECIAL.index("[MASK]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretraining.tokenizer_in(tmp_path_factory.mktemp("tokenizer"))


def samples(folder: Path, texts: list[str], **model: Any) -> DocumentSamples:
    found = TASK.samples(texts, MODEL.model_copy(update=model), folder)
    assert isinstance(found, DocumentSamples)
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# -------------------------------------------------------------------------------------------------- documents


def test_a_long_document_is_cut_into_parts_of_like_length(folder: Path) -> None:
    found = samples(folder, [document(0, 12), "The cat sat."])
    assert len(found) == 2
    lengths = np.diff(found.bounds[0]).ravel()
    assert lengths.sum() == len(found.documents[0]) > 4 * (MODEL.max_tokens - 2)
    assert lengths.max() - lengths.min() <= 1
    assert lengths.max() <= MODEL.max_tokens - 2
    assert found.bounds[1].tolist() == [[0, 4]]
    assert found.lengths == [lengths.max() + 2, 6]


def test_few_parts_of_a_very_long_document_are_judged(folder: Path) -> None:
    found = samples(folder, [document(0, 200), document(1, 1)]).judged()
    assert [document for document, _ in found.places] == [0] * of_documents.PARTS + [1]
    parts = [part for document, part in found.places if document == 0]
    assert parts[0] == 0
    assert len(set(np.diff(parts))) <= 2
    assert [len(one.true) for one in found.examples(list(range(len(found))))] == found.lengths


def test_every_view_has_masks_of_its_own_and_the_same_each_time(folder: Path) -> None:
    texts = [document(number) for number in range(8)]
    one, again = samples(folder, texts), samples(folder, texts)
    places = list(range(8))
    targets = one.targets(places, 1)
    assert same(one.batch(places, 1), again.batch(places, 1))
    assert same(targets, again.targets(places, 1))
    assert same(targets, one.targets(places, 1))
    assert not same(targets, one.targets(places, 2))
    assert same(one.batch(places), again.batch(places))
    # The order and the batch are nothing to it.
    alone = one.batch([3], 1)["input_ids"]
    assert torch.equal(one.batch(places, 1)["input_ids"][3, : alone.shape[1]], alone[0])


def test_documents_that_are_added_change_no_mask(folder: Path) -> None:
    before = samples(folder, [document(2), document(5, 30)])
    after = samples(folder, ["A new dog ran.", document(2), document(7), document(5, 30)])
    mine = [place for place, (document, _) in enumerate(after.judged().places) if document in (1, 3)]
    assert same(before.judged().batch(list(range(len(before.judged())))), after.judged().batch(mine))
    assert same(before.targets([0, 1]), after.targets([1, 3]))


def test_views_go_through_all_parts_of_a_document(folder: Path) -> None:
    found = samples(folder, [document(0, 12)])
    parts = len(found.bounds[0])
    beginnings = {tuple(found._drawn([0], view)[0].true) for view in range(40)}
    assert len(beginnings) == parts > 3


def test_what_fills_a_batch_up_is_no_label(folder: Path) -> None:
    found = samples(folder, ["The cat sat.", "The old dog ran near the house."])
    batch, targets = found.batch([0, 1]), found.targets([0, 1])
    assert batch["attention_mask"].tolist() == [[1] * 6 + [0] * 4, [1] * 10]
    assert batch["input_ids"][0, 6:].tolist() == [0] * 4
    assert (targets["labels"][0, 6:] == IGNORED).all()
    assert {one.dtype for one in (*batch.values(), *targets.values())} == {torch.int64}


def test_signs_of_special_tokens_in_a_text_are_words(folder: Path) -> None:
    found = samples(folder, ["The cat [SEP] sat on [MASK]."])
    assert not np.isin(found.documents[0], [2, 3, MASK]).any()


def test_documents_without_words(folder: Path) -> None:
    with pytest.raises(DataError, match="a document is empty"):
        samples(folder, ["  "])
    with pytest.raises(DataError, match="no word in the document that begins with '\\\\x01\\\\x02'"):
        samples(folder, ["The cat.", "\x01\x02"])
    with pytest.raises(UserError, match="max_tokens: 3 leaves no room"):
        TASK.samples(["The cat."], Model.model_construct(**{**MODEL.model_dump(), "max_tokens": 3}), folder)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a tokenizer with a token for hidden words"):
        samples(pretraining.tokenizer_in(tmp_path, causal=True), ["The cat."])


# ------------------------------------------------------------------------------------------------------ masks


VOCABULARY = Vocabulary((np.array([2]), np.array([3])), 0, MASK, np.arange(5, 33))


def test_masks_are_of_80_10_and_10_per_cent() -> None:
    ids = np.tile(np.arange(5, 33), 1000)
    seen, labels = masked(ids, np.arange(len(ids)), 0.15, VOCABULARY, np.random.default_rng(0))
    hidden = labels != IGNORED
    assert hidden.mean() == pytest.approx(0.15, abs=1e-3)
    assert (labels[hidden] == ids[hidden]).all()
    assert (seen[~hidden] == ids[~hidden]).all()
    assert (seen[hidden] == MASK).mean() == pytest.approx(0.8, abs=0.02)
    # One word in 28 that is drawn at random is the very one.
    assert (seen[hidden] == ids[hidden]).mean() == pytest.approx(0.1 + 0.1 / 28, abs=0.02)


@given(
    tokens=st.integers(1, 40),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
    first=st.integers(0, 5),
)
def test_special_tokens_are_never_hidden_and_something_always_is(
    tokens: int, fraction: float, seed: int, first: int
) -> None:
    ids = np.concatenate([np.full(first, 2), np.arange(tokens) % 28 + 5, [3]])
    places = np.arange(first, first + tokens)
    seen, labels = masked(ids, places, fraction, VOCABULARY, np.random.default_rng(seed))
    hidden = np.flatnonzero(labels != IGNORED)
    assert len(hidden) == max(1, round(fraction * tokens))
    assert set(hidden) <= set(places)
    assert not np.isin(seen[hidden], [0, 1, 2, 3]).any()


def test_frames_of_tokenizers(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    bert = AutoTokenizer.from_pretrained(folder)
    one, two = vocabulary_of(bert), vocabulary_of(bert, 2)
    assert [ids.tolist() for ids in one.frame] == [[2], [3]]
    assert [ids.tolist() for ids in two.frame] == [[2], [3], [3]]
    assert two.framed(np.array([7, 8]), np.array([9])).tolist() == [2, 7, 8, 3, 9, 3]
    assert (one.around, two.around, one.padding, one.mask) == (2, 3, 0, MASK)
    assert set(one.words) == set(range(5, 33))
    gpt = AutoTokenizer.from_pretrained(pretraining.tokenizer_in(tmp_path, causal=True))
    assert [ids.tolist() for ids in vocabulary_of(gpt).frame] == [[], []]
    assert [ids.tolist() for ids in vocabulary_of(gpt, begins=True).frame] == [[2], []]


# ------------------------------------------------------------------------------------------------ the network


def test_the_loss_is_that_of_transformers(folder: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    found = samples(folder, [document(number, 2) for number in range(6)])
    network = pretraining.network_of(TASK, pretraining.text_backbone(BERT), MODEL).eval()
    theirs: Any = BertForMaskedLM(BertConfig(**BERT))
    theirs.eval()
    theirs.bert.load_state_dict(network.backbone.model.state_dict())
    head: Any = network.head
    transform = theirs.cls.predictions.transform
    transform.dense.load_state_dict(head.transform[0].state_dict())
    transform.LayerNorm.load_state_dict(head.transform[2].state_dict())
    with torch.no_grad():
        head.bias.normal_()
        theirs.cls.predictions.bias.copy_(head.bias)
        inputs, targets = found.batch(list(range(6)), 1), found.targets(list(range(6)), 1)
        ours = TASK.objective(pretraining.ARM, None, ["x"]).share(network(inputs), targets, targets)
        assert float(ours) == pytest.approx(float(theirs(**inputs, **targets).loss), abs=1e-5)


def test_the_shares_of_parts_add_up(folder: Path) -> None:
    found = samples(folder, [document(number, 1 + number) for number in range(7)])
    network = pretraining.network_of(TASK, pretraining.text_backbone(BERT), MODEL)
    whole, split = pretraining.shares(TASK, network, found, MODEL, 3)
    assert whole == pytest.approx(split, abs=1e-5)


def test_the_embeddings_are_stored_once(folder: Path, tmp_path: Path) -> None:
    network = pretraining.network_of(TASK, pretraining.text_backbone(BERT), MODEL)
    checkpoint.save_weights(network, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert sorted(name for name in stored if name.startswith("head.")) == [
        "head.bias", "head.transform.0.bias", "head.transform.0.weight", "head.transform.2.bias",
        "head.transform.2.weight",
    ]  # fmt: skip
    head: Any = network.head
    embeddings: Any = network.backbone.model.get_input_embeddings()  # type: ignore[operator]
    assert head({"hidden": torch.zeros(1, 1, 32)})["weight"] is embeddings.weight
    assert len({id(one) for one in network.parameters()}) == len(list(network.parameters()))


def test_training_lowers_the_loss_and_words_are_guessed(folder: Path) -> None:
    found = samples(folder, [document(number) for number in range(16)])
    network = pretraining.network_of(TASK, pretraining.text_backbone(BERT), MODEL)
    before = TASK.predict(network, found, pretraining.ask(MODEL))
    losses = pretraining.fitted(TASK, network, found, MODEL, 60, 0.01)
    assert np.mean(losses[-5:]) < 0.75 * losses[0]
    after = TASK.predict(network, found, pretraining.ask(MODEL))
    old, new = (TASK.scores([None] * 16, said, ["x"]) for said in (before, after))
    assert new["token_accuracy"].mean() > old["token_accuracy"].mean() + 0.2
    assert new["loss"].mean() < old["loss"].mean()
    assert set(new) == set(KINDS[TASK.name].metrics)


def test_what_is_said_of_documents(folder: Path) -> None:
    found = samples(folder, [document(0, 12), "The cat sat."])
    network = pretraining.network_of(TASK, pretraining.text_backbone(BERT), MODEL)
    said = TASK.predict(network, found, pretraining.ask(MODEL))
    assert isinstance(said, list)
    assert all(set(one) == set(KINDS[TASK.name].outputs) for one in said)
    labels = [one.targets["labels"] for one in found.judged().examples(list(range(len(found.judged()))))]
    hidden = [int((np.asarray(one) != IGNORED).sum()) for one in labels]
    assert [one["tokens"] for one in said] == [sum(hidden[:-1]), hidden[-1]]
    # By hand, with all logits.
    total = 0.0
    for example in found.judged().examples(list(range(len(hidden) - 1))):
        inputs, targets = found.inputs([example]), found.labels([example])
        with torch.inference_mode():
            outputs = network(inputs)
            logits = outputs["hidden"] @ outputs["weight"].T + outputs["bias"]
            total += float(torch.nn.functional.cross_entropy(
                logits[0], targets["labels"][0], ignore_index=IGNORED, reduction="sum"
            ))  # fmt: skip
    assert said[0]["loss"] == pytest.approx(total / sum(hidden[:-1]), abs=1e-5)


def test_a_case_shows_what_was_hidden(folder: Path) -> None:
    found = samples(folder, ["The cat sat on the mat and then slept."], mask_fraction=0.3)
    network = pretraining.network_of(TASK, pretraining.text_backbone(BERT), MODEL)
    said = TASK.predict(network, found, pretraining.ask(MODEL))[0]
    case = TASK.case(None, said, Path())
    truth = "".join(piece for piece, kind in case.marks if kind != "wrong")
    assert truth == " [CLS] the cat sat on the mat and then slept. [SEP]".replace(".", " .")
    kinds = [kind for _, kind in case.marks]
    assert kinds.count("missed") == kinds.count("wrong")
    assert kinds.count("missed") + kinds.count("right") == said["tokens"] == 3


def test_perplexity_is_of_the_mean_loss() -> None:
    loss = np.array([1.0, 2.0, 4.5])
    found = perplexity_shares(loss)
    assert found.mean() == pytest.approx(math.exp(2.5))
    without = np.exp([3.25, 2.75, 1.5])
    assert found == pytest.approx(metrics.shares_of(math.exp(2.5), without))
    assert perplexity_shares(np.array([1.5])) == pytest.approx([math.exp(1.5)])


def test_the_unigram_baseline_is_a_cross_entropy(folder: Path) -> None:
    rows = pd.DataFrame({
        "text": ["The cat sat.", "The dog ran on the mat.", "The cat ran."],
        "split": ["train", "train", "test"],
    })  # fmt: skip
    assert TASK.baselines(rows, ["x"], Path()) == {}
    found: Any = TASK.baselines
    one = found(rows, ["x"], Path(), model=MODEL, pretrained=folder)["unigram"].said[0]
    counts = np.ones(33)
    for word in ["the", "cat", "sat", ".", "the", "dog", "ran", "on", "the", "mat", "."]:
        counts[5 + pretraining.WORDS.index(word)] += 1
    shares = counts / counts.sum()
    test = samples(folder, ["The cat ran."])
    labels = np.asarray(test.judged().examples([0])[0].targets["labels"])
    labels = labels[labels != IGNORED]
    assert one["loss"] == pytest.approx(-np.log(shares[labels]).mean())
    assert one["tokens"] == len(labels)
    assert one["correct"] == int((labels == 5).sum())


def test_backbones_without_words_are_refused() -> None:
    backbone = pretraining.image_backbone()
    with pytest.raises(UserError, match="has no embeddings of words"):
        TASK.head(backbone, ["x"], MODEL, pretraining.ARM)
