"""Weights of other sources than packages, from params.yaml to a registered model that predicts."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steps import artifacts
from steps.sources import weights
from tests import standin, twin
from tests.tasks import clone


def topics(root: Path, slug: str) -> dict[str, Any]:
    """An experiment on sentences of three topics."""
    twin.write_topics(root / "raw/topics.csv")
    return {
        "task": "text-classification",
        "data": {"source": "table", "path": "raw/topics.csv", "text": "body", "label": "topic"},
        "model": {"pretrained": slug, "max_tokens": 16},
    }


def glove(path: Path) -> None:
    """Vectors in which the words of a topic lie together."""
    chance, lines = np.random.default_rng(5), []
    for number, words in enumerate([*twin.TOPICS.values(), twin.FILLER]):
        for word in words:
            vector = chance.normal(0, 0.3, 12)
            vector[number] += 2.0 * (number < len(twin.TOPICS))
            lines.append(" ".join([word, *(f"{value:.4f}" for value in vector)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")


@pytest.mark.flow
@pytest.mark.parametrize("encoder", ["mean", "lstm"])
def test_word_vectors(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    glove(tmp_path / "vectors/toy.txt")
    entry = {
        "source": "vectors",
        "path": "vectors/toy.txt",
        "encoder": encoder,
        "sha256": weights.fingerprint(tmp_path / "vectors/toy.txt"),
    }
    clone.lay_out(tmp_path, topics(tmp_path, "toy-words"), {"toy-words": entry})
    found = clone.run()
    arms = {one["arm"]: one["mean"] for one in found["arms"]}
    assert set(arms) == {"scratch", "frozen", "full"}
    if encoder == "mean":
        # A topic's words lie together: a linear probe is soon ahead.
        assert arms["frozen"] > arms["scratch"] + 0.3
    (said,) = clone.predicted([{"text": "rose tulip soil seed"}])
    assert set(said) == {"label", "probability", "probabilities"}


@pytest.mark.flow
def test_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    twin.text_package(tmp_path / "made")
    shutil.copytree(tmp_path / "made/toy_text/model", tmp_path / "models/ours")
    entry = {
        "source": "folder",
        "path": "models/ours",
        "library": "transformers",
        "sha256": weights.fingerprint(tmp_path / "models/ours"),
    }
    clone.lay_out(tmp_path, topics(tmp_path, "ours"), {"ours": entry})
    clone.run()
    provenance = artifacts.read_json(artifacts.pretrained_dir("ours") / "provenance.json", "fetch")
    assert provenance["source"] == "folder"
    assert str(tmp_path) not in str(provenance)
    (said,) = clone.predicted([{"text": "ship crane tide"}])
    assert set(said["probabilities"]) == {"garden", "harbour", "kitchen"}


@pytest.mark.flow
def test_a_hub_is_asked_once_and_never_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = standin.bert_files()
    with standin.running(tmp_path / "home", monkeypatch) as hub:
        entry = {
            "source": "hf",
            "model": "toy/bert-tiny",
            "revision": hub.add("toy/bert-tiny", files),
            "sha256": hashlib.sha256(files["model.safetensors"]).hexdigest(),
            "licence": "apache-2.0",
        }
        clone.lay_out(tmp_path, topics(tmp_path, "bert"), {"bert": entry})
        clone.run(until="fetch")
    # The server is gone.
    clone.run(after="fetch")
    (said,) = clone.predicted([{"text": "oven flour knife"}])
    assert set(said["probabilities"]) == {"garden", "harbour", "kitchen"}
    for path in (tmp_path / "work").rglob("*.json"):
        assert standin.TOKEN not in path.read_text("utf-8"), path
