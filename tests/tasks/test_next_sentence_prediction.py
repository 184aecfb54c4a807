from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steps.errors import DataError, UserError
from steps.kinds import KINDS
from steps.tasks import get
from steps.tasks.next_sentence_prediction import _END, FOLLOWS, STRANGE, SentenceSamples, _cuts, _runs
from steps.tasks.of_documents import IGNORED
from tests.tasks import pretraining
from tests.tasks.pretraining import BERT, GPT2, MODEL, document

TASK = get("next-sentence-prediction")
TEXTS = [document(number) for number in range(16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretraining.tokenizer_in(tmp_path_factory.mktemp("tokenizer"))


def samples(folder: Path, texts: list[str]) -> SentenceSamples:
    found: Any = TASK.samples(texts, MODEL, folder)
    assert isinstance(found, SentenceSamples)
    return found


# -------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One two. Three four! Five?", 3),
        ("It costs 3.5 pounds. He paid.", 2),
        ('He said: "Go." She went.', 2),
        ("A headline without a stop\n\nThen the text.", 2),
        ("e.g. this is one", 1),
        ("Is it? \u201cYes.\u201d 42 people came.", 3),
        ("\u00c9t\u00e9. \u00c9cole.", 2),
    ],
)
def test_where_sentences_end(text: str, sentences: int) -> None:
    pieces = [piece for piece in _END.split(text) if piece.strip()]
    assert len(pieces) == sentences, pieces


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(2, 40))
def test_parts_are_runs_of_two_sentences_at_least(lengths: list[int], room: int) -> None:
    cuts = _cuts(lengths, room)
    assert cuts[0] == 0
    assert cuts[-1] == sum(lengths)
    assert np.diff(cuts).max() <= max(room // 2, 1)
    runs = _runs(cuts, room)
    assert (runs[:, 1] - runs[:, 0] <= room).all()
    assert runs[0, 0] == 0
    assert runs[-1, 1] == sum(lengths)
    # Nothing is left out between them.
    assert (runs[1:, 0] <= runs[:-1, 1]).all()
    inside = [((cuts > start) & (cuts < stop)).sum() for start, stop in runs]
    assert min(inside) >= 1 or sum(lengths) == 1


# ------------------------------------------------------------------------------------------------------ pairs


def test_half_of_the_second_texts_are_strangers(folder: Path) -> None:
    found = samples(folder, TEXTS)
    labels = torch.cat([found.targets(list(range(16)), view)["follows"] for view in range(40)])
    assert float(labels.float().mean()) == pytest.approx(0.5, abs=0.06)
    for view in (None, *range(20)):
        for place in range(16):
            example = found.example(place, 0, view)
            kinds, true = example.inputs["token_type_ids"], example.true
            begin = int(np.flatnonzero(kinds)[0])
            assert true[[0, begin - 1, -1]].tolist() == [2, 3, 3]
            assert len(true) <= MODEL.max_tokens
            whole = found.documents[place].tolist()
            both = [*true[1 : begin - 1].tolist(), *true[begin:-1].tolist()]
            is_run = any(whole[at : at + len(both)] == both for at in range(len(whole)))
            if example.targets["follows"] == FOLLOWS:
                assert is_run
            second = true[begin:-1].tolist()
            assert any(
                other[at : at + len(second)] == second
                for other in (one.tolist() for one in found.documents)
                for at in range(len(other))
            )
            hidden = np.flatnonzero(np.asarray(example.targets["labels"]) != IGNORED)
            assert not np.isin(true[hidden], [2, 3]).any()


def test_where_it_is_judged_only_a_neighbours_strangers_change(folder: Path) -> None:
    before = samples(folder, TEXTS[:8])
    after = samples(folder, [*TEXTS[:8], "A new bird sang. The old lake slept."])
    changed = [
        place
        for place in range(8)
        if any(
            not np.array_equal(before.example(place, part, None).true, after.example(place, part, None).true)
            for part in range(len(before.bounds[place]))
        )
    ]
    assert len(changed) <= 1
    for place in set(range(8)) - set(changed):
        for part in range(len(before.bounds[place])):
            one, other = (found.example(place, part, None) for found in (before, after))
            assert np.array_equal(one.inputs["input_ids"], other.inputs["input_ids"])
            assert np.array_equal(one.targets["labels"], other.targets["labels"])


def test_the_same_view_is_the_same_pair(folder: Path) -> None:
    one, again = samples(folder, TEXTS), samples(folder, TEXTS)
    places = list(range(16))
    for view in (None, 3):
        assert torch.equal(one.batch(places, view)["input_ids"], again.batch(places, view)["input_ids"])
        assert torch.equal(one.targets(places, view)["labels"], again.targets(places, view)["labels"])
    assert not torch.equal(one.targets(places, 3)["follows"], one.targets(places, 4)["follows"])


def test_a_document_alone_has_no_strangers(folder: Path) -> None:
    alone = samples(folder, [TEXTS[0]])
    assert all(int(alone.targets([0], view)["follows"]) == FOLLOWS for view in range(20))
    # Nor have copies of it.
    twice = samples(folder, [TEXTS[0], TEXTS[0]])
    assert twice.targets([0, 1], 3)["follows"].tolist() == [FOLLOWS, FOLLOWS]


def test_documents_of_one_word_and_of_none(folder: Path) -> None:
    found = samples(folder, ["cat", "dog ran"])
    assert found.example(0, 0, 1).true.tolist()[:2] == [2, 5 + pretraining.WORDS.index("cat")]
    assert found.bounds[0].tolist() == [[0, 1]]
    with pytest.raises(DataError, match="no word in the document"):
        samples(folder, ["\x01"])


# ------------------------------------------------------------------------------------------------ the network


def test_the_loss_is_that_of_transformers(folder: Path) -> None:
    from transformers import BertConfig, BertForPreTraining

    found = samples(folder, TEXTS)
    network = pretraining.network_of(TASK, pretraining.text_backbone(BERT), MODEL).eval()
    theirs: Any = BertForPreTraining(BertConfig(**BERT))
    theirs.eval()
    head: Any = network.head
    pooler: Any = theirs.bert.pooler
    pooler.dense.load_state_dict(head.pooler.state_dict())
    theirs.bert.load_state_dict(network.backbone.model.state_dict(), strict=False)
    theirs.cls.seq_relationship.load_state_dict(head.last.state_dict())
    transform = theirs.cls.predictions.transform
    transform.dense.load_state_dict(head.words.transform[0].state_dict())
    transform.LayerNorm.load_state_dict(head.words.transform[2].state_dict())
    inputs, targets = found.batch(list(range(16)), 1), found.targets(list(range(16)), 1)
    assert set(targets["follows"].tolist()) == {FOLLOWS, STRANGE}
    with torch.no_grad():
        ours = TASK.objective(pretraining.ARM, None, ["x"]).share(network(inputs), targets, targets)
        their = theirs(**inputs, labels=targets["labels"], next_sentence_label=targets["follows"]).loss
    assert float(ours) == pytest.approx(float(their), abs=1e-5)


def test_the_shares_of_parts_add_up(folder: Path) -> None:
    network = pretraining.network_of(TASK, pretraining.text_backbone(BERT), MODEL)
    whole, split = pretraining.shares(TASK, network, samples(folder, TEXTS), MODEL, 5)
    assert whole == pytest.approx(split, abs=1e-5)


def test_training_lowers_the_loss_and_tells_strangers(folder: Path) -> None:
    found = samples(folder, TEXTS)
    network = pretraining.network_of(TASK, pretraining.text_backbone(BERT), MODEL)
    losses = pretraining.fitted(TASK, network, found, MODEL, 150, 0.01)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    said = TASK.predict(network, found, pretraining.ask(MODEL))
    assert isinstance(said, list)
    assert all(set(one) == set(KINDS[TASK.name].outputs) for one in said)
    scores = TASK.scores([None] * 16, said, ["x"])
    assert set(scores) == set(KINDS[TASK.name].metrics)
    parts = found.judged()
    assert sum(one["pairs"] for one in said) == len(parts)
    assert scores["accuracy"].mean() > 0.75
    case = TASK.case(None, said[0], Path())
    assert case.truth.endswith(f"{said[0]['pairs']} pairs")


def test_what_is_said_is_the_sum_of_both_losses(folder: Path) -> None:
    # Documents of one pair each: the loss of all of them, each by itself, is what training would minimise.
    found = samples(folder, [document(number, 1) for number in range(6)])
    network = pretraining.network_of(TASK, pretraining.text_backbone(BERT), MODEL).eval()
    criterion = TASK.objective(pretraining.ARM, None, ["x"])
    said: Any = TASK.predict(network, found, pretraining.ask(MODEL))
    for place in range(6):
        inputs, targets = found.batch([place]), found.targets([place])
        with torch.inference_mode():
            expected = float(criterion.share(network(inputs), targets, targets))
        assert said[place]["loss"] == pytest.approx(expected, abs=1e-5)
        assert said[place]["pairs"] == 1


def test_the_baseline_tosses_a_coin(folder: Path) -> None:
    rows = pd.DataFrame({"text": TEXTS, "split": ["train", "test"] * 8})
    assert TASK.baselines(rows, ["x"], Path()) == {}
    baselines: Any = TASK.baselines
    said = baselines(rows, ["x"], Path(), model=MODEL, pretrained=folder)["unigram"].said
    assert len(said) == 8
    scores = TASK.scores([None] * 8, said, ["x"])
    assert scores["loss"].min() > np.log(2)
    assert 0.2 < scores["accuracy"].mean() < 0.8


def test_networks_of_one_text_are_refused() -> None:
    backbone = pretraining.text_backbone(GPT2, "gpt2")
    with pytest.raises(UserError, match="cannot tell a first text from a second"):
        TASK.head(backbone, ["x"], MODEL, pretraining.ARM)
