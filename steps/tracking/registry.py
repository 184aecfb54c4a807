"""The model registry: versions of a model, made once for the same bytes, and read only when they are these.

A version's files lie in an artifact store, which others may write to. So a version lists the SHA-256 of each
of its files in `files.json` among them, and has the SHA-256 of that list as a tag, which the database holds.
Whatever is read of a version is compared with it first.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps import artifacts
from steps.errors import TrackingError
from steps.tracking import store
from steps.tracking.once import once
from steps.tracking.store import Store

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import LoggedModel, Metric
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import Model

CHAMPION = "champion"
MODEL_SHA = "headstart.model_sha256"
FILES_SHA = "headstart.files_sha256"
FILES = "files.json"
# What MLflow adds to what it brings here.
ADDED = "registered_model_meta"


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
    """A model in memory, as MLflow gives it to anybody.

    Attributes:
        pyfunc: MLflow's own.
        folder: with its files; gone when the model is.
    """

    pyfunc: Any
    folder: tempfile.TemporaryDirectory[str] | None = None

    def predict(self, inputs: pd.DataFrame) -> pd.DataFrame:
        """Label, probability and probabilities of each row; what `steps/serving.py` raises goes through."""
        found: pd.DataFrame = self.pyfunc.predict(inputs)
        return found


def name_of(experiment: str) -> str:
    """The registered model of an experiment."""
    return f"headstart-{experiment}"


def find(opened: Store, model: str, sha256: str) -> Version | None:
    """The version of these bytes; None when there is none."""
    found = _first(opened, model, sha256)
    return None if found is None else _version(opened, found)


def _first(opened: Store, model: str, sha256: str) -> ModelVersion | None:
    """The oldest version of these bytes."""
    found = opened.client.search_model_versions(f"name = '{model}' AND tags.`{MODEL_SHA}` = '{sha256}'")
    return min(found, key=lambda one: int(one.version), default=None)


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


def version(opened: Store, model: str, number: str) -> Version | None:
    """The version of this number; None when there is none."""
    try:
        found: Any = opened.client.get_model_version(model, number)
    except Exception as error:
        store.is_absent(error)
        return None
    return Version(
        found.name, str(found.version), found.run_id or "", dict(found.tags), tuple(sorted(found.aliases))
    )


def add(opened: Store, candidate: Candidate) -> Version:
    """Make a version of a candidate.

    The files are uploaded before there is a version, so a version is always whole; an upload that was
    broken off is taken up again where its tag is found.
    """
    from mlflow.entities import LoggedModelStatus

    client, name = opened.client, candidate.model
    logged = _logged(opened, candidate)
    if logged.status != LoggedModelStatus.READY:
        client.set_logged_model_tags(logged.model_id, {FILES_SHA: _upload(opened, candidate, logged)})
        logged = client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    _ensure_registered(opened, name)
    # A model that an earlier release uploaded before it was stopped has no list.
    listed = {key: value for key, value in logged.tags.items() if key == FILES_SHA}
    create = partial(
        client.create_model_version,
        name,
        f"models:/{logged.model_id}",
        candidate.run_id,
        tags=candidate.tags | {MODEL_SHA: candidate.sha256} | listed,
        description=candidate.description,
        model_id=logged.model_id,
    )
    made = once(create, partial(_first, opened, name, candidate.sha256))
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
    find = partial(_find_logged, opened, candidate)
    create = partial(
        opened.client.create_logged_model,
        candidate.experiment_id,
        name=candidate.model,
        source_run_id=candidate.run_id,
        tags=candidate.tags | {MODEL_SHA: candidate.sha256},
        model_type="classifier",
    )
    return find() or once(create, find)


def _find_logged(opened: Store, candidate: Candidate) -> LoggedModel | None:
    found = opened.client.search_logged_models(
        [candidate.experiment_id], f"tags.`{MODEL_SHA}` = '{candidate.sha256}'", max_results=1
    )
    return found[0] if found else None


def _upload(opened: Store, candidate: Candidate, logged: LoggedModel) -> str:
    """Bring the files to the artifact store; gives the SHA-256 of the list of them."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    client, model_id = opened.client, logged.model_id
    linked = partial(_is_linked, opened, candidate.run_id, model_id)
    if not linked():
        once(lambda: client.log_outputs(candidate.run_id, [LoggedModelOutput(model_id, 0)]) or True, linked)
    client.log_batch(candidate.run_id, metrics=_scores(opened, candidate, model_id))
    described = Model(artifact_path=logged.artifact_location, run_id=candidate.run_id, model_id=model_id)
    # In the clone and not in /tmp, which may be kept in memory; a killed upload's folder goes first.
    for stale in store.LOCK.parent.glob("model-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="model-", dir=store.LOCK.parent) as folder:
        path = Path(folder) / "model"
        candidate.save(path, described)
        artifacts.write_json(path / FILES, artifacts.sha256_files(path))
        listed = artifacts.sha256_file(path / FILES)
        with store.uploading(opened.uri):
            client.log_model_artifacts(model_id, str(path))
    return listed


def _is_linked(opened: Store, run_id: str, model_id: str) -> bool | None:
    """Whether a run's page leads to the model already; None where it does not."""
    outputs = opened.client.get_run(run_id).outputs
    return model_id in [output.model_id for output in (outputs.model_outputs if outputs else [])] or None


def _scores(opened: Store, candidate: Candidate, model_id: str) -> list[Metric]:
    """The run's test metrics once more, as the model's: its page then shows them."""
    from mlflow.entities import Metric

    start = opened.client.get_run(candidate.run_id).info.start_time
    return [
        Metric(name, value, start, 0, model_id=model_id, run_id=candidate.run_id)
        for name, value in candidate.scores.items()
    ]


def tag(opened: Store, version: Version, tags: dict[str, str]) -> None:
    """Set tags of a version."""
    for key, value in tags.items():
        opened.client.set_model_version_tag(version.model, version.number, key, value[:5000])


def file_of(version: Version, path: str, folder: Path) -> Path | None:
    """One file of a version, fetched into `folder`; None when the version has no such file.

    Raises:
        TrackingError: it is not the file that was registered.
    """
    try:
        found = _bring(version, path, folder)
    except Exception:  # an artifact store's client may be any library
        return None
    check(version, path, found)
    return found


def check(version: Version, path: str, found: Path) -> None:
    """Hold that what was brought of a version is what was registered; versions older than the list pass.

    Args:
        version: of a registered model.
        path: of a file or a folder below the version's files; empty for all of them.
        found: that file or folder, here.

    Raises:
        TrackingError: a file differs, is missing, or was not there; the message names it.
    """
    if FILES_SHA not in version.tags:
        return
    listed = _listed(version, found / FILES if not path else None)
    if found.is_file():
        wanted, there = {path: listed.get(path)}, {path: artifacts.sha256_file(found)}
    else:
        before = f"{path}/" if path else ""
        wanted = {name: one for name, one in listed.items() if name.startswith(before)}
        there = {f"{before}{name}": one for name, one in artifacts.sha256_files(found).items()}
        there = {name: one for name, one in there.items() if name not in (ADDED, FILES)}
    for name in sorted({*wanted, *there}):
        if wanted.get(name) != there.get(name):
            what = "is missing" if name not in there else "was added" if not wanted.get(name) else "differs"
            raise _altered(version, f"its file {name} {what}")


def _listed(version: Version, file: Path | None) -> dict[str, str]:
    """The SHA-256 of each file of a version, as they were registered.

    Args:
        version: that has a list.
        file: the list, where it is here already.
    """
    with tempfile.TemporaryDirectory(prefix="headstart-") as folder:
        try:
            file = file or _bring(version, FILES, Path(folder))
            content = file.read_bytes()
        except Exception as error:  # an artifact store's client may be any library
            raise _gone(version, error) from error
    if hashlib.sha256(content).hexdigest() != version.tags[FILES_SHA]:
        raise _altered(version, f"its list of files, {FILES}, differs")
    found: dict[str, str] = json.loads(content)
    return found


def _altered(version: Version, what: str) -> TrackingError:
    return TrackingError(
        f"version {version.number} of {version.model} is not what was registered: {what}; it is not used. "
        f"Restore its files, or `headstart rollback {version.model}`"
    )


def _gone(version: Version, error: Exception) -> TrackingError:
    detail = " ".join(str(error).split())[:300] or type(error).__name__
    return TrackingError(
        f"the files of version {version.number} of {version.model} cannot be had: {detail}; bring them "
        f"back, or `headstart rollback {version.model}`"
    )


def _bring(version: Version, path: str, folder: Path) -> Path:
    import mlflow.artifacts

    uri = f"models:/{version.model}/{version.number}" + (f"/{path}" if path else "")
    found = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    if not found.exists():
        raise FileNotFoundError(f"there is no {path or 'file'}")
    return found


def verify(version: Version) -> int | None:
    """Bring all files of a version and compare them with what was registered.

    Returns:
        How many there are beside the list; None for a version older than the list of them.

    Raises:
        TrackingError: they cannot be had, or differ.
    """
    with tempfile.TemporaryDirectory(prefix="headstart-") as folder:
        found = whole(version, Path(folder))
        return len(_listed(version, found / FILES)) if FILES_SHA in version.tags else None


def whole(version: Version, folder: Path) -> Path:
    """All files of a version, brought into a folder and compared with what was registered.

    Raises:
        TrackingError: they cannot be had, or differ.
    """
    try:
        found = _bring(version, "", folder)
    except Exception as error:  # an artifact store's client may be any library
        raise _gone(version, error) from error
    if not (found / "MLmodel").exists():
        raise _gone(version, FileNotFoundError("there is no MLmodel"))
    check(version, "", found)
    return found


def load_folder(folder: Path) -> Loaded:
    """A packaged model that is no version yet."""
    import mlflow.pyfunc

    return Loaded(mlflow.pyfunc.load_model(str(folder), suppress_warnings=True))


def load(version: Version) -> Loaded:
    """The model of a version, ready to predict, from files that were compared with what was registered.

    Raises:
        TrackingError: its files are gone, differ, or cannot be loaded here.
    """
    folder = tempfile.TemporaryDirectory(prefix="headstart-model-")
    path = whole(version, Path(folder.name))
    try:
        return Loaded(load_folder(path).pyfunc, folder)
    except Exception as error:
        detail = " ".join(str(error).split())[:300] or type(error).__name__
        raise TrackingError(
            f"version {version.number} of {version.model} cannot be loaded: {detail}"
        ) from error


def _version(opened: Store, found: ModelVersion) -> Version:
    """All of a version; a search or an alias does not tell of its aliases."""
    whole = version(opened, found.name, str(found.version))
    assert whole is not None
    return whole
