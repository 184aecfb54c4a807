"""Scans of many bands from a folder to a registered model, on a toy backbone whose first layer is adapted."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import tifffile
from pydicom.data import get_testdata_file

from steps import artifacts, data
from tests.tasks import clone

SIDE = 24


def tiles(root: Path, each: int = 14) -> None:
    """Tiles of five bands of 16 bits; the classes differ in the fourth alone."""
    for place, name in enumerate(("field", "water")):
        (root / "raw" / name).mkdir(parents=True)
        for number in range(each):
            rng = np.random.default_rng([place, number])
            values = rng.integers(900, 1100, (5, SIDE, SIDE))
            values[3] += 3000 * place
            path = root / "raw" / name / f"{number:02}.tif"
            tifffile.imwrite(
                path, values.astype(np.uint16), photometric="minisblack", planarconfig="separate"
            )


@pytest.mark.flow
def test_tiles_of_many_bands_to_a_registered_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiles(tmp_path)
    asked = {"bands": [3, 0], "band_mean": [2500.0, 1000.0], "band_std": [1500.0, 60.0]}
    clone.lay_out(
        tmp_path,
        {
            "task": "image-classification",
            "data": {"source": "folder", "path": "raw"},
            "model": {"pretrained": "toy-vision", "image_size": 32} | asked,
            "training": {"epochs": 4, "batch_size": 8, "seeds": [1, 2]},
        },
    )
    found = clone.run()
    assert {one["arm"] for one in found["arms"]} == {"scratch", "frozen", "full"}
    row = next(clone.test_rows().itertuples())
    path = artifacts.data_dir(clone.NAME) / str(row.path)
    assert path.suffix == ".tif"
    (said,) = clone.predicted([{"image": base64.b64encode(path.read_bytes()).decode()}])
    assert set(said) == {"label", "probability", "probabilities"}
    assert set(said["probabilities"]) == {"field", "water"}


def dicom(folder: Path, number: int, patient: str) -> None:
    found = get_testdata_file("CT_small.dcm", download=False)
    assert isinstance(found, str)
    scan = pydicom.dcmread(found)
    values = np.random.default_rng(number).integers(800, 1400, scan.pixel_array.shape, dtype=np.int16)
    scan.PixelData, scan.PatientID = values.tobytes(), patient
    folder.mkdir(parents=True, exist_ok=True)
    scan.save_as(folder / f"{number:02}.dcm")


@pytest.mark.flow
def test_scans_of_a_patient_stay_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(24):
        dicom(tmp_path / "raw" / ("a", "b")[number % 2], number, f"secret-{number // 4}")
    clone.lay_out(
        tmp_path,
        {
            "task": "image-classification",
            "data": {"source": "folder", "path": "raw"},
            "model": {"pretrained": "toy-vision", "image_size": 32, "window": [40.0, 400.0]},
            "validation": {"min_per_class": 2, "near_duplicate_bits": 0},
        },
    )
    clone.run(until="baseline")
    assert "24 DICOM files of 6 patients: those of one patient stay together" in capsys.readouterr().out
    rows = data.read_split(clone.NAME)
    used = rows[rows["split"] != ""]
    assert used["group"].nunique() == 6
    assert (used.groupby("group")["split"].nunique() == 1).all()
    summary = (artifacts.validation_dir(clone.NAME) / "validation.json").read_text()
    assert "no_person_named" in summary
    listed = pd.read_csv(artifacts.validation_dir(clone.NAME) / "rejected.csv")
    assert "secret" not in summary + listed.to_csv()
