"""What all tasks share that make their own labels out of documents: parts, views, totals, metrics.

A sample is a document, however long. It is cut into parts that a network can take:

* In training an epoch sees one part of every document, another one (perhaps) and other masks in each epoch.
  Both depend on the document's content and on the number of the view alone.
* Where a network is judged or predicts, it sees all parts of a document up to `PARTS`, evenly spread beyond
  that. Their masks depend on the content alone: data that are added change no mask of others.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steps import data, metrics
from steps.errors import DataError, UserError
from steps.params import Model
from steps.tasks import Ask, Case, Content, Said, Simple
from steps.tasks.of_texts import BLOCK, OfTexts

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

# Parts of a document that are judged, at most.
PARTS = 8
# As torch's cross-entropy knows it: a place without a label.
IGNORED = -100
# The random numbers that choose a part are those of a part that no document has.
DRAW = 2**32 - 1
Ids = NDArray[np.int64]
# Ids of a run of tokens, and what a reader is to think of it.
Run = tuple[list[int], str]


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer knows besides words.

    Attributes:
        frame: ids before a text and behind it; of two texts before, between and behind.
        padding: the id that fills up a batch.
        mask: the id that stands for a hidden word; None where there is none.
        words: all ids that are no special ones, ascending.
    """

    frame: tuple[Ids, ...]
    padding: int
    mask: int | None
    words: Ids

    @property
    def around(self) -> int:
        """How many ids the frame takes."""
        return sum(map(len, self.frame))

    def framed(self, *texts: Ids) -> Ids:
        """The ids of texts, with the frame around them."""
        pieces = [self.frame[0]]
        for text, behind in zip(texts, self.frame[1:], strict=True):
            pieces += [text, behind]
        return np.concatenate(pieces)


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, texts: int = 1, *, begins: bool = False) -> Vocabulary:
    """What a tokenizer knows besides words.

    Args:
        tokenizer: a fast one.
        texts: how many stand in a frame, one or two.
        begins: where the tokenizer puts nothing before a text, its token for a beginning is put there.
    """
    written = tokenizer(*["a"] * texts, return_special_tokens_mask=True)
    frame: list[list[int]] = [[]]
    special = True
    for one, is_special in zip(written["input_ids"], written["special_tokens_mask"], strict=True):
        if is_special:
            frame[-1].append(one)
        elif special:  # a text begins
            frame.append([])
        special = bool(is_special)
    while len(frame) <= texts:  # nothing stands behind a text, or between two
        frame.append([])
    if begins and not frame[0] and tokenizer.bos_token_id is not None:
        frame[0] = [int(tokenizer.bos_token_id)]
    return Vocabulary(
        tuple(np.array(ids, dtype=np.int64) for ids in frame),
        int(tokenizer.pad_token_id or 0),
        None if tokenizer.mask_token_id is None else int(tokenizer.mask_token_id),
        np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids),
    )


@dataclass(frozen=True)
class Example:
    """A part of a document as a network sees it.

    Attributes:
        inputs: by the names of the backbone's inputs, shape (tokens,) each.
        targets: shape (tokens,) each, or whole numbers.
        true: the ids as they were written, shape (tokens,).
    """

    inputs: dict[str, Ids]
    targets: dict[str, Ids | int]
    true: Ids


class DocumentSamples:
    """Documents as token batches; `example` says what is hidden and what is to be learnt.

    Attributes:
        lengths: the most tokens that a view of each document has.
        vocabulary: of the tokenizer.
    """

    # Texts in a frame.
    texts = 1
    # What fills a batch up, by name; where nothing is said: nothing to be learnt.
    fill: Mapping[str, int] = {"labels": IGNORED, "token_type_ids": 0, "attention_mask": 0}
    begins = False

    def __init__(self, contents: Sequence[Content], pretrained: Path, model: Model) -> None:
        # A fast tokenizer's threads and a forked process do not go together; it warns unless told.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoTokenizer

        texts = [content for content in contents if isinstance(content, str) and content.strip()]
        if len(texts) < len(contents):
            raise DataError("a document is empty, or is no text")
        self.tokenizer = AutoTokenizer.from_pretrained(pretrained, local_files_only=True)
        self.vocabulary = vocabulary_of(self.tokenizer, self.texts, begins=self.begins)
        self.room = model.max_tokens - self.vocabulary.around
        self.fraction = model.mask_fraction
        if self.room < 2:
            raise UserError(
                f"model.max_tokens: {model.max_tokens} leaves no room for words beside the "
                f"{self.vocabulary.around} tokens around them; raise it"
            )
        self.documents, self.bounds = self._read(texts)
        self.seeds = [_seed(ids) for ids in self.documents]
        longest = [int(np.diff(bounds).max()) for bounds in self.bounds]
        self.lengths: list[int] = [length + self.vocabulary.around for length in longest]
        self._last: tuple[tuple[tuple[int, ...], int | None], list[Example]] | None = None

    def __len__(self) -> int:
        return len(self.documents)

    def _read(self, texts: list[str]) -> tuple[list[NDArray[np.int32]], list[Ids]]:
        """The ids of each document, and where its parts begin and end, shape (parts, 2)."""
        documents = tokenised(self.tokenizer, texts)
        for text, ids in zip(texts, documents, strict=True):
            if not len(ids):
                raise no_words(text)
        return documents, [_even_parts(len(ids), self.room) for ids in documents]

    def example(self, document: int, part: int, view: int | None) -> Example:
        """A part of a document, with what is hidden of it in a view."""
        raise NotImplementedError

    def runs(self, example: Example, guesses: Ids) -> list[Run]:
        """A part in runs: words that were guessed are right, others stand behind what was guessed wrongly."""
        labels = np.asarray(example.targets["labels"])
        marked: list[tuple[int, str]] = []
        for truth, label, guess in zip(example.true.tolist(), labels.tolist(), guesses.tolist(), strict=True):
            if label == IGNORED:
                marked.append((truth, ""))
            elif guess == label:
                marked.append((truth, "right"))
            else:
                marked += [(guess, "wrong"), (truth, "missed")]
        return joined(marked)

    def part(self, document: int, part: int) -> Ids:
        """The ids of a part, without a frame."""
        start, stop = self.bounds[document][part]
        return self.documents[document][start:stop].astype(np.int64)

    def chance(self, document: int, part: int, view: int | None) -> np.random.Generator:
        """Random numbers that a part in a view has for itself."""
        return np.random.default_rng([self.seeds[document], 0 if view is None else view + 1, part])

    def batch(self, indices: list[int], view: int | None = None) -> dict[str, Tensor]:
        """A part of each document at these places, tensors of shape (batch, tokens), int64."""
        return self.inputs(self._drawn(indices, view))

    def targets(self, indices: list[int], view: int | None = None) -> dict[str, Tensor]:
        """What is to be learnt of `batch` with the same arguments."""
        return self.labels(self._drawn(indices, view))

    def inputs(self, examples: list[Example]) -> dict[str, Tensor]:
        """Of examples, padded."""
        return self._padded([one.inputs for one in examples])

    def labels(self, examples: list[Example]) -> dict[str, Tensor]:
        """Of examples, padded."""
        return self._padded([one.targets for one in examples])

    def judged(self) -> Parts:
        """The parts of all documents that a network is judged by."""
        places = [
            (document, int(part))
            for document, bounds in enumerate(self.bounds)
            for part in _spread(len(bounds), PARTS)
        ]
        return Parts(self, places)

    def _drawn(self, indices: list[int], view: int | None) -> list[Example]:
        """One part of each; inputs and targets are asked for one after the other, and made once."""
        asked = (tuple(indices), view)
        if self._last is None or self._last[0] != asked:
            examples = []
            for document in indices:
                part = int(self.chance(document, DRAW, view).integers(len(self.bounds[document])))
                examples.append(self.example(document, part, view))
            self._last = asked, examples
        return self._last[1]

    def _padded(self, rows: Sequence[Mapping[str, Ids | int]]) -> dict[str, Tensor]:
        import torch

        found = {}
        for name, first in rows[0].items():
            if isinstance(first, int):
                found[name] = torch.tensor([row[name] for row in rows])
                continue
            values = [np.asarray(row[name]) for row in rows]
            full = np.full(
                (len(rows), max(map(len, values))), self.fill.get(name, self.vocabulary.padding), np.int64
            )
            for row, value in zip(full, values, strict=True):
                row[: len(value)] = value
            found[name] = torch.from_numpy(full)
        return found


@dataclass(frozen=True)
class Parts:
    """Parts of documents as samples of their own.

    Attributes:
        samples: the documents.
        places: document and part.
    """

    samples: DocumentSamples
    places: list[tuple[int, int]]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each part."""
        around = self.samples.vocabulary.around
        return [len(self.samples.part(*place)) + around for place in self.places]

    @cached_property
    def owners(self) -> Ids:
        """The document of each part."""
        return np.array([document for document, _ in self.places], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.places)

    def examples(self, indices: list[int]) -> list[Example]:
        """As they are judged."""
        return [self.samples.example(*self.places[index], None) for index in indices]

    def batch(self, indices: list[int], view: int | None = None) -> dict[str, Tensor]:
        """The inputs of parts."""
        assert view is None, "parts are for judging"
        return self.samples.inputs(self.examples(indices))


@dataclass(frozen=True)
class OwnTargets:
    """Targets that the samples make themselves."""

    samples: DocumentSamples

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: list[int], view: int | None = None) -> dict[str, Tensor]:
        """What is to be learnt of the samples' batch with the same arguments."""
        return self.samples.targets(indices, view)


def tokenised(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[NDArray[np.int32]]:
    """The ids of each text, without a frame and uncut; `[MASK]` in a text is no mask but signs and a word."""
    found: list[NDArray[np.int32]] = []
    for at in range(0, len(texts), BLOCK):
        block = tokenizer(
            texts[at : at + BLOCK], add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        found += [np.array(ids, dtype=np.int32) for ids in block["input_ids"]]
    return found


def no_words(text: str) -> DataError:
    """Of a text the tokenizer leaves nothing."""
    return DataError(f"the tokenizer finds no word in the document that begins with {text[:40]!r}; remove it")


def _even_parts(tokens: int, room: int) -> Ids:
    """Where as few parts as fit begin and end, each as long as the others: no part is a mere rest."""
    parts = -(-tokens // room)
    cuts = np.arange(parts + 1, dtype=np.int64) * tokens // parts
    return np.stack([cuts[:-1], cuts[1:]], axis=1)


def _spread(parts: int, at_most: int) -> Ids:
    """The places of at most so many parts, evenly spread, the first among them."""
    count = min(parts, at_most)
    return np.arange(count, dtype=np.int64) * parts // count


def _seed(ids: NDArray[np.int32]) -> int:
    return int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little")


def masked(
    ids: Ids, open_places: Ids, fraction: float, vocabulary: Vocabulary, chance: np.random.Generator
) -> tuple[Ids, Ids]:
    """Hide some tokens as BERT does; at least one.

    Of the chosen places 80 % become the mask, 10 % any word, 10 % stay. Devlin et al., BERT, 2019, 3.1.

    Args:
        ids: shape (tokens,).
        open_places: that may be chosen.
        fraction: of them, that is chosen.
        vocabulary: has a mask.
        chance: random numbers.

    Returns:
        What the network sees, and labels: the ids at the chosen places, elsewhere `IGNORED`.
    """
    assert vocabulary.mask is not None
    count = max(1, round(fraction * len(open_places)))
    places = chance.choice(open_places, count, replace=False)
    labels = np.full_like(ids, IGNORED)
    labels[places] = ids[places]
    way, words = chance.random(count), chance.choice(vocabulary.words, count)
    seen = ids.copy()
    seen[places] = np.where(way < 0.8, vocabulary.mask, np.where(way < 0.9, words, ids[places]))
    return seen, labels


def check_mask(vocabulary: Vocabulary, task: str) -> None:
    """There is a token for a mask.

    Raises:
        UserError: there is none.
    """
    if vocabulary.mask is None:
        raise UserError(
            f"{task} needs a tokenizer with a token for hidden words, and that of the model has none: take "
            "an encoder such as BERT, or the task causal-language-model"
        )


# --------------------------------------------------------------------------------------------------- judging


@dataclass(frozen=True)
class Measured:
    """What came of a batch of parts.

    Attributes:
        sums: of each part, shape (parts,): `loss` and `tokens` and `correct`, perhaps more.
        guesses: what was said of each token, shape (parts, tokens); see `DocumentSamples.runs`.
    """

    sums: dict[str, NDArray[np.float64]]
    guesses: Ids


# What a network gave for some parts, and their targets on its device.
Measure = Callable[[Any, "dict[str, Tensor]"], Measured]


@dataclass
class Totals:
    """What came of documents.

    Attributes:
        sums: of each document, shape (documents,).
        runs: of the first part of each document.
    """

    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    runs: dict[int, list[Run]] = field(default_factory=dict)

    def add(self, parts: Parts, places: list[int], examples: list[Example], measured: Measured) -> None:
        """Count a batch of parts in."""
        owners = parts.owners[places]
        for name, values in measured.sums.items():
            total = self.sums.setdefault(name, np.zeros(len(parts.samples)))
            np.add.at(total, owners, values)
        for place, example, guesses in zip(places, examples, measured.guesses, strict=True):
            document, part = parts.places[place]
            if part == 0:
                self.runs[document] = parts.samples.runs(example, guesses[: len(example.true)])


def totals(network: nn.Module, samples: DocumentSamples, ask: Ask, measure: Measure) -> Totals:
    """Run a network over all parts that documents are judged by."""
    from steps import inference

    parts, found = samples.judged(), Totals()
    for places, outputs in inference.outputs(
        network, parts, ask.device, cut=ask.cut, precision=ask.precision
    ):
        examples = parts.examples(places)
        targets = {name: one.to(ask.device) for name, one in samples.labels(examples).items()}
        found.add(parts, places, examples, measure(outputs, targets))
    return found


def said_of(found: Totals, tokenizer: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - of transformers
    """Totals as a registered model tells them: a document's mean loss, its tokens, and its beginning."""
    said = []
    for document in range(len(found.sums["tokens"])):
        pieces = [(written(tokenizer, ids), kind) for ids, kind in found.runs.get(document, [])]
        said.append(
            {
                "loss": float(found.sums["loss"][document] / found.sums["tokens"][document]),
                "tokens": int(found.sums["tokens"][document]),
                "correct": int(found.sums["correct"][document]),
                "pieces": [piece for piece, _ in pieces],
                "marks": [kind for _, kind in pieces],
            }
        )
    return said


def written(tokenizer: Any, ids: list[int]) -> str:  # noqa: ANN401 - of transformers
    """Ids as text, a blank before a new word."""
    text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    first = str(tokenizer.convert_ids_to_tokens(ids[:1])[0])
    return text.removeprefix("##") if first.startswith("##") else f" {text.lstrip()}"


def joined(tokens: Iterable[tuple[int, str]]) -> list[Run]:
    """Tokens in runs; those that nothing is said of are together."""
    runs: list[Run] = []
    for token, kind in tokens:
        if not kind and runs and not runs[-1][1]:
            runs[-1][0].append(token)
        else:
            runs.append(([token], kind))
    return runs


# --------------------------------------------------------------------------------------------------- the task


class OfDocuments(OfTexts):
    """A task whose samples are documents and whose labels it makes itself."""

    def classes(self, rows: pd.DataFrame) -> list[str]:
        """The one label that all documents have."""
        return data.classes_of(rows)

    def targets(
        self, rows: pd.DataFrame, classes: list[str], samples: data.Samples, folder: Path, model: Model
    ) -> OwnTargets:
        """What the samples hide."""
        assert isinstance(samples, DocumentSamples), type(samples)
        return OwnTargets(samples)

    def truths(self, rows: pd.DataFrame) -> list[Any]:
        """Nothing: what is said of a document already tells how much of it was right."""
        return [None] * len(rows)

    def scores(self, truths: list[Any], said: Said, classes: list[str]) -> dict[str, NDArray[np.float64]]:
        """Each document's share in loss, token accuracy and perplexity.

        Every document counts alike, however long it is: the metrics are means over documents of each
        document's own mean over tokens. Perplexity is e to the power of that loss.
        """
        rows: list[dict[str, Any]] = [dict(row) for row in said]
        loss = np.array([row["loss"] for row in rows], dtype=np.float64)
        tokens = np.array([row["tokens"] for row in rows], dtype=np.float64)
        correct = np.array([row["correct"] for row in rows], dtype=np.float64)
        return {"loss": loss, "token_accuracy": correct / tokens, "perplexity": perplexity_shares(loss)}

    def case(self, row: Any, said: dict[str, Any], folder: Path) -> Case:  # noqa: ANN401 - a row of a data frame
        """The beginning of a document with what was hidden of it and what was guessed."""
        marks = tuple(zip(said["pieces"], said["marks"], strict=True))
        return Case(
            f"{said['tokens']} tokens asked for",
            f"{said['correct']} right, loss {said['loss']:.3f}",
            marks=marks,
        )


def perplexity_shares(loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each document's share in e to the power of the mean loss, by the jackknife."""
    count, total = len(loss), loss.sum()
    value = float(np.exp(total / count))
    if count == 1:
        return np.array([value])
    return metrics.shares_of(value, np.exp((total - loss) / (count - 1)))


# ------------------------------------------------------------------------------------------------- baselines


def contents_of(rows: pd.DataFrame, split: str) -> list[Content]:
    """The documents of a split."""
    return list(rows["text"][rows["split"] == split])


@dataclass(frozen=True)
class Unigram:
    """The words' frequencies in some documents, each counted once more than it occurs.

    Attributes:
        log_shares: natural logarithm of each id's share, shape (vocabulary,).
    """

    log_shares: NDArray[np.float64]

    @classmethod
    def of(cls, samples: DocumentSamples) -> Unigram:
        """Counted in all of the samples' tokens."""
        size = int(max(samples.vocabulary.words.max(), *(ids.max() for ids in samples.documents))) + 1
        counts = np.ones(max(size, 1 + int(max(ids.max(initial=0) for ids in samples.vocabulary.frame))))
        for ids in samples.documents:
            counts += np.bincount(ids, minlength=len(counts))
        return cls(np.log(counts / counts.sum()))

    @property
    def favourite(self) -> int:
        """The commonest word's id."""
        return int(self.log_shares.argmax())

    def measure(self, examples: list[Example]) -> Measured:
        """As a network would be measured that knows nothing but how common words are."""
        rows = [np.asarray(one.targets["labels"]) for one in examples]
        hidden = [row[row != IGNORED] for row in rows]
        sums = {
            "loss": np.array([-self.log_shares[labels].sum() for labels in hidden]),
            "tokens": np.array([len(labels) for labels in hidden], dtype=np.float64),
            "correct": np.array([(labels == self.favourite).sum() for labels in hidden], dtype=np.float64),
        }
        return Measured(sums, np.full((len(rows), max(map(len, rows))), self.favourite))


def simple(
    samples: DocumentSamples, about: str, measure: Callable[[list[Example]], Measured]
) -> tuple[Simple, Totals]:
    """What a method without a network says of documents; the totals beside it."""
    parts, found = samples.judged(), Totals()
    for places in data.in_turn(len(parts)):
        examples = parts.examples(places)
        found.add(parts, places, examples, measure(examples))
    return Simple(about, said_of(found, samples.tokenizer)), found
