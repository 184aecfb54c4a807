"""Readers are tested on DICOM files that pydicom ships and on TIFF and PNG files made here."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pandas as pd
import pydicom
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydicom.data import get_testdata_file

from steps import scans
from steps.errors import DataError, ParamsError, UserError
from steps.images import upright
from steps.params import Model, Validation, parse
from steps.pixels import Store
from steps.scans import Rule, Scan
from steps.tasks import get
from steps.tasks.of_images import RECIPE, ImageSamples
from tests.rawdata import huge_png, picture

TASK = get("image-classification")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.5]
BANDS = Rule(bands=(3, 0), mean=(100.0, 10.0), std=(50.0, 5.0))


def shipped(name: str) -> Path:
    found = get_testdata_file(name, download=False)
    assert isinstance(found, str), name
    return Path(found)


def samples(contents: list[Path | bytes], rule: Rule, side: int = 8, **more: Any) -> ImageSamples:
    return ImageSamples(contents, side, MEAN, STD, rule=rule, **more)


def tiff(path: Path, values: NDArray[Any], **more: Any) -> Path:
    more.setdefault("photometric", "minisblack")
    tifffile.imwrite(path, values, **more)
    return path


def many_bands(count: int = 4, side: int = 8, dtype: str = "uint16", seed: int = 0) -> NDArray[Any]:
    """Shape (bands, side, side)."""
    return np.random.default_rng(seed).integers(0, 200, (count, side, side)).astype(dtype)


def refused(content: Path | bytes, rule: Rule | None = None) -> str:
    with pytest.raises(DataError) as caught:
        samples([content], rule or Rule()).batch([0])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def facts(paths: list[Path], **validation: Any) -> pd.DataFrame:
    manifest = pd.DataFrame({"id": [path.name for path in paths], "path": [path.name for path in paths]})
    for path in paths:
        assert path.parent == paths[0].parent
    return TASK.facts(manifest, paths[0].parent, Validation(**validation))


# --------------------------------------------------------------------------------------------------- DICOM


def test_a_ct_slice_is_read_in_its_own_unit() -> None:
    path = shipped("CT_small.dcm")
    data = pydicom.dcmread(path)
    found = scans.read(path)
    expected = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
    assert (found.values[..., 0] == expected).all()
    assert found.bits == 16
    assert scans.read(path.read_bytes()).values.tobytes() == found.values.tobytes()
    assert scans.size_of(path) == (128, 128)


def test_a_window_says_what_is_black_and_white() -> None:
    path = shipped("CT_small.dcm")
    assert "int16, here -896 to 1167" in refused(path).replace("float32", "int16")
    found = samples([path], Rule(window=(40, 400)), side=128).pixels.rows([0])[0]
    values = scans.read(path).values[..., 0].astype(np.float64)
    expected = np.clip((values - (40 - 200)) / 400 * 255, 0, 255)
    assert np.abs(found - expected[..., None]).max() <= 0.51
    assert found.dtype == np.uint8


def test_the_window_of_the_file_is_taken_where_none_is_given() -> None:
    path = shipped("MR_small.dcm")
    own = samples([path], Rule()).batch([0])
    assert torch.equal(own, samples([path], Rule(window=(600.0, 1600.0))).batch([0]))
    assert not torch.equal(own, samples([path], Rule(window=(600.0, 800.0))).batch([0]))


@pytest.mark.parametrize("name", ["RLE", "bigendian", "jp2klossless", "jpeg_ls_lossless"])
def test_other_encodings_of_a_file_are_the_same_image(name: str) -> None:
    found = scans.read(shipped(f"MR_small_{name}.dcm")).values
    assert (found == scans.read(shipped("MR_small.dcm")).values).all()


@pytest.mark.parametrize(
    ("name", "like", "off"),
    [
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm", 0),  # JPEG without loss
        ("SC_rgb_jls_lossy_line.dcm", "SC_rgb_rle.dcm", 2),
        ("SC_rgb_jls_lossy_sample.dcm", "SC_rgb_rle.dcm", 2),
    ],
)
def test_encodings_that_pydicom_alone_cannot_decode(name: str, like: str, off: int) -> None:
    found, wanted = (scans.read(shipped(one)).values.astype(int) for one in (name, like))
    assert np.abs(found - wanted).max() <= off


def test_jpeg_of_12_bits_is_the_image_that_jpeg_2000_holds() -> None:
    found, wanted = (
        scans.read(shipped(name)).values.astype(int) for name in ("JPEG-lossy.dcm", "JPEG2000.dcm")
    )
    # The one is packed with much loss.
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.95


def test_colours_in_every_colour_model_are_red_green_and_blue() -> None:
    for name in ("SC_rgb_rle.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm"):
        batch = samples([shipped(name)], Rule(), side=100).pixels.rows([0])[0]
        assert batch.shape == (100, 100, 3)
        # The first rows of this image are red, the next ones are not.
        red, green, blue = batch[5, 50].tolist()
        assert red > 240
        assert max(green, blue) < 30
    assert scans.read(shipped("examples_palette.dcm")).values.shape == (350, 800, 3)


def test_small_values_are_bright_where_the_file_says_so(tmp_path: Path) -> None:
    data = pydicom.dcmread(shipped("MR_small.dcm"))
    data.PhotometricInterpretation = "MONOCHROME1"
    data.save_as(tmp_path / "inverted.dcm")
    for rule in (Rule(), Rule(window=(500.0, 900.0))):
        plain = samples([shipped("MR_small.dcm")], rule, side=64).pixels.rows([0])
        assert (samples([tmp_path / "inverted.dcm"], rule, side=64).pixels.rows([0]) == 255 - plain).all()
    rule = Rule(bands=(0,), mean=(600.0,), std=(300.0,))
    standard = samples([shipped("MR_small.dcm")], rule).batch([0])
    assert torch.equal(samples([tmp_path / "inverted.dcm"], rule).batch([0]), -standard)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("SC_rgb_rle_2frame.dcm", "holds 2 frames; save each as a file of its own"),
        ("rtplan.dcm", "is DICOM of modality RTPLAN but holds no image"),
        ("test-SR.dcm", "is DICOM of modality SR but holds no image"),
        ("MR_truncated.dcm", "bytes of pixel data is less than expected"),
        ("GDCMJ2K_TextGBR.dcm", "Unable to deco"),
        ("no_meta.dcm", "is no DICOM file: the header with `DICM` is missing"),
    ],
)
def test_files_without_an_image_are_told(name: str, reason: str) -> None:
    path = shipped(name)
    assert reason in refused(path, Rule(window=(40, 400)))
    found = facts([path])
    assert reason in found["decode_error"][0]
    assert found["content"].isna().all()


def test_no_file_that_pydicom_ships_raises_or_logs_anything(caplog: pytest.LogCaptureFixture) -> None:
    paths = sorted(shipped("CT_small.dcm").parent.glob("*.dcm"))
    found = facts(paths)
    assert len(paths) > 50
    assert (found["decode_error"].notna() ^ found["content"].notna()).all()
    assert 30 < found["content"].notna().sum() < len(paths) - 15
    assert not caplog.records


def test_who_is_named_is_told_by_the_names_of_the_elements_alone(tmp_path: Path) -> None:
    data = pydicom.dcmread(shipped("MR_small.dcm"))
    (tmp_path / "named.dcm").write_bytes(shipped("MR_small.dcm").read_bytes())
    number, name = str(data.PatientID), str(data.PatientName)
    for element in ("PatientName", "PatientID", "PatientBirthDate"):
        setattr(data, element, "")
    data.save_as(tmp_path / "nobody.dcm")
    picture(0).save(tmp_path / "photo.png")
    found = facts([tmp_path / "named.dcm", tmp_path / "nobody.dcm", tmp_path / "photo.png"])
    assert found["personal"][0].startswith("PatientName, PatientID")
    assert found["personal"][1:].isna().all()
    assert not any(secret in " ".join(map(str, found.iloc[0])) for secret in (number, name))
    asked = {one.name: one for one in TASK.expectations(Validation())}
    assert asked["no_person_named"].arguments == {"column": "personal"}


def test_a_patient_has_a_name_that_tells_nobody_who_it_is() -> None:
    of_ct, of_mr = (scans.patient(shipped(name)) for name in ("CT_small.dcm", "MR_small.dcm"))
    assert of_ct is not None
    assert of_ct != of_mr
    assert of_mr == scans.patient(shipped("MR_small_RLE.dcm"))
    assert str(pydicom.dcmread(shipped("CT_small.dcm")).PatientID) not in of_ct
    assert scans.patient(shipped("rtplan.dcm")) is None, "no image"
    with io.BytesIO() as buffer:
        picture(0).save(buffer, "PNG")
        assert scans.patient(buffer.getvalue()) is None


# ------------------------------------------------------------------------------------ many bands, deep values


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "uint32"])
@pytest.mark.parametrize("planar", ["separate", "contig"])
def test_bands_of_every_type_in_either_order(tmp_path: Path, dtype: str, planar: str) -> None:
    values = many_bands(5, dtype=dtype)
    written = values if planar == "separate" else values.transpose(1, 2, 0)
    path = tiff(tmp_path / "a.tif", written, planarconfig=planar)
    assert (scans.read(path).values == values.transpose(1, 2, 0)).all()
    assert scans.read(path.read_bytes()).values.dtype == np.dtype(dtype)
    batch = samples([path], BANDS).batch([0])
    expected = (values[[3, 0]] - np.array([100.0, 10.0])[:, None, None]) / np.array([50.0, 5.0])[
        :, None, None
    ]
    np.testing.assert_allclose(batch[0].numpy(), expected, rtol=1e-5)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_13_bands_need_a_rule(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", many_bands(13), planarconfig="separate")
    assert (
        f"{path}: has 13 bands: say in params.yaml which are used, e.g. `model.bands: [2, 1, 0]`"
        in refused(path)
    )
    assert "has 13 bands, 0 to 12, but `model.bands` names 13" in refused(path, Rule(bands=(13,)))
    assert "its values are uint16, here 2 to 199: say which are" in refused(path, Rule(bands=(3, 2, 1)))
    found = samples([path], Rule(bands=(3, 2, 1), window=(100.0, 200.0))).pixels.rows([0])[0]
    expected = np.clip(many_bands(13)[[3, 2, 1]] / 200 * 255, 0, 255).transpose(1, 2, 0)
    assert np.abs(found - expected).max() <= 0.51
    found = facts([path])
    assert found[["bits", "bands", "lowest", "highest"]].to_numpy().tolist() == [[16, 13, 0.0, 199.0]]
    assert found["decode_error"].isna().all()


def test_a_network_of_other_channels_is_fed_the_mean_of_the_pretrained_statistics(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", many_bands(4, dtype="uint8"), planarconfig="separate")
    batch = samples([path], Rule(bands=(0, 1, 2, 3))).batch([0])
    expected = (many_bands(4, dtype="uint8") / 255 - 0.4) / (0.95 / 3)
    np.testing.assert_allclose(batch[0].numpy(), expected, rtol=1e-4, atol=1e-5)
    one = samples([path], Rule(bands=(2,))).batch([0])
    assert torch.equal(one[:, 0], batch[:, 2])


def test_missing_values_need_a_rule(tmp_path: Path) -> None:
    holes = many_bands(4, dtype="float32")
    holes[3, 0, 0], holes[0, 1, 1], holes[1, 2, 2] = np.nan, np.inf, np.nan
    nodata = many_bands(4, dtype="int16")
    nodata[3, 0, 0], nodata[0, 1, 1] = -999, -999
    for path in (
        tiff(tmp_path / "a.tif", holes, planarconfig="separate"),
        tiff(tmp_path / "b.tif", nodata, planarconfig="separate", extratags=[(42113, "s", 0, "-999", True)]),
    ):
        assert "2 pixels have no value (NaN, infinite or the file's no-data" in refused(path, BANDS)
        rule = Rule(BANDS.bands, mean=BANDS.mean, std=BANDS.std, fill=100.5)
        batch = samples([path], rule).batch([0])[0]
        assert batch[0, 0, 0] == pytest.approx(0.01)
        assert batch[1, 1, 1] == pytest.approx(18.1)
        assert torch.isfinite(batch).all()
        assert facts([path])["highest"][0] <= 199
    # A hole in a band that is not used is none.
    assert torch.isfinite(samples([tmp_path / "a.tif"], Rule((2,), mean=(0.0,), std=(1.0,))).batch([0])).all()


def test_16_bits_without_a_rule_are_read_as_ever(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        assert (samples([tmp_path / name], Rule()).pixels.rows([0])[0] == (deep >> 8)[..., None]).all()
        window = Rule(window=(1000.0, 2000.0))
        expected = scans.windowed(deep[..., None], (1000.0, 2000.0))
        assert (samples([tmp_path / name], window).pixels.rows([0])[0] == expected).all()
    assert facts([tmp_path / "a.png"])["bits"].tolist() == [16]


def test_png_of_three_times_16_bits(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8, 3), dtype=np.uint16)
    content = bytes(imagecodecs.png_encode(deep))
    found = samples([content], Rule((2, 0), mean=(0.0, 0.0), std=(1.0, 1.0))).batch([0])[0]
    assert (found.numpy() == deep[..., [2, 0]].transpose(2, 0, 1)).all()
    see_through = np.concatenate([deep, deep[..., :1]], axis=2)
    assert "transparent pixels" in refused(
        bytes(imagecodecs.png_encode(see_through)), Rule(window=(0.0, 9.0))
    )


def test_values_that_8_bits_would_spoil_are_refused_without_a_rule(tmp_path: Path) -> None:
    for dtype in ("float32", "int32", "int16"):
        path = tiff(tmp_path / f"{dtype}.tif", many_bands(1, dtype=dtype)[0] - 50)
        assert f"its values are {dtype}, here -50 to 149: say which are black" in refused(path)


def test_white_from_zero(tmp_path: Path) -> None:
    values = many_bands(1)[0]
    rule = Rule(window=(100.0, 200.0))
    plain = samples([tiff(tmp_path / "a.tif", values)], rule).pixels.rows([0])
    inverted = samples([tiff(tmp_path / "b.tif", values, photometric="miniswhite")], rule).pixels.rows([0])
    assert (inverted == 255 - plain).all()


def test_more_than_one_image_in_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    with tifffile.TiffWriter(path) as writer:
        for seed in range(3):
            writer.write(many_bands(1, seed=seed)[0], photometric="minisblack")
    assert "holds 3 images; save each" in refused(path, Rule(window=(0.0, 9.0)))
    tiff(path, many_bands(3), metadata={"axes": "ZYX"})
    assert "holds more than one image, 3 (Z) x 8 (Y) x 8 (X)" in refused(path, Rule(window=(0.0, 9.0)))


def test_smaller_copies_of_an_image_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "overviews.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(many_bands(4, 32), photometric="minisblack", planarconfig="separate", subifds=0)
        for side in (16, 8):
            writer.write(
                many_bands(4, side), photometric="minisblack", planarconfig="separate", subfiletype=1
            )
    assert scans.size_of(path) == (32, 32)
    assert (scans.read(path).values == many_bands(4, 32).transpose(1, 2, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_pillow_turns(tmp_path: Path, orientation: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8)
    tags = [(274, "H", 1, orientation, True)]
    path = tiff(tmp_path / "a.tif", values.astype(np.int32), extratags=tags)
    photo = tiff(tmp_path / "b.tif", values, extratags=tags)
    packed = tiff(tmp_path / "c.tif", values, extratags=tags, compression="zlib")
    with Image.open(packed) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    # Pillow mixes up the rows of one that is not packed; it is read all the same.
    for content in (photo, packed):
        assert (np.asarray(scans.picture(content))[..., 0] == expected).all()
    assert (scans.read(path).values[..., 0] == expected).all()
    assert scans.size_of(path) == scans.size_of(photo) == expected.shape[::-1]


@pytest.mark.parametrize("kind", ["dicom", "tiff"])
def test_a_file_cut_anywhere_or_altered_is_told_and_never_raises(tmp_path: Path, kind: str) -> None:
    whole = shipped("MR_small_RLE.dcm").read_bytes()
    if kind == "tiff":
        whole = tiff(
            tmp_path / "whole.tif", many_bands(3, dtype="int16"), planarconfig="separate"
        ).read_bytes()
    rng, paths = np.random.default_rng(0), []
    for number in range(40):
        broken = bytearray(whole)
        if number % 2:
            broken = broken[: rng.integers(1, len(broken))]
        for place in rng.integers(0, min(len(broken), 900), 3):
            broken[place] = rng.integers(0, 256)
        paths.append(tmp_path / f"{number}.{'dcm' if kind == 'dicom' else 'tif'}")
        paths[-1].write_bytes(broken)
    found = facts(paths)
    too_large = found["pixels"].fillna(0) > Validation().max_pixels
    assert (found["decode_error"].notna() | found["content"].notna() | too_large).all()
    assert found["decode_error"].notna().any()


def test_a_huge_scan_is_measured_and_not_decoded(tmp_path: Path) -> None:
    data = pydicom.dcmread(shipped("MR_small.dcm"))
    data.Rows = data.Columns = 30_000
    data.save_as(tmp_path / "huge.dcm")
    assert facts([tmp_path / "huge.dcm"])["pixels"].tolist() == [900_000_000]
    assert facts([tmp_path / "huge.dcm"])["decode_error"].isna().all()
    assert "is far too large: 30000 x 30000" in refused(tmp_path / "huge.dcm")
    assert scans.size_of(huge_png(tmp_path / "huge.png")) == (20_000, 20_000)


# ------------------------------------------------------------------------------------------------- as samples


def test_what_is_not_asked_for_changes_nothing(tmp_path: Path) -> None:
    picture(3, 20).save(tmp_path / "a.png")
    plain = ImageSamples([tmp_path / "a.png"], 8, MEAN, STD)
    assert plain.recipe == RECIPE
    assert samples([tmp_path / "a.png"], Rule(window=(0.0, 9.0))).recipe != RECIPE
    expected = ImageOps.fit(picture(3, 20), (8, 8), Image.Resampling.BICUBIC)
    assert (plain.pixels.rows([0])[0] == np.asarray(expected)).all()
    # An 8-bit image under a rule: its bands can be chosen.
    red = samples([tmp_path / "a.png"], Rule(bands=(0,))).pixels.rows([0])[0]
    assert (red[..., 0] == np.asarray(expected)[..., 0]).all()


@pytest.mark.parametrize("view", [None, 2])
def test_memory_and_disk_give_the_same_float32(tmp_path: Path, view: int | None) -> None:
    files = [
        tiff(tmp_path / f"{seed}.tif", many_bands(4, 12, seed=seed), planarconfig="separate")
        for seed in range(5)
    ]
    store = Store(tmp_path / "store", 10**6)
    in_memory = samples([*files], BANDS, augment=("flip", "crop"))
    on_disk = samples([*files], BANDS, augment=("flip", "crop"), memory_bytes=0, store=store)
    expected = in_memory.batch([4, 1], view)
    assert torch.equal(on_disk.batch([4, 1], view), expected)
    assert expected.dtype == torch.float32
    stored = np.load(next(store.folder.glob("*.npy")))
    assert stored.dtype == np.float32
    assert stored.shape == (5, 8, 8, 2)


def test_randaugment_of_other_channels_is_refused() -> None:
    with pytest.raises(UserError, match=r"leave it out with these `model\.bands`"):
        samples([], BANDS, augment=("randaugment",))


def test_equal_scans_share_their_content_and_others_do_not(tmp_path: Path) -> None:
    values = many_bands(4)
    paths = [
        tiff(tmp_path / "a.tif", values, planarconfig="separate"),
        tiff(tmp_path / "b.tif", values.transpose(1, 2, 0), planarconfig="contig"),
        tiff(tmp_path / "c.tif", values + 1, planarconfig="separate"),
    ]
    found = facts(paths)["content"]
    assert found[0] == found[1] != found[2]


def test_a_picture_for_people_is_always_three_times_8_bits(tmp_path: Path) -> None:
    holes = many_bands(6, dtype="float32")
    holes[:, 0, 0] = np.nan
    empty = np.full((8, 8), np.nan, dtype=np.float32)
    picture(1).save(tmp_path / "photo.png")
    for content in (
        shipped("CT_small.dcm"), shipped("SC_rgb_rle_16bit.dcm"), tmp_path / "photo.png",
        tiff(tmp_path / "a.tif", holes, planarconfig="separate"), tiff(tmp_path / "b.tif", empty),
    ):  # fmt: skip
        shown = scans.picture(content)
        assert shown.mode == "RGB"
        assert shown.size == scans.size_of(content)
    assert np.asarray(scans.picture(shipped("CT_small.dcm"))).std() > 20
    dark = np.arange(64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(dark).save(tmp_path / "dark.png")
    assert np.asarray(scans.picture(tmp_path / "dark.png")).max() == 255
    with Image.open(tmp_path / "photo.png") as photo:
        assert scans.picture(tmp_path / "photo.png") == upright(photo)
    with pytest.raises(DataError, match="is no image"):
        scans.picture(b"no image at all")


def test_the_inverse_of_nothing_known() -> None:
    scan = Scan(np.array([[[0], [100]]], dtype=np.uint8), 8, inverted=True)
    assert np.asarray(scans.shown(scan))[0, :, 0].tolist() == [255, 155]


# --------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"band_mean": [1.0]}, "`band_mean` and `band_std` go together"),
        ({"band_mean": [1.0], "band_std": [1.0]}, "need a value for each of `bands`"),
        ({"bands": [0, 1], "band_mean": [1.0], "band_std": [1.0]}, "need a value for each of `bands`"),
        ({"bands": [0], "band_mean": [1.0], "band_std": [0.0]}, "`band_std` must be above 0"),
        ({"bands": [0], "band_mean": [1.0], "band_std": [1.0], "window": [1.0, 1.0]}, "not both"),
        ({"bands": [-1]}, "`bands` count from 0"),
        ({"window": [40.0, 0.0]}, "the width is 0"),
    ],
)
def test_rules_that_contradict_themselves_are_told(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ParamsError, match=reason):
        parse(Model, {"pretrained": "toy"} | settings, "test")


def test_the_rule_of_an_experiment() -> None:
    asked = {"bands": [3, 0], "band_mean": [100.0, 10.0], "band_std": [50.0, 5.0]}
    model = parse(Model, {"pretrained": "toy"} | asked, "test")
    assert Rule.of(model) == BANDS
    assert (BANDS.channels, BANDS.plain, BANDS.dtype) == (2, False, np.float32)
    assert Rule.of(Model(pretrained="toy")) == Rule()
    assert (Rule().channels, Rule().plain, Rule().dtype) == (3, True, np.uint8)
