"""DICOM files of one person stay on one side of the split, also where nobody said so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from steps import scans
from steps.raw import RawData, RawSample


def together(found: RawData) -> RawData:
    """The samples, those of DICOM files without a group grouped by a hash of their PatientID, which is told.

    A group that the data give is left as it is. The number itself goes nowhere.
    """
    notes = list(found.notes)
    return RawData(_grouped(found.samples, notes), notes)


def _grouped(samples: Iterator[RawSample], notes: list[str]) -> Iterator[RawSample]:
    files, patients = 0, set()
    for sample in samples:
        patient = None
        if sample.group is None and isinstance(sample.content, Path | bytes):
            patient = scans.patient(sample.content)
        if patient is None:
            yield sample
        else:
            files += 1
            patients.add(patient)
            yield replace(sample, group=patient)
    if files:
        # Who takes the samples says the notes afterwards.
        notes.append(
            f"{files:,} DICOM files of {len(patients):,} patients: those of one patient stay together "
            "(`group` is a hash of PatientID; a column `group` of a table says otherwise)"
        )
