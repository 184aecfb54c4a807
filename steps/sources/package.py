"""Weights that an installed Python package ships."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

from steps.artifacts import read_json
from steps.errors import WeightsError
from steps.references import PackageWeights
from steps.sources import Found, Pin
from steps.sources.weights import TOKENIZER_FILES, check_pin, fingerprint, load_weights, size


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


def read(reference: PackageWeights, scratch: Path) -> Found:
    """Read the weights a reference names, after checking their sha256.

    Args:
        reference: of the package and its file.
        scratch: is not needed.

    Raises:
        WeightsError: the package or file is missing, the bytes are not those pinned, or config.json describes
            another model.
    """
    path = find_folder(reference.package) / reference.file
    if not path.is_file():
        raise WeightsError(f"package {reference.package!r} has no file {reference.file!r}")
    found = check_pin(fingerprint(path), reference.sha256, f"{reference.package}/{reference.file}")
    files: list[Path] = []
    if reference.library == "transformers":
        files = [path.parent / name for name in TOKENIZER_FILES if (path.parent / name).is_file()]
    provenance = {
        "source": "package",
        "package": reference.package,
        "version": _version(reference.package),
        "file": reference.file,
        "sha256": found,
        "licence": reference.licence,
    }
    return Found(load_weights(path), _describe(reference, path), files, provenance, reference.names)


def newest(reference: PackageWeights) -> Pin:
    """The hash of the file as the installed package has it."""
    path = find_folder(reference.package) / reference.file
    return Pin({"sha256": fingerprint(path)}, size(path))


def _describe(reference: PackageWeights, path: Path) -> dict[str, Any]:
    if reference.library == "timm":
        return {
            "library": "timm",
            "name": reference.architecture,
            "mean": list(reference.mean),
            "std": list(reference.std),
        }
    if not (path.parent / "config.json").is_file():
        raise WeightsError(f"package {reference.package!r} has no config.json beside {reference.file!r}")
    config = read_json(path.parent / "config.json", "the package")
    if config.get("model_type") != reference.architecture:
        raise WeightsError(
            f"{reference.package}: config.json describes a {config.get('model_type')!r}, "
            f"params.yaml says `architecture: {reference.architecture}`"
        )
    return {"library": "transformers", "name": reference.architecture, "config": config}


def _version(package: str) -> str:
    distributions = importlib.metadata.packages_distributions().get(package, [])
    return importlib.metadata.version(distributions[0]) if distributions else "unknown"
