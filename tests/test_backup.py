"""Back up, destroy, restore: the champion predicts as before, and its ledger is whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steps import artifacts, register
from steps.tracking import aliases, store
from tests.topology import BUCKET, DEPLOY, Topology, topology
from tests.tracking import made


def script(name: str, *arguments: str, expect: int = 0, environment: dict[str, str] | None = None) -> str:
    """Run one of deploy's scripts in the working directory; give all it said."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", str(DEPLOY / name), *arguments], env={**os.environ, "PATH": path, **(environment or {})},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def a_picture() -> str:
    return str(next(path for path in sorted(artifacts.data_dir("colours").rglob("*.png"))))


def predicted() -> Any:
    """What the champion says of one picture, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "steps.predict", "colours", "--json", "--", a_picture()],
        env=os.environ | {"PYTHONPATH": str(DEPLOY.parent)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def ledger() -> list[str]:
    """The digests of the alias ledger's entries, read and verified."""
    with store.opened() as opened:
        return [entry.sha256 for entry in aliases.history(opened, "headstart-colours")]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with a result that is not registered yet."""
    root = tmp_path / "clone"
    root.mkdir()
    monkeypatch.chdir(root)
    for name in list(os.environ):
        if name.startswith(("MLFLOW_TRACKING_", "POSTGRES_", "S3_", "AWS_")):
            monkeypatch.delenv(name)
    made.clone(root)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "dvc.lock").write_text("schema: '2.0'\n")
    return root


@pytest.fixture
def local(clone: Path) -> Path:
    """The result is registered in the clone's own SQLite store."""
    made.store(clone)
    register.register("colours")
    return clone


@pytest.mark.flow
def test_the_local_store_and_the_ledgers_come_back(local: Path, tmp_path: Path) -> None:
    said, entries = predicted(), ledger()
    looks = (local / ".headstart/ledger/colours.jsonl").read_bytes()
    whole = script("backup", str(tmp_path / "backups")).split(":")[0].strip()
    shutil.rmtree(local / "mlflow")
    shutil.rmtree(local / ".headstart")
    (local / "dvc.lock").unlink()
    told = script("restore", whole)
    assert "local MLflow store restored" in told
    assert (local / ".headstart/ledger/colours.jsonl").read_bytes() == looks
    assert ledger() == entries
    assert entries
    assert predicted() == said
    assert (local / "dvc.lock").read_text() == "schema: '2.0'\n"
    # What is there is not replaced unasked.
    assert "--replace" in script("restore", whole, expect=2)
    script("restore", whole, "--replace")
    assert ledger() == entries
    # A file that changed in the backup is not restored.
    (Path(whole) / "clone/dvc.lock").write_text("schema: '3.0'\n")
    assert "is damaged" in script("restore", whole, "--replace", expect=2)
    assert (local / "dvc.lock").read_text() == "schema: '2.0'\n"


def test_a_backup_of_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("POSTGRES_PASSWORD", "S3_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    assert "nothing to back up" in script("backup", "here", expect=2)
    assert not list((tmp_path / "here").iterdir())


def test_a_backup_that_was_broken_off_is_no_backup(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half/mlflow.dump").write_bytes(b"PGDMP")
    assert "no whole backup" in script("restore", str(tmp_path / "half"), expect=2)


def test_caches_and_states_under_way_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("POSTGRES_PASSWORD", "S3_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "dvc.yaml").touch()
    for name in ("ledger/a.jsonl", "cache/prefix/big.npy", "checkpoints/a/b", "aliases/m.jsonl", "run.lock"):
        path = tmp_path / ".headstart" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    whole = Path(script("backup", "backups").split(":")[0].strip())
    names = subprocess.run(
        ["tar", "--list", "--file", str(whole / "clone/headstart.tar")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    files = {name for name in names if not name.endswith("/")}
    assert files == {"./ledger/a.jsonl", "./aliases/m.jsonl"}
    assert (whole / "clone/headstart.tar").stat().st_mode & 0o077 == 0, "others may not read a backup"


# --------------------------------------------------------------------------------------------- PostgreSQL


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    with topology(tmp_path_factory.mktemp("backup") / "root") as made_up:
        yield made_up


@pytest.mark.long
def test_databases_and_bucket_come_back(
    up: Topology, clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in up.client.items():
        if not name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    register.register("colours")
    said, entries = predicted(), ledger()
    servers = up.postgres.environment | up.store | {"S3_BUCKET": BUCKET}
    servers["PATH"] = os.pathsep.join(
        [str(up.postgres.binaries), str(Path(sys.executable).parent), os.environ["PATH"]]
    )
    whole = script("backup", str(tmp_path / "backups"), environment=servers).split(":")[0].strip()
    assert {"prefect.dump", "mlflow.dump", "mlflow_auth.dump", "bucket", "clone"} <= {
        path.name for path in Path(whole).iterdir()
    }
    client = _bucket(up)
    keys = _keys(client)
    assert keys
    for key in keys:
        client.delete_object(Bucket=BUCKET, Key=key)
    for database in ("prefect", "mlflow", "mlflow_auth"):
        up.postgres.sql("-c", f"DROP DATABASE {database} WITH (FORCE)")
    shutil.rmtree(clone / ".headstart")
    told = script("restore", whole, environment=servers)
    assert "databases restored" in told
    assert "bucket restored" in told
    assert _keys(client) == keys
    # The servers go on with the databases that were put under them; the password is the one that was saved.
    assert ledger() == entries
    assert entries
    assert predicted() == said
    register.register("colours")
    assert ledger() == entries
    assert "not empty; --replace" in script("restore", whole, expect=2, environment=servers)
    # The upgrade of docs/operations.md, which has nothing to do here.
    told = script("entrypoint", "upgrade", environment=servers)
    assert "upgraded" in told
    assert ledger() == entries


def _bucket(up: Topology) -> Any:
    import boto3

    found = up.store
    return boto3.client(
        "s3",
        endpoint_url=found["AWS_ENDPOINT_URL"],
        region_name=found["AWS_DEFAULT_REGION"],
        aws_access_key_id=found["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=found["AWS_SECRET_ACCESS_KEY"],
    )


def _keys(client: Any) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return sorted(one["Key"] for page in pages for one in page.get("Contents", ()))
