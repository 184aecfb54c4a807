"""Tokens and their tags, one a line, an empty line between sentences: the column files of the CoNLL tasks.

Entities are told by tags of one of three schemes, found out by looking: IOB2 (`B-` begins every entity), IOB1
(`B-` only between two of a kind) or BIOES (also written BILOU or BMES: the last token and single ones are
marked too). They become spans: characters of the text that the tokens make when joined by blanks.

Source: Tjong Kim Sang and De Meulder, Introduction to the CoNLL-2003 Shared Task, 2003.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Literal

from steps.errors import DataError
from steps.layouts import ConllData
from steps.raw import SPLIT_NAMES, RawData, RawSample, decode, few, present

DOCUMENT = "-DOCSTART-"
OUTSIDE = "O"
# What begins, goes on, ends and is a whole entity, as the different writings have it.
_PREFIXES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
_NEVER = "which BIOES has never; correct the tags"
_TAG = re.compile(r"([A-Z])-(.+)", re.DOTALL)
# Further names of splits: eng.testa and eng.testb are those of CoNLL-2003.
_SPLITS = {**SPLIT_NAMES, "testa": "validation", "testb": "test"}
_TEXT_SUFFIXES = (
    "",
    ".txt",
    ".conll",
    ".iob",
    ".iob2",
    ".bio",
    ".bioes",
    ".tsv",
    ".train",
    ".testa",
    ".testb",
)


@dataclass(frozen=True)
class Token:
    """A line: where it stands, the token, and how its tag begins and goes on; ("", "") outside."""

    where: str
    text: str
    prefix: str
    label: str


@dataclass(frozen=True)
class Sentence:
    """Tokens between two empty lines, the split they are of, and the document, counted in its file."""

    tokens: list[Token]
    split: str | None
    document: tuple[str, int] | None


def read(data: ConllData) -> RawData:
    """The sentences of a file, or of the files of a folder that are named after splits.

    Raises:
        DataError: a line has not the columns of the first or no known tag, the tags follow no scheme, or a
            folder has no file for train.
    """
    path = present(Path(data.path))
    files, notes = ([(None, path)], list[str]()) if path.is_file() else _files(path)
    sentences = [sentence for split, file in files for sentence in _sentences(file, split, data)]
    return RawData(_samples(_as_iob2(sentences)), notes)


def _files(root: Path) -> tuple[list[tuple[str | None, Path]], list[str]]:
    """The file of each split, in the order train, validation, test; and what was left aside."""
    found: dict[str, Path] = {}
    others: list[str] = []
    for path in sorted(root.iterdir(), key=lambda one: one.name):
        if path.name.startswith("."):
            continue
        splits = {_SPLITS[part] for part in re.split(r"[._-]", path.name.lower()) if part in _SPLITS}
        if not path.is_file() or len(splits) != 1:
            others.append(path.name)
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            raise DataError(f"{path} is a link that leaves {root}; put the file there")
        split = splits.pop()
        if split in found:
            raise DataError(f"{root} holds two files for {split}: {found[split].name} and {path.name}")
        found[split] = path
    if "train" not in found:
        raise DataError(
            f"{root} holds no file for train ({few(others) or 'it is empty'}); name the files train, dev and "
            "test, or let `data.path` be the one file"
        )
    notes = [f"left aside in {root}: {few(others)}"] if others else []
    order = dict.fromkeys(SPLIT_NAMES.values())
    return [(split, found[split]) for split in order if split in found], notes


# ---------------------------------------------------------------------------------------------------- lines


def _sentences(path: Path, split: str | None, data: ConllData) -> Iterator[Sentence]:
    tokens: list[Token] = []
    columns, documents, known = 0, 0, False
    # The empty line after the last one ends the last sentence.
    lines = chain(decode(path.read_bytes(), data.encoding, str(path)).split("\n"), [""])
    for number, line in enumerate(lines, start=1):
        where, cells = f"{path.name}:{number}", _cells(line, data.separator)
        starts_document = bool(cells) and cells[0] == DOCUMENT
        if tokens and (not cells or starts_document):
            yield Sentence(tokens, split, (path.name, documents) if known else None)
            tokens = []
        if starts_document:
            documents, known = documents + 1, True
        elif cells:
            columns = columns or len(cells)
            if len(cells) != columns:
                raise DataError(f"{where} has {len(cells)} columns, the lines before have {columns}")
            tokens.append(_token(where, cells, data))


def _cells(line: str, separator: str | None) -> list[str]:
    """The columns; only blanks and tabs part them, since a token may hold a blank of another kind."""
    line = line.strip("\r\n")
    if not line.strip(" \t"):
        return []
    return re.split(r"[ \t]+", line.strip(" \t")) if separator is None else line.split(separator)


def _token(where: str, cells: list[str], data: ConllData) -> Token:
    for name, column in (("token", data.token), ("tag", data.tag)):
        if not -len(cells) <= column < len(cells):
            raise DataError(f"{where} has {len(cells)} columns, `{name}: {column}` is not among them")
    text, tag = cells[data.token], cells[data.tag].strip()
    if not text.strip():
        raise DataError(f"{where} has no token in column {data.token}")
    if tag == OUTSIDE:
        return Token(where, text, "", "")
    found = _TAG.fullmatch(tag)
    if found is None or found[1] not in _PREFIXES:
        raise DataError(f"{where}: tag {tag!r} is none; tags are O, or B-, I-, E- or S- and a label")
    return Token(where, text, _PREFIXES[found[1]], found[2])


# -------------------------------------------------------------------------------------------------- schemes


def _as_iob2(sentences: list[Sentence]) -> list[Sentence]:
    """The sentences with tags of `B` and `I` alone, every entity begun by `B`.

    Raises:
        DataError: the tags follow none of the schemes; the message names the lines that say so.
    """
    if any(token.prefix in ("E", "S") for sentence in sentences for token in sentence.tokens):
        for sentence in sentences:
            _check_bioes(sentence.tokens)
        scheme: Literal["IOB1", "IOB2"] = "IOB2"
    else:
        scheme = _scheme(sentences)
    return [replace(sentence, tokens=[*_begun(sentence.tokens, scheme)]) for sentence in sentences]


def _scheme(sentences: list[Sentence]) -> Literal["IOB1", "IOB2"]:
    """Which of the two it is, by what the other one has never."""
    not_iob2, not_iob1 = "", ""
    for token, before in _with_before(sentences):
        goes_on = before is not None and bool(before.label) and before.label == token.label
        if token.prefix == "I" and not goes_on:
            not_iob2 = not_iob2 or f"{token.where} begins with I-{token.label}, which IOB2 has never"
        if token.prefix == "B" and not goes_on:
            not_iob1 = not_iob1 or f"{token.where} has a B-{token.label} that IOB1 writes I-{token.label}"
    if not_iob2 and not_iob1:
        raise DataError(f"the tags follow no scheme: {not_iob2}, and {not_iob1}; correct the tags")
    return "IOB1" if not_iob2 else "IOB2"


def _with_before(sentences: Iterable[Sentence]) -> Iterator[tuple[Token, Token | None]]:
    """Every token with the one before it in its sentence."""
    for sentence in sentences:
        yield from (
            (token, before) for before, token in pairwise([None, *sentence.tokens]) if token is not None
        )


def _check_bioes(tokens: list[Token]) -> None:
    """Raise DataError at an entity that does not end as it should."""
    open_label = ""
    for token in tokens:
        if (token.prefix in ("I", "E")) != bool(open_label) or (open_label and token.label != open_label):
            told = f"{token.prefix}-{token.label}" if token.prefix else OUTSIDE
            after = f"inside of an entity {open_label}" if open_label else "where no entity has begun"
            raise DataError(f"{token.where}: {told} stands {after}, {_NEVER}")
        open_label = token.label if token.prefix in ("B", "I") else ""
    if open_label:
        raise DataError(f"{tokens[-1].where}: the sentence ends inside of an entity {open_label}, {_NEVER}")


def _begun(tokens: list[Token], scheme: Literal["IOB1", "IOB2"]) -> Iterator[Token]:
    before = ""
    for token in tokens:
        begins = token.prefix in ("B", "S") or (scheme == "IOB1" and token.label != before)
        yield replace(token, prefix="B" if begins else "I") if token.label else token
        before = token.label


# -------------------------------------------------------------------------------------------------- samples


def _samples(sentences: list[Sentence]) -> Iterator[RawSample]:
    named = _document_names(sentences)
    for sentence in sentences:
        words: list[list[int]] = []
        spans: list[list[int | str]] = []
        end = -1
        for token in sentence.tokens:
            start, end = end + 1, end + 1 + len(token.text)
            words.append([start, end])
            if token.prefix == "B":
                spans.append([start, end, token.label])
            elif token.prefix == "I":
                spans[-1][1] = end
        yield RawSample(
            sentence.tokens[0].where,
            " ".join(token.text for token in sentence.tokens),
            min((str(label) for _, _, label in spans), default="none"),
            split=sentence.split,
            group=named[sentence.document] if sentence.document else None,
            target={"spans": spans, "words": words},
        )


def _document_names(sentences: list[Sentence]) -> dict[tuple[str, int], str]:
    """A name for each document, made from its text: it stays when other documents come or go."""
    texts: dict[tuple[str, int], list[str]] = {}
    for sentence in sentences:
        if sentence.document:
            texts.setdefault(sentence.document, []).extend(token.text for token in sentence.tokens)
    return {
        document: hashlib.sha256("\n".join(tokens).encode("utf-8")).hexdigest()[:16]
        for document, tokens in texts.items()
    }
