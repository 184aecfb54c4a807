"""What all tasks share whose samples are each of one of several classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steps import data, metrics
from steps.arms import Arm
from steps.params import Model
from steps.tasks import Ask, Case, Criterion, Said, Simple

if TYPE_CHECKING:
    from torch import Tensor, nn

    from steps.data import Samples
    from steps.network import Backbone


class OfClasses:
    """A task of classes: class indices, a linear or deeper head, cross-entropy, probabilities."""

    def classes(self, rows: pd.DataFrame) -> list[str]:
        """The labels, sorted."""
        return data.classes_of(rows)

    def targets(
        self, rows: pd.DataFrame, classes: list[str], samples: Samples, folder: Path, model: Model
    ) -> Tensor:
        """Class indices, shape (samples,), int64."""
        import torch

        return torch.from_numpy(data.label_indices(rows["label"], classes))

    def head(self, backbone: Backbone, classes: list[str], model: Model, arm: Arm) -> nn.Module:
        """Pooled features to logits, shape (batch, classes)."""
        from steps import network

        return network.build_head(backbone.features, len(classes), model.dropout, arm.head)

    def objective(self, arm: Arm, targets: Any, classes: list[str]) -> Criterion:  # noqa: ANN401 - see Task
        """Cross-entropy, with what the arm adds to it."""
        from steps import augment
        from steps.objective import Objective

        count = len(classes)
        return Objective(arm, targets, count, augment.mixer(arm.mixup, arm.cutmix, count))

    def predict(self, network: nn.Module, samples: Samples, ask: Ask) -> Said:
        """Probabilities, shape (samples, classes), float32."""
        from steps import inference

        return inference.probabilities(network, samples, ask.device, cut=ask.cut, precision=ask.precision)

    def truths(self, rows: pd.DataFrame) -> list[Any]:
        """The labels."""
        return list(rows["label"])

    def scores(self, truths: list[Any], said: Said, classes: list[str]) -> dict[str, NDArray[np.float64]]:
        """Each item's share in every metric of a classifier."""
        truth = data.label_indices(pd.Series(truths, dtype=str), classes)
        probabilities = np.asarray(said, dtype=np.float64)
        return {name: metrics.per_item(name, truth, probabilities) for name in metrics.OF_CLASSES}

    def baselines(
        self,
        rows: pd.DataFrame,
        classes: list[str],
        folder: Path,
        model: Model | None = None,
        pretrained: Path | None = None,
    ) -> Mapping[str, Simple]:
        """None of its own: baseline fits classifiers on features, pixels or words."""
        return {}

    def case(self, row: Any, said: dict[str, Any], folder: Path) -> Case:  # noqa: ANN401 - a row of a data frame
        """The two labels."""
        return Case(str(row.label), str(said["label"]))
