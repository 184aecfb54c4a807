from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path

import pandas as pd
import pytest

from steps.errors import TrackingError, UserError
from steps.tracking import naming, registry, store
from steps.tracking.registry import FILES, FILES_SHA, Version
from steps.tracking.store import Store
from tests.tracking import made, toymodel
from tests.tracking.toymodel import MODEL

ASKED = pd.DataFrame({"text": ["a"]})
WORDS = "data/toy/words.txt"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Version, Path]]:
    """A store with one version, and the folder that has its files."""
    folder = tmp_path_factory.mktemp("registry")
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        made.store(folder)
        (folder / ".headstart").mkdir()
        with store.opened() as opened:
            version = toymodel.add(opened, "hello")
            (described,) = (folder / "mlflow").glob("artifacts/**/MLmodel")
            yield opened, version, described.parent


@pytest.fixture
def version(kept: tuple[Store, Version, Path]) -> Version:
    return kept[1]


@pytest.fixture
def files(kept: tuple[Store, Version, Path], tmp_path: Path) -> Iterator[Path]:
    """The version's files; whatever a test does to them is undone."""
    folder = kept[2]
    shutil.copytree(folder, tmp_path / "whole")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tmp_path / "whole", folder)


def test_a_version_is_loaded_from_the_files_that_were_registered(version: Version, files: Path) -> None:
    assert len(version.tags[FILES_SHA]) == 64
    assert (files / WORDS).read_text() == "hello"
    loaded = registry.load(version)
    assert list(loaded.predict(ASKED)["label"]) == ["hello"]
    assert loaded.folder is not None
    there = Path(loaded.folder.name)
    assert there.exists()
    del loaded
    assert not there.exists()
    assert registry.verify(version) == len([path for path in files.rglob("*") if path.is_file()]) - 1


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.mark.survives(
    "registry",
    "model bytes tampered with after registration",
    how="a file of a version changed, added or removed in the artifact store, the list of them too",
    held="it is not loaded, the file is named",
)
@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (lambda files: _write(files / WORDS, "hullo"), f"its file {WORDS} differs"),
        (
            lambda files: _write(files / "data/toy/evil.py", "import os"),
            "its file data/toy/evil.py was added",
        ),
        (lambda files: (files / "data/toy/more.txt").unlink(), "its file data/toy/more.txt is missing"),
        (lambda files: _write(files / FILES, "{}"), "its list of files, files.json, differs"),
        (lambda files: (files / FILES).unlink(), "the files of version 1 of headstart-toys cannot be had"),
        (lambda files: _write(files / "MLmodel", "loader_module: os"), "its file MLmodel differs"),
    ],
)
def test_bytes_that_were_tampered_with_are_not_loaded(
    version: Version, files: Path, tamper: Callable[[Path], None], told: str
) -> None:
    tamper(files)
    for use in (registry.load, registry.verify):
        with pytest.raises(TrackingError) as found:
            use(version)
        assert told in str(found.value)
        assert "`headstart rollback headstart-toys`" in str(found.value)
        assert "\n" not in str(found.value)


def test_a_file_is_compared_before_it_is_read(version: Version, files: Path, tmp_path: Path) -> None:
    found = registry.file_of(version, WORDS, tmp_path)
    assert found is not None
    assert found.read_text() == "hello"
    assert registry.file_of(version, "data/toy/none.txt", tmp_path) is None
    (files / WORDS).write_text("hullo")
    with pytest.raises(TrackingError, match=f"its file {WORDS} differs"):
        registry.file_of(version, WORDS, tmp_path / "again")


@pytest.mark.survives(
    "registry",
    "artifact missing behind a version",
    how="the folder with a version's files removed from the artifact store",
    held="told is which version, and the way back",
)
def test_a_version_whose_files_are_gone_is_told(version: Version, files: Path, tmp_path: Path) -> None:
    shutil.rmtree(files)
    with pytest.raises(TrackingError, match="files of version 1 of headstart-toys cannot be had") as told:
        registry.load(version)
    assert "bring them back, or `headstart rollback headstart-toys`" in str(told.value)
    assert registry.file_of(version, WORDS, tmp_path) is None


def test_a_version_older_than_the_list_is_loaded_as_before(version: Version, files: Path) -> None:
    old = Version(version.model, version.number, version.run_id, {}, version.aliases)
    (files / WORDS).write_text("as ever")
    assert list(registry.load(old).predict(ASKED)["label"]) == ["as ever"]
    assert registry.verify(old) is None


def test_the_same_bytes_are_found_again(kept: tuple[Store, Version, Path]) -> None:
    opened, version, _ = kept
    found = registry.find(opened, MODEL, "sha-of-hello")
    assert found == version
    assert registry.find(opened, MODEL, "sha-of-nothing") is None
    assert registry.version(opened, MODEL, "99") is None


def test_people_may_name_a_version_in_several_ways(kept: tuple[Store, Version, Path]) -> None:
    opened, version, _ = kept
    opened.client.set_registered_model_alias(MODEL, "challenger", "1")
    for text in ("toys@1", "toys@01", "headstart-toys@1", "toys@challenger", "headstart-toys@challenger"):
        assert naming.version_of(opened, text).number == version.number
    for text, told in {
        "toys": "names no version; write MODEL@ALIAS",
        "@1": "names no version",
        "toys@": "names no version",
        "toys@champion": "has no version with the alias 'champion'; challenger is version 1",
        "toys@7": "has no version 7",
        "toy@1": "there is no registered model 'toy' or 'headstart-toy'; did you mean 'headstart-toys'?",
        "a/b:c@1": "there is no registered model 'a/b:c'",
        "x' OR '1@1": "there is no registered model",
    }.items():
        with pytest.raises(UserError) as found:
            naming.version_of(opened, text)
        assert told in str(found.value)
