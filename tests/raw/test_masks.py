from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from steps.errors import DataError, ParamsError
from steps.images import IGNORED, mask_of, mask_size, mask_text
from steps.layouts import MasksData
from steps.params import parse
from steps.raw import RawSample, masks
from steps.raw.drawn_masks import IMAGES, NAMES, shapes_masks
from tests.rawdata import picture, save

CLASSES: dict[str, Any] = {"ground": 0, "road": 1, "house": 7}


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def layout(**source: Any) -> MasksData:
    return parse(MasksData, {"source": "masks", "path": "raw", "classes": CLASSES} | source, "test")


def found(**source: Any) -> list[RawSample]:
    return list(masks.read(layout(**source)).samples)


def refused(**source: Any) -> str:
    with pytest.raises(DataError) as caught:
        found(**source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def wrong(**source: Any) -> str:
    with pytest.raises(ParamsError) as caught:
        layout(**source)
    return str(caught.value)


def mask(numbers: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.array(numbers, dtype=np.uint8))


def put(name: str, drawn: Image.Image, seed: int = 0, below: str = "raw") -> None:
    save(Path(below, "images", name).with_suffix(".png"), seed)
    path = Path(below, "masks", name).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(path)


def numbers(sample: RawSample) -> list[list[int]]:
    target = sample.target
    assert target["mask"] is not None, target
    found: list[list[int]] = mask_of(target["mask"]).tolist()
    return found


ROWS = [[0, 1, 7], [1, 7, 255]]
EXPECTED = [[0, 1, 2], [1, 2, IGNORED]]


def test_numbers_become_places_among_the_classes() -> None:
    put("a", mask(ROWS))
    put("deeper/b", mask([[7, 7], [0, 0]]), 1)
    first, second = found()
    assert [first.id, second.id] == ["a.png", "deeper/b.png"]
    assert first.target["classes"] == ["ground", "road", "house"]
    assert numbers(first) == EXPECTED
    assert (first.label, second.label) == ("road", "house")
    assert isinstance(first.content, Path)


@pytest.mark.parametrize("mode", ["P", "RGB", "LA", "I;16", "grey TIFF"])
def test_numbers_in_every_way_a_mask_stores_them(mode: str) -> None:
    put("a", mask([[0, 0]]))
    drawn, path = mask(ROWS), Path("raw/masks/a.png")
    if mode == "P":
        drawn.putpalette([value for number in range(256) for value in (255 - number, number, 9)])
        assert drawn.mode == "P"
    elif mode == "I;16":
        drawn = Image.fromarray(np.array(ROWS, dtype=np.uint16))
    elif mode == "grey TIFF":
        path.unlink()
        path = path.with_suffix(".tiff")
    else:
        drawn = drawn.convert(mode)
    drawn.save(path)
    assert numbers(found()[0]) == EXPECTED


def test_colours_of_rgb_and_of_a_palette() -> None:
    colours = {"sky": "#0000FF", "ground": "#000000", "leaf": "#00ff00"}
    pixels = np.zeros((1, 4, 3), dtype=np.uint8)
    pixels[0, 1], pixels[0, 2], pixels[0, 3] = (0, 0, 255), (0, 255, 0), (255, 255, 255)
    put("a", Image.fromarray(pixels))
    put("b", Image.fromarray(pixels).quantize(4), 1)
    for sample in found(classes=colours, ignore="#ffffff"):
        assert sample.target["classes"] == ["ground", "sky", "leaf"], "by colour, black first"
        assert numbers(sample) == [[0, 1, 2, IGNORED]]
    assert "values that are no class: #ffffff" in found(classes=colours)[0].target["unknown"]


def test_a_mask_that_cannot_be_used_comes_in_with_its_reason() -> None:
    put("a", mask([[0, 3, 3, 9]]))
    put("b", mask([[255, 255]]), 1)
    put("c", picture(0), 2)
    put("d", mask([[0]]), 3)
    Path("raw/masks/d.png").write_bytes(b"no picture")
    put("e", mask([[0]]), 4)
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save("raw/masks/e.tiff")
    Path("raw/masks/e.png").unlink()
    samples = found()
    assert [sample.label for sample in samples] == ["unreadable"] * 5
    assert samples[0].target["unknown"] == "3 pixels of the mask have values that are no class: 3, 9"
    assert "ignores every pixel" in samples[1].target["unknown"]
    assert "a picture of colours, but `data.classes` gives numbers" in samples[2].target["misfit"]
    assert "the mask cannot be decoded" in samples[3].target["misfit"]
    assert "no whole numbers" in samples[4].target["misfit"]
    assert all(str(Path.cwd()) not in str(sample.target) for sample in samples)


def test_images_without_a_mask_are_named_and_masks_without_an_image_told() -> None:
    put("a", mask(ROWS))
    save(Path("raw/images/b.png"), 1)
    assert "raw/masks lacks the masks of b.png" in refused()
    Path("raw/images/b.png").unlink()
    mask(ROWS).save("raw/masks/z.png")
    assert masks.read(layout()).notes == ["left aside in raw/masks: masks without an image: z"]


def test_folders_and_files_that_cannot_be_used(tmp_path: Path) -> None:
    assert "raw is missing" in refused()
    Path("raw").mkdir()
    assert "raw/images is no folder" in refused()
    put("a", mask(ROWS))
    Path("raw/masks/b.jpg").write_bytes(b"x")
    assert "no masks: b.jpg; we read .png, .bmp" in refused()
    Path("raw/masks/b.jpg").unlink()
    picture(1).save("raw/images/a.bmp")
    assert "two files of one name: a.bmp and a.png" in refused()
    Path("raw/images/a.bmp").unlink()
    os.mkfifo("raw/masks/pipe.png")
    assert "no masks: pipe.png" in refused()
    Path("raw/masks/pipe.png").unlink()
    mask(ROWS).save(tmp_path / "outside.png")
    Path("raw/masks/a.png").unlink()
    Path("raw/masks/a.png").symlink_to(tmp_path / "outside.png")
    assert "raw/masks/a.png is a link" in refused()


def test_split_folders() -> None:
    for place, name in enumerate(("train/a", "VAL/b", "test/deeper/c")):
        put(name, mask(ROWS), place)
    assert [sample.split for sample in found()] == ["validation", "test", "train"]
    put("d", mask(ROWS), 9)
    assert {sample.split for sample in found()} == {None}, "one image is in no split folder"
    Path("raw/images/d.png").unlink()
    Path("raw/images/train/a.png").unlink()
    assert "but no train/ folder" in refused()


def told(rows: list[list[str]]) -> None:
    with Path("raw/table.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


def test_the_table_tells_groups_and_splits() -> None:
    put("a", mask(ROWS))
    put("b", mask(ROWS), 1)
    told([["image", "group", "split"], ["b.png", "x", "Test"], ["a.png", "y", ""]])
    first, second = found(table="table.csv")
    assert (first.group, first.split) == ("y", None)
    assert (second.group, second.split) == ("x", "test")
    told([["image", "group"], ["b.png", "x"]])
    assert "has no row of a.png" in refused(table="table.csv")
    told([["image", "group"], ["b.png", "x"], ["b.png", "y"], ["a.png", "y"]])
    assert "table.csv:3: image 'b.png' has a row before" in refused(table="table.csv")
    told([["image", "group"], ["../b.png", "x"]])
    assert "no image '../b.png'" in refused(table="table.csv")
    told([["image", "split"], ["b.png", "x"], ["a.png", "train"]])
    assert "holds 'x'" in refused(table="table.csv")
    told([["file", "split"], ["b.png", "x"]])
    assert "needs the column `image`" in refused(table="table.csv")
    assert "gone.csv is missing" in refused(table="gone.csv")


def test_classes_that_contradict_themselves_are_told() -> None:
    assert "all numbers or all colours" in wrong(classes={"a": 0, "b": "#ff0000"})
    assert "'red' is no colour" in wrong(classes={"a": "#000000", "b": "red"})
    assert "two `classes` have the same value" in wrong(classes={"a": 3, "b": 3})
    assert "70000 is no class number" in wrong(classes={"a": 3, "b": 70000})
    assert "`ignore: 3` is the value of a class" in wrong(classes={"a": 3, "b": 2}, ignore=3)
    assert "all numbers or all colours" in wrong(classes={"a": "#000000", "b": "#000001"}, ignore=3)
    assert "`ignore: 255` is the value of a class" in wrong(classes={"a": 0, "b": 255}, ignore=255)


def test_what_is_ignored_where_nothing_is_said() -> None:
    assert layout().ignore == 255
    for classes in ({"a": 0, "b": 255}, {"a": "#000000", "b": "#ff0000"}):
        read = layout(classes=classes)
        assert read.ignore is None
        assert parse(MasksData, read.model_dump(mode="json"), "test") == read, "the same when it was written"


def test_a_mask_as_text_comes_back_as_it_was() -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (7, 5), dtype=np.uint8)
    assert (mask_of(mask_text(drawn)) == drawn).all()
    assert (mask_of(mask_text(drawn, level=1)) == drawn).all()
    assert mask_size(mask_text(drawn)) == (5, 7)
    for text in ("", "no base64!", mask_text(drawn)[:40]):
        with pytest.raises(ValueError, match="mask"):
            mask_of(text)


def test_the_drawn_shapes_are_the_same_every_time() -> None:
    first, second = list(shapes_masks().samples), list(shapes_masks().samples)
    assert first == second
    assert len(first) == IMAGES
    assert len({sample.content for sample in first}) == IMAGES
    seen = {number for sample in first for number in np.unique(mask_of(sample.target["mask"])).tolist()}
    assert seen == set(range(len(NAMES)))
    assert {sample.label for sample in first} == set(NAMES[1:])
