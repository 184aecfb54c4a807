"""What kinds of tasks there are: the few facts that params, flows and reports need without any library.

The work itself is in `steps/tasks/`, one module for each name here (its dashes are underscores there).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from steps.settings import suggest

Content = Literal["image", "text"]
Gives = Literal["pooled", "tokens", "maps"]
# Of the column with each item's share in a metric, before the metric's name.
SHARE = "share_"


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Attributes:
        content: what a sample is.
        metrics: what a model is judged by, the default first; names of `metrics.METRICS`.
        loss: the metric on validation that says which epoch is best.
        gives: what of the backbone the head stands on.
        data: the values of `data.source` it can be read from.
        classified: every sample is of one of several classes. Only then are there probabilities of classes,
            hence calibration, confusion and suspicious labels, and arms may mix, smooth and weigh labels.
        own_labels: the task makes its labels itself, anew in every epoch; there is nothing to annotate.
        generates: a model of it writes text, token by token.
        told: of a table, the key in `data` that names the column to be predicted.
        fresh: every epoch sees other inputs made of a sample, or a long sample is several rows of a batch.
        columns: of the input of a registered model.
        outputs: the columns it answers with and their types: string, double, integer, a list of one of them
            in brackets, `[[double]]`, or `{double}` for a value of each class.
    """

    content: Content
    metrics: tuple[str, ...]
    loss: str
    gives: Gives
    data: tuple[str, ...]
    columns: tuple[str, ...]
    outputs: Mapping[str, str]
    classified: bool = False
    own_labels: bool = False
    generates: bool = False
    told: Literal["label", "labels", "target"] = "label"
    fresh: bool = False

    @property
    def changes(self) -> bool:
        """Every epoch has inputs or labels of its own: nothing can be computed once for all of them."""
        return self.own_labels or self.fresh


_OF_CLASSES = ("accuracy", "macro_f1", "log_loss")
_CLASS = {"label": "string", "probability": "double", "probabilities": "{double}"}
_LABELS = {"labels": "[string]", "probabilities": "{double}"}
# Of a document: the mean loss of its judged tokens, how many they are, how many were right; and its beginning
# in pieces, each marked as in `tasks.Case`.
_WORDS = {
    "loss": "double", "tokens": "integer", "correct": "integer", "pieces": "[string]", "marks": "[string]",
}  # fmt: skip
_ANY_TABLE = ("package", "folder", "archive", "table")

KINDS: dict[str, Kind] = {
    "image-classification": Kind(
        "image", _OF_CLASSES, "log_loss", "pooled", _ANY_TABLE, ("image",), _CLASS, classified=True
    ),
    "text-classification": Kind(
        "text", _OF_CLASSES, "log_loss", "pooled", _ANY_TABLE, ("text",), _CLASS, classified=True
    ),
    "text-pair-classification": Kind(
        "text", _OF_CLASSES, "log_loss", "pooled", ("package", "table"), ("text", "pair"), _CLASS,
        classified=True,
    ),
    "image-multilabel": Kind(
        "image", ("mean_average_precision", "micro_f1"), "loss", "pooled", ("package", "table"),
        ("image",), _LABELS, told="labels",
    ),
    "text-multilabel": Kind(
        "text", ("mean_average_precision", "micro_f1"), "loss", "pooled", ("package", "table"),
        ("text",), _LABELS, told="labels",
    ),
    "object-detection": Kind(
        "image", ("coco_map", "coco_map_50"), "loss", "maps", ("package", "coco", "yolo", "voc"),
        ("image",), {"boxes": "[[double]]", "labels": "[string]", "scores": "[double]"},
    ),
    "semantic-segmentation": Kind(
        "image", ("mean_iou", "dice"), "loss", "maps", ("package", "masks"),
        ("image",), {"mask": "string", "classes": "[string]", "shares": "{double}"},
    ),
    "token-classification": Kind(
        "text", ("entity_f1", "token_accuracy"), "loss", "tokens", ("package", "conll", "jsonl"), ("text",),
        {"entities": "[string]", "starts": "[integer]", "ends": "[integer]", "texts": "[string]"}, fresh=True,
    ),
    "question-answering": Kind(
        "text", ("squad_f1", "exact_match"), "loss", "tokens", ("package", "squad"), ("text", "pair"),
        {"answer": "string", "score": "double", "start": "integer", "end": "integer"}, fresh=True,
    ),
    "summarisation": Kind(
        "text", ("rouge_l", "rouge_1", "rouge_2"), "loss", "tokens", ("package", "table"),
        ("text",), {"summary": "string"}, generates=True, told="target",
    ),
    "masked-language-model": Kind(
        "text", ("loss", "token_accuracy", "perplexity"), "loss", "tokens", ("package", "documents"),
        ("text",), _WORDS, own_labels=True,
    ),
    "causal-language-model": Kind(
        "text", ("loss", "token_accuracy", "perplexity"), "loss", "tokens", ("package", "documents"),
        ("text",), _WORDS, own_labels=True,
    ),
    "replaced-token-detection": Kind(
        "text", ("loss", "token_accuracy"), "loss", "tokens", ("package", "documents"),
        ("text",), _WORDS, own_labels=True,
    ),
    "next-sentence-prediction": Kind(
        "text", ("loss", "accuracy", "token_accuracy"), "loss", "tokens", ("package", "documents"),
        ("text",), {**_WORDS, "pairs": "integer", "pairs_correct": "integer"}, own_labels=True,
    ),
    "masked-image-model": Kind(
        "image", ("loss", "psnr"), "loss", "tokens", ("package", "images"),
        ("image",), {"loss": "double", "psnr": "double", "masked": "string", "reconstructed": "string"},
        own_labels=True,
    ),
    # A task of your own: its line goes here.
}  # fmt: skip


def named(name: str) -> str:
    """The name, which is that of a kind.

    Raises:
        ValueError: it is none; the message names the nearest.
    """
    if name not in KINDS:
        raise ValueError(f"{name!r} is no task{suggest(name, KINDS)}")
    return name
