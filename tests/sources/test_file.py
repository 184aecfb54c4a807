from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steps import artifacts, network
from steps.errors import WeightsError
from steps.fetch import fetch
from steps.references import FileWeights
from steps.sources import Found, file
from steps.sources.weights import fingerprint
from tests import twin

VISION = {"library": "timm", "architecture": "test_efficientnet"}


@pytest.fixture(autouse=True)
def _clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def own() -> dict[str, Tensor]:
    """Tensors of a trained network, with its classifier."""
    import timm

    torch.manual_seed(5)
    return dict(timm.create_model("test_efficientnet", num_classes=3).state_dict())


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with its config and tokenizer."""
    folder = tmp_path_factory.mktemp("packages")
    twin.text_package(folder)
    return folder / "toy_text/model"


def read(path: str, **changes: Any) -> Found:
    Path("scratch").mkdir(exist_ok=True)
    return file.read(FileWeights(**{"source": "file", "path": path, **VISION, **changes}), Path("scratch"))


def ask(path: str, slug: str = "own", **changes: Any) -> dict[str, Any]:
    """Fetch a file; give the provenance."""
    given = {"source": "file", "path": path, "sha256": fingerprint(Path(path)), **VISION, **changes}
    reference = FileWeights(**given)
    artifacts.write_json(artifacts.pretrained_settings_file(slug), reference.model_dump(mode="json"))
    fetch(slug)
    told: dict[str, Any] = json.loads((artifacts.pretrained_dir(slug) / "provenance.json").read_text())
    return told


def fetched(slug: str = "own") -> dict[str, Tensor]:
    return dict(load_file(artifacts.pretrained_dir(slug) / "model.safetensors"))


def backbone(own: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in own.items() if not name.startswith("classifier.")}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return network.state_sha256(found) == network.state_sha256(wanted)


def test_both_kinds_of_file_give_the_tensors(own: dict[str, Tensor]) -> None:
    save_file(own, "own.safetensors")
    for suffix in ("pth", "pt", "bin"):
        torch.save(OrderedDict(own), f"own.{suffix}")
    for name in ("own.safetensors", "own.pth", "own.pt", "own.bin"):
        told = ask(name, licence="ours")
        assert same(fetched(), backbone(own))
        assert told["sha256"] == fingerprint(Path(name))
        assert told["licence"] == "ours"
        assert told["left_out"] == ["classifier"]
        assert told["drawn_at_random"] == told["left_over"] == []
        assert not {"taken_from", "prefix", "renamed"} & set(told)


WRAPPED = {
    "state_dict": ("state_dict", []),
    "model": ("model", []),
    "model+optimizer": ("model", []),
    "model+ema": ("ema", ["model"]),
    "inner": ("checkpoint.net", []),
    "unknown name": ("generator", []),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_dictionary_in_the_file_is_found(
    own: dict[str, Tensor], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    last = {key: tensor + 1 for key, tensor in own.items()}
    state = {"state": {0: {"step": torch.ones(1), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    content: dict[str, Any] = {
        "state_dict": {"state_dict": own, "epoch": 3},
        "model": {"model": own, "best": 0.5},
        "model+optimizer": {"optimizer": state, "optim_g": {"a": {"b": torch.ones(1)}}, "model": own},
        "model+ema": {"model": last, "ema": own},
        "inner": {"checkpoint": {"net": own, "step": 1}},
        "unknown name": {"generator": own, "step": 1},
    }
    torch.save(content[name], "own.pth")
    found = read("own.pth")
    place, beside = WRAPPED[name]
    assert same(found.tensors, own)
    assert found.provenance["taken_from"] == place
    assert found.provenance.get("beside", []) == beside
    assert f"own.pth: tensors taken from {place!r}" in capsys.readouterr().out


def test_which_of_several_unknown_dictionaries_is_not_guessed(own: dict[str, Tensor]) -> None:
    torch.save({"generator": own, "critic": own}, "own.pth")
    with pytest.raises(
        WeightsError, match="none of 'generator', 'critic' is known to hold the model's tensors"
    ):
        read("own.pth")
    torch.save({"epoch": 3}, "own.pth")
    with pytest.raises(WeightsError, match="none of 'epoch' is known"):
        read("own.pth")
    torch.save([torch.ones(1)], "own.pth")
    with pytest.raises(WeightsError, match="holds a list, not a dictionary of tensors"):
        read("own.pth")


@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.", "encoder.", "module.model.backbone."])
def test_a_prefix_is_taken_off_and_told(
    own: dict[str, Tensor], prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {prefix + name: tensor for name, tensor in backbone(own).items()}
    save_file(tensors | {"head.weight": torch.zeros(2), "queue": torch.zeros(4)}, "own.safetensors")
    told = ask("own.safetensors")
    assert same(fetched(), backbone(own))
    assert told["prefix"] == prefix
    assert told["left_over"] == ["head.weight", "queue"]
    assert f"{prefix!r} taken off their names" in capsys.readouterr().out


def test_a_teacher_is_taken_before_its_student(own: dict[str, Tensor]) -> None:
    student = {f"student.backbone.{name}": tensor + 1 for name, tensor in backbone(own).items()}
    teacher = {f"teacher.backbone.{name}": tensor for name, tensor in backbone(own).items()}
    save_file(student | teacher, "own.safetensors")
    told = ask("own.safetensors")
    assert same(fetched(), backbone(own))
    assert told["prefix"] == "teacher.backbone."
    assert {name.split(".")[0] for name in told["left_over"]} == {"student"}


def test_names_are_changed_as_the_entry_says(own: dict[str, Tensor]) -> None:
    tensors = {f"my.{name}".replace("my.blocks", "stages"): tensor for name, tensor in own.items()}
    save_file(tensors, "own.safetensors")
    told = ask("own.safetensors", rename={"my.": "", "stages": "blocks"})
    assert same(fetched(), backbone(own))
    assert told["renamed"] == len(own)
    with pytest.raises(
        WeightsError, match=r"no tensor's name begins with 'your\.' \(`rename`\); the first ones"
    ):
        read("own.safetensors", rename={"your.": ""})
    save_file({"a.x": torch.ones(1), "b.x": torch.ones(1)}, "two.safetensors")
    with pytest.raises(WeightsError, match=r"gives two tensors the name 'c\.x', one is 'b\.x'"):
        read("two.safetensors", rename={"a.": "c.", "b.": "c."})


def test_what_is_missing_is_an_error_unless_it_may(own: dict[str, Tensor]) -> None:
    lost = [name for name in own if name.startswith(("conv_head", "bn2."))]
    save_file({name: tensor for name, tensor in own.items() if name not in lost}, "own.safetensors")
    with pytest.raises(
        WeightsError, match=rf"'{lost[0]}' is missing from the weights \({len(lost)} in all\)"
    ):
        ask("own.safetensors")
    with pytest.raises(WeightsError, match=r"'bn2\.weight' is missing"):
        ask("own.safetensors", allow_missing=["conv_head.*"])
    hashes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        told = ask("own.safetensors", allow_missing=["conv_head.*", "bn2.*"])
        hashes.append(artifacts.sha256_file(artifacts.pretrained_dir("own") / "model.safetensors"))
    assert hashes[0] == hashes[1]
    assert told["drawn_at_random"] == lost
    assert same(
        {name: tensor for name, tensor in fetched().items() if name not in lost},
        {name: tensor for name, tensor in backbone(own).items() if name not in lost},
    )
    assert fetched()["conv_head.weight"].std() > 0


def test_another_shape_names_both(own: dict[str, Tensor]) -> None:
    save_file(own | {"conv_stem.weight": torch.zeros(1, 2, 3)}, "own.safetensors")
    with pytest.raises(
        WeightsError, match=r"'conv_stem\.weight' has shape \(1, 2, 3\), .* needs \(\d+, 3, 3, 3\)"
    ):
        ask("own.safetensors", allow_missing=["*"])


def test_colours_are_the_architectures_own_unless_told(own: dict[str, Tensor]) -> None:
    save_file(own, "own.safetensors")
    assert read("own.safetensors").description["mean"] == [0.485, 0.456, 0.406]
    told = read("own.safetensors", mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)).description
    assert (told["mean"], told["std"]) == ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0])


class Bomb:
    """Unpickled, it would leave a trace."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (Path("trace"),)


@pytest.mark.parametrize("content", [{"a": Bomb()}, {"model": {}, "args": Namespace(a=1)}, nn.Linear(1, 1)])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(content: Any) -> None:
    torch.save(content, "own.pth")
    with pytest.raises(
        WeightsError, match="holds more than tensors and plain data, and was not loaded"
    ) as caught:
        read("own.pth")
    assert not Path("trace").exists()
    assert "weights_only" not in str(caught.value)


def test_what_is_no_such_file_is_told(own: dict[str, Tensor]) -> None:
    for path in ("none.pth", "own.ckpt", "."):
        Path("own.ckpt").touch()
        with pytest.raises(
            WeightsError, match=r"is no file of \.safetensors, \.pth, \.pt, \.bin; correct `path:`"
        ):
            read(path)
    Path("own.pth").write_bytes(b"no weights at all")
    with pytest.raises(WeightsError, match=r"^own\.pth: (cannot be read|holds more)"):
        read("own.pth")
    save_file(own, "own.safetensors")
    with pytest.raises(WeightsError, match=r"own\.safetensors has sha256 .*, params\.yaml pins 1111"):
        read("own.safetensors", sha256="1" * 64)
    with pytest.raises(WeightsError, match="timm has no model 'resnet18x'; did you mean 'resnet18'"):
        read("own.safetensors", architecture="resnet18x")


# ------------------------------------------------------------------------------------------------------ texts


@pytest.mark.parametrize("prefix", ["", "bert.", "model.bert."])
def test_a_text_model_comes_with_the_config_and_tokenizer_that_are_named(
    text_model: Path, prefix: str
) -> None:
    tensors = load_file(text_model / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, "own.safetensors")
    shutil.copytree(text_model, "beside")
    given: dict[str, Any] = {"library": "transformers", "architecture": None, "config": "beside/config.json"}
    told = ask("own.safetensors", **given)
    assert same(fetched(), tensors)
    assert told.get("prefix", "") == ("model." if prefix.startswith("model.") else "")
    names = {path.name for path in artifacts.pretrained_dir("own").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} <= names
    Path("beside/tokenizer").mkdir()
    with pytest.raises(WeightsError, match=r"beside/tokenizer: there is no tokenizer"):
        read("own.safetensors", **given, tokenizer="beside/tokenizer")


def test_a_config_of_another_model_is_refused(text_model: Path) -> None:
    shutil.copyfile(text_model / "model.safetensors", "own.safetensors")
    config = json.loads((text_model / "config.json").read_text())
    given = {"library": "transformers", "config": "config.json"}
    for change, architecture, message in [
        ({}, "gpt2", r"config\.json describes a 'bert', params\.yaml says `architecture: gpt2`"),
        ({"model_type": None}, "bert", "names no `model_type`"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "bert", "wants to run code"),
    ]:
        Path("config.json").write_text(json.dumps(config | change))
        with pytest.raises(WeightsError, match=message):
            read("own.safetensors", architecture=architecture, **given)
    Path("config.json").unlink()
    with pytest.raises(WeightsError, match=r"there is no config\.json"):
        read("own.safetensors", architecture="bert", **given)
    with pytest.raises(
        WeightsError, match="'brt' is no model type that can be built here; did you mean 'bert'"
    ):
        read("own.safetensors", library="transformers", architecture="brt")
