"""Which version is champion, and since when; asked without MLflow, whose import takes seconds."""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Where `steps.tracking.store` keeps results unless MLFLOW_TRACKING_URI names another place.
LOCAL = "sqlite:///mlflow/mlflow.db"
ALIAS = "champion"
ANSWER_SECONDS = 5.0
# What MLflow's servers say of a model or an alias that is not there.
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class Champion:
    """The version that the alias `champion` points to.

    Attributes:
        version: as MLflow writes it.
        made: when the version was made, in UTC.
    """

    version: str
    made: datetime


@dataclass(frozen=True)
class Glance:
    """What a look at the registry gave.

    Attributes:
        champion: None where the model has none, or where it could not be told.
        unknown: why it could not be told; empty where it could.
    """

    champion: Champion | None = None
    unknown: str = ""


# The registry was asked, and the model has no champion.
NOTHING = Glance()


def glance(model: str) -> Glance:
    """Look for the champion of a registered model."""
    if os.environ.get("MLFLOW_REGISTRY_URI"):
        return Glance(unknown="MLFLOW_REGISTRY_URI names a registry that only MLflow itself can ask")
    uri = address()
    try:
        if uri.startswith("sqlite:///"):
            return _of_database(Path(uri.removeprefix("sqlite:///")), model)
        if uri.startswith(("http://", "https://")):
            return _of_server(uri, model)
    except (sqlite3.Error, OSError, ValueError, KeyError) as error:
        reason = getattr(error, "reason", error)
        return Glance(unknown=f"the registry at {shown(uri)} did not answer ({reason})")
    return Glance(unknown=f"the registry at {shown(uri)} can only be asked by MLflow itself")


def address() -> str:
    """Where results are registered."""
    return os.environ.get("MLFLOW_TRACKING_URI") or LOCAL


def shown(uri: str) -> str:
    """An address without a user's name and password."""
    parts = urllib.parse.urlsplit(uri)
    return uri.replace(f"{parts.netloc.rpartition('@')[0]}@", "") if "@" in parts.netloc else uri


def page(model: str, version: str) -> str | None:
    """The address of a version's page; None where the store is a file, which has none."""
    uri = shown(address()).rstrip("/")
    return f"{uri}/#/models/{model}/versions/{version}" if uri.startswith(("http://", "https://")) else None


def _of_database(database: Path, model: str) -> Glance:
    if not database.exists():
        return NOTHING
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=ANSWER_SECONDS)) as connection:
        found = connection.execute(
            "SELECT v.version, v.creation_time FROM registered_model_aliases a JOIN model_versions v "
            "ON v.name = a.name AND v.version = a.version WHERE a.name = ? AND a.alias = ? "
            "AND v.current_stage != 'Deleted_Internal'",
            (model, ALIAS),
        ).fetchone()
    return Glance(None if found is None else Champion(str(found[0]), _time(found[1])))


def _of_server(uri: str, model: str) -> Glance:
    query = urllib.parse.urlencode({"name": model, "alias": ALIAS})
    request = urllib.request.Request(
        f"{shown(uri).rstrip('/')}/api/2.0/mlflow/registered-models/alias?{query}", headers=_credentials(uri)
    )
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            found = json.load(answer)["model_version"]
    except urllib.error.HTTPError as error:
        if _code_of(error) in _ABSENT:
            return NOTHING
        return Glance(unknown=f"the registry at {shown(uri)} answers {error.code}")
    return Glance(Champion(str(found["version"]), _time(found["creation_timestamp"])))


def _code_of(error: urllib.error.HTTPError) -> str:
    try:
        said = json.load(error)
    except ValueError:
        return ""
    return str(said.get("error_code", "")) if isinstance(said, dict) else ""


def _credentials(uri: str) -> dict[str, str]:
    """The header that lets us in, as MLflow's own client makes it."""
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    parts = urllib.parse.urlsplit(uri)
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or urllib.parse.unquote(parts.username or "")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or urllib.parse.unquote(parts.password or "")
    if user:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _time(milliseconds: Any) -> datetime:  # noqa: ANN401 - a number, or its digits
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
