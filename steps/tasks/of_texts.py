"""What all tasks on texts share: reading, judging, tokenising."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steps.artifacts import read_json
from steps.errors import DataError, UserError
from steps.params import Machine, Model, Validation
from steps.tasks import Content, Expectation, languages

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from steps.data import Samples

# Texts tokenised at a time.
BLOCK = 1024
# The tokenizer last read in each thread. One alone may use a fast tokenizer, whose settings a call changes.
_kept = threading.local()


class OfTexts:
    """A task whose samples are texts."""

    column: Literal["path", "text"] = "text"

    def facts(self, manifest: pd.DataFrame, folder: Path, settings: Validation) -> pd.DataFrame:
        """Length, hash of the text, and the text it repeats but for case, blanks and punctuation."""
        texts = _texts(manifest["text"])
        # An empty text has no content that it could share with another.
        contents = [_hash(text) if text else None for text in texts]
        likeness = [normalised(text) if text else None for text in texts]
        near = _repeated(manifest["id"], contents, likeness)
        return pd.DataFrame(
            {
                "characters": [len(text) for text in texts],
                "content": contents,
                "near_duplicate_of": near,
                "near_group": likeness,
                "split_key": likeness,
                "other_language": pd.Series(languages.others(texts), manifest.index, dtype=object),
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
            Expectation(
                "language_consistent",
                "ExpectColumnValuesToBeNull",
                {"column": "other_language"},
                "is written in {other_language!r}, most texts are not",
                text="no text of 100 characters or more is in another language than most",
            ),
        ]

    def samples(
        self,
        contents: Sequence[Content],
        model: Model,
        pretrained: Path,
        augment: Sequence[str] = (),
        machine: Machine | None = None,
    ) -> Samples:
        """Token ids, cut at `max_tokens`; texts have no augmented views."""
        assert not augment, augment
        return TextSamples(contents, pretrained, model.max_tokens)

    def content(self, row: Any, folder: Path) -> Content:  # noqa: ANN401 - a row of a data frame
        """The text itself."""
        return str(row.text)


class OfPairs(OfTexts):
    """A task whose samples are two texts each: the columns `text` and `pair`.

    Two samples belong together, on one side of the split, when both of their texts are alike, whichever comes
    first. Sharing one text is not enough: where one text meets many others, a question asked of every
    paragraph, all samples would be one group. What must stay together besides is told by the column `group`.
    """

    def facts(self, manifest: pd.DataFrame, folder: Path, settings: Validation) -> pd.DataFrame:
        """As of one text, but of both: a pair repeats another when both texts do, in their order."""
        texts, pairs = _texts(manifest["text"]), _texts(manifest["pair"])
        both = [(text, pair) if text and pair else None for text, pair in zip(texts, pairs, strict=True)]
        contents = [_hash("\0".join(one)) if one else None for one in both]
        alike = [(normalised(one[0]), normalised(one[1])) if one else None for one in both]
        in_order = ["".join(one) if one else None for one in alike]
        unordered = [_hash("".join(sorted(one))) if one else None for one in alike]
        return pd.DataFrame(
            {
                "characters": [len(text) for text in texts],
                "pair_characters": [len(pair) for pair in pairs],
                "content": contents,
                "near_duplicate_of": _repeated(manifest["id"], contents, in_order),
                "near_group": unordered,
                "split_key": unordered,
                "other_language": pd.Series(languages.others(texts), manifest.index, dtype=object),
            },
            index=manifest.index,
        )

    def expectations(self, settings: Validation) -> list[Expectation]:
        """Both texts are there and not too long."""
        return [
            *super().expectations(settings),
            Expectation(
                "pairs_complete",
                "ExpectColumnValuesToBeBetween",
                {"column": "pair_characters", "min_value": settings.min_characters},
                "the second text has {pair_characters} characters, fewer than min_characters",
                text="every sample has its second text",
            ),
            Expectation(
                "text_within_limits",
                "ExpectColumnValuesToBeBetween",
                {"column": "pair_characters", "max_value": settings.max_characters},
                "the second text has {pair_characters} characters, more than max_characters",
            ),
        ]

    def content(self, row: Any, folder: Path) -> Content:  # noqa: ANN401 - a row of a data frame
        """Both texts."""
        return str(row.text), str(row.pair)


# ------------------------------------------------------------------------------------------------- as tokens


class Rows:
    """Rows of token ids, one after another in one array.

    Args:
        ids: of all rows, int32.
        lengths: tokens of each row, at least one.
        padding: the id that stands behind a row's end. The mask says where that is, never the id: GPT-2 has
            no id for padding, and then it is that of some token.
        kinds: of every token, which of two texts it is of; None where the network takes no such thing.
    """

    def __init__(
        self,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int64],
        padding: int,
        kinds: NDArray[np.int8] | None = None,
    ) -> None:
        self.ids, self.lengths, self.padding, self.kinds = ids, lengths, padding, kinds
        self.starts = np.cumsum(lengths) - lengths

    def padded(self, values: NDArray[Any], rows: Any, fill: int) -> NDArray[np.int64]:  # noqa: ANN401 - places
        """A value of each token of these rows, shape (rows, longest row), `fill` behind their ends."""
        lengths = self.lengths[rows][:, None]
        columns = np.arange(lengths.max())
        # Beyond a row's end its last token stands in, to be overwritten.
        found = values[self.starts[rows][:, None] + np.minimum(columns, lengths - 1)]
        return np.where(columns < lengths, found, fill).astype(np.int64)

    def batch(self, rows: Any) -> dict[str, Tensor]:  # noqa: ANN401 - places
        """`input_ids`, `attention_mask` and perhaps `token_type_ids`: shape (rows, tokens), int64."""
        import torch

        lengths = self.lengths[rows][:, None]
        found = {
            "input_ids": self.padded(self.ids, rows, self.padding),
            "attention_mask": (np.arange(lengths.max()) < lengths).astype(np.int64),
        }
        if self.kinds is not None:
            found["token_type_ids"] = self.padded(self.kinds, rows, 0)
        return {name: torch.from_numpy(values) for name, values in found.items()}


class TextSamples:
    """Texts, or pairs of texts, as token batches: padded to the longest in the batch, and cut.

    The longer of two texts is cut first. `token_type_ids` tell them apart where both the tokenizer and the
    network know of such.

    Attributes:
        rows: the tokens, a row for each sample.
        lengths: tokens of each sample.
    """

    def __init__(self, contents: Sequence[Content], pretrained: Path, max_tokens: int) -> None:
        texts, pairs = columns_of(contents)
        tokenizer = tokenizer_of(pretrained)
        kinds = pairs is not None and tells_kinds(tokenizer, pretrained)
        self.rows = _tokenised(tokenizer, texts, pairs, max_tokens, kinds)
        self.lengths: list[int] = self.rows.lengths.tolist()

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: list[int], view: int | None = None) -> dict[str, Tensor]:
        """The inputs of the texts at these places; every view is the text itself."""
        return self.rows.batch(indices)


class WindowSamples:
    """Texts as token batches where a text that is longer than a row has several: its windows.

    A batch has a row for every window of its texts, so there may be more rows than texts. Targets of such
    samples have as many.

    Attributes:
        rows: the tokens.
        counts: windows of each text, shape (texts,).
        lengths: tokens of each text in all its windows.
        windowed: whether any text has more windows than one.
    """

    def __init__(self, rows: Rows, counts: NDArray[np.int64]) -> None:
        assert counts.sum() == len(rows.lengths), (counts.sum(), len(rows.lengths))
        self.rows, self.counts = rows, counts
        self.windowed = bool((counts > 1).any())
        ends = np.concatenate([[0], np.cumsum(rows.lengths)])
        self._first = np.cumsum(counts) - counts
        self.lengths: list[int] = (ends[self._first + counts] - ends[self._first]).tolist()

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def at_a_time(self) -> int:
        """Texts predicted at a time: fewer where one may have many windows."""
        from steps.data import PREDICT_BATCH

        return max(1, PREDICT_BATCH // int(self.counts.max(initial=1)))

    def windows(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """The places in `rows` of these texts' windows, one text after another."""
        parts = [np.arange(self._first[index], self._first[index] + self.counts[index]) for index in indices]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def joined(self, indices: Sequence[int], rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of values of these texts' windows, shape (windows, ...), the mean for each text."""
        ends = np.cumsum(self.counts[np.asarray(indices, dtype=np.intp)])
        parts = np.split(rows, ends[:-1])
        return np.stack([part.mean(axis=0) for part in parts])

    def batch(self, indices: list[int], view: int | None = None) -> dict[str, Tensor]:
        """The inputs of all windows of the texts at these places; every view is the text itself."""
        return self.rows.batch(self.windows(indices))


def tokenizer_of(pretrained: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that fetch put beside the weights; kept, for reading it takes longer than predicting."""
    identity = _identity(pretrained)
    if getattr(_kept, "identity", None) != identity:
        # A fast tokenizer's threads and a forked process do not go together; it warns unless told.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoTokenizer

        _kept.tokenizer = AutoTokenizer.from_pretrained(pretrained, local_files_only=True)
        _kept.identity = identity
    found: PreTrainedTokenizerBase = _kept.tokenizer
    return found


def _identity(folder: Path) -> tuple[Any, ...]:
    """Tells a folder's files from what was there before, without reading them."""
    with os.scandir(folder) as files:
        stats = sorted((file.name, file.stat()) for file in files)
    told = [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return (str(folder.resolve()), *told)


def padding_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id behind a text's end; any id will do where the tokenizer has none, since the mask tells."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def tells_kinds(tokenizer: PreTrainedTokenizerBase, pretrained: Path) -> bool:
    """Whether the network takes `token_type_ids`: many a tokenizer gives them to one that does not."""
    if "token_type_ids" not in tokenizer.model_input_names:
        return False
    from transformers import AutoConfig

    config = read_json(pretrained / "architecture.json", "python -m steps.fetch").get("config") or {}
    if "model_type" not in config:
        return False
    return int(getattr(AutoConfig.for_model(**config), "type_vocab_size", None) or 0) > 1


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around texts.

    Attributes:
        before: ids before the first text.
        between: ids between two texts; none where there is one text.
        after: ids at the end.
        kinds: the value of `token_type_ids` of these five: before, first text, between, second text, after.
        cls: whether the first id of `before` is the one that stands for the whole text.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    kinds: tuple[int, int, int, int, int]
    cls: bool

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self.before) + len(self.between) + len(self.after)


def frame_of(tokenizer: PreTrainedTokenizerBase, pretrained: Path, *, pair: bool) -> Frame:
    """What the tokenizer puts around one text or two.

    Raises:
        UserError: it does not tell which characters a token is of.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{pretrained} has a slow tokenizer, which does not tell the place of a token in its text: "
            "take a reference with a tokenizer.json"
        )
    encoded = tokenizer("a", "b") if pair else tokenizer("a")
    ids, sides = encoded["input_ids"], encoded.sequence_ids(0)
    last = 1 if pair else 0
    if 0 not in sides or last not in sides:
        raise UserError(f"{pretrained}: its tokenizer makes nothing of a letter; take another reference")
    end = len(sides) - sides[::-1].index(0)
    cuts = [sides.index(0), end, sides.index(last), len(sides) - sides[::-1].index(last)]
    kinds = encoded.get("token_type_ids") or [0] * len(ids)
    before, between, after = ids[: cuts[0]], ids[cuts[1] : cuts[2]] if pair else [], ids[cuts[3] :]
    return Frame(
        tuple(before),
        tuple(between),
        tuple(after),
        (kinds[0], kinds[cuts[0]], kinds[cuts[1] - 1 + bool(between)], kinds[cuts[2]], kinds[-1]),
        cls=bool(before) and before[0] == tokenizer.cls_token_id,
    )


def located(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """Of each text the ids of its tokens, nothing around them, and where each begins and ends in the text.

    Yields:
        Ids, shape (tokens,), and places, shape (tokens, 2). Blanks that a token begins with are left out of
        its place. Of a text of which the tokenizer makes nothing, the one for what it does not know.
    """
    for at in range(0, len(texts), BLOCK):
        block = list(texts[at : at + BLOCK])
        # Too long for the network is no matter: they are cut into windows.
        found = tokenizer(block, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for text, ids, places in zip(block, found["input_ids"], found["offset_mapping"], strict=True):
            stripped = [(_no_blanks(text, start, end), end) for start, end in places] or [(0, 0)]
            yield np.array(ids or _unknown(tokenizer), np.int32), np.array(stripped, np.int64)


def _no_blanks(text: str, start: int, end: int) -> int:
    while start < end and text[start].isspace():
        start += 1
    return int(start)


def columns_of(contents: Sequence[Content]) -> tuple[list[str], list[str] | None]:
    """The texts, and the second ones where there are two."""
    pairs = [content for content in contents if isinstance(content, tuple)]
    if pairs:
        whole = [pair for pair in pairs if all(isinstance(text, str) and text.strip() for text in pair)]
        if len(whole) < len(contents):
            raise DataError("one of two texts is empty, or is no text")
        return [text for text, _ in whole], [text for _, text in whole]
    texts = [content for content in contents if isinstance(content, str) and content.strip()]
    if len(texts) < len(contents):
        raise DataError("a text is empty, or is no text")
    return texts, None


def _tokenised(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    pairs: list[str] | None,
    max_tokens: int,
    tell_kinds: bool,
) -> Rows:
    """The ids of all texts, a row each.

    Python's lists of numbers take nine times as much, so no more than a block of texts becomes such lists.
    """
    parts, lengths, kinds = [np.empty(0, np.int32)], [np.empty(0, np.int64)], [np.empty(0, np.int8)]
    for at in range(0, len(texts), BLOCK):
        block = [texts[at : at + BLOCK]] + ([] if pairs is None else [pairs[at : at + BLOCK]])
        encoded = tokenizer(*block, truncation="longest_first", max_length=max_tokens)
        found = [ids or _unknown(tokenizer) for ids in encoded["input_ids"]]
        lengths.append(np.fromiter(map(len, found), np.int64, len(found)))
        parts.append(np.fromiter(chain.from_iterable(found), np.int32, int(lengths[-1].sum())))
        if tell_kinds:
            told = chain.from_iterable(encoded["token_type_ids"])
            kinds.append(np.fromiter(told, np.int8, int(lengths[-1].sum())))
    all_kinds = np.concatenate(kinds) if tell_kinds else None
    return Rows(np.concatenate(parts), np.concatenate(lengths), padding_of(tokenizer), all_kinds)


def _unknown(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What stands for a text of which the tokenizer makes nothing."""
    if tokenizer.unk_token_id is None:
        raise DataError("the tokenizer makes no token of a text, and has none for what it does not know")
    return [int(tokenizer.unk_token_id)]


# ----------------------------------------------------------------------------------------------- compared


def _texts(column: pd.Series) -> list[str]:
    """Without blanks around; empty where there is none."""
    return [text.strip() if isinstance(text, str) else "" for text in column]


def _repeated(ids: pd.Series, contents: list[str | None], likeness: list[str | None]) -> list[str | None]:
    """Id of the first sample that is alike but not the same, of each; None where there is none."""
    near: list[str | None] = []
    first: dict[str | None, tuple[str, str | None]] = {}
    for name, content, key in zip(ids, contents, likeness, strict=True):
        seen, seen_content = first.setdefault(key, (name, content))
        near.append(seen if seen_content != content else None)
    return near


def normalised(text: str) -> str:
    """A hash that texts share when they differ only by case, blanks, punctuation or Unicode form."""
    plain = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
    # Of a text of nothing but signs, `:)`, the signs are all there is.
    return _hash(plain or text.strip())


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
