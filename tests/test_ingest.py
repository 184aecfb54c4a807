from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steps import artifacts, data
from steps.errors import DataError, DiskFullError
from steps.ingest import ingest
from tests.rawdata import class_folders, files_below, save, settle_ingest

IMAGES, TEXTS = "image-classification", "text-classification"


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def taken(task: str = IMAGES, **source: Any) -> pd.DataFrame:
    settle_ingest("pets", task, **source)
    ingest("pets")
    return data.read_manifest(artifacts.data_dir("pets"))


def refused(task: str = IMAGES, **source: Any) -> str:
    """The one line that ingest ends with; what was there before is still there, and nothing else."""
    target = artifacts.data_dir("pets")
    target.mkdir(parents=True, exist_ok=True)
    (target / "before").write_text("kept")
    settle_ingest("pets", task, **source)
    with pytest.raises(DataError) as caught:
        ingest("pets")
    assert files_below(Path("data")) == {"pets/before": b"kept"}
    assert "\n" not in str(caught.value)
    return str(caught.value)


def texts_in(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


# ------------------------------------------------------------------------------------------------ packages


def test_digits_are_1797_small_images_and_the_same_bytes_every_time() -> None:
    manifest = taken(source="package", dataset="digits", path="requirements.lock")
    first = files_below(Path("data/pets"))
    assert len(manifest) == 1797
    assert manifest["id"].is_unique
    assert sorted(manifest["label"].unique()) == [str(digit) for digit in range(10)]
    ingest("pets")
    assert files_below(Path("data/pets")) == first


def test_bbc_news_are_2225_texts_of_5_classes() -> None:
    manifest = taken(TEXTS, source="package", dataset="bbc-news", path="requirements.lock")
    assert manifest.groupby("label").size().to_dict() == {
        "business": 510, "entertainment": 386, "politics": 417, "sports": 511, "tech": 401,
    }  # fmt: skip
    assert manifest["text"].str.contains("£").any(), "read as something else than latin-1"
    assert manifest.loc[0, "id"] == "business/001.txt"


# ------------------------------------------------------------------------------------------------- folders


def test_a_folder_per_class() -> None:
    class_folders(Path("raw"))
    save(Path("raw/cat/deeper/x.PNG"), 77)
    (Path("raw") / ".DS_Store").write_text("x")
    (Path("raw/cat") / ".hidden.png").write_text("x")
    (Path("raw/dog") / "Thumbs.db").write_text("x")
    manifest = taken(source="folder", path="raw")
    assert manifest["id"].tolist() == [
        *(f"cat/{number:02}.png" for number in range(3)),
        "cat/deeper/x.PNG",
        *(f"dog/{number:02}.png" for number in range(3)),
    ]
    assert manifest["label"].tolist() == ["cat"] * 4 + ["dog"] * 3
    assert manifest["split"].isna().all()
    for row in manifest.itertuples():
        stored = Path("data/pets") / str(row.path)
        assert artifacts.sha256_file(stored) == row.sha256
        assert stored.stat().st_size == row.size
        assert stored.read_bytes() == Path(str(row.source)).read_bytes()


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "VALID", "Test"), ("training", "dev")])
def test_split_folders_are_kept_whatever_their_case(names: tuple[str, ...]) -> None:
    for name in names:
        class_folders(Path("raw") / name, 1)
    manifest = taken(source="folder", path="raw")
    expected = data.SPLITS[: len(names)]
    assert set(manifest["split"]) == set(expected)
    assert set(manifest["label"]) == {"cat", "dog"}


@pytest.mark.survives(
    "data",
    "images that are no images",
    how="an empty file and a text, each named .png",
    held="both come in as they are, for validate to list; no row is lost in silence",
)
def test_broken_images_come_in_as_they_are_for_validate_to_judge() -> None:
    root = class_folders(Path("raw"))
    (root / "cat/00.png").write_bytes(b"")
    (root / "cat/01.png").write_bytes(b"hello, I am text")
    manifest = taken(source="folder", path="raw")
    assert manifest["size"].tolist()[:2] == [0, 16]


def test_equal_images_are_two_samples_and_one_file() -> None:
    save(Path("raw/cat/a.png"), 1), save(Path("raw/dog/b.png"), 1)
    manifest = taken(source="folder", path="raw")
    assert manifest["path"].nunique() == 1
    assert manifest["id"].tolist() == ["cat/a.png", "dog/b.png"]


def test_other_files_at_the_top_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    class_folders(Path("raw"))
    Path("raw/README.md").write_text("x")
    taken(source="folder", path="raw")
    assert "left aside in raw: README.md" in capsys.readouterr().out


def test_folders_that_cannot_be_used() -> None:
    assert "raw is missing" in refused(source="folder", path="raw")
    Path("raw.dvc").write_text("outs: []")
    assert "dvc pull raw.dvc" in refused(source="folder", path="raw")
    Path("raw").mkdir()
    assert "one sub-folder per class" in refused(source="folder", path="raw")
    Path("raw/cat").mkdir()
    assert "class folders without a sample: cat" in refused(source="folder", path="raw")
    save(Path("raw/loose.png"), 0)
    assert "in no class folder: loose.png" in refused(source="folder", path="raw")
    assert "is a file" in refused(source="folder", path="raw/loose.png")


def test_a_file_that_may_be_a_sample_is_not_dropped_silently() -> None:
    class_folders(Path("raw"))
    Path("raw/cat/photo.heic").write_bytes(b"x")
    assert "files that are no samples: cat/photo.heic; we read .png" in refused(source="folder", path="raw")


def test_split_folders_beside_class_folders_are_refused() -> None:
    class_folders(Path("raw"), classes=("cat",))
    class_folders(Path("raw/train"))
    assert "'train', which is a split, beside others (cat)" in refused(source="folder", path="raw")
    shutil.rmtree("raw")
    class_folders(Path("raw/train")), class_folders(Path("raw/val")), class_folders(Path("raw/valid"))
    assert "two folders for one split" in refused(source="folder", path="raw")
    shutil.rmtree("raw")
    class_folders(Path("raw/test")), class_folders(Path("raw/val"))
    assert "no train/ folder" in refused(source="folder", path="raw")


@pytest.mark.survives(
    "data",
    "links to files outside of the data",
    how="a symbolic link in a class folder",
    held="refused, the file is not read",
)
def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    class_folders(Path("raw"))
    save(tmp_path / "outside/secret.png", 5)
    Path("raw/cat/inside.png").symlink_to("00.png")
    assert len(taken(source="folder", path="raw")) == 7
    shutil.rmtree("data")
    for name, aim in (("out.png", "../../outside/secret.png"), ("gone.png", "nowhere.png"), ("loop", "..")):
        link = Path("raw/cat") / name
        link.symlink_to(aim)
        assert f"{link} is a link" in refused(source="folder", path="raw")
        link.unlink()
    Path("raw/bird").symlink_to(tmp_path / "outside")
    assert "raw/bird is a link" in refused(source="folder", path="raw")


def test_a_pipe_is_no_sample() -> None:
    class_folders(Path("raw"))
    os.mkfifo("raw/cat/pipe.png")
    assert "no samples: cat/pipe.png" in refused(source="folder", path="raw")


def test_raw_data_in_the_folder_that_ingest_replaces_are_not_lost() -> None:
    class_folders(Path("data/pets"))
    before = files_below(Path("data"))
    for path in ("data/pets", "data", "data/pets/cat", "."):
        settle_ingest("pets", IMAGES, source="folder", path=path)
        with pytest.raises(DataError, match="overlaps data/pets"):
            ingest("pets")
    assert files_below(Path("data")) == before


def test_text_files_with_their_encoding() -> None:
    root = texts_in(
        Path("raw"), {"good/a.txt": "caf\u00e9".encode("latin-1"), "bad/b.txt": b"\xef\xbb\xbfplain"}
    )
    message = refused(TEXTS, source="folder", path="raw")
    assert "raw/good/a.txt is not utf-8: byte 3 (row 1) is b'\\xe9'; set `encoding:`" in message
    assert "unknown" in refused(TEXTS, source="folder", path="raw", encoding="klingon")
    (root / "good/a.txt").write_bytes("caf\u00e9".encode())
    assert taken(TEXTS, source="folder", path="raw")["text"].tolist() == ["plain", "caf\u00e9"]


# -------------------------------------------------------------------------------------------------- tables


CSV = 'name,words,class,part,person\na,"one, two",x,train,p1\nb,three,,VAL,p1\nc,,X ,Test,\n'


def table(**more: Any) -> dict[str, Any]:
    return {"source": "table", "path": "t.csv", "label": "class", "text": "words"} | more


def test_a_csv_table_is_taken_as_it_is() -> None:
    Path("t.csv").write_text(CSV)
    manifest = taken(TEXTS, **table(id="name", split="part", group="person"))
    assert manifest["id"].tolist() == ["a", "b", "c"]
    assert manifest["text"].fillna("null").tolist() == ["one, two", "three", "null"]
    assert manifest["label"].fillna("null").tolist() == ["x", "null", "X "]
    assert manifest["split"].tolist() == ["train", "validation", "test"]
    assert manifest["group"].fillna("null").tolist() == ["p1", "p1", "null"]
    assert manifest["source"].tolist() == ["t.csv:2", "t.csv:3", "t.csv:4"]


def test_the_same_table_as_jsonl_and_parquet() -> None:
    rows = [
        {"words": "one\n2", "class": 1},
        {"words": "two", "class": None},
        {"words": "three", "class": True},
    ]
    Path("t.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    frame = pd.DataFrame(
        {"words": ["one\n2", "two", "three"], "class": pd.array([1, None, 3], dtype="Int64")}
    )
    frame.to_parquet("t.parquet")
    by_lines = taken(TEXTS, **table(path="t.jsonl"))
    by_columns = taken(TEXTS, **table(path="t.parquet"))
    assert by_lines["label"].fillna("null").tolist() == ["1", "null", "true"]
    assert by_columns["label"].fillna("null").tolist() == ["1", "null", "3"]
    assert by_lines["text"].tolist() == by_columns["text"].tolist() == ["one\n2", "two", "three"]
    assert by_lines["id"].tolist() == by_columns["id"].tolist()


def test_an_id_made_from_the_text_stays_when_rows_are_added() -> None:
    Path("t.csv").write_text("words,class\none,x\ntwo,x\none,y\n")
    before = taken(TEXTS, **table())
    assert before["id"].is_unique
    assert before["id"].tolist()[2] == before["id"].tolist()[0] + "#2"
    Path("t.csv").write_text("words,class\nzero,x\none,x\nhalf,x\ntwo,x\none,y\n")
    after = taken(TEXTS, **table())
    assert set(before["id"]) < set(after["id"])
    assert after["id"].tolist()[3] == before["id"].tolist()[1]


def test_ids_of_the_user_are_kept_even_if_they_repeat() -> None:
    Path("t.csv").write_text("name,words,class\na,one,x\na,two,x\n")
    assert taken(TEXTS, **table(id="name"))["id"].tolist() == ["a", "a"]


@pytest.mark.parametrize(
    ("content", "more", "expected"),
    [
        (
            CSV,
            {"label": "clas"},
            "no column 'clas', named by `label:` (did you mean 'class'?); it has 'name', ",
        ),
        (CSV, {"label": "l", "text": "t"}, "no column 'l', named by `label:` and no column 't'"),
        (CSV.replace("VAL", "hold-out"), {"split": "part"}, "holds 'hold-out' in t.csv:3"),
        (CSV.replace("b,", ","), {"id": "name"}, "column 'name' is empty in t.csv:3"),
        ("words,class\na,b,c\n", {}, "t.csv:2: the row has 3 cells, the header 2"),
        ("words,words,class\n", {}, "names a column twice"),
        ("words,class\n", {}, "holds no rows"),
        ('words,class\n"open,b\n', {}, "no valid CSV"),
        ("", {}, "holds no rows"),
    ],
)
def test_tables_that_cannot_be_used(content: str, more: dict[str, Any], expected: str) -> None:
    Path("t.csv").write_text(content)
    assert expected in refused(TEXTS, **table(**more))


def test_a_table_in_another_encoding() -> None:
    Path("t.csv").write_bytes("words,class\nplain,x\ncaf\u00e9,x\n".encode("cp1252"))
    message = refused(TEXTS, **table())
    assert "t.csv is not utf-8: byte 23 (row 3) is b'\\xe9'; set `encoding:` under `data`" in message
    shutil.rmtree("data")
    assert taken(TEXTS, **table(encoding="cp1252"))["text"].tolist() == ["plain", "caf\u00e9"]


def test_lines_and_cells_that_are_no_samples() -> None:
    def jsonl(line: str) -> str:
        Path("t.jsonl").write_text('{"words": "a", "class": "x"}\n' + line)
        return refused(TEXTS, **table(path="t.jsonl"))

    assert "t.jsonl:2 is no valid JSON" in jsonl('{"words": ')
    assert "t.jsonl:2 is no JSON object" in jsonl("[1]")
    assert "t.jsonl:2: column 'words' holds a list" in jsonl('{"words": ["a"], "class": "x"}')
    assert "half a character" in jsonl('{"words": "\\ud800", "class": "x"}')
    Path("t.parquet").write_bytes(b"no parquet")
    assert "no valid Parquet" in refused(TEXTS, **table(path="t.parquet"))
    Path("t.xlsx").write_bytes(b"x")
    assert "must end in .csv" in refused(TEXTS, **table(path="t.xlsx"))


def images_table(rows: str) -> dict[str, Any]:
    Path("raw").mkdir(exist_ok=True)
    Path("raw/t.csv").write_text("file,class\n" + rows)
    return {"source": "table", "path": "raw", "table": "t.csv", "image": "file", "label": "class"}


def test_a_table_of_images() -> None:
    save(Path("raw/img/a.png"), 1), save(Path("raw/img/b.jpeg"), 2)
    manifest = taken(**images_table("img/a.png,x\nimg/b.jpeg,y\nimg/a.png,y\n"))
    assert manifest["id"].tolist() == ["img/a.png", "img/b.jpeg", "img/a.png#2"]
    assert [Path(path).suffix for path in manifest["path"]] == [".png", ".jpeg", ".png"]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../outside.png", "img/../../outside.png", "C:\\x.png", "link.png"]
)
def test_image_paths_that_leave_the_folder_are_refused(path: str, tmp_path: Path) -> None:
    save(tmp_path / "outside.png", 1)
    source = images_table(f"{path},x\n")
    Path("raw/link.png").symlink_to("../outside.png")
    message = refused(**source)
    assert "t.csv:2: image " in message
    assert "leaves raw" in message


def test_images_that_are_not_there_are_told_together() -> None:
    source = images_table("a.png,x\nb.png,x\n")
    assert "lacks images that the table names: 'a.png' of t.csv:2, 'b.png' of t.csv:3" in refused(**source)


# ------------------------------------------------------------------------------------------------ archives


def archive(path: str = "pets.zip", **more: Any) -> dict[str, Any]:
    return {"source": "archive", "path": path} | more


def packed(name: str, root: Path) -> None:
    if name.endswith(".zip"):
        with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as made:
            for path in sorted(root.rglob("*")):
                made.write(path, path.relative_to(root.parent))
    else:
        mode: Any = {".tar": "w", ".tar.gz": "w:gz", ".tar.xz": "w:xz", ".tar.bz2": "w:bz2"}[
            name.removeprefix("pets")
        ]
        with tarfile.open(name, mode) as tar:
            tar.add(root, root.name)


@pytest.mark.parametrize("name", ["pets.zip", "pets.tar", "pets.tar.gz", "pets.tar.xz", "pets.tar.bz2"])
def test_an_archive_holds_what_a_folder_holds(name: str) -> None:
    root = class_folders(Path("raw"))
    packed(name, root)
    from_archive, stored = taken(**archive(name)), files_below(Path("data/pets/images"))
    from_folder = taken(source="folder", path="raw")
    assert files_below(Path("data/pets/images")) == stored
    assert from_archive["source"].tolist()[0] == f"{name}/cat/00.png"
    pd.testing.assert_frame_equal(from_archive.drop(columns="source"), from_folder.drop(columns="source"))


def zip_with(name: str, content: bytes = b"x", attributes: int = 0) -> None:
    with zipfile.ZipFile("pets.zip", "w", zipfile.ZIP_DEFLATED) as made:
        info = zipfile.ZipInfo(name)
        info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, attributes
        made.writestr(info, content)


def tar_with(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"x") -> None:
    with tarfile.open("pets.tar.gz", "w:gz") as made:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
        made.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    "name", ["../evil.png", "cat/../../evil.png", "/tmp/evil.png", "C:/evil.png", "a\\..\\b.png"]
)
@pytest.mark.survives(
    "data",
    "an archive whose entries leave the folder",
    how="`../` and absolute names in zip and tar",
    held="refused, nothing is written outside",
)
def test_entries_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    zip_with(name)
    tar_with(name)
    assert "would leave the folder" in refused(**archive())
    assert "would leave the folder" in refused(**archive("pets.tar.gz"))
    assert not list(tmp_path.rglob("evil.png"))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(kind: bytes) -> None:
    tar_with("cat/link.png", kind, b"")
    assert "'cat/link.png' is a link or a device" in refused(**archive("pets.tar.gz"))
    zip_with("cat/link.png", b"/etc/passwd", 0o120777 << 16)
    assert "'cat/link.png' is a link or a device" in refused(**archive())


@pytest.mark.survives(
    "data",
    "archives that unpack to more than they say",
    how="zip and tar bombs, a header that understates the size",
    held="refused while unpacking, nothing is kept",
)
def test_bombs_are_counted_while_unpacking() -> None:
    zip_with("cat/bomb.png", bytes(3_000_000))
    tar_with("cat/bomb.png", content=bytes(3_000_000))
    for name in ("pets.zip", "pets.tar.gz"):
        assert "unpacks to more than" in refused(**archive(name, max_bytes=1_000_000, max_files=10))
    # A header that understates the size: zipfile stops at the size and finds the checksum wrong.
    raw = bytearray(Path("pets.zip").read_bytes())
    size = (3_000_000).to_bytes(4, "little")
    Path("pets.zip").write_bytes(raw.replace(size, (10).to_bytes(4, "little")))
    assert "cannot be unpacked" in refused(**archive(max_bytes=1_000_000))


def test_a_tar_file_cannot_hide_bulk_in_its_headers() -> None:
    with tarfile.open("pets.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as made:
        info = tarfile.TarInfo("cat/a.png")
        info.pax_headers = {"comment": "x" * 3_000_000}
        made.addfile(info, io.BytesIO(b""))
    assert "more than the limit" in refused(**archive("pets.tar.gz", max_bytes=100_000, max_files=10))


def test_too_many_entries_are_refused() -> None:
    packed("pets.zip", class_folders(Path("raw"), 10))
    assert "more than 5 entries" in refused(**archive(max_files=5))


def test_archives_that_are_none() -> None:
    assert "is missing" in refused(**archive())
    Path("pets.zip").write_bytes(b"PK, not quite")
    assert "cannot be unpacked" in refused(**archive())
    Path("pets.zip").write_bytes(b"nothing at all")
    assert "cannot be unpacked" in refused(**archive())
    packed("pets.tar.gz", class_folders(Path("raw")))
    whole = Path("pets.tar.gz").read_bytes()
    Path("pets.tar.gz").write_bytes(whole[: len(whole) // 2])
    assert "cannot be unpacked" in refused(**archive("pets.tar.gz"))
    Path("pets").mkdir()
    assert "is a folder" in refused(**archive("pets"))


def test_an_entry_that_comes_twice_is_refused() -> None:
    with zipfile.ZipFile("pets.zip", "w") as made:
        made.writestr("cat/a.png", "1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            made.writestr("cat/a.png", "2")
    assert "two entries of one name" in refused(**archive())


# -------------------------------------------------------------------------------------------------- always


def test_the_same_input_gives_the_same_bytes() -> None:
    class_folders(Path("raw"))
    taken(source="folder", path="raw")
    first = files_below(Path("data/pets"))
    for path in Path("raw").rglob("*.png"):
        os.utime(path, (1, 1))
    ingest("pets")
    assert files_below(Path("data/pets")) == first


@pytest.mark.survives(
    "disk",
    "disk full while data come in",
    how="ENOSPC in the copy of a file",
    held="yesterday's data are still there, byte by byte",
)
def test_a_full_disk_leaves_the_old_result_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(Path("raw"))
    taken(source="folder", path="raw")
    first = files_below(Path("data"))
    save(Path("raw/cat/new.png"), 9)

    def full(*_: object) -> tuple[int, str]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys.modules["steps.ingest"], "_copy", full)
    with pytest.raises(DiskFullError, match="the disk is full"):
        ingest("pets")
    assert files_below(Path("data")) == first
