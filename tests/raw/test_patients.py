from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.data import get_testdata_file

from steps.raw import RawData, RawSample, patients
from steps.raw.drawn_scans import NAMES, PATIENTS, SCANS, drawn_scans
from tests.rawdata import save


def dicom(name: str) -> Path:
    found = get_testdata_file(name, download=False)
    assert isinstance(found, str)
    return Path(found)


def test_files_of_one_patient_share_a_group_and_nobody_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no scan")
    samples = [
        RawSample("a", dicom("MR_small.dcm"), "x"),
        RawSample("b", dicom("CT_small.dcm").read_bytes(), "x"),
        RawSample("c", dicom("MR_small_RLE.dcm"), "x"),
        RawSample("d", dicom("MR_small.dcm"), "x", group="mine"),
        RawSample("e", save(tmp_path / "photo.png", 0), "x"),
        RawSample("f", broken, "x"),
        RawSample("g", "a text", "x"),
    ]
    told = patients.together(RawData(iter(samples), ["left aside: y"]))
    groups = [sample.group for sample in told.samples]
    assert groups[0] == groups[2]
    assert len({*groups[:3]}) == 2
    assert all(str(group).startswith("patient-") for group in groups[:3])
    assert groups[3:] == ["mine", None, None, None]
    assert told.notes[0] == "left aside: y"
    assert told.notes[1].startswith("3 DICOM files of 2 patients: those of one patient stay together")


def test_without_dicom_nothing_is_said(tmp_path: Path) -> None:
    sample = RawSample("e", save(tmp_path / "photo.png", 0), "x")
    told = patients.together(RawData(iter([sample])))
    assert list(told.samples) == [sample]
    assert told.notes == []


def test_the_drawn_scans_are_the_same_every_time_and_need_their_window() -> None:
    first, second = list(drawn_scans().samples), list(drawn_scans().samples)
    assert first == second
    assert len({sample.content for sample in first}) == PATIENTS * SCANS
    assert len({sample.group for sample in first}) == PATIENTS
    assert {sample.label for sample in first} == set(NAMES)
    assert all(len({one.label for one in first if one.group == sample.group}) == 1 for sample in first)
    assert isinstance(first[3].content, bytes)
    with Image.open(io.BytesIO(first[3].content)) as image:
        values = np.asarray(image)
    assert values.dtype == np.uint16
    assert np.ptp(values >> 8) < 10, "the upper 8 bits alone show next to nothing"
