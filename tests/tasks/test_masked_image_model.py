from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from steps import artifacts
from steps.errors import UserError
from steps.kinds import KINDS
from steps.network import architecture
from steps.params import Model
from steps.tasks import get
from steps.tasks.masked_image_model import BEST_PSNR, MaskedImageSamples, Scale, judged
from steps.tasks.patch_head import hide, image_of, patches_of
from tests.tasks import pretraining

TASK = get("masked-image-model")
MODEL = Model(pretrained="x", image_size=64, mask_fraction=0.5)
VIT = {
    "library": "timm",
    "name": "test_vit",
    "img_size": 64,
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.25, 0.3],
}


def stripes(number: int) -> bytes:
    """Lines of two colours, the same in every patch of 16 pixels."""
    grid = np.indices((64, 64))[number % 2] // (2 + number % 3 * 2) % 2
    colours = np.array([[250, 20 * (number % 8), 30], [10, 60, 255 - 20 * (number % 8)]], dtype=np.uint8)
    with io.BytesIO() as buffer:
        Image.fromarray(colours[grid]).save(buffer, "PNG")
        return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    artifacts.write_json(folder / "architecture.json", VIT)
    return folder


def samples(folder: Path, count: int = 6, augment: tuple[str, ...] = (), **model: Any) -> MaskedImageSamples:
    contents = [stripes(number) for number in range(count)]
    found: Any = TASK.samples(contents, MODEL.model_copy(update=model), folder, augment)
    assert isinstance(found, MaskedImageSamples)
    return found


def targets(found: MaskedImageSamples, places: list[int], view: int | None) -> dict[str, torch.Tensor]:
    rows = pd.DataFrame({"label": ["x"] * len(found)})
    made: Any = TASK.targets(rows, ["x"], found, Path(), MODEL)
    return dict(made.batch(places, view))


# ---------------------------------------------------------------------------------------------------- patches


@given(st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(1, 5))
def test_patches_are_put_together_again(count: int, channels: int, patch: int, rows: int) -> None:
    side = patch * rows
    images = torch.arange(count * channels * side * side).reshape(count, channels, side, side)
    patches = patches_of(images, patch)
    assert patches.shape == (count, rows**2, channels * patch**2)
    assert torch.equal(image_of(patches, patch), images)
    # Row by row, as a vision transformer has them: the last of the first row is at the upper right.
    corner = images[0, :, :patch, side - patch :]
    assert torch.equal(patches[0, rows - 1].reshape(channels, patch, patch), corner)


def test_patches_stand_in_the_order_of_the_backbones_tokens() -> None:
    backbone = pretraining.image_backbone()
    embedding: Any = backbone.model.patch_embed
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    weight = embedding.proj.weight.reshape(embedding.proj.weight.shape[0], -1)
    ours = patches_of(images, 16) @ weight.T + embedding.proj.bias
    assert torch.allclose(ours, embedding(images).flatten(1, -2), atol=1e-4)


def test_hidden_patches_have_the_mean_colour_and_the_others_stay(folder: Path) -> None:
    found = samples(folder)
    places = list(range(6))
    for view in (None, 1):
        batch, told = found.batch(places, view), targets(found, places, view)
        assert told["hidden"].sum(dim=1).tolist() == [8] * 6
        shown = patches_of(batch, 16)
        assert (shown[told["hidden"]] == 0).all()
        assert torch.equal(shown[~told["hidden"]], told["patches"][~told["hidden"]])
    plain = torch.tensor(np.asarray(Image.open(io.BytesIO(stripes(3)))))[:, :, 0].float() / 255
    assert torch.allclose(image_of(told["patches"], 16)[3, 0], (plain - 0.4) / 0.2, atol=1e-5)


def test_every_view_hides_other_patches_and_the_same_each_time(folder: Path) -> None:
    one, again = samples(folder, augment=("flip",)), samples(folder, augment=("flip",))
    for view in (None, 1):
        hidden = targets(one, [0, 1, 2], view)["hidden"]
        assert torch.equal(hidden, targets(again, [0, 1, 2], view)["hidden"])
        assert torch.equal(one.batch([0, 1, 2], view), again.batch([0, 1, 2], view))
    assert not torch.equal(targets(one, [0, 1, 2], 1)["hidden"], targets(one, [0, 1, 2], 2)["hidden"])


def test_images_that_are_added_change_nothing(folder: Path) -> None:
    few, more = samples(folder, 3), samples(folder, 6)
    assert torch.equal(few.batch([2, 0]), more.batch([2, 0]))


@given(st.floats(0.001, 0.999))
def test_something_is_always_hidden(fraction: float) -> None:
    images: Any = type("Images", (), {"side": 64})()
    found = MaskedImageSamples(images, 16, fraction, Scale((0.5,) * 3, (0.5,) * 3))
    hidden = found._hidden(np.zeros((3, 64, 64), dtype=np.float32), None)
    assert hidden.sum() == found.hidden == max(1, round(16 * fraction))


# ------------------------------------------------------------------------------------------------ the network


def test_the_loss_is_the_mean_error_of_hidden_pixels(folder: Path) -> None:
    found = samples(folder)
    network = pretraining.network_of(TASK, pretraining.image_backbone(), MODEL).eval()
    inputs, told = found.batch(list(range(6)), 1), targets(found, list(range(6)), 1)
    with torch.no_grad():
        drawn = network(inputs)
        ours = TASK.objective(pretraining.ARM, None, ["x"]).share(drawn, told, told)
        # As SimMIM writes it: images and a mask of pixels.
        wrong = (image_of(drawn, 16) - image_of(told["patches"], 16)).abs()
        mask = hide(torch.ones(6, 3, 64, 64), ~told["hidden"], 16)
        assert float(ours) == pytest.approx(float((wrong * mask).sum() / mask.sum()), abs=1e-5)


def test_the_shares_of_parts_add_up(folder: Path) -> None:
    network = pretraining.network_of(TASK, pretraining.image_backbone(), MODEL)
    whole, split = pretraining.shares(TASK, network, samples(folder), MODEL, 4)
    assert whole == pytest.approx(split, abs=1e-5)


def test_class_and_register_tokens_are_left_out() -> None:
    backbone = pretraining.image_backbone()
    head: Any = TASK.head(backbone, ["x"], MODEL, pretraining.ARM)
    assert head.prefix == 1
    tokens = torch.randn(2, 17, 64, generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, 0] += 1
    assert torch.equal(head(tokens), head(other))
    assert head(tokens).shape == (2, 16, 3 * 16 * 16)


def test_training_lowers_the_loss_below_the_mean_pixels(folder: Path, tmp_path: Path) -> None:
    found = samples(folder)
    network = pretraining.network_of(TASK, pretraining.image_backbone(), MODEL)
    losses = pretraining.fitted(TASK, network, found, MODEL, 60, 0.003)
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    said = TASK.predict(network, found, pretraining.ask(MODEL))
    assert isinstance(said, list)
    assert all(set(one) == set(KINDS[TASK.name].outputs) for one in said)
    scores = TASK.scores([None] * 6, said, ["x"])
    assert set(scores) == set(KINDS[TASK.name].metrics)
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(stripes(number))
    paths = [f"{number}.png" for number in range(6)]
    rows = pd.DataFrame({"path": paths * 2, "split": ["train"] * 6 + ["test"] * 6})
    assert TASK.baselines(rows, ["x"], tmp_path) == {}
    baselines: Any = TASK.baselines
    simple = baselines(rows, ["x"], tmp_path, model=MODEL, pretrained=folder)["mean pixel"].said
    floor = TASK.scores([None] * 6, simple, ["x"])
    assert scores["loss"].mean() < floor["loss"].mean()
    assert scores["psnr"].mean() > floor["psnr"].mean()
    case = TASK.case(next(rows.itertuples()), said[0], tmp_path)
    assert [caption for caption, _ in case.pictures] == ["original", "masked", "reconstructed"]
    for _, picture in case.pictures:
        with Image.open(io.BytesIO(picture)) as image:
            assert image.format == "WEBP"
            assert image.size == (64, 64)


def test_psnr_is_that_of_scikit_image_on_hidden_pixels(folder: Path) -> None:
    # Written out, for scikit-image is not installed: 10 log10(1 / MSE) of grey values from 0 to 1.
    found = samples(folder, 1)
    images, hidden = found.shown([0])
    noise = 0.1 * torch.randn(1, 16, 768, generator=torch.Generator().manual_seed(0))
    drawn = patches_of(images, 16) + noise
    said = judged(drawn, found, [0])[0]
    std = torch.tensor([0.2, 0.25, 0.3]).repeat_interleave(256)
    mse = ((noise[0] * std)[hidden[0]] ** 2).mean()
    assert said["psnr"] == pytest.approx(float(-10 * torch.log10(mse)), abs=1e-3)
    assert judged(patches_of(images, 16), found, [0])[0]["psnr"] == BEST_PSNR


def test_pictures_are_as_the_image_was(folder: Path) -> None:
    found = samples(folder, 1)
    images, _ = found.shown([0])
    shown = np.asarray(found.scale.picture(images[0].numpy()), dtype=int)
    original = np.asarray(Image.open(io.BytesIO(stripes(0))), dtype=int)
    assert np.abs(shown - original).max() <= 1
    said = judged(patches_of(images, 16), found, [0])[0]
    with Image.open(io.BytesIO(base64.b64decode(said["masked"]))) as image:
        assert image.size == (64, 64)
    grey = Scale((0.5,) * 2, (1 / 6,) * 2).picture(np.zeros((2, 200, 200), dtype=np.float32))
    assert grey.size == (128, 128)
    assert set(np.unique(np.asarray(grey))) == {128}


@pytest.mark.parametrize(
    ("description", "image_size", "expected"),
    [
        ({"name": "test_efficientnet"}, 64, "gives no token for each patch"),
        ({"name": "vit_tiny_patch16_224"}, 64, "is for images of 224 pixels: set `image_size: 224`"),
        ({"name": "test_vit"}, 40, "40 is no multiple of the patches' side of 16 pixels"),
    ],
)
def test_backbones_that_do_not_fit(
    tmp_path: Path, description: dict[str, Any], image_size: int, expected: str
) -> None:
    told = {"library": "timm", "mean": [0.5] * 3, "std": [0.5] * 3} | description
    artifacts.write_json(tmp_path / "architecture.json", told)
    before = torch.get_rng_state()
    with pytest.raises(UserError, match=expected):
        TASK.samples([stripes(0)], MODEL.model_copy(update={"image_size": image_size}), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_head_on_activations_that_are_no_tokens() -> None:
    backbone = pretraining.image_backbone()
    backbone.gives = "pooled"
    with pytest.raises(UserError, match="no token for each of the 16 patches"):
        TASK.head(backbone, ["x"], MODEL, pretraining.ARM)
    assert architecture(VIT, gives="tokens").gives == "tokens"
