"""What all tasks share whose target is more than a class: boxes, masks, tags, texts, several labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from steps.params import Model, Validation
from steps.tasks import Expectation, Simple, target_of

if TYPE_CHECKING:
    from torch import device

    from steps.network import Inputs

PRESENT = Expectation(
    "targets_present",
    "ExpectColumnValuesToNotBeNull",
    {"column": "target"},
    "has no target",
    text="every sample has a target",
)


class OfTargets:
    """A task whose targets stand in the manifest's column `target`."""

    def of_targets(self, settings: Validation) -> list[Expectation]:
        """What must hold of targets whatever they are."""
        return [PRESENT]

    def classes(self, rows: pd.DataFrame) -> list[str]:
        """The labels that occur in any target, sorted: the targets are lists of labels, or hold `labels`."""
        found: set[str] = set()
        for row in rows.itertuples():
            target = target_of(row)
            found |= set(target["labels"] if isinstance(target, dict) else target)
        return sorted(found)

    def truths(self, rows: pd.DataFrame) -> list[Any]:
        """The targets as the reader of the raw data wrote them."""
        return [target_of(row) for row in rows.itertuples()]

    def baselines(
        self,
        rows: pd.DataFrame,
        classes: list[str],
        folder: Path,
        model: Model | None = None,
        pretrained: Path | None = None,
    ) -> Mapping[str, Simple]:
        """None."""
        return {}


class Unmixed:
    """Base of losses that neither mix inputs nor hold tensors; what remains is `share`."""

    def to(self, device: device) -> None:
        """There is nothing to move."""

    def mixed(self, inputs: Inputs, targets: Any) -> tuple[Inputs, Any]:  # noqa: ANN401 - the task's affair
        """As they are."""
        return inputs, targets

    def forced(self, inputs: Inputs, targets: Any) -> Inputs:  # noqa: ANN401 - the task's affair
        """As they are."""
        return inputs
