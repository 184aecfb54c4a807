"""Word vectors: a file of GloVe, word2vec or fastText, or a folder of Model2Vec or Sentence Transformers.

Their words become a tokenizer and the rows of a table. The encoder upon it starts at random, drawn with a
fixed seed: it is written with the vectors, so that every training starts from the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steps import entry, wordvectors
from steps.artifacts import read_json
from steps.errors import WeightsError
from steps.references import VectorsWeights
from steps.sources import Found, vectorfiles
from steps.sources.vectorfiles import Entry
from steps.sources.weights import check_pin, fingerprint, load_weights
from steps.wordvectors import WordVectors

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer

# Of the encoder upon the vectors.
SEED = 0
PADDING, UNKNOWN = "[PAD]", "[UNK]"
# Words of a file that are its vector for words it does not have.
_UNKNOWN_IN_FILES = ("[UNK]", "<unk>", "<UNK>")
# What a text is cut into: numbers, words, signs. And contractions as the Penn Treebank cuts them, `do n't`,
# for vectors that were made of texts cut like this.
_PIECES = r"\d+(?:[.,]\d+)*|\.\.\.|\w+|[^\w\s]"
_CONTRACTIONS = r"(?i)\w+(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b|"
# Names of the matrix in a folder.
_MATRICES = ("embeddings", "embedding.weight")


@dataclass(frozen=True)
class Table:
    """Vectors with what makes ids of words.

    Attributes:
        matrix: a row for each id, shape (words, dim), float32.
        tokenizer: makes these ids.
        special: the tokenizer's tokens for padding and for unknown words, where it has them.
        normalise: features have length 1.
        told: for the provenance.
    """

    matrix: NDArray[np.float32]
    tokenizer: Tokenizer
    special: dict[str, str]
    normalise: bool
    told: dict[str, Any]


def read(reference: VectorsWeights, scratch: Path) -> Found:
    """Read word vectors, and draw the encoder upon them.

    Args:
        reference: to the file or folder.
        scratch: where the tokenizer is written.

    Raises:
        WeightsError: they are malformed (the message names line or byte), altered, or more than fit.
    """
    path = Path(reference.path)
    sha256 = check_pin(fingerprint(path), reference.sha256, path.name)
    is_folder = path.is_dir()
    if reference.format != "auto" and is_folder != (reference.format == "model2vec"):
        kind = "a folder" if is_folder else "a file"
        raise WeightsError(f"{path.name} is {kind}, which `format: {reference.format}` never is")
    table = _of_folder(path, reference) if is_folder else _of_file(path, reference)
    words, dim = table.matrix.shape
    description = wordvectors.describe(reference.encoder, words, dim, normalise=table.normalise)
    tensors = _with_encoder(description, table.matrix)
    drawn = sorted(set(tensors) - {"embedding.weight"})
    provenance = {
        "source": "vectors",
        "file": path.name,
        "sha256": sha256,
        "licence": reference.licence,
        "drawn_at_random": drawn,
        "seed": SEED if drawn else None,
        **table.told,
    }
    return Found(tensors, description, _write_tokenizer(table, scratch), provenance)


def _with_encoder(description: dict[str, Any], matrix: NDArray[np.float32]) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        tensors = dict(WordVectors(description).state_dict())
    return tensors | {"embedding.weight": torch.from_numpy(matrix)}


def _write_tokenizer(table: Table, scratch: Path) -> list[Path]:
    from transformers import PreTrainedTokenizerFast

    folder = scratch / "tokenizer"
    made: Any = PreTrainedTokenizerFast
    made(tokenizer_object=table.tokenizer, **table.special).save_pretrained(folder)
    return sorted(folder.iterdir())


# ------------------------------------------------------------------------------------------------ from a file


def _of_file(path: Path, reference: VectorsWeights) -> Table:
    normalizer = _normalizer(reference.lower_case)
    assert reference.format != "model2vec"
    kept = _Kept(normalizer, reference.max_words)
    for one in vectorfiles.entries(path, reference.format):
        if kept.full:
            break
        kept.add(one)
    if not kept.words:
        raise WeightsError(f"{path.name}: has no words")
    matrix = kept.matrix()
    told = {
        "words": len(kept.words),
        "dim": matrix.shape[1],
        "repeated": kept.repeated,
        "unknown": "the file's own" if kept.unknown is not None else "the mean of all words",
        "lower_case": reference.lower_case,
    }
    entry.say(
        f"{path.name}: {len(kept.words):,} words with {matrix.shape[1]} numbers each, "
        f"{kept.repeated:,} that came again left out"
    )
    special = {"pad_token": PADDING, "unk_token": UNKNOWN}
    return Table(matrix, _tokenizer(kept.words, normalizer), special, False, told)


class _Kept:
    """The words that are kept of a file, in its order.

    Args:
        normalizer: what texts pass through; words do too.
        most: how many words are kept.
    """

    def __init__(self, normalizer: Normalizer, most: int) -> None:
        self.normalizer, self.most = normalizer, most
        self.words: dict[str, int] = {}
        self.rows: list[NDArray[np.float32]] = []
        self.unknown: NDArray[np.float32] | None = None
        self.repeated = 0

    @property
    def full(self) -> bool:
        return len(self.words) >= self.most

    def add(self, one: Entry) -> None:
        """Keep a word; of one that comes again, and of two that differ in case alone, the first stays."""
        if one.word in _UNKNOWN_IN_FILES:
            self.unknown = one.vector if self.unknown is None else self.unknown
            return
        word = str(self.normalizer.normalize_str(one.word))
        if one.word == PADDING:  # padding has no vector
            return
        if word in self.words:
            self.repeated += 1
            return
        self.words[word] = len(self.words)
        self.rows.append(one.vector)

    def matrix(self) -> NDArray[np.float32]:
        """Zeros for padding, the vector of unknown words, then the words."""
        rows = np.stack(self.rows)
        unknown = rows.mean(axis=0, dtype=np.float64) if self.unknown is None else self.unknown
        return np.vstack([np.zeros_like(rows[:1]), unknown[None].astype(np.float32), rows])


def _normalizer(lower_case: bool) -> Normalizer:
    from tokenizers import normalizers

    steps = [normalizers.NFC(), normalizers.Replace("\u2019", "'")]
    return normalizers.Sequence([*steps, normalizers.Lowercase()] if lower_case else steps)


def _tokenizer(words: dict[str, int], normalizer: Normalizer) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    rows = {PADDING: wordvectors.PADDING, UNKNOWN: wordvectors.UNKNOWN}
    vocabulary = rows | {word: index + len(rows) for word, index in words.items()}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    pieces = Regex((_CONTRACTIONS if "n't" in words else "") + _PIECES)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, "removed", invert=True)
    return tokenizer


# ---------------------------------------------------------------------------------------------- from a folder


def _of_folder(path: Path, reference: VectorsWeights) -> Table:
    """A matrix with a tokenizer of its own, as Model2Vec or Sentence Transformers lay them out."""
    from tokenizers import Tokenizer

    inner, normalise = _modules(path)
    text = _tokenizer_text(inner if (inner / "tokenizer.json").is_file() else path)
    matrix = _matrix(inner, path.name)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:
        raise WeightsError(
            f"{path.name}: tokenizer.json cannot be read: {' '.join(str(error).split())[:200]}"
        ) from None
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if size > len(matrix):
        raise WeightsError(f"{path.name}: the tokenizer has {size:,} words, the matrix {len(matrix):,} rows")
    if len(matrix) > reference.max_words:
        raise WeightsError(
            f"{path.name} has {len(matrix):,} words, more than max_words {reference.max_words:,}, and its "
            f"tokenizer cannot be cut: set `max_words: {len(matrix)}`, or take a smaller one"
        )
    entry.say(f"{path.name}: {len(matrix):,} words with {matrix.shape[1]} numbers each, with their tokenizer")
    told = {"words": len(matrix), "dim": matrix.shape[1], "normalise": normalise}
    return Table(matrix, tokenizer, _special(tokenizer), normalise, told)


def _modules(path: Path) -> tuple[Path, bool]:
    """Where the matrix lies, and whether features have length 1."""
    config = read_json(path / "config.json", "the model's author") if (path / "config.json").is_file() else {}
    if not (path / "modules.json").is_file():
        return path, bool(config.get("normalize", False))
    modules = read_json(path / "modules.json", "the model's author")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds[:1] != ["StaticEmbedding"] or set(kinds[1:]) - {"Normalize"}:
        raise WeightsError(
            f"{path.name}: is made of {', '.join(kinds)}, not of one matrix of vectors; "
            "give it as `source: folder`"
        )
    inner = PurePosixPath(str(modules[0].get("path", "")))
    if inner.is_absolute() or ".." in inner.parts:
        raise WeightsError(f"{path.name}: modules.json names a path outside of the folder: {inner}")
    return path / inner, "Normalize" in kinds


def _tokenizer_text(folder: Path) -> str:
    """tokenizer.json without what would be added to every text: the mean is over the words alone."""
    if not (folder / "tokenizer.json").is_file():
        raise WeightsError(f"{folder.name}: has no tokenizer.json; give a folder that Model2Vec wrote")
    content = read_json(folder / "tokenizer.json", "the model's author")
    return json.dumps(content | {"post_processor": None, "padding": None, "truncation": None})


def _matrix(folder: Path, where: str) -> NDArray[np.float32]:
    """One row for each id of the tokenizer.

    Model2Vec may keep a weight for each word, and let several words share a row.
    """
    if not (folder / "model.safetensors").is_file():
        raise WeightsError(f"{where}: has no model.safetensors; give a folder that Model2Vec wrote")
    tensors = load_weights(folder / "model.safetensors")
    name = next((name for name in _MATRICES if name in tensors), None)
    if name is None or tensors[name].ndim != 2 or not tensors[name].is_floating_point():
        held = ", ".join(
            f"{key} {tuple(tensor.shape)} {tensor.dtype}" for key, tensor in list(tensors.items())[:3]
        )
        raise WeightsError(
            f"{where}: holds no matrix of numbers by the name `embeddings`, but {held or 'nothing'}"
        )
    matrix = tensors[name].float()
    if (mapping := tensors.get("mapping")) is not None:
        if not 0 <= int(mapping.min()) <= int(mapping.max()) < len(matrix):
            raise WeightsError(
                f"{where}: `mapping` names rows that the matrix of {len(matrix)} does not have"
            )
        matrix = matrix[mapping.long()]
    if (weights := tensors.get("weights")) is not None:
        if weights.shape != (len(matrix),):
            raise WeightsError(f"{where}: has {tuple(weights.shape)} weights for {len(matrix)} words")
        matrix = matrix * weights.float()[:, None]
    if not matrix.isfinite().all():
        row = int((~matrix.isfinite()).any(dim=1).nonzero()[0])
        raise WeightsError(f"{where}: the vector of word {row} holds a number that is not finite")
    return matrix.numpy()


def _special(tokenizer: Tokenizer) -> dict[str, str]:
    """The tokens for padding and for unknown words, where the tokenizer has them."""
    found = {}
    for key, names in {"pad_token": (PADDING, "<pad>"), "unk_token": (UNKNOWN, "<unk>")}.items():
        there = [name for name in names if tokenizer.token_to_id(name) is not None]
        if there:
            found[key] = there[0]
    return found
