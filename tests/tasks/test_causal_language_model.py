from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from steps.errors import DataError, UserError
from steps.kinds import KINDS
from steps.tasks import get
from steps.tasks.of_documents import IGNORED, DocumentSamples
from tests.tasks import pretraining
from tests.tasks.pretraining import BERT, GPT2, MODEL, document

TASK = get("causal-language-model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretraining.tokenizer_in(tmp_path_factory.mktemp("tokenizer"), causal=True)


def samples(folder: Path, texts: list[str]) -> DocumentSamples:
    found = TASK.samples(texts, MODEL, folder)
    assert isinstance(found, DocumentSamples)
    return found


def test_every_word_is_the_label_of_the_one_before(folder: Path) -> None:
    found = samples(folder, ["The cat sat.", "The dog"])
    ids = found.batch([0, 1])["input_ids"]
    # A beginning stands before the first word, so that it has something to be guessed from.
    assert ids[0].tolist()[0] == ids[1].tolist()[0] == 2
    labels = found.targets([0, 1])["labels"]
    assert labels[0].tolist() == [*ids[0, 1:].tolist(), IGNORED]
    assert labels[1].tolist() == [*ids[1, 1:3].tolist(), IGNORED, IGNORED, IGNORED]


def test_a_view_is_a_part_as_it_is(folder: Path) -> None:
    found = samples(folder, [document(0, 12)])
    whole = found.documents[0].tolist()
    for view in range(5):
        part = found.batch([0], view)["input_ids"][0, 1:].tolist()
        assert any(whole[at : at + len(part)] == part for at in range(len(whole)))
    assert len({tuple(found.batch([0], view)["input_ids"][0].tolist()) for view in range(20)}) > 2


def test_the_loss_is_that_of_transformers(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    found = samples(folder, [document(number, 2) for number in range(6)])
    network = pretraining.network_of(TASK, pretraining.text_backbone(GPT2, "gpt2"), MODEL).eval()
    theirs: Any = GPT2LMHeadModel(GPT2Config(**GPT2))
    theirs.eval()
    theirs.transformer.load_state_dict(network.backbone.model.state_dict())
    inputs, targets = found.batch(list(range(6))), found.targets(list(range(6)))
    # Transformers shifts the labels itself.
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORED)
    with torch.no_grad():
        ours = TASK.objective(pretraining.ARM, None, ["x"]).share(network(inputs), targets, targets)
        assert float(ours) == pytest.approx(float(theirs(**inputs, labels=labels).loss), abs=1e-5)


def test_the_shares_of_parts_add_up(folder: Path) -> None:
    found = samples(folder, [document(number, 1 + number) for number in range(7)])
    network = pretraining.network_of(TASK, pretraining.text_backbone(GPT2, "gpt2"), MODEL)
    whole, split = pretraining.shares(TASK, network, found, MODEL, 2)
    assert whole == pytest.approx(split, abs=1e-5)


def test_networks_that_see_what_comes_are_refused() -> None:
    with pytest.raises(UserError, match="sees the words that it is to predict"):
        TASK.head(pretraining.text_backbone(BERT), ["x"], MODEL, pretraining.ARM)


def test_whether_it_sees_what_comes_is_found_out_without_a_trace() -> None:
    backbone = pretraining.text_backbone(GPT2, "gpt2").train()
    before = torch.get_rng_state()
    TASK.head(backbone, ["x"], MODEL, pretraining.ARM)
    assert backbone.training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_document_of_one_token_without_a_beginning(tmp_path: Path) -> None:
    folder = pretraining.tokenizer_in(tmp_path, causal=True)
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("bos_token", "eos_token"))
    found = samples(folder, ["cat", "The cat"])
    assert found.batch([1])["input_ids"].shape == (1, 2)
    with pytest.raises(DataError, match="one token alone"):
        found.batch([0])


def test_training_lowers_the_loss(folder: Path) -> None:
    found = samples(folder, [document(number) for number in range(16)])
    network = pretraining.network_of(TASK, pretraining.text_backbone(GPT2, "gpt2"), MODEL)
    losses = pretraining.fitted(TASK, network, found, MODEL, 40, 0.01)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    said = TASK.predict(network, found, pretraining.ask(MODEL))
    assert isinstance(said, list)
    assert all(set(one) == set(KINDS[TASK.name].outputs) for one in said)
    # Every token of every part but the beginnings.
    assert [one["tokens"] for one in said] == [len(ids) for ids in found.documents]
    found_scores = TASK.scores([None] * 16, said, ["x"])
    assert found_scores["token_accuracy"].mean() > 0.5
    assert found_scores["perplexity"].mean() == pytest.approx(np.exp(found_scores["loss"].mean()))
    marks = TASK.case(None, said[0], Path()).marks
    assert {kind for _, kind in marks} == {"", "right"}
    words = "".join(piece for piece, _ in marks).split()
    assert words[:6] == ["[CLS]", *document(0).lower().split()[:5]]


def test_the_unigram_baseline_knows_every_word(folder: Path) -> None:
    rows = pd.DataFrame({"text": [document(0), "The cat sat."], "split": ["train", "test"]})
    found = TASK.baselines(rows, ["x"], Path(), model=MODEL, pretrained=folder)
    said = found["unigram"].said[0]
    assert said["tokens"] == 4
    assert 0 < said["loss"] < np.log(33) + 1
