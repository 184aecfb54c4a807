"""Boxes from a file of COCO to a registered model, on a toy backbone."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from steps import artifacts, data, tasks
from steps.raw.drawn_boxes import SHAPES, shapes_boxes
from tests.tasks import clone

IMAGES = 24


def written(root: Path) -> None:
    """The first pictures of the example as COCO has them; the last one's box sticks out, to be rejected."""
    (root / "raw/images").mkdir(parents=True)
    images: list[Any] = []
    annotations: list[Any] = []
    for number, one in zip(range(IMAGES), shapes_boxes().samples, strict=False):
        assert isinstance(one.content, bytes)
        (root / f"raw/images/{number:02}.png").write_bytes(one.content)
        width, height = one.target["size"]
        images.append({"id": number, "file_name": f"{number:02}.png", "width": width, "height": height})
        for box, label in zip(one.target["boxes"], one.target["labels"], strict=True):
            annotations.append({"image_id": number, "category_id": SHAPES.index(label), "bbox": box})
    annotations.append({"image_id": IMAGES - 1, "category_id": 0, "bbox": [90, 0, 50, 10]})
    categories = [{"id": place, "name": name} for place, name in enumerate([*SHAPES, "never seen"])]
    told = {"images": images, "annotations": annotations, "categories": categories}
    (root / "raw/boxes.json").write_text(json.dumps(told))


@pytest.mark.flow
def test_boxes_from_a_file_to_a_registered_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    clone.lay_out(
        tmp_path,
        {
            "task": "object-detection",
            "data": {"source": "coco", "path": "raw", "annotations": "boxes.json"},
            "model": {"pretrained": "toy-vision", "image_size": 64, "max_boxes": 5},
            "validation": {"on_reject": "drop"},
            "training": {"epochs": 1, "batch_size": 8, "seeds": [1, 2]},
        },
    )
    found = clone.run()
    rejected = pd.read_csv(artifacts.validation_dir(clone.NAME) / "rejected.csv")
    assert rejected["id"].tolist() == [f"images/{IMAGES - 1}.png"]
    assert "sticks out of the image" in rejected["reason"][0]
    assert len(data.read_accepted(clone.NAME)) == IMAGES - 1
    assert found["metric"]["name"] == "coco_map"
    assert {one["arm"] for one in found["arms"]} == {"scratch", "frozen", "full"}
    assert {one["name"] for one in found["baselines"]} == {"nothing", "mean_box"}
    row = next(clone.test_rows().itertuples())
    path = artifacts.data_dir(clone.NAME) / str(row.path)
    (said,) = clone.predicted([{"image": base64.b64encode(path.read_bytes()).decode()}])
    assert set(said) == {"boxes", "labels", "scores"}
    assert len(said["boxes"]) == len(said["labels"]) == len(said["scores"]) <= 5
    assert set(said["labels"]) <= set(SHAPES)
    width, height = Image.open(path).size
    for x, y, wide, high in said["boxes"]:
        assert 0 <= x < x + wide <= width + 1e-6
        assert 0 <= y < y + high <= height + 1e-6
    case = tasks.get("object-detection").case(row, said, artifacts.data_dir(clone.NAME))
    assert [content[:4] for _, content in case.pictures] == [b"RIFF"] * 2
