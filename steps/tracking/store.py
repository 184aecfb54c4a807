"""A connection to the MLflow store that fails soon and plainly."""

from __future__ import annotations

import fcntl
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steps.errors import HeadstartError, TrackingError
from steps.tracking import addresses
from steps.tracking.addresses import ABSENT, address, database_of, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCK = Path(".headstart/tracking.lock")
PROBE_SECONDS = 5
LATER = "the results are safe in their journals, and `headstart publish` publishes them when it answers"

# Set before mlflow is imported; what the user set stays. MLflow's own defaults wait for minutes.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Else a uv.lock in the folder would replace the requirements we pin.
    "MLFLOW_UV_AUTO_DETECT": "false",
}


@dataclass(frozen=True)
class Store:
    """An MLflow store that answered.

    Attributes:
        uri: its address, with a password where one is needed.
        client: speaks with it.
    """

    uri: str
    client: MlflowClient


@contextmanager
def opened(advice: str = LATER) -> Iterator[Store]:
    """Connect to the store; errors inside the block become one plain line.

    Args:
        advice: the end of that line: what becomes of the user's results, or what to change.

    Raises:
        TrackingError: the store does not answer, or refuses.
    """
    uri = address()
    _probe(uri, advice)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    database = database_of(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    import mlflow
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    named = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        # MLflow keeps one store for an address: a path must mean the same wherever the process goes.
        exact = uri if database is None else f"sqlite:///{database.resolve()}"
        # `models:/...` is resolved against the process's own address, not the client's.
        mlflow.set_tracking_uri(exact)
        yield Store(uri, mlflow.MlflowClient(exact))
    except (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError) as error:
        raise refused(uri, error, advice) from error
    finally:
        # Setting the address also sets it in the environment, which outlives a store opened within a store.
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # its way back to the default
        if named is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = named


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other process of this clone is publishing, and keep it so."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def uploading(uri: str) -> Iterator[None]:
    """Name the store in errors of an artifact store, whose client may be any library.

    Raises:
        TrackingError: the upload failed.
    """
    try:
        yield
    except HeadstartError:
        raise
    except Exception as error:
        raise refused(uri, error, LATER) from error


def refused(uri: str, error: Exception, advice: str) -> TrackingError:
    """The one line that tells of a store that does not answer or refuses."""
    detail = " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
    return TrackingError(f"MLflow at {shown(uri)} failed: {detail}; {advice}")


def is_absent(error: Exception) -> bool:
    """Whether an error of MLflow, or of `reader`, says that something is not there.

    An alias or a name that cannot be is an invalid parameter to a SQL store.

    Raises:
        Exception: it says anything else.
    """
    if getattr(error, "error_code", None) in ABSENT:
        return True
    raise error


def artifact_root(uri: str) -> Path | None:
    """Where a SQLite store of ours keeps files, as an absolute path; a server decides for itself."""
    database = database_of(uri)
    return None if database is None else (database.parent / "artifacts").resolve()


def _probe(uri: str, advice: str) -> None:
    """Ask a server whether it is there before the slow import and its patient client.

    Raises:
        TrackingError: it is not, or answers with an error of its own.
    """
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{shown(uri).rstrip('/')}/health", timeout=PROBE_SECONDS):
            return
    except urllib.error.HTTPError as error:
        # A gate that asks for a name, or a proxy without this page, is still a server.
        if error.code < 500:
            return
        raise TrackingError(f"MLflow at {shown(uri)} answers {error.code}; {advice}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TrackingError(f"MLflow at {shown(uri)} cannot be reached ({reason}); {advice}") from None


def glance(model: str, version: str) -> list[str] | None:
    """The aliases of a model version, read without the slow import of mlflow.

    Returns:
        None when the version is not there, or when this short way cannot tell.
    """
    try:
        found = addresses.look(model, version=version)
    except addresses.UnknownError:
        return None
    return None if found is None else list(found.aliases)
