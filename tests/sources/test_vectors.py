from __future__ import annotations

import gzip
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from steps import artifacts, network
from steps.errors import WeightsError
from steps.fetch import fetch
from steps.params import Model
from steps.references import VectorsWeights
from steps.sources import Found, vectors
from steps.sources.weights import fingerprint
from steps.tasks.of_texts import OfTexts

# A word and its vector; exact in float32 and in short decimals.
WORDS = {
    "the": [0.5, -1.0, 0.25],
    "Moon": [1.0, 2.0, 3.0],
    "moon": [9.0, 9.0, 9.0],
    ".": [0.0, 0.125, -0.5],
    "naïve": [-1.0, 0.0, 1.0],
}
KINDS = ["glove", "fasttext", "text", "binary", "gz"]


def as_text(header: bool = True) -> bytes:
    lines = [f"{word} {' '.join(map(str, vector))}" for word, vector in WORDS.items()]
    return "\n".join([f"{len(WORDS)} 3"] * header + lines).encode() + b"\n"


def as_binary(newlines: bool = True) -> bytes:
    """As word2vec writes; gensim leaves the line ends out."""
    entries = [word.encode() + b" " + np.array(vector, "<f4").tobytes() for word, vector in WORDS.items()]
    end = b"\n" if newlines else b""
    return f"{len(WORDS)} 3\n".encode() + b"".join(entry + end for entry in entries)


def content(kind: str) -> bytes:
    made: dict[str, Callable[[], bytes]] = {
        "glove": lambda: as_text(header=False),
        "fasttext": as_text,
        "text": as_text,
        "binary": as_binary,
        "gz": lambda: gzip.compress(as_binary(newlines=False)),
    }
    return made[kind]()


def read(path: Path, scratch: Path, **changes: Any) -> Found:
    return vectors.read(VectorsWeights(source="vectors", path=str(path), **changes), scratch)


def written(folder: Path, given: bytes, name: str = "words.txt") -> Path:
    path = folder / name
    path.write_bytes(given)
    return path


def table(found: Found) -> list[list[float]]:
    rows: list[list[float]] = found.tensors["embedding.weight"].tolist()
    return rows


def tokens(found: Found, scratch: Path, texts: Sequence[str]) -> list[list[int]]:
    """Ids as the tasks make them."""
    samples: Any = OfTexts().samples(texts, Model(pretrained="x"), scratch / "tokenizer")
    # One by one, so that nothing is padded.
    return [samples.batch([index])["input_ids"][0].tolist() for index in range(len(texts))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("told", [True, False])
def test_every_format_gives_the_same(tmp_path: Path, kind: str, told: bool) -> None:
    form = {"glove": "glove", "fasttext": "fasttext"}.get(kind, "word2vec") if told else "auto"
    path = written(tmp_path, content(kind))
    found = read(path, tmp_path, format=form, lower_case=False)
    words = list(WORDS.values())
    mean = np.mean(words, axis=0).astype(np.float32).tolist()
    assert table(found) == [[0.0, 0.0, 0.0], mean, *words]
    assert found.description["words"] == 7
    assert found.provenance["unknown"] == "the mean of all words"
    assert found.provenance["sha256"] == fingerprint(path)
    assert tokens(found, tmp_path, ["the Moon.", "moon, naïve"]) == [[2, 3, 5], [4, 1, 6]]


def test_in_lower_case_the_first_of_two_words_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read(written(tmp_path, content("glove")), tmp_path)
    assert table(found)[2:] == [WORDS[word] for word in ("the", "Moon", ".", "naïve")]
    assert found.provenance["repeated"] == 1
    assert "4 words with 3 numbers each, 1 that came again left out" in capsys.readouterr().out
    assert tokens(found, tmp_path, ["The MOON. NAI\u0308VE"]) == [[2, 3, 4, 5]]


def test_the_most_frequent_words_are_kept(tmp_path: Path) -> None:
    found = read(written(tmp_path, content("binary")), tmp_path, max_words=2)
    assert table(found)[2:] == [WORDS["the"], WORDS["Moon"]]
    assert found.provenance["words"] == 2


def test_a_vector_for_unknown_words_is_taken_and_one_for_padding_is_not(tmp_path: Path) -> None:
    path = written(tmp_path, b"a 1 2\n<unk> 5 6\n[PAD] 7 8\n[UNK] 0 0\n")
    found = read(path, tmp_path)
    assert table(found) == [[0, 0], [5, 6], [1, 2]]
    assert found.provenance["unknown"] == "the file's own"


def test_words_with_blanks_and_strange_signs_are_words(tmp_path: Path) -> None:
    given = "a 1 2\n. . . 3 4\nat name@place.org 5 6\n\u2028 7 8\n\u0085 1 1\r\n".encode()
    found = read(written(tmp_path, given), tmp_path)
    assert table(found)[2:] == [[1, 2], [3, 4], [5, 6], [7, 8], [1, 1]]


def test_texts_are_cut_as_the_vectors_were_made(tmp_path: Path) -> None:
    words = ["do", "n't", "it", "'s", "3.50", "...", "don", "'", "t"]
    given = "".join(f"{word} {index} 0\n" for index, word in enumerate(words)).encode()
    found = read(written(tmp_path, given), tmp_path)
    ids = {word: index + 2 for index, word in enumerate(words)}
    text = "Don't! It\u2019s 3.50..."
    assert tokens(found, tmp_path, [text]) == [
        [ids["do"], ids["n't"], 1, *(ids[word] for word in words[2:6])]
    ]
    plain = written(tmp_path, given.replace(b"n't", b"not"))
    (again := tmp_path / "again").mkdir()
    found = read(plain, again)
    assert tokens(found, again, ["don't"]) == [[ids["don"], ids["'"], ids["t"]]]


MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "blank": (b"\n \n", "is empty"),
    "no numbers": (b"word\n", "line 1 has no numbers behind its word"),
    "fewer": (b"a 1 2\nb 1\n", r"line 2 has 1 numbers, line 1 has 2"),
    "more": (b"a 1 2\nb 1 2 3\n", r"line 2 has 3 numbers, line 1 has 2"),
    "no word": (b"a 1 2\n 1 2\n", "line 2 has no word"),
    "an empty line": (b"a 1 2\n\nb 1 2\n", "line 2 has no numbers"),
    "no number": (b"a 1 2\nb 1 2x\n", "line 2: '2x' is no number"),
    "nan": (b"a 1 2\nb 1 nan\n", "line 2: number 2 is nan, not a finite number"),
    "too large": (b"a 1 2\nb 1e39 1\n", "line 2: number 1 is inf"),
    "not utf-8": (b"a 1 2\nb\xff 1 2\n", "line 2 is not UTF-8: byte 0xff at its place 2"),
    "header of words": (b"3 2\na 1 2\nb 1 2\n", "ends after 2 words, the header tells of 3"),
    "header of fewer words": (b"1 2\na 1 2\nb 1 2\n", "line 3: the header tells of 1 words"),
    "header of numbers": (b"2 3\na 1 2\nb 1 2\n", "line 2 has 2 numbers, the header says 3"),
    "header alone": (b"2 3\n", "ends after 0 words, the header tells of 2"),
    "header of nothing": (b"0 0\n", "line 1 tells of 0 words"),
    "binary cut in a vector": (as_binary()[:-4], r"word 5 of 5, at byte \d+: the file ends within"),
    "binary cut in a word": (as_binary()[:-16], r"word 5 of 5, at byte \d+: the file ends where a word"),
    "binary with more": (as_binary() + b"end", r"there is more from byte \d+ on"),
    "binary nan": (b"1 1\na " + b"\0\0\xc0\x7f", "word 1 of 1, at byte 4: number 1 is nan"),
    "binary not utf-8": (b"1 1\n\xff " + b"\0\0\x80\x3f", "word 1 .*: the word is not UTF-8"),
    "gz cut": (gzip.compress(as_text())[:-12], "the archive is broken"),
    "zip": (b"PK\x03\x04....", "is a zip archive: unpack it"),
    "fasttext bin": (b"\xba\x16\x4f\x2f....", "is a model of fastText"),
    "only padding": (b"[PAD] 1 2\n", "has no words"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_is_told_with_its_place(tmp_path: Path, name: str) -> None:
    given, message = MALFORMED[name]
    with pytest.raises(WeightsError, match=rf"^words\.txt(:| is).*{message.removeprefix('is ')}") as caught:
        read(written(tmp_path, given), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_binary_header_that_lies_about_its_numbers_is_found(tmp_path: Path) -> None:
    for dim in (2, 4):
        path = written(tmp_path, as_binary().replace(b"5 3\n", f"5 {dim}\n".encode(), 1))
        with pytest.raises(WeightsError, match=r"words\.txt: word|there is more"):
            read(path, tmp_path)


def test_a_format_that_it_is_not_is_told(tmp_path: Path) -> None:
    glove = written(tmp_path, content("glove"))
    with pytest.raises(WeightsError, match=r"line 1 is no header .* as fasttext writes it"):
        read(glove, tmp_path, format="fasttext")
    with pytest.raises(WeightsError, match=r"words\.txt is a file, which `format: model2vec` never is"):
        read(glove, tmp_path, format="model2vec")
    with pytest.raises(WeightsError, match="is neither a file nor a folder"):
        read(tmp_path / "none", tmp_path)
    with pytest.raises(WeightsError, match=r"words\.txt has sha256 .*, params\.yaml pins 1111"):
        read(glove, tmp_path, sha256="1" * 64)


# ---------------------------------------------------------------------------------------------------- folders


def tokenizer() -> Any:
    """Six words, and a token that is put before every text unless one asks not to."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel

    names = ["[PAD]", "[UNK]", "the", "moon", "is", "far"]
    made = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[PAD] $A", special_tokens=[("[PAD]", 0)])
    return made


@pytest.mark.parametrize("normalise", [False, True])
def test_a_static_model_gives_the_features_that_its_library_gives(tmp_path: Path, normalise: bool) -> None:
    library = pytest.importorskip("sentence_transformers")
    modules = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    matrix = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    stack = [modules.StaticEmbedding(tokenizer(), embedding_weights=matrix)]
    model = library.SentenceTransformer(modules=stack + [modules.Normalize()] * normalise, device="cpu")
    model.save(str(tmp_path / "static"), create_model_card=False)
    texts = ["The moon is far", "far", "the sun is near"]
    found = read(tmp_path / "static", tmp_path)
    assert found.description["normalise"] is normalise
    backbone = network.architecture(found.description).eval()
    network.load_exactly(backbone.model, found.tensors, "static")
    samples = OfTexts().samples(texts, Model(pretrained="x"), tmp_path / "tokenizer")
    with torch.no_grad():
        features = backbone(samples.batch([0, 1, 2]))
    torch.testing.assert_close(features, torch.from_numpy(model.encode(texts)))


@pytest.fixture
def model2vec(tmp_path: Path) -> Path:
    """A folder as Model2Vec writes it: words that share rows, and a weight for each."""
    folder = tmp_path / "model2vec"
    folder.mkdir()
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", "normalize": True}))
    tensors = {
        "embeddings": torch.arange(6.0).reshape(3, 2),
        "mapping": torch.tensor([0, 1, 2, 2, 1, 0]),
        "weights": torch.tensor([1.0, 1.0, 2.0, 0.5, 1.0, 1.0]),
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_folder_of_model2vec_becomes_one_matrix(tmp_path: Path, model2vec: Path) -> None:
    found = read(model2vec, tmp_path)
    assert table(found) == [[0, 1], [2, 3], [8, 10], [2, 2.5], [2, 3], [0, 1]]
    assert found.description["normalise"] is True
    assert tokens(found, tmp_path, ["THE far"]) == [[2, 5]]


def test_the_parts_of_a_static_model_are_read(tmp_path: Path, model2vec: Path) -> None:
    (model2vec / "inner").mkdir()
    for name in ("tokenizer.json", "model.safetensors"):
        (model2vec / name).rename(model2vec / "inner" / name)
    parts = [
        {"path": "inner", "type": "a.b.StaticEmbedding"},
        {"path": "1_Normalize", "type": "a.c.Normalize"},
    ]
    (model2vec / "modules.json").write_text(json.dumps(parts))
    assert read(model2vec, tmp_path).description["normalise"] is True
    (model2vec / "modules.json").write_text(json.dumps(parts[:1]))
    assert read(model2vec, tmp_path).description["normalise"] is False
    for path, kind, message in [
        ("../elsewhere", "a.b.StaticEmbedding", r"names a path outside of the folder: \.\./elsewhere"),
        ("inner", "a.b.Transformer", "is made of Transformer, Normalize, not of one matrix"),
    ]:
        (model2vec / "modules.json").write_text(json.dumps([{"path": path, "type": kind}, parts[1]]))
        with pytest.raises(WeightsError, match=message):
            read(model2vec, tmp_path)


def test_what_a_folder_lacks_is_told(tmp_path: Path, model2vec: Path) -> None:
    with pytest.raises(WeightsError, match=r"6 words, more than max_words 5, .* set `max_words: 6`"):
        read(model2vec, tmp_path, max_words=5)
    held = load_file(model2vec / "model.safetensors")
    for change, message in [
        ({"mapping": torch.tensor([0, 1, 2, 3, 1, 0])}, "`mapping` names rows that the matrix of 3"),
        ({"weights": torch.ones(2)}, r"has \(2,\) weights for 6 words"),
        (
            {"mapping": torch.tensor([0, 1])},
            "the tokenizer has 6 words, the matrix 2 rows|weights for 2 words",
        ),
        ({"embeddings": torch.full((3, 2), torch.inf)}, "the vector of word 0 holds a number"),
        (
            {"embeddings": torch.zeros(3, 2, dtype=torch.int8)},
            r"holds no matrix .* embeddings \(3, 2\) torch.int8",
        ),
    ]:
        save_file(held | change, model2vec / "model.safetensors")
        with pytest.raises(WeightsError, match=message):
            read(model2vec, tmp_path)
    (model2vec / "tokenizer.json").write_text("{}")
    save_file(held, model2vec / "model.safetensors")
    with pytest.raises(WeightsError, match=r"tokenizer\.json cannot be read"):
        read(model2vec, tmp_path)
    (model2vec / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"has no tokenizer\.json"):
        read(model2vec, tmp_path)


# ------------------------------------------------------------------------------------------------------ fetch


@pytest.mark.parametrize("encoder", ["mean", "cnn", "lstm"])
def test_fetched_it_can_be_built_and_is_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, content("glove"))
    given: dict[str, Any] = {"encoder": encoder, "sha256": fingerprint(path), "licence": "PDDL-1.0"}
    reference = VectorsWeights(source="vectors", path="words.txt", **given)
    artifacts.write_json(artifacts.pretrained_settings_file("words"), reference.model_dump(mode="json"))
    folder, hashes = artifacts.pretrained_dir("words"), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        fetch("words")
        hashes.append({one.name: artifacts.sha256_file(one) for one in folder.iterdir()})
    assert hashes[0] == hashes[1]
    assert torch.initial_seed() == 2
    backbone = network.build_backbone(folder, pretrained=True)
    weight: Any = backbone.model.get_parameter("embedding.weight")
    assert weight[2:].tolist() == [WORDS[word] for word in ("the", "Moon", ".", "naïve")]
    provenance = json.loads((folder / "provenance.json").read_text())
    assert bool(provenance["drawn_at_random"]) == (encoder != "mean")
    assert {name.split(".")[0] for name in provenance["drawn_at_random"]} <= {"body"}
    batch = OfTexts().samples(["The moon.", "the"], Model(pretrained="x"), folder).batch([0, 1])
    assert backbone(batch).shape == (2, backbone.features)
