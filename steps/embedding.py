"""The features of a frozen backbone over the samples of an experiment, written to a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from steps import artifacts, data, features, network, tasks
from steps.params import EmbedSettings

# Of the weights that the features of a random backbone come from.
RANDOM_SEED = 0


def write(
    experiment: str,
    settings: EmbedSettings,
    rows: pd.DataFrame,
    folder: Path,
    progress: Callable[[int], None] = lambda done: None,
    *,
    random_too: bool = True,
) -> int:
    """Write the features of these rows, and what they were made from; gives how many features there are.

    The same architecture with random weights stands beside the pretrained one: what a head reaches on its
    features is what the architecture alone is good for (Saxe et al., On Random Weights and Unsupervised
    Feature Learning, 2011), and pretraining has to beat it.

    Args:
        experiment: its name.
        settings: task, model and device.
        rows: samples as `data.read_used` gives them.
        folder: where `features.npy`, `random.npy`, `index.parquet` and `features.json` go.
        progress: called with the number of samples done, counted over both matrices.
        random_too: write `random.npy`.

    Raises:
        DataError: a sample cannot be read, or gives features that are not finite.
    """
    pretrained = artifacts.pretrained_dir(settings.model.pretrained)
    task, device = tasks.get(settings.task), network.prepare_device(settings.machine.device)
    # Decoded or tokenised once for both.
    contents = tasks.contents(task, rows, artifacts.data_dir(experiment))
    samples = task.samples(contents, settings.model, pretrained)
    width = 0
    for turn, name in enumerate([data.FEATURES] + [data.RANDOM_FEATURES] * random_too):
        torch.manual_seed(RANDOM_SEED)
        backbone = network.build_backbone(pretrained, pretrained=name == data.FEATURES)
        width, before = backbone.features, turn * len(rows)
        features.write(backbone, samples, folder / name, device, lambda done, b=before: progress(b + done))  # type: ignore[misc]
    index = rows[["id"]] if samples.lengths is None else rows[["id"]].assign(tokens=samples.lengths)
    index.to_parquet(folder / data.FEATURE_INDEX, index=False)
    artifacts.write_json(folder / features.KEY, key(settings, rows))
    return width


def key(settings: EmbedSettings, rows: pd.DataFrame) -> dict[str, Any]:
    """What features are made from."""
    pretrained = artifacts.pretrained_dir(settings.model.pretrained)
    return {
        "data_sha256": data.fingerprint(rows),
        "pretrained_sha256": artifacts.sha256_file(pretrained / "model.safetensors"),
        # Of all its files: who depends on the features depends on these too.
        "pretrained_files": {path.name: artifacts.sha256_file(path) for path in sorted(pretrained.iterdir())},
        "transform_sha256": artifacts.sha256_json(settings.model.model_dump(mode="json")),
        "dtype": "float32",
    }
