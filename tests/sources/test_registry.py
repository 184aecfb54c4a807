from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import nn

from steps import artifacts, network
from steps.artifacts import sha256_file
from steps.errors import TrackingError, WeightsError
from steps.fetch import fetch
from steps.references import RegistryWeights
from steps.register import register
from steps.sources import Found, registry
from steps.tracking import registry as versions
from steps.tracking import store
from tests.tracking import made

pytestmark = pytest.mark.flow
MODEL = "headstart-colours"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with two versions in its store: the first trained whole, the second by its head alone."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        made.clone(folder)
        made.store(folder)
        register("colours")
        path = artifacts.report_dir("colours") / "comparison.json"
        artifacts.write_json(path, artifacts.read_json(path, "compare") | {"best_arm": "frozen"})
        register("colours")
        promote(1)
    return folder


@pytest.fixture(autouse=True)
def _clone(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(published)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def promote(number: int) -> None:
    with store.opened() as opened:
        opened.client.set_registered_model_alias(MODEL, versions.CHAMPION, str(number))


def reference(**changes: Any) -> RegistryWeights:
    return RegistryWeights(**{"source": "registry", "model": MODEL, **changes})


def read(scratch: Path, **changes: Any) -> Found:
    return registry.read(reference(**changes), scratch)


def of_version(number: int) -> tuple[Path, str]:
    """The folder of the training that became a version, and the SHA-256 of the file with its backbone."""
    folder = artifacts.seed_dir("colours", {1: "full", 2: "frozen"}[number], 2)
    path = folder if number == 1 else artifacts.pretrained_dir("toy")
    return folder, sha256_file(path / "model.safetensors")


@pytest.mark.parametrize("number", [1, 2])
def test_a_trained_backbone_is_fetched_with_its_lineage(number: int) -> None:
    trained, sha256 = of_version(number)
    given = reference(version=number, sha256=sha256)
    artifacts.write_json(artifacts.pretrained_settings_file("again"), given.model_dump(mode="json"))
    fetch("again")
    folder = artifacts.pretrained_dir("again")
    wanted = load_file(artifacts.pretrained_dir("toy") / "model.safetensors")
    if number == 1:
        whole = load_file(trained / "model.safetensors")
        wanted = {name: whole[f"backbone.model.{name}"] for name in wanted}
    found = network.build_backbone(folder, pretrained=True).model.state_dict()
    assert network.state_sha256(dict(found)) == network.state_sha256(wanted)

    told = json.loads((folder / "provenance.json").read_text())
    journal = json.loads((trained / "run.json").read_text())
    assert (told["model"], told["version"], told["sha256"]) == (MODEL, number, sha256)
    assert (told["experiment"], told["arm"], told["seed"]) == ("colours", journal["arm"], 2)
    assert told["task"] == "image-classification"
    assert told["trained"] == {1: "network", 2: "head"}[number]
    assert told["licence"] == "none"
    parent = json.loads((artifacts.pretrained_dir("toy") / "provenance.json").read_text())
    assert told["parent"] == parent
    with store.opened() as opened:
        assert told["run_id"] == opened.client.get_model_version(MODEL, str(number)).run_id
    described = json.loads((folder / "architecture.json").read_text())
    assert described == json.loads((artifacts.pretrained_dir("toy") / "architecture.json").read_text())


@pytest.mark.parametrize("gives", ["pooled", "tokens"])
@pytest.mark.parametrize("tied", [True, False])
def test_of_a_model_that_writes_it_is_what_was_trained_of_it(gives: network.Gives, tied: bool) -> None:
    sizes = {"vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    config = {"model_type": "t5", "tie_word_embeddings": tied, "scale_decoder_outputs": tied} | sizes
    description = {"library": "transformers", "name": "t5", "config": config}
    backbone = network.architecture(description, gives=gives)
    head = network.language_head(backbone) if gives == "tokens" else nn.Linear(backbone.features, 2)
    trained = dict(network.Network(backbone, head).state_dict())
    told, tensors = registry.of_trained(description, trained)
    module = network.stored(told)
    network.load_exactly(module, tensors, "t5")
    again = network.architecture(told, gives="pooled")
    assert set(again.model.state_dict()) <= set(tensors)
    assert (network.LM_HEAD in tensors) == (gives == "tokens" and not tied)


def test_what_an_alias_means_is_filled_in() -> None:
    pin = registry.newest(reference(alias="champion"))
    assert pin.fields == {"version": 1, "sha256": of_version(1)[1], "licence": "none"}
    assert registry.newest(reference(version=2)).fields["sha256"] == of_version(2)[1]
    # A version that is pinned already does not hold the alias back.
    promote(2)
    assert registry.newest(reference(alias="champion", version=1)).fields["version"] == 2
    promote(1)


def test_an_alias_that_moved_is_told(tmp_path: Path) -> None:
    read(tmp_path / "before", alias="champion", version=1)
    promote(2)
    with pytest.raises(
        WeightsError, match=rf"{MODEL}@champion points to version 2 now, .* pins version 1: run"
    ):
        read(tmp_path / "after", alias="champion", version=1)
    read(tmp_path / "without", version=1)
    promote(1)


def test_what_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent: list[tuple[dict[str, Any], str]] = [
        ({"version": 9}, "has no version 9 in MLflow"),
        ({"version": 1, "alias": "nightly"}, "has no version with the alias 'nightly'"),
        ({"version": 1, "model": "headstart-none"}, "headstart-none has no version 1"),
    ]
    for changes, message in absent:
        with pytest.raises(TrackingError, match=message):
            read(tmp_path, **changes)
    with pytest.raises(WeightsError, match="no version is pinned; run `headstart pin"):
        read(tmp_path, alias="champion")
    with pytest.raises(
        WeightsError, match=r"version 1 of .* is of timm, params\.yaml says `library: transformers`"
    ):
        read(tmp_path, version=1, library="transformers")
    with pytest.raises(WeightsError, match=r"version 1 of .* has sha256 .*, params\.yaml pins 1111"):
        read(tmp_path, version=1, sha256="1" * 64)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackingError, match=r"there is no mlflow/mlflow\.db: nothing was registered here"):
        read(tmp_path, version=1)
    assert not (tmp_path / "mlflow").exists()


def test_files_that_were_altered_or_lost_are_found(tmp_path: Path) -> None:
    found = [path for path in Path("mlflow").rglob("trained/model.safetensors") if "full" in journal_of(path)]
    assert len(found) == 1
    shutil.copyfile(found[0], tmp_path / "kept")
    content = bytearray(found[0].read_bytes())
    content[-1] ^= 1
    try:
        found[0].write_bytes(content)
        with pytest.raises(TrackingError, match=r"not what was registered: its file .*safetensors differs"):
            read(tmp_path / "altered", version=1)
        found[0].unlink()
        with pytest.raises(TrackingError, match=r"its file .*safetensors is missing"):
            read(tmp_path / "lost", version=1)
    finally:
        shutil.copyfile(tmp_path / "kept", found[0])


def journal_of(path: Path) -> str:
    return str(json.loads((path.parent / "run.json").read_text())["arm"])
