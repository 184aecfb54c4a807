from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from steps import network
from steps.wordvectors import PADDING, WordVectors, describe

ENCODERS = ["mean", "cnn", "lstm"]
# Words of the table, and the length of a vector.
WORDS, DIM = 20, 6


def batch(*texts: list[int], tokens: int | None = None) -> dict[str, Tensor]:
    """Texts as ids, padded to the longest or to so many tokens."""
    width = tokens or max(map(len, texts))
    ids = torch.full((len(texts), width), PADDING)
    mask = torch.zeros((len(texts), width), dtype=torch.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def made(encoder: str, **changes: Any) -> WordVectors:
    torch.manual_seed(3)
    return WordVectors(describe(encoder, WORDS, DIM, **changes)).eval()


@pytest.mark.parametrize(("encoder", "features"), [("mean", DIM), ("cnn", 300), ("lstm", 256)])
def test_features_are_as_many_as_told(encoder: str, features: int) -> None:
    model = made(encoder)
    found = model(batch([2, 3, 4], [5]))
    assert found.shape == (2, features) == (2, model.features)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_a_text_gives_does_not_depend_on_its_batch(encoder: str) -> None:
    model = made(encoder)
    with torch.no_grad():
        # Padding is the row of zeros only at the start: training may move it, and it must not matter.
        model.embedding.weight[PADDING] = 7.0
        alone = model(batch([2, 3, 4]))
        beside = model(batch([2, 3, 4], [5, 6, 7, 8, 9, 10, 11], [5]))
        wide = model(batch([2, 3, 4], tokens=19))
    torch.testing.assert_close(beside[:1], alone)
    torch.testing.assert_close(wide, alone)


@pytest.mark.parametrize("encoder", ["cnn", "lstm"])
def test_the_order_of_words_matters_to_all_but_the_mean(encoder: str) -> None:
    forth, back = batch([2, 3, 4, 5]), batch([5, 4, 3, 2])
    with torch.no_grad():
        torch.testing.assert_close(made("mean")(forth), made("mean")(back))
        assert not torch.allclose(made(encoder)(forth), made(encoder)(back), atol=1e-4)


def test_the_mean_is_the_mean_of_the_vectors() -> None:
    model = made("mean")
    with torch.no_grad():
        found = model(batch([2, 3, 3], [4]))
    table = model.embedding.weight.detach()
    torch.testing.assert_close(found[0], (table[2] + 2 * table[3]) / 3)
    torch.testing.assert_close(found[1], table[4])


def test_convolutions_are_those_of_the_paper() -> None:
    """Every window of three words that lies within the text, and those that reach over its ends."""
    model = made("cnn")
    text = [2, 3, 4, 5]
    with torch.no_grad():
        found = model(batch(text, [2] * 9))[0, :100]
        first: Any = model.get_submodule("body.convolutions.0")
        vectors = functional.pad(model.embedding.weight[text].T, (1, 1))
        windows = [
            (first.weight * vectors[None, :, at : at + 3]).sum(dim=(1, 2)) + first.bias for at in range(4)
        ]
    torch.testing.assert_close(found, torch.relu(torch.stack(windows)).amax(dim=0))


def test_normalised_features_have_length_one() -> None:
    with torch.no_grad():
        plain, found = made("mean")(batch([2, 3], [4])), made("mean", normalise=True)(batch([2, 3], [4]))
    torch.testing.assert_close(found, plain / plain.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_text_without_words_gives_numbers(encoder: str) -> None:
    inputs = batch([2, 3], [4])
    inputs["attention_mask"][1] = 0
    with torch.no_grad():
        found = made(encoder)(inputs)
    assert not found.isnan().any()


def test_an_unknown_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="no encoder 'gru': take mean, cnn or lstm"):
        WordVectors(describe("gru", WORDS, DIM))


# ------------------------------------------------------------------------------------------ as a backbone


@pytest.mark.parametrize("encoder", ENCODERS)
def test_run_layer_by_layer_it_gives_what_it_gives_as_a_whole(encoder: str) -> None:
    backbone = network.architecture(describe(encoder, WORDS, DIM))
    names = [layer.name for layer in backbone.layers]
    assert names == (["embedding"] if encoder == "mean" else ["embedding", encoder])
    inputs = batch([2, 3, 4], [5])
    with torch.no_grad():
        whole = backbone.eval().model(inputs)
        flow: Any = inputs
        for cut in backbone.cuts[1:]:
            flow = backbone(flow, cut - 1, cut)
    torch.testing.assert_close(flow, whole)
    assert {name for layer in backbone.layers for name in map(id, layer.parameters())} == {
        id(parameter) for parameter in backbone.parameters()
    }


@pytest.mark.parametrize("encoder", ENCODERS)
def test_it_learns_which_words_matter(encoder: str) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, WORDS, (48, 7), generator=generator)
    labels = (ids == 2).any(dim=1).long()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    torch.manual_seed(0)
    model = network.classifier(network.architecture(describe(encoder, WORDS, DIM)), 2, 0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
