from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from steps.artifacts import write_json
from steps.errors import DataError, UserError
from steps.images import upright
from steps.params import Machine, Model, Validation
from steps.pixels import FOLDER, Store
from steps.scans import size_of
from steps.tasks import get
from steps.tasks.of_images import BLOCK, FORMATS, ImageSamples, _near_pairs
from tests.rawdata import huge_png, picture, save

TASK = get("image-classification")


def facts(folder: Path, names: list[str], **validation: int) -> pd.DataFrame:
    manifest = pd.DataFrame({"id": names, "path": names})
    return TASK.facts(manifest, folder, Validation(**validation))  # type: ignore[arg-type]


def bright(image: Image.Image, by: int) -> Image.Image:
    return Image.fromarray((np.asarray(image).astype(int) + by).clip(0, 255).astype(np.uint8))


def test_equal_pixels_in_other_files_share_their_content(tmp_path: Path) -> None:
    for seed, name in ((1, "a.png"), (1, "b.bmp"), (2, "c.png")):
        picture(seed).save(tmp_path / name)
    found = facts(tmp_path, ["a.png", "b.bmp", "c.png"])
    assert found["content"][0] == found["content"][1] != found["content"][2]
    assert found["near_duplicate_of"].isna().all(), "copies are no near duplicates"
    assert found["width"].tolist() == [16] * 3
    assert (found["split_key"] == found["content"]).all()


def test_images_that_look_alike_name_the_first_and_share_a_group(tmp_path: Path) -> None:
    for name, by in (("a.png", 0), ("c.png", 1), ("d.png", 2)):
        bright(picture(1), by).save(tmp_path / name)
    picture(2).save(tmp_path / "b.png")
    found = facts(tmp_path, ["a.png", "b.png", "c.png", "d.png"], near_duplicate_bits=2)
    assert found["near_duplicate_of"].fillna("").tolist() == ["", "", "a.png", "a.png"]
    assert found["near_group"].nunique() == 2
    assert found["near_group"][0] == min(found["content"][[0, 2, 3]])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**10 - 1), max_size=40, unique=True), st.integers(0, 4))
def test_pairs_are_those_of_comparing_all_with_all(codes: list[int], bits: int) -> None:
    # Repeated until the blocks are more than one, with bits that keep the repetitions apart.
    spread = np.array([code | (1 << 20 + turn) << 8 for turn in range(2) for code in codes], dtype=np.uint64)
    earlier, later = _near_pairs(spread, bits)
    expected = [
        (one, other)
        for one in range(len(spread))
        for other in range(one + 1, len(spread))
        if int(spread[one] ^ spread[other]).bit_count() <= bits
    ]
    assert [*zip(earlier.tolist(), later.tolist(), strict=True)] == expected


def test_pairs_are_found_across_blocks() -> None:
    codes = np.arange(3 * BLOCK, dtype=np.uint64) << np.uint64(40)
    codes[-1], codes[BLOCK] = 7, 6
    earlier, later = _near_pairs(codes, 1)
    assert (BLOCK, 3 * BLOCK - 1) in [*zip(earlier.tolist(), later.tolist(), strict=True)]


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_cut_anywhere_or_altered_is_told_and_never_raises(tmp_path: Path, form: str) -> None:
    with io.BytesIO() as buffer:
        picture(3, 24).save(buffer, form)
        whole = buffer.getvalue()
    rng = np.random.default_rng(0)
    names = []
    for number in range(40):
        broken = bytearray(whole)
        if number % 2:
            broken = broken[: rng.integers(1, len(broken))]
        for place in rng.integers(0, len(broken), 3):
            broken[place] = rng.integers(0, 256)
        names.append(f"{number}.img")
        (tmp_path / names[-1]).write_bytes(broken)
    found = facts(tmp_path, names)
    too_large = found["pixels"].fillna(0) > Validation().max_pixels
    assert (found["decode_error"].notna() | found["content"].notna() | too_large).all()
    assert not (found["decode_error"].notna() & found["content"].notna()).any()
    assert found["decode_error"].notna().any()


def test_a_huge_image_is_measured_and_not_decoded(tmp_path: Path) -> None:
    huge_png(tmp_path / "huge.png")
    limit = Image.MAX_IMAGE_PIXELS
    found = facts(tmp_path, ["huge.png"])
    assert found[["width", "height", "pixels"]].to_numpy().tolist() == [[20_000, 20_000, 400_000_000]]
    assert found[["content", "decode_error"]].isna().to_numpy().all()
    assert limit == Image.MAX_IMAGE_PIXELS


def test_no_images_at_all(tmp_path: Path) -> None:
    assert {"content", "near_duplicate_of", "near_group", "split_key"} <= set(facts(tmp_path, []).columns)


def samples(contents: list[Path | bytes], side: int = 16) -> ImageSamples:
    return ImageSamples(contents, side, [0.5] * 3, [0.5] * 3)


def as_bytes(image: Image.Image, form: str = "PNG", **more: object) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, form, **more)
        return buffer.getvalue()


def test_a_batch_is_normalised_and_in_the_order_asked_for(tmp_path: Path) -> None:
    white, black = as_bytes(Image.new("RGB", (40, 20), "white")), as_bytes(Image.new("RGB", (8, 8), "black"))
    batch = samples([white, black]).batch([1, 0])
    assert batch.shape == (2, 3, 16, 16)
    assert batch.dtype.is_floating_point
    assert (batch[0] == -1).all()
    assert (batch[1] == 1).all()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (8, 8), 255), 1.0),
        (Image.new("1", (8, 8), 1), 1.0),
        (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), 1.0),
        (Image.new("LA", (8, 8), (0, 255)), -1.0),
        (Image.fromarray(np.full((8, 8), 65535, dtype=np.uint16)), 1.0),
        (Image.fromarray(np.full((8, 8), 300, dtype=np.uint16)), 1 / 127.5 - 1),
    ],
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: float) -> None:
    batch = samples([as_bytes(image)]).batch([0])
    np.testing.assert_allclose(batch.numpy(), expected, atol=1e-6)


def test_an_image_is_turned_as_its_camera_says() -> None:
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    batch = samples([as_bytes(Image.fromarray(pixels), exif=exif)]).batch([0])
    assert (batch[0, :, 9:] == 1).all()
    assert (batch[0, :, :7] == -1).all()


@pytest.mark.parametrize("late", [False, True])
def test_the_size_is_told_by_the_header_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """What a PNG says of its orientation behind the pixels is not heard, here and when it is decoded."""
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    pixels = np.zeros((8, 12, 3), dtype=np.uint8)
    content = as_bytes(Image.fromarray(pixels), exif=exif)
    if late:
        start = content.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(content[start : start + 4])
        content = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    with Image.open(io.BytesIO(content)) as image:
        assert upright(image).size == ((12, 8) if late else (8, 12))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("the pixels are decoded"))
    assert size_of(content) == ((12, 8) if late else (8, 12))
    assert size_of(huge_png(tmp_path / "huge.png")) == (20_000, 20_000)


def test_threads_that_open_images_leave_pillows_limit_as_it_was(tmp_path: Path) -> None:
    """It is one for all of a process, and whoever opens any size puts it away for a moment."""
    limit, content = Image.MAX_IMAGE_PIXELS, huge_png(tmp_path / "huge.png").read_bytes()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            sizes = set(pool.map(size_of, [content] * 2000))
    finally:
        sys.setswitchinterval(before)
    assert sizes == {(20_000, 20_000)}
    assert limit is not None
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("content", [b"", b"no image", as_bytes(picture(1))[:300]])
def test_bytes_that_are_no_image_are_the_users_mistake(content: bytes) -> None:
    with pytest.raises(DataError):
        samples([content]).batch([0])


def test_a_huge_image_is_not_decoded_for_a_prediction(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="far too large"):
        samples([huge_png(tmp_path / "huge.png")]).batch([0])


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [save(tmp_path / f"{seed}.png", seed) for seed in range(6)]


def test_a_batch_is_normalised_as_the_formula_says_to_the_bit(files: list[Path]) -> None:
    batch = ImageSamples(files, 16, MEAN, STD).batch([3, 0, 3])
    stacked = np.stack([np.asarray(picture(seed)) for seed in (3, 0, 3)])
    pixels = torch.from_numpy(stacked).permute(0, 3, 1, 2).float()
    expected = (pixels / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    assert torch.equal(batch, expected)
    assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("view", [None, 0, 5])
def test_memory_disk_and_decoding_anew_give_the_same_bits(
    files: list[Path], tmp_path: Path, view: int | None
) -> None:
    store = Store(tmp_path / "store", 10**6)
    augment = ("flip", "crop", "randaugment")
    in_memory = ImageSamples(files, 16, MEAN, STD, augment)
    on_disk = ImageSamples(files, 16, MEAN, STD, augment, memory_bytes=0, store=store)
    neither = ImageSamples(files, 16, MEAN, STD, augment, memory_bytes=0)
    for indices in ([5, 1], [1, 5, 2, 1], [0]):
        expected = in_memory.batch(indices, view)
        assert torch.equal(on_disk.batch(indices, view), expected)
        assert torch.equal(neither.batch(indices, view), expected)
    assert len(list(store.folder.glob("*.npy"))) == 1


def test_a_view_is_augmented_and_the_plain_image_is_not(files: list[Path]) -> None:
    augmented, plain = ImageSamples(files, 16, MEAN, STD, ("crop",)), ImageSamples(files, 16, MEAN, STD)
    assert torch.equal(augmented.batch([0, 1]), plain.batch([0, 1]))
    assert torch.equal(plain.batch([0, 1], 3), plain.batch([0, 1]))
    assert not torch.equal(augmented.batch([0, 1], 3), plain.batch([0, 1]))
    assert torch.equal(augmented.batch([0, 1], 3)[1], augmented.batch([1], 3)[0])
    assert plain.lengths is None


def test_decoded_bytes_stay_in_memory(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", 10**6)
    contents: list[Path | bytes] = [as_bytes(picture(1)), save(tmp_path / "a.png", 2)]
    batch = ImageSamples(contents, 16, MEAN, STD, memory_bytes=0, store=store).batch([1, 0])
    assert torch.equal(batch, ImageSamples(contents, 16, MEAN, STD).batch([1, 0]))
    assert not store.folder.exists()


def test_machine_settings_say_where_decoded_images_are_kept(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "architecture.json", {"mean": MEAN, "std": STD})
    one_image = 3 * 32 * 32 / 2**30

    def batch(**machine: float) -> torch.Tensor:
        model = Model(pretrained="x", image_size=32)
        found = TASK.samples(files, model, tmp_path, (), Machine(**machine)).batch([4])  # type: ignore[arg-type]
        assert isinstance(found, torch.Tensor)
        return found

    expected = batch()
    assert torch.equal(batch(image_memory_gib=0, cache=False), expected)
    assert not FOLDER.exists()
    assert torch.equal(batch(image_memory_gib=5 * one_image), expected)
    assert len(list(FOLDER.glob("*.npy"))) == 1
    with pytest.raises(UserError, match=r"6 decoded images of 32 pixels .* `machine.cache_gib` allows"):
        batch(image_memory_gib=0, cache_gib=5 * one_image)
