"""Words of documents that were replaced, to be found: ELECTRA's pretraining, with a simpler generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steps.arms import Arm
from steps.params import Machine, Model
from steps.tasks import Ask, Content, Criterion, Said, Simple
from steps.tasks.of_documents import (
    DocumentSamples,
    Example,
    Ids,
    Measured,
    OfDocuments,
    Run,
    contents_of,
    joined,
    said_of,
    simple,
    totals,
)

if TYPE_CHECKING:
    from torch import nn

    from steps.data import Samples
    from steps.network import Backbone


class ReplacedTokenDetection(OfDocuments):
    """Task `replaced-token-detection` (Clark et al., ELECTRA, 2020).

    There a small network that learns beside the large one draws the replacements. Here they are drawn from
    the document's own words, each as often as it occurs there: they fit the topic and not the place. So every
    arm is judged by the same replacements, which it would not be with a generator of its own, and the
    registered model needs none.
    """

    name = "replaced-token-detection"

    def samples(
        self,
        contents: Sequence[Content],
        model: Model,
        pretrained: Path,
        augment: Sequence[str] = (),
        machine: Machine | None = None,
    ) -> ReplacedSamples:
        """Documents with some words replaced, `model.mask_fraction` of them."""
        assert not augment, augment
        return ReplacedSamples(contents, pretrained, model)

    def head(self, backbone: Backbone, classes: list[str], model: Model, arm: Arm) -> nn.Module:
        """ELECTRA's discriminator."""
        from steps.tasks.language_heads import TokenHead

        return TokenHead(backbone)

    def objective(self, arm: Arm, targets: Any, classes: list[str]) -> Criterion:  # noqa: ANN401 - see Task
        """Binary cross-entropy of every token."""
        from steps.tasks.language_heads import TokenLoss

        return TokenLoss()

    def predict(self, network: nn.Module, samples: Samples, ask: Ask) -> Said:
        """Of each document the loss of its tokens, how many they are, and of how many the truth was said."""
        from steps.tasks.language_heads import measured_tokens

        assert isinstance(samples, DocumentSamples), type(samples)
        return said_of(totals(network, samples, ask, measured_tokens), samples.tokenizer)

    def baselines(
        self,
        rows: pd.DataFrame,
        classes: list[str],
        folder: Path,
        model: Model | None = None,
        pretrained: Path | None = None,
    ) -> Mapping[str, Simple]:
        """Every word is an original, as surely as in train; without a tokenizer none."""
        if model is None or pretrained is None:
            return {}
        train, test = (
            self.samples(contents_of(rows, split), model, pretrained) for split in ("train", "test")
        )
        parts = train.judged()
        labels = [_labels(one) for one in parts.examples(list(range(len(parts))))]
        share = float(np.concatenate(labels).mean())
        about = "every token is an original, with the share of originals in the documents of train"
        return {"always original": simple(test, about, lambda some: _always_original(some, share))[0]}


class ReplacedSamples(DocumentSamples):
    """Documents with some words replaced by others of the same document."""

    def example(self, document: int, part: int, view: int | None) -> Example:
        """A part with the words replaced that this view replaces.

        Where chance draws the very word that stood there, it counts as an original.
        """
        text = self.part(document, part)
        chance = self.chance(document, part, view)
        places = chance.choice(len(text), max(1, round(self.fraction * len(text))), replace=False)
        seen = text.copy()
        seen[places] = chance.choice(self.documents[document], len(places))
        true, seen = self.vocabulary.framed(text), self.vocabulary.framed(seen)
        labels = (seen != true).astype(np.int64)
        return Example({"input_ids": seen, "attention_mask": np.ones_like(seen)}, {"labels": labels}, true)

    def runs(self, example: Example, guesses: Ids) -> list[Run]:
        """A part as it was shown, in runs: replaced words that were found or missed, and false alarms."""
        kinds = {(1, 1): "right", (1, 0): "missed", (0, 1): "wrong", (0, 0): ""}
        marks = [kinds[pair] for pair in zip(_labels(example).tolist(), guesses.tolist(), strict=True)]
        return joined(zip(example.inputs["input_ids"].tolist(), marks, strict=True))


def _labels(example: Example) -> Ids:
    return np.asarray(example.targets["labels"])


def _always_original(examples: list[Example], share: float) -> Measured:
    tokens: NDArray[np.float64] = np.array([len(one.true) for one in examples], dtype=np.float64)
    replaced = np.array([_labels(one).sum() for one in examples], dtype=np.float64)
    sums = {
        "loss": -(replaced * np.log(share) + (tokens - replaced) * np.log1p(-share)),
        "tokens": tokens,
        "correct": tokens - replaced,
    }
    return Measured(sums, np.zeros((len(examples), int(tokens.max())), dtype=np.int64))
