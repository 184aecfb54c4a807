from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from steps import artifacts
from steps.errors import DiskFullError, HeadstartError, UserError
from tests.rawdata import files_below


def half_written(path: Path, error: Exception) -> None:
    path.write_text("half")
    raise error


def test_a_folder_takes_its_place_whole(tmp_path: Path) -> None:
    target = tmp_path / "below" / "out"
    for content in ("first", "second"):
        with artifacts.new_folder(target) as folder:
            (folder / "file").write_text(content)
            assert not target.exists() or (target / "file").read_text() == "first"
    assert files_below(tmp_path) == {"below/out/file": b"second"}


def test_a_failure_leaves_the_old_folder_untouched(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with artifacts.new_folder(target) as folder:
        (folder / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), artifacts.new_folder(target) as folder:
        half_written(folder / "file", ZeroDivisionError())
    assert files_below(tmp_path) == {"out/file": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.survives(
    "disk",
    "disk full while a step writes",
    how="ENOSPC and EDQUOT in the middle of a file and of a folder",
    held="the old result is untouched, nothing half-written stays",
)
def test_a_full_disk_is_named_and_nothing_half_written_stays(tmp_path: Path, number: int) -> None:
    (tmp_path / "file").write_text("old")
    full = OSError(number, os.strerror(number))
    message = r"the disk is full .* while writing .*file; free some space"
    with pytest.raises(DiskFullError, match=message), artifacts.new_file(tmp_path / "file") as partial:
        half_written(partial, full)
    with pytest.raises(DiskFullError), artifacts.new_folder(tmp_path / "folder") as folder:
        half_written(folder / "file", full)
    assert files_below(tmp_path) == {"file": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_other_errors_of_the_system_are_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), artifacts.new_file(tmp_path / "file"):
        raise PermissionError(errno.EACCES, "no")


@pytest.mark.survives(
    "disk",
    "a half-written folder of a killed step",
    how="a partial folder of a dead process",
    held="removed by the next run, and never taken for a result",
)
def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    for name in (".out.partial-999999", ".out.old-999999"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x")
    (tmp_path / ".other.partial-1").mkdir()
    with artifacts.new_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.partial-1", "out"]


def test_equal_values_are_equal_bytes(tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "a", {"x": 1, "é": [1, 2]})
    artifacts.write_json(tmp_path / "b", {"é": [1, 2], "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "é" in (tmp_path / "a").read_text("utf-8")
    assert artifacts.sha256_file(tmp_path / "a") == artifacts.sha256_file(tmp_path / "b")
    assert artifacts.sha256_json({"x": 1, "y": 2}) == artifacts.sha256_json({"y": 2, "x": 1})


def test_a_file_that_is_missing_or_broken_names_the_step_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is made by `the step`"):
        artifacts.read_json(tmp_path / "none", "the step")
    (tmp_path / "bad").write_text("{")
    with pytest.raises(HeadstartError, match=r"not valid JSON .* run `the step` again"):
        artifacts.read_json(tmp_path / "bad", "the step")


def test_no_two_steps_share_a_place() -> None:
    places = [
        artifacts.settings_file("a", "train", "full"),
        artifacts.settings_file("a", "train"),
        artifacts.pretrained_settings_file("a"),
        artifacts.data_dir("a"),
        artifacts.validation_dir("a"),
        artifacts.split_file("a"),
        artifacts.pretrained_dir("a"),
        artifacts.features_dir("a"),
        artifacts.arms_dir("a"),
        artifacts.evaluation_dir("a"),
        artifacts.report_dir("a"),
        artifacts.registration_file("a"),
    ]
    for place in places:
        assert not place.is_absolute()
        assert not [other for other in places if other != place and other.is_relative_to(place)]


def test_files_below_a_folder_come_sorted_with_those_of_its_folders(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/.hidden", ".git/config", "c/d/e.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = [path.relative_to(tmp_path).as_posix() for path in artifacts.files_below(tmp_path)]
    assert found == [".git/config", "a/.hidden", "a/z.txt", "b.txt", "c/d/e.bin"]
    seen = artifacts.sha256_files(tmp_path, hidden=False)
    assert list(seen) == ["a/z.txt", "b.txt", "c/d/e.bin"]
    assert seen["a/z.txt"] == artifacts.sha256_file(tmp_path / "a/z.txt")


def test_weights_are_told_apart_by_their_file_and_a_savedmodel_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    artifacts.write_json(tmp_path / "architecture.json", {"library": "timm"})
    assert artifacts.saved_model(tmp_path) is None
    assert artifacts.weights_sha256(tmp_path) == artifacts.sha256_file(tmp_path / "model.safetensors")
    (tmp_path / "mine/variables").mkdir(parents=True)
    artifacts.write_json(tmp_path / "architecture.json", {"library": "savedmodel", "folder": "mine"})
    hashes = set()
    for content in (b"one", b"two"):
        (tmp_path / "mine/variables/variables.index").write_bytes(content)
        hashes.add(artifacts.weights_sha256(tmp_path))
    assert len(hashes) == 2
    assert artifacts.saved_model(tmp_path) == tmp_path / "mine"
