"""Tokenizers of transformers: loaded once from what a source has, and written as every later step reads them.

A repository may leave the tokenizer's class to its config.json, or have no more than a vocabulary. What is
written here needs neither, nor the libraries that only a conversion needs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from steps.errors import WeightsError


def normalised(files: Iterable[Path], config: dict[str, Any], scratch: Path, where: str) -> list[Path]:
    """The tokenizer that these files make, as files that need no others.

    Args:
        files: the source's tokenizer files.
        config: the model's.
        scratch: a folder for what is written.
        where: whose tokenizer it is, for messages.

    Raises:
        WeightsError: there is none, it wants to run code of its own, or it has more words than the model.
    """
    given = scratch / "tokenizer-given"
    given.mkdir()
    for path in files:
        shutil.copyfile(path, given / path.name)
    if not any(given.iterdir()):
        raise WeightsError(f"{where}: there is no tokenizer beside the weights; take a model that has one")
    (given / "config.json").write_text(json.dumps(config), "utf-8")
    if (given / "tokenizer_config.json").is_file():
        refuse_code(json.loads((given / "tokenizer_config.json").read_text("utf-8")), where)
    tokenizer = _load(given, where)
    rows = config.get("vocab_size")
    if isinstance(rows, int) and len(tokenizer) > rows:
        raise WeightsError(
            f"{where}: the tokenizer has {len(tokenizer)} words, the model embeds {rows}: they are not of "
            "one model"
        )
    target = scratch / "tokenizer"
    tokenizer.save_pretrained(target)
    return sorted(target.iterdir())


def refuse_code(config: dict[str, Any], where: str) -> None:
    """Hold that a configuration names no code of its own.

    Raises:
        WeightsError: it does.
    """
    if config.get("auto_map"):
        raise WeightsError(
            f"{where}: its configuration wants to run code from the repository (`auto_map`), which is never "
            "done; take a model that transformers knows by itself"
        )


def _load(folder: Path, where: str) -> Any:  # noqa: ANN401 - one of many classes
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a broken file makes of the library's parsers
        told = " ".join(str(error).split())[:200].replace(str(folder), "the files")
        raise WeightsError(f"{where}: the tokenizer cannot be read: {told}") from None
