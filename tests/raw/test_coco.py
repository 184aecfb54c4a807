from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from steps.errors import DataError
from steps.layouts import CocoData
from steps.params import parse
from steps.raw import RawData, RawSample
from steps.raw.coco import read
from tests.rawdata import picture, save

Change = dict[str, Any]


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def file(**changes: Any) -> dict[str, Any]:
    """Three images, of which the last has no box."""
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "width": 40, "height": 40},
            {"id": 3, "file_name": "a.png", "width": 40, "height": 40},
            {"id": 5, "file_name": "deep/c.png"},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 90, "name": "dog"}, {"id": 91, "name": "owl"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 3.5, 4], "iscrowd": 0},
            {"id": 2, "image_id": 3, "category_id": 1, "bbox": [0, 0, 9, 9]},
            {"id": 3, "image_id": 7, "category_id": 1, "bbox": [5, 5, 5, 5]},
            {"id": 4, "image_id": 7, "category_id": 90, "bbox": [0, 0, 40, 40], "iscrowd": 1},
        ],
    } | changes


IMAGES: list[Any] = file()["images"]
CATEGORIES: list[Any] = file()["categories"]


def written(folder: str = "images", name: str = "boxes.json", **changes: Any) -> Path:
    root = Path("raw")
    for seed, image in enumerate(("a.png", "b.png", "deep/c.png")):
        (root / folder / image).parent.mkdir(parents=True, exist_ok=True)
        picture(seed, 40).save(root / folder / image)
    (root / name).write_text(json.dumps(file(**changes)))
    return root


def found(**source: Any) -> tuple[list[RawSample], RawData]:
    told = {"source": "coco", "path": "raw", "annotations": "boxes.json"} | source
    raw = read(parse(CocoData, told, "test"))
    return list(raw.samples), raw


def refused(**source: Any) -> str:
    with pytest.raises(DataError) as caught:
        found(**source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(place: int, **changes: Any) -> list[Any]:
    entries: list[Any] = file()["annotations"]
    entries[place] = entries[place] | changes
    return entries


def test_boxes_come_with_their_images_in_the_order_of_paths() -> None:
    written()
    samples, raw = found()
    assert [one.id for one in samples] == ["images/a.png", "images/b.png", "images/deep/c.png"]
    assert [one.target for one in samples] == [
        {"boxes": [[0.0, 0.0, 9.0, 9.0]], "labels": ["cat"], "size": [40, 40]},
        {"boxes": [[1.0, 2.0, 3.5, 4.0], [5.0, 5.0, 5.0, 5.0]], "labels": ["dog", "cat"], "size": [40, 40]},
        {"boxes": [], "labels": [], "size": [40, 40]},
    ]
    assert [one.label for one in samples] == ["cat", "cat", "none"]
    assert [one.split for one in samples] == [None] * 3
    assert samples[1].source == "raw/boxes.json: image 7"
    assert samples[0].content == Path("raw/images/a.png")
    assert raw.notes == ["left aside: 1 boxes of crowds; `crowd: keep` takes them"]


def test_boxes_of_crowds_may_be_kept() -> None:
    written()
    samples, raw = found(crowd="keep")
    assert samples[1].label == "dog", "of the image's boxes most are dogs now"
    assert samples[1].target["boxes"][-1] == [0.0, 0.0, 40.0, 40.0]
    assert raw.notes == []


def test_one_file_and_one_folder_for_each_split() -> None:
    for split in ("train", "val"):
        written(f"{split}2017", name=f"instances_{split}.json")
    samples, _ = found(
        annotations={"train": "instances_train.json", "validation": "instances_val.json"},
        images={"train": "train2017", "validation": "val2017"},
    )
    assert [one.split for one in samples] == ["train"] * 3 + ["validation"] * 3
    assert samples[0].id == "train2017/a.png"
    assert "no folder for validation" in refused(
        annotations={"train": "instances_train.json", "validation": "instances_val.json"},
        images={"train": "train2017"},
    )


def test_a_size_of_zero_is_that_of_the_image() -> None:
    written(images=[{"id": 7, "file_name": "b.png", "width": 0, "height": 0}], annotations=[])
    samples, raw = found()
    assert [one.target["size"] for one in samples] == [[40, 40]]
    assert raw.notes == ["left aside: 2 images that no annotation file names; add them to one"]


def test_images_that_are_named_nowhere_are_told() -> None:
    save(written() / "images/loose.png", 9)
    assert "left aside: 1 images that no annotation file names; add them to one" in found()[1].notes


def test_the_size_of_a_turned_photograph_is_that_of_the_turned_image() -> None:
    written()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture(1, 40).resize((40, 20)).save("raw/images/deep/c.png", exif=exif)
    assert found()[0][2].target["size"] == [20, 40]


@pytest.mark.parametrize(
    "box", [[-5, 0, 9, 9], [0, 0, 0, 9], [0, 0, 9, -9], [100, 100, 9, 9], [0, 0, 1e9, 9]]
)
def test_a_bad_box_comes_in_for_validate_to_judge(box: list[float]) -> None:
    written(annotations=changed(1, bbox=box))
    assert found()[0][0].target["boxes"] == [box]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_a_coordinate_that_is_no_number_comes_in_as_none(bad: float | None) -> None:
    written(annotations=changed(1, bbox=[0, bad, 9, 9]))
    target = found()[0][0].target
    assert target["boxes"] == [[0.0, None, 9.0, 9.0]]
    json.dumps(target, allow_nan=False)


def test_a_broken_image_comes_in_for_validate_to_judge() -> None:
    written()
    Path("raw/images/deep/c.png").write_bytes(b"no image")
    assert found()[0][2].target == {"boxes": [], "labels": [], "size": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": changed(0, image_id=8)}, "annotation 1 has image_id 8, which is not in the file"),
        ({"annotations": changed(0, image_id=[7])}, "annotation 1 has image_id [7]"),
        ({"annotations": changed(2, category_id=2)}, "annotation 3 has category_id 2, which is not in"),
        ({"annotations": changed(2, id=1)}, "id 1 comes twice in `annotations`"),
        ({"annotations": changed(1, bbox=[1, 2, 3])}, "annotation 2: bbox must be [x, y, width, height]"),
        ({"annotations": changed(1, bbox=[1, 2, 3, "4"])}, "bbox must be [x, y, width, height]"),
        ({"annotations": [{"image_id": 7, "bbox": [0]}]}, "entry 1 of `annotations` has no category_id"),
        ({"annotations": ["x"]}, "entry 1 of `annotations` has no image_id, category_id, bbox"),
        ({"annotations": None}, "is no annotation file of COCO: it has no list `annotations`"),
        ({"images": [*IMAGES, {"id": 7, "file_name": "d.png"}]}, "id 7 comes twice in `images`"),
        ({"images": [*IMAGES, {"id": 8, "file_name": "a.png"}]}, "image 8 and raw/boxes.json: image 3"),
        ({"images": [*IMAGES, {"id": 8, "file_name": "d.png"}]}, "lacks images that the annotations"),
        ({"images": [*IMAGES, {"id": 8, "file_name": "../d.png"}]}, "'../d.png' leaves raw/images"),
        ({"images": [*IMAGES, {"id": 8, "file_name": "/etc/passwd"}]}, "'/etc/passwd' leaves"),
        ({"images": [*IMAGES, {"id": 8, "file_name": 8}]}, "file_name is 8, no text"),
        ({"categories": [*CATEGORIES, {"id": 1, "name": "x"}]}, "id 1 comes twice in `categories`"),
        ({"categories": [*CATEGORIES, {"id": 4, "name": "cat "}]}, "two categories have one name: cat"),
        ({"categories": [{"id": 1, "name": " "}]}, "a category's name is ' ', no text"),
    ],
)  # fmt: skip
def test_what_cannot_be_placed_is_an_error_that_names_it(changes: Change, message: str) -> None:
    written(**changes)
    told = refused()
    assert message in told
    assert "raw/boxes.json" in told


def test_files_that_are_missing_or_are_no_json() -> None:
    assert "raw is missing" in refused()
    Path("raw/images").mkdir(parents=True)
    assert "raw/boxes.json is missing" in refused()
    Path("raw/boxes.json").write_text("{")
    assert "raw/boxes.json is no valid JSON" in refused()
    Path("raw/boxes.json").write_text("[]")
    assert "has no list `images`" in refused()
    assert "raw/pictures is missing" in refused(images="pictures")


def test_links_that_leave_the_folder(tmp_path: Path) -> None:
    outside = save(tmp_path / "elsewhere/x.png", 4)
    root = written()
    (root / "images/a.png").unlink()
    (root / "images/a.png").symlink_to(outside)
    assert "leaves raw/images" in refused()
    (root / "images/a.png").unlink()
    (root / "linked").symlink_to(outside.parent)
    assert "'linked' leaves raw" in refused(images="linked")
