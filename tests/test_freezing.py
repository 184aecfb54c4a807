from __future__ import annotations

import pytest

from steps import freezing, network
from steps.network import Network
from steps.params import Arm

VISION = {"library": "timm", "name": "test_efficientnet", "mean": [0.5] * 3, "std": [0.5] * 3}
FULL = Arm(start="pretrained", tune="all", learning_rate=0.1, backbone_learning_rate=0.01, weight_decay=0.3)


@pytest.fixture(scope="module")
def model() -> Network:
    return Network(network.architecture(VISION), classes=3, dropout=0.1)


def test_every_parameter_is_in_one_group_and_decay_is_for_matrices(model: Network) -> None:
    groups = freezing.parameter_groups(model, FULL)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)


def test_head_and_backbone_have_their_rates(model: Network) -> None:
    head = {id(parameter) for parameter in model.head.parameters()}
    for group in freezing.parameter_groups(model, FULL):
        assert all((id(parameter) in head) == (group["lr"] == 0.1) for parameter in group["params"])
        assert group["lr"] in (0.1, 0.01)


def test_one_rate_serves_both_where_the_backbone_has_none(model: Network) -> None:
    arm = Arm(start="scratch", tune="all", learning_rate=0.2)
    assert {group["lr"] for group in freezing.parameter_groups(model, arm)} == {0.2}


def test_what_needs_no_gradient_is_in_no_group() -> None:
    model = Network(network.architecture(VISION), classes=3, dropout=0.1)
    model.backbone.requires_grad_(False)
    groups = freezing.parameter_groups(model, FULL)
    assert {group["name"] for group in groups} == {"head"}


def test_a_head_alone_is_a_head() -> None:
    head = network.build_head(4, 2, 0.0)
    assert [(group["name"], group["lr"]) for group in freezing.parameter_groups(head, FULL)] == [
        ("head", 0.1)
    ] * 2
