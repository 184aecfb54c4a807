"""Which words a text's class rests on: leave each out and see what becomes of the probability.

Source: Li, Monroe and Jurafsky, Understanding Neural Networks through Representation Erasure, 2016. It asks
the network itself and needs no gradient, so it is the same for every architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray


def weights(
    texts: Sequence[str],
    classes: Sequence[int],
    words_read: Sequence[int],
    predict: Callable[[list[str]], NDArray[np.float32]],
) -> list[list[tuple[str, float]]]:
    """The words of each text with what they add to the probability of its class.

    Args:
        texts: what the network was asked about.
        classes: of each text the class in question, mostly the predicted one.
        words_read: how many words of each text the network reads; the rest is cut off.
        predict: gives probabilities, shape (texts, classes).

    Returns:
        For each text its words in order; a positive number speaks for the class, a negative one against it.
        A text of a single word has nothing to leave out: its word gets the whole probability.
    """
    asked: list[str] = []
    for text, count in zip(texts, words_read, strict=True):
        words = text.split()[:count]
        asked += [" ".join(words), *_without_each(words)]
    found = predict(asked)
    told: list[list[tuple[str, float]]] = []
    at = 0
    for text, index, count in zip(texts, classes, words_read, strict=True):
        words = text.split()[:count]
        whole = float(found[at, index])
        if len(words) == 1:
            told.append([(words[0], whole)])
            at += 1
            continue
        rest = found[at + 1 : at + 1 + len(words), index]
        told.append([(word, whole - float(left)) for word, left in zip(words, rest, strict=True)])
        at += 1 + len(words)
    return told


def _without_each(words: list[str]) -> list[str]:
    if len(words) == 1:
        return []
    return [" ".join(words[:at] + words[at + 1 :]) for at in range(len(words))]
