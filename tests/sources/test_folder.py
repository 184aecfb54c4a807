from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from steps import artifacts, network
from steps.errors import WeightsError
from steps.fetch import fetch
from steps.references import FolderWeights
from steps.sources import Found, folder
from steps.sources.weights import fingerprint
from tests import twin


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a text model and of an image model."""
    packages = tmp_path_factory.mktemp("packages")
    twin.text_package(packages)
    twin.vision_package(packages)
    shutil.copytree(packages / "toy_text/model", packages / "text")
    (packages / "image").mkdir()
    shutil.copyfile(packages / "toy_vision/model.safetensors", packages / "image/model.safetensors")
    config = {"architecture": "test_efficientnet", "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    (packages / "image/config.json").write_text(json.dumps(config))
    return packages


@pytest.fixture(autouse=True)
def _clone(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("text", "image"):
        shutil.copytree(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)


def library(path: str) -> str:
    return "timm" if path == "image" else "transformers"


def read(path: str, **changes: Any) -> Found:
    Path("scratch").mkdir(exist_ok=True)
    given = {"source": "folder", "path": path, "library": library(path), **changes}
    return folder.read(FolderWeights(**given), Path("scratch"))


def ask(path: str) -> dict[str, Any]:
    """Fetch a folder; give the provenance."""
    reference = FolderWeights(
        source="folder",
        path=path,
        library="timm" if path == "image" else "transformers",
        sha256=fingerprint(Path(path)),
        licence="ours",
    )
    artifacts.write_json(artifacts.pretrained_settings_file("own"), reference.model_dump(mode="json"))
    fetch("own")
    told: dict[str, Any] = json.loads((artifacts.pretrained_dir("own") / "provenance.json").read_text())
    return told


@pytest.mark.parametrize("path", ["text", "image"])
def test_a_whole_model_is_fetched(path: str) -> None:
    told = ask(path)
    target = artifacts.pretrained_dir("own")
    wanted = load_file(Path(path) / "model.safetensors")
    built = network.build_backbone(target, pretrained=True)
    assert network.state_sha256(dict(built.model.state_dict())) == network.state_sha256(dict(wanted))
    assert (told["folder"], told["licence"]) == (path, "ours")
    assert told["sha256"] == fingerprint(Path(path))
    assert (target / "tokenizer.json").is_file() == (path == "text")
    described = json.loads((target / "architecture.json").read_text())
    assert described.get("mean") == (None if path == "text" else [0.1] * 3)


def split(tensors: dict[str, Any], stem: str) -> None:
    """Write tensors into two files and an index, as transformers does with large models."""
    names = sorted(tensors)
    parts = {f"{stem}-1-of-2": names[:5], f"{stem}-2-of-2": names[5:]}
    suffix = ".safetensors" if stem == "model" else ".bin"
    for part, inside in parts.items():
        held = {name: tensors[name] for name in inside}
        if suffix == ".bin":
            torch.save(held, f"text/{part}.bin")
        else:
            save_file(held, f"text/{part}.safetensors")
    places = {name: part + suffix for part, inside in parts.items() for name in inside}
    Path(f"text/{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("layout", ["bin", "shards", "shards of bin", "bert."])
def test_weights_may_be_laid_out_in_every_way_of_the_library(layout: str) -> None:
    wanted = load_file("text/model.safetensors")
    Path("text/model.safetensors").unlink()
    if layout == "bin":
        torch.save(wanted, "text/pytorch_model.bin")
    elif layout == "bert.":
        top = {"cls.predictions.bias": torch.zeros(3)}
        save_file({f"bert.{name}": tensor for name, tensor in wanted.items()} | top, "text/model.safetensors")
    else:
        split(wanted, "model" if layout == "shards" else "pytorch_model")
    told = ask("text")
    found = load_file(artifacts.pretrained_dir("own") / "model.safetensors")
    assert network.state_sha256(dict(found)) == network.state_sha256(dict(wanted))
    assert told["left_out"] == (["cls"] if layout == "bert." else [])


def test_a_file_of_several_that_is_missing_is_told() -> None:
    wanted = load_file("text/model.safetensors")
    Path("text/model.safetensors").unlink()
    split(wanted, "model")
    Path("text/model-2-of-2.safetensors").unlink()
    with pytest.raises(
        WeightsError, match=r"text has no model-2-of-2\.safetensors, which model\.safetensors\.index"
    ):
        read("text")
    index = Path("text/model.safetensors.index.json")
    for content, message in [
        ({"weight_map": {"a": "../image/model.safetensors"}}, "names a file outside of its folder"),
        ({"weight_map": {}}, "names no files"),
    ]:
        index.write_text(json.dumps(content))
        with pytest.raises(WeightsError, match=message):
            read("text")


def test_one_changed_byte_anywhere_is_found() -> None:
    pinned = fingerprint(Path("text"))
    read("text", sha256=pinned)
    shutil.rmtree("scratch")
    Path("text/.hidden").touch()
    read("text", sha256=pinned)
    with Path("text/tokenizer.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(WeightsError, match=rf"text has sha256 .*, params\.yaml pins {pinned}"):
        read("text", sha256=pinned)


def test_what_a_folder_lacks_is_told() -> None:
    with pytest.raises(WeightsError, match="none is no folder; correct `path:`, or use `source: file`"):
        read("none")
    Path("image/model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"image holds no weights: none of model\.safetensors,"):
        read("image")
    Path("image/adapter_model.safetensors").touch()
    with pytest.raises(WeightsError, match="image holds an adapter alone; merge it"):
        read("image")
    for path in ("image", "text"):
        Path(path, "config.json").unlink()
        with pytest.raises(WeightsError, match=rf"{path} has no config\.json: it has to say what network"):
            read(path)


def test_a_text_model_without_a_tokenizer_is_refused() -> None:
    for path in Path("text").glob("*token*"):
        path.unlink()
    Path("text/vocab.txt").unlink(missing_ok=True)
    with pytest.raises(WeightsError, match="text: there is no tokenizer beside the weights"):
        read("text")


def test_the_layout_of_the_other_library_is_told() -> None:
    with pytest.raises(WeightsError, match=r"names no `model_type`: it is no config\.json of transformers"):
        read("image", library="transformers")
    with pytest.raises(WeightsError, match=r"config\.json is not in timm's layout"):
        read("text", library="timm")
