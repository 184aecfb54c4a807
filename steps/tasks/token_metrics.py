"""What taggers are judged by: F1 of entities, and the share of words that are tagged right. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steps.metrics import shares_of
from steps.tasks.token_spans import Span, tags_of

Floats = NDArray[np.float64]


def entity_f1(truths: Sequence[Sequence[Span]], said: Sequence[Sequence[Span]]) -> Floats:
    """Each text's share in the F1 of entities: right are those with the right start, end and label.

    As conlleval counts (Tjong Kim Sang and De Meulder, CoNLL-2003), over all texts together; 0 where there is
    no entity at all. It is no mean over texts: the shares are the jackknife's.
    """
    rows = [(set(of_truth), set(of_said)) for of_truth, of_said in zip(truths, said, strict=True)]
    hits = np.array([len(one & other) for one, other in rows], dtype=np.float64)
    both = np.array([len(one) + len(other) for one, other in rows], dtype=np.float64)
    return _of_sums(2 * hits, both)


def token_accuracy(truths: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> Floats:
    """Each text's share in the accuracy of tags, over the words of all texts together."""
    pairs = list(zip(truths, said, strict=True))
    right = [sum(one == other for one, other in zip(*pair, strict=True)) for pair in pairs]
    return _of_sums(
        np.array(right, dtype=np.float64), np.array([len(one) for one, _ in pairs], dtype=np.float64)
    )


def _of_sums(above: Floats, below: Floats) -> Floats:
    """The shares in a ratio of two sums over items, 0 where the lower is 0."""
    whole = _ratio(above.sum(keepdims=True), below.sum(keepdims=True))
    return shares_of(float(whole[0]), _ratio(above.sum() - above, below.sum() - below))


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def scores(truths: list[dict[str, Any]], said: list[dict[str, Any]]) -> dict[str, Floats]:
    """Both metrics.

    Args:
        truths: of each text `spans` and `words`.
        said: of each text `entities`, `starts` and `ends`.
    """
    true = [[(start, end, label) for start, end, label in one["spans"]] for one in truths]
    found = [spans_said(one) for one in said]
    words = [[(start, end) for start, end in one["words"]] for one in truths]
    return {
        "entity_f1": entity_f1(true, found),
        "token_accuracy": token_accuracy(
            [tags_of(spans, places) for spans, places in zip(true, words, strict=True)],
            [tags_of(spans, places) for spans, places in zip(found, words, strict=True)],
        ),
    }


def spans_said(said: dict[str, Any]) -> list[Span]:
    """The spans of an answer."""
    return list(zip(said["starts"], said["ends"], said["entities"], strict=True))


def answer(text: str, spans: Sequence[Span]) -> dict[str, Any]:
    """Spans as an answer."""
    return {
        "entities": [label for _, _, label in spans],
        "starts": [start for start, _, _ in spans],
        "ends": [end for _, end, _ in spans],
        "texts": [text[start:end] for start, end, _ in spans],
    }
