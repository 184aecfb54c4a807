"""Texts, one label each."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from steps.errors import DataError
from steps.params import Model, Validation
from steps.tasks import Content, Expectation

if TYPE_CHECKING:
    from torch import Tensor


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

    def samples(self, contents: Sequence[Content], model: Model, pretrained: Path) -> TextSamples:
        """Token ids, cut at `max_tokens`."""
        return TextSamples(contents, pretrained, model.max_tokens)

    def content(self, row: Any, folder: Path) -> Content:  # noqa: ANN401 - a row of a data frame
        """The text itself."""
        return str(row.text)


class TextSamples:
    """Texts as token batches, padded to the longest in the batch; tensors of shape (batch, tokens)."""

    def __init__(self, contents: Sequence[Content], pretrained: Path, max_tokens: int) -> None:
        # A fast tokenizer's threads and a forked process do not go together; it warns unless told.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoTokenizer

        for content in contents:
            if not isinstance(content, str) or not content.strip():
                raise DataError("a text is empty, or is no text")
        self.tokenizer = AutoTokenizer.from_pretrained(pretrained, local_files_only=True)
        self.tokens: list[list[int]] = (
            self.tokenizer(list(contents), truncation=True, max_length=max_tokens)["input_ids"]
            if contents
            else []
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` of the texts at these places."""
        import torch

        rows = [self.tokens[index] for index in indices]
        longest = max(map(len, rows))
        padding = int(self.tokenizer.pad_token_id or 0)
        return {
            "input_ids": torch.tensor([row + [padding] * (longest - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        }


def normalised(text: str) -> str:
    """A hash that texts share when they differ only by case, blanks, punctuation or Unicode form."""
    plain = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
    # Of a text of nothing but signs, `:)`, the signs are all there is.
    return _hash(plain or text.strip())


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
