"""Hidden words of documents, to be guessed from both sides: BERT's pretraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from steps.arms import Arm
from steps.params import Machine, Model
from steps.tasks import Ask, Content, Criterion, Said, Simple
from steps.tasks.of_documents import (
    DocumentSamples,
    Example,
    OfDocuments,
    Unigram,
    check_mask,
    contents_of,
    masked,
    said_of,
    simple,
    totals,
)

if TYPE_CHECKING:
    from torch import nn

    from steps.data import Samples
    from steps.network import Backbone


class MaskedLanguageModel(OfDocuments):
    """Task `masked-language-model` (Devlin et al., BERT, 2019), without pairs of sentences.

    Every view hides other words (Liu et al., RoBERTa, 2019).
    """

    name = "masked-language-model"

    def samples(
        self,
        contents: Sequence[Content],
        model: Model,
        pretrained: Path,
        augment: Sequence[str] = (),
        machine: Machine | None = None,
    ) -> DocumentSamples:
        """Documents with some words hidden, `model.mask_fraction` of them.

        Raises:
            UserError: the tokenizer has no token for a mask.
        """
        assert not augment, augment
        found = MaskedSamples(contents, pretrained, model)
        check_mask(found.vocabulary, self.name)
        return found

    def head(self, backbone: Backbone, classes: list[str], model: Model, arm: Arm) -> nn.Module:
        """BERT's head on the embeddings' own matrix."""
        from steps.tasks.language_heads import WordHead

        return WordHead(backbone, transform=True)

    def objective(self, arm: Arm, targets: Any, classes: list[str]) -> Criterion:  # noqa: ANN401 - see Task
        """Cross-entropy of the hidden words."""
        from steps.tasks.language_heads import WordLoss

        return WordLoss()

    def predict(self, network: nn.Module, samples: Samples, ask: Ask) -> Said:
        """Of each document the loss of its hidden words, how many they are, and how many were guessed."""
        from steps.tasks.language_heads import measured_words

        assert isinstance(samples, DocumentSamples), type(samples)
        return said_of(totals(network, samples, ask, measured_words), samples.tokenizer)

    def baselines(
        self,
        rows: pd.DataFrame,
        classes: list[str],
        folder: Path,
        model: Model | None = None,
        pretrained: Path | None = None,
    ) -> Mapping[str, Simple]:
        """The words' frequencies in the documents of train; without a tokenizer none."""
        if model is None or pretrained is None:
            return {}
        train, test = (
            self.samples(contents_of(rows, split), model, pretrained) for split in ("train", "test")
        )
        about = "how common each word is in the documents of train, whatever stands around it"
        return {"unigram": simple(test, about, Unigram.of(train).measure)[0]}


class MaskedSamples(DocumentSamples):
    """Documents with some words hidden."""

    def example(self, document: int, part: int, view: int | None) -> Example:
        """A part with the words hidden that this view hides."""
        text = self.part(document, part)
        true = self.vocabulary.framed(text)
        start = len(self.vocabulary.frame[0])
        seen, labels = masked(
            true,
            np.arange(start, start + len(text)),
            self.fraction,
            self.vocabulary,
            self.chance(document, part, view),
        )
        return Example({"input_ids": seen, "attention_mask": np.ones_like(seen)}, {"labels": labels}, true)
