from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steps import split
from steps.errors import DataError
from steps.layouts import PACKAGED, DocumentsData
from steps.params import Split, Validation
from steps.raw import RawSample, documents, package
from steps.tasks import get


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(**files: bytes) -> None:
    for name, content in files.items():
        path = Path("raw") / name.replace("__", "/").replace("_txt", ".txt").replace("_md", ".md")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read(**more: Any) -> list[RawSample]:
    return list(documents.read(DocumentsData(source="documents", path="raw", **more)).samples)


def refused(**more: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(**more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_text_file_below_the_folder_is_a_document() -> None:
    put(b_txt=b"two", a__z_txt=b"\xef\xbb\xbfone", a__deeper__y_md="caf\u00e9".encode())
    put(**{".hidden_txt": b"x"})
    Path("raw/Thumbs.db").write_bytes(b"x")
    found = read()
    assert [one.id for one in found] == ["a/deeper/y.md", "a/z.txt", "b.txt"]
    assert [one.content for one in found] == ["caf\u00e9", "one", "two"]
    assert {one.label for one in found} == {"document"}
    assert [one.source for one in found] == ["raw/a/deeper/y.md", "raw/a/z.txt", "raw/b.txt"]
    assert all(one.split is None and one.group is None for one in found)


def test_an_empty_document_comes_in_and_validate_rejects_it() -> None:
    put(a_txt=b"", b_txt=b"words")
    assert [one.content for one in read()] == ["", "words"]
    import pandas as pd

    task = get("masked-language-model")
    manifest = pd.DataFrame({"id": ["a", "b"], "text": ["", "words"]})
    facts = task.facts(manifest, Path(), Validation())
    assert facts["characters"].tolist() == [0, 5]
    assert "text_not_empty" in {one.name for one in task.expectations(Validation())}


def test_bytes_that_are_no_text_are_told_with_their_file_and_place() -> None:
    put(a_txt=b"plain", b_txt="one\ncaf\u00e9".encode("latin-1"))
    assert "raw/b.txt is not utf-8: byte 7 (row 2) is b'\\xe9'; set `encoding:`" in refused()
    assert read(encoding="latin-1")[1].content == "one\ncaf\u00e9"
    assert "`encoding: klingon` is unknown" in refused(encoding="klingon")


def test_a_file_that_is_too_large_is_never_read() -> None:
    put(a_txt=b"plain")
    with Path("raw/huge.txt").open("wb") as file:
        file.truncate(2**30)  # takes no disk
    message = refused()
    assert message.startswith("raw/huge.txt has 1,073,741,824 bytes, more than `max_bytes: 16777216` allows")
    assert "raise `data.max_bytes`" in message
    Path("raw/huge.txt").unlink()
    assert "raw/a.txt has 5 bytes" in refused(max_bytes=4)
    assert len(read(max_bytes=5)) == 1


def test_files_that_may_be_documents_are_not_dropped_silently() -> None:
    put(a_txt=b"plain")
    Path("raw/paper.pdf").write_bytes(b"x")
    assert "holds files that are no samples: paper.pdf; we read .txt, .md" in refused()


def test_folders_that_cannot_be_used() -> None:
    assert "raw is missing; correct `data.path`" in refused()
    Path("raw").mkdir()
    assert "raw holds no files" in refused()
    Path("raw").rmdir()
    Path("raw").write_bytes(b"x")
    assert "raw is a file; `source: documents` needs a folder" in refused()


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    put(a_txt=b"plain")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.txt").write_bytes(b"secret")
    Path("raw/inside.txt").symlink_to("a.txt")
    assert len(read()) == 2
    for name, aim in (
        ("out.txt", "../outside/secret.txt"),
        ("gone.txt", "nowhere"),
        ("loop", "."),
        ("far", "../outside"),
    ):
        link = Path("raw") / name
        link.symlink_to(aim)
        assert f"raw/{name} is a link" in refused()
        link.unlink()


def test_the_articles_without_labels_are_those_with_labels() -> None:
    bare = list(documents.bbc_news_documents().samples)
    labelled = list(package.read("bbc-news").samples)
    assert len(bare) == 2225
    assert {one.label for one in bare} == {"document"}
    assert [(one.id, one.content) for one in bare] == [(one.id, one.content) for one in labelled]
    assert set(PACKAGED["bbc-news-documents"]) == {
        "masked-language-model", "causal-language-model", "replaced-token-detection",
        "next-sentence-prediction",
    }  # fmt: skip


def test_equal_shares_and_salt_keep_what_is_tested_out_of_pretraining() -> None:
    """No article of bbc-news' test split is among the documents that pretraining trains on."""
    import pandas as pd

    settings = Split(test=0.17, validation=0.15)
    sides = []
    for task, samples in (
        ("text-classification", package.read("bbc-news").samples),
        ("masked-language-model", documents.bbc_news_documents().samples),
    ):
        frame = pd.DataFrame([{"id": one.id, "text": one.content, "label": one.label} for one in samples])
        frame = frame.assign(split=None, group=None)
        facts = get(task).facts(frame, Path(), Validation())
        assigned = split.assign(pd.concat([frame, facts], axis=1), settings)
        sides.append(dict(zip(frame["id"], assigned, strict=True)))
    assert sides[0] == sides[1]
    assert sum(side == "test" for side in sides[0].values()) > 300
