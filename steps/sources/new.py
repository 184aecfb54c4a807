"""A network with random weights, of sizes that the entry gives, to be pretrained here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steps import artifacts, network, params, sources
from steps.artifacts import read_json
from steps.errors import WeightsError
from steps.references import HfWeights, NewWeights, Pretrained, PretrainedSettings
from steps.settings import suggest
from steps.sources import Found, hub, huggingface, tokenizers
from steps.sources.file import of_timm, of_transformers
from steps.sources.weights import TOKENIZER_FILES

# What a config says of its tokenizer.
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


def read(reference: NewWeights, scratch: Path) -> Found:
    """Draw the weights of a network; the same reference gives the same bytes.

    Args:
        reference: architecture, sizes, seed, and whose tokenizer it uses.
        scratch: where the tokenizer is written.

    Raises:
        WeightsError: there is no such network, or the tokenizer cannot be had or does not fit.
    """
    files: list[Path] = []
    about: dict[str, Any] = {}
    if reference.library == "timm":
        description = _of_timm(reference)
    else:
        files, about = _tokenizer(reference, scratch)
        description = _of_transformers(reference, files)
    tensors = _drawn(description, reference.seed)
    provenance = {
        "source": "new",
        "model": reference.architecture,
        "seed": reference.seed,
        "sha256": network.state_sha256(tensors),
        "licence": reference.licence,
        **about,
    }
    return Found(tensors, description, files, provenance)


def _drawn(description: dict[str, Any], seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        # Of the CPU alone: there the weights are drawn.
        torch.default_generator.manual_seed(seed)
        return dict(network.stored(description).state_dict())


def _of_timm(reference: NewWeights) -> dict[str, Any]:
    config = dict(reference.config)
    description = of_timm(reference.architecture)
    if (size := config.pop("img_size", None)) is not None:
        description["img_size"] = size
    return description | ({"config": config} if config else {})


def _of_transformers(reference: NewWeights, files: list[Path]) -> dict[str, Any]:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoTokenizer

    name, given = reference.architecture, reference.config
    known = of_transformers(name)
    for key in given:
        if key not in known:
            raise WeightsError(
                f"`config` of the new {name} has a {key!r}, which it does not know{_near(key, known)}"
            )
    tokenizer: Any = AutoTokenizer.from_pretrained(files[0].parent, local_files_only=True)
    fits = {key: getattr(tokenizer, key, None) for key in _TOKENS if key in known}
    fits["vocab_size"] = len(tokenizer)
    try:
        config: dict[str, Any] = AutoConfig.for_model(name, **(fits | given)).to_dict()
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise WeightsError(f"`config` of the new {name}: {' '.join(str(error).split())}") from None
    if config["vocab_size"] < len(tokenizer):
        raise WeightsError(
            f"`config` of the new {name} has a vocab_size of {config['vocab_size']}, the tokenizer of "
            f"{reference.tokenizer!r} has {len(tokenizer)} words: leave `vocab_size` out"
        )
    config.pop("transformers_version", None)  # what was made is the same with another
    return {"library": "transformers", "name": name, "config": config}


def _near(key: str, known: dict[str, Any]) -> str:
    found = suggest(key, known)
    return found if "did you mean" in found else ""


# -------------------------------------------------------------------------------------------------- tokenizer


def _tokenizer(reference: NewWeights, scratch: Path) -> tuple[list[Path], dict[str, Any]]:
    """The tokenizer's files of another entry, and what the provenance tells of them.

    Raises:
        WeightsError: that entry has none.
    """
    assert reference.tokenizer is not None
    assert reference.borrowed is not None, "resolve fills it in"
    other = params.parse(PretrainedSettings, reference.borrowed, reference.tokenizer).reference
    if isinstance(other, NewWeights):
        raise WeightsError(
            f"the tokenizer of {reference.tokenizer!r} is another entry's: name that one, {other.tokenizer!r}"
        )
    folder = scratch / "other"
    folder.mkdir()
    files = [one for one in _files_of(other, folder) if one.name in TOKENIZER_FILES]
    if not files:
        raise WeightsError(f"{reference.tokenizer!r} has no tokenizer; name an entry for texts")
    digests = {one.name: artifacts.sha256_file(one) for one in files}
    return files, {"tokenizer": reference.tokenizer, "tokenizer_sha256": artifacts.sha256_json(digests)}


def _files_of(other: Pretrained, scratch: Path) -> list[Path]:
    if not isinstance(other, HfWeights) or other.library != "transformers":
        return sources.materialise(other, scratch).files
    # From the hub without its weights, which may be large.
    repository = huggingface.pinned(other.model, other.revision)
    config = read_json(hub.require_file(repository, "config.json"), "the hub")
    found = [hub.fetch_file(repository, name) for name in TOKENIZER_FILES]
    return tokenizers.normalised([one for one in found if one], config, scratch, str(repository))
