"""Weights of timm's models: the library knows the repository, its config.json what they were trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steps import network
from steps.errors import WeightsError
from steps.references import HfWeights, TimmWeights
from steps.settings import suggest
from steps.sources import Found, Pin, hub, huggingface
from steps.sources.hub import Repository


def read(reference: TimmWeights, scratch: Path) -> Found:
    """Bring the weights of one of timm's models at the pinned commit.

    Args:
        reference: to the model.
        scratch: is not needed.

    Raises:
        WeightsError: timm does not know the model, or its weights cannot be had or are altered.
    """
    repository = huggingface.pinned(repository_of(reference.model), reference.revision)
    return read_repository(repository, reference)


def newest(reference: TimmWeights) -> Pin:
    """The newest commit of the model's repository, with the hash and the size of its weights."""
    return huggingface.pin_of(hub.newest(repository_of(reference.model)))


def read_repository(repository: Repository, reference: TimmWeights | HfWeights) -> Found:
    """Bring the weights of a repository in timm's layout.

    Raises:
        WeightsError: they cannot be had, are altered, or are of no network we can build.
    """
    config = hub.require_json(repository, "config.json")
    description = describe(config, str(repository))
    if isinstance(reference, TimmWeights):
        for name in ("mean", "std"):
            if (own := getattr(reference, name)) is not None:
                description[name] = list(own)
    network.architecture(description)  # what cannot be built is not worth a download
    tensors, sha256 = huggingface.read_weights(repository, reference.sha256)
    told = huggingface.provenance(repository, reference.source, sha256, reference.licence)
    return Found(tensors, description, [], told)


def repository_of(name: str) -> str:
    """The repository that timm takes a model's weights from.

    Raises:
        WeightsError: timm does not know the model, or the tag behind the dot.
    """
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise WeightsError(f"timm has no model {architecture!r}{suggest(architecture, timm.list_models())}")
    if not tag:
        known_tags = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "timm has none for it"
        raise WeightsError(f"{name!r} names no weights; with a tag there is: {known_tags}")
    tags = timm.list_pretrained(f"{architecture}.*")
    place = timm.get_pretrained_cfg(name).hf_hub_id if name in tags else None
    if place is None:
        raise WeightsError(f"timm has no weights {name!r} on the hub{suggest(name, tags) if tags else ''}")
    return str(place)


def describe(config: Any, where: str) -> dict[str, Any]:  # noqa: ANN401 - what a file held
    """The description of the network that a config.json in timm's layout names.

    Args:
        config: the file's content.
        where: whose it is, for messages.

    Raises:
        WeightsError: it is no such file, or describes what we cannot build.
    """
    # Of early files the whole is what later ones have under `pretrained_cfg`.
    trained = config.get("pretrained_cfg", config) if isinstance(config, dict) else {}
    name = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(name, str) or not isinstance(trained, dict):
        raise WeightsError(f"{where}: config.json is not in timm's layout: it names no `architecture`")
    extra = {key: value for key, value in (config.get("model_args") or {}).items() if key != "img_size"}
    if extra:
        raise WeightsError(
            f"{where}: config.json changes the architecture by `{next(iter(extra))}`, which is not built "
            "here; take another model"
        )
    channels = (trained.get("input_size") or (3,))[0]
    if channels != 3:
        raise WeightsError(f"{where}: it takes images of {channels} channels, not of 3; take another model")
    described: dict[str, Any] = {"library": "timm", "name": name}
    for key, default in {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}.items():
        described[key] = [float(one) for one in trained.get(key) or default]
    size = (config.get("model_args") or {}).get("img_size")
    if size is not None:
        described["img_size"] = size if isinstance(size, int) else size[0]
    return described
