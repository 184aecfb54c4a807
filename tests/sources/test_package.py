from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from steps.errors import WeightsError
from steps.references import PackageWeights
from steps.sources import Found, package

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that can be imported, and must not be: only its files are wanted."""
    folder = tmp_path / "weights_for_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('the package was run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def reference(folder: Path, file: str, **changes: Any) -> PackageWeights:
    path = folder / file
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "0" * 64
    given = {
        "source": "package", "package": "weights_for_test", "file": file, "sha256": digest, "library": "timm",
        "architecture": "x", "licence": "MIT",
    }  # fmt: skip
    return PackageWeights(**(given | changes))


def read(folder: Path, file: str, **changes: Any) -> Found:
    return package.read(reference(folder, file, **changes), folder)


def test_reads_safetensors_and_torch_files_alike(shipped: Path) -> None:
    save_file(TENSORS, shipped / "w.safetensors")
    torch.save(TENSORS, shipped / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        found = read(shipped, file)
        assert {name: tensor.tolist() for name, tensor in found.tensors.items()} == {
            name: tensor.tolist() for name, tensor in TENSORS.items()
        }
        assert found.files == []
        assert found.provenance["licence"] == "MIT"


def test_wrong_sha256_is_refused_and_both_are_told(shipped: Path) -> None:
    save_file(TENSORS, shipped / "w.safetensors")
    with pytest.raises(WeightsError, match=r"has sha256 [0-9a-f]{64}, params\.yaml pins 1111"):
        read(shipped, "w.safetensors", sha256="1" * 64)


def test_what_is_not_there_is_named(shipped: Path) -> None:
    with pytest.raises(WeightsError, match="'no_such_package' is not installed; run `make install`"):
        read(shipped, "w.pth", package="no_such_package")
    with pytest.raises(WeightsError, match=r"'weights_for_test' has no file 'w\.pth'"):
        read(shipped, "w.pth")


class Bomb:
    """Unpickled, it would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.survives(
    "weights",
    "weights that would run code",
    how="a pickle with a payload",
    held="refused and not run",
)
def test_a_pickle_that_would_run_code_is_refused_and_not_run(shipped: Path, tmp_path: Path) -> None:
    (shipped / "w.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "trace"), protocol=2))
    torch.save({"a": Bomb(tmp_path / "trace")}, shipped / "v.pth")
    for file in ("w.pth", "v.pth"):
        with pytest.raises(WeightsError, match=r"was not loaded|cannot be read as weights"):
            read(shipped, file)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
def test_a_broken_file_is_one_line(shipped: Path, file: str) -> None:
    (shipped / file).write_bytes(b"no weights at all")
    with pytest.raises(WeightsError, match=f"{file}: ") as caught:
        read(shipped, file)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_more_than_tensors_is_refused(shipped: Path) -> None:
    torch.save({"a": torch.zeros(1), "epoch": 3}, shipped / "w.pth")
    with pytest.raises(WeightsError, match="not a dictionary of tensors"):
        read(shipped, "w.pth")


def test_transformers_need_their_config_and_bring_their_tokenizer(shipped: Path) -> None:
    save_file(TENSORS, shipped / "w.safetensors")
    with pytest.raises(WeightsError, match=r"no config\.json beside"):
        read(shipped, "w.safetensors", library="transformers", architecture="bert")
    (shipped / "config.json").write_text('{"model_type": "bert"}')
    (shipped / "vocab.txt").write_text("a\n")
    found = read(shipped, "w.safetensors", library="transformers", architecture="bert")
    assert [path.name for path in found.files] == ["vocab.txt"]
    assert found.description["config"] == {"model_type": "bert"}
