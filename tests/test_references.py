from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from steps import artifacts, params
from steps.arms import Library
from steps.errors import ParamsError
from steps.references import (
    MODELS,
    FileWeights,
    FolderWeights,
    HfWeights,
    NewWeights,
    PackageWeights,
    Pretrained,
    PretrainedSettings,
    RegistryWeights,
    TfhubWeights,
    TimmWeights,
    VectorsWeights,
    unpinned,
)

COMMIT, HASH = "0123456789" * 4, "ab" * 32
PACKAGE: dict[str, Any] = {
    "source": "package", "package": "toy", "file": "model.safetensors", "sha256": HASH, "library": "timm",
    "architecture": "resnet18", "licence": "MIT",
}  # fmt: skip
# One line, and what it stands for.
LINES: dict[str, Pretrained] = {
    f"timm:resnet50.a1_in1k@{COMMIT}": TimmWeights(source="timm", model="resnet50.a1_in1k", revision=COMMIT),
    "timm:resnet50.a1_in1k": TimmWeights(source="timm", model="resnet50.a1_in1k"),
    f"hf:google-bert/bert-base-uncased@{COMMIT}": HfWeights(
        source="hf", model="google-bert/bert-base-uncased", revision=COMMIT
    ),
    "tfhub:google/toy/tensorFlow2/small@3": TfhubWeights(
        source="tfhub", handle="google/toy/tensorFlow2/small", version=3
    ),
    "folder:/home/me@work/models": FolderWeights(source="folder", path="/home/me@work/models"),
    "registry:headstart-digits@champion": RegistryWeights(
        source="registry", model="headstart-digits", alias="champion"
    ),
    "registry:headstart-digits@4": RegistryWeights(source="registry", model="headstart-digits", version=4),
    "vectors:raw/glove.txt": VectorsWeights(source="vectors", path="raw/glove.txt"),
}


def read(raw: Any) -> Pretrained:
    return params.parse(PretrainedSettings, raw, "here").reference


def mistake(raw: Any) -> str:
    with pytest.raises(ParamsError) as caught:
        read(raw)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("line", LINES)
def test_one_line_stands_for_the_long_form(line: str) -> None:
    assert read(line) == LINES[line]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("resnet50", "must be a mapping with a `source`, or `timm:...`"),
        ("tim:resnet50.a1_in1k", "did you mean 'timm'?"),
        ("package:toy", "must be a mapping with a `source`"),
        ("hf:google/bert@", "nothing stands behind the `@`"),
        (
            "hf:google/bert@main",
            "must be a commit of 40 hexadecimal digits, is 'main'; a branch or",
        ),
        (f"hf:google/bert@{COMMIT[:12]}", "must be a commit of 40 hexadecimal digits"),
        ("hf:bert", "must be `owner/name`"),
        ("hf:../bert", "must be `owner/name`"),
        ("timm:hf_hub:somebody/net", "must be timm's name such as `resnet50.a1_in1k`"),
        ("tfhub:google/toy@3", "must be `owner/model/framework/variation`"),
        ("tfhub:google/toy/tensorFlow2/small@v3", "version"),
        ("registry:digits@champion", "must match ^headstart-"),
        ("registry:headstart-digits", "name a `version`, or the `alias` of one"),
        ("file:raw/net.pth", "library: is missing"),
        ("folder: ", "must be a path"),
    ],
)
def test_a_wrong_line_is_told_in_one(line: str, message: str) -> None:
    assert message in mistake(line)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"source": "web"}, "source must be one of 'package', 'timm', 'hf'"),
        ({"model": "a/b"}, "source is missing"),
        ({"source": "hf", "model": "a/b", "revison": COMMIT}, "unknown key"),
        ({"source": "hf", "model": "a/b", "sha256": "AB" * 32}, "must match"),
        (PACKAGE | {"file": "../weights.pth"}, "must be a path below its folder"),
        (PACKAGE | {"library": "vectors"}, "must be 'timm' or 'transformers'"),
        ({"source": "tfhub"}, "name either `handle`"),
        ({"source": "tfhub", "path": "a", "handle": "a/b/c/d"}, "name either `handle`"),
        ({"source": "tfhub", "path": "a", "version": 3}, "`version` goes with `handle` only"),
        ({"source": "file", "path": "a.pth", "library": "timm"}, "`architecture` is missing: timm's name"),
        ({"source": "file", "path": "a.pth", "library": "transformers"}, "`config` is missing"),
        (
            {"source": "file", "path": "a", "library": "timm", "architecture": "b", "config": "c"},
            "`config` goes with `library: transformers` only",
        ),
        ({"source": "new", "library": "transformers", "architecture": "bert"}, "`tokenizer` is missing"),
        (
            {"source": "new", "library": "timm", "architecture": "resnet18", "tokenizer": "minilm"},
            "`tokenizer` goes with `library: transformers` only",
        ),
        ({"source": "vectors", "path": "a", "max_words": 0}, "must be >= 1, is 0"),
    ],
)
def test_a_wrong_mapping_is_told_in_one_line(raw: dict[str, Any], message: str) -> None:
    assert message in mistake(raw)


COMPLETE: list[Pretrained] = [
    PackageWeights(**PACKAGE),
    *LINES.values(),
    TfhubWeights(source="tfhub", path="models/saved", image_size=96),
    FileWeights(
        source="file", path="net.pth", library="timm", architecture="resnet18", rename={"module.": ""},
        allow_missing=("fc.*",), mean=(0.1, 0.2, 0.3),
    ),
    NewWeights(
        source="new", library="transformers", architecture="bert", config={"hidden_size": 64},
        tokenizer="minilm-l6", seed=3,
    ),
]  # fmt: skip


@pytest.mark.parametrize("reference", COMPLETE, ids=lambda one: one.source)
def test_what_resolve_writes_fetch_reads(
    reference: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = artifacts.pretrained_settings_file("toy")
    artifacts.write_json(path, reference.model_dump(mode="json"))
    assert params.read_settings(PretrainedSettings, path).reference == reference


def test_every_source_has_a_model_that_tells_its_source_and_library() -> None:
    assert {one.source for one in COMPLETE} == set(MODELS)
    assert all(one.library in get_args(Library) for one in COMPLETE)
    assert all(type(one) is MODELS[one.source] for one in COMPLETE)


def test_what_has_to_be_filled_in() -> None:
    assert {line: unpinned(one) for line, one in LINES.items()} == {
        f"timm:resnet50.a1_in1k@{COMMIT}": ["sha256"],
        "timm:resnet50.a1_in1k": ["revision", "sha256"],
        f"hf:google-bert/bert-base-uncased@{COMMIT}": ["sha256"],
        "tfhub:google/toy/tensorFlow2/small@3": ["sha256"],
        "folder:/home/me@work/models": ["sha256"],
        "registry:headstart-digits@champion": ["version", "sha256"],
        "registry:headstart-digits@4": ["sha256"],
        "vectors:raw/glove.txt": ["sha256"],
    }
    assert unpinned(TfhubWeights(source="tfhub", path="a")) == ["sha256"]
    assert unpinned(HfWeights(source="hf", model="a/b", revision=COMMIT, sha256=HASH)) == []
    assert unpinned(PackageWeights(**PACKAGE)) == []
    assert unpinned(NewWeights(source="new", library="timm", architecture="resnet18")) == []


def test_params_takes_both_forms_and_tells_a_mistake_by_its_place(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1] / "params.yaml"
    text = root.read_text("utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(text.rstrip("\n") + f"\n  short: hf:toy/bert@{COMMIT}\n", "utf-8")
    found = params.load(path).pretrained["short"]
    assert found == HfWeights(source="hf", model="toy/bert", revision=COMMIT)
    path.write_text(text.rstrip("\n") + "\n  short: {source: hf, model: bert}\n", "utf-8")
    with pytest.raises(ParamsError, match=r"pretrained\.short\.model: must be `owner/name`"):
        params.load(path)
