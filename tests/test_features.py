from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from steps import data, features, network
from steps.data import FeatureSamples
from steps.errors import DataError, HeadstartError
from steps.network import ImageBackbone

VISION = {"library": "timm", "name": "test_efficientnet", "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(scope="module")
def backbone() -> ImageBackbone:
    torch.manual_seed(3)
    found = network.architecture(VISION)
    assert isinstance(found, ImageBackbone)
    return found


def images(count: int) -> FeatureSamples:
    """Any tensor can be taken sample by sample, images too."""
    return FeatureSamples(torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)))


def written(backbone: ImageBackbone, count: int, folder: Path) -> FeatureSamples:
    samples = images(count)
    backbone.train()  # whatever mode it comes in
    features.write(backbone, samples, folder / features.MATRIX, torch.device("cpu"))
    pd.DataFrame({"id": [f"s{index}" for index in range(count)]}).to_parquet(folder / features.INDEX)
    return samples


def test_features_are_the_backbone_in_eval_mode_to_the_bit(backbone: ImageBackbone, tmp_path: Path) -> None:
    before = network.state_sha256(backbone.state_dict())
    samples = written(backbone, 70, tmp_path)
    found = features.read(tmp_path, pd.Series([f"s{index}" for index in range(70)]))
    backbone.eval()
    with torch.inference_mode():
        expected = torch.cat([backbone(samples.batch(indices)) for indices in data.in_turn(70)])
    assert torch.equal(found.features, expected)
    assert network.state_sha256(backbone.state_dict()) == before, "batch statistics were touched"


def test_rows_come_in_the_order_asked_for(backbone: ImageBackbone, tmp_path: Path) -> None:
    written(backbone, 5, tmp_path)
    forward = features.read(tmp_path, pd.Series(["s0", "s3"])).features
    backward = features.read(tmp_path, pd.Series(["s3", "s0"])).features
    assert torch.equal(forward, backward.flip(0))
    assert not torch.equal(forward[0], forward[1])


def test_samples_without_features_are_an_error(backbone: ImageBackbone, tmp_path: Path) -> None:
    written(backbone, 3, tmp_path)
    with pytest.raises(HeadstartError, match="no features of 1 samples; run embed again"):
        features.read(tmp_path, pd.Series(["s0", "stranger"]))


def test_features_that_are_not_finite_are_an_error(backbone: ImageBackbone, tmp_path: Path) -> None:
    samples = images(3)
    samples.features[1] = torch.inf
    with pytest.raises(DataError, match="not finite, samples 0 to 2"):
        features.write(backbone, samples, tmp_path / features.MATRIX, torch.device("cpu"))
