"""Texts, any number of labels each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from steps.params import Validation
from steps.tasks import Case, Expectation, target_of
from steps.tasks.of_labels import OfLabels
from steps.tasks.of_texts import OfTexts

EXCERPT = 400


class TextMultilabel(OfLabels, OfTexts):
    """Task `text-multilabel`."""

    name = "text-multilabel"

    def facts(self, manifest: pd.DataFrame, folder: Path, settings: Validation) -> pd.DataFrame:
        """Those of texts, and labels that are not allowed."""
        return OfTexts.facts(self, manifest, folder, settings).join(self.label_facts(manifest, settings))

    def expectations(self, settings: Validation) -> list[Expectation]:
        """Those of texts and of lists of labels."""
        return [*OfTexts.expectations(self, settings), *self.of_labels(settings)]

    def case(self, row: Any, said: dict[str, Any], folder: Path) -> Case:  # noqa: ANN401 - a row of a data frame
        """The labels, and the beginning of the text."""
        excerpt = " ".join(str(row.text)[: 4 * EXCERPT].split())[:EXCERPT]
        return Case(
            ", ".join(target_of(row)) or "none", ", ".join(said["labels"]) or "none", marks=((excerpt, ""),)
        )
