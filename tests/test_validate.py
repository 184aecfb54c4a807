from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from steps import artifacts, data, params
from steps.errors import DataError, DiskFullError, ValidationFailedError
from steps.ingest import ingest
from steps.suite import Suite
from steps.validate import TEXTS, validate
from tests.rawdata import (
    class_folders,
    files_below,
    huge_png,
    manifest_of,
    picture,
    save,
    settle_ingest,
    settle_validate,
    texts,
)  # fmt: skip

IMAGES, TEXT = "image-classification", "text-classification"
OUT = Path("work/pets/validation")


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    monkeypatch.chdir(tmp_path)
    if "docs" not in request.node.name:
        # Rendering takes longer than judging, and most tests do not look.
        monkeypatch.setattr(Suite, "write_docs", lambda self, summary: None)
    return tmp_path


def judged(task: str = TEXT, **validation: Any) -> tuple[dict[str, Any], pd.DataFrame]:
    """The summary, and the accepted samples."""
    settle_validate("pets", task, **{"min_per_class": 2} | validation)
    validate("pets")
    return json.loads((OUT / "validation.json").read_text()), pd.read_parquet(OUT / "accepted.parquet")


def stopped(task: str = TEXT, **validation: Any) -> str:
    settle_validate("pets", task, **{"min_per_class": 2} | validation)
    with pytest.raises(ValidationFailedError) as caught:
        validate("pets")
    assert "\n" not in str(caught.value)
    assert "work/pets/validation/rejected.csv" in str(caught.value)
    assert not (OUT / "accepted.parquet").exists()
    return str(caught.value)


def listed(name: str = "rejected.csv") -> dict[str, list[tuple[str, str]]]:
    """The rows of a list, by expectation: id and reason."""
    table = pd.read_csv(OUT / name, dtype=str).fillna("")
    return {
        str(key): [*zip(rows["id"], rows["reason"], strict=True)]
        for key, rows in table.groupby("expectation")
    }


def outcome(summary: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one for one in summary["expectations"] if one["name"] == name]
    return dict(found)


def sound() -> list[dict[str, Any]]:
    return [*texts(6, "x"), *texts(6, "y")]


# ------------------------------------------------------------------------------------------- one by one


def test_sound_texts_pass_and_the_same_bytes_come_out_every_time() -> None:
    frame = manifest_of("pets", sound())
    summary, accepted = judged()
    assert summary["success"]
    assert (summary["rows"], summary["accepted"], summary["rejected"]) == (12, 12, 0)
    assert summary["classes"] == {"x": 6, "y": 6}
    assert all(one["success"] for one in summary["expectations"])
    pd.testing.assert_frame_equal(accepted[list(data.COLUMNS)], frame)
    first = files_below(OUT)
    validate("pets")
    assert files_below(OUT) == first


def test_every_name_is_judged_and_explained() -> None:
    rows = sound()
    rows[0]["split"], rows[1]["split"] = "train", "test"
    manifest_of("pets", rows)
    names = {one["name"] for one in judged(labels=["x", "y"])[0]["expectations"]}
    root = class_folders(Path("raw"))
    settle_ingest("pets", IMAGES, source="folder", path=str(root))
    ingest("pets")
    names |= {one["name"] for one in judged(IMAGES)[0]["expectations"]}
    # The others are of single tasks, and have words of their own.
    assert set(TEXTS) <= names <= set(params.EXPECTATIONS)


def test_bad_texts_are_each_rejected_with_a_reason_and_dropped_if_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad: dict[str, dict[str, Any]] = {
        "null label": {"label": None},
        "blank label": {"label": "  "},
        "case": {"label": "X"},
        "blanks": {"label": "x "},
        "unknown": {"label": "z"},
        "no text": {"text": None},
        "blank text": {"text": " \n"},
        "long": {"text": "word " * 100},
    }
    rows = [
        *sound(),
        *({"text": f"bad {name}", "label": "x", "id": name, **row} for name, row in bad.items()),
    ]
    rows += [{"id": "twice", "text": f"bad twice {at}", "label": "x"} for at in range(2)]
    manifest_of("pets", rows)
    told = stopped(max_characters=100, labels=["x", "y"])
    assert told.startswith(
        "pets: the data do not pass: ids_unique: 2 rows (twice); labels_not_null: 2 rows (null"
    )
    assert told.endswith("or set `validation.on_reject: drop` to go on without these rows")
    reasons = listed()
    summary, accepted = judged(max_characters=100, labels=["x", "y"], on_reject="drop")
    assert listed() == reasons == {
        "ids_unique": [("twice", "id twice is there more than once")] * 2,
        "labels_not_null": [("null label", "has no label"), ("blank label", "has no label")],
        "labels_consistent": [
            ("case", "label 'X' is mostly spelt 'x'"), ("blanks", "label 'x ' is mostly spelt 'x'"),
        ],
        "labels_known": [
            ("blank label", "label '  ' is not allowed"), ("case", "label 'X' is not allowed"),
            ("blanks", "label 'x ' is not allowed"), ("unknown", "label 'z' is not allowed"),
        ],
        "text_not_empty": [
            ("no text", "the text has 0 characters, fewer than min_characters"),
            ("blank text", "the text has 0 characters, fewer than min_characters"),
        ],
        "text_within_limits": [("long", "the text has 499 characters, more than max_characters")],
    }  # fmt: skip
    assert accepted["id"].tolist() == [f"s{at:03}" for at in range(12)]
    assert (summary["rows"], summary["accepted"], summary["rejected"]) == (22, 12, 10)
    assert summary["success"]
    assert not outcome(summary, "labels_not_null")["success"]
    assert "dropped: text_within_limits: 1 row (long)" in capsys.readouterr().out


def test_bad_images_are_each_rejected_with_a_reason() -> None:
    root = class_folders(Path("raw"), 4)
    whole = save(root / "cat/truncated.png", 50).read_bytes()
    (root / "cat/truncated.png").write_bytes(whole[: len(whole) // 2])
    (root / "cat/empty.png").write_bytes(b"")
    (root / "cat/text.png").write_text("hello")
    huge_png(root / "cat/huge.png")
    picture(60, 4).save(root / "cat/tiny.png")
    settle_ingest("pets", IMAGES, source="folder", path=str(root))
    ingest("pets")
    summary, accepted = judged(IMAGES, on_reject="drop", min_pixels=8)
    reasons = {name: dict(rows) for name, rows in listed().items()}
    decode = reasons["files_decode"]
    assert decode.pop("cat/empty.png") == "the file is empty (0 bytes)"
    assert decode.pop("cat/text.png").startswith("is no image (PNG, JPEG")
    assert "truncated" in decode.pop("cat/truncated.png")
    assert not decode
    assert reasons["pixels_within_limits"] == {
        "cat/huge.png": "20000 x 20000 pixels are more than max_pixels allows",
        "cat/tiny.png": "4 x 4 pixels: the shortest side is below min_pixels",
    }
    assert len(accepted) == summary["accepted"] == 8
    assert "files_decode: 3 rows (cat/empty.png, cat/text.png, cat/truncated.png)" in stopped(IMAGES)


def test_labels_spelt_in_two_ways_are_told_by_the_rarer_spelling() -> None:
    manifest_of("pets", [*texts(3, "Cat"), *texts(2, "cat", 3), *texts(1, " cat", 5), *texts(3, "dog")])
    assert "labels_consistent: 3 rows (s003, s004, s005)" in stopped()


# --------------------------------------------------------------------------------------------- duplicates


def test_duplicates_are_told_and_one_of_them_is_kept() -> None:
    rows = sound()
    rows += [rows[0] | {"id": "copy"}, rows[0] | {"id": "odd", "label": "y"}]
    rows += [{"id": "near", "text": "X  text, number 1!", "label": "x"}]
    manifest_of("pets", rows)
    summary, accepted = judged()
    assert listed("warnings.csv") == {
        "no_exact_duplicates": [
            ("copy", "same content as s000"), ("odd", "same content as s000, which is labelled 'x'"),
        ],
        "no_near_duplicates": [("near", "nearly the same as s001")],
    }  # fmt: skip
    assert summary["accepted"] == 15
    groups = accepted.set_index("id")["near_group"]
    assert groups["copy"] == groups["s000"]
    assert groups["near"] == groups["s001"] != groups["s000"]
    levels = {"no_exact_duplicates": "error", "no_near_duplicates": "error"}
    _, accepted = judged(on_reject="drop", levels=levels)
    assert accepted["id"].tolist() == [f"s{at:03}" for at in range(12)]


def test_the_same_image_in_train_and_test_stops() -> None:
    root = class_folders(Path("raw/train"), 4)
    class_folders(Path("raw/test"), 4, ("dog", "cat"))
    for path in Path("raw/test").rglob("*.png"):
        number = int(path.stem) + (500 if path.parent.name == "cat" else 700)
        save(path, number)
    save(Path("raw/test/cat/same.png"), 0)
    # Brighter by one in every pixel: other bytes, other pixels, the same look.
    near = np.asarray(picture(1)).astype(int).clip(0, 254).astype(np.uint8) + 1
    Image.fromarray(near).save("raw/test/cat/near.png")
    settle_ingest("pets", IMAGES, source="folder", path=str(root.parent))
    ingest("pets")
    assert "no_duplicates_across_splits: 2 rows (train/cat/00.png, train/cat/01.png)" in stopped(IMAGES)
    assert listed()["no_duplicates_across_splits"][0][1] == (
        "is in train, but the same or nearly the same is in test: test/cat/same.png"
    )
    _, accepted = judged(IMAGES, on_reject="drop")
    assert (accepted["split"] == "test").sum() == 10, "a test split keeps its samples"


# ------------------------------------------------------------------------------------------------ classes


def test_a_class_with_one_sample_stops_even_when_rows_are_dropped() -> None:
    manifest_of("pets", [*sound(), {"text": "alone", "label": "zebra", "id": "only"}])
    for on_reject in ("stop", "drop"):
        told = stopped(on_reject=on_reject)
        assert "samples_per_class: 1 row (only) class 'zebra' has 1 of at least 2" in told
        assert "on_reject" not in told
        assert listed() == {"samples_per_class": [("only", "class 'zebra' has 1 of at least 2")]}


def test_classes_are_counted_after_dropping() -> None:
    manifest_of("pets", [*texts(6, "x"), *texts(2, "y"), {"text": "", "label": "y"}])
    assert "class 'y' has 2 of at least 3" in stopped(min_per_class=3, on_reject="drop")
    summary, _ = judged(min_per_class=2, on_reject="drop")
    assert summary["classes"] == {"x": 6, "y": 2}


def test_one_class_alone_or_none_at_all_stops() -> None:
    manifest_of("pets", texts(6, "x"))
    assert "there are 1 classes" in stopped()
    manifest_of("pets", [{"text": "a", "label": None}])
    assert "there are 0 classes" in stopped(on_reject="drop")


def test_an_allowed_class_without_samples_is_missed() -> None:
    manifest_of("pets", sound())
    assert "class 'z' has 0 of at least 2" in stopped(labels=["x", "y", "z"])


def test_imbalance_is_a_warning() -> None:
    manifest_of("pets", [*texts(9, "x"), *texts(2, "y")])
    summary, _ = judged(max_imbalance=4)
    found = outcome(summary, "classes_balanced")
    assert (found["success"], found["level"]) == (False, "warning")
    assert "class 'y' is 4.5 times smaller than the largest, above 4" in found["text"]
    assert "classes_balanced" in stopped(max_imbalance=4, levels={"classes_balanced": "error"})


# ----------------------------------------------------------------------------------- columns, files, docs


def test_a_missing_column_stops_with_its_name() -> None:
    frame = manifest_of("pets", sound())
    data.write_table(frame.drop(columns=["label", "group"]), artifacts.data_dir("pets") / data.MANIFEST)
    assert "columns_present: column label, group is missing" in stopped()


def test_a_column_of_a_wrong_type_stops() -> None:
    frame = manifest_of("pets", sound())
    data.write_table(frame.assign(size="many"), artifacts.data_dir("pets") / data.MANIFEST)
    assert "columns_present: column size has a wrong type" in stopped()


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd"])
def test_a_path_in_the_manifest_that_leaves_the_folder_is_refused(path: str) -> None:
    manifest_of("pets", [{"path": path, "label": "x"}])
    settle_validate("pets", IMAGES)
    with pytest.raises(DataError, match="which leaves the data folder"):
        validate("pets")
    assert not OUT.exists()


def test_stopping_replaces_what_an_earlier_run_accepted() -> None:
    manifest_of("pets", sound())
    judged()
    manifest_of("pets", [*sound(), {"text": "a", "label": None}])
    stopped()
    assert not json.loads((OUT / "validation.json").read_text())["success"]


def test_a_full_disk_leaves_the_old_result_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest_of("pets", sound())
    judged()
    first = files_below(Path("work/pets"))
    manifest_of("pets", [*sound(), *texts(2, "x", 50)])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(data, "write_table", full)
    with pytest.raises(DiskFullError):
        validate("pets")
    assert files_below(Path("work/pets")) == first


def test_data_docs_open_without_a_network() -> None:
    manifest_of(
        "pets", [*sound(), {"text": "a <script>alert(1)</script>", "label": "<b>bold</b>", "id": "<i>"}]
    )
    stopped()
    pages = {path: path.read_text() for path in (OUT / "docs").rglob("*.html")}
    assert len(pages) == 5
    for path, page in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe)\b|<link\b|url\(|@import", page)
        assert not loaded, f"{path} loads {loaded}"
        for link in re.findall(r'href="([^"#]+)', page):
            assert link.startswith("http") or (path.parent / link).exists(), f"{path} leads to {link}"
        assert "default-src 'none'; style-src 'unsafe-inline'" in page[:300], (
            "values are not escaped everywhere"
        )
    first = pages[OUT / "docs/index.html"]
    assert "samples_per_class" in first
    assert "&lt;b&gt;bold" in first
    assert "<b>bold" not in first


def test_validating_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    manifest_of("pets", sound())
    judged()
    out, err = capfd.readouterr()
    assert (len(out.splitlines()), err) == (1, "")


@pytest.mark.slow
def test_validate_and_split_load_no_torch() -> None:
    root = Path(__file__).parent.parent
    code = (
        "import sys; from steps import ingest, split, tasks, validate;"
        "[tasks.get(name) for name in ('image-classification', 'text-classification')];"
        "print([name for name in ('torch', 'transformers', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
