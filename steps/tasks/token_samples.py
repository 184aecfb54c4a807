"""Texts as tokens that know their words: in windows, so that no word of a long text is left out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from steps.errors import UserError
from steps.tasks import Content
from steps.tasks.of_texts import (
    Frame,
    Rows,
    WindowSamples,
    columns_of,
    frame_of,
    located,
    padding_of,
    tokenizer_of,
)
from steps.tasks.token_spans import Place, words_of

if TYPE_CHECKING:
    from torch import Tensor

# Of a token that begins no word: the rest of one, or what the tokenizer puts around a text.
NO_WORD = -1
# Of a token that is not scored, as torch's cross-entropy has it.
IGNORED = -100


class WordSamples(WindowSamples):
    """Texts in windows that begin and end between words and share none.

    Attributes:
        texts: the texts.
        words: of each text, where its words begin and end.
        of_word: of each token of all rows, which word of its text it is the first piece of, or NO_WORD.
        sharing: of each text the words that no token begins, with the word whose token covers them.
    """

    def __init__(self, contents: Sequence[Content], pretrained: Path, max_tokens: int) -> None:
        self.texts, pairs = columns_of(contents)
        assert pairs is None, "one text each"
        tokenizer = tokenizer_of(pretrained)
        frame = frame_of(tokenizer, pretrained, pair=False)
        room = max_tokens - frame.tokens
        if room < 1:
            raise UserError(f"`model.max_tokens: {max_tokens}` leaves no room for a word; raise it")
        self.words: list[list[Place]] = [words_of(text) for text in self.texts]
        self.sharing: list[dict[int, int]] = []
        ids, of_word = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
        lengths: list[int] = []
        counts: list[int] = []
        for words, (tokens, places) in zip(self.words, located(tokenizer, self.texts), strict=True):
            firsts, sharing = first_pieces(words, places)
            self.sharing.append(sharing)
            windows = cut(firsts, room)
            counts.append(len(windows))
            for start, end in windows:
                ids.append(_framed(frame, tokens[start:end]))
                of_word.append(
                    np.pad(firsts[start:end], (len(frame.before), len(frame.after)), constant_values=NO_WORD)
                )
                lengths.append(len(ids[-1]))
        rows = Rows(np.concatenate(ids), np.array(lengths, np.int64), padding_of(tokenizer))
        super().__init__(rows, np.array(counts, np.int64))
        self.of_word: NDArray[np.int64] = np.concatenate(of_word)


class TagTargets:
    """The tag of every token that is the first piece of a word; other tokens are not scored.

    So Devlin et al. do, BERT, 2019, section 5.3.

    Args:
        tags: the tag's number of each word, of each text.
        samples: the texts.
    """

    def __init__(self, tags: Sequence[NDArray[np.int64]], samples: WordSamples) -> None:
        assert len(tags) == len(samples)
        self.samples = samples
        rows = samples.rows
        self.labels = np.full(len(rows.ids), IGNORED, np.int64)
        for index, numbers in enumerate(tags):
            for window in samples.windows([index]):
                part = slice(rows.starts[window], rows.starts[window] + rows.lengths[window])
                words = samples.of_word[part]
                self.labels[part][words >= 0] = numbers[words[words >= 0]]

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: list[int], view: int | None = None) -> Tensor:
        """Numbers of tags, shape (windows, tokens), int64; IGNORED where there is nothing to say."""
        import torch

        windows = self.samples.windows(indices)
        return torch.from_numpy(self.samples.rows.padded(self.labels, windows, IGNORED))


def first_pieces(
    words: Sequence[Place], places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], dict[int, int]]:
    """Of each token which word it is the first piece of; and words without a first piece of their own.

    Args:
        words: where each begins and ends.
        places: where each token begins and ends, shape (tokens, 2).

    Returns:
        Shape (tokens,), NO_WORD where a token begins no word. And of every word that no token begins, since
        one token covers several words, the word that this token is told as. A word of which the tokenizer
        makes nothing is in neither.
    """
    firsts = np.full(len(places), NO_WORD, np.int64)
    sharing: dict[int, int] = {}
    seen, token = -1, 0
    for word, (start, end) in enumerate(words):
        while token < len(places) and places[token, 1] <= start:
            token += 1
        if token == len(places) or places[token, 0] >= end:
            continue
        if token > seen:
            firsts[token] = word
            seen = token
        else:
            sharing[word] = int(firsts[token])
    return firsts, sharing


def cut(firsts: NDArray[np.int64], room: int) -> list[tuple[int, int]]:
    """Windows of at most `room` tokens that begin with the first piece of a word; at least one.

    Of a word with more pieces than there is room for, those beyond are left out: the first is what counts.
    """
    begins = [0, *(int(at) for at in np.flatnonzero(firsts >= 0) if at > 0), len(firsts)]
    windows: list[tuple[int, int]] = []
    start = 0
    for begin, end in pairwise(begins):
        if end - start > room and begin > start:
            windows.append((start, min(begin, start + room)))
            start = begin
    windows.append((start, min(len(firsts), start + room)))
    return windows


def _framed(frame: Frame, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.concatenate([np.array(frame.before, np.int32), tokens, np.array(frame.after, np.int32)])
