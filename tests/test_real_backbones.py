"""The two packaged backbones, for real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.data import ImageNetInfo
from torch import Tensor

from steps import artifacts, freezing, loop, network, params, tasks
from steps.data import Batches
from steps.fetch import fetch, match
from steps.loop import Fed, Recipe, Stage
from steps.objective import Objective
from steps.params import Arm, Model, Training
from steps.references import PackageWeights
from steps.sources import package

pytestmark = pytest.mark.slow
CHECKED = params.load(Path(__file__).resolve().parent.parent / "params.yaml")
ARM = Arm(learning_rate=0.005, backbone_learning_rate=0.001)


@pytest.fixture(scope="module", autouse=True)
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder that both backbones were fetched into."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("clone"))
        for slug, reference in CHECKED.pretrained.items():
            artifacts.write_json(artifacts.pretrained_settings_file(slug), reference.model_dump(mode="json"))
            fetch(slug)
        yield


def photos() -> list[bytes]:
    """scikit-learn's two: a Chinese temple, and a flower."""
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    return [(folder / name).read_bytes() for name in ("china.jpg", "flower.jpg")]


def test_tensors_matched_by_order_know_imagenet(tmp_path: Path) -> None:
    """With its original classifier the network names what is in two photos."""
    reference = CHECKED.pretrained["efficientnet-lite0"]
    assert isinstance(reference, PackageWeights)
    found = package.read(reference, tmp_path)
    model = timm.create_model(reference.architecture, pretrained=False)
    model.load_state_dict(match(found, model, "here")[0])
    samples = tasks.get("image-classification").samples(
        photos(),
        Model(pretrained="efficientnet-lite0", image_size=224),
        artifacts.pretrained_dir("efficientnet-lite0"),
    )
    with torch.inference_mode():
        logits = model.eval()(samples.batch([0, 1]))
    names = ImageNetInfo()
    best = [{names.index_to_description(int(at)) for at in row.topk(3).indices} for row in logits]
    assert any("palace" in name or "monastery" in name or "stupa" in name for name in best[0]), best[0]
    assert any("daisy" in name or "bee" in name or "flower" in name for name in best[1]), best[1]


@pytest.mark.parametrize("task", ["image-classification", "text-classification"])
def test_same_seed_same_weights(task: str) -> None:
    slug = "efficientnet-lite0" if task == "image-classification" else "minilm-l6"
    settings = Model(pretrained=slug, image_size=32, max_tokens=12)
    folder = artifacts.pretrained_dir(slug)
    contents = (
        photos() * 3 if slug == "efficientnet-lite0" else ["a temple by a lake", "a flower in bloom"] * 3
    )
    labels = torch.tensor([0, 1] * 3)

    def trained() -> dict[str, Tensor]:
        network.prepare_device()
        batches = Batches(tasks.get(task).samples(contents, settings, folder), labels, 4)
        torch.manual_seed(5)
        model = network.classifier(network.build_backbone(folder, pretrained=True), 2, 0.1)
        stage = Stage(1, lambda: freezing.parameter_groups(model, ARM), lambda: Fed(batches, batches))
        recipe = Recipe(ARM, Training(epochs=2, batch_size=4), Objective(ARM, labels, 2))
        loop.fit(model, [stage], recipe, seed=5, log=lambda values, step: None)
        return dict(model.state_dict())

    first, second = trained(), trained()
    assert network.state_sha256(first) == network.state_sha256(second)
    before = network.build_backbone(folder, pretrained=True).model.state_dict()
    assert not np.array_equal(
        next(iter(before.values())).numpy(), first[f"backbone.model.{next(iter(before))}"].numpy()
    ), "nothing was trained"


def test_texts_of_one_topic_are_nearer() -> None:
    """Mean pooling gives the sentence embeddings that MiniLM was trained for."""
    folder = artifacts.pretrained_dir("minilm-l6")
    texts = [
        "The striker scored twice.",
        "The goalkeeper saved a penalty.",
        "Shares fell as the bank warned of losses.",
    ]
    samples = tasks.get("text-classification").samples(texts, Model(pretrained="minilm-l6"), folder)
    backbone = network.build_backbone(folder, pretrained=True).eval()
    with torch.inference_mode():
        found = torch.nn.functional.normalize(backbone(samples.batch([0, 1, 2])), dim=1)
    similar = found @ found.T
    assert similar[0, 1] > similar[0, 2] + 0.1
