"""Masks from a folder to a registered model, on a toy backbone."""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from steps import artifacts, data, tasks
from steps.images import mask_of
from steps.raw.drawn_masks import NAMES, shapes_masks
from tests.tasks import clone

IMAGES = 26


def written(root: Path) -> None:
    """The first scenes of the example, cut to 96 x 64; a mask of another size, and one of a strange value."""
    for name in ("images", "masks"):
        (root / "raw" / name).mkdir(parents=True)
    groups = [["image", "group"]]
    for number, one in zip(range(IMAGES), shapes_masks().samples, strict=False):
        assert isinstance(one.content, bytes)
        name = f"{number:02}.png"
        Image.open(io.BytesIO(one.content)).crop((0, 0, 96, 64)).save(root / "raw/images" / name)
        mask = mask_of(one.target["mask"])[:64]
        if number == 0:
            mask = mask[:60]
        if number == 1:
            mask = np.where(mask == 0, 77, mask).astype(np.uint8)
        Image.fromarray(mask).save(root / "raw/masks" / name)
        groups.append([name, f"scene {number // 2}"])
    with (root / "raw/groups.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(groups)


@pytest.mark.flow
def test_masks_from_a_folder_to_a_registered_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    classes = {name: number for number, name in enumerate(NAMES)}
    clone.lay_out(
        tmp_path,
        {
            "task": "semantic-segmentation",
            "data": {"source": "masks", "path": "raw", "classes": classes, "table": "groups.csv"},
            "model": {"pretrained": "toy-vision", "image_size": 32},
            "validation": {"on_reject": "drop", "min_per_class": 2},
            "training": {"epochs": 1, "batch_size": 8, "seeds": [1, 2]},
        },
    )
    found = clone.run()
    rejected = pd.read_csv(artifacts.validation_dir(clone.NAME) / "rejected.csv")
    assert rejected["id"].tolist() == ["00.png", "01.png"]
    assert "96 x 60 pixels, its image 96 x 64" in rejected["reason"][0]
    assert "no class: 77" in rejected["reason"][1]
    sides = data.read_split(clone.NAME).groupby("group")["split"].nunique()
    assert (sides == 1).all(), "a group is on one side"
    assert found["metric"]["name"] == "mean_iou"
    assert {one["name"] for one in found["baselines"]} == {"most_frequent", "colour"}
    row = next(clone.test_rows().itertuples())
    path = artifacts.data_dir(clone.NAME) / str(row.path)
    (said,) = clone.predicted([{"image": base64.b64encode(path.read_bytes()).decode()}])
    assert set(said) == {"mask", "classes", "shares"}
    numbers = mask_of(said["mask"])
    assert numbers.shape == (64, 96)
    assert said["classes"] == [NAMES[number] for number in np.unique(numbers).tolist()]
    assert sum(said["shares"].values()) == pytest.approx(1)
    case = tasks.get("semantic-segmentation").case(row, said, artifacts.data_dir(clone.NAME))
    assert [content[:4] for _, content in case.pictures] == [b"RIFF"] * 3
