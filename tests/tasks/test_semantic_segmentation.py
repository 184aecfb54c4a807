from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from segmentation_models_pytorch.losses import DiceLoss
from sklearn.metrics import f1_score, jaccard_score
from torch.nn import functional

from steps import data, network, tasks
from steps.arms import Arm
from steps.artifacts import write_json
from steps.augment import Views
from steps.data import Batches
from steps.errors import UserError
from steps.images import IGNORED, mask_of, mask_text
from steps.ingest import ingest
from steps.kinds import KINDS
from steps.params import Model, Validation
from steps.tasks import Ask
from steps.tasks.of_images import ImageSamples
from steps.tasks.segmentation_metrics import counted, said_of, shares
from steps.tasks.segmentation_network import CrossEntropyAndDice, UNetHead, dice_losses, numbers
from steps.tasks.segmentation_targets import MaskTargets
from steps.tasks.semantic_segmentation import SemanticSegmentation
from steps.validate import validate
from tests.rawdata import picture, settle_ingest, settle_validate

TASK = SemanticSegmentation()
NAMES = ["ground", "disc", "square"]
MODEL = Model(pretrained="toy", image_size=32)
Mask = NDArray[np.uint8]


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    folder = tmp_path / "pretrained"
    write_json(
        folder / "architecture.json",
        {"library": "timm", "name": "test_efficientnet", "mean": [0.5] * 3, "std": [0.5] * 3},
    )
    return folder


def target(mask: Mask | None, **more: str) -> dict[str, Any]:
    return {"classes": NAMES, "mask": None if mask is None else mask_text(mask), **more}


def scene(seed: int, size: tuple[int, int] = (40, 24)) -> tuple[Image.Image, Mask]:
    """A bright square or disc, whatever is drawn in the mask, on dark ground; width and height."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    left, top = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
    mask[top : top + size[1] // 2, left : left + size[0] // 3] = 1 + seed % 2
    colours = np.array([[20, 30, 40], [220, 90, 60], [60, 200, 240]])
    noisy = colours[mask] + rng.normal(0, 5, (*mask.shape, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), mask


def rows_of(folder: Path, count: int = 12) -> pd.DataFrame:
    rows = []
    for seed in range(count):
        image, mask = scene(seed)
        image.save(folder / f"{seed}.png")
        split = "test" if seed % 3 == 0 else "train"
        row = {"id": str(seed), "path": f"{seed}.png", "target": json.dumps(target(mask)), "split": split}
        rows.append(row)
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------- metrics

PIXELS = st.integers(0, 2)
MASKS = st.lists(
    st.tuples(
        st.lists(PIXELS | st.just(IGNORED), min_size=4, max_size=4), st.lists(PIXELS, min_size=4, max_size=4)
    ),
    min_size=1,
    max_size=5,
)


def pairs_of(drawn: list[tuple[list[int], list[int]]]) -> list[tuple[Mask, Mask]]:
    return [(np.array([true], dtype=np.uint8), np.array([said], dtype=np.uint8)) for true, said in drawn]


def reference(pairs: list[tuple[Mask, Mask]]) -> dict[str, float]:
    """What scikit-learn says of all pixels that are judged."""
    true = np.concatenate([one.ravel() for one, _ in pairs]) if pairs else np.zeros(0, np.uint8)
    said = np.concatenate([one.ravel() for _, one in pairs]) if pairs else np.zeros(0, np.uint8)
    true, said = true[true != IGNORED], said[true != IGNORED]
    if not len(true):
        return {"mean_iou": 0.0, "dice": 0.0}
    return {
        "mean_iou": float(jaccard_score(true, said, average="macro", zero_division=0)),
        "dice": float(f1_score(true, said, average="macro", zero_division=0)),
    }


@settings(max_examples=60, deadline=None)
@given(MASKS)
@example([([0, 0, 0, 0], [0, 0, 0, 0])])
@example([([0, 0, 0, 0], [1, 1, 1, 1])])
@example([([255, 255, 255, 255], [1, 1, 1, 1])])
@example([([0, 2, 255, 0], [0, 0, 2, 0]), ([255] * 4, [2] * 4), ([0] * 4, [0] * 4)])
def test_metrics_are_those_of_scikit_learn_and_shares_leave_one_out(
    drawn: list[tuple[list[int], list[int]]],
) -> None:
    pairs = pairs_of(drawn)
    found = shares(counted(pairs, 3))
    whole = reference(pairs)
    without = [reference(pairs[:at] + pairs[at + 1 :]) for at in range(len(pairs))]
    for name, each in found.items():
        assert each.shape == (len(pairs),)
        assert each.mean() == pytest.approx(whole[name], abs=1e-12)
        left = np.array([one[name] for one in without])
        expected = whole[name] + (len(pairs) - 1) * (left.mean() - left)
        np.testing.assert_allclose(each, expected, atol=1e-12)


def test_scores_of_what_is_said() -> None:
    true = np.array([[0, 1], [2, IGNORED]], dtype=np.uint8)
    said = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    found = TASK.scores([target(true)], [said_of(said, NAMES)], NAMES)
    assert set(found) == set(KINDS["semantic-segmentation"].metrics)
    assert found["mean_iou"].tolist() == [pytest.approx((1 + 0.5 + 0) / 3)]
    assert found["dice"].tolist() == [pytest.approx((1 + 2 / 3 + 0) / 3)]


def test_what_is_said_of_an_image() -> None:
    said = said_of(np.array([[0, 2, 2, 2]], dtype=np.uint8), NAMES)
    assert said["classes"] == ["ground", "square"]
    assert said["shares"] == {"ground": 0.25, "disc": 0.0, "square": 0.75}
    assert mask_of(said["mask"]).tolist() == [[0, 2, 2, 2]]
    assert json.loads(json.dumps(said)) == said
    assert set(said) == set(KINDS["semantic-segmentation"].outputs)


# ----------------------------------------------------------------------------------------------------- loss


def batch(seed: int = 0, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 3, (size, 6, 6), generator=generator)
    targets[0] = IGNORED
    targets[1, :3] = IGNORED
    targets[2][targets[2] == 1] = 0
    return 3 * torch.randn(size, 3, 6, 6, generator=generator), targets


def test_shares_of_the_parts_add_up_to_the_loss_of_the_batch() -> None:
    logits, targets = batch()
    criterion = CrossEntropyAndDice()
    whole = criterion.share(logits, targets, targets)
    parts = [criterion.share(logits[at], targets[at], targets) for at in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(sum(parts), whole)
    cross = functional.cross_entropy(logits, targets, ignore_index=IGNORED)
    torch.testing.assert_close(whole, cross + dice_losses(logits, targets).mean())


def test_the_dice_loss_is_that_of_a_library_but_for_classes_that_an_image_has_not() -> None:
    logits, targets = batch()
    found = dice_losses(logits, targets)
    assert found[0] == 0
    for at in range(1, len(targets)):
        there = len(set(targets[at].flatten().tolist()) - {IGNORED})
        expected = DiceLoss("multiclass", ignore_index=IGNORED)(logits[at : at + 1], targets[at : at + 1])
        torch.testing.assert_close(found[at], expected * 3 / there)


def test_a_batch_of_ignored_pixels_costs_nothing_and_has_gradients() -> None:
    logits, targets = batch()
    logits = logits.requires_grad_()
    targets = torch.full_like(targets, IGNORED)
    loss = CrossEntropyAndDice().share(logits, targets, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


# ---------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize(
    "name", ["test_efficientnet", "test_resnet", "test_convnext", "mobilenetv3_small_050"]
)
def test_the_decoder_takes_the_maps_of_every_family(name: str) -> None:
    backbone = network.architecture({"library": "timm", "name": name}, gives="maps").eval()
    for side in (32, 40, 75):
        head = UNetHead(backbone.map_shapes(), 5, side, 0.1)
        with torch.no_grad():
            assert head(backbone(torch.zeros(2, 3, side, side))).shape == (2, 5, side, side)


def test_a_backbone_without_maps_is_told() -> None:
    backbone = network.architecture({"library": "timm", "name": "efficientvit_b0"}, gives="maps")
    with pytest.raises(UserError, match="gives no maps"):
        TASK.head(backbone, NAMES, MODEL, Arm.model_construct())


def test_the_head_depends_on_the_seed_alone() -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(UNetHead([(8, 2), (16, 4), (300, 8)], 3, 32, 0.0).state_dict())
    assert all(torch.equal(one, other) for one, other in zip(*(each.values() for each in made), strict=True))


def test_class_numbers_are_those_of_enlarged_logits() -> None:
    logits = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = numbers(logits, (21, 13))
    large = functional.interpolate(logits[None], size=(13, 21), mode="bilinear", align_corners=False)
    assert (found == large[0].argmax(dim=0).numpy()).all()
    assert (numbers(torch.zeros(3, 2, 2), (2, 2)) == 0).all(), "of equals the first"


def test_it_learns_and_predicts_at_the_size_of_each_image(tmp_path: Path, pretrained: Path) -> None:
    rows = rows_of(tmp_path)
    classes = TASK.classes(rows)
    samples = TASK.samples(tasks.contents(TASK, rows, tmp_path), MODEL, pretrained)
    targets = TASK.targets(rows, classes, samples, tmp_path, MODEL)
    torch.manual_seed(0)
    backbone = network.build_backbone(pretrained, pretrained=False, gives="maps")
    model = network.Network(backbone, TASK.head(backbone, classes, MODEL, Arm.model_construct()))
    criterion = TASK.objective(Arm.model_construct(), targets, classes)
    optimiser = torch.optim.AdamW(model.parameters(), 0.01)
    losses = []
    for _ in range(12):
        for inputs, wanted in Batches(samples, targets, 6).in_order():
            optimiser.zero_grad()
            loss = criterion.share(model(inputs), wanted, wanted)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    said = TASK.predict(model, samples, Ask(classes, MODEL, torch.device("cpu")))
    assert mask_of(said[0]["mask"]).shape == (24, 40)
    found = TASK.scores(TASK.truths(rows), said, classes)
    assert found["mean_iou"].mean() > 0.7
    assert json.loads(json.dumps(said)) == said


# ----------------------------------------------------------------------------------------- samples, targets


def test_the_whole_image_is_seen(pretrained: Path, tmp_path: Path) -> None:
    wide = np.zeros((8, 64, 3), dtype=np.uint8)
    wide[:, :8] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    found = TASK.samples([tmp_path / "wide.png"], MODEL, pretrained).batch([0])
    assert found[0, :, :, :3].min() > 0.9
    assert found[0, :, :, 6:].max() < -0.9


def test_masks_move_with_their_images() -> None:
    """Images that are their masks: what is white in a view is what the mask says is white."""
    rng = np.random.default_rng(0)
    masks = []
    for _ in range(4):
        mask = np.zeros((32, 32), dtype=np.uint8)
        left, top = rng.integers(0, 16, 2)
        mask[top : top + 14, left : left + 14] = 1
        masks.append(mask)
    contents: list[Any] = []
    for mask in masks:
        with io.BytesIO() as buffer:
            Image.fromarray(mask * 255).convert("RGB").save(buffer, "PNG")
            contents.append(buffer.getvalue())
    for augment in (("flip",), ("crop",), ("flip", "crop")):
        samples = ImageSamples(contents, 32, [0.0] * 3, [1.0] * 3, augment, whole=True)
        targets = MaskTargets([mask_text(mask) for mask in masks], samples)
        state = torch.get_rng_state()
        moved = 0
        for view in range(6):
            images, found = samples.batch([2, 0, 3, 1], view), targets.batch([2, 0, 3, 1], view)
            assert found.dtype == torch.int64
            unlike = ((images[:, 0] > 0.5) != (found == 1)).float().mean()
            assert unlike < (0.001 if augment == ("flip",) else 0.05), (augment, view)
            moved += int((found != targets.batch([2, 0, 3, 1])).any())
        assert moved
        assert torch.equal(torch.get_rng_state(), state)


def test_masks_beyond_the_memory_are_decoded_anew(pretrained: Path, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, 4)
    samples = TASK.samples(tasks.contents(TASK, rows, tmp_path), MODEL, pretrained)
    texts = [truth["mask"] for truth in TASK.truths(rows)]
    few, all_of_them = MaskTargets(texts, samples, 32 * 32), MaskTargets(texts, samples)
    for _ in range(2):
        assert torch.equal(few.batch([3, 0, 1]), all_of_them.batch([3, 0, 1]))
    assert len(few.kept) == 1


def test_views_that_would_leave_the_masks_behind_are_refused(pretrained: Path) -> None:
    with pytest.raises(UserError, match="take `flip` and `crop`"):
        TASK.samples([], MODEL, pretrained, ("flip", "randaugment"))
    assert len(TASK.samples([], MODEL, pretrained, ("flip", "crop"))) == 0
    assert len(Views(("flip", "crop"), 32).transforms) == 2


# ---------------------------------------------------------------------------------------------- validation


def facts(folder: Path, targets: list[Any], names: list[str]) -> pd.DataFrame:
    told = [None if one is None else json.dumps(one) for one in targets]
    manifest = pd.DataFrame({"id": names, "path": names, "target": told})
    return TASK.facts(manifest, folder, Validation())


def test_what_is_wrong_with_masks(tmp_path: Path) -> None:
    for seed, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        picture(seed).save(tmp_path / name)
    (tmp_path / "e.png").write_bytes(b"broken")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(7).resize((16, 8)).save(tmp_path / "f.jpg", exif=exif)
    fits, turned = np.zeros((16, 16), dtype=np.uint8), np.zeros((16, 8), dtype=np.uint8)
    found = facts(
        tmp_path,
        [
            target(fits), target(fits[:9]), target(None, misfit="cannot be decoded"),
            target(None, unknown="holds 7"), target(fits), target(turned),
        ],
        ["a.png", "b.png", "c.png", "d.png", "e.png", "f.jpg"],
    )  # fmt: skip
    misfits, unknown = (found[name].tolist() for name in ("mask_misfit", "mask_unknown"))
    wrong_size = "the mask has 16 x 9 pixels, its image 16 x 16"
    assert misfits == [None, wrong_size, "cannot be decoded", None, None, None]
    assert unknown == [None, None, None, "holds 7", None, None]
    assert found["decode_error"].notna().tolist() == [False] * 4 + [True, False]


def test_validate_lists_the_rows_with_bad_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("images", "masks"):
        Path("raw", name).mkdir(parents=True)
    for seed in range(8):
        image, mask = scene(seed)
        image.save(f"raw/images/{seed}.png")
        Image.fromarray(mask).save(f"raw/masks/{seed}.png")
    Image.fromarray(np.full((24, 40), 9, dtype=np.uint8)).save("raw/masks/2.png")
    Image.fromarray(np.zeros((24, 41), dtype=np.uint8)).save("raw/masks/3.png")
    classes = {name: place for place, name in enumerate(NAMES)}
    settle_ingest("tiles", TASK.name, source="masks", path="raw", classes=classes)
    ingest("tiles")
    settle_validate("tiles", TASK.name, on_reject="drop", min_per_class=2)
    validate("tiles")
    rejected = pd.read_csv("work/tiles/validation/rejected.csv")
    assert dict(zip(rejected["id"], rejected["reason"], strict=True)) == {
        "2.png": "960 pixels of the mask have values that are no class: 9",
        "3.png": "the mask has 41 x 24 pixels, its image 40 x 24",
    }
    accepted = data.read_accepted("tiles")
    assert accepted["label"].value_counts().to_dict() == {"disc": 3, "square": 3}
    assert TASK.classes(accepted) == NAMES


# ------------------------------------------------------------------------------------- baselines and report


def test_baselines_know_the_train_split_alone(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    test = rows[rows["split"] == "test"]
    found = TASK.baselines(rows, NAMES, tmp_path)
    assert set(found) == {"most_frequent", "colour"}
    scored = {
        name: TASK.scores(TASK.truths(test), one.said, NAMES)["mean_iou"].mean()
        for name, one in found.items()
    }
    assert "class ground" in found["most_frequent"].about
    assert scored["most_frequent"] < 0.35
    assert scored["colour"] > 0.95, "here the colour tells it all"
    spoilt = rows.assign(target=rows["target"].where(rows["split"] == "train", rows["target"].iloc[1]))
    assert TASK.baselines(spoilt, NAMES, tmp_path)["colour"].said == found["colour"].said


def test_a_case_shows_both_masks_with_their_legend(tmp_path: Path) -> None:
    image, mask = scene(1)
    image.save(tmp_path / "a.png")
    mask[0, :4] = IGNORED
    row = pd.Series({"path": "a.png", "target": json.dumps(target(mask))})
    case = TASK.case(row, said_of(np.zeros_like(mask), NAMES), tmp_path)
    assert case.predicted == "ground 100.0 %"
    assert case.truth.startswith("ground 8")
    captions = [caption for caption, _ in case.pictures]
    assert captions == [
        "image",
        "true mask: ground is black, square is sky blue, what is not coloured is not judged",
        "predicted mask: ground is black",
    ]
    for _, webp in case.pictures:
        with Image.open(io.BytesIO(webp)) as shown:
            assert shown.format == "WEBP"
            assert shown.size == (160, 96), "a few large pixels, whole ones"
