"""The model registry: versions of a model, made once for the same bytes, and the alias `champion`."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import TrackingError
from steps.tracking import store
from steps.tracking.store import Store

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import LoggedModel, Metric
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import Model

CHAMPION = "champion"
MODEL_SHA = "headstart.model_sha256"


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        model: the registered model's name.
        number: the version, as MLflow writes it.
        run_id: of the training it came from.
        tags: of the version.
        aliases: that point to it.
    """

    model: str
    number: str
    run_id: str
    tags: dict[str, str]
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """A model that may become a version.

    Attributes:
        model: the registered model's name.
        sha256: of the model's bytes; a version that has it is never made again.
        experiment_id: MLflow's id of the experiment.
        run_id: of the training it came from.
        tags: for the version.
        description: for the version, a few sentences.
        scores: its test metrics.
        save: writes the model in MLflow's format into a folder that does not exist yet.
    """

    model: str
    sha256: str
    experiment_id: str
    run_id: str
    tags: dict[str, str]
    description: str
    scores: dict[str, float]
    save: Callable[[Path, Model], None]


@dataclass(frozen=True)
class Loaded:
    """A model in memory, as MLflow gives it to anybody."""

    pyfunc: Any

    def predict(self, inputs: pd.DataFrame) -> pd.DataFrame:
        """Label, probability and probabilities of each row; what `steps/serving.py` raises goes through."""
        found: pd.DataFrame = self.pyfunc.predict(inputs)
        return found


def name_of(experiment: str) -> str:
    """The registered model of an experiment."""
    return f"headstart-{experiment}"


def find(opened: Store, model: str, sha256: str) -> Version | None:
    """The version of these bytes; None when there is none."""
    found = opened.client.search_model_versions(f"name = '{model}' AND tags.`{MODEL_SHA}` = '{sha256}'")
    return _version(opened, found[0]) if found else None


def champion(opened: Store, model: str) -> Version | None:
    """The version the alias `champion` points to; None when there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return _version(opened, opened.client.get_model_version_by_alias(model, CHAMPION))
    except MlflowException as error:
        # An alias that does not exist is an invalid parameter to a SQL store.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def add(opened: Store, candidate: Candidate) -> Version:
    """Make a version of a candidate.

    The files are uploaded before there is a version, so a version is always whole; an upload that was
    broken off is taken up again where its tag is found.
    """
    from mlflow.entities import LoggedModelStatus

    client, name = opened.client, candidate.model
    logged = _logged(opened, candidate)
    if logged.status != LoggedModelStatus.READY:
        _upload(opened, candidate, logged)
        logged = client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    _ensure_registered(opened, name)
    made = client.create_model_version(
        name,
        f"models:/{logged.model_id}",
        candidate.run_id,
        tags=candidate.tags | {MODEL_SHA: candidate.sha256},
        description=candidate.description,
        model_id=logged.model_id,
    )
    # MLflow's pages link a model to its versions by this tag.
    versions = [
        *json.loads(logged.tags.get("mlflow.modelVersions", "[]")),
        {"name": name, "version": made.version},
    ]
    client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": json.dumps(versions)})
    return _version(opened, made)


def _ensure_registered(opened: Store, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        opened.client.create_registered_model(name, description="The winners of one Headstart experiment.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _logged(opened: Store, candidate: Candidate) -> LoggedModel:
    found = opened.client.search_logged_models(
        [candidate.experiment_id], f"tags.`{MODEL_SHA}` = '{candidate.sha256}'", max_results=1
    )
    if found:
        return found[0]
    return opened.client.create_logged_model(
        candidate.experiment_id,
        name=candidate.model,
        source_run_id=candidate.run_id,
        tags=candidate.tags | {MODEL_SHA: candidate.sha256},
        model_type="classifier",
    )


def _upload(opened: Store, candidate: Candidate, logged: LoggedModel) -> None:
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    client, model_id = opened.client, logged.model_id
    outputs = client.get_run(candidate.run_id).outputs
    if model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
        client.log_outputs(candidate.run_id, [LoggedModelOutput(model_id, 0)])
    client.log_batch(candidate.run_id, metrics=_scores(opened, candidate, model_id))
    described = Model(artifact_path=logged.artifact_location, run_id=candidate.run_id, model_id=model_id)
    # In the clone and not in /tmp, which may be kept in memory; a killed upload's folder goes first.
    for stale in store.LOCK.parent.glob("model-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="model-", dir=store.LOCK.parent) as folder:
        path = Path(folder) / "model"
        candidate.save(path, described)
        with store.uploading(opened.uri):
            client.log_model_artifacts(model_id, str(path))


def _scores(opened: Store, candidate: Candidate, model_id: str) -> list[Metric]:
    """The run's test metrics once more, as the model's: its page then shows them."""
    from mlflow.entities import Metric

    start = opened.client.get_run(candidate.run_id).info.start_time
    return [
        Metric(name, value, start, 0, model_id=model_id, run_id=candidate.run_id)
        for name, value in candidate.scores.items()
    ]


def promote(opened: Store, version: Version) -> Version:
    """Point `champion` to a version."""
    opened.client.set_registered_model_alias(version.model, CHAMPION, version.number)
    return _version(opened, opened.client.get_model_version(version.model, version.number))


def tag(opened: Store, version: Version, tags: dict[str, str]) -> None:
    """Set tags of a version."""
    for key, value in tags.items():
        opened.client.set_model_version_tag(version.model, version.number, key, value[:5000])


def file_of(version: Version, path: str, folder: Path) -> Path | None:
    """One file of a version, fetched into `folder`; None when the version has no such file."""
    import mlflow.artifacts

    with contextlib.suppress(Exception):
        uri = f"models:/{version.model}/{version.number}/{path}"
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    return None


def load_folder(folder: Path) -> Loaded:
    """A packaged model that is no version yet."""
    import mlflow.pyfunc

    return Loaded(mlflow.pyfunc.load_model(str(folder), suppress_warnings=True))


def load(version: Version) -> Loaded:
    """The model of a version, ready to predict.

    Raises:
        TrackingError: its files are gone or cannot be loaded here.
    """
    import mlflow.pyfunc

    try:
        return Loaded(mlflow.pyfunc.load_model(f"models:/{version.model}/{version.number}"))
    except Exception as error:
        detail = " ".join(str(error).split())[:300] or type(error).__name__
        raise TrackingError(
            f"version {version.number} of {version.model} cannot be loaded: {detail}"
        ) from error


def _version(opened: Store, found: ModelVersion) -> Version:
    whole: Any = opened.client.get_model_version(found.name, found.version)
    return Version(
        whole.name, str(whole.version), whole.run_id, dict(whole.tags), tuple(sorted(whole.aliases))
    )
