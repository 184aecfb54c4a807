from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from steps import artifacts, network
from steps.artifacts import sha256_file
from steps.errors import WeightsError
from steps.fetch import fetch
from steps.references import PackageWeights
from tests import twin


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    twin.vision_package(folder)
    twin.text_package(folder)
    return folder


@pytest.fixture
def shipped(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Toy packages of this test's own, and an empty clone to work in."""
    shutil.copytree(packages, tmp_path / "packages")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "packages"


def ask(weights: Path, slug: str, **changes: Any) -> None:
    """Write the settings of one reference, and fetch it."""
    pinned = twin.params({"toy-vision": "0" * 64, "toy-text": "0" * 64})["pretrained"][slug]
    reference = PackageWeights(**(pinned | {"sha256": sha256_file(weights)} | changes))
    artifacts.write_json(artifacts.pretrained_settings_file(slug), reference.model_dump(mode="json"))
    fetch(slug)


def tensors(path: Path) -> dict[str, Tensor]:
    return dict(load_file(path))


def test_vision_weights_come_whole_with_their_provenance(shipped: Path) -> None:
    weights = shipped / "toy_vision/model.safetensors"
    ask(weights, "toy-vision")
    folder = artifacts.pretrained_dir("toy-vision")
    built = network.build_backbone(folder, pretrained=True)
    assert network.state_sha256(dict(built.model.state_dict())) == network.state_sha256(tensors(weights))
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["sha256"] == sha256_file(weights)
    assert provenance["converted_sha256"] == sha256_file(folder / "model.safetensors")
    assert provenance["licence"] == "Apache-2.0"
    assert provenance["tensors"] == len(tensors(weights))


def test_text_weights_come_with_their_tokenizer(shipped: Path) -> None:
    ask(shipped / "toy_text/model/model.safetensors", "toy-text")
    names = {path.name for path in artifacts.pretrained_dir("toy-text").iterdir()}
    assert {"model.safetensors", "architecture.json", "provenance.json", "tokenizer.json"} <= names


@pytest.mark.parametrize("names", ["by_name", "by_order"])
def test_one_missing_tensor_is_found(shipped: Path, names: str) -> None:
    weights = shipped / "toy_vision/model.safetensors"
    held = tensors(weights)
    lost = sorted(held)[7]
    del held[lost]
    save_file(held, weights)
    message = f"'{lost}' is missing" if names == "by_name" else "one is missing or left over"
    with pytest.raises(WeightsError, match=message):
        ask(weights, "toy-vision", names=names)
    assert not artifacts.pretrained_dir("toy-vision").exists()


def test_one_wrong_shape_is_found(shipped: Path) -> None:
    weights = shipped / "toy_vision/model.safetensors"
    held = tensors(weights)
    held["conv_stem.weight"] = torch.zeros(1, 2, 3)
    save_file(held, weights)
    with pytest.raises(
        WeightsError, match=r"'conv_stem.weight' has shape \(1, 2, 3\), the architecture needs"
    ):
        ask(weights, "toy-vision")


def test_a_tensor_the_architecture_lacks_is_found(shipped: Path) -> None:
    weights = shipped / "toy_vision/model.safetensors"
    save_file(tensors(weights) | {"strange.weight": torch.zeros(2)}, weights)
    with pytest.raises(WeightsError, match=r"no tensor 'strange.weight'"):
        ask(weights, "toy-vision")


def test_an_original_classifier_is_left_behind(shipped: Path) -> None:
    weights = shipped / "toy_vision/model.safetensors"
    save_file(tensors(weights) | {"classifier.weight": torch.zeros(2, 2)}, weights)
    ask(weights, "toy-vision")


def test_by_order_takes_other_names_and_checks_every_shape(shipped: Path) -> None:
    weights = shipped / "toy_vision/model.pth"
    wanted = network.architecture({"library": "timm", "name": "test_efficientnet"}).model.state_dict()
    renamed = {f"block{index}": tensor.clone() for index, tensor in enumerate(wanted.values())}
    classifier = {"top.weight": torch.zeros(9, 9), "top.bias": torch.zeros(9)}
    torch.save(renamed | classifier, weights)
    ask(weights, "toy-vision", names="by_order", file="model.pth")
    built = network.build_backbone(artifacts.pretrained_dir("toy-vision"), pretrained=True)
    assert network.state_sha256(dict(built.model.state_dict())) == network.state_sha256(dict(wanted))

    # Two tensors lost would look like a missing classifier; their places give them away.
    held = dict(list((renamed | classifier).items())[2:])
    torch.save(held, weights)
    with pytest.raises(WeightsError, match="in its place needs"):
        ask(weights, "toy-vision", names="by_order", file="model.pth")


def test_a_config_of_another_model_is_refused(shipped: Path) -> None:
    with pytest.raises(WeightsError, match=r"describes a 'bert', params\.yaml says `architecture: albert`"):
        ask(shipped / "toy_text/model/model.safetensors", "toy-text", architecture="albert")


def test_a_failed_fetch_keeps_what_was_there(shipped: Path) -> None:
    weights = shipped / "toy_vision/model.safetensors"
    ask(weights, "toy-vision")
    before = sha256_file(artifacts.pretrained_dir("toy-vision") / "model.safetensors")
    with pytest.raises(WeightsError):
        ask(weights, "toy-vision", sha256="f" * 64)
    assert sha256_file(artifacts.pretrained_dir("toy-vision") / "model.safetensors") == before
