from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.models.detection.fcos import FCOS  # type: ignore[import-untyped]

from steps import network, pixels
from steps.arms import Arm
from steps.artifacts import write_json
from steps.data import Batches
from steps.errors import DataError, UserError
from steps.params import Model, Validation
from steps.raw.boxes import NONE, stratum
from steps.raw.drawn_boxes import SHAPES, shapes_boxes
from steps.tasks import Ask, get
from steps.tasks.detection_head import FcosHead, FcosLoss, decoded, found, matched
from steps.tasks.detection_metrics import shares
from steps.tasks.detection_pictures import FOUND, TRUE, counted
from steps.tasks.detection_samples import BoxSamples, BoxTargets, into, out_of, scaled
from steps.tasks.object_detection import ObjectDetection
from tests.rawdata import picture

TASK = ObjectDetection()
DESCRIPTION = {"library": "timm", "name": "test_efficientnet", "mean": [0.5] * 3, "std": [0.5] * 3}
CPU = torch.device("cpu")


def test_it_is_the_task_of_that_name() -> None:
    assert isinstance(get("object-detection"), ObjectDetection)


def row(number: int = 0, **target: Any) -> dict[str, Any]:
    told = {"boxes": [[1, 2, 10, 8]], "labels": ["cat"], "size": [40, 20]} | target
    return {"id": f"s{number}", "path": f"{number}.png", "target": json.dumps(told), "label": "cat"}


# ------------------------------------------------------------------------------------------------ validate


def facts(folder: Path, **target: Any) -> dict[str, Any]:
    picture(0, 40).resize((40, 20)).save(folder / "0.png")
    judged = TASK.facts(pd.DataFrame([row(**target)]), folder, Validation())
    return {name: judged[name].iloc[0] for name in ("size_error", "empty_box", "outside_box")}


@pytest.mark.parametrize(
    ("target", "column", "reason"),
    [
        ({"boxes": [[0, 0, 40, 20]]}, None, ""),
        ({"boxes": [], "labels": []}, None, ""),
        ({"boxes": [[-1, -1, 42, 22]]}, None, ""),
        ({"boxes": [[1, 2, 0, 8]]}, "empty_box", "box 1 ('cat', [1, 2, 0, 8]) has no area"),
        ({"boxes": [[1, 2, 4, -8]]}, "empty_box", "has no area"),
        (
            {"boxes": [[1, None, 4, 8]]},
            "empty_box",
            "[1, no number, 4, 8]) has a coordinate that is no number",
        ),
        ({"boxes": [[39, 0, 3, 3]]}, "outside_box", "sticks out of the image of 40 x 20 pixels by 2"),
        ({"boxes": [[-1.5, 0, 3, 3]]}, "outside_box", "by 1.5"),
        ({"boxes": [[0, 0, 3, 3], [5, 18, 3, 9]], "labels": ["cat", "dog"]}, "outside_box", "box 2 ('dog'"),
        ({"size": [400, 200]}, "size_error", "for an image of 400 x 200 pixels, the file has 40 x 20"),
        ({"size": [20, 40]}, "size_error", "when turned as its camera says: store it turned"),
    ],
)
def test_what_is_wrong_with_boxes_is_told(
    tmp_path: Path, target: dict[str, Any], column: str | None, reason: str
) -> None:
    told = {name: text for name, text in facts(tmp_path, **target).items() if text is not None}
    assert set(told) == ({column} if column else set())
    assert reason in "".join(told.values())


def test_a_box_wholly_outside_is_empty(tmp_path: Path) -> None:
    told = facts(tmp_path, boxes=[[40, 0, 3, 3]])
    assert told["empty_box"] == (
        "box 1 ('cat', [40, 0, 3, 3]) lies wholly outside of the image of 40 x 20 pixels"
    )


def test_boxes_of_an_image_that_cannot_be_read_are_not_judged(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"no image")
    judged = TASK.facts(pd.DataFrame([row(boxes=[[0, 0, -1, -1]])]), tmp_path, Validation())
    assert judged["decode_error"].notna().all()
    assert judged[["size_error", "empty_box", "outside_box"]].isna().to_numpy().all()


def test_a_label_that_is_not_allowed_is_named(tmp_path: Path) -> None:
    picture(0, 40).save(tmp_path / "0.png")
    manifest = pd.DataFrame([row(boxes=[[0, 0, 9, 9]] * 2, labels=["dog", "cat"])])
    for allowed, told in ((None, None), (("cat", "dog"), None), (("dog",), "cat")):
        judged = TASK.facts(manifest, tmp_path, Validation(labels=allowed))
        assert judged["unknown_label"][0] == told


def test_every_expectation_is_about_a_column_of_the_facts(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "0.png")
    manifest = pd.DataFrame([row()])
    columns = {*TASK.facts(manifest, tmp_path, Validation()).columns, *manifest.columns}
    for one in TASK.expectations(Validation()):
        assert one.arguments["column"] in columns
    names = {one.name for one in TASK.expectations(Validation())}
    assert {"sizes_agree", "boxes_not_empty", "boxes_inside", "targets_present", "files_decode"} < names


def test_classes_are_those_of_all_boxes() -> None:
    rows = pd.DataFrame([row(), row(1, boxes=[[0, 0, 1, 1]], labels=["ant"]), row(2, boxes=[], labels=[])])
    assert TASK.classes(rows) == ["ant", "cat"]
    with pytest.raises(DataError, match="no image has a box"):
        TASK.classes(rows[2:])


@pytest.mark.parametrize(
    ("labels", "expected"), [([], NONE), (["b", "a"], "a"), (["b", "a", "b"], "b"), (["b"], "b")]
)
def test_an_image_is_stratified_by_its_most_frequent_label(labels: list[str], expected: str) -> None:
    assert stratum(labels) == expected


# ------------------------------------------------------------------------------------------------- samples


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.integers(16, 1024),
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=5),
)
def test_boxes_go_into_the_square_and_come_back(
    size: tuple[int, int], side: int, shares_of: list[tuple[float, ...]]
) -> None:
    x, y, width, height = np.array(shares_of).T
    boxes = np.stack([x, y, width * (1 - x), height * (1 - y)], axis=1) * [*size, *size]
    inside = into(boxes, size, side)
    assert (inside >= 0).all()
    assert (inside <= side + 1e-9).all()
    np.testing.assert_allclose(out_of(inside, size, side), boxes, atol=1e-9 * max(size))


def test_boxes_are_cut_at_the_edges_of_their_image() -> None:
    assert into(np.array([[-5.0, 5, 100, 5]]), (40, 20), 80).tolist() == [[0, 10, 80, 20]]
    assert out_of(np.array([[-5.0, 10, 100, 20]]), (40, 20), 80).tolist() == [[0, 5, 40, 5]]


def as_bytes(image: Image.Image, **more: object) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, "PNG", **more)
        return buffer.getvalue()


def samples(contents: list[Any], side: int = 32, augment: tuple[str, ...] = ()) -> BoxSamples:
    return BoxSamples(contents, side, [0.5] * 3, [0.5] * 3, augment)


def test_an_image_is_whole_at_the_top_left_and_the_rest_is_the_mean() -> None:
    batch = samples([as_bytes(Image.new("RGB", (40, 20), "white"))]).batch([0])
    assert (batch[0, :, :16] == 1).all()
    assert batch[0, :, 16:].abs().max() < 0.01
    assert scaled((40, 20), 32) == (32, 16)
    assert scaled((4000, 1), 32) == (32, 1)


def test_boxes_are_where_the_objects_are_whatever_way_the_photograph_is_turned() -> None:
    pixels_of = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels_of[4:12, 10:30] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    content = as_bytes(Image.fromarray(pixels_of), exif=exif)
    turned = samples([content], 80)
    assert turned.sizes == [(20, 40)]
    target = {"boxes": [[8, 10, 8, 20]], "labels": ["cat"], "size": [20, 40]}
    targets = BoxTargets([target], ["cat"], turned)
    left, top, right, bottom = targets.batch([0])["boxes"][0, 0].int().tolist()
    image = turned.batch([0])[0]
    assert (image[:, top + 3 : bottom - 3, left + 3 : right - 3] > 0.9).all()
    image[:, top - 3 : bottom + 3, left - 3 : right + 3] = 0
    assert (image < 0.1).all()


def test_a_flipped_view_flips_image_and_boxes_together() -> None:
    pixels_of = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels_of[4:12, 2:10] = 255
    contents = [as_bytes(Image.fromarray(np.roll(pixels_of, shift, axis=1))) for shift in range(12)]
    told = [{"boxes": [[2 + one, 4, 8, 8]], "labels": ["cat"], "size": [32, 32]} for one in range(12)]
    drawn = samples(contents, augment=("flip",))
    targets = BoxTargets(told, ["cat"], drawn)
    everyone = list(range(12))
    flips = drawn.flipped(everyone, 1)
    assert 0 < sum(flips) < 12
    assert drawn.flipped(everyone, 2) != flips
    images, boxes = drawn.batch(everyone, 1), targets.batch(everyone, 1)["boxes"]
    for place in everyone:
        left, top, right, bottom = boxes[place, 0].int().tolist()
        assert left == (22 - place if flips[place] else 2 + place)
        assert (images[place, :, top:bottom, left:right] == 1).all()
    assert torch.equal(drawn.batch([3], 1)[0], images[3])
    assert drawn.flipped(everyone, None) == samples(contents).flipped(everyone, 1) == [False] * 12
    assert not torch.equal(drawn.batch(everyone), images)


def test_targets_are_padded() -> None:
    contents = [as_bytes(picture(seed)) for seed in range(3)]
    two = {"boxes": [[0, 0, 8, 8], [4, 4, 8, 8]], "labels": ["dog", "cat"], "size": [16, 16]}
    none: dict[str, Any] = {"boxes": [], "labels": [], "size": [16, 16]}
    targets = BoxTargets([two, none, none], ["cat", "dog"], samples(contents, 32))
    assert len(targets) == 3
    batch = targets.batch([1, 0])
    assert batch["labels"].tolist() == [[-1, -1], [1, 0]]
    assert batch["boxes"].tolist() == [[[0] * 4] * 2, [[0, 0, 16, 16], [8, 8, 24, 24]]]
    assert targets.batch([1, 2])["labels"].tolist() == [[-1], [-1]]


def test_files_are_decoded_once_into_a_file_of_their_own_recipe(tmp_path: Path) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for seed, file in enumerate(files):
        picture(seed, 20).resize((20, 10)).save(file)
    store = pixels.Store(tmp_path / "store", 10**6)
    on_disk = BoxSamples(files, 32, [0.5] * 3, [0.5] * 3, memory_bytes=0, store=store)
    assert torch.equal(on_disk.batch([1, 0]), samples(list(files)).batch([1, 0]))
    other = BoxSamples(files, 32, [0.4] * 3, [0.5] * 3, memory_bytes=0, store=store)
    other.batch([0])
    assert len(list(store.folder.glob("*.npy"))) == 2


def test_images_that_cannot_be_read_and_views_that_boxes_cannot_follow(tmp_path: Path) -> None:
    broken = samples([b"no image"])
    with pytest.raises(DataError, match="the bytes given: is no image"):
        broken.batch([0])
    with pytest.raises(DataError, match="is no image"):
        _ = broken.sizes
    write_json(tmp_path / "architecture.json", DESCRIPTION)
    with pytest.raises(UserError, match="crop, randaugment is not for task object-detection"):
        TASK.samples([], Model(pretrained="x"), tmp_path, ("flip", "crop", "randaugment"))


# -------------------------------------------------------------------------------------------- head and loss


def drawn_targets(rng: np.random.Generator, images: int, side: int) -> dict[str, Tensor]:
    """Up to five boxes in each image, of all sizes."""
    boxes, labels = np.zeros((images, 5, 4), np.float32), np.full((images, 5), -1)
    for one in range(images):
        count = rng.integers(0, 6)
        corner = rng.uniform(0, side * 0.8, (count, 2))
        far = corner + rng.uniform(2, side, (count, 2))
        boxes[one, :count] = np.concatenate([corner, far.clip(max=side)], axis=1)
        labels[one, :count] = rng.integers(0, 3, count)
    return {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)}


def head_outputs(seed: int, images: int, side: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    head = FcosHead([(8, 4), (16, 8), (24, 16), (32, 32)], 3, side)
    maps = [
        torch.rand(images, c, -(-side // s), -(-side // s)) for c, s in [(8, 4), (16, 8), (24, 16), (32, 32)]
    ]
    raw: dict[str, Tensor] = head(maps)
    # As far from each other and from nothing as those of a trained head.
    raw["cls_logits"] = torch.randn_like(raw["cls_logits"])
    raw["bbox_regression"] = 3 * torch.rand_like(raw["bbox_regression"])
    raw["bbox_ctrness"] = torch.randn_like(raw["bbox_ctrness"])
    return raw


class Nothing(torch.nn.Module):
    out_channels = 64


def reference(raw: dict[str, Tensor]) -> tuple[Any, list[Tensor], list[int]]:
    """torchvision's FCOS with our points for its anchors, and how many points each map has."""
    whole = FCOS(Nothing(), 3, score_thresh=0.3, nms_thresh=0.6, detections_per_img=7)
    at, stride = raw["points"][0, :, :2], raw["points"][0, :, 2:]
    anchors = torch.cat([at - stride / 2, at + stride / 2], dim=1)
    return (
        whole,
        [anchors] * len(raw["points"]),
        torch.unique_consecutive(stride, return_counts=True)[1].tolist(),
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_loss_is_that_of_torchvision(seed: int) -> None:
    raw = head_outputs(seed, 4, 96)
    targets = drawn_targets(np.random.default_rng(seed), 4, 96)
    whole, anchors, levels = reference(raw)
    as_lists = [
        {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0]}
        for boxes, labels in zip(targets["boxes"], targets["labels"], strict=True)
    ]
    expected = sum(whole.compute_loss(as_lists, raw, anchors, levels).values())
    torch.testing.assert_close(FcosLoss().share(raw, targets, targets), expected)


def test_the_shares_of_parts_add_up_to_the_loss_of_the_batch() -> None:
    raw, targets = head_outputs(1, 6, 64), drawn_targets(np.random.default_rng(2), 6, 64)
    loss = FcosLoss()
    parts = [
        loss.share(
            {name: one[part] for name, one in raw.items()},
            {name: one[part] for name, one in targets.items()},
            targets,
        )
        for part in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    torch.testing.assert_close(sum(parts), loss.share(raw, targets, targets))


def test_a_batch_without_any_box_has_a_loss_to_learn_from() -> None:
    raw = head_outputs(1, 2, 64)
    raw["cls_logits"].requires_grad_()
    nothing = {"boxes": torch.zeros(2, 1, 4), "labels": torch.full((2, 1), -1)}
    loss = FcosLoss().share(raw, nothing, nothing)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert raw["cls_logits"].grad is not None
    assert (raw["cls_logits"].grad > 0).all(), "there should be less of everything"


def test_a_point_is_for_the_smallest_box_around_it_and_padding_is_no_box() -> None:
    points = torch.tensor([[4.0, 4, 8], [12, 4, 8], [60, 60, 8], [16, 16, 16]])
    boxes = torch.tensor([[[0.0, 0, 20, 10], [0, 0, 10, 10], [56, 56, 64, 64]]])
    assert matched(points, boxes, torch.tensor([[0, 1, -1]])).tolist() == [[1, 0, -1, -1]]
    assert matched(points, boxes, torch.tensor([[0, 1, 2]])).tolist() == [[1, 0, 2, -1]]


@pytest.mark.parametrize("seed", range(4))
def test_boxes_are_read_off_as_torchvision_does(seed: int) -> None:
    raw = head_outputs(seed, 3, 96)
    whole, anchors, levels = reference(raw)
    split = {name: list(torch.split(one, levels, dim=1)) for name, one in raw.items() if name != "points"}
    expected = whole.postprocess_detections(
        split, [list(torch.split(one, levels)) for one in anchors], [(96, 96)] * 3
    )
    for place, one in enumerate(expected):
        own = found(raw, place, (96, 96), 0.3, 7)
        torch.testing.assert_close(own.boxes, one["boxes"])
        assert torch.equal(own.labels, one["labels"])
        torch.testing.assert_close(own.scores, one["scores"])


def test_boxes_end_at_the_image_and_those_beyond_it_go() -> None:
    raw = head_outputs(0, 1, 96)
    own = found(raw, 0, (96, 40), 0.05, 1000)
    assert len(own.boxes) > 0
    assert own.boxes[:, 3].max() <= 40
    assert (own.boxes[:, 2:] > own.boxes[:, :2]).all()
    assert (own.scores.diff() <= 0).all()
    assert own.scores.min() > 0.05
    assert len(found(raw, 0, (96, 40), 0.05, 3).boxes) == 3


@pytest.mark.parametrize(("side", "finest"), [(64, 4), (100, 8), (128, 8)])
def test_points_lie_in_the_middle_of_their_cells_whatever_the_size(side: int, finest: int) -> None:
    raw = head_outputs(0, 2, side)
    points = raw["points"][0]
    assert points[:, 2].min() == finest
    for stride in (finest, 8, 16, 32):
        own = points[points[:, 2] == stride][:, :2]
        across = -(-side // stride)
        assert len(own) == across**2
        assert own[0].tolist() == [stride / 2] * 2
        assert own[-1].tolist() == [(across - 0.5) * stride] * 2
    assert raw["cls_logits"].shape == (2, len(points), 3)
    one = torch.tensor([[1.0, 2, 3, 4]])
    assert decoded(torch.tensor([[10.0, 20, 2]]), one).tolist() == [[8, 16, 16, 28]]


# ------------------------------------------------------------------------------------- learning, end to end


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """The first four pictures of the example, in a data folder."""
    folder = tmp_path_factory.mktemp("shapes")
    write_json(folder / "architecture.json", DESCRIPTION)
    rows = []
    for number, one in zip(range(4), shapes_boxes().samples, strict=False):
        assert isinstance(one.content, bytes)
        (folder / f"{number}.png").write_bytes(one.content)
        target = json.dumps(one.target)
        rows.append({"id": one.id, "path": f"{number}.png", "label": one.label, "target": target})
    return folder, pd.DataFrame(rows)


def test_a_network_learns_four_pictures_and_finds_their_boxes(shapes: tuple[Path, pd.DataFrame]) -> None:
    folder, rows = shapes
    model = Model(pretrained="x", image_size=64)
    contents = [TASK.content(one, folder) for one in rows.itertuples()]
    inputs, classes = TASK.samples(contents, model, folder), TASK.classes(rows)
    targets = TASK.targets(rows, classes, inputs, folder, model)
    torch.manual_seed(0)
    backbone = network.architecture(DESCRIPTION, gives="maps")
    whole = network.Network(backbone, TASK.head(backbone, classes, model, Arm()))
    optimiser = torch.optim.AdamW(whole.parameters(), 0.005)
    loss_of, losses = TASK.objective(Arm(), targets, classes), []
    for _ in range(60):
        whole.train()
        images, told = Batches(inputs, targets, 4).batch(list(range(4)))
        loss = loss_of.share(whole(images), told, told)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(whole.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    with torch.no_grad():  # the running statistics of so few steps are not yet those of the data
        for norm in whole.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.momentum = None
                norm.reset_running_stats()
        whole.train()(inputs.batch(list(range(4))))
    said = TASK.predict(whole, inputs, Ask(classes, model, CPU))
    assert [set(one) for one in said] == [{"boxes", "labels", "scores"}] * 4
    json.dumps(said, allow_nan=False)
    truths = TASK.truths(rows)
    assert TASK.scores(truths, said, classes)["coco_map_50"].mean() > 0.3
    nothing: list[dict[str, Any]] = [{"boxes": [], "labels": [], "scores": []}] * 4
    assert TASK.scores(truths, nothing, classes)["coco_map_50"].mean() == 0
    for one, size in zip(said, inputs.sizes, strict=True):
        edge = np.array(one["boxes"])[:, :2] + np.array(one["boxes"])[:, 2:]
        assert (edge <= np.array(size) + 1e-6).all()
    served = TASK.samples([path.read_bytes() for path in contents if isinstance(path, Path)], model, folder)
    assert TASK.predict(whole, served, Ask(classes, model, CPU)) == said


def test_a_backbone_without_maps_is_refused() -> None:
    backbone = network.architecture({"library": "timm", "name": "test_efficientnet"})
    with pytest.raises(UserError, match="gives no maps"):
        TASK.head(backbone, ["a"], Model(pretrained="x"), Arm())


# --------------------------------------------------------------------------------- baselines, cases, example


def test_baselines_say_nothing_or_the_mean_box_of_each_class() -> None:
    rows = pd.DataFrame(
        [
            row(0, boxes=[[0, 0, 20, 10], [20, 10, 20, 10]], labels=["cat", "cat"]) | {"split": "train"},
            row(1, boxes=[], labels=[]) | {"split": "train"},
            row(2, size=[80, 20]) | {"split": "test"},
            row(3, boxes=[[0, 0, 1, 1]], labels=["dog"]) | {"split": "validation"},
        ]
    )
    found = TASK.baselines(rows, ["cat", "dog"], Path())
    assert found["nothing"].said == [{"boxes": [], "labels": [], "scores": []}]
    assert found["mean_box"].said == [
        {"boxes": [[20.0, 5.0, 40.0, 10.0]], "labels": ["cat"], "scores": [0.5]}
    ]
    for one in found.values():
        assert shares(TASK.truths(rows[2:3]), one.said, ["cat", "dog"])["coco_map"].shape == (1,)


def test_a_case_shows_the_image_with_true_and_with_found_boxes(tmp_path: Path) -> None:
    Image.new("RGB", (480, 240), "black").save(tmp_path / "0.png")
    told = row(boxes=[[100, 60, 200, 100], [300, 60, 100, 100]], labels=["cat", "cat"], size=[480, 240])
    said = {"boxes": [[100, 60, 200, 100], [0, 0, 9, 9]], "labels": ["dog", "cat"], "scores": [0.8, 0.1]}
    case = TASK.case(next(pd.DataFrame([told]).itertuples()), said, tmp_path)
    assert (case.truth, case.predicted) == ("2 x cat", "dog")
    assert [caption for caption, _ in case.pictures] == ["true boxes", "found, with a score from 0.3"]
    shown = [Image.open(io.BytesIO(content)) for _, content in case.pictures]
    assert [(one.format, one.size) for one in shown] == [("WEBP", (240, 120))] * 2
    for image, colour in zip(shown, (TRUE, FOUND), strict=True):
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        near = np.abs(np.asarray(image).astype(int) - wanted).sum(axis=2) < 120
        rows, columns = np.nonzero(near)
        assert near.sum() > 100
        assert abs(int(columns.min()) - 50) <= 3
        assert abs(int(rows.max()) - 80) <= 3
    again = TASK.case(next(pd.DataFrame([told]).itertuples()), said, tmp_path)
    assert again == case
    assert counted([]) == "nothing"


def test_the_example_is_the_same_every_time_and_has_what_it_says() -> None:
    first, second = list(shapes_boxes().samples), list(shapes_boxes().samples)
    assert first == second
    assert len(first) == 160
    assert {label for one in first for label in one.target["labels"]} == set(SHAPES)
    assert {len(one.target["boxes"]) for one in first} == {0, 1, 2, 3, 4}
    assert min(pd.Series([one.label for one in first]).value_counts()) >= 10
    assert all("synthetic" in one.source for one in first)
    for one in first:
        assert isinstance(one.content, bytes)
        size = Image.open(io.BytesIO(one.content)).size
        assert list(size) == one.target["size"]
        for x, y, width, height in one.target["boxes"]:
            assert 0 <= x < x + width <= size[0]
            assert 0 <= y < y + height <= size[1]
