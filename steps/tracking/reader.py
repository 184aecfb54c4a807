"""A fast way to read MLflow: from the SQLite file, or over a server's REST API, without importing mlflow.

Importing mlflow takes longer than all that is asked of it. What is here has the names and answers of
`MlflowClient`, as far as the ledger and the lineage ask, so it may stand in a `Store` in its place. It never
writes.
"""

from __future__ import annotations

import json
import re
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, cast

from steps.errors import TrackingError
from steps.tracking import addresses, store
from steps.tracking.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

SECONDS = 30
LOCK_SECONDS = 20
_CLAUSE = re.compile(r"tags\.`([^`]+)` = '([^']*)'")


class AbsentError(Exception):
    """What was asked for is not there; has the code that MLflow's own exception has."""

    error_code = "RESOURCE_DOES_NOT_EXIST"


class Files(Protocol):
    """Reads artifacts beside what a client answers."""

    def of_run(self, run_id: str, path: str) -> bytes | None:
        """An artifact of a run; None when there is none."""

    def of_version(self, model: str, number: str, path: str) -> bytes | None:
        """A file of a version; None when there is none."""

    def folder(self, model: str, number: str) -> Path | None:
        """Where the files of a version lie, when that is on this machine."""


@contextmanager
def reading(advice: str) -> Iterator[tuple[Store, Files]]:
    """Read the store, the fast way where it is one that this knows, else through mlflow.

    Args:
        advice: the end of the line when it does not answer: what to change.

    Raises:
        TrackingError: the store does not answer, or refuses.
    """
    uri = addresses.address()
    database, own = addresses.database_of(uri), addresses.needs_mlflow() is None
    if own and database is not None:
        if not database.exists():
            raise TrackingError(f"there is no {database}: nothing was registered here; {advice}")
        with _told(uri, advice), addresses.read_only(database, LOCK_SECONDS) as connection:
            reader: _Database | _Server = _Database(connection)
            yield Store(uri, cast("MlflowClient", reader)), reader
    elif own and uri.startswith(("http://", "https://")):
        with _told(uri, advice):
            reader = _Server(uri)
            yield Store(uri, cast("MlflowClient", reader)), reader
    else:
        with store.opened(advice) as opened:
            yield opened, _Slow(opened)


@contextmanager
def _told(uri: str, advice: str) -> Iterator[None]:
    try:
        yield
    except (
        sqlite3.Error,
        urllib.error.URLError,
        TimeoutError,
        ConnectionError,
        json.JSONDecodeError,
    ) as error:
        raise store.refused(uri, error, advice) from error


# ---------------------------------------------------------------------------------------------- a SQLite file


class _Database:
    """The tables of MLflow's SQL store."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def _rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        return self.connection.execute(query, values).fetchall()

    def _pairs(self, query: str, *values: object) -> dict[str, Any]:
        return {key: value for key, value in self._rows(query, *values)}  # noqa: C416 - a Row is no pair

    def get_registered_model(self, name: str) -> SimpleNamespace:
        found = self._rows("SELECT name, creation_time FROM registered_models WHERE name = ?", name)
        if not found:
            raise AbsentError(name)
        aliases = self._pairs("SELECT alias, version FROM registered_model_aliases WHERE name = ?", name)
        return SimpleNamespace(
            name=name,
            creation_timestamp=found[0]["creation_time"],
            aliases={alias: str(number) for alias, number in aliases.items()},
            tags=self._pairs("SELECT key, value FROM registered_model_tags WHERE name = ?", name),
        )

    def search_registered_models(self, max_results: int = 100) -> list[SimpleNamespace]:
        found = self._rows("SELECT name FROM registered_models ORDER BY name LIMIT ?", max_results)
        return [SimpleNamespace(name=row["name"]) for row in found]

    def get_model_version(self, name: str, version: str) -> SimpleNamespace:
        found = self._rows(
            "SELECT * FROM model_versions WHERE name = ? AND version = ? "
            "AND current_stage != 'Deleted_Internal'",
            name,
            version,
        )
        if not found:
            raise AbsentError(f"{name} {version}")
        aliases = self._rows(
            "SELECT alias FROM registered_model_aliases WHERE name = ? AND version = ?", name, version
        )
        tags = "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?"
        return SimpleNamespace(
            name=name,
            version=str(found[0]["version"]),
            run_id=found[0]["run_id"],
            source=found[0]["source"],
            creation_timestamp=found[0]["creation_time"],
            aliases=[row["alias"] for row in aliases],
            tags=self._pairs(tags, name, version),
        )

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        found = self._rows("SELECT experiment_id, lifecycle_stage FROM experiments WHERE name = ?", name)
        if not found:
            return None
        return SimpleNamespace(
            experiment_id=str(found[0]["experiment_id"]), lifecycle_stage=found[0]["lifecycle_stage"]
        )

    def get_run(self, run_id: str) -> SimpleNamespace:
        found = self._rows("SELECT * FROM runs WHERE run_uuid = ?", run_id)
        if not found:
            raise AbsentError(run_id)
        return self._run(found[0])

    def _run(self, row: sqlite3.Row) -> SimpleNamespace:
        run_id = row["run_uuid"]
        metrics = "SELECT key, value FROM latest_metrics WHERE run_uuid = ? AND is_nan = 0"
        return SimpleNamespace(
            info=SimpleNamespace(
                run_id=run_id,
                run_name=row["name"],
                experiment_id=str(row["experiment_id"]),
                status=row["status"],
                lifecycle_stage=row["lifecycle_stage"],
                start_time=row["start_time"],
                artifact_uri=row["artifact_uri"],
            ),
            data=SimpleNamespace(
                tags=self._pairs("SELECT key, value FROM tags WHERE run_uuid = ?", run_id),
                params=self._pairs("SELECT key, value FROM params WHERE run_uuid = ?", run_id),
                metrics=self._pairs(metrics, run_id),
            ),
        )

    def search_runs(
        self,
        experiment_ids: list[str],
        filter_string: str = "",
        run_view_type: int = 1,
        max_results: int = 1000,
        page_token: str | None = None,
    ) -> _Page:
        """All runs of these experiments with these tags; no other filter is known here."""
        assert run_view_type == 3, "all of them"
        wanted = _CLAUSE.findall(filter_string)
        assert " AND ".join(f"tags.`{key}` = '{value}'" for key, value in wanted) == filter_string
        clause = " AND EXISTS (SELECT 1 FROM tags WHERE run_uuid = r.run_uuid AND key = ? AND value = ?)"
        found = self._rows(
            "SELECT * FROM runs AS r WHERE experiment_id = ?" + clause * len(wanted),
            experiment_ids[0],
            *(one for pair in wanted for one in pair),
        )
        return _Page([self._run(row) for row in found])

    def of_run(self, run_id: str, path: str) -> bytes | None:
        """An artifact of a run."""
        return _content(_local(str(self.get_run(run_id).info.artifact_uri)), path)

    def of_version(self, model: str, number: str, path: str) -> bytes | None:
        """A file of a version."""
        return _content(self.folder(model, number), path)

    def folder(self, model: str, number: str) -> Path | None:
        """Where the files of a version lie."""
        source = str(self.get_model_version(model, number).source)
        if source.startswith("models:/"):
            query = "SELECT artifact_location FROM logged_models WHERE model_id = ?"
            found = self._rows(query, source.removeprefix("models:/"))
            source = found[0]["artifact_location"] if found else ""
        return _local(source)


def _local(uri: str) -> Path | None:
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("", "file") or not parts.path:
        return None
    return Path(urllib.request.url2pathname(parts.path))


def _content(folder: Path | None, path: str) -> bytes | None:
    file = None if folder is None else folder / path
    return file.read_bytes() if file is not None and file.is_file() else None


class _Page(list[SimpleNamespace]):
    """Runs, and where to go on."""

    token: str | None = None


# -------------------------------------------------------------------------------------------------- a server


class _Server:
    """MLflow's REST API, with the name and password of the address or the environment."""

    def __init__(self, uri: str) -> None:
        self.base = addresses.shown(uri).rstrip("/")
        self.headers = {"Accept": "application/json"} | addresses.credentials(uri)

    def _ask(self, path: str, query: dict[str, str] | None = None, body: Any = None) -> bytes:  # noqa: ANN401
        url = f"{self.base}/{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        headers = self.headers | ({"Content-Type": "application/json"} if data else {})
        request = urllib.request.Request(url, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            if error.code == 404 or b"RESOURCE_DOES_NOT_EXIST" in error.read():
                raise AbsentError(path) from None
            raise

    def _get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._ask(f"api/2.0/mlflow/{path}", query))
        return found

    def get_registered_model(self, name: str) -> SimpleNamespace:
        found = self._get("registered-models/get", {"name": name})["registered_model"]
        return SimpleNamespace(
            name=found["name"],
            creation_timestamp=int(found["creation_timestamp"]),
            aliases={one["alias"]: str(one["version"]) for one in found.get("aliases", [])},
            tags=_tags(found),
        )

    def search_registered_models(self, max_results: int = 100) -> list[SimpleNamespace]:
        found = self._get("registered-models/search", {"max_results": str(max_results)})
        return [SimpleNamespace(name=one["name"]) for one in found.get("registered_models", [])]

    def get_model_version(self, name: str, version: str) -> SimpleNamespace:
        found = self._get("model-versions/get", {"name": name, "version": version})["model_version"]
        return SimpleNamespace(
            name=name,
            version=str(found["version"]),
            run_id=found.get("run_id", ""),
            source=found.get("source", ""),
            creation_timestamp=int(found["creation_timestamp"]),
            aliases=list(found.get("aliases", [])),
            tags=_tags(found),
        )

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        try:
            found = self._get("experiments/get-by-name", {"experiment_name": name})["experiment"]
        except AbsentError:
            return None
        return SimpleNamespace(**{key: found[key] for key in ("experiment_id", "lifecycle_stage")})

    def get_run(self, run_id: str) -> SimpleNamespace:
        return _run(self._get("runs/get", {"run_id": run_id})["run"])

    def search_runs(
        self,
        experiment_ids: list[str],
        filter_string: str = "",
        run_view_type: int = 1,
        max_results: int = 1000,
        page_token: str | None = None,
    ) -> _Page:
        assert run_view_type == 3, "all of them"
        body = {
            "experiment_ids": experiment_ids,
            "filter": filter_string,
            "run_view_type": "ALL",
            "max_results": max_results,
        }
        if page_token:
            body["page_token"] = page_token
        found = json.loads(self._ask("api/2.0/mlflow/runs/search", body=body))
        page = _Page(map(_run, found.get("runs", [])))
        page.token = found.get("next_page_token") or None
        return page

    def of_run(self, run_id: str, path: str) -> bytes | None:
        """An artifact of a run, whatever store the server keeps it in."""
        return self._file("get-artifact", {"run_uuid": run_id, "path": path})

    def of_version(self, model: str, number: str, path: str) -> bytes | None:
        """A file of a version, whatever store the server keeps it in."""
        return self._file("model-versions/get-artifact", {"name": model, "version": number, "path": path})

    def _file(self, page: str, query: dict[str, str]) -> bytes | None:
        try:
            return self._ask(page, query)
        except AbsentError:
            return None
        except urllib.error.HTTPError as error:
            if error.code == 500:  # what MLflow says of a file that is not there
                return None
            raise

    def folder(self, model: str, number: str) -> Path | None:
        """A server's files are not on this machine."""
        return None


def _tags(found: dict[str, Any]) -> dict[str, str]:
    return {one["key"]: one.get("value", "") for one in found.get("tags", [])}


def _run(found: dict[str, Any]) -> SimpleNamespace:
    info, data = found["info"], found.get("data", {})
    return SimpleNamespace(
        info=SimpleNamespace(
            run_id=info["run_id"],
            run_name=info.get("run_name", ""),
            experiment_id=info["experiment_id"],
            status=info["status"],
            lifecycle_stage=info["lifecycle_stage"],
            start_time=int(info["start_time"]),
            artifact_uri=info.get("artifact_uri", ""),
        ),
        data=SimpleNamespace(
            tags=_tags(data),
            params={one["key"]: one.get("value", "") for one in data.get("params", [])},
            metrics={one["key"]: one.get("value") for one in data.get("metrics", [])},
        ),
    )


# ------------------------------------------------------------------------------------------ any other store


class _Slow:
    """Artifacts through mlflow, for a store that only mlflow can read."""

    def __init__(self, opened: Store) -> None:
        self.opened = opened

    def of_run(self, run_id: str, path: str) -> bytes | None:
        """An artifact of a run."""
        return self._file(f"runs:/{run_id}/{path}")

    def of_version(self, model: str, number: str, path: str) -> bytes | None:
        """A file of a version."""
        return self._file(f"models:/{model}/{number}/{path}")

    def _file(self, uri: str) -> bytes | None:
        import mlflow.artifacts

        try:
            return Path(mlflow.artifacts.download_artifacts(uri)).read_bytes()
        except Exception:  # an artifact store's client may be any library
            return None

    def folder(self, model: str, number: str) -> Path | None:
        """It may be anywhere."""
        return None
