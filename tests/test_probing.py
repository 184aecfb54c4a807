from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from steps import probing
from steps.errors import TrainingError
from steps.network import build_head
from steps.objective import Objective
from steps.params import Arm

ARM = Arm(tune="head", solver="lbfgs", weight_decay=0.05)


def samples(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, 90)
    features = random.normal(size=(90, 8)) + np.eye(3, 8)[labels]
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def test_the_optimum_is_scikit_learns() -> None:
    features, labels = samples()
    head = build_head(8, 3, 0.3)
    solved = probing.solve(head, features, labels, ARM, Objective(ARM, labels, 3))
    reference = LogisticRegression(C=1 / (len(labels) * ARM.weight_decay), tol=1e-10, max_iter=5000)
    reference.fit(features.double().numpy(), labels.numpy())
    found = torch.softmax(head.eval()(features), dim=1).detach().numpy()
    np.testing.assert_allclose(found, reference.predict_proba(features.double().numpy()), atol=1e-5)
    np.testing.assert_allclose(head.get_parameter("1.weight").detach().numpy(), reference.coef_, atol=1e-4)
    assert solved.iterations < probing.ITERATIONS


def test_the_start_does_not_matter() -> None:
    features, labels = samples()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        head = build_head(8, 3, 0.3)
        probing.solve(head, features, labels, ARM, Objective(ARM, labels, 3))
        found.append(torch.softmax(head.eval()(features), dim=1))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)


def test_class_weights_count() -> None:
    features, labels = samples()
    arm = ARM.model_copy(update={"class_weights": True})
    head = build_head(8, 3, 0.0)
    probing.solve(head, features, labels, arm, Objective(arm, labels, 3))
    reference = LogisticRegression(
        C=1 / (len(labels) * arm.weight_decay), class_weight="balanced", tol=1e-10, max_iter=5000
    ).fit(features.double().numpy(), labels.numpy())
    found = torch.softmax(head(features), dim=1).detach().numpy()
    np.testing.assert_allclose(found, reference.predict_proba(features.double().numpy()), atol=1e-5)


def test_features_that_are_not_finite_are_told() -> None:
    features, labels = samples()
    features[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        probing.solve(build_head(8, 3, 0.0), features, labels, ARM, Objective(ARM, labels, 3))
