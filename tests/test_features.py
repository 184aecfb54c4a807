from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from steps import data, entry, features, network
from steps.data import FeatureSamples, Samples
from steps.errors import DataError, DiskFullError, HeadstartError, UserError
from steps.features import PrefixCache, PrefixSamples
from steps.network import Backbone, Inputs

CPU = torch.device("cpu")
VISION = {"library": "timm", "name": "test_efficientnet", "mean": [0.5] * 3, "std": [0.5] * 3}
DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "efficientnet": VISION,
    "resnet": {"library": "timm", "name": "test_resnet"},
    "vit": {"library": "timm", "name": "test_vit", "img_size": 32},
    "convnext": {"library": "timm", "name": "test_convnext"},
    "whole": {"library": "timm", "name": "test_byobnet"},
    "bert": {
        "library": "transformers",
        "name": "bert",
        "config": {
            "vocab_size": 50,
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
    },
}


def built(name: str) -> Backbone:
    torch.manual_seed(3)
    return network.architecture(DESCRIPTIONS[name])


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return built("efficientnet")


@pytest.fixture(scope="module")
def bert() -> Backbone:
    return built("bert")


class Images:
    """Random images; a view shifts the brightness. Tells what it was asked for."""

    lengths: Sequence[int] | None = None

    def __init__(self, count: int, side: int = 32) -> None:
        self.pixels = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))
        self.asked: list[tuple[int, int | None]] = []

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: list[int], view: int | None = None) -> Tensor:
        self.asked += [(index, view) for index in indices]
        return self.pixels[indices] + (0.0 if view is None else 0.1 * (view + 1))


class Texts:
    """Texts of these lengths, padded to the longest of a batch."""

    def __init__(self, lengths: list[int]) -> None:
        generator = torch.Generator().manual_seed(1)
        self.tokens = [torch.randint(5, 50, (length,), generator=generator) for length in lengths]
        self.lengths: Sequence[int] | None = lengths
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: list[int], view: int | None = None) -> dict[str, Tensor]:
        self.asked.append(indices)
        rows = [self.tokens[index] for index in indices]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return {"input_ids": ids, "attention_mask": mask}


def same(one: Inputs, other: Inputs) -> bool:
    assert isinstance(one, Tensor)
    assert isinstance(other, Tensor)
    return torch.equal(one, other)


def names(count: int) -> list[str]:
    """Hashes in ascending order, so that places in an entry are the samples' own."""
    return [f"{index:04d}" for index in range(count)]


def inputs_of(name: str) -> Images | Texts:
    return Texts([7, 2, 5, 1]) if name == "bert" else Images(4, 64 if name == "whole" else 32)


def cached(
    cache: PrefixCache,
    backbone: Backbone,
    cut: int,
    samples: Samples,
    hashes: Sequence[str] | None = None,
    **changed: Any,
) -> PrefixSamples:
    settings: dict[str, Any] = {"weights_sha256": "w", "transform": {"size": 32}, "device": CPU} | changed
    return cache.samples(backbone, cut, samples, hashes or names(len(samples)), **settings)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# ------------------------------------------------------------------------------------- write and read


def written(backbone: Backbone, count: int, folder: Path) -> Images:
    samples = Images(count)
    backbone.train()  # whatever mode it comes in
    features.write(backbone, samples, folder / data.FEATURES, CPU)
    pd.DataFrame({"id": [f"s{index}" for index in range(count)]}).to_parquet(folder / data.FEATURE_INDEX)
    return samples


def test_features_are_the_backbone_in_eval_mode_to_the_bit(backbone: Backbone, tmp_path: Path) -> None:
    before = network.state_sha256(backbone.state_dict())
    samples = written(backbone, 70, tmp_path)
    found = features.read(tmp_path, pd.Series([f"s{index}" for index in range(70)]))
    backbone.eval()
    with torch.inference_mode():
        expected = torch.cat([backbone(samples.batch(indices)) for indices in data.in_turn(70)])
    assert torch.equal(found.features, expected)
    assert network.state_sha256(backbone.state_dict()) == before, "batch statistics were touched"


def test_rows_come_in_the_order_asked_for(backbone: Backbone, tmp_path: Path) -> None:
    written(backbone, 5, tmp_path)
    forward = features.read(tmp_path, pd.Series(["s0", "s3"])).features
    backward = features.read(tmp_path, pd.Series(["s3", "s0"])).features
    assert torch.equal(forward, backward.flip(0))
    assert not torch.equal(forward[0], forward[1])


def test_samples_without_features_are_an_error(backbone: Backbone, tmp_path: Path) -> None:
    written(backbone, 3, tmp_path)
    with pytest.raises(HeadstartError, match="no features of 1 samples; run embed again"):
        features.read(tmp_path, pd.Series(["s0", "stranger"]))


def test_features_that_are_not_finite_are_an_error(backbone: Backbone, tmp_path: Path) -> None:
    samples = Images(3)
    samples.pixels[1] = torch.inf
    with pytest.raises(DataError, match="features that are not finite, first of sample 1"):
        features.write(backbone, samples, tmp_path / data.FEATURES, CPU)
    with pytest.raises(DataError, match="activations that are not finite, first of sample 1"):
        cached(PrefixCache(tmp_path / "cache", 2**30), backbone, 2, samples)
    assert entries(tmp_path / "cache") == []


def test_texts_are_written_by_length_and_read_in_their_order(bert: Backbone, tmp_path: Path) -> None:
    lengths = [(index * 37) % 90 + 1 for index in range(90)]
    samples = Texts(lengths)
    done: list[int] = []
    features.write(bert, samples, tmp_path / data.FEATURES, CPU, done.append)
    batches = [[lengths[index] for index in indices] for indices in samples.asked]
    assert [(max(batch), min(batch)) for batch in batches] == [(90, 27), (26, 1)]
    assert done == [64, 90]
    found = np.load(tmp_path / data.FEATURES)
    with torch.inference_mode():
        alone = torch.cat([bert(samples.batch([index])) for index in range(90)])
    np.testing.assert_allclose(found, alone.numpy(), atol=1e-6)


def test_samples_that_tell_no_lengths_are_run_in_turn(backbone: Backbone, tmp_path: Path) -> None:
    samples = FeatureSamples(torch.rand(3, 3, 32, 32))
    features.write(backbone, samples, tmp_path / data.FEATURES, CPU)
    assert np.load(tmp_path / data.FEATURES).shape == (3, backbone.features)


# -------------------------------------------------------------------------------------- the prefix cache


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_cached_activations_are_the_networks_own_to_the_bit(name: str, tmp_path: Path) -> None:
    """At each cut, in the batch they were computed in; going on from them, too."""
    backbone, samples = built(name).train(), inputs_of(name)
    modes = [module.training for module in backbone.modules()]
    cache = PrefixCache(tmp_path, 2**30)
    found = {cut: cached(cache, backbone, cut, samples) for cut in backbone.cuts[1:]}
    assert [module.training for module in backbone.modules()] == modes
    backbone.eval()
    # As the cache runs them: texts from long to short.
    order = [0, 2, 1, 3] if name == "bert" else [0, 1, 2, 3]
    with torch.inference_mode():
        given = samples.batch(order)
        whole = backbone(given)
        for cut, prefix in found.items():
            expected, batch = backbone(given, 0, cut), prefix.batch(order)
            assert_same(batch, expected)
            assert torch.equal(backbone(batch, cut), whole), cut
            assert len(prefix) == 4
            assert prefix.lengths == ([7, 2, 5, 1] if name == "bert" and cut < backbone.cuts[-1] else None)


def assert_same(batch: Inputs, expected: Inputs) -> None:
    if isinstance(expected, dict):
        assert isinstance(batch, dict)
        real = expected["attention_mask"].bool()
        assert torch.equal(batch["attention_mask"], expected["attention_mask"])
        assert torch.equal(batch["hidden"][real], expected["hidden"][real])
        assert not batch["hidden"][~real].any()
        return
    assert isinstance(batch, Tensor)
    assert torch.equal(batch, expected)
    if batch.ndim == 4:
        assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["efficientnet", "vit", "bert"])
def test_other_batches_are_equal_but_for_rounding(name: str, tmp_path: Path) -> None:
    backbone, samples = built(name).eval(), inputs_of(name)
    cut = 2
    prefix = cached(PrefixCache(tmp_path, 2**30), backbone, cut, samples)
    with torch.inference_mode():
        for indices in ([3], [3, 1], [1, 1, 0]):
            found, expected = backbone(prefix.batch(indices), cut), backbone(samples.batch(indices))
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_tokens_are_stored_as_they_are_and_apart_from_pooled_features(tmp_path: Path) -> None:
    samples = Texts([7, 2, 5, 1])
    found: dict[str, PrefixSamples] = {}
    both: tuple[network.Gives, ...] = ("pooled", "tokens")
    for gives in both:
        backbone = network.architecture(DESCRIPTIONS["bert"], gives=gives)
        backbone.load_state_dict(built("bert").state_dict())
        cache = PrefixCache(tmp_path, 2**30)
        found[gives] = cached(cache, backbone, 4, samples)
        cached(cache, backbone, 3, samples)
    # Below the top there is no difference.
    assert len(entries(tmp_path)) == 3
    assert found["pooled"].lengths is None
    assert found["tokens"].lengths == [7, 2, 5, 1]
    with torch.inference_mode():
        expected = backbone.eval()(samples.batch([0, 2, 1, 3]))
    assert_same(found["tokens"].batch([0, 2, 1, 3]), expected)


class Pairs(Texts):
    """Texts, each with one to write."""

    def batch(self, indices: list[int], view: int | None = None) -> dict[str, Tensor]:
        ids = torch.tensor(indices)[:, None].add(torch.arange(5, 8))
        return super().batch(indices, view) | {"decoder_input_ids": ids}


def test_texts_for_a_decoder_go_along_with_what_was_stored(tmp_path: Path) -> None:
    """Two samples may have the same text to read, and each another to write."""
    config = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    torch.manual_seed(3)
    backbone = network.architecture(
        {"library": "transformers", "name": "t5", "config": config}, gives="tokens"
    ).eval()
    samples = Pairs([4, 2, 4])
    samples.tokens[2] = samples.tokens[0]
    cut = backbone.storable[-1]
    prefix = cached(PrefixCache(tmp_path, 2**30), backbone, cut, samples, ["a", "b", "a"])
    assert prefix.stored.activations.shape == (6, 16)
    with torch.inference_mode():
        expected, found = backbone(samples.batch([0, 1, 2])), backbone(prefix.batch([0, 1, 2]), cut)
    torch.testing.assert_close(found["hidden"], expected["hidden"], atol=1e-6, rtol=1e-5)
    assert not torch.equal(found["hidden"][0], found["hidden"][2])
    with pytest.raises(AssertionError):
        cached(PrefixCache(tmp_path, 2**30), backbone, backbone.cuts[-1], samples)


def test_maps_are_not_stored(tmp_path: Path) -> None:
    backbone = network.architecture(VISION, gives="maps")
    for cut in backbone.cuts[1:]:
        with pytest.raises(AssertionError):
            cached(PrefixCache(tmp_path, 2**30), backbone, cut, Images(2))


def test_gradients_flow_above_the_cut_as_without_a_cache(backbone: Backbone, tmp_path: Path) -> None:
    samples = Images(4)
    prefix = cached(PrefixCache(tmp_path, 2**30), backbone, 3, samples)
    backbone.eval()
    top = list(backbone.layers[3].parameters())
    plain = torch.autograd.grad(backbone(samples.batch([0, 1, 2, 3])).square().sum(), top)
    cut = torch.autograd.grad(backbone(prefix.batch([0, 1, 2, 3]), 3).square().sum(), top)
    assert all(torch.equal(one, other) for one, other in zip(plain, cut, strict=True))


def test_each_view_is_stored_once(backbone: Backbone, tmp_path: Path) -> None:
    samples = Images(70)
    done: list[int] = []
    cache = PrefixCache(tmp_path, 2**30)
    prefix = cached(cache, backbone, 2, samples, views=3, progress=done.append)
    asked = samples.asked[1:]  # the first was to learn the shape
    assert sorted(asked, key=str) == sorted(((i, v) for i in range(70) for v in range(3)), key=str)
    assert done == [21, 42, 64, 66, 68, 70, 70]
    backbone.eval()
    with torch.inference_mode():
        for view in range(3):
            expected = backbone(samples.batch(list(range(64)), view), 0, 2)
            assert same(prefix.batch(list(range(64)), view), expected)
            assert same(prefix.batch([5], view + 3), prefix.batch([5], view))
    assert same(prefix.batch([5]), prefix.batch([5], 0))
    assert not same(prefix.batch([5], 1), prefix.batch([5], 0))


def test_without_views_there_is_one_plain_one(backbone: Backbone, tmp_path: Path) -> None:
    samples = Images(3)
    prefix = cached(PrefixCache(tmp_path, 2**30), backbone, 2, samples)
    assert {view for _, view in samples.asked} == {None}
    assert same(prefix.batch([0, 2], 7), prefix.batch([0, 2]))


def test_a_second_time_nothing_is_computed(backbone: Backbone, tmp_path: Path) -> None:
    samples = Images(3)
    first = cached(PrefixCache(tmp_path, 2**30), backbone, 2, samples).batch([0, 1, 2])
    samples.asked.clear()
    done: list[int] = []
    again = PrefixCache(tmp_path, 2**30)
    assert same(cached(again, backbone, 2, samples, progress=done.append).batch([0, 1, 2]), first)
    assert samples.asked == []
    assert done == [3]
    # The same contents in another order, and only some of their places.
    turned = cached(again, backbone, 2, FeatureSamples(samples.pixels.flip(0)), names(3)[::-1])
    assert same(turned.batch([2, 1, 0]), first)
    assert len(entries(tmp_path)) == 1


def test_equal_contents_are_stored_once(backbone: Backbone, tmp_path: Path) -> None:
    samples = Images(4)
    samples.pixels[3] = samples.pixels[0]
    hashes = ["b", "c", "a", "b"]
    prefix = cached(PrefixCache(tmp_path, 2**30), backbone, 2, samples, hashes)
    assert sorted(index for index, _ in samples.asked[1:]) == [0, 1, 2]
    assert prefix.stored.activations.shape[0] == 3
    backbone.eval()
    with torch.inference_mode():
        expected = backbone(samples.batch([2, 0, 1]), 0, 2)
    assert same(prefix.batch([2, 0, 1]), expected)
    assert same(prefix.batch([3]), prefix.batch([0]))


def test_ragged_texts(bert: Backbone, tmp_path: Path) -> None:
    samples = Texts([(index * 37) % 90 + 1 for index in range(90)])
    prefix = cached(PrefixCache(tmp_path, 2**30), bert, 2, samples)
    lengths = list(samples.lengths or [])
    assert prefix.lengths == lengths
    # Tokens alone are stored, no padding.
    assert prefix.stored.activations.shape == (sum(lengths), 16)
    padded = [len(batch) * max(lengths[index] for index in batch) for batch in samples.asked[1:]]
    assert padded == [64 * 90, 26 * 26]
    batch = prefix.batch([4, 10])
    assert isinstance(batch, dict)
    assert batch["hidden"].shape == (2, max(lengths[4], lengths[10]), 16)
    assert batch["attention_mask"].sum(dim=1).tolist() == [lengths[4], lengths[10]]
    bert.eval()
    with torch.inference_mode():
        torch.testing.assert_close(bert(batch, 2), bert(samples.batch([4, 10])), atol=1e-6, rtol=1e-5)


def test_large_entries_stay_on_disk(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = cached(PrefixCache(tmp_path, 2**30), backbone, 2, Images(3))
    monkeypatch.setattr(features, "IN_MEMORY", 0)
    mapped = cached(PrefixCache(tmp_path, 2**30), backbone, 2, Images(3))
    assert isinstance(mapped.stored.activations.base, np.memmap)
    assert not isinstance(in_memory.stored.activations.base, np.memmap)
    batch = mapped.batch([2, 0])
    assert isinstance(batch, Tensor)
    assert same(batch, in_memory.batch([2, 0]))
    batch += 1  # a copy, whatever is done to it
    assert same(mapped.batch([2, 0]), in_memory.batch([2, 0]))


@pytest.mark.parametrize(
    "changed",
    [
        {"weights_sha256": "x"},
        {"transform": {"size": 64}},
        {"cut": 3},
        {"views": 1},
        {"hashes": ["0000", "0001", "other"]},
        {"FORMAT": 2},
        {"DTYPE": "float16"},
        {"name": "another"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_each_part_of_the_key_counts(
    changed: dict[str, Any], backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(PrefixCache(tmp_path, 2**30), backbone, 2, Images(3))
    before = entries(tmp_path)
    for name in ("FORMAT", "DTYPE"):
        if name in changed:
            monkeypatch.setattr(features, name, changed.pop(name))
    if "name" in changed:
        monkeypatch.setattr(backbone, "name", changed.pop("name"))
    samples = Images(3)
    settings = {"cut": 2} | changed
    cached(PrefixCache(tmp_path, 2**30), backbone, settings.pop("cut"), samples, **settings)
    assert samples.asked, "it was taken for the same"
    assert len(entries(tmp_path)) == len(before) + 1


# After two layers of test_efficientnet at 32 pixels an image has 16 channels of 16 x 16.
SIZE = 16 * 16 * 16 * 4


def test_the_limit_stops_it_before_anything_is_written(backbone: Backbone, tmp_path: Path) -> None:
    samples = Images(70)
    cache = PrefixCache(tmp_path / "cache", 70 * 2 * SIZE - 1)
    with pytest.raises(
        UserError,
        match=r"the activations of 70 samples after 2 layers take 0\.00214 GiB, more than the limit of "
        r"0\.00214 GiB: raise `machine\.cache_gib` or set `machine\.cache: false`",
    ):
        cached(cache, backbone, 2, samples, views=2)
    assert samples.asked == [(0, 0)]
    assert not list((tmp_path / "cache").rglob("*.npy"))
    cached(PrefixCache(tmp_path / "cache", 70 * 2 * SIZE), backbone, 2, samples, views=2)


def test_texts_are_predicted_by_their_lengths(bert: Backbone, tmp_path: Path) -> None:
    samples = Texts([7, 2, 5, 1])
    need = 15 * 16 * 4 + 5 * 8
    with pytest.raises(UserError, match=r"of 4 samples after 1 layers"):
        cached(PrefixCache(tmp_path, need - 1), bert, 1, samples)
    assert len(samples.asked) == 1
    cached(PrefixCache(tmp_path, need), bert, 1, samples)


@pytest.mark.survives(
    "disk",
    "no room for stored activations",
    how="a disk with a byte too little",
    held="told before anything is written",
)
def test_a_full_disk_is_told_before_anything_is_written(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * SIZE - 1))
    with pytest.raises(DiskFullError, match=r"3 samples after 2 layers take .*: free some space or set"):
        cached(PrefixCache(tmp_path, 2**30), backbone, 2, Images(3))
    assert not list(tmp_path.rglob("*.npy"))


def test_what_was_not_used_for_longest_makes_room(backbone: Backbone, tmp_path: Path) -> None:
    room = 2 * 3 * SIZE + 4096  # for two entries and what is beside their arrays
    for transform in ({"a": 1}, {"b": 1}):
        cached(PrefixCache(tmp_path, room), backbone, 2, Images(3), transform=transform)
    age(tmp_path)
    cached(PrefixCache(tmp_path, room), backbone, 2, Images(3), transform={"a": 1})  # used again
    cached(PrefixCache(tmp_path, room), backbone, 2, Images(3), transform={"c": 1})
    told = [
        json.loads((tmp_path / name / features.ENTRY).read_text())["transform"] for name in entries(tmp_path)
    ]
    assert sorted(map(str, told)) == ["{'a': 1}", "{'c': 1}"]


def age(folder: Path) -> None:
    """Let all entries have been used an hour ago."""
    for path in folder.glob(f"*/{features.ENTRY}"):
        os.utime(path, (path.stat().st_atime - 3600, path.stat().st_mtime - 3600))


def test_what_is_in_use_is_not_removed(backbone: Backbone, tmp_path: Path) -> None:
    room = 2 * 3 * SIZE + 4096
    cache = PrefixCache(tmp_path, room)
    held = [cached(cache, backbone, 2, Images(3), transform={"a": 1})]
    held.append(cached(cache, backbone, 2, Images(3), transform={"b": 1}))
    age(tmp_path)
    with pytest.raises(UserError, match=r"after 2 layers take .* beside .* in use, more than the limit"):
        cached(cache, backbone, 2, Images(3), transform={"c": 1})
    assert len(entries(tmp_path)) == 2
    held.pop()
    cached(cache, backbone, 2, Images(3), transform={"c": 1})
    assert len(entries(tmp_path)) == 2


def test_folders_of_others_are_left_alone(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "pixels").mkdir()
    (tmp_path / "pixels/images.npy").write_bytes(bytes(10))
    cached(PrefixCache(tmp_path, 3 * SIZE + 2048), backbone, 2, Images(3))
    cached(PrefixCache(tmp_path, 3 * SIZE + 2048), backbone, 2, Images(3), transform={})
    assert (tmp_path / "pixels/images.npy").exists()


def cut_short(folder: Path) -> None:
    with (folder / features.ACTIVATIONS).open("r+b") as stream:
        stream.truncate(100)


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        lambda folder: (folder / features.ACTIVATIONS).unlink(),
        lambda folder: (folder / features.ENTRY).write_text("{"),
        lambda folder: (folder / features.ENTRY).write_text("[]"),
        lambda folder: (folder / features.ENTRY).unlink(),
    ],
    ids=["cut short", "gone", "no json", "other json", "no entry"],
)
def test_a_damaged_entry_is_made_again_and_it_says_so(
    damage: Any, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(entry, "say", said.append)
    first = cached(PrefixCache(tmp_path, 2**30), backbone, 2, Images(3)).batch([0, 1, 2])
    damage(tmp_path / entries(tmp_path)[0])
    samples = Images(3)
    again = cached(PrefixCache(tmp_path, 2**30), backbone, 2, samples).batch([0, 1, 2])
    assert same(again, first)
    assert len(samples.asked) > 0
    assert len(said) == 1
    assert "is damaged" in said[0]
    assert "computed again" in said[0]


def test_leftovers_of_killed_processes_are_removed(backbone: Backbone, tmp_path: Path) -> None:
    """They neither stay nor count."""
    partial_folder = tmp_path / f".{'a' * 64}.partial-1"
    partial_folder.mkdir()
    (partial_folder / features.ACTIVATIONS).write_bytes(bytes(10 * SIZE))
    cached(PrefixCache(tmp_path, 3 * SIZE + 2048), backbone, 2, Images(3))
    assert not partial_folder.exists()


def test_what_another_process_is_making_counts_and_stays(backbone: Backbone, tmp_path: Path) -> None:
    name = "a" * 64
    partial_folder = tmp_path / f".{name}.partial-1"
    partial_folder.mkdir()
    (partial_folder / features.ACTIVATIONS).write_bytes(bytes(10 * SIZE))
    with features._locked(tmp_path / f".{name}.lock"), pytest.raises(UserError, match="in use"):
        cached(PrefixCache(tmp_path, 12 * SIZE), backbone, 2, Images(3))
    assert partial_folder.exists()


def test_a_failed_run_leaves_nothing_and_lets_go(backbone: Backbone, tmp_path: Path) -> None:
    class Broken(Images):
        def batch(self, indices: list[int], view: int | None = None) -> Tensor:
            if len(indices) > 1:
                raise DataError("broken")
            return super().batch(indices, view)

    backbone.train()
    cache = PrefixCache(tmp_path, 2**30)
    with pytest.raises(DataError, match="broken"):
        cached(cache, backbone, 2, Broken(3))
    assert backbone.training
    assert not list(tmp_path.rglob("*.npy"))
    cached(cache, backbone, 2, Images(3))


def test_threads_make_an_entry_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(entry, "say", said.append)
    started = threading.Event()

    class Slow(Images):
        def batch(self, indices: list[int], view: int | None = None) -> Tensor:
            started.set()
            waiting.wait(20)
            return super().batch(indices, view)

    waiting = threading.Event()
    first, second = Slow(3), Images(3)
    found: dict[str, Inputs] = {}

    def make(name: str, samples: Images) -> None:
        found[name] = cached(PrefixCache(tmp_path, 2**30), built("efficientnet"), 2, samples).batch([0, 1, 2])

    threads = [threading.Thread(target=make, args=("first", first))]
    threads[0].start()
    assert started.wait(20)
    threads.append(threading.Thread(target=make, args=("second", second)))
    threads[1].start()
    while not said and threads[1].is_alive():
        time.sleep(0.01)
    waiting.set()
    for thread in threads:
        thread.join()
    assert said == ["another process computes the same activations: waiting for them"]
    assert same(found["first"], found["second"])
    assert second.asked == [], "it was computed twice"


def _make_in_process(folder: Path, target: Path) -> None:
    torch.set_num_threads(1)
    batch = cached(PrefixCache(folder, 2**30), built("efficientnet"), 2, Images(5)).batch([0, 1, 2])
    assert isinstance(batch, Tensor)
    np.save(target, batch.numpy())


def test_processes_make_an_entry_at_once(tmp_path: Path) -> None:
    folder, context = tmp_path / "cache", multiprocessing.get_context("fork")
    targets = [tmp_path / f"{index}.npy" for index in range(2)]
    started = [context.Process(target=partial(_make_in_process, folder, target)) for target in targets]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0]
    first, second = (np.load(target) for target in targets)
    np.testing.assert_array_equal(first, second)
    assert len(entries(folder)) == 1
    assert not list(folder.glob(".*.partial-*"))
