"""Weights that an installed Python package ships."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from steps.artifacts import read_json, sha256_file
from steps.errors import WeightsError
from steps.params import Pretrained

# What a tokenizer may need; a package ships some of them beside the weights.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)


def find_folder(package: str) -> Path:
    """The folder of an installed package, without running its code.

    Raises:
        WeightsError: it is not installed.
    """
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(f"package {package!r} is not installed; run `make install`, or correct `package:`")
    return Path(next(iter(spec.submodule_search_locations)))


def read(reference: Pretrained) -> tuple[dict[str, Tensor], list[Path], dict[str, Any]]:
    """Read the weights a reference names, after checking their sha256.

    Returns:
        The tensors by name, the tokenizer files beside them, and what `provenance.json` says of the
        source (`config` among it for transformers).

    Raises:
        WeightsError: the package or file is missing, or the bytes are not those pinned.
    """
    folder = find_folder(reference.package)
    path = folder / reference.file
    if not path.is_file():
        raise WeightsError(f"package {reference.package!r} has no file {reference.file!r}")
    found = sha256_file(path)
    if found != reference.sha256:
        raise WeightsError(
            f"{reference.package}/{reference.file} has sha256 {found}, params.yaml pins {reference.sha256}; "
            "the file was altered or the package changed: look before you change the pin"
        )
    tensors = load_weights(path)
    files: list[Path] = []
    provenance: dict[str, Any] = {
        "source": "package",
        "package": reference.package,
        "version": _version(reference.package),
        "file": reference.file,
        "sha256": found,
        "licence": reference.licence,
    }
    if reference.library == "transformers":
        files = [path.parent / name for name in TOKENIZER_FILES if (path.parent / name).is_file()]
        if not (path.parent / "config.json").is_file():
            raise WeightsError(f"package {reference.package!r} has no config.json beside {reference.file!r}")
        provenance["config"] = read_json(path.parent / "config.json", "the package")
    return tensors, files, provenance


def load_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or PyTorch file; a pickle is read with `weights_only=True`.

    Raises:
        WeightsError: the file is no such file, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path.name}: cannot be read as weights: {' '.join(str(error).split())[:200]}"
        ) from None
    except Exception as error:  # torch's UnpicklingError carries advice on switching the safety off
        raise WeightsError(
            f"{path.name}: holds more than tensors and was not loaded ({type(error).__name__})"
        ) from None
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"{path.name}: is not a dictionary of tensors")
    return {str(name): tensor for name, tensor in loaded.items()}


def _version(package: str) -> str:
    distributions = importlib.metadata.packages_distributions().get(package, [])
    return importlib.metadata.version(distributions[0]) if distributions else "unknown"
