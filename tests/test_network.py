from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from steps import artifacts, network
from steps.errors import UserError, WeightsError
from steps.network import Backbone, ImageBackbone

VISION = {"library": "timm", "name": "test_efficientnet", "mean": [0.5] * 3, "std": [0.5] * 3}
VIT = {"library": "timm", "name": "test_vit", "img_size": 32}
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
DESCRIPTIONS: dict[str, dict[str, Any]] = {"vision": VISION, "vit": VIT, "text": TEXT}


@pytest.fixture(params=DESCRIPTIONS)
def description(request: pytest.FixtureRequest) -> dict[str, Any]:
    return DESCRIPTIONS[request.param]


@pytest.fixture
def backbone(description: dict[str, Any]) -> Backbone:
    torch.manual_seed(1)
    return network.architecture(description)


def inputs(backbone: Backbone, count: int = 4) -> network.Inputs:
    generator = torch.Generator().manual_seed(0)
    if isinstance(backbone, ImageBackbone):
        return torch.rand(count, 3, 32, 32, generator=generator)
    ids = torch.randint(5, 50, (count, 6), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_layers_hold_every_parameter_once(backbone: Backbone) -> None:
    model = network.classifier(backbone, classes=4, dropout=0.1)
    found = [id(parameter) for layer in model.layers() for parameter in layer.parameters()]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())
    assert [layer.name for layer in model.layers()][-1] == "head"
    assert len(model.layers()) == len(backbone.layers) + 1


def test_a_network_goes_on_from_any_cut(backbone: Backbone) -> None:
    model = network.classifier(backbone, classes=4, dropout=0.1).eval()
    given = inputs(backbone)
    with torch.inference_mode():
        logits = model(given)
        assert logits.shape == (4, 4)
        for cut in backbone.cuts:
            assert torch.equal(model(backbone(given, 0, cut), cut), logits)


def test_names_of_tensors_start_with_their_part(backbone: Backbone) -> None:
    names = list(network.classifier(backbone, classes=4, dropout=0.1).state_dict())
    assert names[-2:] == ["head.1.weight", "head.1.bias"]
    assert all(name.startswith("backbone.model.") for name in names[:-2])


def test_a_probe_is_a_network_without_its_backbone() -> None:
    probe = network.probe(5, 3, 0.2).eval()
    features = torch.rand(2, 5)
    assert torch.equal(probe(features), probe(features, 7))
    assert isinstance(probe.head, nn.Sequential)
    last = probe.head[1]
    torch.testing.assert_close(probe(features), features @ last.weight.T + last.bias)  # type: ignore[operator]
    assert [layer.name for layer in probe.layers()] == ["head"]
    assert len(probe.layers()[0].parameters()) == 2


def test_heads() -> None:
    linear, mlp = network.build_head(5, 3, 0.2), network.build_head(5, 3, 0.2, "mlp")
    assert [type(one).__name__ for one in linear] == ["Dropout", "Linear"]
    assert [type(one).__name__ for one in mlp] == ["Dropout", "Linear", "GELU", "Dropout", "Linear"]
    assert [tuple(parameter.shape) for parameter in mlp.parameters()] == [(5, 5), (5,), (3, 5), (3,)]
    assert {one.p for one in mlp if isinstance(one, nn.Dropout)} == {0.2}
    model = network.classifier(network.architecture(TEXT), 3, 0.2, "mlp")
    assert isinstance(model.head, nn.Sequential)
    assert len(model.head) == 5


def test_padding_changes_no_feature() -> None:
    text = network.architecture(TEXT).eval()
    short = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    padded = {
        "input_ids": torch.tensor([[5, 6, 7, 9, 9]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0]]),
    }
    torch.testing.assert_close(text(short), text(padded))


def step(backbone: Backbone) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """One training step's features, gradients and buffers."""
    torch.manual_seed(8)
    given = inputs(backbone)
    features = backbone(given)
    features.square().sum().backward()
    gradients = {
        name: parameter.grad for name, parameter in backbone.named_parameters() if parameter.grad is not None
    }
    assert len(gradients) == len(list(backbone.parameters()))
    return features, gradients, dict(backbone.named_buffers())


def test_checkpointing_changes_no_gradient_and_no_statistic(description: dict[str, Any]) -> None:
    """With dropout, stochastic depth and batch normalisation at work."""
    torch.manual_seed(1)
    plain = network.architecture(description, 0.3).train()
    frugal = copy.deepcopy(plain)
    frugal.checkpointing = True
    called: list[str] = []
    frugal.layers[1].modules[0].register_forward_pre_hook(lambda *_: called.append("layer 1"))
    features, gradients, buffers = step(plain)
    found = step(frugal)
    assert called == ["layer 1"] * 2, "it was not computed again"
    assert torch.equal(found[0], features)
    assert any(gradient.abs().sum() > 0 for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert torch.equal(found[1][name], gradient), name
    for name, buffer in buffers.items():
        assert torch.equal(found[2][name], buffer), name


def test_checkpointing_is_for_training_only() -> None:
    backbone = network.architecture(VISION)
    backbone.checkpointing = True
    called: list[int] = []
    backbone.layers[1].modules[0].register_forward_pre_hook(lambda *_: called.append(1))
    backbone.eval()(inputs(backbone)).sum().backward()
    assert len(called) == 1


@pytest.mark.parametrize("top", [0, 1, 3])
def test_reinitialise_draws_the_top_layers_anew(
    backbone: Backbone, description: dict[str, Any], top: int
) -> None:
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            tensor.add_(1)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    torch.manual_seed(77)
    fresh = network.architecture(description).state_dict()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    network.reinitialise(backbone, description, top, 77)
    assert torch.equal(torch.get_rng_state(), state)
    anew = tensors_of(backbone, len(backbone.layers) - top)
    assert bool(anew) == (top > 0)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, (fresh if name in anew else before)[name]), name


def tensors_of(backbone: Backbone, bottom: int) -> set[str]:
    """Names of parameters and buffers of all layers from `bottom` on."""
    inside: set[int] = set()
    for layer in backbone.layers[bottom:]:
        inside |= {id(one) for module in layer.modules for one in module.buffers()}
        inside |= {id(one) for one in layer.parameters()}
    everything = [*backbone.named_parameters(), *backbone.named_buffers()]
    return {name for name, one in everything if id(one) in inside} & set(backbone.state_dict())


def test_all_layers_can_be_reinitialised_and_no_more(
    backbone: Backbone, description: dict[str, Any], tmp_path: Path
) -> None:
    layers = len(backbone.layers)
    artifacts.write_json(tmp_path / "architecture.json", description)
    network.reinitialise(backbone, tmp_path, layers, 77)
    torch.manual_seed(77)
    fresh = network.architecture(description)
    assert network.state_sha256(backbone.state_dict()) == network.state_sha256(fresh.state_dict())
    with pytest.raises(UserError, match=rf"reinit_top is {layers + 1}, but .* has {layers} layers"):
        network.reinitialise(backbone, description, layers + 1, 77)


def test_reinitialise_takes_batch_statistics_along() -> None:
    backbone = network.architecture(VISION).train()
    backbone(inputs(backbone))
    network.reinitialise(backbone, VISION, len(backbone.layers), 3)
    means = [buffer for name, buffer in backbone.named_buffers() if name.endswith("running_mean")]
    assert means
    assert all(not mean.any() for mean in means)


def test_weights_fit_with_and_without_stochastic_depth(description: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(5)
    saved = network.architecture(description)
    artifacts.write_json(tmp_path / "architecture.json", description)
    save_file(
        {name: tensor.contiguous() for name, tensor in saved.model.state_dict().items()},
        tmp_path / "model.safetensors",
    )
    found = network.build_backbone(tmp_path, pretrained=True, drop_path=0.4)
    assert network.state_sha256(found.state_dict()) == network.state_sha256(saved.state_dict())
    random = network.build_backbone(tmp_path, pretrained=False)
    assert network.state_sha256(random.state_dict()) != network.state_sha256(saved.state_dict())


def test_a_folder_holds_the_model_and_nothing_else(description: dict[str, Any], tmp_path: Path) -> None:
    stored = network.stored(description).state_dict()
    assert stored.keys() == network.architecture(description).model.state_dict().keys()
    artifacts.write_json(tmp_path / "architecture.json", description)
    save_file(
        {name: tensor.contiguous() for name, tensor in stored.items()} | {"stranger": torch.zeros(1)},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(WeightsError, match=r"no tensor 'stranger' \(1 left over\)"):
        network.build_backbone(tmp_path, pretrained=True)


def test_the_top_is_drawn_anew_for_what_the_backbone_gives() -> None:
    """Of an encoder with a decoder other layers are built for pooled features than for tokens."""
    config = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    about = {"library": "transformers", "name": "t5", "config": config}
    backbone = network.architecture(about, gives="tokens")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    network.reinitialise(backbone, about, 1, 5)
    changed = {
        name for name, tensor in backbone.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed
    assert all(name.startswith("model.decoder.block.1.") for name in changed)


def test_stochastic_depth_where_there_is_none() -> None:
    with pytest.raises(UserError, match="'vgg11' has no stochastic depth: leave the arm's `drop_path` out"):
        network.architecture({"library": "timm", "name": "vgg11"}, 0.1)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert network.prepare_device().type == "cpu"
    for wanted in ("cuda", "mps"):
        with pytest.raises(UserError, match=rf"is {wanted}, but .* set `machine\.device: auto` or `cpu`"):
            network.prepare_device(wanted)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert network.prepare_device().type == "mps"
    assert network.prepare_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert network.prepare_device("auto").type == "cuda"
    assert network.prepare_device("mps").type == "mps"


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
