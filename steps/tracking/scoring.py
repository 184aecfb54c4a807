"""MLflow's scoring server around a loaded model, and its recipe for a container."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from steps.errors import TrackingError
from steps.tracking import registry
from steps.tracking.registry import Loaded, Version

# MLflow gives up a prediction after so long, unless the user says otherwise.
ANSWER_SECONDS = 60


@dataclass(frozen=True)
class _Model:
    """What MLflow's server needs of a model.

    Attributes:
        metadata: MLflow's description, with the signature.
        ask: predicts what was parsed.
    """

    metadata: Any
    ask: Callable[[Any], pd.DataFrame]

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ANN401 - parsed
        """Called by MLflow's server, in a thread."""
        return self.ask(data)


def app(loaded: Loaded, ask: Callable[[Any], pd.DataFrame]) -> Callable[..., Awaitable[None]]:
    """MLflow's scoring server as an ASGI application: `/invocations`, `/ping`, `/version`.

    Args:
        loaded: the model; its signature says how requests are parsed.
        ask: is given what was parsed, instead of the model's own `predict`.
    """
    os.environ.setdefault("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", str(ANSWER_SECONDS))
    from mlflow.pyfunc import scoring_server

    model: Any = _Model(loaded.pyfunc.metadata, ask)
    found: Callable[..., Awaitable[None]] = scoring_server.init(model)
    return found


def example(loaded: Loaded) -> pd.DataFrame | None:
    """The input that was registered with a model, to warm it up with."""
    found = loaded.pyfunc.input_example
    return found if isinstance(found, pd.DataFrame) else None


def recipe(version: Version, folder: Path) -> None:
    """Write MLflow's Dockerfile and the model's files into a folder, for a container engine to build.

    Args:
        version: whose files are compared with what was registered.
        folder: exists and is empty.

    Raises:
        TrackingError: MLflow cannot write it, or the files are gone or altered.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.models.flavor_backend_registry import get_flavor_backend

    loaded = registry.load(version)  # what cannot be loaded here is no use there
    assert loaded.folder is not None
    (mlmodel,) = Path(loaded.folder.name).rglob("MLmodel")
    with tempfile.TemporaryDirectory(prefix="headstart-") as between:
        # The recipe calls the model by the name of its folder.
        model = shutil.copytree(mlmodel.parent, Path(between) / "model")
        try:
            backend = get_flavor_backend(str(model), docker_build=True, env_manager="local")  # type: ignore[no-untyped-call]
            backend.generate_dockerfile(str(model), str(folder), install_java=False)
        except MlflowException as error:
            told = " ".join(str(error).split())[:300]
            raise TrackingError(f"MLflow cannot write the recipe: {told}") from error
