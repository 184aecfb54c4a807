from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from steps.errors import DataError
from steps.layouts import VocData
from steps.params import parse
from steps.raw import RawData, RawSample
from steps.raw.voc import read
from tests.rawdata import picture, save

SIZE = "<size><width>40</width><height>20</height><depth>3</depth></size>"


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def thing(name: str = "cat", box: str = "1 1 10 20", more: str = "") -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=True)
    told = "".join(f"<{corner}>{number}</{corner}>" for corner, number in corners)
    return f"<object><name>{name}</name>{more}<bndbox>{told}</bndbox></object>"


def annotate(name: str, *things: str, size: str = SIZE, suffix: str = ".jpg") -> None:
    root = Path("raw")
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / "JPEGImages").mkdir(exist_ok=True)
    text = f"<annotation><filename>other.jpg</filename>{size}{''.join(things)}</annotation>"
    (root / "Annotations" / f"{name}.xml").write_text(text)
    picture(len(name) + ord(name[-1]), 40).resize((40, 20)).save(root / "JPEGImages" / f"{name}{suffix}")


def divide(**names: str) -> None:
    folder = Path("raw/ImageSets/Main")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in names.items():
        (folder / f"{name}.txt").write_text(text)


def found(**source: Any) -> tuple[list[RawSample], RawData]:
    raw = read(parse(VocData, {"source": "voc", "path": "raw"} | source, "test"))
    return list(raw.samples), raw


def refused(**source: Any) -> str:
    with pytest.raises(DataError) as caught:
        found(**source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_corners_that_count_from_1_become_left_top_width_and_height() -> None:
    part = "<part><name>head</name><bndbox><xmin>3</xmin></bndbox></part>"
    annotate("b", thing("dog", "1 1 40 20"), thing("cat", "5.5 6 5.5 6", part))
    annotate("a", suffix=".png")
    samples, raw = found()
    assert [one.id for one in samples] == ["JPEGImages/a.png", "JPEGImages/b.jpg"]
    assert samples[0].target == {"boxes": [], "labels": [], "size": [40, 20]}
    assert samples[1].target == {
        "boxes": [[0.0, 0.0, 40.0, 20.0], [4.5, 5.0, 1.0, 1.0]], "labels": ["dog", "cat"], "size": [40, 20],
    }  # fmt: skip
    assert [one.label for one in samples] == ["none", "cat"]
    assert samples[1].source == "raw/Annotations/b.xml"
    assert raw.notes == []


def test_difficult_boxes_are_left_aside_unless_wanted() -> None:
    annotate("a", thing(more="<difficult>1</difficult>"), thing("dog", more="<difficult>0</difficult>"))
    samples, raw = found()
    assert samples[0].target["labels"] == ["dog"]
    assert raw.notes == ["left aside: 1 boxes marked as difficult; `difficult: keep` takes them"]
    assert found(difficult="keep")[0][0].target["labels"] == ["cat", "dog"]


def test_image_sets_are_splits() -> None:
    for name in ("a", "b", "c", "d"):
        annotate(name, thing())
    save(Path("raw/JPEGImages/e.jpg"), 5)
    divide(train="a\n", val="b\n", trainval="a\nb\n", test="c\n\n", aeroplane_train="a  1\n")
    samples, raw = found()
    assert {str(one.id): one.split for one in samples} == {
        "JPEGImages/a.jpg": "train", "JPEGImages/b.jpg": "validation", "JPEGImages/c.jpg": "test",
    }  # fmt: skip
    assert raw.notes == [
        "left aside: 1 images that ImageSets/Main puts into no split; add them to one",
        "left aside: 1 images without an XML file; give them one",
    ]


def test_train_and_validation_that_are_not_told_apart() -> None:
    annotate("a", thing())
    annotate("b", thing())
    divide(trainval="a", test="b")
    assert [one.split for one in found()[0]] == ["train", "test"]


def test_a_size_that_nobody_wrote_is_that_of_the_image() -> None:
    annotate("a", thing(), size="")
    annotate("b", thing(), size="<size><width>0</width><height>0</height></size>")
    exif = Image.Exif()
    exif[0x0112] = 5
    picture(1, 40).resize((40, 20)).save("raw/JPEGImages/b.jpg", exif=exif)
    assert [one.target["size"] for one in found()[0]] == [[40, 20], [20, 40]]


def test_a_size_that_is_wrong_comes_in_for_validate_to_judge() -> None:
    annotate("a", thing(), size="<size><width>400</width><height>20</height></size>")
    assert found()[0][0].target["size"] == [400, 20]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ("0 0 50 30", [-1.0, -1.0, 51.0, 31.0]),
        ("10 10 9 9", [9.0, 9.0, 0.0, 0.0]),
        ("nan 1 10 10", [None, 0.0, None, 10.0]),
    ],
)
def test_a_bad_box_comes_in_for_validate_to_judge(box: str, expected: list[float | None]) -> None:
    annotate("a", thing(box=box))
    assert found()[0][0].target["boxes"] == [expected]


@pytest.mark.parametrize(
    ("one", "message"),
    [
        ("<object><bndbox/></object>", "raw/Annotations/a.xml: object 2 has no name"),
        ("<object><name>cat</name></object>", "object 2 ('cat') has no <bndbox>"),
        (thing(box="1 x 10 10"), "object 2 ('cat'): <ymin> must be a number, is 'x'"),
        (
            "<object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object>",
            "<ymin> must be a number, is ''",
        ),
        (thing(more="<difficult>yes</difficult>"), "<difficult> must be 0 or 1, is 'yes'"),
    ],
)
def test_an_object_that_is_none_is_an_error_that_names_it(one: str, message: str) -> None:
    annotate("a", thing(), one)
    assert message in refused()


ENTITY = '<!DOCTYPE a [<!ENTITY x "cat">]><annotation><object><name>&x;</name></object></annotation>'
BOMB = '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;&x;">]><annotation>&z;</annotation>'
FILE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'


@pytest.mark.parametrize("text", [ENTITY, BOMB, FILE, "<!DOCTYPE annotation><annotation/>"])
@pytest.mark.survives(
    "data",
    "annotations that expand without end",
    how="entities and document types in XML",
    held="refused before they are expanded",
)
def test_hostile_xml_is_refused(text: str) -> None:
    annotate("a", thing())
    Path("raw/Annotations/a.xml").write_text(text)
    assert refused() == (
        "raw/Annotations/a.xml declares entities or a document type: an annotation needs none"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<annotation>", "raw/Annotations/a.xml is no valid XML: no element found"),
        (b"", "is no valid XML"),
        (b"<xml/>", "is no annotation of Pascal VOC: its root is <xml>"),
        (b"<?xml version='1.0' encoding='klingon'?><annotation/>", "is no valid XML"),
    ],
)
def test_files_that_are_no_annotation(content: bytes, message: str) -> None:
    annotate("a", thing())
    Path("raw/Annotations/a.xml").write_bytes(content)
    assert message in refused()


def test_files_that_are_missing() -> None:
    assert "raw is missing" in refused()
    Path("raw").mkdir()
    assert "raw/JPEGImages is missing" in refused()
    Path("raw/JPEGImages").mkdir()
    assert "raw/Annotations is missing" in refused()
    Path("raw/Annotations").mkdir()
    assert "raw/Annotations holds no XML file" in refused()
    annotate("a", thing())
    annotate("b", thing())
    Path("raw/JPEGImages/a.jpg").unlink()
    assert "raw/JPEGImages lacks images of Annotations: a.xml" in refused()
    save(Path("raw/JPEGImages/a.jpg"), 1), save(Path("raw/JPEGImages/a.png"), 1)
    assert "a.png and raw/JPEGImages/a.jpg have one name" in refused()
    Path("raw/JPEGImages/a.png").unlink()
    Path("raw/Annotations/deep").mkdir()
    Path("raw/Annotations/b.xml").rename("raw/Annotations/deep/a.xml")
    assert "deep/a.xml and raw/Annotations/a.xml have one name" in refused()


def test_splits_that_cannot_be_used() -> None:
    annotate("a", thing())
    annotate("b", thing())
    divide(val="a")
    assert "raw/ImageSets/Main holds val.txt but no train.txt" in refused()
    divide(train="b\na\n")
    assert "val.txt:1 names 'a', which is in train as well" in refused()
    divide(val="z")
    assert "val.txt:1 names 'z', of which there is no Annotations/z.xml" in refused()


def test_links_that_leave_the_folder(tmp_path: Path) -> None:
    annotate("a", thing())
    outside = save(tmp_path / "elsewhere/x.png", 4)
    Path("raw/JPEGImages/b.jpg").symlink_to(outside)
    assert "is a link that leaves raw" in refused()
    Path("raw/JPEGImages/b.jpg").unlink()
    Path("raw/Annotations").rename("xml")
    Path("raw/Annotations").symlink_to(Path("xml").resolve())
    assert "'Annotations' leaves raw" in refused()
