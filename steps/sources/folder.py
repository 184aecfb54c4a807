"""A folder that holds a whole model of the user's own, in the layout of transformers or of timm."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from steps import entry, network
from steps.artifacts import read_json
from steps.errors import WeightsError
from steps.references import FolderWeights
from steps.sources import Found, timm_hub, tokenizers, wrappings
from steps.sources.file import read_config
from steps.sources.weights import TOKENIZER_FILES, check_pin, fingerprint
from steps.sources.wrappings import Unwrapped

# One file, or a list of the files that together are one; safetensors first, which hold tensors alone.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")


def read(reference: FolderWeights, scratch: Path) -> Found:
    """Read a model's folder.

    Args:
        reference: to the folder.
        scratch: where the tokenizer is written.

    Raises:
        WeightsError: a file is missing, altered, or would run code; or the network cannot be built.
    """
    path = Path(reference.path)
    if not path.is_dir():
        raise WeightsError(f"{path} is no folder; correct `path:`, or use `source: file`")
    sha256 = check_pin(fingerprint(path), reference.sha256, path.name)
    description = _describe(path, reference)
    model = network.stored(description)
    found = wrappings.without_prefix(_weights(path), model)
    for words in wrappings.in_words(found):
        entry.say(f"{path.name}: {words}")
    files: list[Path] = []
    if reference.library == "transformers":
        given = [path / name for name in TOKENIZER_FILES if (path / name).is_file()]
        files = tokenizers.normalised(given, description["config"], scratch, path.name)
    provenance = {
        "source": "folder",
        "folder": path.name,
        "sha256": sha256,
        "licence": reference.licence,
        **found.told,
    }
    return Found(found.tensors, description, files, provenance, "reported")


def _describe(path: Path, reference: FolderWeights) -> dict[str, Any]:
    if not (path / "config.json").is_file():
        hint = "; a file of tensors alone is `source: file`" if reference.library == "timm" else ""
        raise WeightsError(f"{path} has no config.json: it has to say what network the tensors are of{hint}")
    if reference.library == "timm":
        return timm_hub.describe(read_json(path / "config.json", "the model's author"), path.name)
    config = read_config(path / "config.json")
    return {"library": "transformers", "name": config["model_type"], "config": config}


def _weights(path: Path) -> Unwrapped:
    """All tensors of the folder.

    Raises:
        WeightsError: there are none, or a file of several is missing.
    """
    name = next((name for name in WEIGHTS if (path / name).is_file()), None)
    if name is None:
        if any((path / one).is_file() for one in ADAPTERS):
            raise WeightsError(
                f"{path} holds an adapter alone; merge it into its model first (`merge_and_unload()` of peft)"
            )
        raise WeightsError(f"{path} holds no weights: none of {', '.join(WEIGHTS)}")
    if not name.endswith(".json"):
        return wrappings.load(path / name)
    tensors: dict[str, Tensor] = {}
    for part in _parts(read_json(path / name, "the model's author"), path / name):
        if not (path / part).is_file():
            raise WeightsError(f"{path} has no {part}, which {name} names; copy the whole folder")
        tensors |= wrappings.load(path / part).tensors
    return Unwrapped(tensors, {})


def _parts(index: Any, where: Path) -> list[str]:  # noqa: ANN401 - what a file held
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise WeightsError(f"{where} names no files")
    names = sorted(set(map(str, places.values())))
    for name in names:
        if PurePosixPath(name).name != name:
            raise WeightsError(f"{where} names a file outside of its folder: {name!r}")
    return names
