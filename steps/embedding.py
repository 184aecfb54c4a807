"""The features of a frozen backbone over the samples of an experiment, written to a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from steps import artifacts, data, features, network, savedmodel, tasks
from steps.data import Samples
from steps.kinds import KINDS
from steps.params import EmbedSettings
from steps.savedmodel import Batch, Extractor
from steps.scans import Rule
from steps.tasks import Content, Task

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
        random_too: write `random.npy`, where torch has the architecture.

    Raises:
        DataError: a sample cannot be read, or gives features that are not finite.
        WeightsError: TensorFlow, which a SavedModel needs, is not there or fails.
    """
    pretrained = artifacts.pretrained_dir(settings.model.pretrained)
    task, device = tasks.get(settings.task), network.prepare_device(settings.machine.device)
    contents = tasks.contents(task, rows, artifacts.data_dir(experiment))
    if artifacts.saved_model(pretrained) is not None:
        artifacts.write_json(folder / features.KEY, key(settings, rows))
        rows[["id"]].to_parquet(folder / data.FEATURE_INDEX, index=False)
        return _of_savedmodel(pretrained, task, contents, settings, folder / data.FEATURES, progress)
    # Decoded or tokenised once for both.
    samples = task.samples(contents, settings.model, pretrained)
    width = 0
    for turn, name in enumerate([data.FEATURES] + [data.RANDOM_FEATURES] * random_too):
        torch.manual_seed(RANDOM_SEED)
        channels = Rule.of(settings.model).channels
        backbone = network.build_backbone(pretrained, pretrained=name == data.FEATURES, channels=channels)
        width, before = backbone.features, turn * len(rows)
        features.write(backbone, samples, folder / name, device, lambda done, b=before: progress(b + done))  # type: ignore[misc]
    index = rows[["id"]] if samples.lengths is None else rows[["id"]].assign(tokens=samples.lengths)
    index.to_parquet(folder / data.FEATURE_INDEX, index=False)
    artifacts.write_json(folder / features.KEY, key(settings, rows))
    return width


def turns(settings: EmbedSettings) -> int:
    """How often `write` runs over the samples: a SavedModel has no architecture that could be at random."""
    pretrained = artifacts.pretrained_dir(settings.model.pretrained)
    return 2 if artifacts.saved_model(pretrained) is None else 1


def key(settings: EmbedSettings, rows: pd.DataFrame) -> dict[str, Any]:
    """What features are made from."""
    pretrained = artifacts.pretrained_dir(settings.model.pretrained)
    return {
        "data_sha256": data.fingerprint(rows),
        "pretrained_sha256": artifacts.weights_sha256(pretrained),
        # Of all its files: who depends on the features depends on these too.
        "pretrained_files": artifacts.sha256_files(pretrained),
        "transform_sha256": artifacts.sha256_json(settings.model.model_dump(mode="json")),
        "dtype": "float32",
    }


# ----------------------------------------------------------------------------------------- of a SavedModel


def _of_savedmodel(
    pretrained: Path,
    task: Task,
    contents: list[Content],
    settings: EmbedSettings,
    path: Path,
    progress: Callable[[int], None],
) -> int:
    """Write the features that TensorFlow computes; gives how many there are of a sample."""
    extractor, done = Extractor(pretrained), 0
    shape = (len(contents), extractor.width)
    matrix = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    samples = None
    if KINDS[task.name].content == "image":
        samples = task.samples(contents, settings.model, pretrained)
    with closing(extractor):
        for found in savedmodel.features(extractor, savedmodel_batches(contents, samples)):
            matrix[done : done + len(found)] = found
            done += len(found)
            progress(done)
    matrix.flush()
    return extractor.width


def savedmodel_batches(contents: Sequence[Content], samples: Samples | None) -> Iterator[Batch]:
    """Contents as a SavedModel takes them: texts as they are, images of shape (batch, side, side, 3).

    Args:
        contents: of all samples.
        samples: of images, decoded; their values are within 0 and 1.
    """
    for indices in data.in_turn(len(contents)):
        if samples is None:
            yield [str(contents[index]) for index in indices]
            continue
        images = samples.batch(indices)
        assert isinstance(images, torch.Tensor)
        yield np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
