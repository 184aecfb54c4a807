"""What a SavedModel of TensorFlow takes and gives, found out by loading it once."""

from __future__ import annotations

from pathlib import Path

from steps.errors import WeightsError
from steps.references import TfhubWeights
from steps.savedmodel import GRAPH, opening, process
from steps.sources import Found

# What the process tells that is no part of the description.
_PROVENANCE = ("tensorflow", "tensorflow_text", "tensors", "parameters")


def read(reference: TfhubWeights, folder: Path) -> Found:
    """Load a SavedModel once, to learn what it takes and gives.

    Args:
        reference: says the size of its images.
        folder: with `saved_model.pb`; it is copied as a whole beside architecture.json.

    Returns:
        No tensors; a description with `folder` (its name), `kind` ("image" or "text"), `features` (how many),
        `signature`, `input`, `output`, `image_size`; and `mean` and `std` that leave pixels in [0, 1]. The
        provenance tells the version of TensorFlow, and how many variables and numbers the SavedModel has.

    Raises:
        WeightsError: it is no SavedModel, TensorFlow is not there, or it gives no features.
    """
    if not (folder / GRAPH).is_file():
        raise WeightsError(f"{folder.name}: has no {GRAPH}: it is no SavedModel of TensorFlow")
    with process(folder.name) as ask:
        found = ask(opening(folder, reference.image_size, None))
    provenance = {name: found.pop(name) for name in _PROVENANCE if name in found}
    description = {
        "library": "savedmodel",
        "name": reference.handle or folder.name,
        "folder": folder.name,
        "image_size": reference.image_size,
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        **found,
    }
    return Found({}, description, [folder], provenance)
