from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from steps import artifacts, network
from steps.artifacts import sha256_file
from steps.errors import WeightsError
from steps.fetch import fetch
from steps.params import Model
from steps.references import MODELS, NewWeights
from steps.sources import Found, new
from steps.tasks.of_texts import OfTexts
from tests import twin

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    twin.text_package(folder)
    twin.vision_package(folder)
    return folder


@pytest.fixture(autouse=True)
def _clone(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(packages)
    monkeypatch.chdir(tmp_path)
    for slug, file in {"toy-text": "toy_text/model", "toy-vision": "toy_vision"}.items():
        digest = sha256_file(packages / file / "model.safetensors")
        settle(slug, **twin.params({"toy-vision": digest, "toy-text": digest})["pretrained"][slug])


def settle(slug: str, **given: Any) -> None:
    """Write the settings of one entry, as resolve does."""
    reference = MODELS[given["source"]](**borrowing(given))
    artifacts.write_json(artifacts.pretrained_settings_file(slug), reference.model_dump(mode="json"))


def borrowing(given: dict[str, Any]) -> dict[str, Any]:
    """With the entry whose tokenizer it uses, as resolve fills it in."""
    if given["source"] != "new" or given.get("tokenizer") is None:
        return given
    path = artifacts.pretrained_settings_file(given["tokenizer"])
    return {**given, "borrowed": json.loads(path.read_text())}


def text(**changes: Any) -> dict[str, Any]:
    return {
        "source": "new",
        "library": "transformers",
        "architecture": "bert",
        "config": SIZES,
        "tokenizer": "toy-text",
        **changes,
    }


def image(**changes: Any) -> dict[str, Any]:
    return {"source": "new", "library": "timm", "architecture": "test_efficientnet", **changes}


def read(given: dict[str, Any]) -> Found:
    Path("scratch").mkdir(exist_ok=True)
    for left in Path("scratch").rglob("*"):
        if left.is_file():
            left.unlink()
    for left in sorted(Path("scratch").rglob("*"), reverse=True):
        left.rmdir()
    return new.read(NewWeights(**borrowing(given)), Path("scratch"))


@pytest.mark.parametrize("given", [text(), image()], ids=["text", "image"])
def test_one_seed_gives_the_same_bytes_and_another_does_not(given: dict[str, Any]) -> None:
    hashes = []
    for noise, seed in ((1, 0), (2, 0), (3, 1)):
        torch.manual_seed(noise)
        settle("fresh", **given, seed=seed)
        fetch("fresh")
        assert torch.initial_seed() == noise
        hashes.append(sha256_file(artifacts.pretrained_dir("fresh") / "model.safetensors"))
    assert hashes[0] == hashes[1] != hashes[2]
    told = json.loads((artifacts.pretrained_dir("fresh") / "provenance.json").read_text())
    assert (told["source"], told["seed"], told["licence"]) == ("new", 1, "")


def test_a_text_model_fits_the_tokenizer_that_it_uses() -> None:
    settle("fresh", **text())
    fetch("fresh")
    folder = artifacts.pretrained_dir("fresh")
    backbone = network.build_backbone(folder, pretrained=True)
    samples = OfTexts().samples(["goal team match"], Model(pretrained="fresh"), folder)
    assert backbone(samples.batch([0])).shape == (1, 16)
    config = json.loads((folder / "architecture.json").read_text())["config"]
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert config["vocab_size"] == len(words)
    assert config["pad_token_id"] == words["[PAD]"]
    assert json.loads((folder / "provenance.json").read_text())["tokenizer"] == "toy-text"


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("distilbert", {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}),
        ("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2}),
        ("modernbert", SIZES),
        ("t5", {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}),
    ],
)
def test_other_model_types_are_drawn_too(architecture: str, sizes: dict[str, int]) -> None:
    found = read(text(architecture=architecture, config=sizes))
    network.load_exactly(network.stored(found.description), found.tensors, "new")
    assert found.description["config"]["vocab_size"] < 1000


def test_sizes_that_do_not_fit_are_told() -> None:
    for config, message in [
        ({"hiden_size": 16}, "has a 'hiden_size', which it does not know; did you mean 'hidden_size'"),
        ({"hidden_size": "much"}, "`config` of the new bert: .*hidden_size"),
        ({"hidden_size": 15, "num_attention_heads": 2}, "cannot build 'bert': .*hidden size"),
        ({"vocab_size": 3}, r"vocab_size of 3, the tokenizer of 'toy-text' has \d+ words: leave"),
    ]:
        with pytest.raises(WeightsError, match=message):
            read(text(config=config))
    with pytest.raises(
        WeightsError, match="'brt' is no model type that can be built here; did you mean 'bert'"
    ):
        read(text(architecture="brt"))


def test_the_tokenizer_must_be_anothers() -> None:
    settle("fresh", **text())
    with pytest.raises(
        WeightsError, match="the tokenizer of 'fresh' is another entry's: name that one, 'toy-text'"
    ):
        read(text(tokenizer="fresh"))
    with pytest.raises(WeightsError, match="'toy-vision' has no tokenizer; name an entry for texts"):
        read(text(tokenizer="toy-vision"))


def test_an_image_model_has_the_sizes_that_are_given() -> None:
    config = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    settle("fresh", **image(architecture="vit_tiny_patch16_224", config=config))
    fetch("fresh")
    backbone: Any = network.build_backbone(artifacts.pretrained_dir("fresh"), pretrained=True)
    assert (backbone.features, len(backbone.model.blocks)) == (48, 2)
    assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, 48)
    with pytest.raises(WeightsError, match=r"timm cannot build 'vit_tiny_patch16_224': .*embed_dimension"):
        read(image(architecture="vit_tiny_patch16_224", config={"embed_dimension": 48}))
    with pytest.raises(WeightsError, match="timm has no model 'vit_tiny'"):
        read(image(architecture="vit_tiny"))
