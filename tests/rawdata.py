"""Small raw data for the tests of ingest, validate and split."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from steps import artifacts, data
from steps.params import IngestSettings, Settings, Split, SplitSettings, ValidateSettings, parse


def settle(experiment: str, step: str, settings: Settings) -> None:
    artifacts.write_json(artifacts.settings_file(experiment, step), settings.model_dump(mode="json"))


def settle_ingest(experiment: str, task: str, **source: Any) -> None:
    settle(experiment, "ingest", parse(IngestSettings, {"task": task, "data": source}, "test"))


def settle_validate(experiment: str, task: str, **validation: Any) -> None:
    settle(experiment, "validate", parse(ValidateSettings, {"task": task, "validation": validation}, "test"))


def settle_split(experiment: str, resamples: int = 1, **split: Any) -> None:
    wanted = SplitSettings(split=parse(Split, split, "test"), resamples=resamples)
    settle(experiment, "split", wanted)


def picture(seed: int, side: int = 16) -> Image.Image:
    """Noise, so that no two look alike."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def save(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path)
    return path


def class_folders(root: Path, per_class: int = 3, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for place, label in enumerate(classes):
        for number in range(per_class):
            save(root / label / f"{number:02}.png", 1000 * place + number)
    return root


def huge_png(path: Path, side: int = 20_000) -> Path:
    """A 1-bit image whose pixels are never made: 50 MB of zeros pack into 50 kB."""
    packer, row = zlib.compressobj(9), bytes(1 + side // 8)
    body = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
            for kind, part in chunks
        )
    )
    return path


def manifest_of(experiment: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Write a manifest of texts as ingest would."""
    defaults = {"path": None, "sha256": "0" * 64, "size": 1, "split": None, "group": None}
    full = [defaults | {"id": f"s{at:03}", "source": f"t.csv:{at + 2}"} | row for at, row in enumerate(rows)]
    frame = pd.DataFrame(full, columns=list(data.COLUMNS))
    folder = artifacts.data_dir(experiment)
    folder.mkdir(parents=True, exist_ok=True)
    data.write_table(frame, folder / data.MANIFEST)
    return data.read_manifest(folder)


def texts(count: int, label: str, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"{label} text number {start + at}", "label": label} for at in range(count)]


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
