from __future__ import annotations

from pathlib import Path

import pytest

from steps.errors import DataError
from steps.layouts import PACKAGED, ImagesData
from steps.raw import RawSample, images, package
from tests.rawdata import save


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read() -> list[RawSample]:
    return list(images.read(ImagesData(source="images", path="raw")).samples)


def refused() -> str:
    with pytest.raises(DataError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_image_below_the_folder_is_a_sample() -> None:
    save(Path("raw/cat/a.png"), 1), save(Path("raw/b.JPEG"), 2), save(Path("raw/cat/deep/c.webp"), 3)
    Path("raw/.DS_Store").write_bytes(b"x")
    Path("raw/broken.png").write_bytes(b"no image")
    found = read()
    assert [one.id for one in found] == ["b.JPEG", "broken.png", "cat/a.png", "cat/deep/c.webp"]
    assert {one.label for one in found} == {"image"}
    assert [one.content for one in found] == [Path("raw") / str(one.id) for one in found]


def test_folders_that_cannot_be_used() -> None:
    assert "raw is missing" in refused()
    Path("raw").mkdir()
    assert "raw holds no files; `source: images` takes .png" in refused()
    Path("raw/notes.txt").write_bytes(b"x")
    assert "holds files that are no samples: notes.txt" in refused()


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "outside/secret.png", 1), save(Path("raw/a.png"), 2)
    Path("raw/out.png").symlink_to("../outside/secret.png")
    assert "raw/out.png is a link that leaves raw" in refused()


def test_the_scans_without_labels_are_those_with_labels() -> None:
    bare = list(images.digits_images().samples)
    labelled = list(package.read("digits").samples)
    assert len(bare) == 1797
    assert {one.label for one in bare} == {"image"}
    assert [(one.id, one.content) for one in bare] == [(one.id, one.content) for one in labelled]
    assert PACKAGED["digits-images"] == ("masked-image-model",)
