from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from numpy.typing import NDArray

from steps.errors import DataError, UserError
from steps.pixels import Form, InMemory, OnDisk, Store, bytes_of

SIDE = 4
ONE = bytes_of(1, SIDE)


def image(index: int) -> NDArray[np.uint8]:
    return np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


class Decoder:
    """Decodes and takes note."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, index: int) -> NDArray[np.uint8]:
        self.asked.append(index)
        return image(index)


def files(folder: Path, count: int = 5, kind: str = "a") -> list[Path]:
    """Stand for images; only what the file system tells of them is looked at."""
    folder.mkdir(exist_ok=True)
    made = [folder / f"{kind}{number}" for number in range(count)]
    for file in made:
        if not file.exists():
            file.write_bytes(b"image")
    return made


def on_disk(
    tmp_path: Path, decode: Decoder | None = None, room: int = 100, kind: str = "a", **more: str
) -> OnDisk:
    store = Store(tmp_path / "store", room * ONE)
    return OnDisk(
        decode or Decoder(), files(tmp_path / "raw", kind=kind), SIDE, more.get("recipe", "r"), store
    )


def assert_right(found: NDArray[np.uint8], indices: list[int]) -> None:
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.stack([image(index) for index in indices]))


@pytest.mark.parametrize("room", [0, 3, 5, 100])
def test_images_in_memory_are_decoded_once_as_far_as_they_fit(room: int) -> None:
    decode = Decoder()
    # A byte short of one more.
    pixels = InMemory(decode, 5, SIDE, (room + 1) * ONE - 1)
    for indices in ([4, 0, 4], [1, 2], [0, 1, 2, 3, 4]):
        assert_right(pixels.rows(indices), indices)
    asked = {index: decode.asked.count(index) for index in range(5)}
    assert asked == {index: 1 if index < room else times for index, times in enumerate([2, 2, 2, 1, 3])}


def test_what_is_given_is_a_copy(tmp_path: Path) -> None:
    for pixels in (InMemory(Decoder(), 5, SIDE, 5 * ONE), on_disk(tmp_path)):
        pixels.rows([1, 2])[:] = 0
        assert_right(pixels.rows([1, 2]), [1, 2])


def test_a_file_is_made_when_first_needed_and_read_by_later_runs(tmp_path: Path) -> None:
    first, later = Decoder(), Decoder()
    pixels = on_disk(tmp_path, first)
    assert not (tmp_path / "store").exists()
    assert_right(pixels.rows([3, 0, 3]), [3, 0, 3])
    assert_right(on_disk(tmp_path, later).rows([4, 1]), [4, 1])
    assert (first.asked, later.asked) == ([0, 1, 2, 3, 4], [])
    assert np.load(pixels.path).shape == (5, SIDE, SIDE, 3)


def test_another_recipe_order_or_size_is_another_file(tmp_path: Path) -> None:
    raw, store = files(tmp_path / "raw"), Store(tmp_path, 10**6)

    def path(chosen: list[Path], side: int = SIDE, recipe: str = "r") -> Path:
        return OnDisk(image, chosen, side, recipe, store).path

    assert path(raw) == path(raw)
    others = [path(raw, recipe="s"), path(raw[::-1]), path(raw[1:]), path(raw, side=SIDE + 1)]
    assert len({path(raw), *others}) == 5


def test_an_edit_that_hides_its_time_is_seen(tmp_path: Path) -> None:
    on_disk(tmp_path).rows([0])
    file = tmp_path / "raw" / "a2"
    before = file.stat()
    time.sleep(0.02)  # a file system's clock ticks every few milliseconds
    file.write_bytes(b"other")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    decode = Decoder()
    on_disk(tmp_path, decode).rows([0])
    assert len(decode.asked) == 5


@pytest.mark.parametrize("left", [0, 20, 150, -1])
def test_a_damaged_file_is_made_anew(tmp_path: Path, left: int) -> None:
    whole = on_disk(tmp_path)
    whole.rows([0])
    path = whole.path
    path.write_bytes(path.read_bytes()[:left])
    decode = Decoder()
    assert_right(on_disk(tmp_path, decode).rows([4, 2]), [4, 2])
    assert len(decode.asked) == 5


def test_a_file_of_another_shape_is_made_anew(tmp_path: Path) -> None:
    path = on_disk(tmp_path).path
    path.parent.mkdir()
    np.save(path, np.zeros((6, SIDE, SIDE, 3), dtype=np.uint8))
    assert_right(on_disk(tmp_path).rows([4, 2]), [4, 2])


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from steps.pixels import OnDisk, Store
def decode(index):
    if index == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.zeros((4, 4, 3), dtype=np.uint8)
files = [Path(name) for name in sys.argv[2:]]
OnDisk(decode, files, 4, "r", Store(Path(sys.argv[1]), 10**6)).rows([0])
"""


def test_a_run_killed_half_way_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    names = [str(file) for file in files(tmp_path / "raw")]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "store"), *names], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "store").glob(".*.partial-*"))
    decode = Decoder()
    assert_right(on_disk(tmp_path, decode).rows([0, 3]), [0, 3])
    assert len(decode.asked) == 5
    assert sorted(path.suffix for path in (tmp_path / "store").iterdir()) == ["", ".npy"]


def test_two_runs_at_once_decode_each_image_once(tmp_path: Path) -> None:
    together, decode = Barrier(2), Decoder()

    def run() -> NDArray[np.uint8]:
        pixels = on_disk(tmp_path, decode)
        together.wait()
        return pixels.rows([2, 4])

    files(tmp_path / "raw")
    with ThreadPoolExecutor(2) as pool:
        for running in [pool.submit(run) for _ in range(2)]:
            assert_right(running.result(), [2, 4])
    assert sorted(decode.asked) == [0, 1, 2, 3, 4]


def test_an_image_that_cannot_be_read_leaves_no_file(tmp_path: Path) -> None:
    class Broken(Decoder):
        def __call__(self, index: int) -> NDArray[np.uint8]:
            raise DataError("is no image")

    with pytest.raises(DataError, match="is no image"):
        on_disk(tmp_path, Broken()).rows([0])
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["lock"]
    files(tmp_path / "raw")[1].unlink()
    with pytest.raises(DataError, match="a1: cannot be read: No such file"):
        OnDisk(image, [tmp_path / "raw" / "a1"], SIDE, "r", Store(tmp_path, ONE)).rows([0])


def test_what_is_larger_than_the_store_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        on_disk(tmp_path, room=4)
    said = str(refused.value)
    for part in (
        f"5 decoded images of 4 pixels take {5 * ONE / 2**30:.3g} GiB",
        f"`machine.cache_gib` allows {4 * ONE / 2**30:.3g}",
        "`machine.image_memory_gib`",
        "`machine.cache: false`",
    ):
        assert part in said
    assert not (tmp_path / "store").exists()


def test_files_not_in_use_make_way_the_longest_unused_first(tmp_path: Path) -> None:
    # A file is its pixels and 128 bytes of header: there is room for two of five images, not for three.
    made = {}
    for kind in "ab":
        pixels = on_disk(tmp_path, room=13, kind=kind)
        pixels.rows([0])
        made[kind] = pixels.path
        del pixels  # no longer in use
    for age, kind in ((300, "a"), (200, "b")):
        os.utime(made[kind], (1e9 - age, 1e9 - age))
    on_disk(tmp_path, room=13, kind="a").rows([0])  # now b is the longest unused
    third = on_disk(tmp_path, room=13, kind="c")
    assert_right(third.rows([1]), [1])
    assert set((tmp_path / "store").glob("*.npy")) == {made["a"], third.path}


def test_files_in_use_do_not_make_way(tmp_path: Path) -> None:
    used = on_disk(tmp_path, room=9)
    used.rows([0])
    with pytest.raises(UserError, match=r"GiB beside .* GiB that are in use"):
        on_disk(tmp_path, room=9, kind="b").rows([0])
    assert used.path.exists()
    del used
    assert_right(on_disk(tmp_path, room=9, kind="b").rows([1]), [1])


def test_pixels_of_another_form_take_their_own_room(tmp_path: Path) -> None:
    form = Form(channels=5, dtype=np.float32)
    assert bytes_of(2, SIDE, form) == 2 * SIDE * SIDE * 5 * 4
    made = np.random.default_rng(0).normal(size=(5, SIDE, SIDE, 5)).astype(np.float32)
    one = bytes_of(1, SIDE, form)
    asked: list[int] = []

    def decode(index: int) -> NDArray[np.float32]:
        asked.append(index)
        found: NDArray[np.float32] = made[index]
        return found

    in_memory = InMemory(decode, 5, SIDE, 2 * one, form)
    for _ in range(2):
        np.testing.assert_array_equal(in_memory.rows([1, 0, 4]), made[[1, 0, 4]])
    assert asked == [1, 0, 4, 4], "there is room for two"
    with pytest.raises(UserError, match="take"):
        OnDisk(decode, files(tmp_path / "raw"), SIDE, "r", Store(tmp_path / "store", 5 * one - 1), form)
    on_disk = OnDisk(decode, files(tmp_path / "raw"), SIDE, "r", Store(tmp_path / "store", 6 * one), form)
    np.testing.assert_array_equal(on_disk.rows([4, 2]), made[[4, 2]])
    # The same files as bytes are not taken for these: the type is looked at.
    plain = OnDisk(image, files(tmp_path / "raw"), SIDE, "r", Store(tmp_path / "store", 6 * one))
    assert_right(plain.rows([4, 2]), [4, 2])
