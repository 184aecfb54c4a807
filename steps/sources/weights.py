"""What all sources share: files of tensors read safely, their hashes, and the pins they are held to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from steps.artifacts import files_below, sha256_file, sha256_files, sha256_json
from steps.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

# What a tokenizer of transformers may need; not every model has each.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "tokenizer.model",
)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or PyTorch file; a pickle is read with `weights_only=True`.

    Raises:
        WeightsError: the file is no such file, or holds more than tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path.name}: cannot be read as weights: {' '.join(str(error).split())[:200]}"
        ) from None
    except Exception as error:  # torch's UnpicklingError carries advice on switching the safety off
        raise WeightsError(
            f"{path.name}: holds more than tensors and was not loaded ({type(error).__name__})"
        ) from None
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise WeightsError(f"{path.name}: is not a dictionary of tensors")
    return {str(name): tensor for name, tensor in loaded.items()}


def fingerprint(path: Path) -> str:
    """What pins a local file or folder: SHA-256 of the bytes, or of all names and bytes below it.

    Hidden files and folders do not count: systems and editors leave them behind.

    Raises:
        WeightsError: there is no such file or folder.
    """
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        raise WeightsError(f"{path} is neither a file nor a folder; correct `path:`")
    return sha256_json(sha256_files(path, hidden=False))


def size(path: Path) -> int:
    """Bytes of a file, or of all that `fingerprint` counts below a folder."""
    files = [path] if path.is_file() else files_below(path, hidden=False)
    return sum(one.stat().st_size for one in files)


def check_pin(found: str, pinned: str | None, what: str) -> str:
    """The hash that was found, when it is the one pinned, or when none is.

    Raises:
        WeightsError: it is another.
    """
    if pinned is not None and found != pinned:
        raise WeightsError(
            f"{what} has sha256 {found}, params.yaml pins {pinned}; "
            "the bytes were altered or replaced: look before you change the pin"
        )
    return found
