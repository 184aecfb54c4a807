from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steps import network
from steps.errors import WeightsError
from steps.network import ImageBackbone, Network, TextBackbone

VISION = {"library": "timm", "name": "test_efficientnet", "mean": [0.5] * 3, "std": [0.5] * 3}
TEXT = {
    "library": "transformers",
    "name": "bert",
    "config": {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
}


@pytest.fixture(scope="module", params=["vision", "text"])
def backbone(request: pytest.FixtureRequest) -> ImageBackbone | TextBackbone:
    return network.architecture(VISION if request.param == "vision" else TEXT)


def test_layers_hold_every_parameter_once(backbone: ImageBackbone | TextBackbone) -> None:
    model = Network(backbone, classes=4, dropout=0.1)
    found = [id(parameter) for _, layer in model.layers() for parameter in layer.parameters()]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())
    assert model.layers()[-1][0] == "head"


def test_layers_stand_from_bottom_to_top(backbone: ImageBackbone | TextBackbone) -> None:
    """A layer's output changes only what comes after it: seen by the order of their forward calls."""
    called: list[str] = []
    handles = [
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, layer in backbone.layers()
    ]
    if isinstance(backbone, ImageBackbone):
        backbone(torch.zeros(2, 3, 32, 32))
    else:
        ones = torch.ones(2, 5, dtype=torch.long)
        backbone({"input_ids": ones, "attention_mask": ones})
    for handle in handles:
        handle.remove()
    assert called == [name for name, _ in backbone.layers()]


def test_padding_changes_no_feature() -> None:
    text = network.architecture(TEXT).eval()
    short = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    padded = {
        "input_ids": torch.tensor([[5, 6, 7, 9, 9]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0]]),
    }
    torch.testing.assert_close(text(short), text(padded))


def tensors() -> dict[str, Tensor]:
    return dict(network.build_head(3, 2, 0.0).state_dict())


def test_load_exactly_wants_every_name_and_shape() -> None:
    head = network.build_head(3, 2, 0.0)
    network.load_exactly(head, tensors(), "here")

    missing = tensors()
    del missing["1.bias"]
    with pytest.raises(WeightsError, match=r"here: tensor '1\.bias' is missing"):
        network.load_exactly(head, missing, "here")
    with pytest.raises(WeightsError, match=r"'1\.bias' has shape \(5,\), the architecture needs \(2,\)"):
        network.load_exactly(head, tensors() | {"1.bias": torch.zeros(5)}, "here")
    with pytest.raises(WeightsError, match=r"no tensor 'extra' \(1 left over\)"):
        network.load_exactly(head, tensors() | {"extra": torch.zeros(1)}, "here")


def test_unknown_architecture_is_named() -> None:
    with pytest.raises(WeightsError, match="timm cannot build 'no_such_net'"):
        network.architecture({"library": "timm", "name": "no_such_net"})
    wrong = {"hidden_size": 10, "num_attention_heads": 3}
    with pytest.raises(WeightsError, match="transformers cannot build 'bert'"):
        network.architecture({"library": "transformers", "name": "bert", "config": wrong})


def test_state_sha256_knows_names_shapes_and_values() -> None:
    found = network.state_sha256({"a": torch.zeros(2), "b": torch.ones(3)})
    assert found == network.state_sha256({"b": torch.ones(3), "a": torch.zeros(2)})
    assert found != network.state_sha256({"a": torch.zeros(2), "c": torch.ones(3)})
    assert found != network.state_sha256({"a": torch.zeros(1, 2), "b": torch.ones(3)})
    assert found != network.state_sha256({"a": torch.zeros(2), "b": torch.zeros(3)})
