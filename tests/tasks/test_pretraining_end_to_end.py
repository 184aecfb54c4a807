"""Documents and images without labels to registered models, and from one of these to another start."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from steps import artifacts, data, fetch, tasks
from steps.kinds import KINDS
from steps.references import RegistryWeights
from steps.sources import registry
from tests import rawdata, twin
from tests.tasks import clone


def documents(root: Path) -> None:
    """Twenty documents of a topic's words, and an empty one, to be rejected."""
    (root / "raw").mkdir(parents=True)
    chance = np.random.default_rng(3)
    for number in range(20):
        words = list(twin.TOPICS.values())[number % 3]
        sentences = [" ".join(chance.choice([*words, *twin.FILLER], 8)) + "." for _ in range(1 + number % 4)]
        (root / f"raw/{number:02}.txt").write_text(" ".join(one.capitalize() for one in sentences))
    (root / "raw/empty.txt").write_bytes(b"")


@pytest.mark.flow
def test_from_documents_to_a_start_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    documents(tmp_path)
    clone.lay_out(
        tmp_path,
        {
            "task": "masked-language-model",
            "data": {"source": "documents", "path": "raw"},
            "model": {"pretrained": "toy-text", "max_tokens": 16},
            "validation": {"on_reject": "drop"},
            "arms": {"frozen": None},
        },
    )
    found = clone.run()
    rejected = pd.read_csv(artifacts.validation_dir(clone.NAME) / "rejected.csv")
    assert rejected["id"].tolist() == ["empty.txt"]
    assert len(data.read_accepted(clone.NAME)) == 20
    assert found["metric"]["name"] == "loss"
    assert {one["arm"] for one in found["arms"]} == {"scratch", "full"}
    row = next(clone.test_rows().itertuples())
    (said,) = clone.predicted([{"text": str(row.text)}])
    assert set(said) == set(KINDS["masked-language-model"].outputs)
    assert said["tokens"] >= said["correct"] >= 0
    assert said["loss"] > 0
    case = tasks.get("masked-language-model").case(row, said, Path())
    assert "".join(piece for piece, kind in case.marks if kind != "wrong").startswith(" [CLS]")
    # What was registered is a start for another experiment.
    about = json.loads(artifacts.registration_file(clone.NAME).read_text())
    entry = {
        "source": "registry", "model": about["model"], "version": int(about["version"]),
        "library": "transformers",
    }  # fmt: skip
    pin = registry.newest(RegistryWeights.model_validate(entry))
    pinned = RegistryWeights.model_validate(entry | pin.fields)
    artifacts.write_json(artifacts.pretrained_settings_file("own"), pinned.model_dump(mode="json"))
    fetch.fetch("own")
    start = load_file(artifacts.pretrained_dir("own") / "model.safetensors")
    trained = [
        load_file(path / "model.safetensors") for path in artifacts.arms_dir(clone.NAME).glob("*/seed-*")
    ]
    assert not [name for name in start if name.startswith("head.")]
    assert any(
        all(torch.equal(one[f"backbone.model.{name}"], tensor) for name, tensor in start.items())
        for one in trained
    )


@pytest.mark.flow
def test_from_images_to_a_registered_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(20):
        rawdata.save(tmp_path / f"raw/deep/{number:02}.png", number)
    (tmp_path / "raw/broken.png").write_bytes(b"no image")
    new = {"source": "new", "library": "timm", "architecture": "test_vit", "config": {"img_size": 32}}
    clone.lay_out(
        tmp_path,
        {
            "task": "masked-image-model",
            "data": {"source": "images", "path": "raw"},
            "model": {"pretrained": "tiny-vit", "image_size": 32, "mask_fraction": 0.5},
            "validation": {"on_reject": "drop"},
        },
        {"tiny-vit": new},
    )
    found = clone.run()
    rejected = pd.read_csv(artifacts.validation_dir(clone.NAME) / "rejected.csv")
    assert rejected["id"].tolist() == ["broken.png"]
    assert {one["arm"] for one in found["arms"]} == {"scratch", "frozen", "full"}
    row = next(clone.test_rows().itertuples())
    path = artifacts.data_dir(clone.NAME) / str(row.path)
    said: dict[str, Any]
    (said,) = clone.predicted([{"image": base64.b64encode(path.read_bytes()).decode()}])
    assert set(said) == set(KINDS["masked-image-model"].outputs)
    assert said["loss"] > 0
    case = tasks.get("masked-image-model").case(row, said, artifacts.data_dir(clone.NAME))
    assert [content[:4] for _, content in case.pictures] == [b"RIFF"] * 3


@pytest.mark.flow
@pytest.mark.parametrize(
    ("task", "architecture", "config"),
    [
        (
            "next-sentence-prediction",
            "bert",
            {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        ),
        ("causal-language-model", "gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2}),
        (
            "replaced-token-detection",
            "electra",
            {"embedding_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 16},
        ),
    ],
)  # fmt: skip
def test_other_pretraining_is_registered_too(
    task: str, architecture: str, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is packaged says of a few documents what the network says of them, strangers included."""
    monkeypatch.chdir(tmp_path)
    documents(tmp_path)
    (tmp_path / "raw/empty.txt").unlink()
    new = {"source": "new", "library": "transformers", "tokenizer": "toy-text"}
    clone.lay_out(
        tmp_path,
        {
            "task": task,
            "data": {"source": "documents", "path": "raw"},
            "model": {"pretrained": "toy-new", "max_tokens": 24},
            "arms": {"frozen": None, "full": None},
        },
        {"toy-new": {**new, "architecture": architecture, "config": config}},
    )
    found = clone.run()
    assert [one["arm"] for one in found["arms"]] == ["scratch"]
    assert artifacts.registration_file(clone.NAME).exists()
    assert found["baselines"]
    (said,) = clone.predicted([{"text": "Rose and tulip bloom. The soil is old. Water the leaf."}])
    assert set(said) == set(KINDS[task].outputs)
    assert said["tokens"] > 0
