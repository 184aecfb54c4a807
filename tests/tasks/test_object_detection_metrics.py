"""COCO's metrics and the shares in them, against pycocotools itself."""

from __future__ import annotations

import contextlib
import io
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from steps.tasks.detection_metrics import OVERLAPS, average_precisions, shares

CLASSES = ["cat", "dog", "owl"]


def reference(truths: list[dict[str, Any]], said: list[dict[str, Any]]) -> dict[str, float]:
    """The two metrics as pycocotools summarises them, told in its own way; 0 where it says -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": place + 1} for place in range(len(truths))],
            "categories": [{"id": place + 1, "name": name} for place, name in enumerate(CLASSES)],
            "annotations": [],
        }
        for place, one in enumerate(truths):
            for box, label in zip(one["boxes"], one["labels"], strict=True):
                entry = {"image_id": place + 1, "category_id": CLASSES.index(label) + 1, "bbox": box}
                number = len(truth.dataset["annotations"]) + 1
                truth.dataset["annotations"].append(
                    entry | {"id": number, "area": box[2] * box[3], "iscrowd": 0}
                )
        truth.createIndex()
        results = [
            {"image_id": place + 1, "category_id": CLASSES.index(label) + 1, "bbox": box, "score": score}
            for place, one in enumerate(said)
            for box, label, score in zip(one["boxes"], one["labels"], one["scores"], strict=True)
        ]
        if not results:
            return dict.fromkeys(OVERLAPS, 0.0)
        judge = COCOeval(truth, truth.loadRes(results), "bbox")
        judge.evaluate(), judge.accumulate(), judge.summarize()
    return {"coco_map": max(0.0, judge.stats[0]), "coco_map_50": max(0.0, judge.stats[1])}


def agree(truths: list[dict[str, Any]], said: list[dict[str, Any]]) -> None:
    """The mean share is the metric; the shares tell what leaving each image out makes of it."""
    found, expected = shares(truths, said, CLASSES), reference(truths, said)
    for name in OVERLAPS:
        assert found[name].mean() == pytest.approx(expected[name], abs=1e-9)
    count = len(truths)
    if count == 1:
        return
    without = [
        reference(truths[:one] + truths[one + 1 :], said[:one] + said[one + 1 :]) for one in range(count)
    ]
    for name in OVERLAPS:
        left = np.array([one[name] for one in without])
        pseudo = expected[name] + (count - 1) * (left.mean() - left)
        np.testing.assert_allclose(found[name], pseudo, atol=1e-9)


def boxes(rng: np.random.Generator, count: int) -> list[list[float]]:
    both = [rng.integers(0, 40, (count, 2)), rng.integers(4, 30, (count, 2))]
    return [[float(one) for one in box] for box in np.concatenate(both, axis=1)]


def drawn(seed: int, images: int, ties: bool = True, most: int = 4) -> tuple[list[Any], list[Any]]:
    """True boxes, and predictions of which some are true boxes moved a little."""
    rng = np.random.default_rng(seed)
    truths, said = [], []
    for _ in range(images):
        own = boxes(rng, int(rng.integers(0, most)))
        labels = rng.choice(CLASSES[: rng.integers(1, 4)], len(own)).tolist()
        truths.append({"boxes": own, "labels": labels})
        moved = [
            [*np.add(box, rng.integers(-2, 3, 4)).clip(min=1).tolist()] for box in own if rng.random() < 0.8
        ]
        kept = labels[: len(moved)]
        loose = boxes(rng, int(rng.integers(0, most)))
        scores = rng.random(len(moved) + len(loose))
        said.append(
            {
                "boxes": [*moved, *loose],
                "labels": [*kept, *rng.choice(CLASSES, len(loose)).tolist()],
                "scores": (np.round(scores, 1) if ties else scores).tolist(),
            }
        )
    return truths, said


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.booleans())
def test_metrics_and_leaving_each_image_out_are_those_of_pycocotools(
    seed: int, images: int, ties: bool
) -> None:
    agree(*drawn(seed, images, ties))


NOTHING: dict[str, Any] = {"boxes": [], "labels": [], "scores": []}
CAT = {"boxes": [[0.0, 0.0, 10.0, 10.0]], "labels": ["cat"]}
SURE = CAT | {"scores": [0.9]}


@pytest.mark.parametrize(
    ("truths", "said", "value"),
    [
        ([NOTHING, NOTHING], [NOTHING, NOTHING], 0.0),
        ([NOTHING, NOTHING], [SURE, NOTHING], 0.0),
        ([CAT, CAT], [NOTHING, NOTHING], 0.0),
        ([CAT, NOTHING], [SURE, NOTHING], 1.0),
        ([CAT, NOTHING], [SURE, SURE | {"labels": ["dog"]}], 1.0),
        ([CAT, NOTHING], [SURE, SURE], 1.0),
        ([CAT], [SURE], 1.0),
        ([CAT, CAT], [SURE, NOTHING], 51 / 101),
    ],
)
def test_awkward_cases(truths: list[Any], said: list[Any], value: float) -> None:
    agree(truths, said)
    assert shares(truths, said, CLASSES)["coco_map"].mean() == pytest.approx(value)


def test_of_more_than_100_boxes_in_an_image_the_surest_count() -> None:
    many = {
        "boxes": [[0.0, 0.0, 10.0, 10.0]] * 101 + [[50.0, 50.0, 10.0, 10.0]],
        "labels": ["cat"] * 102,
        "scores": [*np.linspace(0.9, 0.5, 101).tolist(), 0.1],
    }
    two = {"boxes": [[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 10.0, 10.0]], "labels": ["cat", "cat"]}
    agree([two, CAT], [many, SURE])


def test_average_precision_of_each_class() -> None:
    truths, said = drawn(3, 30)
    found = average_precisions([*truths, CAT], [*said, SURE], [*CLASSES, "yak"])
    for name in OVERLAPS:
        assert found[name]["yak"] is None
        there = [one for one in found[name].values() if one is not None]
        assert len(there) == 3
        assert np.mean(there) == pytest.approx(reference([*truths, CAT], [*said, SURE])[name], abs=1e-9)


def test_hundreds_of_images_take_seconds() -> None:
    truths, said = drawn(5, 400, ties=False, most=12)
    start = time.process_time()
    found = shares(truths, said, CLASSES)
    assert time.process_time() - start < 6
    assert found["coco_map"].mean() == pytest.approx(reference(truths, said)["coco_map"], abs=1e-9)
