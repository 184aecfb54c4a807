from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

from steps.errors import DataError
from steps.layouts import ConllData
from steps.raw import RawSample
from steps.raw.conll import read

CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
call NN I-NP O
. . O O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER

-DOCSTART- -X- -X- O

Nothing NN I-NP O
"""


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def taken(path: str = "t.txt", **more: Any) -> list[RawSample]:
    return list(read(ConllData(source="conll", path=path, **more)).samples)


def taken_text(text: str, **more: Any) -> list[RawSample]:
    Path("t.txt").write_bytes(text.encode())
    return taken(**more)


def refused(text: str, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        taken_text(text, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def column(tags: str) -> str:
    """A sentence for each part between bars, a token for each tag."""
    sentences = [part.split() for part in tags.split("|")]
    return "\n\n".join("\n".join(f"w{at} {tag}" for at, tag in enumerate(part)) for part in sentences)


def spans(tags: str) -> list[list[list[Any]]]:
    """Of each sentence its spans, in tokens."""
    found = []
    for sample in taken_text(column(tags)):
        words = sample.target["words"]
        starts = {start: at for at, (start, _) in enumerate(words)}
        ends = {end: at + 1 for at, (_, end) in enumerate(words)}
        found.append([[starts[start], ends[end], label] for start, end, label in sample.target["spans"]])
    return found


def test_sentences_with_characters_of_entities_and_words_and_documents() -> None:
    first, second, third = taken_text(CONLL_2003)
    assert first.content == "EU rejects German call ."
    assert first.target == {
        "spans": [[0, 2, "ORG"], [11, 17, "MISC"]],
        "words": [[0, 2], [3, 10], [11, 17], [18, 22], [23, 24]],
    }
    assert (first.label, second.label, third.label) == ("MISC", "PER", "none")
    assert second.target["spans"] == [[0, 15, "PER"]]
    assert [sample.source for sample in (first, second, third)] == ["t.txt:3", "t.txt:9", "t.txt:14"]
    assert first.group == second.group != third.group
    assert third.target == {"spans": [], "words": [[0, 7]]}


def test_a_document_keeps_its_name_when_another_comes_before_it() -> None:
    before = taken_text(CONLL_2003)
    after = taken_text("-DOCSTART- O\n\nMore NN I-NP O\n\n" + CONLL_2003)
    assert [sample.group for sample in after[1:]] == [sample.group for sample in before]
    assert {sample.group for sample in taken_text("a O\n\nb O\n")} == {None}


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-X I-X O B-X | O", [[[0, 2, "X"], [3, 4, "X"]], []]),
        ("I-X I-X O I-X | I-X B-X", [[[0, 2, "X"], [3, 4, "X"]], [[0, 1, "X"], [1, 2, "X"]]]),
        ("I-X I-Y", [[[0, 1, "X"], [1, 2, "Y"]]]),
        ("B-X B-X I-X", [[[0, 1, "X"], [1, 3, "X"]]]),
        ("S-X B-X I-X E-X O S-Y", [[[0, 1, "X"], [1, 4, "X"], [5, 6, "Y"]]]),
        ("U-X B-X L-X O", [[[0, 1, "X"], [1, 3, "X"]]]),
        ("B-X M-X E-X S-X", [[[0, 3, "X"], [3, 4, "X"]]]),
        ("B-x-y I-x-y", [[[0, 2, "x-y"]]]),
        ("O O", [[]]),
    ],
)
def test_schemes_are_found_out(tags: str, expected: Any) -> None:
    assert spans(tags) == expected


SENTENCES = st.lists(
    st.lists(st.tuples(st.sampled_from(["", "X", "Y"]), st.integers(1, 3)), min_size=1, max_size=6),
    min_size=1,
    max_size=4,
)


@given(SENTENCES, st.sampled_from(["IOB1", "IOB2", "IOBES", "BILOU"]))
def test_whatever_scheme_says_it_the_entities_are_those_of_seqeval(sentences: Any, scheme: str) -> None:
    written = [_written(parts, scheme) for parts in sentences]
    known = {"IOB1": IOB1, "IOB2": IOB2, "IOBES": IOBES, "BILOU": BILOU}[scheme]
    expected = [
        [[one.start, one.end, one.tag] for one in found] for found in Entities(written, known).entities
    ]
    assert spans(" | ".join(" ".join(tags) for tags in written)) == expected


def _written(parts: list[tuple[str, int]], scheme: str) -> list[str]:
    tags: list[str] = []
    before = ""
    for label, length in parts:
        if not label:
            tags += ["O"] * length
        elif scheme == "IOB1":
            tags += [("B-" if before == label else "I-") + label] + [f"I-{label}"] * (length - 1)
        elif scheme == "IOB2":
            tags += [f"B-{label}"] + [f"I-{label}"] * (length - 1)
        else:
            single, last = ("S", "E") if scheme == "IOBES" else ("U", "L")
            inner = [f"B-{label}", *[f"I-{label}"] * (length - 2), f"{last}-{label}"]
            tags += [f"{single}-{label}"] if length == 1 else inner
        before = label
    return tags


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a O\nb O x\n", "t.txt:2 has 3 columns, the lines before have 2"),
        ("a O\n\nb\n", "t.txt:3 has 1 columns, the lines before have 2"),
        ("a Q-X\n", "t.txt:1: tag 'Q-X' is none"),
        ("a O\nb PER\n", "t.txt:2: tag 'PER' is none"),
        ("a B-\n", "t.txt:1: tag 'B-' is none"),
        ("a I-X\n\nb B-X\n", "t.txt:1 begins with I-X, which IOB2 has never, and t.txt:3 has a B-X that"),
        ("a B-X\nb E-Y\n", "t.txt:2: E-Y stands inside of an entity X, which BIOES has never"),
        ("a B-X\nb O\nc S-X\n", "t.txt:2: O stands inside of an entity X"),
        ("a E-X\n", "t.txt:1: E-X stands where no entity has begun"),
        ("a S-X\nb B-X\n\nc O\n", "t.txt:2: the sentence ends inside of an entity X"),
    ],
)
def test_lines_that_cannot_be_used_are_named(text: str, expected: str) -> None:
    assert expected in refused(text)


def test_columns_that_are_not_there() -> None:
    assert "t.txt:1 has 2 columns, `tag: 3` is not among them" in refused("a O\n", tag=3)
    assert "`token: -3` is not among them" in refused("a O\n", token=-3)
    assert "t.txt:1 has no token in column 0" in refused("\tO\n", separator="\t")
    assert "byte 0 (row 1)" in _not_utf8()


def _not_utf8() -> str:
    Path("t.txt").write_bytes(b"\xe9 O\n")
    with pytest.raises(DataError) as caught:
        taken()
    return str(caught.value)


def test_a_separator_allows_blanks_in_tokens_and_windows_line_ends_are_none() -> None:
    (one,) = taken_text("New York\tB-LOC\r\n,\tO\r\n\r\n", separator="\t")
    assert one.content == "New York ,"
    assert one.target == {"spans": [[0, 8, "LOC"]], "words": [[0, 8], [9, 10]]}
    (other,) = taken_text("1\u00a0000 O\neuro O\n")
    assert other.target["words"] == [[0, 5], [6, 10]]


def folder(*names: str) -> Path:
    root = Path("raw")
    root.mkdir(exist_ok=True)
    for name in names:
        (root / name).write_text(f"{name} O\n")
    return root


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "dev.txt", "test.txt"),
        ("eng.train", "eng.testa", "eng.testb"),
        ("a_train.conll", "a-TEST.conll"),
    ],
)
def test_files_of_a_folder_are_its_splits(names: tuple[str, ...]) -> None:
    folder(*names, "README.md", ".hidden")
    found = read(ConllData(source="conll", path="raw"))
    splits = [sample.split for sample in found.samples]
    assert splits == (["train", "validation", "test"] if len(names) == 3 else ["train", "test"])
    assert found.notes == ["left aside in raw: README.md"]


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="raw is missing"):
        taken("raw")
    folder()
    with pytest.raises(DataError, match=r"no file for train \(it is empty\)"):
        taken("raw")
    folder("test.txt", "other.txt")
    with pytest.raises(DataError, match=r"no file for train \(other\.txt\)"):
        taken("raw")
    folder("train.txt", "train.conll")
    with pytest.raises(DataError, match=r"two files for train: train\.conll and train\.txt"):
        taken("raw")
    Path("raw/train.conll").unlink()
    (tmp_path / "secret").write_text("x O\n")
    Path("raw/dev.txt").symlink_to("../secret")
    with pytest.raises(DataError, match="is a link that leaves raw"):
        taken("raw")
