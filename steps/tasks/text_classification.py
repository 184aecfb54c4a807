"""Texts, one label each."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steps.errors import DataError
from steps.params import Machine, Model, Validation
from steps.tasks import Content, Expectation

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

# Texts tokenised at a time.
BLOCK = 1024


class TextClassification:
    """Task `text-classification`."""

    name = "text-classification"
    column: Literal["path", "text"] = "text"

    def facts(self, manifest: pd.DataFrame, folder: Path, settings: Validation) -> pd.DataFrame:
        """Length, hash of the text, and the text it repeats but for case, blanks and punctuation."""
        texts = [text if isinstance(text, str) else "" for text in manifest["text"]]
        # An empty text has no content that it could share with another.
        contents = [_hash(text.strip()) if text.strip() else None for text in texts]
        likeness = [normalised(text) if text.strip() else None for text in texts]
        near: list[str | None] = []
        first: dict[str | None, tuple[str, str | None]] = {}
        for name, content, key in zip(manifest["id"], contents, likeness, strict=True):
            seen, seen_content = first.setdefault(key, (name, content))
            near.append(seen if seen_content != content else None)
        return pd.DataFrame(
            {
                "characters": [len(text.strip()) for text in texts],
                "content": contents,
                "near_duplicate_of": near,
                "near_group": likeness,
                "split_key": likeness,
            },
            index=manifest.index,
        )

    def expectations(self, settings: Validation) -> list[Expectation]:
        """Texts are not empty and not too long."""
        return [
            Expectation(
                "text_not_empty",
                "ExpectColumnValuesToBeBetween",
                {"column": "characters", "min_value": settings.min_characters},
                "the text has {characters} characters, fewer than min_characters",
            ),
            Expectation(
                "text_within_limits",
                "ExpectColumnValuesToBeBetween",
                {"column": "characters", "max_value": settings.max_characters},
                "the text has {characters} characters, more than max_characters",
            ),
        ]

    def samples(
        self,
        contents: Sequence[Content],
        model: Model,
        pretrained: Path,
        augment: Sequence[str] = (),
        machine: Machine | None = None,
    ) -> TextSamples:
        """Token ids, cut at `max_tokens`; texts have no augmented views."""
        assert not augment, augment
        return TextSamples(contents, pretrained, model.max_tokens)

    def content(self, row: Any, folder: Path) -> Content:  # noqa: ANN401 - a row of a data frame
        """The text itself."""
        return str(row.text)


class TextSamples:
    """Texts as token batches, padded to the longest in the batch; tensors of shape (batch, tokens), int64.

    Attributes:
        lengths: tokens of each text.
    """

    def __init__(self, contents: Sequence[Content], pretrained: Path, max_tokens: int) -> None:
        # A fast tokenizer's threads and a forked process do not go together; it warns unless told.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoTokenizer

        texts = [content for content in contents if isinstance(content, str) and content.strip()]
        if len(texts) < len(contents):
            raise DataError("a text is empty, or is no text")
        tokenizer = AutoTokenizer.from_pretrained(pretrained, local_files_only=True)
        self.padding = int(tokenizer.pad_token_id or 0)
        self.tokens, self._lengths = _tokenised(tokenizer, texts, max_tokens)
        self.starts = np.cumsum(self._lengths) - self._lengths
        self.lengths: list[int] = self._lengths.tolist()

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: list[int], view: int | None = None) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` of the texts at these places; every view is the text itself."""
        import torch

        lengths = self._lengths[indices][:, None]
        columns = np.arange(lengths.max())
        real = columns < lengths
        # Beyond a text's end its last token stands in, to be overwritten by padding.
        ids = self.tokens[self.starts[indices][:, None] + np.minimum(columns, lengths - 1)]
        padded = np.where(real, ids, self.padding).astype(np.int64)
        return {
            "input_ids": torch.from_numpy(padded),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
        }


def _tokenised(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_tokens: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The ids of all texts one after another, and how many each has.

    Python's lists of numbers take nine times as much, so no more than a block of texts becomes such lists.
    """
    parts, lengths = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    for at in range(0, len(texts), BLOCK):
        found = tokenizer(texts[at : at + BLOCK], truncation=True, max_length=max_tokens)["input_ids"]
        lengths.append(np.fromiter(map(len, found), np.int64, len(found)))
        parts.append(np.fromiter(chain.from_iterable(found), np.int32, int(lengths[-1].sum())))
    return np.concatenate(parts), np.concatenate(lengths)


def normalised(text: str) -> str:
    """A hash that texts share when they differ only by case, blanks, punctuation or Unicode form."""
    plain = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
    # Of a text of nothing but signs, `:)`, the signs are all there is.
    return _hash(plain or text.strip())


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
