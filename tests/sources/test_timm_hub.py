from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save

from steps import artifacts, network
from steps.errors import WeightsError
from steps.fetch import fetch
from steps.references import HfWeights, TimmWeights
from steps.sources import timm_hub
from tests import standin
from tests.standin import Hub

MODEL = "test_resnet.r160_in1k"
NAME = f"timm/{MODEL}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with standin.running(tmp_path / "home", monkeypatch) as running:
        yield running


def ask(server: Hub, files: dict[str, bytes], **changes: Any) -> Path:
    """Put the model's repository on the hub, pin it, and fetch it."""
    commit = server.add(NAME, files) if NAME not in server.repos else server.repos[NAME].newest
    given: dict[str, Any] = {
        "source": "timm", "model": MODEL, "revision": commit,
        "sha256": hashlib.sha256(files["model.safetensors"]).hexdigest(),
    } | changes  # fmt: skip
    kind = HfWeights if given["source"] == "hf" else TimmWeights
    artifacts.write_json(artifacts.pretrained_settings_file("toy"), kind(**given).model_dump(mode="json"))
    fetch("toy")
    return artifacts.pretrained_dir("toy")


def read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text())
    return content


def test_weights_come_without_their_classifier_and_with_what_they_were_trained_with(
    server: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    files = standin.timm_files()
    folder = ask(server, files)
    wanted = {name: one for name, one in load(files["model.safetensors"]).items() if name[:3] != "fc."}
    built = network.build_backbone(folder, pretrained=True)
    assert network.state_sha256(dict(built.model.state_dict())) == network.state_sha256(wanted)
    assert read(folder, "architecture.json") == {
        "library": "timm", "name": "test_resnet", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3],
    }  # fmt: skip
    provenance = read(folder, "provenance.json")
    assert provenance["source"] == "timm"
    assert provenance["model"] == NAME
    assert provenance["left_out"] == ["fc"]
    assert provenance["licence"] == ""
    assert "no licence stated" in capsys.readouterr().out


def test_own_mean_and_deviation_win(server: Hub) -> None:
    told = read(ask(server, standin.timm_files(), mean=(0.5, 0.5, 0.5)), "architecture.json")
    assert told["mean"] == [0.5, 0.5, 0.5]
    assert told["std"] == [0.2, 0.2, 0.3]


def test_once_fetched_the_hub_is_not_needed(server: Hub) -> None:
    ask(server, standin.timm_files())
    server.stop()
    assert ask(server, standin.timm_files()).is_dir()


def test_a_repository_of_somebody_else_in_timms_layout(server: Hub) -> None:
    files = standin.timm_files("test_efficientnet")
    commit = server.add("somebody/net", files)
    folder = ask(server, files, source="hf", model="somebody/net", revision=commit, library="timm")
    assert read(folder, "architecture.json")["name"] == "test_efficientnet"
    assert read(folder, "provenance.json")["source"] == "hf"


def test_weights_of_another_network_are_refused(server: Hub) -> None:
    files = dict(standin.timm_files())
    files["model.safetensors"] = standin.timm_files("test_efficientnet")["model.safetensors"]
    with pytest.raises(WeightsError, match=r"tensor 'bn1\.weight' has shape \(24,\), the architecture"):
        ask(server, files)


def test_a_tensor_that_no_network_of_the_name_has(server: Hub) -> None:
    files = dict(standin.timm_files())
    tensors = load(files["model.safetensors"])
    files["model.safetensors"] = save(tensors | {"extra.weight": tensors["fc.bias"].clone()})
    with pytest.raises(WeightsError, match=r"no tensor 'extra\.weight'"):
        ask(server, files)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": None}, "is not in timm's layout"),
        ({"architecture": "no_such_net"}, "timm cannot build 'no_such_net'"),
        ({"model_args": {"embed_dim": 12}}, "changes the architecture by `embed_dim`"),
        ({"pretrained_cfg": {"input_size": [1, 64, 64]}}, "takes images of 1 channels, not of 3"),
    ],
)
def test_a_config_that_we_cannot_follow(server: Hub, changes: dict[str, Any], message: str) -> None:
    files = dict(standin.timm_files())
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | changes).encode()
    with pytest.raises(WeightsError, match=message):
        ask(server, files)
    assert not server.asked("/store/")


def test_an_early_config_without_a_section(server: Hub) -> None:
    config = {"architecture": "test_resnet", "mean": [0.1, 0.1, 0.1], "std": [1.0, 1.0, 1.0]}
    assert timm_hub.describe(config, "here")["mean"] == [0.1, 0.1, 0.1]


def test_the_repository_is_the_one_that_timm_knows() -> None:
    assert timm_hub.repository_of(MODEL) == NAME
    with pytest.raises(WeightsError, match="no model 'resnet5'; did you mean 'resnet50'"):
        timm_hub.repository_of("resnet5.a1_in1k")
    with pytest.raises(WeightsError, match=r"names no weights; with a tag there is: test_resnet\.r160_in1k"):
        timm_hub.repository_of("test_resnet")
    with pytest.raises(WeightsError, match=r"no weights 'test_resnet\.r160' on the hub; did you mean"):
        timm_hub.repository_of("test_resnet.r160")


def test_the_newest_state_pins_it(server: Hub) -> None:
    files = standin.timm_files()
    commit = server.add(NAME, files)
    told = timm_hub.newest(TimmWeights(source="timm", model=MODEL))
    assert told.fields == {
        "revision": commit, "licence": "apache-2.0",
        "sha256": hashlib.sha256(files["model.safetensors"]).hexdigest(),
    }  # fmt: skip
    assert told.size == len(files["model.safetensors"])
    assert not server.asked("/store/|resolve")
