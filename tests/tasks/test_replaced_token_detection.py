from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from steps.kinds import KINDS
from steps.tasks import get
from steps.tasks.of_documents import IGNORED, DocumentSamples
from tests.tasks import pretraining
from tests.tasks.pretraining import BERT, MODEL, document

TASK = get("replaced-token-detection")
ELECTRA = BERT | {"embedding_size": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretraining.tokenizer_in(tmp_path_factory.mktemp("tokenizer"))


def samples(folder: Path, texts: list[str], **model: Any) -> DocumentSamples:
    found = TASK.samples(texts, MODEL.model_copy(update=model), folder)
    assert isinstance(found, DocumentSamples)
    return found


def test_words_are_replaced_by_words_of_the_same_document(folder: Path) -> None:
    found = samples(folder, [document(number) for number in range(8)], mask_fraction=0.5)
    for view in (None, 1, 2):
        for document_place in range(8):
            example = found.example(document_place, 0, view)
            seen, labels = example.inputs["input_ids"], np.asarray(example.targets["labels"])
            assert ((seen != example.true) == (labels == 1)).all()
            assert np.isin(seen[labels == 1], found.documents[document_place]).all()
            assert labels[[0, -1]].tolist() == [0, 0]
            assert 0 < labels.sum() <= 0.5 * len(labels)
    assert not torch.equal(found.batch([0], 1)["input_ids"], found.batch([0], 2)["input_ids"])


def test_padding_has_no_label(folder: Path) -> None:
    found = samples(folder, ["The cat sat.", "The old dog ran near the house."])
    assert (found.targets([0, 1])["labels"][0, 6:] == IGNORED).all()


def test_the_loss_is_that_of_transformers(folder: Path) -> None:
    from transformers import ElectraConfig, ElectraForPreTraining

    found = samples(folder, [document(number, 1 + number % 3) for number in range(6)])
    network = pretraining.network_of(TASK, pretraining.text_backbone(ELECTRA, "electra"), MODEL).eval()
    theirs: Any = ElectraForPreTraining(ElectraConfig(**ELECTRA))
    theirs.eval()
    theirs.electra.load_state_dict(network.backbone.model.state_dict())
    head: Any = network.head
    theirs.discriminator_predictions.dense.load_state_dict(head.dense.state_dict())
    theirs.discriminator_predictions.dense_prediction.load_state_dict(head.last.state_dict())
    inputs, targets = found.batch(list(range(6)), 1), found.targets(list(range(6)), 1)
    with torch.no_grad():
        ours = TASK.objective(pretraining.ARM, None, ["x"]).share(network(inputs), targets, targets)
        labels = targets["labels"].clamp(min=0)
        assert float(ours) == pytest.approx(float(theirs(**inputs, labels=labels).loss), abs=1e-5)


def test_the_shares_of_parts_add_up(folder: Path) -> None:
    found = samples(folder, [document(number, 1 + number) for number in range(7)])
    network = pretraining.network_of(TASK, pretraining.text_backbone(BERT), MODEL)
    whole, split = pretraining.shares(TASK, network, found, MODEL, 3)
    assert whole == pytest.approx(split, abs=1e-5)


def test_training_lowers_the_loss(folder: Path) -> None:
    found = samples(folder, [document(number) for number in range(16)])
    network = pretraining.network_of(TASK, pretraining.text_backbone(BERT), MODEL)
    losses = pretraining.fitted(TASK, network, found, MODEL, 60, 0.01)
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    said = TASK.predict(network, found, pretraining.ask(MODEL))
    assert isinstance(said, list)
    assert all(set(one) == set(KINDS[TASK.name].outputs) for one in said)
    scores = TASK.scores([None] * 16, said, ["x"])
    assert set(scores) >= set(KINDS[TASK.name].metrics)
    rows = pd.DataFrame(
        {"text": [document(number) for number in range(16)] * 2, "split": ["train", "test"] * 16}
    )
    assert TASK.baselines(rows, ["x"], Path()) == {}
    baselines: Any = TASK.baselines
    simple = baselines(rows, ["x"], Path(), model=MODEL, pretrained=folder)["always original"].said
    floor = TASK.scores([None] * 16, simple, ["x"])
    assert scores["token_accuracy"].mean() > floor["token_accuracy"].mean()


def test_the_baseline_is_a_cross_entropy(folder: Path) -> None:
    text = document(3)
    rows = pd.DataFrame({"text": [text, text], "split": ["train", "test"]})
    baselines: Any = TASK.baselines
    said = baselines(rows, ["x"], Path(), model=MODEL, pretrained=folder)["always original"].said[0]
    parts = samples(folder, [text]).judged()
    labels = np.concatenate([one.targets["labels"] for one in parts.examples(list(range(len(parts))))])
    share = labels.mean()
    assert said["loss"] == pytest.approx(-share * np.log(share) - (1 - share) * np.log(1 - share))
    assert said["correct"] == said["tokens"] - labels.sum()


def test_a_case_tells_found_missed_and_false_alarms(folder: Path) -> None:
    found = samples(folder, ["The cat sat on the mat and then slept."], mask_fraction=0.4)
    example = found.example(0, 0, None)
    labels = np.asarray(example.targets["labels"])
    replaced = np.flatnonzero(labels)
    guesses = np.zeros_like(labels)
    guesses[replaced[0]] = guesses[1 if 1 not in replaced else 2] = 1
    runs = found.runs(example, guesses)
    kinds = [kind for _, kind in runs]
    assert kinds.count("right") == 1
    assert kinds.count("missed") == len(replaced) - 1
    assert kinds.count("wrong") == 1
    assert [token for ids, _ in runs for token in ids] == example.inputs["input_ids"].tolist()
