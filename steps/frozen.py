"""The frozen test set: the items that a version was tested on, kept so that later ones can be tested on them.

Data change, and a test split with them. A version that was better on last month's test items is compared
fairly only with one that was asked the same. So register puts the test split aside, under the digest of its
contents and labels (`ledger.test_sha256`), in a folder that a task reads as it reads the experiment's data:

* `items.parquet`: the rows of the manifest, texts and targets among them
* the items' files, by the paths in there: hard links to the data where the file system has them, else copies
* `frozen.json`, the seal: a SHA-256 of the rows and of each file. The digest of the seal stands in the
  version's tags, and all is checked against it whenever the set is read.

In MLflow the files are one archive: a thousand small uploads take minutes on some stores.

A model must not be tested on items that it was trained on. So what a version was trained on is kept too, as
digests of its contents: 16 bytes an item tell whether an item is among them, and tell nothing else of it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from steps import artifacts, data, ledger
from steps.errors import DataError

ITEMS, ARCHIVE, SEAL = "items.parquet", "files.tar", "frozen.json"
FORMAT = 1
# What is kept of a row: what a task or the gate reads. `content` is a hash that equal contents share however
# they are encoded.
COLUMNS = (*(name for name in data.COLUMNS if name != "split"), "content")
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Frozen:
    """A test set that was put aside.

    Attributes:
        sha256: digest of its contents and labels; the order and the ids do not matter.
        digest: of the seal: of all rows with all columns, and of the files' bytes.
        folder: which a task reads like an experiment's data folder.
        rows: of the manifest.
    """

    sha256: str
    digest: str
    folder: Path
    rows: pd.DataFrame


def root_of(experiment: str) -> Path:
    """Where the frozen test sets of an experiment lie; outside of DVC's care."""
    return Path(".headstart/frozen") / experiment


def freeze(experiment: str, rows: pd.DataFrame, folder: Path) -> Frozen:
    """Put a test split aside; what lies there already is not written again.

    Args:
        experiment: its name.
        rows: of the test split, with the manifest's columns.
        folder: the experiment's data folder, which holds the files of the rows.

    Raises:
        DataError: a file is missing.
        DiskFullError: the disk is full.
    """
    kept = _kept(rows)
    seal = _seal(kept, {path: _hashed(folder / path) for path in _paths(kept)})
    target = root_of(experiment) / seal["test_sha256"]
    frozen = Frozen(seal["test_sha256"], artifacts.sha256_json(seal), target, kept)
    if not _holds(target, seal):
        with artifacts.new_folder(target) as made:
            data.write_table(kept, made / ITEMS)
            for path in seal["files"]:
                _link(folder / path, made / path)
            artifacts.write_json(made / SEAL, seal)
    return frozen


def read(experiment: str, sha256: str, digest: str) -> Frozen | None:
    """A frozen test set that lies here; None where it does not.

    Args:
        experiment: its name.
        sha256: digest of its contents and labels.
        digest: of its seal, as the version's tags have it.

    Raises:
        DataError: it is not what was put aside.
    """
    folder = root_of(experiment) / sha256
    return _verified(folder, sha256, digest) if folder.exists() else None


def pack(frozen: Frozen, folder: Path) -> list[Path]:
    """Write the files that are sent to MLflow, the seal last: where it is, all is.

    Args:
        frozen: what to send.
        folder: an empty one.
    """
    shutil.copyfile(frozen.folder / ITEMS, folder / ITEMS)
    found = [folder / ITEMS]
    paths = _paths(frozen.rows)
    if paths:
        with tarfile.open(folder / ARCHIVE, "w") as archive:
            for path in paths:
                archive.add(frozen.folder / path, path, recursive=False, filter=_plain)
        found.append(folder / ARCHIVE)
    shutil.copyfile(frozen.folder / SEAL, folder / SEAL)
    return [*found, folder / SEAL]


def unpack(experiment: str, sha256: str, digest: str, folder: Path) -> Frozen:
    """Put aside here what `pack` wrote elsewhere, after it was checked.

    Args:
        experiment: its name.
        sha256: digest of the set's contents and labels.
        digest: of its seal.
        folder: with what was sent.

    Raises:
        DataError: it is not what was put aside.
        DiskFullError: the disk is full.
    """
    target = root_of(experiment) / sha256
    with artifacts.new_folder(target) as made:
        for name in (ITEMS, SEAL):
            if not (folder / name).is_file():
                raise DataError(f"the frozen test set {sha256[:8]} came without its {name}")
            shutil.copyfile(folder / name, made / name)
        if (folder / ARCHIVE).is_file():
            try:
                with tarfile.open(folder / ARCHIVE) as archive:
                    archive.extractall(made, filter="data")
            except (tarfile.TarError, OSError) as error:
                raise DataError(
                    f"the files of the frozen test set {sha256[:8]} cannot be read: {error}"
                ) from None
        rows = _verified(made, sha256, digest).rows
    return Frozen(sha256, digest, target, rows)


def prune(experiment: str, keep: Iterable[str]) -> None:
    """Remove frozen test sets that nobody is compared on any more; MLflow still has them.

    Args:
        experiment: its name.
        keep: digests of those that stay.
    """
    root, kept = root_of(experiment), set(keep)
    for folder in root.iterdir() if root.exists() else ():
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------------- the seal


def _kept(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[[name for name in COLUMNS if name in rows.columns]].reset_index(drop=True)


def _paths(rows: pd.DataFrame) -> list[str]:
    return sorted({path for path in rows["path"] if isinstance(path, str)})


def _seal(rows: pd.DataFrame, files: dict[str, str]) -> dict[str, Any]:
    """What the set is, told by hashes that depend neither on pandas nor on Parquet."""
    told = hashlib.sha256("\t".join(rows.columns).encode())
    for row in rows.itertuples(index=False, name=None):
        told.update(artifacts.sha256_json([_value(one) for one in row]).encode())
    return {
        "format": FORMAT,
        "test_sha256": ledger.test_sha256(rows),
        "rows_sha256": told.hexdigest(),
        "items": len(rows),
        "files": files,
    }


def _value(found: object) -> str | int | None:
    """A value of a row; whatever stands for nothing is None."""
    if isinstance(found, str):
        return found
    return int(found) if isinstance(found, int | np.integer) else None


def _holds(folder: Path, seal: dict[str, Any]) -> bool:
    """Whether the folder holds this very set, as far as names tell."""
    if not (folder / SEAL).exists() or artifacts.read_json(folder / SEAL, "python -m steps.register") != seal:
        return False
    return all((folder / path).is_file() for path in (ITEMS, *seal["files"]))


def _verified(folder: Path, sha256: str, digest: str) -> Frozen:
    """The set in a folder, every byte of it checked.

    Raises:
        DataError: something differs; the message names it.
    """
    broken = f"the frozen test set {sha256[:8]} in {folder} is not what was put aside"
    try:
        seal = artifacts.read_json(folder / SEAL, "python -m steps.register")
        rows = pd.read_parquet(folder / ITEMS)
        found = _seal(rows, {path: _hashed(folder / path) for path in seal["files"]})
    except Exception as error:  # what reads damaged files may raise anything
        raise DataError(f"{broken}: {' '.join(str(error).split())[:200]}") from None
    changed = [path for path, one in seal["files"].items() if found["files"][path] != one]
    if changed:
        raise DataError(f"{broken}: {changed[0]} was changed ({len(changed)} files in all)")
    if found["rows_sha256"] != seal["rows_sha256"] or set(_paths(rows)) != set(seal["files"]):
        raise DataError(f"{broken}: {ITEMS} was changed")
    if (artifacts.sha256_json(seal), found["test_sha256"]) != (digest, sha256):
        raise DataError(f"{broken}: it is another one")
    return Frozen(sha256, digest, folder, rows)


def _hashed(path: Path) -> str:
    try:
        return artifacts.sha256_file(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing, which the test split names; run `dvc repro`") from None


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no such thing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nothing of the machine goes along: no owner, no times."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime, member.mode = 0, 0o644
    return member


# -------------------------------------------------------------------------------------- what was trained on


def digests(rows: pd.DataFrame) -> NDArray[np.void]:
    """What tells the contents of rows apart: of its bytes, and of what is in them.

    Args:
        rows: with `sha256`, and `content` where the task has made it.

    Returns:
        Shape (2, items), 16 bytes each; the second row repeats the first where there is no `content`.
    """
    columns = ["sha256", "content" if "content" in rows.columns else "sha256"]
    found = [
        [hashlib.blake2b(str(one).encode(), digest_size=DIGEST_BYTES).digest() for one in rows[name]]
        for name in columns
    ]
    return np.array(found, dtype=f"V{DIGEST_BYTES}").reshape(2, len(rows))


def write_digests(rows: pd.DataFrame, path: Path) -> None:
    """Write which contents a model was trained on; equal contents are equal bytes."""
    each = sorted({one.tobytes() for one in digests(rows).ravel()})
    table = pa.table({"digest": pa.array(each, pa.binary(DIGEST_BYTES))})
    pq.write_table(table, path, compression="none")


def read_digests(path: Path) -> frozenset[bytes]:
    """What `write_digests` wrote."""
    return frozenset(pq.read_table(path)["digest"].to_pylist())


def known(rows: pd.DataFrame, trained_on: frozenset[bytes]) -> NDArray[np.bool_]:
    """Which rows a model was trained on, shape (items,)."""
    sides = [[one.tobytes() in trained_on for one in side] for side in digests(rows)]
    by_bytes, by_content = np.asarray(sides, dtype=np.bool_).reshape(2, len(rows))
    return by_bytes | by_content


def overlap(rows: pd.DataFrame, other: pd.DataFrame) -> float:
    """The share of the rows whose contents are among the others, from 0 to 1."""
    there = frozenset(one.tobytes() for one in digests(other).ravel())
    return float(known(rows, there).mean()) if len(rows) else 0.0
