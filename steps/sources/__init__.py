"""Where pretrained weights come from: one module for each source, all of one shape.

A module has `read(reference, scratch) -> Found`. It resolves the reference, checks the bytes against the
pin, and gives tensors with the description of their network. fetch does the rest, for all sources alike:
it builds the network, matches and checks every tensor, and writes the folder below work/pretrained/.

A place whose content changes also has `newest(reference) -> Pin`: what the reference means today. `tfhub`
brings a folder; `savedmodel.read(reference, folder)` makes of it what can be trained upon.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from steps.references import (
    FileWeights,
    FolderWeights,
    HfWeights,
    NewWeights,
    PackageWeights,
    Pretrained,
    RegistryWeights,
    TfhubWeights,
    TimmWeights,
    VectorsWeights,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Found:
    """What a source gives.

    Attributes:
        tensors: by the source's names, a head or a language model's top among them.
        description: of the network, as it will stand in `architecture.json`: `library`, `name`, and for timm
            `mean` and `std`, for transformers `config`.
        files: tokenizer files and the like, and folders; copied beside the weights under their names.
        provenance: where the bytes are from: at least `source`, `sha256` and `licence`; never a token, never
            a path of somebody's home.
        names: how the tensors find their places: by name, by order, or `reported`: by name, with those that
            `may_miss` names drawn at random, and both these and what is left over told in the provenance.
        may_miss: globs of names.
    """

    tensors: dict[str, Tensor]
    description: dict[str, Any]
    files: list[Path]
    provenance: dict[str, Any]
    names: Literal["by_name", "by_order", "reported"] = "by_name"
    may_miss: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pin:
    """The newest state of what a reference names.

    Attributes:
        fields: what the entry in params.yaml shall say: `revision` or `version`, `sha256`, `licence`.
        size: of the weights, in bytes; None where nobody tells.
    """

    fields: dict[str, Any]
    size: int | None


def materialise(reference: Pretrained, scratch: Path) -> Found:
    """Bring the weights a reference names, checked against its pins.

    Args:
        reference: the entry under `pretrained:`.
        scratch: an empty folder for what is needed in between; it goes away with all it holds.

    Raises:
        WeightsError: they are missing, altered or of no use, or their place cannot be reached.
    """
    match reference:
        case PackageWeights():
            from steps.sources import package

            return package.read(reference, scratch)
        case TimmWeights():
            from steps.sources import timm_hub

            return timm_hub.read(reference, scratch)
        case HfWeights():
            from steps.sources import huggingface

            return huggingface.read(reference, scratch)
        case TfhubWeights():
            from steps.sources import tfhub

            return tfhub.read(reference, scratch)
        case FolderWeights():
            from steps.sources import folder

            return folder.read(reference, scratch)
        case FileWeights():
            from steps.sources import file

            return file.read(reference, scratch)
        case RegistryWeights():
            from steps.sources import registry

            return registry.read(reference, scratch)
        case VectorsWeights():
            from steps.sources import vectors

            return vectors.read(reference, scratch)
        case NewWeights():
            from steps.sources import new

            return new.read(reference, scratch)


def newest(reference: Pretrained) -> Pin:
    """What a reference means today: the fields that pin it, and how much there is to download.

    Raises:
        WeightsError: there is no such thing, or its place cannot be reached.
    """
    match reference:
        case TimmWeights():
            from steps.sources import timm_hub

            return timm_hub.newest(reference)
        case HfWeights():
            from steps.sources import huggingface

            return huggingface.newest(reference)
        case TfhubWeights(path=None):
            from steps.sources import tfhub

            return tfhub.newest(reference)
        case RegistryWeights():
            from steps.sources import registry

            return registry.newest(reference)
        case PackageWeights():
            from steps.sources import package

            return package.newest(reference)
        case NewWeights():
            return Pin({}, None)
        case TfhubWeights() | FolderWeights() | FileWeights() | VectorsWeights():
            from steps.sources.weights import fingerprint, size

            path = Path(reference.path or "")
            return Pin({"sha256": fingerprint(path)}, size(path))
