"""The backbone of a model that Headstart registered: what was learnt there is the start here."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from steps import network
from steps.artifacts import read_json, sha256_file
from steps.errors import WeightsError
from steps.families import language
from steps.network import LM_HEAD
from steps.references import RegistryWeights
from steps.sources import Found, Pin
from steps.sources.weights import TOKENIZER_FILES, check_pin, load_weights
from steps.tracking import download, store
from steps.tracking.registry import Version

# Where a version keeps what `steps/register.py` laid out.
INSIDE = "data/model"
# Names in a trained network: of its backbone's tensors, and of the output layer of a model that writes.
BACKBONE, OUTPUT_LAYER = "backbone.model.", "head.linear.weight"


def read(reference: RegistryWeights, scratch: Path) -> Found:
    """Bring the backbone of the pinned version, with the tokenizer and the lineage of the model.

    Args:
        reference: to the version.
        scratch: where its files are put.

    Raises:
        WeightsError: the version is not pinned, the alias points to another now, or the bytes are others.
        TrackingError: there is no such version, or MLflow does not answer.
    """
    if reference.version is None:
        raise WeightsError(f"{reference.model}: no version is pinned; run `headstart pin EXPERIMENT`")
    download.require_store()
    with store.opened(download.ADVICE) as opened:
        version = download.version_of(opened, reference.model, number=reference.version)
        if reference.alias is not None:
            now = download.version_of(opened, reference.model, alias=reference.alias)
            _check_alias(reference, now)
        folder = download.bring(opened, version, INSIDE, scratch)
    where = f"version {version.number} of {version.model}"
    description = read_json(folder / "pretrained/architecture.json", "python -m steps.register")
    if description["library"] != reference.library:
        raise WeightsError(
            f"{where} is of {description['library']}, params.yaml says `library: {reference.library}`: "
            "correct it"
        )
    journal = read_json(folder / "trained/run.json", "python -m steps.train")
    path, sha256 = _weights(folder, journal, where)
    check_pin(sha256, reference.sha256, where)
    tensors = load_weights(path)
    if journal["weights"] != "head":
        description, tensors = of_trained(description, tensors)
    files = [folder / "pretrained" / name for name in TOKENIZER_FILES]
    provenance = _lineage(reference, version, journal, folder) | {"sha256": sha256}
    return Found(tensors, description, [path for path in files if path.is_file()], provenance)


def newest(reference: RegistryWeights) -> Pin:
    """The version that the alias points to now, or the one that is named, with the hash of its weights.

    Raises:
        TrackingError: there is no such version, or MLflow does not answer.
    """
    download.require_store()
    with store.opened(download.ADVICE) as opened, tempfile.TemporaryDirectory(prefix="headstart-") as folder:
        number = reference.version if reference.alias is None else None
        version = download.version_of(opened, reference.model, alias=reference.alias, number=number)
        told = []
        for name in ("trained/run.json", "pretrained/provenance.json"):
            path = download.bring(opened, version, f"{INSIDE}/{name}", Path(folder))
            told.append(read_json(path, "python -m steps.register"))
    journal, parent = told
    licence = reference.licence or str(parent.get("licence", ""))
    return Pin({"version": int(version.number), "sha256": _told_sha256(journal), "licence": licence}, None)


def _check_alias(reference: RegistryWeights, now: Version) -> None:
    if int(now.number) != reference.version:
        raise WeightsError(
            f"{reference.model}@{reference.alias} points to version {now.number} now, params.yaml pins "
            f"version {reference.version}: run `headstart pin EXPERIMENT` to take the new one, or leave "
            "`alias` out to keep the old one"
        )


def of_trained(
    description: dict[str, Any], trained: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The backbone of a network that was trained as a whole.

    Args:
        description: of the backbone that it started from.
        trained: tensors of backbone and head.

    Returns:
        The description of what is left, and its tensors. Of an encoder with a decoder, a task that writes
        nothing trains the encoder alone; one that writes has the output layer as its head.
    """
    tensors = {
        name.removeprefix(BACKBONE): tensor for name, tensor in trained.items() if name.startswith(BACKBONE)
    }
    if description["library"] != "transformers":
        return description, tensors
    config = {"model_type": description["name"], **description["config"]}
    if language.has_decoder(config) and not any(name.startswith("decoder.") for name in tensors):
        alone = description["config"] | {"architectures": ["EncoderModel"]}
        return description | {"config": alone}, tensors
    if OUTPUT_LAYER in trained and LM_HEAD in network.stored(description).state_dict():
        tensors[LM_HEAD] = trained[OUTPUT_LAYER]
    return description, tensors


def _weights(folder: Path, journal: dict[str, Any], where: str) -> tuple[Path, str]:
    """The file that the backbone's tensors are in, and its SHA-256.

    Raises:
        WeightsError: it is not the one that the journal tells of.
    """
    path = folder / ("pretrained" if journal["weights"] == "head" else "trained") / "model.safetensors"
    if not path.is_file():
        raise WeightsError(f"{where} has no {path.parent.name}/{path.name}: it was not registered whole")
    sha256, told = sha256_file(path), _told_sha256(journal)
    if sha256 != told:
        raise WeightsError(
            f"{where} has weights with sha256 {sha256[:12]}, its journal tells of {told[:12]}: they were "
            "altered"
        )
    return path, sha256


def _told_sha256(journal: dict[str, Any]) -> str:
    """Of the file that the backbone is in: a training of the head alone left it as fetch wrote it."""
    return str(journal["pretrained_sha256" if journal["weights"] == "head" else "weights_sha256"])


def _lineage(
    reference: RegistryWeights, version: Version, journal: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Where the weights are from, down to what the registered model itself started from."""
    parent = read_json(folder / "pretrained/provenance.json", "python -m steps.fetch")
    return {
        "source": "registry",
        "model": version.model,
        "version": int(version.number),
        "alias": reference.alias,
        "run_id": version.run_id,
        "experiment": journal["experiment"],
        "task": journal["task"],
        "arm": journal["arm"],
        "seed": journal["seed"],
        "trained": journal["weights"],
        "licence": reference.licence or parent.get("licence", ""),
        "parent": parent,
    }
