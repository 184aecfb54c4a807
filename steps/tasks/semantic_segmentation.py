"""Images, a class for every pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steps.arms import Arm
from steps.errors import UserError
from steps.images import mask_of, mask_size
from steps.params import Machine, Model, Validation
from steps.tasks import Ask, Case, Content, Criterion, Expectation, Said, Simple, target_of
from steps.tasks import segmentation_baselines as baselines
from steps.tasks import segmentation_cases as cases
from steps.tasks import segmentation_metrics as judged
from steps.tasks.of_images import ImageSamples, OfImages, size_of
from steps.tasks.of_targets import OfTargets

if TYPE_CHECKING:
    from torch import nn

    from steps.data import Samples, Targets
    from steps.network import Backbone


class SemanticSegmentation(OfTargets, OfImages):
    """Task `semantic-segmentation`: the whole image, squeezed into a square, gets a class for every pixel.

    A target holds `classes`, in the order of the network's outputs, and `mask`, the class numbers as text
    (`images.mask_text`) or None with a reason in `misfit` or `unknown`.
    """

    name = "semantic-segmentation"
    whole = True

    def facts(self, manifest: pd.DataFrame, folder: Path, settings: Validation) -> pd.DataFrame:
        """Of the images, and what is wrong with each mask."""
        facts = super().facts(manifest, folder, settings)
        wrong = [
            _wrong(target, folder / path, readable)
            for target, path, readable in zip(
                manifest["target"], manifest["path"], facts["decode_error"].isna(), strict=True
            )
        ]
        facts["mask_misfit"] = pd.Series([one for one, _ in wrong], index=facts.index, dtype=object)
        facts["mask_unknown"] = pd.Series([one for _, one in wrong], index=facts.index, dtype=object)
        return facts

    def expectations(self, settings: Validation) -> list[Expectation]:
        """Images decode, every one has a mask of its size, and masks hold nothing but classes."""
        return [
            *super().expectations(settings),
            *self.of_targets(settings),
            Expectation(
                "masks_fit",
                "ExpectColumnValuesToBeNull",
                {"column": "mask_misfit"},
                "{mask_misfit}",
                text="every mask can be decoded and is of the size of its image",
            ),
            Expectation(
                "masks_known",
                "ExpectColumnValuesToBeNull",
                {"column": "mask_unknown"},
                "{mask_unknown}",
                text="masks hold no values but those of `data.classes` and `data.ignore`",
            ),
        ]

    def classes(self, rows: pd.DataFrame) -> list[str]:
        """The classes in the order of their values in the masks; also those that no pixel has."""
        found: list[str] = target_of(next(rows.itertuples()))["classes"]
        return found

    def samples(
        self,
        contents: Sequence[Content],
        model: Model,
        pretrained: Path,
        augment: Sequence[str] = (),
        machine: Machine | None = None,
    ) -> ImageSamples:
        """Whole images squeezed into squares.

        Raises:
            UserError: a view is asked for that cannot be made of a mask as well.
        """
        if "randaugment" in augment:
            raise UserError(
                "`augment: randaugment` turns and shears images without their masks; "
                "take `flip` and `crop` for semantic-segmentation"
            )
        return super().samples(contents, model, pretrained, augment, machine)

    def targets(
        self, rows: pd.DataFrame, classes: list[str], samples: Samples, folder: Path, model: Model
    ) -> Targets:
        """Class numbers, shape (batch, side, side), int64; 255 where nothing is judged."""
        from steps.tasks.segmentation_targets import MaskTargets

        assert isinstance(samples, ImageSamples)
        return MaskTargets([target["mask"] for target in self.truths(rows)], samples)

    def head(self, backbone: Backbone, classes: list[str], model: Model, arm: Arm) -> nn.Module:
        """U-Net's decoder on the backbone's maps; to logits (batch, classes, side, side)."""
        from steps.tasks.segmentation_network import UNetHead

        return UNetHead(backbone.map_shapes(), len(classes), model.image_size, model.dropout)

    def objective(self, arm: Arm, targets: Any, classes: list[str]) -> Criterion:  # noqa: ANN401 - see Task
        """Cross-entropy and Dice, one as heavy as the other."""
        from steps.tasks.segmentation_network import CrossEntropyAndDice

        return CrossEntropyAndDice()

    def predict(self, network: nn.Module, samples: Samples, ask: Ask) -> list[dict[str, Any]]:
        """Of each image, at its own size, `mask` as text, the `classes` in it, and the `shares` of all."""
        from steps import inference
        from steps.tasks.segmentation_network import numbers

        assert isinstance(samples, ImageSamples)
        found: list[dict[str, Any]] = [{} for _ in range(len(samples))]
        asked = inference.outputs(network, samples, ask.device, cut=ask.cut, precision=ask.precision)
        for places, logits in asked:
            for place, one in zip(places, logits, strict=True):
                found[place] = judged.said_of(numbers(one, samples.size(place)), ask.classes)
        return found

    def scores(self, truths: list[Any], said: Said, classes: list[str]) -> dict[str, NDArray[np.float64]]:
        """Each image's share in mean IoU and mean Dice."""
        assert isinstance(said, list)
        pairs = (
            (mask_of(truth["mask"]), mask_of(one["mask"])) for truth, one in zip(truths, said, strict=True)
        )
        return judged.shares(judged.counted(pairs, len(classes)))

    def baselines(
        self,
        rows: pd.DataFrame,
        classes: list[str],
        folder: Path,
        model: Model | None = None,
        pretrained: Path | None = None,
    ) -> Mapping[str, Simple]:
        """The most frequent class everywhere, and each pixel's class by its colour alone."""
        return baselines.baselines(self, rows, classes, folder)

    def case(self, row: Any, said: dict[str, Any], folder: Path) -> Case:  # noqa: ANN401 - a row of a data frame
        """The image, and both masks in colours that the captions name."""
        return cases.case(target_of(row), said, folder / str(row.path))


def _wrong(target: object, image: Path, readable: bool) -> tuple[str | None, str | None]:
    """Why a mask does not fit its image, and which of its values nobody knows."""
    if not isinstance(target, str):
        return None, None
    held = target_of(pd.Series({"target": target}))
    if held["mask"] is None:
        return held.get("misfit"), held.get("unknown")
    if not readable:
        return None, None
    width, height = mask_size(held["mask"])
    found = size_of(image)
    if found != (width, height):
        return f"the mask has {width} x {height} pixels, its image {found[0]} x {found[1]}", None
    return None, None
