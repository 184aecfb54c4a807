"""From the names a checkpoint uses to those of the network that shall carry its tensors.

transformers and timm know how their checkpoints were named over the years: a base model's prefix, `gamma` and
`beta` of early layer norms, tensors that were split or joined since, and what stands on top of a backbone.
They are asked; nothing is guessed here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steps.errors import WeightsError

# A network of another library: its attributes are that library's affair.
_Model = Any


@dataclass(frozen=True)
class Named:
    """Tensors under the network's names.

    Attributes:
        tensors: those that have a place.
        missing: places that nothing was found for.
        tops: tensors of a head, a pooler or a language model's top, by the source's names without the base
            model's prefix.
        strange: tensors that belong nowhere, by the source's names.
    """

    tensors: dict[str, Tensor]
    missing: list[str] = field(default_factory=list)
    tops: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)


def translate(tensors: dict[str, Tensor], model: nn.Module, where: str) -> Named:
    """Find the place of every tensor in a network without its head.

    Args:
        tensors: by the source's names.
        model: the library's own; its values do not matter.
        where: whose weights they are, for messages.

    Raises:
        WeightsError: a tensor has another shape than its place.
    """
    make = type(model).__module__.partition(".")[0]
    if make == "transformers":
        return _of_transformers(tensors, model, where)
    wanted = model.state_dict()
    fits = all(name in tensors and tensors[name].shape == tensor.shape for name, tensor in wanted.items())
    if make == "timm" and not fits:
        tensors = _as_timm_would(tensors, model)
    found = {name: tensors[name].to(place.dtype) for name, place in wanted.items() if name in tensors}
    for name, tensor in found.items():
        check_shape(name, tensor.shape, wanted[name].shape, where)
    left = [name for name in tensors if name not in wanted]
    known = _names_with_head(model) if left and make == "timm" else set()
    return Named(
        found,
        [name for name in wanted if name not in tensors],
        [name for name in left if name in known],
        [name for name in left if name not in known],
    )


def check_shape(name: str, found: Any, wanted: Any, where: str) -> None:  # noqa: ANN401 - shapes of any kind
    """Hold the shape of a tensor against that of its place.

    Raises:
        WeightsError: they differ.
    """
    if tuple(found) != tuple(wanted):
        raise WeightsError(
            f"{where}: tensor {name!r} has shape {tuple(found)}, the architecture needs {tuple(wanted)}"
        )


# --------------------------------------------------------------------------------------------- transformers


def _of_transformers(tensors: dict[str, Tensor], model: _Model, where: str) -> Named:
    kind = type(model)
    given: dict[str, Any] = {}
    if "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
        given["add_pooling_layer"] = getattr(model, "pooler", None) is not None
    with _quiet():
        loaded, told = kind.from_pretrained(
            None,
            config=model.config,
            state_dict=dict(tensors),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            **given,
        )
    for name, found, place in sorted(told["mismatched_keys"]):
        check_shape(name, found, place, where)
    state, wanted = loaded.state_dict(), model.state_dict()
    got = {name: state[name] for name in wanted if name in state and name not in told["missing_keys"]}
    left = sorted(told["unexpected_keys"])
    # An output layer of its own stands on the base model here, where transformers has it beside.
    for name in [name for name in left if name in wanted]:
        check_shape(name, tensors[name].shape, wanted[name].shape, where)
        got[name] = tensors[name].to(wanted[name].dtype)
        left.remove(name)
    # Every place has its tensor or is told missing. What else lies within the base model's own parts is of a
    # larger one; what lies beside them (cls, lm_head, pooler) stands on top.
    own, prefix = {name.split(".")[0] for name in state}, f"{kind.base_model_prefix}."
    inside = {name: name.removeprefix(prefix).split(".")[0] in own for name in left}
    return Named(
        got,
        [name for name in wanted if name not in got],
        [name.removeprefix(prefix) for name in left if not inside[name]],
        [name for name in left if inside[name]],
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and reports: what they tell is an error here, or of no importance."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


# ---------------------------------------------------------------------------------------------------- timm


def _as_timm_would(tensors: dict[str, Tensor], model: _Model) -> dict[str, Tensor]:
    """What timm itself does to checkpoints of another origin before it loads them."""
    change = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if change is None:
        return tensors
    try:
        return dict(change(dict(tensors), model))
    except (KeyError, RuntimeError, AttributeError, IndexError, ValueError):
        return tensors  # it is no checkpoint that timm knows: what does not fit is told by name


def _names_with_head(model: _Model) -> set[str]:
    """The names of the same network with its classifier."""
    import timm

    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if name is None:
        return set()
    with torch.device("meta"):
        return set(timm.create_model(name, pretrained=False).state_dict())
