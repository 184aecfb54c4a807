"""The work that every side is given: the same samples, weights, seeds and budget.

Images are scikit-learn's digits, scaled to 64 x 64 pixels, for EfficientNet-Lite0. Texts are paragraphs of
BBC articles (no article is in two splits), for MiniLM: of natural length, unlike whole articles, nine in ten
of which would be cut at the limit and so be all alike. Everything comes with the installed packages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from steps import artifacts, data, fetch, network, params, tasks
from steps.data import Samples
from steps.params import Model
from steps.raw import package
from steps.tasks import Content

ROOT = Path(__file__).resolve().parents[2]
Kind = Literal["images", "texts"]
Tune = Literal["head", "top half", "all"]
SLUGS = {"images": "efficientnet-lite0", "texts": "minilm-l6"}
SPLITS = ("train", "validation", "test")
# Who is drawn into which split; the same in every repeat.
DRAW = 20
DROPOUT = 0.1


@dataclass(frozen=True)
class Work:
    """What is to be trained, on how much, and for how long.

    Attributes:
        kind: of the samples.
        tune: what trains.
        sizes: samples of train, validation and test.
        epochs: passes over train; validation is judged after each.
        batch_size: samples a step.
        rates: learning rates of the head and of the backbone.
        max_tokens: where texts are cut.
        image_size: side of an image in pixels.
    """

    kind: Kind
    tune: Tune
    sizes: tuple[int, int, int]
    epochs: int
    batch_size: int
    rates: tuple[float, float]
    max_tokens: int = 256
    image_size: int = 64

    @property
    def slug(self) -> str:
        """Names the pretrained weights."""
        return SLUGS[self.kind]

    @property
    def pretrained(self) -> Path:
        """Where they are."""
        return artifacts.pretrained_dir(self.slug)


@dataclass(frozen=True)
class Part:
    """A split: images decoded or texts tokenised, and the class index of each, shape (samples,)."""

    samples: Samples
    labels: Tensor
    hashes: list[str]


@dataclass(frozen=True)
class Given:
    """All splits, in memory."""

    train: Part
    validation: Part
    test: Part
    classes: int


@dataclass(frozen=True)
class Outcome:
    """What a side took, and how good its model is.

    Attributes:
        seconds: what the row compares.
        accuracy: on the test split, 0 to 1; outside of the seconds.
        note: what is to be said of the run.
    """

    seconds: float
    accuracy: float
    note: str = ""


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.started = perf_counter()

    def read(self) -> float:
        """So far."""
        return perf_counter() - self.started


def fetch_weights() -> None:
    """Put both pretrained backbones into the present folder, as the pipeline's `fetch` does."""
    for slug, reference in params.load(ROOT / "params.yaml").pretrained.items():
        if slug in SLUGS.values():
            settings = artifacts.pretrained_settings_file(slug)
            artifacts.write_json(settings, reference.model_dump(mode="json"))
            fetch.fetch(slug)


def give(work: Work) -> Given:
    """The samples of a work."""
    drawn = dict(zip(SPLITS, _drawn(work), strict=True))
    names = sorted({label for part in drawn.values() for _, label in part})
    return Given(**{split: _part(work, part, names) for split, part in drawn.items()}, classes=len(names))


def _drawn(work: Work) -> Iterator[list[tuple[Content, str]]]:
    """Contents and labels of each split."""
    groups = list(_digits() if work.kind == "images" else _paragraphs())
    order = iter(np.random.default_rng(DRAW).permutation(len(groups)).tolist())
    for size in work.sizes:
        part: list[tuple[Content, str]] = []
        while len(part) < size:
            part += groups[next(order)]
        yield part[:size]


def _digits() -> Iterator[list[tuple[Content, str]]]:
    for sample in package.read("digits").samples:
        assert sample.content is not None
        assert sample.label is not None
        yield [(sample.content, sample.label)]


def _paragraphs() -> Iterator[list[tuple[Content, str]]]:
    """The paragraphs of each article, its headline left out."""
    for sample in package.read("bbc-news").samples:
        assert isinstance(sample.content, str)
        assert sample.label is not None
        found = [part.strip() for part in sample.content.split("\n\n")[1:]]
        yield [(part, sample.label) for part in found if part]


def _part(work: Work, drawn: list[tuple[Content, str]], names: list[str]) -> Part:
    contents = [content for content, _ in drawn]
    task = tasks.get("image-classification" if work.kind == "images" else "text-classification")
    model = Model(pretrained=work.slug, image_size=work.image_size, max_tokens=work.max_tokens)
    samples = task.samples(contents, model, work.pretrained)
    samples.batch(list(range(len(samples))))  # decoded now, once
    raw = [content.encode() if isinstance(content, str) else content for content in contents]
    hashes = [hashlib.sha256(one).hexdigest() for one in raw if isinstance(one, bytes)]
    labels = torch.tensor([names.index(label) for _, label in drawn])
    return Part(samples, labels, hashes)


# ---------------------------------------------------------------------------------------- models of rivals


class PlainImages(nn.Module):
    """A timm model and a head, as timm makes it."""

    def __init__(self, work: Work, classes: int) -> None:
        import timm
        from safetensors.torch import load_file

        super().__init__()
        name = artifacts.read_json(work.pretrained / "architecture.json", "fetch")["name"]
        self.backbone = timm.create_model(name, pretrained=False, num_classes=0)
        self.backbone.load_state_dict(load_file(work.pretrained / "model.safetensors"))
        self.head = network.build_head(int(self.backbone.num_features), classes, DROPOUT)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits, shape (batch, classes)."""
        return self.head(self.backbone(pixel_values))  # type: ignore[no-any-return]


class PlainTexts(nn.Module):
    """A BertModel as transformers makes it, the mean over the real tokens, and a head."""

    def __init__(self, work: Work, classes: int) -> None:
        from safetensors.torch import load_file
        from transformers import BertConfig, BertModel

        super().__init__()
        config = artifacts.read_json(work.pretrained / "architecture.json", "fetch")["config"]
        self.backbone = BertModel(BertConfig(**config), add_pooling_layer=False)
        self.backbone.load_state_dict(load_file(work.pretrained / "model.safetensors"))
        self.head = network.build_head(int(self.backbone.config.hidden_size), classes, DROPOUT)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits, shape (batch, classes)."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * mask).sum(dim=1) / mask.sum(dim=1))  # type: ignore[no-any-return]


def plain(work: Work, classes: int, seed: int) -> PlainImages | PlainTexts:
    """The network in its makers' form, its head drawn from the seed."""
    made = PlainImages(work, classes) if work.kind == "images" else PlainTexts(work, classes)
    torch.manual_seed(seed)
    made.head[1].reset_parameters()  # type: ignore[operator]
    return made


# ------------------------------------------------------------------------------------- outside of the clock

Logits = Callable[[list[int]], Tensor]


def warm_up(logits: Logits, labels: Tensor, model: nn.Module) -> None:
    """One forward and backward pass, so that no side pays for what a process does once; nothing is learnt."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    indices = list(range(8))
    functional.cross_entropy(logits(indices), labels[indices]).backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    model.load_state_dict(state)


@torch.inference_mode()
def accuracy(logits: Logits, part: Part, model: nn.Module) -> float:
    """Share of a split that a model tells right."""
    model.eval()
    right = 0
    for indices in data.by_length(part.samples):
        right += int((logits(indices).argmax(dim=1) == part.labels[indices]).sum())
    return right / len(part.labels)
