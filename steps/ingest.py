"""ingest: bring the raw data in, one manifest row a sample, each with the hash of its content.

Nothing is judged here that validate can judge better: a broken image or a null label comes in as it is.
The same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pandas as pd

from steps import artifacts, data, entry, params, raw
from steps.errors import DataError
from steps.kinds import KINDS
from steps.params import Data, IngestSettings, PackageData
from steps.raw import IMAGE_SUFFIXES, RawSample

CHUNK = 1 << 20
UNPACKED = ".unpacked"
INCOMING = ".incoming"


def ingest(experiment: str) -> None:
    """Write `data/<experiment>/`: the samples and `manifest.parquet`.

    Raises:
        DataError: the raw data are missing, or are not what params.yaml says.
        DiskFullError: the disk is full.
    """
    settings = params.read_settings(IngestSettings, artifacts.settings_file(experiment, "ingest"))
    target = artifacts.data_dir(experiment)
    _keep_apart(settings.data, target)
    with artifacts.new_folder(target) as folder:
        found = raw.read(settings.data, settings.task, folder / UNPACKED)
        manifest = pd.DataFrame(list(_rows(found.samples, folder)), columns=list(data.COLUMNS))
        if manifest.empty:
            raise DataError(f"{settings.data.path} holds no samples")
        if (folder / UNPACKED).exists():
            shutil.rmtree(folder / UNPACKED)
        data.write_table(manifest, folder / data.MANIFEST)
    for note in found.notes:
        entry.say(f"{experiment}: {note}")
    entry.say(f"{experiment}: {_summary(manifest, settings.task)} in {target}")


def _keep_apart(source: Data, target: Path) -> None:
    """Raw data in the folder that this step replaces would be lost."""
    if isinstance(source, PackageData):
        return
    path, own = Path(source.path).resolve(), target.resolve()
    if path.is_relative_to(own) or own.is_relative_to(path):
        raise DataError(
            f"`data.path: {source.path}` overlaps {target}, which ingest replaces; move the raw data"
        )


def _summary(manifest: pd.DataFrame, task: str) -> str:
    megabytes = manifest["size"].sum() / 1e6
    given = manifest["split"].value_counts()
    splits = ", ".join(f"{given[name]:,} {name}" for name in data.SPLITS if name in given)
    of_classes = f" of {manifest['label'].nunique()} classes" if KINDS[task].classified else ""
    return (
        f"{len(manifest):,} samples{of_classes}, {megabytes:.1f} MB"
        f"{f', divided by the user ({splits})' if splits else ''}"
    )


def _rows(samples: Iterator[RawSample], folder: Path) -> Iterator[dict[str, Any]]:
    """A manifest row for each sample, in order; images are stored on the way."""
    taken: set[str] = set()
    for sample in samples:
        path = None
        if sample.content is None or isinstance(sample.content, str):
            size, sha256 = _text_facts(sample.content or "", sample.pair)
        else:
            path, size, sha256 = _store(sample.content, folder)
        yield {
            "id": _name(sample, sha256, taken),
            "path": path,
            "text": sample.content if path is None else None,
            "pair": sample.pair,
            "label": sample.label,
            "target": _target(sample),
            "sha256": sha256,
            "size": size,
            "source": sample.source,
            "split": sample.split,
            "group": sample.group,
        }


def _name(sample: RawSample, sha256: str, taken: set[str]) -> str:
    """The user's id, else the path or the content's hash, numbered where it comes again.

    So an id does not depend on which other samples there are, only on how many equal ones come before.
    """
    name = sample.id if sample.id is not None else sha256[:16]
    if not sample.own_id:
        first, number = name, 1
        while name in taken:
            number += 1
            name = f"{first}#{number}"
        taken.add(name)
    return name


def _target(sample: RawSample) -> str | None:
    """The target as JSON; None where the label says it all."""
    if sample.target is None:
        return None
    return json.dumps(sample.target, ensure_ascii=False, sort_keys=True)


def _text_facts(text: str, pair: str | None) -> tuple[int, str]:
    # No text holds this sign between two texts: it would be no sign of a text.
    encoded = (text if pair is None else f"{text}\0{pair}").encode("utf-8")
    return len(encoded), hashlib.sha256(encoded).hexdigest()


def _store(content: Path | bytes, folder: Path) -> tuple[str, int, str]:
    """Copy a file into the folder under its content's hash; equal files are kept once.

    So no name a user or an archive chose ever becomes a path of ours.
    """
    suffix = content.suffix.lower() if isinstance(content, Path) else ".png"
    incoming = folder / INCOMING
    with _open(content) as source, incoming.open("wb") as target:
        size, sha256 = _copy(source, target)
    # Named by a table, a file may end in anything.
    name = f"images/{sha256[:2]}/{sha256}{suffix if suffix in IMAGE_SUFFIXES else ''}"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    incoming.replace(folder / name)
    return name, size, sha256


def _open(content: Path | bytes) -> IO[bytes]:
    if isinstance(content, bytes):
        return io.BytesIO(content)
    try:
        return content.open("rb")
    except OSError as error:
        raise DataError(f"{content} cannot be read: {error.strerror}") from None


def _copy(source: IO[bytes], target: IO[bytes]) -> tuple[int, str]:
    """Copy in chunks; the size in bytes and the SHA-256."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
        target.write(chunk)
    return size, digest.hexdigest()


def main() -> int:
    """Run `python -m steps.ingest <experiment>`."""
    return entry.run(ingest, "experiment")


if __name__ == "__main__":
    sys.exit(main())
