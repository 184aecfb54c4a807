from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from steps.objective import Objective, balanced_weights
from steps.params import Arm

LABELS = torch.tensor([0, 0, 0, 1, 2, 2])


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))


def test_plain_is_cross_entropy() -> None:
    found = Objective(Arm(), LABELS, 3).share(logits(), LABELS, LABELS)
    torch.testing.assert_close(found, functional.cross_entropy(logits(), LABELS))


def test_label_smoothing_by_hand() -> None:
    # One sample, two classes, logits (0, log 3): probabilities 1/4 and 3/4; smoothing 0.2 makes the target
    # (0.1, 0.9).
    one = torch.tensor([[0.0, math.log(3)]])
    label = torch.tensor([1])
    found = Objective(Arm(label_smoothing=0.2), label, 2).share(one, label, label)
    assert found.item() == pytest.approx(-0.1 * math.log(1 / 4) - 0.9 * math.log(3 / 4))


def test_class_weights_are_scikit_learns() -> None:
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 2]), y=LABELS.numpy())
    assert balanced_weights(LABELS, 3).tolist() == pytest.approx(expected.tolist())


def test_a_class_without_samples_has_no_weight() -> None:
    assert balanced_weights(torch.tensor([0, 0, 2]), 3).tolist() == [0.75, 0.0, 1.5]


@pytest.mark.parametrize(
    "arm", [Arm(), Arm(class_weights=True), Arm(label_smoothing=0.1, class_weights=True)]
)
def test_shares_add_up_to_the_mean_of_the_batch(arm: Arm) -> None:
    objective = Objective(arm, LABELS, 3)
    weights = balanced_weights(LABELS, 3) if arm.class_weights else None
    whole = functional.cross_entropy(logits(), LABELS, weights, label_smoothing=arm.label_smoothing)
    cut = [slice(0, 1), slice(1, 4), slice(4, 6)]
    shares = sum(objective.share(logits()[one], LABELS[one], LABELS).item() for one in cut)
    assert shares == pytest.approx(whole.item(), rel=1e-6)


def test_soft_targets_are_torchs() -> None:
    soft = torch.softmax(logits(1), dim=1)
    objective = Objective(Arm(class_weights=True), LABELS, 3)
    expected = functional.cross_entropy(logits(), soft, balanced_weights(LABELS, 3))
    torch.testing.assert_close(objective.share(logits(), soft, soft), expected)


def test_without_a_mixer_nothing_is_mixed() -> None:
    images = torch.zeros(6, 3, 2, 2)
    assert Objective(Arm(), LABELS, 3).mixed(images, LABELS) == (images, LABELS)
