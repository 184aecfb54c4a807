from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from steps import occlusion


def counting(texts: list[str]) -> NDArray[np.float32]:
    """The second class is as probable as the share of the word `yes`."""
    share = np.array([text.split().count("yes") / len(text.split()) for text in texts], dtype=np.float32)
    return np.stack([1 - share, share], axis=1)


def test_each_word_gets_what_leaving_it_out_takes_away() -> None:
    first, second = occlusion.weights(["yes no no", "no yes"], [1, 0], [3, 2], counting)
    assert [word for word, _ in first] == ["yes", "no", "no"]
    assert [weight for _, weight in first] == pytest.approx([1 / 3, 1 / 3 - 1 / 2, 1 / 3 - 1 / 2])
    assert [weight for _, weight in second] == pytest.approx([0.5 - 0, 0.5 - 1])


def test_words_beyond_what_is_read_are_left_out() -> None:
    found = occlusion.weights(["yes no maybe never"], [1], [2], counting)
    assert [word for word, _ in found[0]] == ["yes", "no"]


def test_a_single_word_carries_all_of_it() -> None:
    assert occlusion.weights(["yes"], [1], [1], counting) == [[("yes", 1.0)]]


def test_the_network_is_asked_once() -> None:
    asked: list[list[str]] = []

    def predict(texts: list[str]) -> NDArray[np.float32]:
        asked.append(texts)
        return counting(texts)

    occlusion.weights(["yes no", "one", "no no"], [1, 1, 1], [2, 1, 2], predict)
    assert asked == [["yes no", "no", "yes", "one", "no no", "no", "no"]]
