"""Where results are registered, and what is asked there without mlflow, whose import takes seconds."""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

LOCAL = "sqlite:///mlflow/mlflow.db"
ANSWER_SECONDS = 5.0
# What a SQL store and a server say of a version, an alias or a model that is not there.
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
# What only mlflow itself knows how to use.
_SPECIAL = ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_AUTH", "MLFLOW_WORKSPACE")


class UnknownError(Exception):
    """The registry could not be asked this way; says why."""


@dataclass(frozen=True)
class Seen:
    """A version of a registered model.

    Attributes:
        version: its number, as MLflow writes it.
        made: when, in UTC.
        aliases: that point to it, sorted.
    """

    version: str
    made: datetime
    aliases: tuple[str, ...]


def address() -> str:
    """Where results are registered: MLFLOW_TRACKING_URI, else the SQLite store in `mlflow/`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or LOCAL


def shown(uri: str) -> str:
    """An address without the name and password in it."""
    parts = urllib.parse.urlsplit(uri)
    return uri.replace(f"{parts.netloc.rpartition('@')[0]}@", "") if "@" in parts.netloc else uri


def database_of(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other kind of address."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def needs_mlflow() -> str | None:
    """A variable of the environment that only mlflow itself knows how to use; None where there is none."""
    return next((name for name in _SPECIAL if os.environ.get(name)), None)


def credentials(uri: str) -> dict[str, str]:
    """The header that lets us in, as MLflow's own client makes it.

    The name and password in the address come before MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD,
    and these before MLFLOW_TRACKING_TOKEN.
    """
    parts, token = urllib.parse.urlsplit(uri), os.environ.get("MLFLOW_TRACKING_TOKEN")
    within = [urllib.parse.unquote(one or "") for one in (parts.username, parts.password)]
    told = [os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD")]
    user, password = (one or other for one, other in zip(within, told, strict=True))
    if user:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextmanager
def read_only(database: Path, seconds: float = ANSWER_SECONDS) -> Iterator[sqlite3.Connection]:
    """Open a SQLite store without ever writing to it; waits so long for a lock."""
    quoted = urllib.parse.quote(str(database.resolve()))
    with closing(sqlite3.connect(f"file:{quoted}?mode=ro", uri=True, timeout=seconds)) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def look(model: str, *, alias: str = "", version: str = "") -> Seen | None:
    """Look for a version of a registered model.

    Args:
        model: the registered model's name.
        alias: one that points to the version.
        version: its number, instead; a version that is not READY counts as not there.

    Returns:
        None where the registry has none.

    Raises:
        UnknownError: this short way cannot tell.
    """
    assert bool(alias) != bool(version)
    if special := needs_mlflow():
        raise UnknownError(f"{special} is set, which only MLflow itself can follow")
    uri = address()
    database = database_of(uri)
    try:
        if database is not None:
            return _in_database(database, model, alias, version) if database.exists() else None
        if uri.startswith(("http://", "https://")):
            return _at_server(uri, model, alias, version)
    except (sqlite3.Error, OSError, ValueError, KeyError) as error:
        reason = getattr(error, "reason", error)
        raise UnknownError(f"the registry at {shown(uri)} did not answer ({reason})") from None
    raise UnknownError(f"the registry at {shown(uri)} can only be asked by MLflow itself")


def _in_database(database: Path, model: str, alias: str, version: str) -> Seen | None:
    aliases = "registered_model_aliases WHERE name = :model AND"
    of_alias = f"version = (SELECT version FROM {aliases} alias = :alias)"
    which = of_alias if alias else "version = :version AND status = 'READY'"
    asked = {"model": model, "alias": alias, "version": version}
    with read_only(database) as connection:
        found = connection.execute(
            "SELECT version, creation_time FROM model_versions WHERE name = :model "
            f"AND current_stage != 'Deleted_Internal' AND {which}",
            asked,
        ).fetchone()
        if found is None:
            return None
        names = connection.execute(
            f"SELECT alias FROM {aliases} version = :version", asked | {"version": found["version"]}
        ).fetchall()
    return _seen(found["version"], found["creation_time"], (name for (name,) in names))


def _at_server(uri: str, model: str, alias: str, version: str) -> Seen | None:
    page = "registered-models/alias" if alias else "model-versions/get"
    query = urllib.parse.urlencode({"name": model} | ({"alias": alias} if alias else {"version": version}))
    url = f"{shown(uri).rstrip('/')}/api/2.0/mlflow/{page}?{query}"
    request = urllib.request.Request(url, headers=credentials(uri))
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            found = json.load(answer)["model_version"]
    except urllib.error.HTTPError as error:
        if _code_of(error) in ABSENT:
            return None
        raise UnknownError(f"the registry at {shown(uri)} answers {error.code}") from None
    if version and found["status"] != "READY":
        return None
    return _seen(found["version"], found["creation_timestamp"], found.get("aliases", []))


def _code_of(error: urllib.error.HTTPError) -> str:
    try:
        said = json.load(error)
    except ValueError:
        return ""
    return str(said.get("error_code", "")) if isinstance(said, dict) else ""


def _seen(version: object, milliseconds: int | str, aliases: Iterable[str]) -> Seen:
    made = datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
    return Seen(str(version), made, tuple(sorted(aliases)))
