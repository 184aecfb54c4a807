"""Questions whose answer, if there is one, is a part of a paragraph."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steps.arms import Arm
from steps.params import Machine, Model, Validation
from steps.tasks import Ask, Case, Content, Criterion, Expectation, Said, Simple, answer_metrics, target_of
from steps.tasks.of_targets import OfTargets
from steps.tasks.of_texts import OfPairs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from steps.data import Samples
    from steps.network import Backbone
    from steps.tasks.answer_samples import AnswerTargets, QuestionSamples

ANSWERABLE, UNANSWERABLE = "answerable", "unanswerable"
# Start and end of what is no answer.
NOWHERE = -1
_SENTENCE = re.compile(r"\S.*?(?:[.!?]+(?=\s)|\Z)", re.DOTALL)


class QuestionAnswering(OfTargets, OfPairs):
    """Task `question-answering`."""

    name = "question-answering"

    def facts(self, manifest: pd.DataFrame, folder: Path, settings: Validation) -> pd.DataFrame:
        """Of both texts, and which answer is not where it is said to be."""
        facts = super().facts(manifest, folder, settings)
        errors = [
            _error(str(row.pair), target_of(row)) if isinstance(row.target, str) else None
            for row in manifest.itertuples()
        ]
        return facts.assign(target_error=pd.Series(errors, index=manifest.index, dtype=object))

    def expectations(self, settings: Validation) -> list[Expectation]:
        """Answers stand in the paragraph where they are said to."""
        return [
            *super().expectations(settings),
            *self.of_targets(settings),
            Expectation(
                "answers_found",
                "ExpectColumnValuesToBeNull",
                {"column": "target_error"},
                "{target_error}",
                text="every answer is in its paragraph, at its place",
            ),
        ]

    def classes(self, rows: pd.DataFrame) -> list[str]:
        """What there is of "answerable" and "unanswerable"; only with the latter may a model not answer."""
        said = {ANSWERABLE if target_of(row)["answers"] else UNANSWERABLE for row in rows.itertuples()}
        return sorted(said)

    def samples(
        self,
        contents: Sequence[Content],
        model: Model,
        pretrained: Path,
        augment: Sequence[str] = (),
        machine: Machine | None = None,
    ) -> Samples:
        """Token ids of a question and of each window of its paragraph."""
        from steps.tasks.answer_samples import QuestionSamples

        assert not augment, augment
        return QuestionSamples(contents, pretrained, model)

    def targets(
        self, rows: pd.DataFrame, classes: list[str], samples: Samples, folder: Path, model: Model
    ) -> AnswerTargets:
        """Where the first answer begins and ends, in every window that holds it."""
        from steps.tasks.answer_samples import AnswerTargets, QuestionSamples

        assert isinstance(samples, QuestionSamples)
        return AnswerTargets([target_of(row)["answers"] for row in rows.itertuples()], samples)

    def head(self, backbone: Backbone, classes: list[str], model: Model, arm: Arm) -> nn.Module:
        """Hidden states to scores of start and end, shape (rows, tokens, 2)."""
        from steps.tasks.token_network import OnTokens

        return OnTokens(backbone.features, 2, model.dropout, arm.head)

    def objective(self, arm: Arm, targets: Any, classes: list[str]) -> Criterion:  # noqa: ANN401 - see Task
        """Mean cross-entropy of start and end."""
        from steps.tasks.answer_network import SpanLoss

        return SpanLoss()

    def predict(self, network: nn.Module, samples: Samples, ask: Ask) -> Said:
        """The answer to each question: the best span of all its windows, or none."""
        from steps import inference
        from steps.tasks.answer_samples import QuestionSamples

        assert isinstance(samples, QuestionSamples)
        assert ask.cut == 0, "the paragraphs are known of texts, not of activations"
        found: list[dict[str, Any]] = [{}] * len(samples)
        ran = inference.outputs(network, samples, ask.device, samples.at_a_time, precision=ask.precision)
        for indices, outputs in ran:
            at = 0
            for index in indices:
                rows = samples.windows([index])
                found[index] = _answer(samples, index, rows, outputs[at : at + len(rows)].float().cpu(), ask)
                at += len(rows)
        return found

    def truths(self, rows: pd.DataFrame) -> list[Any]:
        """The texts of the answers to each question; none where it has none."""
        return [[text for _, text in target_of(row)["answers"]] for row in rows.itertuples()]

    def scores(self, truths: list[Any], said: Said, classes: list[str]) -> dict[str, NDArray[np.float64]]:
        """Each question's F1 and exact match."""
        assert isinstance(said, list)
        return answer_metrics.scores(truths, [one["answer"] for one in said])

    def baselines(
        self,
        rows: pd.DataFrame,
        classes: list[str],
        folder: Path,
        model: Model | None = None,
        pretrained: Path | None = None,
    ) -> Mapping[str, Simple]:
        """The sentence that shares most words with the question, and no answer at all."""
        test = rows[rows["split"] == "test"]
        sentences = [_alike(str(row.text), str(row.pair)) for row in test.itertuples()]
        found = {"sentence": Simple("the sentence that shares most words with the question", sentences)}
        if UNANSWERABLE in classes:
            found["no-answer"] = Simple(
                "that no question has an answer", [_said("", NOWHERE, 1.0)] * len(test)
            )
        return found

    def case(self, row: Any, said: dict[str, Any], folder: Path) -> Case:  # noqa: ANN401 - a row of a data frame
        """The paragraph with the answer that was found, missed, or found where there is none."""
        answers = target_of(row)["answers"]
        told = "; ".join(text for _, text in answers) or "no answer"
        right = answer_metrics.best(answer_metrics.exact, [text for _, text in answers], said["answer"]) == 1
        return Case(
            f"{row.text} {told}",
            said["answer"] or "no answer",
            marks=marked(str(row.pair), answers, said, right=right),
        )


def _error(context: str, target: dict[str, Any]) -> str | None:
    if target.get("impossible"):
        return "is said to have no answer, but has one"
    for start, text in target["answers"]:
        if not text.strip():
            return f"the answer at {start} is empty"
        if start < 0 or context[start : start + len(text)] != text:
            there = context[max(start, 0) : max(start, 0) + len(text)]
            return f"answer {text!r} is not at {start}, where {there!r} stands"
    return None


def _answer(
    samples: QuestionSamples, index: int, rows: NDArray[np.int64], outputs: Tensor, ask: Ask
) -> dict[str, Any]:
    """The best span of a question's windows, unless "no answer" is better in every one of them.

    Devlin et al., BERT, 2019, section 4.3, with a threshold of 0. The score is the probability of start times
    that of end, over the tokens of the window that there are to choose from.

    Args:
        samples: the questions.
        index: which one.
        rows: its windows.
        outputs: scores of start and end, shape (windows, tokens, 2).
        ask: the classes: without unanswerable questions there always is an answer.
    """
    best, span, sure, nothing, none_sure = -math.inf, (NOWHERE, NOWHERE), 0.0, math.inf, 0.0
    for row, scores in zip(rows, outputs, strict=True):
        one = _of_window(samples, int(row), scores, ask.model.max_answer_tokens)
        if one.nothing < nothing:
            nothing, none_sure = one.nothing, one.nothing_sure
        if one.best > best:
            best, span, sure = one.best, one.span, one.sure
    if best == -math.inf or (UNANSWERABLE in ask.classes and nothing > best):
        return _said("", NOWHERE, none_sure)
    return _said(samples.contexts[index][span[0] : span[1]], span[0], sure)


@dataclass(frozen=True)
class _Window:
    """What a window says: scores as the network gives them, and as probabilities."""

    best: float
    span: tuple[int, int]
    sure: float
    nothing: float
    nothing_sure: float


def _of_window(samples: QuestionSamples, row: int, scores: Tensor, longest: int) -> _Window:
    """The best span of a window and "no answer", by the sum of the scores of start and end."""
    import torch

    from steps.tasks.answer_network import best_span, masked

    length = int(samples.rows.lengths[row])
    choice = torch.from_numpy(samples.may_answer(row))
    nothing = int(samples.nothing[row])
    valid = choice.clone()
    valid[nothing] = True
    raw = scores[:length].T
    logs = masked(scores[:length].unsqueeze(0), valid.unsqueeze(0))[0].log_softmax(dim=1)
    of_none = float(raw[:, nothing].sum()), float(logs[:, nothing].sum().exp())
    if not choice.any():
        return _Window(-math.inf, (NOWHERE, NOWHERE), 0.0, *of_none)
    first, last = best_span(logs, choice, longest)
    places = samples.in_row(row)
    return _Window(
        float(raw[0, first] + raw[1, last]),
        (int(places[first, 0]), int(places[last, 1])),
        float((logs[0, first] + logs[1, last]).exp()),
        *of_none,
    )


def _said(answer: str, start: int, score: float) -> dict[str, Any]:
    end = NOWHERE if start == NOWHERE else start + len(answer)
    return {"answer": answer, "score": float(score), "start": int(start), "end": int(end)}


def _alike(question: str, context: str) -> dict[str, Any]:
    """The sentence with most of the question's words; of equals the shortest, of these the first."""
    asked = set(answer_metrics.normalised(question).split())
    spans = [(found.start(), len(found[0].rstrip())) for found in _SENTENCE.finditer(context)]
    shared = [
        (-len(asked & set(answer_metrics.normalised(context[start : start + length]).split())), length, start)
        for start, length in spans
    ]
    least, length, start = min(shared)
    return _said(context[start : start + length], start, -least / max(1, len(asked)))


def marked(
    context: str, answers: Sequence[Sequence[Any]], said: dict[str, Any], *, right: bool
) -> tuple[tuple[str, str], ...]:
    """A paragraph in pieces: what was said, "right" or "wrong", and what should have been, "missed"."""
    marks = np.zeros(len(context), dtype=np.int8)
    names = ("", "missed", "wrong", "right")
    if not right and answers:
        start, text = answers[0]
        marks[start : start + len(text)] = 1
    if said["start"] >= 0:
        marks[said["start"] : said["end"]] = 3 if right else 2
    cuts = [0, *(np.flatnonzero(np.diff(marks)) + 1).tolist(), len(context)]
    return tuple((context[start:end], names[marks[start]]) for start, end in pairwise(cuts))
