from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from steps import artifacts, checkpoint, network
from steps.errors import HeadstartError, WeightsError

VISION = {"library": "timm", "name": "test_efficientnet", "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    folder = tmp_path / "pretrained"
    folder.mkdir()
    artifacts.write_json(folder / "architecture.json", VISION)
    torch.manual_seed(1)
    tensors = network.architecture(VISION).model.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def written(folder: Path, model: torch.nn.Module, kind: str) -> Path:
    folder.mkdir()
    journal: dict[str, Any] = {
        "weights": kind,
        "weights_sha256": checkpoint.save_weights(model, folder),
        "classes": ["a", "b"],
        "task": "image-classification",
        "settings": {"model": {"pretrained": "toy", "dropout": 0.2}, "arm": {"head": "linear"}},
    }
    artifacts.write_json(folder / checkpoint.JOURNAL, journal)
    return folder


def test_a_network_comes_back_to_the_bit_in_eval_mode(tmp_path: Path, pretrained: Path) -> None:
    torch.manual_seed(2)
    model = network.classifier(network.architecture(VISION), 2, 0.2)
    loaded = checkpoint.load_network(written(tmp_path / "seed-1", model, "network"), pretrained)
    assert network.state_sha256(loaded.state_dict()) == network.state_sha256(model.state_dict())
    assert not loaded.training


def test_a_head_comes_back_on_the_pretrained_backbone(tmp_path: Path, pretrained: Path) -> None:
    backbone = network.build_backbone(pretrained, pretrained=True)
    head = network.build_head(backbone.features, 2, 0.2)
    folder = written(tmp_path / "seed-1", head, "head")
    loaded = checkpoint.load_network(folder, pretrained)
    assert network.state_sha256(loaded.backbone.state_dict()) == network.state_sha256(backbone.state_dict())
    assert network.state_sha256(loaded.head.state_dict()) == network.state_sha256(head.state_dict())
    alone = checkpoint.load_head(folder, backbone.features)
    assert network.state_sha256(alone.state_dict()) == network.state_sha256(head.state_dict())


def test_altered_weights_are_refused(tmp_path: Path, pretrained: Path) -> None:
    folder = written(tmp_path / "seed-1", network.classifier(network.architecture(VISION), 2, 0.2), "network")
    weights = bytearray((folder / checkpoint.WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / checkpoint.WEIGHTS).write_bytes(weights)
    with pytest.raises(HeadstartError, match="was altered: sha256"):
        checkpoint.load_network(folder, pretrained)


def test_weights_of_another_architecture_are_refused(tmp_path: Path, pretrained: Path) -> None:
    other = network.classifier(network.architecture(VISION | {"name": "test_resnet"}), 2, 0.2)
    with pytest.raises(WeightsError, match="is missing from the weights"):
        checkpoint.load_network(written(tmp_path / "seed-1", other, "network"), pretrained)


def test_same_tensors_same_file(tmp_path: Path) -> None:
    model = network.build_head(4, 2, 0.0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert checkpoint.save_weights(model, tmp_path / "a") == checkpoint.save_weights(model, tmp_path / "b")
