"""Hidden words, and whether one text follows another: BERT's own pretraining."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steps.arms import Arm
from steps.params import Machine, Model
from steps.tasks import Ask, Case, Content, Criterion, Said, Simple
from steps.tasks.of_documents import (
    DocumentSamples,
    Example,
    Ids,
    Measured,
    OfDocuments,
    Totals,
    Unigram,
    check_mask,
    contents_of,
    masked,
    no_words,
    said_of,
    simple,
    tokenised,
    totals,
)

if TYPE_CHECKING:
    from torch import nn

    from steps.data import Samples
    from steps.network import Backbone

# What a pair's label means, as in transformers' BertForNextSentencePrediction.
FOLLOWS, STRANGE = 0, 1
# A sentence ends at a line's end, or at . ! ? and what closes behind them, before a blank and a beginning:
# a capital, a digit, or what opens.
_END = re.compile(r"""\n+|(?<=[.!?])["')\]”’]*\s+(?=["'(\[“‘]?[^\W_a-z])""")


class NextSentencePrediction(OfDocuments):
    """Task `next-sentence-prediction` (Devlin et al., BERT, 2019, 3.1): words and sentences together."""

    name = "next-sentence-prediction"

    def samples(
        self,
        contents: Sequence[Content],
        model: Model,
        pretrained: Path,
        augment: Sequence[str] = (),
        machine: Machine | None = None,
    ) -> SentenceSamples:
        """Pairs of texts with some words hidden, `model.mask_fraction` of them.

        Raises:
            UserError: the tokenizer has no token for a mask.
        """
        assert not augment, augment
        found = SentenceSamples(contents, pretrained, model)
        check_mask(found.vocabulary, self.name)
        return found

    def head(self, backbone: Backbone, classes: list[str], model: Model, arm: Arm) -> nn.Module:
        """BERT's two heads.

        Raises:
            UserError: the backbone cannot tell a first text from a second.
        """
        from steps.tasks.language_heads import SentenceHead, check_pairs

        check_pairs(backbone)
        return SentenceHead(backbone)

    def objective(self, arm: Arm, targets: Any, classes: list[str]) -> Criterion:  # noqa: ANN401 - see Task
        """The sum of both losses."""
        from steps.tasks.language_heads import SentenceLoss

        return SentenceLoss()

    def predict(self, network: nn.Module, samples: Samples, ask: Ask) -> Said:
        """Of each document the sum of both losses, its hidden words, its pairs, and how many were right."""
        from steps.tasks.language_heads import measured_sentences

        assert isinstance(samples, DocumentSamples), type(samples)
        found = totals(network, samples, ask, measured_sentences)
        return _with_pairs(said_of(found, samples.tokenizer), found)

    def scores(self, truths: list[Any], said: Said, classes: list[str]) -> dict[str, NDArray[np.float64]]:
        """Each document's share in the loss, the accuracy over its pairs and over its hidden words."""
        found = super().scores(truths, said, classes)
        rows: list[dict[str, Any]] = [dict(row) for row in said]
        right = [row["pairs_correct"] / row["pairs"] for row in rows]
        return {
            "loss": found["loss"],
            "accuracy": np.array(right, dtype=np.float64),
            "token_accuracy": found["token_accuracy"],
        }

    def baselines(
        self,
        rows: pd.DataFrame,
        classes: list[str],
        folder: Path,
        model: Model | None = None,
        pretrained: Path | None = None,
    ) -> Mapping[str, Simple]:
        """The words' frequencies in train, and that every text follows; without a tokenizer none."""
        if model is None or pretrained is None:
            return {}
        train, test = (
            self.samples(contents_of(rows, split), model, pretrained) for split in ("train", "test")
        )
        unigram = Unigram.of(train)
        about = "how common each word is in the documents of train; every second text follows, at even odds"
        told, found = simple(test, about, lambda some: _even_odds(some, unigram))
        return {"unigram": Simple(about, _with_pairs(told.said, found))}

    def case(self, row: Any, said: dict[str, Any], folder: Path) -> Case:  # noqa: ANN401 - a row of a data frame
        """The document's first pair with what was hidden of it and what was guessed."""
        case = super().case(row, said, folder)
        return Case(
            f"{case.truth}, {said['pairs']} pairs",
            f"{said['correct']} and {said['pairs_correct']} right, loss {said['loss']:.3f}",
            marks=case.marks,
        )


class SentenceSamples(DocumentSamples):
    """Pairs of texts of some sentences each.

    A part of a document is a run of whole sentences that fits; the last may take up a sentence of the one
    before, so as to have two. A part is divided between two sentences by chance. At even odds the second
    text is what follows there, or as many sentences of another document as fit: in training of any, where a
    network is judged of the next one in the order of the documents' hashes. So a document that is added
    changes the strange texts of one other document, and nothing else. A document by itself has no strangers:
    all its texts follow.
    """

    texts = 2

    def _read(self, texts: list[str]) -> tuple[list[NDArray[np.int32]], list[Ids]]:
        found = [self._sentences(text) for text in texts]
        # Of each document, where its sentences begin, and where the last ends.
        self.cuts = [_cuts([len(ids) for ids in sentences], self.room) for sentences in found]
        documents = [np.concatenate(sentences) for sentences in found]
        return documents, [_runs(cuts, self.room) for cuts in self.cuts]

    def _sentences(self, text: str) -> list[NDArray[np.int32]]:
        pieces = [piece for piece in _END.split(text) if piece.strip()]
        found = [ids for ids in tokenised(self.tokenizer, pieces) if len(ids)]
        if not found:
            raise no_words(text)
        return found

    @cached_property
    def ring(self) -> tuple[list[int], dict[int, int]]:
        """Documents of different contents in the order of their hashes, and each hash's place in it."""
        first = {seed: document for document, seed in reversed(list(enumerate(self.seeds)))}
        order = sorted(first)
        return [first[seed] for seed in order], {seed: place for place, seed in enumerate(order)}

    def example(self, document: int, part: int, view: int | None) -> Example:
        """A pair with the words hidden that this view hides."""
        chance = self.chance(document, part, view)
        start, stop = self.bounds[document][part]
        inner = self.cuts[document]
        inner = inner[(inner > start) & (inner < stop)]
        middle = int(chance.choice(inner)) if len(inner) else int(stop)
        ids = self.documents[document].astype(np.int64)
        first, second, label = ids[start:middle], ids[middle:stop], FOLLOWS
        strange = bool(chance.random() < 0.5)
        if strange and len(self.ring[0]) > 1:
            longest = self.lengths[document] - self.vocabulary.around
            second, label = self._stranger(document, longest - len(first), view, chance), STRANGE
        return self._pair(first, second, label, chance)

    def _stranger(self, document: int, room: int, view: int | None, chance: np.random.Generator) -> Ids:
        """Sentences of another document, as many as fit, one at least or its beginning."""
        order, place = self.ring
        step = 1 if view is None else int(chance.integers(1, len(order)))
        other = order[(place[self.seeds[document]] + step) % len(order)]
        cuts = self.cuts[other]
        begin = int(chance.integers(len(cuts) - 1))
        start = cuts[begin]
        ends = cuts[begin + 1 :]
        stop = ends[ends <= start + room].max(initial=min(ends[0], start + room))
        return self.documents[other][start:stop].astype(np.int64)

    def _pair(self, first: Ids, second: Ids, label: int, chance: np.random.Generator) -> Example:
        before, between, _ = self.vocabulary.frame
        true = self.vocabulary.framed(first, second)
        begin = len(before) + len(first) + len(between)
        places = np.concatenate(
            [len(before) + np.arange(len(first)), begin + np.arange(len(second), dtype=np.int64)]
        )
        seen, labels = masked(true, places, self.fraction, self.vocabulary, chance)
        kinds = (np.arange(len(true)) >= begin).astype(np.int64)
        inputs = {"input_ids": seen, "attention_mask": np.ones_like(seen), "token_type_ids": kinds}
        return Example(inputs, {"labels": labels, "follows": label}, true)


def _cuts(lengths: list[int], room: int) -> Ids:
    """Where sentences begin, and where the last ends; two fit into a part, for longer ones are cut.

    Args:
        lengths: tokens of each sentence.
        room: tokens of a part.
    """
    if len(lengths) == 1 and lengths[0] > 1:
        lengths = [lengths[0] - lengths[0] // 2, lengths[0] // 2]
    half = room // 2
    pieces: list[int] = []
    for length in lengths:
        count = -(-length // half)
        pieces += np.diff(np.arange(count + 1) * length // count).tolist()
    return np.concatenate([[0], np.cumsum(pieces)]).astype(np.int64)


def _runs(cuts: Ids, room: int) -> Ids:
    """Runs of whole sentences that fit into a part, each as long as it gets; shape (runs, 2)."""
    found: list[tuple[int, int]] = []
    at, last = 0, len(cuts) - 1
    while at < last:
        end = int(np.searchsorted(cuts, cuts[at] + room, side="right")) - 1
        if end - at == 1 and found:  # one sentence is left
            at -= 1
        found.append((int(cuts[at]), int(cuts[end])))
        at = end
    return np.array(found, dtype=np.int64)


def _even_odds(examples: list[Example], unigram: Unigram) -> Measured:
    """Of hidden words their frequencies; every text follows, at even odds."""
    words = unigram.measure(examples)
    follow = [one.targets["follows"] == FOLLOWS for one in examples]
    pairs = {
        "pair_loss": np.full(len(examples), np.log(2.0)),
        "pairs": np.ones(len(examples)),
        "pairs_correct": np.array(follow, dtype=np.float64),
    }
    return Measured(words.sums | pairs, words.guesses)


def _with_pairs(said: list[dict[str, Any]], found: Totals) -> list[dict[str, Any]]:
    """The mean loss of a document's pairs added to that of its words, and the pairs counted."""
    sums = found.sums
    return [
        row
        | {
            "loss": row["loss"] + float(sums["pair_loss"][place] / sums["pairs"][place]),
            "pairs": int(sums["pairs"][place]),
            "pairs_correct": int(sums["pairs_correct"][place]),
        }
        for place, row in enumerate(said)
    ]
