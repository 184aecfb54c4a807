from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from steps.errors import DataError
from steps.layouts import YoloData
from steps.params import parse
from steps.raw import RawSample
from steps.raw.yolo import read
from tests.rawdata import picture, save


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(images: str = "images", labels: str = "labels", names: str = "names: [cat, dog]\n") -> Path:
    """Three images of 40 x 20 pixels: with two boxes, with an empty file, without a file."""
    root = Path("raw")
    for seed, name in enumerate("abc"):
        (root / images).mkdir(parents=True, exist_ok=True)
        picture(seed, 40).resize((40, 20)).save(root / images / f"{name}.png")
    (root / labels).mkdir(parents=True, exist_ok=True)
    (root / labels / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n\n0 0.25 0.5 0.1 1.0\n")
    (root / labels / "b.txt").write_text("")
    (root / "data.yaml").write_text(names)
    return root


def found(**source: Any) -> list[RawSample]:
    return list(read(parse(YoloData, {"source": "yolo", "path": "raw"} | source, "test")).samples)


def refused(**source: Any) -> str:
    with pytest.raises(DataError) as caught:
        found(**source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shares_become_pixels() -> None:
    written()
    samples = found()
    assert [one.id for one in samples] == ["images/a.png", "images/b.png", "images/c.png"]
    first, second, third = (one.target for one in samples)
    assert first["boxes"] == [[10.0, 5.0, 20.0, 10.0], [8.0, 0.0, 4.0, 20.0]]
    assert first["labels"] == ["dog", "cat"]
    assert first["size"] == [40, 20]
    assert second == third == {"boxes": [], "labels": [], "size": [40, 20]}
    assert [one.label for one in samples] == ["cat", "none", "none"]


@pytest.mark.parametrize(
    ("images", "labels"), [("images/{}", "labels/{}"), ("{}/images", "{}/labels")], ids=["inside", "outside"]
)
def test_splits_are_folders_inside_or_outside(images: str, labels: str) -> None:
    for split in ("train", "valid", "test"):
        written(images.format(split), labels.format(split))
    samples = found()
    assert [one.split for one in samples] == ["test"] * 3 + ["train"] * 3 + ["validation"] * 3
    assert [len(one.target["boxes"]) for one in samples] == [2, 0, 0] * 3


@pytest.mark.parametrize(
    "names", ["names: {0: cat, 1: dog}\nnc: 2\n", "names: [cat, dog]\ntrain: ../elsewhere\n"]
)
def test_names_are_a_list_or_numbered(names: str) -> None:
    written(names=names)
    assert found()[0].target["labels"] == ["dog", "cat"]


def test_names_may_stand_in_params() -> None:
    (written() / "data.yaml").unlink()
    assert found(names=["x", "y"])[0].target["labels"] == ["y", "x"]


def test_a_turned_photograph_is_measured_as_people_see_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    picture(0, 40).resize((40, 20)).save(written() / "images/a.png", exif=exif)
    target = found()[0].target
    assert target["size"] == [20, 40]
    assert target["boxes"][0] == [5.0, 10.0, 10.0, 20.0]


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("0 1.5 0.5 0.5 0.5", [50.0, 5.0, 20.0, 10.0]),
        ("0 0.5 0.5 0 0.5", [20.0, 5.0, 0.0, 10.0]),
        ("0 0.5 0.5 -0.5 0.5", [30.0, 5.0, -20.0, 10.0]),
        ("0 nan 0.5 0.5 0.5", [None, 5.0, 20.0, 10.0]),
        ("0.0 0.5 0.5 inf 0.5", [None, 5.0, None, 10.0]),
    ],
)
def test_a_bad_box_comes_in_for_validate_to_judge(line: str, box: list[float | None]) -> None:
    (written() / "labels/a.txt").write_text(line)
    assert found()[0].target["boxes"] == [box]


def test_a_broken_image_comes_in_without_boxes() -> None:
    (written() / "images/a.png").write_bytes(b"no image")
    first = found()[0]
    assert first.target == {"boxes": [], "labels": [], "size": None}
    assert first.label == "cat"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "2 0.5 0.5 0.5 0.5",
            "raw/labels/a.txt:2 has class 2, but there are 2 names: whole numbers from 0 to 1",
        ),
        ("-1 0.5 0.5 0.5 0.5", "has class -1"),
        ("0.5 0.5 0.5 0.5 0.5", "has class 0.5"),
        ("nan 0.5 0.5 0.5 0.5", "has class nan"),
        ("0 0.5 0.5 0.5", "raw/labels/a.txt:2 has 4 columns, not `class x y width height`"),
        ("0 0.5 0.5 0.5 0.5 0.9", "has 6 columns"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2", "has 7 columns, not `class x y width height`, so perhaps a polygon"),
        ("0 0.5 0.5 0,5 0.5", "raw/labels/a.txt:2 holds what is no number: '0 0.5 0.5 0,5 0.5'"),
        ("cat 0.5 0.5 0.5 0.5", "holds what is no number"),
    ],
)
def test_a_line_that_is_none_is_an_error_that_names_it(line: str, message: str) -> None:
    (written() / "labels/a.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    assert message in refused()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("nc: 2\n", "has no `names:`"),
        ("names: []\n", "has no `names:`"),
        ("names: [cat, dog]\nnc: 3\n", "`nc` is 3, but there are 2 names"),
        ("names: {0: cat, 2: dog}\n", "must number the classes from 0 on without a gap"),
        ("names: [cat, cat]\n", "two classes have one name"),
        ("names: [cat", "is no valid YAML"),
    ],
)
def test_names_that_cannot_be_used(names: str, message: str) -> None:
    written(names=names)
    told = refused()
    assert message in told
    assert "raw/data.yaml" in told


def test_files_that_have_no_place() -> None:
    root = written()
    (root / "labels/classes.txt").write_text("cat\ndog\n")
    (root / "labels/train.cache").write_bytes(b"x")
    assert len(found()) == 3
    (root / "labels/z.txt").write_text("0 0.5 0.5 0.5 0.5")
    assert "raw/labels holds boxes of images that are not there: labels/z.txt" in refused()
    (root / "labels/z.txt").rename(root / "labels/a.TXT")
    assert "images that are not there: labels/a.TXT" in refused()
    (root / "labels/a.TXT").unlink()
    save(root / "images/a.jpg", 5)
    assert "share one label file" in refused()
    (root / "images/a.jpg").unlink()
    (root / "images/photo.heic").write_bytes(b"x")
    assert "holds files that are no images: images/photo.heic" in refused()


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    assert "raw is missing" in refused()
    root = Path("raw")
    root.mkdir()
    assert "has no data.yaml" in refused()
    (root / "data.yaml").write_text("names: [cat]")
    assert "holds no folder `images`" in refused()
    (root / "images").mkdir()
    assert "raw holds no images" in refused()
    save(root / "images/a.png", 1)
    assert "raw/labels holds no label file of any image in raw/images" in refused()
    save(root / "images/val/b.png", 1)
    assert "raw/images holds a.png beside 'val', which is a split" in refused()
    (root / "images/a.png").unlink()
    assert "one of them train/" in refused()
    (root / "images/train").symlink_to(save(tmp_path / "elsewhere/x.png", 2).parent)
    (root / "labels").mkdir()
    assert "leaves raw" in refused()


def test_a_part_without_images_is_told() -> None:
    written("train/images", "train/labels")
    (Path("raw") / "val").mkdir()
    assert "raw/val/images is missing" in refused()
