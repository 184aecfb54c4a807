"""Every family of backbones, with small models of timm's own and a small BERT."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from steps import families, network
from steps.errors import UserError
from steps.families import Part
from steps.network import Backbone, Inputs

BERT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
# Small models and how many layers they have, counted by hand from their printed structure.
SMALL = {
    "test_efficientnet": 6,
    "mobilenetv3_small_050": 13,
    "regnetx_002": 14,
    "test_resnet": 5,
    "test_vit": 7,
    "test_vit2": 9,  # pooled by the mean
    "test_vit3": 10,  # pooled by attention
    "test_convnext": 10,
    "test_convnext3": 5,
    "bert": 4,
}
WHOLE = ("test_byobnet", "test_nfnet", "test_vit_relpos", "test_mambaout")
REAL = {
    "tf_efficientnet_lite0": 17,
    "resnet18": 9,
    "vit_tiny_patch16_224": 13,
    "convnext_atto": 13,
    "minilm": 7,
}
MINILM = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}


def described(name: str) -> dict[str, Any]:
    if name in ("bert", "minilm"):
        return {"library": "transformers", "name": "bert", "config": BERT if name == "bert" else MINILM}
    # 32 pixels are enough for all but those whose windows or positions have a fixed size.
    sized = {"img_size": 64} if name in ("test_vit", "test_vit2", "test_vit3", "vit_tiny_patch16_224") else {}
    return {"library": "timm", "name": name, **sized}


def made(name: str) -> Backbone:
    """A backbone in eval mode none of whose tensors is zero or one by its initialiser."""
    torch.manual_seed(4)
    backbone = network.architecture(described(name))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        for buffer_name, buffer in backbone.named_buffers():
            if buffer_name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return backbone.eval()


def inputs(backbone: Backbone, count: int = 3) -> Inputs:
    generator = torch.Generator().manual_seed(6)
    if backbone.name.startswith("bert"):
        mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])[:count]
        return {
            "input_ids": torch.randint(5, 50, (count, 5), generator=generator),
            "attention_mask": mask,
        }
    patch = getattr(backbone.model, "patch_embed", None)
    side = (patch.img_size[0] if patch is not None else 64) if backbone.name not in WHOLE else 160
    return torch.rand(count, 3, side, side, generator=generator)


def by_library(backbone: Backbone, given: Inputs) -> Tensor:
    """The library's own forward; of a BERT the mean over the real tokens, in a loop."""
    if isinstance(given, dict):
        hidden = backbone.model(**given).last_hidden_state
        rows = [
            row[mask.bool()].sum(dim=0) / mask.sum()
            for row, mask in zip(hidden, given["attention_mask"], strict=True)
        ]
        return torch.stack(rows)
    if backbone.family.channels_last:
        given = given.contiguous(memory_format=torch.channels_last)
    found: Tensor = backbone.model(given)
    return found


@pytest.fixture(scope="module", params=SMALL)
def small(request: pytest.FixtureRequest) -> tuple[str, Backbone]:
    return request.param, made(request.param)


def assert_every_cut_works(backbone: Backbone) -> None:
    given = inputs(backbone)
    with torch.inference_mode():
        expected = by_library(backbone, given)
        whole = backbone(given)
        if isinstance(given, dict):
            # Padding is summed as zeros here and not at all there, which may round otherwise.
            torch.testing.assert_close(whole, expected)
        else:
            assert torch.equal(whole, expected), "not what the library gives"
        assert whole.shape == (3, backbone.features)
        assert not torch.equal(whole[0], whole[1]), "a constant network proves nothing"
        for cut in backbone.cuts:
            below = backbone(given, 0, cut)
            assert torch.equal(backbone(below, cut), whole), cut
        for start, stop in zip(backbone.cuts, backbone.cuts[1:], strict=False):
            given = backbone(given, start, stop)
        assert equal(given, whole)


def test_any_cut_gives_what_the_library_gives(small: tuple[str, Backbone]) -> None:
    name, backbone = small
    assert backbone.cuts == tuple(range(SMALL[name] + 1))
    assert len(backbone.layers) == SMALL[name]
    assert_every_cut_works(backbone)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_any_cut_of_real_architectures(name: str) -> None:
    backbone = made(name)
    assert len(backbone.layers) == REAL[name]
    assert_every_cut_works(backbone)


def test_hidden_states_are_transformers_own() -> None:
    backbone = made("bert")
    for given in (inputs(backbone), inputs(backbone, 1)):  # with padding, and with none
        assert isinstance(given, dict)
        given = {**given, "token_type_ids": torch.arange(5).remainder(2).expand(len(given["input_ids"]), 5)}
        with torch.inference_mode():
            expected = backbone.model(**given, output_hidden_states=True).hidden_states
            for cut in backbone.cuts[1:-1]:
                found = backbone(given, 0, cut)
                assert set(found) == {"hidden", "attention_mask"}
                assert torch.equal(found["hidden"], expected[cut - 1]), cut


def test_each_tensor_is_in_one_layer(small: tuple[str, Backbone]) -> None:
    backbone = small[1]
    found = [id(parameter) for layer in backbone.layers for parameter in layer.parameters()]
    assert sorted(found) == sorted(id(parameter) for parameter in backbone.parameters())
    # Modules without parameters too: all are somewhere, so that modes can be set layer by layer.
    modules = [id(one) for layer in backbone.layers for module in layer.modules for one in module.modules()]
    leaves = [id(one) for one in backbone.modules() if not list(one.children())]
    assert len(modules) == len(set(modules))
    assert set(leaves) <= set(modules)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "bert"])
def test_layers_are_timms_groups(name: str) -> None:
    """Found by timm's patterns over names of parameters, an independent way."""
    model = made(name).model
    matcher = model.group_matcher()  # type: ignore[operator]
    groups = [set(group) for group in group_parameters(model, matcher).values()]
    names = {id(parameter): parameter_name for parameter_name, parameter in model.named_parameters()}
    layers = [
        {names[id(one)] for one in part.layer().parameters()} for part in families.of(model).parts(model)
    ]
    assert layers[:-1] == groups[: len(layers) - 1]
    assert layers[-1] == set().union(*groups[len(layers) - 1 :])


def test_a_layer_changes_only_what_lies_above(small: tuple[str, Backbone]) -> None:
    backbone = copy.deepcopy(small[1])
    given = inputs(backbone)
    with torch.inference_mode():
        before = [backbone(given, 0, cut) for cut in backbone.cuts]
    for at, layer in enumerate(backbone.layers):
        tensors = [*layer.parameters(), *running(layer.modules)]
        kept = [tensor.detach().clone() for tensor in tensors]
        with torch.no_grad():
            for tensor in tensors:
                tensor.add_(0.1 * torch.rand_like(tensor))
            below, above = backbone(given, 0, at), backbone(given, 0, at + 1)
            for tensor, old in zip(tensors, kept, strict=True):
                tensor.copy_(old)
        assert equal(below, before[at]), layer.name
        assert not equal(above, before[at + 1]), layer.name


def running(modules: tuple[nn.Module, ...]) -> list[Tensor]:
    return [
        buffer
        for module in modules
        for name, buffer in module.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    ]


def equal(left: Inputs, right: Inputs) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return all(torch.equal(left[name], right[name]) for name in left)
    assert isinstance(left, Tensor)
    assert isinstance(right, Tensor)
    return torch.equal(left, right)


@pytest.mark.parametrize("name", WHOLE)
def test_other_models_run_as_a_whole(name: str) -> None:
    backbone = made(name)
    layers = backbone.layers
    assert backbone.cuts == (0, len(layers))
    assert len(layers) > 1
    found = [id(parameter) for layer in layers for parameter in layer.parameters()]
    assert sorted(found) == sorted(id(parameter) for parameter in backbone.parameters())
    given = inputs(backbone, 2)
    with torch.inference_mode():
        whole = backbone(given)
        assert torch.equal(whole, by_library(backbone, given))
        assert whole.shape == (2, backbone.features)
        assert backbone(whole, len(layers)) is whole
        with pytest.raises(AssertionError):
            backbone(given, 0, 1)


def test_layers_of_other_models_are_timms_groups() -> None:
    """What belongs to no group of timm's, the last norm here, is the last layer's."""
    model = timm.create_model("test_vit_relpos", num_classes=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parts = families.of(model).parts(model)
    layers = [{names[id(one)] for one in part.layer().parameters()} for part in parts]
    assert layers[0] == {"patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token"} & set(
        names.values()
    )
    assert len(layers) == 1 + len(model.blocks)
    for index, layer in enumerate(layers[1:]):
        assert {name for name in names.values() if name.startswith(f"blocks.{index}.")} <= layer
    assert {"fc_norm.weight", "fc_norm.bias"} <= layers[-1]


def test_a_class_derived_from_a_known_one_is_not_cut() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=0, depth=1, img_size=32)
    assert families.of(model).whole


def test_a_copy_stands_on_its_own(small: tuple[str, Backbone]) -> None:
    backbone = small[1]
    given = inputs(backbone)
    copied = copy.deepcopy(backbone)
    with torch.inference_mode():
        before = backbone(given)
        for layer in copied.layers:
            for parameter in layer.parameters():
                parameter.zero_()
        assert torch.equal(backbone(given), before)
        assert not torch.equal(copied(given), before)


def test_layers_know_modules_put_in_later() -> None:
    backbone = made("test_vit")
    norm = nn.LayerNorm(64)
    backbone.model.norm = norm
    assert norm in backbone.layers[-1].modules
    assert any(norm.weight is parameter for parameter in backbone.layers[-1].parameters())


def test_a_part_runs_its_steps_in_order() -> None:
    double = nn.Linear(1, 1, bias=False)
    nn.init.constant_(double.weight, 2.0)
    loose = nn.Parameter(torch.ones(1))
    part = Part("one", (double, lambda flow: flow + 1), (None,), (None, loose))
    assert part(torch.tensor([[3.0]])).item() == 7
    assert part.layer().modules == (double,)
    assert part.layer().loose == (loose,)
    assert part.layer().parameters() == [double.weight, loose]


def test_stochastic_depth_grows_from_bottom_to_top(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block l of L is left out with probability rate * l / L; the others' share is scaled up."""
    rates: list[float] = []

    def noted(tensor: Tensor, rate: float, mode: str, training: bool) -> Tensor:
        assert (mode, training) == ("row", True)
        rates.append(rate)
        return tensor

    monkeypatch.setattr("torchvision.ops.stochastic_depth", noted)
    backbone = network.architecture(described("bert"), 0.3)
    backbone.eval()(inputs(backbone))
    assert rates == []
    backbone.train()(inputs(backbone))
    assert rates == pytest.approx([0.1, 0.2, 0.3])
    # A frozen block is in eval mode, and always there.
    for module in backbone.layers[1].modules:
        module.eval()
    rates.clear()
    backbone(inputs(backbone))
    assert rates == pytest.approx([0.2, 0.3])


def test_stochastic_depth_leaves_out_whole_layers_for_some_samples() -> None:
    """A sample's activations after the top layer are those before it, or moved by 1 / (1 - p) of the step."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(2)
    backbone = network.architecture({**described("bert"), "config": BERT | off}, 0.5)
    ids = torch.randint(5, 50, (1, 4)).expand(64, 4)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        flow = backbone.eval()(given, 0, 3)
        pooled = flow["hidden"].mean(dim=1)
        step = backbone(flow, 3) - pooled
        found = backbone.train()(flow, 3)
    moved = (found - pooled).abs().amax(dim=1) > 1e-6
    assert 16 < int(moved.sum()) < 48
    torch.testing.assert_close(found[moved], (pooled + 2 * step)[moved])


# Channels and strides of the last activations of each size.
MAPS = {
    "test_efficientnet": [(16, 2), (24, 4), (32, 8), (48, 16), (256, 32)],
    "mobilenetv3_small_050": [(16, 2), (8, 4), (16, 8), (24, 16), (288, 32)],
    "regnetx_002": [(32, 2), (24, 4), (56, 8), (152, 16), (368, 32)],
    "test_resnet": [(32, 4), (48, 8), (192, 16), (96, 32)],
    "test_convnext": [(24, 4), (32, 8), (48, 16), (64, 32)],
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_the_last_activations_of_each_size(name: str) -> None:
    backbone = made(name)
    given = inputs(backbone, 2)
    with torch.inference_mode():
        below = [backbone(given, 0, cut) for cut in backbone.cuts[1:-1]]
        backbone.gives = "tokens"
        stages = [*below, backbone(given)]
        backbone.gives = "maps"
        maps = backbone(given)
    sizes = [stage.shape[2] for stage in stages]
    last = [place for place, size in enumerate(sizes) if size not in sizes[place + 1 :]]
    assert len(maps) == len(last)
    for found, place in zip(maps, last, strict=True):
        assert torch.equal(found, stages[place])
    assert backbone.storable == (0,)
    assert backbone.map_shapes() == MAPS[name]
    assert [(one.shape[1], 64 // one.shape[2]) for one in maps] == MAPS[name]
    with torch.inference_mode():
        library = backbone.model.forward_features(given)  # type: ignore[operator]
    if name != "mobilenetv3_small_050":
        torch.testing.assert_close(maps[-1], library)


def test_the_sizes_of_maps_leave_the_network_as_it_was() -> None:
    backbone = made("test_efficientnet").train()
    backbone.gives = "maps"
    before = network.state_sha256(backbone.state_dict())
    backbone.map_shapes()
    assert backbone.training
    assert network.state_sha256(backbone.state_dict()) == before


@pytest.mark.parametrize(("name", "gives"), [("test_byobnet", "maps"), ("test_resnet", "pooled")])
def test_where_there_are_no_maps(name: str, gives: network.Gives) -> None:
    backbone = network.architecture(described(name), gives=gives)
    with pytest.raises(UserError, match=rf"'{name}' gives no maps of several sizes: take .* EfficientNet"):
        backbone.map_shapes()


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3"])
def test_tokens_of_a_vision_transformer(name: str) -> None:
    backbone = made(name)
    backbone.gives = "tokens"
    given = inputs(backbone, 2)
    with torch.inference_mode():
        expected = backbone.model.forward_features(given)  # type: ignore[operator]
        found = backbone(given)
        assert torch.equal(found, expected)
        assert found.ndim == 3
        for cut in backbone.cuts[:-1]:
            assert torch.equal(backbone(backbone(given, 0, cut), cut), expected)


def test_drop_path_reaches_timm() -> None:
    backbone = network.architecture(described("test_vit"), 0.2)
    found = [
        module.drop_prob
        for name, module in backbone.named_modules()
        if name.endswith("drop_path1") and hasattr(module, "drop_prob")
    ]
    assert max(found) == pytest.approx(0.2)
    assert network.architecture(described("test_vit")).state_dict().keys() == backbone.state_dict().keys()
