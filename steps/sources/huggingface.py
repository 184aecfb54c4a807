"""Weights in a repository of the Hugging Face hub, in the layout of transformers or of timm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from steps.artifacts import sha256_json
from steps.errors import WeightsError
from steps.references import HfWeights
from steps.sources import Found, Pin, hub, tokenizers
from steps.sources.hub import Listing, Repository
from steps.sources.weights import TOKENIZER_FILES, check_pin, load_weights

if TYPE_CHECKING:
    from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Of PyTorch's own format, which can hold code.
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def read(reference: HfWeights, scratch: Path) -> Found:
    """Bring the weights of a repository at the pinned commit.

    Raises:
        WeightsError: they cannot be had, are altered, would run code, or are of no network we can build.
    """
    from steps import network

    repository = pinned(reference.model, reference.revision)
    if reference.library == "timm":
        from steps.sources import timm_hub

        return timm_hub.read_repository(repository, reference)
    config = hub.require_json(repository, "config.json")
    tokenizers.refuse_code(config, str(repository))
    if "model_type" not in config:
        raise WeightsError(
            f"{repository}: config.json names no `model_type`, so it is not in transformers' layout; of "
            "timm's say `library: timm`"
        )
    description = {"library": "transformers", "name": config["model_type"], "config": config}
    network.architecture(description)  # what cannot be built is not worth a download
    asked = [hub.fetch_file(repository, name) for name in TOKENIZER_FILES]
    given = [path for path in asked if path is not None]
    files = tokenizers.normalised(given, config, scratch, str(repository))
    tensors, sha256 = read_weights(repository, reference.sha256)
    return Found(tensors, description, files, provenance(repository, "hf", sha256, reference.licence))


def newest(reference: HfWeights) -> Pin:
    """The newest commit of the repository, with the hash and the size of its weights."""
    return pin_of(hub.newest(reference.model))


def pinned(name: str, revision: str | None) -> Repository:
    """The repository at the commit that a reference pins.

    Raises:
        WeightsError: it pins none.
    """
    if revision is None:
        raise WeightsError(f"{name}: no revision is pinned; run `headstart pin EXPERIMENT`")
    return Repository(name, revision)


def provenance(repository: Repository, source: str, sha256: str, licence: str | None) -> dict[str, Any]:
    """What `provenance.json` says of where the bytes are from."""
    return {
        "source": source,
        "model": repository.name,
        "revision": repository.revision,
        "sha256": sha256,
        "licence": licence or "",
    }


def read_weights(repository: Repository, sha256: str | None) -> tuple[dict[str, Tensor], str]:
    """The tensors of a repository, from one file of safetensors or from several, and what pins them.

    Raises:
        WeightsError: there are none, or they are not those pinned.
    """
    path = hub.fetch_file(repository, SINGLE)
    if path is not None:
        found = hub.check_download(path, sha256, repository, SINGLE)
        return load_weights(path), found
    if hub.fetch_file(repository, INDEX) is None:
        _refuse_without_weights(repository)
    tensors: dict[str, Tensor] = {}
    parts: dict[str, str] = {}
    for name in shards(hub.require_json(repository, INDEX), repository):
        part = hub.require_file(repository, name)
        parts[name] = hub.check_download(part, None, repository, name)
        tensors |= load_weights(part)
    return tensors, check_pin(sha256_json(parts), sha256, str(repository))


def shards(index: dict[str, Any], repository: Repository) -> list[str]:
    """The names of the files that an index names.

    Raises:
        WeightsError: it is no index.
    """
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise WeightsError(f"{repository}: {INDEX} names no files; take another revision")
    return sorted(set(map(str, places.values())))


def pin_of(listing: Listing) -> Pin:
    """The pin of the weights that a listing tells of; what it does not tell is downloaded and hashed.

    Raises:
        WeightsError: the repository has no weights that we read.
    """
    repository, files = listing.repository, listing.files
    if SINGLE in files:
        names, sha256 = [SINGLE], _sha256(listing, SINGLE)
    elif INDEX in files:
        names = shards(hub.require_json(repository, INDEX), repository)
        sha256 = sha256_json({name: _sha256(listing, name) for name in names})
    else:
        _refuse_without_weights(repository, set(files))
    sizes = [files[name].size for name in names if name in files]
    size = sum(one for one in sizes if one is not None) if None not in sizes else None
    return Pin({"revision": repository.revision, "sha256": sha256, "licence": listing.licence}, size)


def _sha256(listing: Listing, name: str) -> str:
    told = listing.files[name].sha256 if name in listing.files else None
    if told is not None:
        return told
    return hub.check_download(hub.require_file(listing.repository, name), None, listing.repository, name)


def _refuse_without_weights(repository: Repository, names: set[str] | None = None) -> NoReturn:
    """Tell that a repository has no safetensors.

    Raises:
        WeightsError: always.
    """
    pickles = [
        name
        for name in PICKLES
        if (name in names if names is not None else hub.ask_size(repository, name) is not None)
    ]
    if pickles:
        raise WeightsError(
            f"{repository} has its weights as a pickle alone ({pickles[0]}), which can run code and is not "
            "read from the hub; ask its owner for safetensors, or convert a copy on a machine you can spare "
            "(`safetensors.torch.save_file`) and give it as `source: file`"
        )
    raise WeightsError(f"{repository} has no weights as safetensors ({SINGLE}); take another model")
