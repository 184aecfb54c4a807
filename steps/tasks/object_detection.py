"""Images with any number of boxes, each around an object of one of several classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steps import pixels
from steps.artifacts import read_json
from steps.errors import DataError, UserError
from steps.params import Arm, Machine, Model, Validation
from steps.scans import Rule, size_of
from steps.tasks import Ask, Case, Content, Criterion, Expectation, Said, Simple, target_of
from steps.tasks import detection_metrics as metrics
from steps.tasks.detection_samples import FLIP, BoxSamples, BoxTargets, out_of, scaled
from steps.tasks.of_images import MEMORY_BYTES, OfImages
from steps.tasks.of_targets import OfTargets

if TYPE_CHECKING:
    from torch import nn

    from steps.data import Samples, Targets
    from steps.network import Backbone

# Pixels by which a box may stick out: tools round, and some count from 1.
SLACK = 1.0


class ObjectDetection(OfTargets, OfImages):
    """Task `object-detection`; a target is what `steps.raw.boxes.target` makes."""

    name = "object-detection"

    # ------------------------------------------------------------------------------------------ of the data

    def facts(self, manifest: pd.DataFrame, folder: Path, settings: Validation) -> pd.DataFrame:
        """As of all images; and why boxes cannot be used, each None where they can.

        Its columns are `size_error`, `empty_box`, `outside_box` and `unknown_label`.
        """
        facts = super().facts(manifest, folder, settings)
        pairs = zip(manifest["target"], manifest["path"], strict=True)
        rows = [_box_facts(target, _size_of(folder / path)) for target, path in pairs]
        names = ["size_error", "empty_box", "outside_box"]
        facts = facts.join(pd.DataFrame(rows, index=manifest.index, columns=names, dtype=object))
        facts["unknown_label"] = [_unknown_label(target, settings.labels) for target in manifest["target"]]
        return facts

    def expectations(self, settings: Validation) -> list[Expectation]:
        """Files decode, sizes agree, and boxes are boxes inside of their image."""
        null = "ExpectColumnValuesToBeNull"
        return [
            *super().expectations(settings),
            *self.of_targets(settings),
            Expectation(
                "sizes_agree", null, {"column": "size_error"}, "{size_error}",
                text="every image is as large as its boxes' file says",
            ),
            Expectation(
                "boxes_not_empty", null, {"column": "empty_box"}, "{empty_box}",
                text="every box has four numbers, a width and a height, and some of it is inside the image",
            ),
            Expectation(
                "boxes_inside", null, {"column": "outside_box"}, "{outside_box}",
                text=f"no box sticks out of its image by more than {SLACK:g} pixel",
            ),
            Expectation(
                "labels_known", null, {"column": "unknown_label"}, "label {unknown_label!r} is not allowed",
                text="every box has one of the labels allowed",
            ),
        ]  # fmt: skip

    def classes(self, rows: pd.DataFrame) -> list[str]:
        """The labels of all boxes, sorted.

        Raises:
            DataError: there is no box.
        """
        found = super().classes(rows)
        if not found:
            raise DataError("no image has a box: there is nothing to learn")
        return found

    def samples(
        self,
        contents: Sequence[Content],
        model: Model,
        pretrained: Path,
        augment: Sequence[str] = (),
        machine: Machine | None = None,
    ) -> BoxSamples:
        """Whole images in squares, normalised as the backbone was trained."""
        others = sorted(set(augment) - {FLIP})
        if others:
            raise UserError(
                f"augment: {', '.join(others)} is not for task {self.name}, whose boxes would not follow; "
                f"it knows `{FLIP}`"
            )
        description = read_json(pretrained / "architecture.json", "python -m steps.fetch")
        memory_bytes, store = MEMORY_BYTES, None
        if machine is not None:
            memory_bytes = int(machine.image_memory_gib * pixels.GIB)
            if machine.cache:
                store = pixels.Store(pixels.FOLDER, int(machine.cache_gib * pixels.GIB))
        mean, std = description["mean"], description["std"]
        return BoxSamples(contents, model.image_size, mean, std, augment, memory_bytes, store, Rule.of(model))

    # -------------------------------------------------------------------------------------- of the training

    def targets(
        self, rows: pd.DataFrame, classes: list[str], samples: Samples, folder: Path, model: Model
    ) -> Targets:
        """Boxes in pixels of the square, and their classes."""
        assert isinstance(samples, BoxSamples)
        return BoxTargets(self.truths(rows), classes, samples)

    def head(self, backbone: Backbone, classes: list[str], model: Model, arm: Arm) -> nn.Module:
        """The parts of FCOS above a backbone.

        Raises:
            UserError: the backbone gives no maps.
        """
        from steps.tasks.detection_head import FcosHead

        return FcosHead(backbone.map_shapes(), len(classes), model.image_size)

    def objective(self, arm: Arm, targets: Any, classes: list[str]) -> Criterion:  # noqa: ANN401 - see Task
        """The loss of FCOS."""
        from steps.tasks.detection_head import FcosLoss

        return FcosLoss()

    # ----------------------------------------------------------------------------------- of what came of it

    def predict(self, network: nn.Module, samples: Samples, ask: Ask) -> list[dict[str, Any]]:
        """Of each image `boxes` (x, y, width, height in its pixels), `labels` and `scores`, surest first."""
        from steps import inference
        from steps.tasks.detection_head import found

        assert isinstance(samples, BoxSamples)
        said: list[dict[str, Any]] = [{}] * len(samples)
        wanted = (ask.model.score_threshold, ask.model.max_boxes)
        for indices, raw in inference.outputs(network, samples, ask.device, precision=ask.precision):
            outputs = {name: one.float().cpu() for name, one in raw.items()}
            for row, index in enumerate(indices):
                size = samples.sizes[index]
                one = found(outputs, row, scaled(size, samples.side), *wanted)
                boxes = out_of(one.boxes.numpy().astype(np.float64), size, samples.side)
                said[index] = {
                    "boxes": boxes.tolist(),
                    "labels": [ask.classes[place] for place in one.labels.tolist()],
                    "scores": one.scores.tolist(),
                }
        return said

    def scores(self, truths: list[Any], said: Said, classes: list[str]) -> dict[str, NDArray[np.float64]]:
        """Each image's share in COCO's mAP and in mAP at an IoU of 0.5."""
        assert isinstance(said, list)
        return metrics.shares(truths, said, classes)

    def baselines(
        self,
        rows: pd.DataFrame,
        classes: list[str],
        folder: Path,
        model: Model | None = None,
        pretrained: Path | None = None,
    ) -> Mapping[str, Simple]:
        """Nothing at all; and the mean box of each class, wherever it is."""
        truths = self.truths(rows[rows["split"] == "train"])
        tested = self.truths(rows[rows["split"] == "test"])
        nothing: dict[str, Any] = {"boxes": [], "labels": [], "scores": []}
        return {
            "nothing": Simple("no box in any image", [nothing for _ in tested]),
            "mean_box": Simple(
                "in every image one box of each class, at the mean place and of the mean size of its boxes "
                "in training, as sure as images with the class are frequent",
                [_mean_boxes(truths, classes, one["size"]) for one in tested],
            ),
        }

    def case(self, row: Any, said: dict[str, Any], folder: Path) -> Case:  # noqa: ANN401 - a row of a data frame
        """The image twice, with the true boxes and with those that a model found."""
        from steps.tasks import detection_pictures as pictures

        return pictures.case(folder / str(row.path), target_of(row), said)


def _mean_boxes(truths: list[dict[str, Any]], classes: list[str], size: list[int]) -> dict[str, Any]:
    said: dict[str, Any] = {"boxes": [], "labels": [], "scores": []}
    for label in classes:
        own = [
            np.divide(box, [*one["size"], *one["size"]])
            for one in truths
            for box, named in zip(one["boxes"], one["labels"], strict=True)
            if named == label
        ]
        if own:
            said["boxes"].append((np.mean(own, axis=0) * [*size, *size]).tolist())
            said["labels"].append(label)
            said["scores"].append(sum(label in one["labels"] for one in truths) / len(truths))
    return said


# --------------------------------------------------------------------------------------- facts about boxes


def _size_of(image: Path) -> tuple[int, int] | None:
    try:
        return size_of(image)
    except (
        Exception
    ):  # a decoder meets a broken file with whatever exception comes first; `files_decode` tells
        return None


def _unknown_label(target: str | None, allowed: Sequence[str] | None) -> str | None:
    """The first label that is not allowed."""
    if allowed is None or not isinstance(target, str):
        return None
    return next((one for one in metrics.read_target(target)["labels"] if one not in allowed), None)


def _box_facts(target: str | None, size: tuple[int, int] | None) -> tuple[str | None, str | None, str | None]:
    """Why the boxes of a row cannot be used: the size of the image, empty boxes, boxes that stick out."""
    if not isinstance(target, str) or size is None:
        return None, None, None  # it is another expectation that tells
    told = metrics.read_target(target)
    wrong = None
    if told["size"] is not None and tuple(told["size"]) != size:
        wrong = _size_error(tuple(told["size"]), size)
    empty, outside = None, None
    for number, (box, label) in enumerate(zip(told["boxes"], told["labels"], strict=True), start=1):
        name = f"box {number} ({label!r}, {_written(box)})"
        empty = empty or _emptiness(name, box, size)
        outside = outside or _excess(name, box, size)
    return wrong, empty, outside


def _size_error(told: tuple[int, ...], size: tuple[int, int]) -> str:
    said = f"its boxes are for an image of {told[0]} x {told[1]} pixels, the file has {size[0]} x {size[1]}"
    if told == size[::-1]:
        said += " when turned as its camera says: store it turned, or draw the boxes on the turned image"
    return said


def _written(box: Sequence[float | None]) -> str:
    return "[" + ", ".join("no number" if one is None else f"{one:g}" for one in box) + "]"


def _emptiness(name: str, box: Sequence[float | None], size: tuple[int, int]) -> str | None:
    if any(one is None for one in box):
        return f"{name} has a coordinate that is no number"
    x, y, width, height = (float(one) for one in box if one is not None)
    if width <= 0 or height <= 0:
        return f"{name} has no area"
    if x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0:
        return f"{name} lies wholly outside of the image of {size[0]} x {size[1]} pixels"
    return None


def _excess(name: str, box: Sequence[float | None], size: tuple[int, int]) -> str | None:
    x, y, width, height = (math.nan if one is None else one for one in box)
    out = max(-x, -y, x + width - size[0], y + height - size[1])
    # What is no number, or sticks out wholly, is told of already.
    if out > SLACK:
        return f"{name} sticks out of the image of {size[0]} x {size[1]} pixels by {out:.3g}"
    return None
