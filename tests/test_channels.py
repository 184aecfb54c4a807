"""Networks that take other images than red, green and blue."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from steps import network
from steps.artifacts import write_json
from steps.errors import UserError


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    folder = tmp_path / "pretrained"
    description = {"library": "timm", "name": "test_efficientnet", "mean": [0.5] * 3, "std": [0.5] * 3}
    write_json(folder / "architecture.json", description)
    torch.manual_seed(0)
    made = network.architecture(description)
    tensors = {name: one.contiguous() for name, one in made.model.state_dict().items()}
    network.save_tensors(tensors, folder / "model.safetensors")
    return folder


def features(folder: Path, channels: int, images: torch.Tensor) -> torch.Tensor:
    backbone = network.build_backbone(folder, pretrained=True, channels=channels).eval()
    with torch.no_grad():
        found = backbone(images)
    assert isinstance(found, torch.Tensor)
    return found


def test_grey_images_are_seen_as_their_three_equal_channels_were(pretrained: Path) -> None:
    grey = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        features(pretrained, 1, grey), features(pretrained, 3, grey.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5
    )


def test_six_channels_that_repeat_three_are_seen_as_the_three(pretrained: Path) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        features(pretrained, 6, images.repeat(1, 2, 1, 1)),
        features(pretrained, 3, images),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_maps_and_layers_are_those_of_three_channels(pretrained: Path, channels: int) -> None:
    adapted = network.build_backbone(pretrained, pretrained=False, gives="maps", channels=channels)
    plain = network.build_backbone(pretrained, pretrained=False, gives="maps")
    assert adapted.map_shapes() == plain.map_shapes()
    assert [layer.name for layer in adapted.layers] == [layer.name for layer in plain.layers]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "tf_efficientnet_lite0"])
def test_every_family_begins_with_a_convolution_that_can_be_adapted(name: str) -> None:
    backbone = network.architecture({"library": "timm", "name": name})
    network.take_channels(backbone, 5)
    side = 160 if name == "test_vit" else 32
    found = backbone(torch.zeros(2, 5, side, side))
    assert isinstance(found, torch.Tensor)
    assert found.shape == (2, backbone.features)
    with pytest.raises(UserError, match="cannot be made to take 4 channels"):
        network.take_channels(backbone, 4)


@pytest.mark.parametrize("channels", [1, 5])
def test_all_layers_can_be_drawn_anew_for_other_channels(pretrained: Path, channels: int) -> None:
    backbone = network.build_backbone(pretrained, pretrained=True, channels=channels)
    before = network.state_sha256(dict(backbone.model.state_dict()))
    network.reinitialise(backbone, pretrained, len(backbone.layers), seed=3)
    assert network.state_sha256(dict(backbone.model.state_dict())) != before
    found = backbone.eval()(torch.zeros(2, channels, 32, 32))
    assert isinstance(found, torch.Tensor)
    assert found.shape == (2, backbone.features)
