"""A model in MLflow's format: its files, the code that loads them, and what it needs and gives."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import steps
from steps import artifacts
from steps.kinds import KINDS

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import Model

# The module of ours that MLflow calls to load a model. Named, not imported: it is above this room, and no
# object of ours is ever pickled.
LOADER = "steps.serving"
# Of the folder the loader is given; raised when its layout changes, so that other code says so.
FORMAT = 1
# Distributions that the loader imports, directly or through the libraries it names itself.
COMMON = ("numpy", "pandas", "pyarrow", "pydantic", "ruamel-yaml", "safetensors", "torch")
OF_CONTENT = {
    "image": (
        "imagecodecs",
        "imagehash",
        "pillow",
        "pydicom",
        "scipy",
        "tifffile",
        "timm",
        "torchvision",
    ),
    "text": ("huggingface-hub", "transformers"),
}
# What a task needs beside that.
OF_TASK = {
    "object-detection": ("pycocotools",),
    "semantic-segmentation": ("segmentation-models-pytorch",),
    "summarisation": ("rouge-score", "sentencepiece"),
}  # fmt: skip


def save(
    path: Path,
    described: Model,
    *,
    data: Path,
    task: str,
    others: tuple[str, ...] = (),
    example: pd.DataFrame,
    about: dict[str, Any],
) -> None:
    """Write a model in MLflow's format; nothing is loaded or run for it.

    Args:
        path: a folder that does not exist yet.
        described: MLflow's description, already tied to a run.
        data: the folder the loader will be given, as `steps/serving.py` tells.
        task: name of the task.
        others: what is needed beside what the task needs, pinned.
        example: an input.
        about: metadata, kept in the MLmodel file.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    kind = KINDS[task]
    # Of type string and not binary: JSON has no bytes, and MLflow would decode a data URI wrongly.
    inputs = Schema([ColSpec(DataType.string, column) for column in kind.columns])
    outputs = Schema([ColSpec(_type(told), name) for name, told in kind.outputs.items()])
    mlflow.pyfunc.save_model(
        path,
        loader_module=LOADER,
        data_path=str(data),
        code_paths=[str(Path(steps.__file__).parent)],
        mlflow_model=described,
        signature=ModelSignature(inputs, outputs),
        input_example=example,
        pip_requirements=[*requirements(task), *others],
        metadata=about,
    )


def _type(told: str) -> Any:  # noqa: ANN401 - one of MLflow's types
    """MLflow's type of a column of `kinds.Kind.outputs`."""
    from mlflow.types import DataType
    from mlflow.types.schema import Array, Map

    if told.startswith("["):
        return Array(_type(told[1:-1]))
    if told.startswith("{"):
        return Map(_type(told[1:-1]))
    return {"string": DataType.string, "double": DataType.double, "integer": DataType.long}[told]


def requirements(task: str) -> list[str]:
    """What a model of this task needs, pinned to the versions installed here."""
    names = sorted({"mlflow", *COMMON, *OF_CONTENT[KINDS[task].content], *OF_TASK.get(task, ())})
    # A local part such as `+cpu` names a build that the public index does not have.
    return [f"{name}=={version(name).split('+')[0]}" for name in names]


def of_tensorflow(pretrained: Path) -> tuple[str, ...]:
    """What a SavedModel needs, pinned to the versions that fetch tried it with; nothing of other weights.

    Args:
        pretrained: the folder that fetch made.
    """
    if artifacts.saved_model(pretrained) is None:
        return ()
    told = artifacts.read_json(pretrained / "provenance.json", "python -m steps.fetch")
    names = {"tensorflow-cpu": "tensorflow", "tensorflow-text": "tensorflow_text"}
    return tuple(f"{name}=={told[key].split('+')[0]}" for name, key in names.items() if key in told)
