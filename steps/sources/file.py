"""A file of the user's own tensors, of a network that the entry names."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from steps import entry, network
from steps.artifacts import read_json
from steps.errors import WeightsError
from steps.families import language
from steps.references import FileWeights
from steps.settings import suggest
from steps.sources import Found, tokenizers, wrappings
from steps.sources.weights import TOKENIZER_FILES, check_pin, fingerprint

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def read(reference: FileWeights, scratch: Path) -> Found:
    """Read the tensors of a file, out of what is wrapped around them.

    Args:
        reference: to the file, with what network its tensors are of.
        scratch: where a tokenizer is written.

    Raises:
        WeightsError: the file is missing, altered, or would run code; or the network cannot be built.
    """
    path = Path(reference.path)
    if path.suffix not in SUFFIXES or not path.is_file():
        raise WeightsError(
            f"{path} is no file of {', '.join(SUFFIXES)}; correct `path:`, or use `source: folder`"
        )
    sha256 = check_pin(fingerprint(path), reference.sha256, path.name)
    description = describe(reference)
    model = network.stored(description)
    found = wrappings.renamed(wrappings.load(path), reference.rename, path.name)
    found = wrappings.without_prefix(found, model)
    for words in wrappings.in_words(found):
        entry.say(f"{path.name}: {words}")
    provenance = {
        "source": "file",
        "file": path.name,
        "sha256": sha256,
        "licence": reference.licence,
        **found.told,
    }
    files = _tokenizer(reference, description, scratch) if reference.library == "transformers" else []
    return Found(found.tensors, description, files, provenance, "reported", reference.allow_missing)


def describe(reference: FileWeights) -> dict[str, Any]:
    """The description of the network that the tensors are of.

    Raises:
        WeightsError: there is no such network.
    """
    if reference.library == "timm":
        assert reference.architecture is not None
        described = of_timm(reference.architecture)
        for name in ("mean", "std"):
            if (own := getattr(reference, name)) is not None:
                described[name] = list(own)
        return described
    if reference.config is None:
        assert reference.architecture is not None
        config = of_transformers(reference.architecture)
    else:
        config = read_config(Path(reference.config))
    if reference.architecture not in (None, config["model_type"]):
        raise WeightsError(
            f"{reference.config} describes a {config['model_type']!r}, "
            f"params.yaml says `architecture: {reference.architecture}`"
        )
    return {"library": "transformers", "name": config["model_type"], "config": config}


def of_timm(name: str) -> dict[str, Any]:
    """timm's network of this name, with the colours that its own weights want.

    Raises:
        WeightsError: timm does not know it.
    """
    import timm

    if not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise WeightsError(f"timm has no model {name!r}{f'; did you mean {close[0]!r}?' if close else ''}")
    told = timm.get_pretrained_cfg(name, allow_unregistered=True)
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if told is not None:
        mean, std = told.mean, told.std
    return {"library": "timm", "name": name, "mean": list(mean), "std": list(std)}


def of_transformers(model_type: str) -> dict[str, Any]:
    """The config of a model type as transformers has it by default.

    Raises:
        WeightsError: it is none that can be built.
    """
    from transformers import AutoConfig

    if model_type not in language.MODEL_TYPES:
        known = suggest(model_type, language.MODEL_TYPES)
        raise WeightsError(f"{model_type!r} is no model type that can be built here{known}")
    config: dict[str, Any] = AutoConfig.for_model(model_type).to_dict()
    return config


def read_config(path: Path) -> dict[str, Any]:
    """A config.json of transformers.

    Raises:
        WeightsError: it is missing, or is no such file.
    """
    if not path.is_file():
        raise WeightsError(f"there is no {path}: it has to say what network the tensors are of")
    config = read_json(path, "the model's author")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise WeightsError(f"{path} names no `model_type`: it is no config.json of transformers")
    tokenizers.refuse_code(config, str(path))
    return config


def _tokenizer(reference: FileWeights, description: dict[str, Any], scratch: Path) -> list[Path]:
    """The tokenizer of the folder that the entry names, else of the folder of the config or the file."""
    folder = Path(reference.tokenizer or Path(reference.config or reference.path).parent)
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return tokenizers.normalised(files, description["config"], scratch, str(folder))
