"""A folder with one sub-folder per class, or with `train/ val/ test/` folders of such."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from steps.errors import DataError
from steps.raw import SPLIT_NAMES, RawData, RawSample, decode, few

# What systems leave behind beside the user's files; hidden files aside.
LITTER = ("thumbs.db", "desktop.ini", "__macosx")


def read(root: Path, suffixes: tuple[str, ...], encoding: str, where: str = "") -> RawData:
    """Find the samples below `root`, ordered by path; a sample's id is its path.

    Hidden files are skipped. Any other file in a class folder that is no sample is an error: it may be
    a sample in a format we do not read.

    Args:
        root: the folder.
        suffixes: of the files that are samples, in lower case; `.txt` files are read as text.
        encoding: of text files.
        where: what to call `root` in the column `source`; its own path if left empty.

    Raises:
        DataError: the folder is none, holds no class folder, or holds what it should not.
    """
    if not root.is_dir():
        raise DataError(f"{root} is a file; `source: folder` needs a folder (or use `archive` or `table`)")
    notes: list[str] = []
    parts = _parts(root)
    files: list[tuple[str | None, str, Path]] = []
    for split, part in parts:
        for class_folder in _class_folders(part, suffixes, notes):
            files += [(split, class_folder.name, file) for file in _walk(class_folder, root)]
    _check(root, parts, files, suffixes)
    files.sort(key=lambda found: found[2].relative_to(root).as_posix())
    return RawData(_samples(root, files, suffixes == (".txt",), encoding, where or str(root)), notes)


def _parts(root: Path) -> list[tuple[str | None, Path]]:
    """The folders that hold class folders, with the split each stands for."""
    folders = [entry for entry in _visible(root) if entry.is_dir()]
    if not folders:
        raise DataError(f"{root} holds no folders; it needs one sub-folder per class")
    splits = [(SPLIT_NAMES.get(entry.name.lower()), entry) for entry in folders]
    named = [(split, entry) for split, entry in splits if split]
    if not any(split == "train" for split, _ in named):
        if len(named) == len(folders):
            raise DataError(f"{root} holds {few([entry.name for entry in folders])} but no train/ folder")
        return [(None, root)]
    others = [entry.name for split, entry in splits if not split]
    if others:
        raise DataError(
            f"{root} holds a folder {named[0][1].name!r}, which is a split, beside others ({few(others)}); "
            "put every class folder into train/, val/ or test/, or rename the class"
        )
    if len({split for split, _ in named}) != len(named):
        raise DataError(
            f"{root} holds two folders for one split: {', '.join(entry.name for _, entry in named)}"
        )
    return [*named]


def _class_folders(part: Path, suffixes: tuple[str, ...], notes: list[str]) -> list[Path]:
    entries = _visible(part)
    loose = [entry.name for entry in entries if not entry.is_dir()]
    samples = [name for name in loose if Path(name).suffix.lower() in suffixes]
    if samples:
        raise DataError(
            f"{part} holds files that are in no class folder: {few(samples)}; move or remove them"
        )
    if loose:
        notes.append(f"left aside in {part}: {few(loose)}")
    return [entry for entry in entries if entry.is_dir()]


def _walk(class_folder: Path, root: Path) -> Iterator[Path]:
    """Every visible file below a class folder."""
    _refuse_link(class_folder, root)
    for entry in _visible(class_folder):
        if entry.is_dir():
            yield from _walk(entry, root)
        else:
            _refuse_link(entry, root)
            yield entry


def _visible(folder: Path) -> list[Path]:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except PermissionError:
        raise DataError(f"{folder} cannot be read: permission denied") from None
    return [folder / name for name in names if not name.startswith(".") and name.lower() not in LITTER]


def _refuse_link(path: Path, root: Path) -> None:
    """A link may stand for a file of the same folder, and for nothing else."""
    if not path.is_symlink():
        return
    if path.is_dir() or not path.exists() or not path.resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"{path} is a link that leaves {root}, is broken, or stands for a folder; put the files there"
        )


def _check(
    root: Path,
    parts: list[tuple[str | None, Path]],
    files: list[tuple[str | None, str, Path]],
    suffixes: tuple[str, ...],
) -> None:
    strange = [
        file.relative_to(root).as_posix()
        for _, _, file in files
        if file.suffix.lower() not in suffixes or not file.is_file()
    ]
    if strange:
        raise DataError(
            f"{root} holds files that are no samples: {few(strange)}; "
            f"we read {', '.join(suffixes)}: convert, move or remove the others"
        )
    filled = {label for _, label, _ in files}
    empty = sorted({entry.name for _, part in parts for entry in _visible(part) if entry.is_dir()} - filled)
    if empty:
        raise DataError(f"{root} holds class folders without a sample: {few(empty)}; fill or remove them")


def _samples(
    root: Path, files: list[tuple[str | None, str, Path]], as_text: bool, encoding: str, where: str
) -> Iterator[RawSample]:
    for split, label, file in files:
        name = file.relative_to(root).as_posix()
        source = f"{where}/{name}"
        content = decode(file.read_bytes(), encoding, source) if as_text else file
        yield RawSample(source, content, label, id=name, split=split)
