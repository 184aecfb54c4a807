"""Texts with labelled spans: names of people, places, firms. A tag for each word."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steps.arms import Arm
from steps.params import Machine, Model, Validation
from steps.tasks import Ask, Case, Content, Criterion, Expectation, Said, Simple, target_of, token_metrics
from steps.tasks.of_targets import OfTargets
from steps.tasks.of_texts import OfTexts
from steps.tasks.token_spans import OUTSIDE, Span, Worded, spans_of, tag_names, tags_of, words_of

if TYPE_CHECKING:
    from torch import nn

    from steps.data import Samples
    from steps.network import Backbone
    from steps.tasks.token_samples import TagTargets, WordSamples


class TokenClassification(OfTargets, OfTexts):
    """Task `token-classification`."""

    name = "token-classification"

    def facts(self, manifest: pd.DataFrame, folder: Path, settings: Validation) -> pd.DataFrame:
        """Of the text, and what is wrong with its spans."""
        facts = super().facts(manifest, folder, settings)
        found = [
            _errors(str(row.text), target_of(row)) if isinstance(row.target, str) else (None, None)
            for row in manifest.itertuples()
        ]
        columns = ["target_error", "tags_error"]
        return facts.join(pd.DataFrame(found, index=manifest.index, columns=columns, dtype=object))

    def expectations(self, settings: Validation) -> list[Expectation]:
        """Spans lie in their text, share nothing, and end where words end."""
        return [
            *super().expectations(settings),
            *self.of_targets(settings),
            Expectation(
                "spans_inside",
                "ExpectColumnValuesToBeNull",
                {"column": "target_error"},
                "{target_error}",
                text="every span is a part of its text and has a label",
            ),
            Expectation(
                "tags_consistent",
                "ExpectColumnValuesToBeNull",
                {"column": "tags_error"},
                "{tags_error}",
                text="no two spans of a text overlap, and all end where words end",
            ),
        ]

    def classes(self, rows: pd.DataFrame) -> list[str]:
        """`O`, then `B-` and `I-` of every label."""
        return tag_names({str(label) for row in rows.itertuples() for _, _, label in target_of(row)["spans"]})

    def content(self, row: Any, folder: Path) -> Content:  # noqa: ANN401 - a row of a data frame
        """The text, with its words where the raw data tell them."""
        words = target_of(row).get("words")
        return str(row.text) if words is None else Worded(str(row.text), words)

    def samples(
        self,
        contents: Sequence[Content],
        model: Model,
        pretrained: Path,
        augment: Sequence[str] = (),
        machine: Machine | None = None,
    ) -> Samples:
        """Token ids in windows of at most `max_tokens`, which begin and end between words and share none."""
        from steps.tasks.token_samples import WordSamples

        assert not augment, augment
        return WordSamples(contents, pretrained, model.max_tokens)

    def targets(
        self, rows: pd.DataFrame, classes: list[str], samples: Samples, folder: Path, model: Model
    ) -> TagTargets:
        """The tag of the first piece of every word."""
        from steps.tasks.token_samples import TagTargets, WordSamples

        assert isinstance(samples, WordSamples)
        number = {tag: at for at, tag in enumerate(classes)}
        tags = [
            tags_of(target_of(row)["spans"], words)
            for row, words in zip(rows.itertuples(), samples.words, strict=True)
        ]
        return TagTargets([np.array([number[tag] for tag in one], np.int64) for one in tags], samples)

    def head(self, backbone: Backbone, classes: list[str], model: Model, arm: Arm) -> nn.Module:
        """Hidden states to scores of tags, shape (rows, tokens, tags)."""
        from steps.tasks.token_network import OnTokens

        return OnTokens(backbone.features, len(classes), model.dropout, arm.head)

    def objective(self, arm: Arm, targets: Any, classes: list[str]) -> Criterion:  # noqa: ANN401 - see Task
        """Mean cross-entropy over the first pieces of words."""
        from steps.tasks.token_network import TagLoss

        return TagLoss()

    def predict(self, network: nn.Module, samples: Samples, ask: Ask) -> Said:
        """The entities of each text, in its order."""
        from steps import inference
        from steps.tasks.token_samples import WordSamples

        assert isinstance(samples, WordSamples)
        assert ask.cut == 0, "the words are known of texts, not of activations"
        found: list[dict[str, Any]] = [{}] * len(samples)
        ran = inference.outputs(network, samples, ask.device, samples.at_a_time, precision=ask.precision)
        for indices, scores in ran:
            best = scores.argmax(dim=2).cpu().numpy()
            row = 0
            for index in indices:
                count = int(samples.counts[index])
                tags = _tags(samples, index, best[row : row + count], ask.classes)
                found[index] = token_metrics.answer(
                    samples.texts[index], spans_of(tags, samples.words[index])
                )
                row += count
        return found

    def truths(self, rows: pd.DataFrame) -> list[Any]:
        """`spans` and `words` of each text."""
        return [
            {"spans": target["spans"], "words": target.get("words") or words_of(str(row.text))}
            for row, target in ((row, target_of(row)) for row in rows.itertuples())
        ]

    def scores(self, truths: list[Any], said: Said, classes: list[str]) -> dict[str, NDArray[np.float64]]:
        """Each text's share in the F1 of entities and in the accuracy of tags."""
        assert isinstance(said, list)
        return token_metrics.scores(truths, said)

    def baselines(
        self,
        rows: pd.DataFrame,
        classes: list[str],
        folder: Path,
        model: Model | None = None,
        pretrained: Path | None = None,
    ) -> Mapping[str, Simple]:
        """Each word's most frequent tag, and nothing at all."""
        train, test = rows[rows["split"] == "train"], rows[rows["split"] == "test"]
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for row, truth in zip(train.itertuples(), self.truths(train), strict=True):
            for (start, end), tag in zip(
                truth["words"], tags_of(truth["spans"], truth["words"]), strict=True
            ):
                counts[str(row.text)[start:end]][tag] += 1
        # Of tags that are equally frequent the first in the alphabet.
        usual = {word: min(tags, key=lambda tag: (-tags[tag], tag)) for word, tags in counts.items()}
        known, nothing = [], []
        for row, truth in zip(test.itertuples(), self.truths(test), strict=True):
            text = str(row.text)
            tags = [usual.get(text[start:end], OUTSIDE) for start, end in truth["words"]]
            known.append(token_metrics.answer(text, spans_of(tags, truth["words"])))
            nothing.append(token_metrics.answer(text, []))
        return {
            "usual-tag": Simple(
                "each word's most frequent tag in the train split; unknown words none", known
            ),
            "nothing": Simple("no entity anywhere", nothing),
        }

    def case(self, row: Any, said: dict[str, Any], folder: Path) -> Case:  # noqa: ANN401 - a row of a data frame
        """The text with the entities that were found, missed, and found where there are none."""
        text = str(row.text)
        true = [(int(start), int(end), str(label)) for start, end, label in target_of(row)["spans"]]
        found = token_metrics.spans_said(said)
        return Case(_told(text, true), _told(text, found), marks=marked(text, true, found))


def _errors(text: str, target: dict[str, Any]) -> tuple[str | None, str | None]:
    """What is wrong with a text's spans by themselves, and with how they lie."""
    spans = target["spans"]
    for start, end, label in spans:
        if not 0 <= start < end <= len(text):
            return (
                f"span {start}-{end} ({label}) is no part of the text, which has {len(text)} characters",
                None,
            )
        if not str(label).strip():
            return f"span {start}-{end} has no label", None
    return None, _disorder(text, spans, target.get("words"))


def _disorder(text: str, spans: list[Any], words: list[Any] | None) -> str | None:
    starts, ends = set(), set()
    for start, end in words or words_of(text):
        starts.add(start)
        ends.add(end)
    last, before = 0, ""
    for start, end, label in sorted(spans):
        told = f"span {start}-{end} {text[start:end]!r} ({label})"
        if start < last:
            return f"{told} overlaps {before}"
        if start not in starts or end not in ends:
            return f"{told} begins or ends inside of a word, or with a blank"
        last, before = end, told
    return None


def _tags(samples: WordSamples, index: int, best: NDArray[np.int64], classes: list[str]) -> list[str]:
    """The tags of a text's words out of its windows' tokens.

    Args:
        samples: the texts.
        index: which text.
        best: numbers of tags, shape (windows, tokens).
        classes: the tags.
    """
    tags = [OUTSIDE] * len(samples.words[index])
    for row, window in zip(best, samples.windows([index]), strict=True):
        start, length = samples.rows.starts[window], samples.rows.lengths[window]
        for number, word in zip(row[:length], samples.of_word[start : start + length], strict=True):
            if word >= 0:
                tags[word] = classes[number]
    for word, told_as in samples.sharing[index].items():
        # One token for several words: what it begins goes on.
        tags[word] = f"I-{tags[told_as][2:]}" if tags[told_as] != OUTSIDE else OUTSIDE
    return tags


def _told(text: str, spans: Sequence[Span]) -> str:
    return "; ".join(f"{label}: {text[start:end]}" for start, end, label in sorted(spans)) or "nothing"


def marked(text: str, true: Sequence[Span], found: Sequence[Span]) -> tuple[tuple[str, str], ...]:
    """A text in pieces: "right" where a span was found as it is, "missed" or "wrong" where one only is."""
    marks = np.zeros(len(text), dtype=np.int8)
    # What is wrong hides what is missed: both are seen in how far they reach.
    for number, spans in (
        (1, set(true) - set(found)),
        (2, set(found) - set(true)),
        (3, set(true) & set(found)),
    ):
        for start, end, _ in spans:
            marks[start:end] = number
    names = ("", "missed", "wrong", "right")
    borders = {at for start, end, _ in (*true, *found) for at in (start, end)}
    cuts = sorted({0, len(text), *borders, *(np.flatnonzero(np.diff(marks)) + 1).tolist()})
    return tuple((text[start:end], names[marks[start]]) for start, end in pairwise(cuts))
