"""The features of a frozen backbone over the samples of an experiment, written to a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from steps import artifacts, cluster, data, features, network, savedmodel, tasks
from steps.data import Samples
from steps.errors import UserError
from steps.kinds import KINDS
from steps.network import Backbone
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
    ray: str | None = None,
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
        ray: compute over Ray, at this address (`local`: on this machine); in this process when not given.

    Raises:
        DataError: a sample cannot be read, or gives features that are not finite.
        UserError: Ray is not there, or the features are TensorFlow's.
        WeightsError: TensorFlow, which a SavedModel needs, is not there or fails.
    """
    pretrained = artifacts.pretrained_dir(settings.model.pretrained)
    task = tasks.get(settings.task)
    contents = tasks.contents(task, rows, artifacts.data_dir(experiment))
    if artifacts.saved_model(pretrained) is not None:
        if ray is not None:
            raise UserError("machine.ray: a SavedModel's features are TensorFlow's, on this machine: drop it")
        artifacts.write_json(folder / features.KEY, key(settings, rows))
        rows[["id"]].to_parquet(folder / data.FEATURE_INDEX, index=False)
        return _of_savedmodel(pretrained, task, contents, settings, folder / data.FEATURES, progress)
    work = Work(settings, pretrained, contents, (data.FEATURES, data.RANDOM_FEATURES)[: 1 + random_too])
    lengths, width = _here(work, folder, progress) if ray is None else _there(work, folder, progress, ray)
    index = rows[["id"]] if lengths is None else rows[["id"]].assign(tokens=lengths)
    index.to_parquet(folder / data.FEATURE_INDEX, index=False)
    artifacts.write_json(folder / features.KEY, key(settings, rows))
    return width


@dataclass(frozen=True)
class Work:
    """What features are computed of.

    Attributes:
        settings: task, model and device.
        pretrained: the folder that fetch made.
        contents: of all samples.
        names: the files of the features, each of a backbone of its own.
    """

    settings: EmbedSettings
    pretrained: Path
    contents: list[Content]
    names: tuple[str, ...]

    def samples(self, places: Sequence[int] | None = None) -> Samples:
        """The contents at these places, or all, decoded or tokenised."""
        chosen = self.contents if places is None else [self.contents[place] for place in places]
        return tasks.get(self.settings.task).samples(chosen, self.settings.model, self.pretrained)

    def backbone(self, name: str) -> Backbone:
        """The one whose features go into the file of that name."""
        torch.manual_seed(RANDOM_SEED)
        channels = Rule.of(self.settings.model).channels
        return network.build_backbone(self.pretrained, pretrained=name == data.FEATURES, channels=channels)


def _here(work: Work, folder: Path, progress: Callable[[int], None]) -> tuple[Sequence[int] | None, int]:
    """Write the features in this process; gives the texts' lengths, and how many features there are."""
    device, width = network.prepare_device(work.settings.machine.device), 0
    # Decoded or tokenised once for all.
    samples = work.samples()
    for turn, name in enumerate(work.names):
        backbone, before = work.backbone(name), turn * len(samples)
        width = backbone.features
        features.write(backbone, samples, folder / name, device, lambda done, b=before: progress(b + done))  # type: ignore[misc]
    return samples.lengths, width


# ---------------------------------------------------------------------------------------------- over Ray


def _there(
    work: Work, folder: Path, progress: Callable[[int], None], address: str
) -> tuple[Sequence[int] | None, int]:
    """Write the features that a cluster computes, of the same batches as `_here`; gives the same."""
    count, lengths = len(work.contents), None
    if KINDS[work.settings.task].content == "text":
        lengths = work.samples().lengths
    batches, matrices, done = data.longest_first(lengths, count), dict[str, np.memmap[Any, Any]](), 0
    found = cluster.over_ray(
        embedder, absolute(work), batches, address=address, threads=torch.get_num_threads(),
        gpu=work.settings.machine.device == "cuda",
    )  # fmt: skip
    for places, rows in found:
        for name, some in rows.items():
            if name not in matrices:
                shape = (count, some.shape[1])
                matrices[name] = np.lib.format.open_memmap(
                    folder / name, mode="w+", dtype=np.float32, shape=shape
                )
            matrices[name][places] = some
        done += len(places) * len(work.names)
        progress(done)
    for matrix in matrices.values():
        matrix.flush()
    return lengths, int(next(iter(matrices.values())).shape[1])


def absolute(work: Work) -> Work:
    """The same work for a process whose working directory is another."""
    contents = [one.resolve() if isinstance(one, Path) else one for one in work.contents]
    return replace(work, pretrained=work.pretrained.resolve(), contents=contents)


def embedder(work: Work) -> Callable[[list[int]], dict[str, NDArray[np.float32]]]:
    """What a worker does: the features of the samples at some places, shape (places, features), by file."""
    device = network.prepare_device(work.settings.machine.device)
    backbones = {name: work.backbone(name) for name in work.names}

    def compute(places: list[int]) -> dict[str, NDArray[np.float32]]:
        samples = work.samples(places)
        return {
            name: features.compute(backbone, samples, device).numpy() for name, backbone in backbones.items()
        }

    return compute


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
