from __future__ import annotations

import hashlib
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headstart import doctor
from headstart.doctor import Finding

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def only(check: Callable[[], Iterator[Finding]]) -> Finding:
    found = list(check())
    assert len(found) == 1
    return found[0]


def test_packages_at_other_versions_are_named() -> None:
    assert only(doctor._packages).level == "fail"
    Path("requirements.lock").write_text("rich==0.0.1 ; python_version > '3'\n    # via x\nnot-there==1\n")
    found = only(doctor._packages)
    assert found.level == "fail"
    assert "(locked 0.0.1)" in found.text
    assert "not-there missing (locked 1)" in found.text
    Path("requirements.lock").write_text("# nothing\n")
    assert only(doctor._packages).level == "ok"


def test_weights_are_looked_at_by_their_sha256(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / "some_weights").mkdir()
    (clone / "some_weights/__init__.py").touch()
    (clone / "some_weights/w.bin").write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(clone))
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert doctor._weights("w", "some_weights", "w.bin", sha256).level == "ok"
    assert "has not the sha256" in doctor._weights("w", "some_weights", "w.bin", "0" * 64).text
    assert "is missing" in doctor._weights("w", "some_weights", "x.bin", sha256).text
    assert "is not installed" in doctor._weights("w", "no_such_package", "x.bin", sha256).text


def test_servers_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(doctor._tracking).level == only(doctor._prefect).level == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    # Without tracking a run goes on; without the Prefect that was asked for it does not.
    assert only(doctor._tracking).level == "warn"
    assert only(doctor._prefect).level == "fail"


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, level in ((2**20, "fail"), (2**30, "warn"), (2**40, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(2**40, 0, free))
        assert next(doctor._disk()).level == level


def test_missing_parameters_and_git(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(doctor._params).level == "fail"
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert only(doctor._dvc).subject == "git"
