"""The next word of documents, to be guessed from those before it: GPT's pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steps.arms import Arm
from steps.errors import DataError
from steps.params import Machine, Model
from steps.tasks import Content
from steps.tasks.masked_language_model import MaskedLanguageModel
from steps.tasks.of_documents import IGNORED, DocumentSamples, Example, Ids, Run, joined

if TYPE_CHECKING:
    from torch import nn

    from steps.network import Backbone


class CausalLanguageModel(MaskedLanguageModel):
    """Task `causal-language-model` (Radford et al., Language Models are Unsupervised ..., 2019).

    Loss, metrics and baseline are those of hidden words; here every word is one, and a network sees only what
    stands before it.
    """

    name = "causal-language-model"

    def samples(
        self,
        contents: Sequence[Content],
        model: Model,
        pretrained: Path,
        augment: Sequence[str] = (),
        machine: Machine | None = None,
    ) -> CausalSamples:
        """Documents with the next word of each as its label."""
        assert not augment, augment
        return CausalSamples(contents, pretrained, model)

    def head(self, backbone: Backbone, classes: list[str], model: Model, arm: Arm) -> nn.Module:
        """The embeddings' own matrix, and a bias.

        Raises:
            UserError: the backbone's tokens see those behind them.
        """
        from steps.tasks.language_heads import WordHead, check_causal

        check_causal(backbone)
        return WordHead(backbone, transform=False)


class CausalSamples(DocumentSamples):
    """Documents with, at each place, the next word as its label."""

    # So that the first word has something to be guessed from.
    begins = True

    def example(self, document: int, part: int, view: int | None) -> Example:
        """A part as it is, in every view.

        Raises:
            DataError: the document is of one token alone, and nothing stands before it.
        """
        true = self.vocabulary.framed(self.part(document, part))
        if len(true) < 2:
            raise DataError("a document has one token alone, so that none follows another; remove it")
        labels = np.append(true[1:], IGNORED)
        return Example({"input_ids": true, "attention_mask": np.ones_like(true)}, {"labels": labels}, true)

    def runs(self, example: Example, guesses: Ids) -> list[Run]:
        """A part in runs; only the words that were guessed are marked, for every word was asked for."""
        right = [False, *(guesses[:-1] == example.true[1:]).tolist()]
        marks = ["right" if one else "" for one in right]
        return joined(zip(example.true.tolist(), marks, strict=True))
