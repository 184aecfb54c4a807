"""What tasks share whose samples have any number of labels each: none, one or several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steps import metrics
from steps.arms import Arm
from steps.params import Model, Validation
from steps.tasks import Ask, Criterion, Expectation, Said, Simple, target_of
from steps.tasks.of_targets import OfTargets, Unmixed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from steps.data import Samples
    from steps.network import Backbone

# From this probability on a label is given.
THRESHOLD = 0.5


class OfLabels(OfTargets):
    """A task of several labels: a target is the list of a sample's labels."""

    def label_facts(self, manifest: pd.DataFrame, settings: Validation) -> pd.DataFrame:
        """The column `unknown_labels`: those of a sample that are not allowed; None where there are none."""
        allowed = None if settings.labels is None else set(settings.labels)
        found = []
        for row in manifest.itertuples():
            labels = target_of(row) if isinstance(row.target, str) else []
            odd = [] if allowed is None else sorted(set(labels) - allowed)
            found.append(", ".join(odd) or None)
        return pd.DataFrame({"unknown_labels": pd.Series(found, manifest.index, dtype=object)})

    def of_labels(self, settings: Validation) -> list[Expectation]:
        """Every sample has a list of labels, all of them allowed."""
        known = Expectation(
            "labels_known",
            "ExpectColumnValuesToBeNull",
            {"column": "unknown_labels"},
            "labels that are not allowed: {unknown_labels}",
        )
        return [*self.of_targets(settings), *([] if settings.labels is None else [known])]

    def targets(
        self, rows: pd.DataFrame, classes: list[str], samples: Samples, folder: Path, model: Model
    ) -> Tensor:
        """Ones where a sample has the label, shape (samples, classes), float32."""
        import torch

        return torch.from_numpy(of_each(self.truths(rows), classes).astype(np.float32))

    def head(self, backbone: Backbone, classes: list[str], model: Model, arm: Arm) -> nn.Module:
        """Pooled features to one logit a label, shape (batch, classes)."""
        from steps import network

        return network.build_head(backbone.features, len(classes), model.dropout, arm.head)

    def objective(self, arm: Arm, targets: Any, classes: list[str]) -> Criterion:  # noqa: ANN401 - see Task
        """Binary cross-entropy of every label, their mean."""
        return BinaryCrossEntropy()

    def predict(self, network: nn.Module, samples: Samples, ask: Ask) -> Said:
        """The labels from a probability of one half on, and the probability of each."""
        from steps import inference

        found = np.empty((len(samples), len(ask.classes)))
        run = inference.outputs(network, samples, ask.device, cut=ask.cut, precision=ask.precision)
        for indices, logits in run:
            found[indices] = logits.float().sigmoid().cpu().numpy()
        return [
            {
                "labels": [name for name, share in zip(ask.classes, row, strict=True) if share >= THRESHOLD],
                "probabilities": dict(zip(ask.classes, row, strict=True)),
            }
            for row in found.tolist()
        ]

    def scores(self, truths: list[Any], said: Said, classes: list[str]) -> dict[str, NDArray[np.float64]]:
        """Shares in the mean average precision over labels and in micro-F1."""
        truth = of_each(truths, classes)
        found = np.array([[one["probabilities"][name] for name in classes] for one in said]).reshape(
            truth.shape
        )
        return {
            "mean_average_precision": average_precision_shares(truth, found),
            "micro_f1": micro_f1_shares(truth, found >= THRESHOLD),
        }

    def baselines(
        self,
        rows: pd.DataFrame,
        classes: list[str],
        folder: Path,
        model: Model | None = None,
        pretrained: Path | None = None,
    ) -> Mapping[str, Simple]:
        """Of every sample the same: how frequent each label is among those trained on."""
        frequent = of_each(self.truths(rows[rows["split"] == "train"]), classes).mean(axis=0)
        one = {
            "labels": [name for name, share in zip(classes, frequent, strict=True) if share >= THRESHOLD],
            "probabilities": dict(zip(classes, frequent.tolist(), strict=True)),
        }
        tested = int((rows["split"] == "test").sum())
        return {"frequencies": Simple("how frequent each label is in the training split", [one] * tested)}


class BinaryCrossEntropy(Unmixed):
    """The mean over samples and labels of the binary cross-entropy."""

    def share(self, outputs: Tensor, targets: Tensor, whole: Tensor) -> Tensor:
        """Of this part; all of shape (samples, classes)."""
        from torch.nn import functional

        total = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="sum")
        return total / whole.numel()


def of_each(labels: list[Any], classes: list[str]) -> NDArray[np.bool_]:
    """Which sample has which label, shape (samples, classes)."""
    place = {name: at for at, name in enumerate(classes)}
    found = np.zeros((len(labels), len(classes)), dtype=np.bool_)
    for row, own in enumerate(labels):
        found[row, [place[name] for name in own]] = True
    return found


def average_precision_shares(truth: NDArray[np.bool_], said: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares in the mean over labels of the average precision, as scikit-learn has it.

    A label that no item has tells nothing and is left out of the mean.

    Args:
        truth: shape (items, classes).
        said: probabilities, shape (items, classes).

    Returns:
        Shape (items,): pseudo-values of the jackknife, whose mean is the metric.
    """
    known = [at for at in range(truth.shape[1]) if truth[:, at].any()]
    if not known:
        return np.zeros(len(truth))
    values, sums, counts = 0.0, np.zeros(len(truth)), np.zeros(len(truth))
    for at in known:
        value, without = _average_precision(truth[:, at], said[:, at])
        values += value
        sums += np.nan_to_num(without)
        counts += ~np.isnan(without)
    # Without its only positive item a label falls out of the mean.
    without_item = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    return metrics.shares_of(values / len(known), without_item)


def _average_precision(
    truth: NDArray[np.bool_], said: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Average precision of one label, and what it is without each item; NaN where no positive one is left.

    It is the mean over positive items of the precision among all items that score at least as high.
    """
    positive = np.flatnonzero(truth)
    above = said[None, :] >= said[positive, None]
    hits, all_ = (above & truth[None, :]).sum(axis=1), above.sum(axis=1)
    left = all_[:, None] - above
    fewer = np.divide(
        hits[:, None] - (above & truth[None, :]), left, out=np.zeros(left.shape), where=left > 0
    )
    # A positive item has no precision of its own where it is left out itself.
    fewer[np.arange(len(positive)), positive] = 0.0
    remaining = len(positive) - truth.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        without = np.where(remaining > 0, fewer.sum(axis=0) / remaining, np.nan)
    return float((hits / all_).mean()), without


def micro_f1_shares(truth: NDArray[np.bool_], given: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Shares in micro-F1: F1 of all labels of all items together; 0 where nothing is true or given."""
    hits = (truth & given).sum(axis=1).astype(np.float64)
    both = truth.sum(axis=1) + given.sum(axis=1).astype(np.float64)
    value = 2 * hits.sum() / both.sum() if both.sum() else 0.0
    left = both.sum() - both
    without = np.divide(2 * (hits.sum() - hits), left, out=np.zeros_like(left), where=left > 0)
    return metrics.shares_of(float(value), without)
