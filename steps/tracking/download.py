"""Versions of models and artifacts of runs, found and brought here as files; nothing is loaded or run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from steps.errors import TrackingError
from steps.tracking import addresses, registry, store
from steps.tracking.registry import Version
from steps.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ADVICE = "look at MLFLOW_TRACKING_URI"


def require_store() -> None:
    """Hold that there is a store; looking into one that is not there would make it.

    Raises:
        TrackingError: it is a file, and there is none.
    """
    database = addresses.database_of(addresses.address())
    if database is not None and not database.exists():
        raise TrackingError(f"there is no {database}: nothing was registered here; {ADVICE}")


def version_of(opened: Store, model: str, *, alias: str | None = None, number: int | None = None) -> Version:
    """The version of this number, or the one that an alias points to now.

    Args:
        opened: the store.
        model: the registered model's name.
        alias: one of the model's aliases.
        number: the version's; counts before the alias.

    Raises:
        TrackingError: there is no such version.
    """
    from mlflow.exceptions import MlflowException

    assert alias is not None or number is not None
    try:
        if number is not None:
            return _known(opened.client.get_model_version(model, str(number)))
        assert alias is not None
        found = opened.client.get_model_version_by_alias(model, alias)
        # The answer for an alias does not tell of all aliases.
        return _known(opened.client.get_model_version(model, str(found.version)))
    except MlflowException as error:
        if error.error_code not in addresses.ABSENT:
            raise
        wanted = f"version {number}" if number is not None else f"version with the alias {alias!r}"
        where = addresses.shown(opened.uri)
        raise TrackingError(
            f"{model} has no {wanted} in MLflow at {where}; correct `model:`, or {ADVICE}"
        ) from None


def _known(found: ModelVersion) -> Version:
    return Version(
        str(found.name),
        str(found.version),
        str(found.run_id or ""),
        dict(found.tags),
        tuple(sorted(found.aliases)),
    )


def bring(opened: Store, version: Version, inside: str, folder: Path) -> Path:
    """Bring a file or a folder of a version.

    Args:
        opened: the store.
        version: of a registered model.
        inside: the path below the version's files.
        folder: where it is put, by its own name.

    Returns:
        Its path here.

    Raises:
        TrackingError: it is not there, cannot be had, or is not what was registered.
    """
    uri = f"models:/{version.model}/{version.number}/{inside}"
    found = _brought(opened, uri, f"version {version.number} of {version.model}", inside, folder)
    registry.check(version, inside, found)
    return found


def bring_run(opened: Store, run_id: str, inside: str, folder: Path) -> Path:
    """Bring a file or a folder among the artifacts of a run.

    Args:
        opened: the store.
        run_id: of the run.
        inside: the path below its artifacts.
        folder: where it is put, by its whole path.

    Returns:
        Its path here.

    Raises:
        TrackingError: it is not there, or cannot be had.
    """
    return _brought(opened, f"runs:/{run_id}/{inside}", f"the run {run_id}", inside, folder)


def files_of_run(opened: Store, run_id: str, inside: str) -> list[str]:
    """The names in a folder among the artifacts of a run; none where there is no such folder or run.

    Raises:
        TrackingError: the artifacts cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    try:
        found = opened.client.list_artifacts(run_id, inside)
    except Exception as error:  # an artifact store's client may be any library
        if isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise store.refused(opened.uri, error, ADVICE) from error
    return [str(one.path).rpartition("/")[2] for one in found]


def _brought(opened: Store, uri: str, owner: str, inside: str, folder: Path) -> Path:
    import mlflow.artifacts

    try:
        found = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    except Exception as error:  # an artifact store's client may be any library
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise store.refused(opened.uri, RuntimeError(f"{inside} of {owner}: {detail}"), ADVICE) from None
    if not found.exists():
        raise TrackingError(f"{owner} has no {inside}")
    return found
