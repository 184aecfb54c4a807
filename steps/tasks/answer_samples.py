"""Questions with their paragraphs as tokens: a long paragraph in windows that overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steps.errors import UserError
from steps.params import Model
from steps.tasks import Content
from steps.tasks.of_texts import (
    Frame,
    Rows,
    WindowSamples,
    columns_of,
    frame_of,
    located,
    padding_of,
    tells_kinds,
    tokenizer_of,
)

if TYPE_CHECKING:
    from torch import Tensor


class QuestionSamples(WindowSamples):
    """Questions, each with every window of its paragraph: question, separator, window.

    Devlin et al., BERT, 2019, with the overlapping windows of its published code. A question takes at most
    half of a row; what is beyond is cut.

    Attributes:
        contexts: the paragraphs.
        places: of each token of all rows, where it begins and ends in its paragraph; -1 outside.
        nothing: of each row the place of the token that stands for "no answer".
    """

    def __init__(self, contents: Sequence[Content], pretrained: Path, model: Model) -> None:
        questions, contexts = columns_of(contents)
        assert contexts is not None or not contents, "questions come with paragraphs"
        self.contexts = contexts or []
        tokenizer = tokenizer_of(pretrained)
        frame = frame_of(tokenizer, pretrained, pair=True)
        room = model.max_tokens - frame.tokens
        # A window has at least what the longest question leaves of a row.
        if model.stride >= room - room // 2:
            raise UserError(
                f"`model.stride: {model.stride}` must be less than half of `model.max_tokens: "
                f"{model.max_tokens}`, here {max(room - room // 2, 1)}: windows could not get on; change one"
            )
        made = _Made()
        counts = []
        both = zip(located(tokenizer, questions), located(tokenizer, self.contexts), strict=True)
        for (question, _), (context, places) in both:
            question = question[: room // 2]
            windows = [*slid(len(context), room - len(question), model.stride)]
            for start, end in windows:
                made.add(frame, question, context[start:end], places[start:end])
            counts.append(len(windows))
        kinds = np.concatenate(made.kinds) if tells_kinds(tokenizer, pretrained) else None
        lengths = np.array([len(ids) for ids in made.ids[1:]], np.int64)
        super().__init__(
            Rows(np.concatenate(made.ids), lengths, padding_of(tokenizer), kinds), np.array(counts, np.int64)
        )
        self.places: NDArray[np.int64] = np.concatenate(made.places)
        self.nothing: NDArray[np.int64] = np.array(made.nothing, np.int64)

    def in_row(self, row: int) -> NDArray[np.int64]:
        """`places` of one row, shape (tokens, 2)."""
        start = self.rows.starts[row]
        return self.places[start : start + self.rows.lengths[row]]

    def may_answer(self, row: int) -> NDArray[np.bool_]:
        """Which tokens of a row an answer may begin or end with; the one for "no answer" is none of them."""
        places = self.in_row(row)
        return np.asarray(places[:, 1] > places[:, 0])


class _Made:
    """Rows under way; the first of each list is empty, so that there is something to join."""

    def __init__(self) -> None:
        self.ids = [np.empty(0, np.int32)]
        self.kinds = [np.empty(0, np.int8)]
        self.places = [np.empty((0, 2), np.int64)]
        self.nothing: list[int] = []

    def add(
        self, frame: Frame, question: NDArray[np.int32], context: NDArray[np.int32], places: NDArray[np.int64]
    ) -> None:
        parts = (frame.before, question, frame.between, context, frame.after)
        sizes = [len(part) for part in parts]
        self.ids.append(np.concatenate([np.asarray(part, np.int32) for part in parts]))
        self.kinds.append(np.repeat(np.array(frame.kinds, np.int8), sizes))
        around = (sum(sizes[:3]), sizes[4])
        self.places.append(np.pad(places, (around, (0, 0)), constant_values=-1))
        self.nothing.append(_nothing(frame, sizes))


def _nothing(frame: Frame, sizes: Sequence[int]) -> int:
    """The token that stands for "no answer": [CLS]; without one the very last; else the question's last."""
    if frame.cls:
        return 0
    return sum(sizes) - 1 if sizes[4] else sum(sizes[:3]) - 1


class AnswerTargets:
    """Where the answer begins and ends in every window; in one that does not hold it, "no answer".

    Args:
        answers: of each question, start and text.
        samples: the questions.
    """

    def __init__(self, answers: Sequence[Sequence[Any]], samples: QuestionSamples) -> None:
        assert len(answers) == len(samples)
        self.samples = samples
        self.spans = np.stack([samples.nothing, samples.nothing], axis=1)
        for index, of_one in enumerate(answers):
            for row in samples.windows([index]):
                for start, text in of_one:
                    found = tokens_of(samples.in_row(row), int(start), int(start) + len(text))
                    if found is not None:
                        self.spans[row] = found
                        break
        self.valid = np.concatenate(
            [np.empty(0, bool), *(self._valid(row) for row in range(len(samples.nothing)))]
        )

    def _valid(self, row: int) -> NDArray[np.bool_]:
        valid = self.samples.may_answer(row)
        valid[self.samples.nothing[row]] = True
        return valid

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: list[int], view: int | None = None) -> dict[str, Tensor]:
        """`span`, shape (windows, 2), and `valid`: the tokens to choose from, (windows, tokens)."""
        import torch

        windows = self.samples.windows(indices)
        return {
            "span": torch.from_numpy(self.spans[windows]),
            "valid": torch.from_numpy(self.samples.rows.padded(self.valid, windows, 0)),
        }


def slid(tokens: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """Windows of at most `room` of so many tokens; two in a row share `stride`, which is less than `room`."""
    start = 0
    while start + room < tokens:
        yield start, start + room
        start += room - stride
    yield start, tokens


def tokens_of(places: NDArray[np.int64], start: int, end: int) -> tuple[int, int] | None:
    """The first and the last token of characters `start` to `end`; None where a row does not hold them all.

    Args:
        places: where each token of the row begins and ends, -1 for what is no part of the paragraph.
        start: first character.
        end: behind the last.
    """
    inside = np.flatnonzero((places[:, 1] > start) & (places[:, 0] < end) & (places[:, 1] > places[:, 0]))
    if not len(inside):
        return None
    first, last = int(inside[0]), int(inside[-1])
    holds = places[first, 0] <= start and places[last, 1] >= end
    return (first, last) if holds else None
