"""Tensors out of what training programs wrap around them: dictionaries in a file, prefixes of names.

A checkpoint may hold a model's tensors beside an optimizer's, an average of them beside the last ones, and
every name may begin with where the model stood in its program. What is taken is told, for the provenance.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steps.errors import WeightsError
from steps.sources.weights import load_weights

# Where programs keep a model's tensors; of several the first is taken, an average before the last state, as
# timm does.
PLACES = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher", "state_dict", "model_state_dict",
    "model", "net", "network", "backbone", "encoder", "student", "weights", "params",
)  # fmt: skip
# What names may begin with: DataParallel's, torch.compile's, and where a backbone stands in its program.
PREFIXES = (
    "module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "network.", "base_model.", "teacher.",
    "encoder_q.", "base_encoder.", "student.",
)  # fmt: skip
# So many of them may stand one before the other.
DEEPEST = 4


@dataclass(frozen=True)
class Unwrapped:
    """Tensors, and what was found around them.

    Attributes:
        tensors: by the names of the network, as far as that could be found out.
        told: for the provenance: `taken_from` and `beside` (of a file with several dictionaries), `prefix`,
            `renamed` (how many names). Without what was not there.
    """

    tensors: dict[str, Tensor]
    told: dict[str, Any]


def load(path: Path) -> Unwrapped:
    """The tensors of a file, out of the dictionary that holds them.

    Raises:
        WeightsError: the file holds no tensors, or more than plain data, or nothing tells which are meant.
    """
    if path.suffix == ".safetensors":
        return Unwrapped(load_weights(path), {})
    content = _content(path)
    if tensors := _tensors(content):
        return Unwrapped(tensors, {})
    if not isinstance(content, dict):
        raise WeightsError(f"{path.name}: holds a {type(content).__name__}, not a dictionary of tensors")
    held = dict(_dictionaries(content, depth=2))
    known = [place for name in PLACES for place in held if place.rpartition(".")[2] == name]
    if not known and len(held) == 1:
        known = list(held)
    if not known:
        found = ", ".join(map(repr, list(held or content)[:8])) or "nothing"
        raise WeightsError(
            f"{path.name}: none of {found} is known to hold the model's tensors; "
            "save them alone: `torch.save(model.state_dict(), path)`"
        )
    beside = sorted(set(held) - {known[0]})
    return Unwrapped(held[known[0]], {"taken_from": known[0]} | ({"beside": beside} if beside else {}))


def _content(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """What a pickle of plain data and tensors holds; nothing in it is run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        told = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path.name}: cannot be read as weights: {told}") from None
    except Exception as error:  # torch's UnpicklingError carries advice on switching the safety off
        raise WeightsError(
            f"{path.name}: holds more than tensors and plain data, and was not loaded "
            f"({type(error).__name__}); save the tensors alone: `torch.save(model.state_dict(), path)`"
        ) from None


def _tensors(value: object) -> dict[str, Tensor] | None:
    """A dictionary of tensors by name; None for anything else."""
    if not isinstance(value, dict) or not value:
        return None
    if not all(isinstance(name, str) and isinstance(one, Tensor) for name, one in value.items()):
        return None
    return dict(value)


def _dictionaries(
    content: dict[Any, Any], depth: int, above: str = ""
) -> Iterable[tuple[str, dict[str, Tensor]]]:
    for name, value in content.items():
        place = f"{above}{name}"
        if tensors := _tensors(value):
            yield place, tensors
        elif isinstance(value, dict) and depth > 1 and not str(name).startswith("optim"):
            yield from _dictionaries(value, depth - 1, f"{place}.")


# ------------------------------------------------------------------------------------------------------ names


def renamed(found: Unwrapped, rename: dict[str, str], where: str) -> Unwrapped:
    """With beginnings of names replaced; of several that fit, the longest counts.

    Raises:
        WeightsError: no name begins like this, or two tensors would have one name.
    """
    if not rename:
        return found
    for beginning in rename:
        if not any(name.startswith(beginning) for name in found.tensors):
            raise WeightsError(
                f"{where}: no tensor's name begins with {beginning!r} (`rename`); the first ones are "
                + ", ".join(map(repr, list(found.tensors)[:3]))
            )
    tensors: dict[str, Tensor] = {}
    count = 0
    for name, tensor in found.tensors.items():
        fits = [beginning for beginning in rename if name.startswith(beginning)]
        longest = max(fits, key=len) if fits else None
        new = name if longest is None else rename[longest] + name.removeprefix(longest)
        if new in tensors:
            raise WeightsError(f"{where}: `rename` gives two tensors the name {new!r}, one is {name!r}")
        tensors[new] = tensor
        count += new != name
    return Unwrapped(tensors, found.told | {"renamed": count})


def without_prefix(found: Unwrapped, model: nn.Module) -> Unwrapped:
    """Without what all names of the network begin with, when more of them are the network's own then.

    Args:
        found: tensors by the file's names.
        model: the network that they shall be of.
    """
    wanted = set(model.state_dict())
    # transformers takes names with and without this one.
    base = f"{getattr(model, 'base_model_prefix', '')}."
    best, most = "", _fitting(found.tensors, wanted, base)
    layer = [""]
    for _ in range(DEEPEST):
        layer = [
            before + prefix
            for before in layer
            for prefix in PREFIXES
            if any(name.startswith(before + prefix) for name in found.tensors)
        ]
        for prefix in layer:
            names = [name.removeprefix(prefix) for name in found.tensors]
            fitting = _fitting(names, wanted, base)
            if fitting > most and len(set(names)) == len(names):
                best, most = prefix, fitting
    if not best:
        return found
    tensors = {name.removeprefix(best): tensor for name, tensor in found.tensors.items()}
    return Unwrapped(tensors, found.told | {"prefix": best})


def _fitting(names: Iterable[str], wanted: set[str], base: str) -> int:
    return sum(name in wanted or name.removeprefix(base) in wanted for name in names)


def in_words(found: Unwrapped) -> list[str]:
    """What was done, a few words each."""
    told, words = found.told, []
    if "taken_from" in told:
        others = f", not {', '.join(map(repr, told['beside']))}" if "beside" in told else ""
        words.append(f"tensors taken from {told['taken_from']!r}{others}")
    if told.get("renamed"):
        words.append(f"{told['renamed']} renamed")
    if "prefix" in told:
        words.append(f"{told['prefix']!r} taken off their names")
    return words
