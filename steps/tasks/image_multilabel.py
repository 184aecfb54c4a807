"""Images, any number of labels each."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from steps import scans
from steps.params import Validation
from steps.tasks import Case, Expectation, target_of
from steps.tasks.of_images import OfImages
from steps.tasks.of_labels import OfLabels

SIDE = 160


class ImageMultilabel(OfLabels, OfImages):
    """Task `image-multilabel`."""

    name = "image-multilabel"

    def facts(self, manifest: pd.DataFrame, folder: Path, settings: Validation) -> pd.DataFrame:
        """Those of images, and labels that are not allowed."""
        return OfImages.facts(self, manifest, folder, settings).join(self.label_facts(manifest, settings))

    def expectations(self, settings: Validation) -> list[Expectation]:
        """Those of images and of lists of labels."""
        return [*OfImages.expectations(self, settings), *self.of_labels(settings)]

    def case(self, row: Any, said: dict[str, Any], folder: Path) -> Case:  # noqa: ANN401 - a row of a data frame
        """The labels, and the picture."""
        with io.BytesIO() as stream:
            small = scans.picture(folder / row.path)
            scale = SIDE / max(small.size)
            size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
            small.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC).save(
                stream, "WEBP", quality=70
            )
            picture = stream.getvalue()
        return Case(
            ", ".join(target_of(row)) or "none", ", ".join(said["labels"]) or "none", (("image", picture),)
        )
