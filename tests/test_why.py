from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, closing
from pathlib import Path
from typing import Any

import pytest

from steps import artifacts, why
from steps.errors import HeadstartError, UserError
from steps.register import register
from steps.tracking import aliases, store
from tests.tracking import made, servers
from tests.twin import git

pytestmark = pytest.mark.flow
ROOT = Path(__file__).resolve().parents[1]
MODEL = "headstart-colours"
DATA = "91417420a5e84be7cacc980e34e80156.dir"
LOCK = f"""\
schema: '2.0'
stages:
  ingest@colours:
    cmd: python -m steps.ingest colours
    outs:
    - path: data/colours
      hash: md5
      md5: {DATA}
      size: 6553
      nfiles: 49
  split@colours:
    cmd: python -m steps.split colours
    outs:
    - path: work/colours/pool.parquet
      hash: md5
      md5: 0123456789abcdef0123456789abcdef
      size: 100
    - path: work/colours/split.parquet
      hash: md5
      md5: fedcba9876543210fedcba9876543210
      size: 1331
"""
LINKS = [
    "alias", "version", "run", "flow run", "commit", "dvc.lock", "data", "split", "backbone", "parameters",
    "environment", "validation", "gate",
]  # fmt: skip


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in git whose champion was registered in a flow run."""
    folder = tmp_path_factory.mktemp("why")
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("HEADSTART_FLOW_RUN", "0f1e2d3c")
        patch.setenv("HEADSTART_WHO", "Ann")
        made.clone(folder)
        made.store(folder)
        (folder / "steps").mkdir()
        (folder / "steps/code.py").write_text("1\n")
        (folder / "params.yaml").write_text("experiments: {}\n")
        (folder / "requirements.lock").write_text("mlflow==3\n")
        git(folder, "init", "--quiet")
        git(folder, "add", "steps", "params.yaml")
        git(folder, "commit", "--quiet", "--message", "The <first> [commit]")
        (folder / "dvc.lock").write_text(LOCK)
        for digest in (DATA, "fedcba9876543210fedcba9876543210"):
            path = folder / why.CACHE / digest[:2] / digest[2:]
            path.parent.mkdir(parents=True)
            path.touch()
        expectations = [
            {"name": "a", "level": "error", "success": True, "text": "all is well", "unexpected": 0},
            {
                "name": "b",
                "level": "warning",
                "success": False,
                "text": "no image is blurred",
                "unexpected": 3,
            },
        ]
        artifacts.write_json(
            artifacts.validation_dir("colours") / "validation.json",
            {"accepted": 48, "expectations": expectations},
        )
        register("colours")
    return folder


@pytest.fixture(autouse=True)
def _clone(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The clone as it was registered, at the place it was: the store knows full paths."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(registered)
    kept = ("mlflow", ".headstart", "dvc.lock", "requirements.lock", ".dvc")
    for name in kept:
        source = registered / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, tmp_path / name)
    yield
    for name in kept:
        if (tmp_path / name).is_dir():
            shutil.copytree(tmp_path / name, registered / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(tmp_path / name, registered / name)


def _json(capsys: pytest.CaptureFixture[str], reference: str = "colours@champion") -> dict[str, Any]:
    why.why(reference, as_json=True)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def _links(found: dict[str, Any]) -> dict[str, Any]:
    return {link["name"]: link for link in found["links"]}


def test_the_page_leads_from_the_alias_to_the_bytes(
    registered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _json(capsys)
    about = {
        name: found[name] for name in ("model", "version", "alias", "experiment", "arm", "seed", "resample")
    }
    assert list(about.values()) == [MODEL, "1", "champion", "colours", "full", "2", "1"]
    links = _links(found)
    assert list(links) == LINKS
    assert {link["check"] for name, link in links.items() if name != "flow run"} == {"ok"}
    assert links["flow run"]["facts"] == {"flow_run": "0f1e2d3c"}
    assert links["alias"]["facts"]["who"] == "Ann"
    commit = git(registered, "rev-parse", "HEAD").strip()
    assert links["commit"]["facts"] == {"commit": commit, "dirty": "false"}
    assert links["dvc.lock"]["facts"]["sha256"] == hashlib.sha256(LOCK.encode()).hexdigest()
    assert (links["data"]["facts"]["md5"], links["data"]["facts"]["nfiles"]) == (DATA, 49)
    assert links["split"]["facts"]["size"] == 1331
    journal = artifacts.read_json(artifacts.seed_dir("colours", "full", 2) / "run.json", "train")
    assert links["run"]["facts"]["weights_sha256"] == journal["weights_sha256"]
    assert links["backbone"]["facts"]["pretrained_sha256"] == journal["pretrained_sha256"]
    assert links["parameters"]["facts"]["parameters"]["start"] == "pretrained"
    assert links["validation"]["facts"]["accepted"] == 48
    assert "warning: not so that no image is blurred (3)" in links["validation"]["lines"]
    assert links["gate"]["facts"]["what"] == "promote"

    why.why("colours@champion", files=tmp_path / "files")
    page = capsys.readouterr().out
    assert page.startswith("headstart-colours@champion, version 1\n")
    assert "The <first> [commit]" in page
    assert "this clone's" in page
    assert "first version: there is no champion to compare with" in page
    assert (tmp_path / "files/dvc.lock").read_text() == LOCK
    assert {path.name for path in (tmp_path / "files").iterdir()} == {
        "dvc.lock", "params.yaml", "requirements.lock", "validation.json", "comparison.json",
    }  # fmt: skip


def test_a_version_may_be_named_by_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, "headstart-colours@1")
    assert found["alias"] is None
    assert _links(found)["alias"]["lines"] == ["named by its number; its aliases: champion"]
    with pytest.raises(UserError, match="has no version with the alias 'previous'; champion is version 1"):
        why.why("colours@previous")


def _sql(statement: str, *values: object) -> None:
    with closing(sqlite3.connect("mlflow/mlflow.db")) as connection:
        connection.execute(statement, values)
        connection.commit()


def _file(pattern: str) -> Path:
    (found,) = Path("mlflow/artifacts").glob(pattern)
    return found


def _by_hand() -> None:
    with store.opened() as opened:
        aliases.promote(opened, MODEL, "1", why="")
        version = opened.client.get_model_version(MODEL, "1")
        assert version.source is not None
        opened.client.create_model_version(MODEL, version.source, version.run_id, version.tags)
        opened.client.set_registered_model_alias(MODEL, "champion", "2")


def _run_tag(key: str, value: str) -> None:
    _sql("UPDATE tags SET value = ? WHERE key = ?", value, f"headstart.{key}")


@pytest.mark.parametrize(
    ("change", "link", "told"),
    [
        (_by_hand, "alias", "it was moved by hand"),
        (
            lambda: _sql("UPDATE tags SET value = '{}' WHERE key = ?", aliases.LEDGER),
            "alias",
            "entry 1 was changed",
        ),
        (
            lambda: _file("**/trained/model.safetensors").write_bytes(b"x"),
            "version",
            "model.safetensors differs",
        ),
        (lambda: _run_tag("weights_sha256", "0"), "run", "the run or the version has others"),
        (lambda: _file("**/origin/dvc.lock").write_text("x"), "dvc.lock", "what was published is another"),
        (lambda: _file("**/pretrained/provenance.json").write_text("{}"), "backbone", ""),
        (lambda: _file("**/origin/requirements.lock").write_text("x"), "environment", "this clone's"),
    ],
)
def test_what_differs_from_what_was_recorded_is_named(
    capsys: pytest.CaptureFixture[str], change: Callable[[], object], link: str, told: str
) -> None:
    change()
    with pytest.raises(HeadstartError, match=f"not as it was recorded: .*{link}"):
        why.why("colours@champion", as_json=True)
    found = _links(json.loads(capsys.readouterr().out))
    assert found[link]["check"] == "differs"
    assert told in " ".join(found[link]["lines"])


@pytest.mark.parametrize(
    ("change", "link", "check", "told"),
    [
        (lambda: _run_tag("git_commit", "f" * 40), "commit", "not here", "this clone has no such commit"),
        (lambda: (why.CACHE / DATA[:2] / DATA[2:]).unlink(), "data", "not here", "`dvc pull` brings it"),
        (lambda: Path("dvc.lock").write_text("other"), "dvc.lock", "ok", "this clone has gone on since"),
        (
            lambda: Path("requirements.lock").write_text("other"),
            "environment",
            "ok",
            "this clone has another",
        ),
        (lambda: _run_tag("flow_run", "none"), "flow run", "unknown", "published without Prefect"),
        (
            lambda: _sql("DELETE FROM tags WHERE key = 'headstart.environment_sha256'"),
            "environment",
            "ok",
            "",
        ),
        (lambda: _file("**/origin/validation.json").unlink(), "validation", "unknown", "not published"),
    ],
)
def test_what_is_not_known_or_not_here_is_said(
    capsys: pytest.CaptureFixture[str], change: Callable[[], object], link: str, check: str, told: str
) -> None:
    change()
    found = _links(_json(capsys))[link]
    assert found["check"] == check
    assert told in " ".join(found["lines"])


def test_what_an_earlier_release_registered_is_told_so_far_as_it_is_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    new = [f"headstart.{name}" for name in ("files_sha256", "flow_run", "environment_sha256", "machine")]
    for key in new:
        _sql("DELETE FROM tags WHERE key = ?", key)
        _sql("DELETE FROM model_version_tags WHERE key = ?", key)
    shutil.rmtree(_file("**/origin"))
    _sql("DELETE FROM tags WHERE key LIKE 'headstart.ledger%' OR key = 'headstart.model'")
    _sql("DELETE FROM registered_model_tags")
    shutil.rmtree(".headstart/aliases")
    found = _links(_json(capsys))
    assert {name: link["check"] for name, link in found.items() if link["check"] != "unknown"} == {
        "commit": "ok"
    }
    assert found["alias"]["lines"] == ["there is no ledger yet"]
    assert "before there was a ledger" in found["gate"]["lines"]


def _main(environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-m", "steps.why", "--json", "colours@champion"]
    ours = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | (environment or {})
    return subprocess.run(command, env=ours, capture_output=True, text=True, check=False)


def test_it_answers_before_mlflow_would_be_imported() -> None:
    started = time.monotonic()
    done = _main()
    assert time.monotonic() - started < 20, "3 s on an idle machine"
    assert done.returncode == 0, done.stderr
    assert not {"mlflow", "torch", "pandas"} & {
        line.split("|")[-1].strip() for line in done.stderr.splitlines()
    }


@pytest.mark.long
def test_a_server_is_asked_the_same(
    registered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = _json(capsys)
    arguments = [
        "server",
        "--backend-store-uri",
        f"sqlite:///{registered}/mlflow/mlflow.db",
        "--workers",
        "1",
    ]
    with servers.mlflow_process(arguments, tmp_path, "/health", {}) as address:
        done = _main({"MLFLOW_TRACKING_URI": address})
    assert done.returncode == 0, done.stderr
    served = json.loads(done.stdout)
    for found in (local, served):
        for link in found["links"]:
            if link["name"] == "version":
                del link["lines"]
    assert served == local
