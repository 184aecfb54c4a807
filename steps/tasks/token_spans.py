"""Spans of a text and tags of its words: from the one to the other and back.

A span is [start, end, label]: characters of the text, the end not included. Tags are IOB2: `B-PER` begins a
span of label PER, `I-PER` goes on with it, `O` is outside (Tjong Kim Sang and Veenstra, Representing Text
Chunks, 1999).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

OUTSIDE = "O"
# Scripts that write no blanks between words: each sign is a word.
_SIGNS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SIGNS}]|[^\W{_SIGNS}]+|[^\w\s]")

# Start and end of a word in its text.
Place = tuple[int, int]
Span = tuple[int, int, str]


class Worded(str):
    """A text whose words are known, as of files that give one a line.

    Attributes:
        words: where each begins and ends.
    """

    words: list[Place]

    def __new__(cls, text: str, words: Sequence[Sequence[int]]) -> Worded:
        """The text and its words."""
        made = super().__new__(cls, text)
        made.words = [(start, end) for start, end in words]
        return made


def words_of(text: str) -> list[Place]:
    """The words of a text: letters and digits in a row; every other sign is a word by itself.

    Of a text that knows its words, these.
    """
    if isinstance(text, Worded):
        return text.words
    return [found.span() for found in _WORD.finditer(text)]


def tags_of(spans: Sequence[Sequence[int | str]], words: Sequence[Place]) -> list[str]:
    """The tag of each word; a word is of the first span that it shares a character with.

    Spans that end inside of a word, or share words, are told by validate; here they do no harm.
    """
    tags = [OUTSIDE] * len(words)
    for start, end, label in sorted((int(start), int(end), str(label)) for start, end, label in spans):
        inside = [at for at, (first, last) in enumerate(words) if first < end and last > start]
        free = [at for at in inside if tags[at] == OUTSIDE]
        for at in free:
            tags[at] = f"I-{label}" if at > free[0] else f"B-{label}"
    return tags


def spans_of(tags: Sequence[str], words: Sequence[Place]) -> list[Span]:
    """The spans that tags stand for, in the order of the text.

    As conlleval and seqeval read tags: an `I-` that goes on with nothing of its label begins a span.
    """
    spans: list[Span] = []
    open_label = ""
    for tag, (start, end) in zip(tags, words, strict=True):
        prefix, _, label = tag.partition("-")
        if tag == OUTSIDE:
            open_label = ""
        elif prefix == "I" and label == open_label:
            spans[-1] = (spans[-1][0], end, label)
        else:
            spans.append((start, end, label))
            open_label = label
    return spans


def tag_names(labels: set[str]) -> list[str]:
    """The tags of a network's outputs: outside, then begin and inside of each label."""
    return [OUTSIDE, *(f"{prefix}-{label}" for label in sorted(labels) for prefix in "BI")]
