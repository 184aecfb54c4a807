"""Frozen is what stays bit-identical: for five architectures, in every way to freeze, and when broken."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from steps import freezing, loop, network
from steps.data import Batches, FeatureSamples
from steps.errors import HeadstartError, UserError
from steps.loop import Fed, Recipe, Stage
from steps.network import Network, Probe
from steps.objective import Objective
from steps.params import Arm, Lora, Machine, Training

BERT = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 16, "model_type": "bert",
}  # fmt: skip
SIDE = 32
BACKBONES: dict[str, dict[str, Any]] = {
    "efficientnet": {"library": "timm", "name": "test_efficientnet"},
    "resnet": {"library": "timm", "name": "test_resnet"},
    "vit": {"library": "timm", "name": "test_vit", "img_size": SIDE},
    "convnext": {"library": "timm", "name": "test_convnext"},
    "bert": {"library": "transformers", "name": "bert", "config": BERT},
}
RATES: dict[str, Any] = {"learning_rate": 0.02, "backbone_learning_rate": 0.01, "weight_decay": 0.3}
MODES: dict[str, Arm] = {
    "head": Arm(tune="head", learning_rate=0.02, weight_decay=0.3),
    "bottom layer": Arm(freeze_bottom=1, **RATES),
    "bottom half": Arm(freeze_bottom=0.5, **RATES),
    "biases": Arm(tune="biases", **RATES),
    "norms": Arm(tune="norms", **RATES),
    "lora": Arm(tune="lora", lora=Lora(rank=2), **RATES),
    "gradual": Arm(tune="gradual", soup="uniform", **RATES),  # whichever epoch is the best
    "pattern": Arm(tune="pattern", patterns=("*1*weight",), **RATES),
}


class Tokens:
    """Made-up texts of eight tokens."""

    lengths = None

    def __init__(self, samples: int) -> None:
        self.ids = torch.randint(1, 30, (samples, 8), generator=torch.Generator().manual_seed(samples))

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: list[int], view: int | None = None) -> dict[str, Tensor]:
        ids = self.ids[indices]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def built(name: str, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return network.classifier(network.architecture(BACKBONES[name]), 3, 0.1)


def batches(name: str, samples: int = 8) -> Batches:
    generator = torch.Generator().manual_seed(samples)
    images = FeatureSamples(torch.randn(samples, 3, SIDE, SIDE, generator=generator))
    return Batches(Tokens(samples) if name == "bert" else images, torch.arange(samples) % 3, 4)


def trained(name: str, arm: Arm, epochs: int = 2, model: Network | None = None) -> tuple[Network, Any]:
    """A network after a training, with the proof begun before."""
    model = model or built(name)
    freezing.freeze(model, arm)
    proof = freezing.Proof(model)
    fit(model, name, arm, epochs)
    return model, proof


def fit(model: Network, name: str, arm: Arm, epochs: int = 2) -> None:
    train = batches(name)
    fed = Fed(train, batches(name))  # judged by what it learns: the last epoch is the best
    stages = [Stage(1, lambda: freezing.parameter_groups(model, arm), lambda: fed)]
    if arm.tune == "gradual":
        stages.append(Stage(2, lambda: freezing.parameter_groups(model, arm, [thaw_top(model)]), lambda: fed))
    recipe = Recipe(arm, Training(epochs=epochs, batch_size=4), Objective(arm, train.labels, 3), Machine())
    loop.fit(model, stages, recipe, seed=1, log=lambda values, step: None)


def bert(model: Network) -> Any:
    """transformers' own model."""
    return model.backbone.model


def thaw_top(model: Network) -> network.Layer:
    return freezing.thaw(model, model.backbone.layers[-1].name)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BACKBONES)
def test_what_is_frozen_stays_and_what_trains_moves(name: str, mode: str) -> None:
    arm, model = MODES[mode], built(name)
    freezing.freeze(model, arm)
    before, proof = tensors(model), freezing.Proof(model)
    fit(model, name, arm, epochs=3)
    thawed = [model.backbone.layers[-1]] if mode == "gradual" else []
    told = proof.check(model, thawed)
    moved = {name for name, tensor in tensors(model).items() if not torch.equal(tensor, before[name])}
    # Read off the network by other means than the proof's own.
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    statistics = {
        f"{name}.{buffer}"
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.weight.requires_grad
        for buffer in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert moved <= trains | statistics
    assert told == {
        "unchanged": True,
        "tensors": len(before) - len(trains | statistics),
        "parameters": sum(one.numel() for one in model.parameters() if not one.requires_grad),
    }
    # What has no effect on the logits (a bias before a norm, a key's bias) may stay: most moves.
    assert len(moved & trains) > 0.6 * len(trains)
    assert {"head.1.weight", "head.1.bias"} <= moved


def train_everything_mode(model: nn.Module) -> None:
    model.train()


@pytest.mark.parametrize("name", ["efficientnet", "resnet"])
def test_statistics_that_go_on_learning_are_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezing, "train_mode", train_everything_mode)
    model, proof = trained(name, MODES["bottom half"])
    with pytest.raises(HeadstartError, match=r"frozen tensor '.*(running|tracked).*' changed"):
        proof.check(model)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_frozen_parameter_that_requires_a_gradient_is_found_out(name: str) -> None:
    model = built(name)
    freezing.freeze(model, MODES["bottom half"])
    proof = freezing.Proof(model)
    for parameter in model.backbone.layers[0].parameters():
        parameter.requires_grad_(True)
    fit(model, name, MODES["bottom half"])
    with pytest.raises(HeadstartError, match="do not trust this run"):
        proof.check(model)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_frozen_parameter_that_the_optimizer_decays_is_found_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradient is zero, and weight decay moves it all the same."""
    groups = freezing.parameter_groups

    def with_frozen_ones(model: Network | Probe, arm: Arm, *rest: Any) -> list[dict[str, Any]]:
        frozen = [one for one in model.parameters() if not one.requires_grad]
        for one in frozen:
            one.grad = torch.zeros_like(one)
        return [*groups(model, arm, *rest), {"name": "x", "params": frozen, "lr": 0.1, "weight_decay": 0.3}]

    monkeypatch.setattr(freezing, "parameter_groups", with_frozen_ones)
    monkeypatch.setattr(torch.optim.AdamW, "zero_grad", lambda self: None)
    model, proof = trained(name, MODES["head"])
    with pytest.raises(HeadstartError, match="do not trust this run"):
        proof.check(model)


def test_one_flipped_bit_is_found_out() -> None:
    model = built("bert")
    freezing.freeze(model, MODES["head"])
    proof = freezing.Proof(model)
    with torch.no_grad():
        weight = model.backbone.layers[1].parameters()[0]
        weight.view(-1).view(torch.int32)[0] ^= 1
    with pytest.raises(HeadstartError, match=r"encoder\.layer\.0"):
        proof.check(model)


def test_a_frozen_tensor_that_is_gone_is_found_out() -> None:
    model = built("bert")
    freezing.freeze(model, MODES["head"])
    proof = freezing.Proof(model)
    del bert(model).encoder.layer[2]
    with pytest.raises(HeadstartError, match=r"encoder\.layer\.2"):
        proof.check(model)


@pytest.mark.parametrize("name", BACKBONES)
def test_frozen_layers_are_in_eval_mode_and_the_others_are_not(name: str) -> None:
    model = built(name)
    freezing.freeze(model, MODES["bottom half"])
    freezing.train_mode(model)
    for layer in model.backbone.layers:
        modes = {one.training for module in layer.modules for one in module.modules()}
        assert modes == {not freezing.is_frozen(layer)}, layer.name
    assert model.head.training


def test_dropout_of_frozen_layers_is_off() -> None:
    model = built("bert")
    freezing.freeze(model, MODES["bottom half"])
    cut = freezing.boundary(model)
    inputs = batches("bert").samples.batch([0, 1])
    freezing.train_mode(model)
    first, second = (model.backbone(inputs, 0, cut)["hidden"] for _ in range(2))
    assert torch.equal(first, second)
    model.train()
    first, second = (model.backbone(inputs, 0, cut)["hidden"] for _ in range(2))
    assert not torch.equal(first, second), "there is no dropout: this test shows nothing"


@pytest.mark.parametrize("name", BACKBONES)
def test_the_boundary_is_below_the_lowest_layer_that_trains(name: str) -> None:
    layers = len(built(name).backbone.layers)
    for mode, expected in {
        "head": layers,
        "bottom layer": 1,
        "biases": 0,
        "lora": 0,
        "gradual": layers,
    }.items():
        model = built(name)
        freezing.freeze(model, MODES[mode])
        # Some bottom layers have no bias, or nothing that LoRA could adapt.
        assert freezing.boundary(model) in ({expected} if expected else {0, 1}), mode


def test_what_is_drawn_anew_is_no_frozen_prefix_even_while_it_is_frozen() -> None:
    model = built("bert")
    freezing.freeze(model, Arm(tune="gradual", reinit_top=1, **RATES))
    assert freezing.boundary(model, drawn_anew=1) == 3


def test_bitfit_trains_exactly_the_biases() -> None:
    """Written out for one layer of BERT."""
    model = built("bert")
    freezing.freeze(model, MODES["biases"])
    found = {
        name.removeprefix("backbone.model.encoder.layer.1.")
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".layer.1." in name
    }
    assert found == {
        "attention.self.query.bias", "attention.self.key.bias", "attention.self.value.bias",
        "attention.output.dense.bias", "attention.output.LayerNorm.bias",
        "intermediate.dense.bias", "output.dense.bias", "output.LayerNorm.bias",
    }  # fmt: skip


def test_norms_trains_exactly_the_norms() -> None:
    model = built("bert")
    freezing.freeze(model, MODES["norms"])
    found = {name for name, one in model.backbone.named_parameters() if one.requires_grad}
    expected = {name for name, _ in model.backbone.named_parameters() if "LayerNorm" in name}
    assert found == expected
    assert len(expected) == 2 + 3 * 4


def test_a_share_means_whole_layers() -> None:
    assert freezing.bottom_layers(Arm(freeze_bottom=0.5), 7) == 4
    assert freezing.bottom_layers(Arm(freeze_bottom=0.5), 13) == 6
    assert freezing.bottom_layers(Arm(freeze_bottom=3), 7) == 3
    assert freezing.bottom_layers(Arm(), 7) == 0


def test_more_frozen_layers_than_there_are_is_an_error() -> None:
    with pytest.raises(UserError, match="freeze_bottom: 9 is more than the 4 layers of the backbone"):
        freezing.freeze(built("bert"), Arm(freeze_bottom=9, **RATES))


def test_frozen_layers_that_are_drawn_anew_are_an_error() -> None:
    with pytest.raises(UserError, match="freeze_bottom: 3 and reinit_top: 2 overlap: the backbone has 4"):
        freezing.freeze(built("bert"), Arm(freeze_bottom=3, reinit_top=2, **RATES))


def test_a_pattern_that_matches_nothing_names_what_is_near() -> None:
    arm = Arm(tune="pattern", patterns=("encoder.layer.0.atention.self.query.weight",), **RATES)
    with pytest.raises(UserError, match=r"matches no parameter.*encoder\.layer\.0\.attention\.self\.query"):
        freezing.freeze(built("bert"), arm)


def test_lora_without_a_module_to_adapt_names_what_is_near() -> None:
    arm = Arm(tune="lora", lora=Lora(targets=("qery",)), **RATES)
    with pytest.raises(UserError, match=r"LoRA finds no module 'qery'.*query"):
        freezing.freeze(built("bert"), arm)


# ------------------------------------------------------------------------------------------------ LoRA


@pytest.mark.parametrize("name", BACKBONES)
def test_lora_starts_as_the_network_it_adapts_and_merges_into_an_ordinary_one(name: str) -> None:
    model, plain = built(name), built(name)
    arm = MODES["lora"]
    freezing.freeze(model, arm)
    inputs = batches(name).samples.batch([0, 1, 2])
    assert torch.equal(model.eval()(inputs), plain.eval()(inputs)), "B is zero at the start"
    fit(model, name, arm)
    adapted = model.eval()(inputs)
    assert not torch.allclose(adapted, plain(inputs), atol=1e-3), "nothing was learnt"
    freezing.merge_lora(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(model.eval()(inputs), adapted, atol=1e-4, rtol=1e-4)


def test_lora_is_the_product_of_its_matrices() -> None:
    """The merged weight is W + alpha / rank * B A, worked out from the adapter's own tensors."""
    model = built("bert")
    arm = Arm(tune="lora", lora=Lora(rank=2, alpha=6.0, targets=("query",)), **RATES)
    freezing.freeze(model, arm)
    fit(model, "bert", arm)
    query = bert(model).encoder.layer[1].attention.self.query
    low, high = query.lora_A["default"].weight, query.lora_B["default"].weight
    expected = query.base_layer.weight + 6.0 / 2 * high @ low
    freezing.merge_lora(model)
    torch.testing.assert_close(bert(model).encoder.layer[1].attention.self.query.weight, expected)


def test_lora_leaves_the_frozen_bottom_alone() -> None:
    model = built("bert")
    freezing.freeze(model, Arm(tune="lora", freeze_bottom=2, **RATES))
    assert freezing.boundary(model) == 2


# -------------------------------------------------------------------------------------- rates and decay


def rate_of(groups: list[dict[str, Any]], parameter: nn.Parameter) -> float:
    return next(float(g["lr"]) for g in groups for one in g["params"] if one is parameter)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_trained_parameter_is_in_one_group_and_decay_is_for_matrices(name: str) -> None:
    model = built(name)
    freezing.freeze(model, MODES["bottom half"])
    groups = freezing.parameter_groups(model, MODES["bottom half"])
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(one) for one in model.parameters() if one.requires_grad)
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)


def test_head_and_backbone_have_their_rates() -> None:
    model = built("efficientnet")
    head = {id(parameter) for parameter in model.head.parameters()}
    groups = freezing.parameter_groups(model, Arm(**RATES))
    assert [group["name"] for group in groups] == ["head", "head", "backbone", "backbone"]
    for group in groups:
        assert all(group["lr"] == (0.02 if id(one) in head else 0.01) for one in group["params"])


def test_one_rate_serves_both_where_the_backbone_has_none() -> None:
    arm = Arm(start="random", learning_rate=0.2)
    assert {group["lr"] for group in freezing.parameter_groups(built("efficientnet"), arm)} == {0.2}


def test_layer_wise_decay_by_hand() -> None:
    """Four layers (embeddings, three of the encoder) at decay 0.5: 0.04, 0.02, 0.01, 0.005 from the top."""
    model = built("bert")
    groups = freezing.parameter_groups(
        model, Arm(learning_rate=0.1, backbone_learning_rate=0.04, layer_decay=0.5)
    )
    own = bert(model)
    expected = {
        model.head.get_submodule("1").weight: 0.1,
        own.encoder.layer[2].output.dense.weight: 0.04,
        own.encoder.layer[1].output.dense.bias: 0.02,
        own.encoder.layer[0].attention.self.query.weight: 0.01,
        own.embeddings.word_embeddings.weight: 0.005,
    }
    for parameter, rate in expected.items():
        assert rate_of(groups, parameter) == pytest.approx(rate)


def test_a_head_alone_is_a_head() -> None:
    probe = network.probe(4, 2, 0.0)
    groups = freezing.parameter_groups(probe, Arm(**RATES))
    assert [(group["name"], group["lr"]) for group in groups] == [("head", 0.02)] * 2


# -------------------------------------------------------------------------------------------- thawing


def test_layers_thaw_from_the_top() -> None:
    model, arm = built("bert"), Arm(tune="gradual", thaw_every=2, **RATES)
    assert freezing.thaw_epochs(model, arm, 6) == {"encoder.2": 3, "encoder.1": 5}
    assert freezing.thaw_epochs(model, arm, 9) == {
        "encoder.2": 3, "encoder.1": 5, "encoder.0": 7, "embeddings": 9,
    }  # fmt: skip
    frozen = Arm(tune="gradual", freeze_bottom=2, **RATES)
    assert freezing.thaw_epochs(model, frozen, 9) == {"encoder.2": 2, "encoder.1": 3}


def test_thawing_frees_one_layer_and_moves_the_boundary_down() -> None:
    model = built("bert")
    freezing.freeze(model, MODES["gradual"])
    assert freezing.boundary(model) == 4
    freezing.thaw(model, "encoder.2")
    assert freezing.boundary(model) == 3
    assert [freezing.is_frozen(layer) for layer in model.backbone.layers] == [True, True, True, False]


# ---------------------------------------------------------------------------------------------- L2-SP


def test_l2_sp_adds_the_gradient_of_its_penalty() -> None:
    """Compared with what autograd makes of `strength / 2 * |w - w0|^2`."""
    model = built("bert")
    arm = Arm(l2_sp=0.7, **RATES)
    start = copy.deepcopy(model)
    anchor = freezing.Anchor(model, arm)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    pairs = list(zip(model.backbone.parameters(), start.backbone.parameters(), strict=True))
    squares = [((now - then.detach()) ** 2).sum() for now, then in pairs]
    penalty = torch.stack(squares).sum() * 0.7 / 2
    expected = torch.autograd.grad(penalty, [now for now, _ in pairs])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    anchor.pull()
    for (parameter, _), gradient in zip(pairs, expected, strict=True):
        torch.testing.assert_close(parameter.grad, 1 + gradient)
    for parameter in model.head.parameters():
        torch.testing.assert_close(parameter.grad, torch.ones_like(parameter), msg="the head is new")


def test_l2_sp_takes_the_place_of_decay_but_for_what_is_new() -> None:
    model = built("bert")
    arm = Arm(l2_sp=0.7, reinit_top=1, **RATES)
    groups = freezing.parameter_groups(model, arm)
    decayed = {id(one) for group in groups if group["weight_decay"] for one in group["params"]}
    new = [*model.backbone.layers[-1].parameters(), *model.head.parameters()]
    assert decayed == {id(one) for one in new if one.ndim > 1}
    held = {id(parameter) for parameter, _ in freezing.Anchor(model, arm).pairs}
    assert held == {id(one) for layer in model.backbone.layers[:-1] for one in layer.parameters()}


def test_l2_sp_keeps_the_weights_nearer_to_their_start() -> None:
    def distance(strength: float) -> float:
        arm = Arm(l2_sp=strength, learning_rate=0.01, backbone_learning_rate=0.01)
        model, start = trained("bert", arm, epochs=4)[0], built("bert")
        pairs = zip(model.backbone.parameters(), start.backbone.parameters(), strict=True)
        return sum(float((now - then).detach().pow(2).sum()) for now, then in pairs)

    assert distance(10.0) < distance(0.001) < distance(0.0) * 1.001
