"""A folder of text files, each a document without a label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from steps.errors import DataError
from steps.layouts import DocumentsData
from steps.raw import RawData, RawSample, decode, few, present
from steps.raw.folder import LITTER

TEXT_SUFFIXES = (".txt", ".md")
# Splits are drawn alike from every label; here there is one.
LABEL = "document"


def read(data: DocumentsData) -> RawData:
    """Every text file below the folder, ordered by path; a document's id is its path.

    An empty file comes in, for validate to judge. How large a file is, is asked before it is read.

    Raises:
        DataError: there is no folder or no file in it, a file is no text, not in the encoding, or too large.
    """
    root = Path(data.path)
    files = files_below(root, TEXT_SUFFIXES, "documents")
    _check_sizes(files, data.max_bytes)
    return RawData(_documents(root, files, data.encoding))


def files_below(root: Path, suffixes: tuple[str, ...], source: str) -> list[Path]:
    """All files below a folder, sorted by their path in it; hidden ones and what systems leave are skipped.

    Args:
        root: the folder.
        suffixes: that the files may have, in lower case.
        source: what params.yaml calls such a folder.

    Raises:
        DataError: it is no folder, is empty, cannot be read, or holds something else: other files, or links
            that are broken, leave it or stand for a folder.
    """
    if not present(root).is_dir():
        raise DataError(f"{root} is a file; `source: {source}` needs a folder")
    files = sorted(_walk(root, root), key=lambda file: file.relative_to(root).as_posix())
    strange = [
        file.relative_to(root).as_posix()
        for file in files
        if file.suffix.lower() not in suffixes or not file.is_file()
    ]
    if strange:
        raise DataError(
            f"{root} holds files that are no samples: {few(strange)}; "
            f"we read {', '.join(suffixes)}: convert, move or remove the others"
        )
    if not files:
        raise DataError(f"{root} holds no files; `source: {source}` takes {', '.join(suffixes)}")
    return files


def bbc_news_documents() -> RawData:
    """The articles of `bbc-news` without their labels."""
    from steps.raw import package

    articles = package.read("bbc-news")
    return RawData((replace(one, label=LABEL) for one in articles.samples), articles.notes)


def _walk(folder: Path, root: Path) -> Iterator[Path]:
    """Every visible file; no link may leave `root`."""
    try:
        entries = sorted(folder.iterdir())
    except PermissionError:
        raise DataError(f"{folder} cannot be read: permission denied") from None
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in LITTER:
            continue
        if entry.is_symlink() and (
            entry.is_dir() or not entry.exists() or not entry.resolve().is_relative_to(root.resolve())
        ):
            raise DataError(
                f"{entry} is a link that leaves {root}, is broken, or stands for a folder; "
                "put the files there"
            )
        if entry.is_dir():
            yield from _walk(entry, root)
        else:
            yield entry


def _check_sizes(files: list[Path], max_bytes: int) -> None:
    for file in files:
        size = file.stat().st_size
        if size > max_bytes:
            raise DataError(
                f"{file} has {size:,} bytes, more than `max_bytes: {max_bytes}` allows one document; "
                "divide it into documents, or raise `data.max_bytes`"
            )


def _documents(root: Path, files: list[Path], encoding: str) -> Iterator[RawSample]:
    for file in files:
        name = file.relative_to(root).as_posix()
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from None
        yield RawSample(str(file), decode(raw, encoding, str(file)), LABEL, id=name)
