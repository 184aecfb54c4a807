"""A layer of a network, how it is run, and what networks of one make have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

# A network of another library: its attributes are that library's affair.
Model = Any
# What flows from layer to layer: an image batch, or a text batch as named tensors.
Flow = Any
Step = Callable[[Flow], Flow]


@dataclass(frozen=True)
class Layer:
    """One layer of a network.

    Attributes:
        name: as in the library's names of parameters, shortened.
        modules: all its modules, those without parameters too: their mode (train, eval) matters.
        loose: its parameters that are in none of the modules, e.g. a class token.
    """

    name: str
    modules: tuple[nn.Module, ...]
    loose: tuple[nn.Parameter, ...] = ()

    def parameters(self) -> list[nn.Parameter]:
        """Of all modules, asked anew each time (an adapter may have joined them), then the loose ones."""
        return [parameter for module in self.modules for parameter in module.parameters()] + list(self.loose)


@dataclass(frozen=True)
class Part:
    """A layer and how it is run.

    Attributes:
        name: of the layer.
        run: called one after the other on what the layer below gave; modules among them are the layer's.
        also: modules that are called from within `run`; None where the model has none.
        loose: the layer's loose parameters; None where the model has none.
        pool: of the top layer, what makes pooled features of what `run` gave; left out where a head wants
            tokens or maps.
        cut: the network may be cut above it: what it gives can be stored.
    """

    name: str
    run: tuple[Step, ...]
    also: tuple[nn.Module | None, ...] = ()
    loose: tuple[nn.Parameter | None, ...] = ()
    pool: tuple[Step, ...] = ()
    cut: bool = True

    def layer(self) -> Layer:
        """Without the way to run it."""
        modules = tuple(
            module for module in (*self.run, *self.pool, *self.also) if isinstance(module, nn.Module)
        )
        return Layer(self.name, modules, tuple(one for one in self.loose if one is not None))

    def __call__(self, flow: Flow) -> Flow:
        """The activations after this layer; of the top one the pooled features."""
        return through(self.steps(pooled=True), flow)

    def steps(self, pooled: bool) -> tuple[Step, ...]:
        """All that is run, with the pooling or without it."""
        return (*self.run, *self.pool) if pooled else self.run


def through(steps: tuple[Step, ...], flow: Flow) -> Flow:
    """Take one step after the other."""
    for step in steps:
        flow = step(flow)
    return flow


@dataclass(frozen=True)
class Family:
    """Networks of one make.

    Attributes:
        parts: the layers of such a network, bottom to top. They are made anew from the model each time, so
            that a copied or altered model (LoRA puts modules in the place of others) is never out of step.
        channels_last: convolutions, two to three times faster on CPU in this memory format.
        whole: it can run only as a whole; the bottom layer's `run` is all of it.
        shared: blocks have their weights in common, so that no block can be treated apart from the others.
        decoder: above an encoder's layers stand those of a decoder, which reads another text.
    """

    parts: Callable[[Model], list[Part]]
    channels_last: bool = True
    whole: bool = False
    shared: bool = False
    decoder: bool = False


def on_top(
    last: Part, run: tuple[Step, ...], pool: tuple[Step, ...], also: tuple[nn.Module | None, ...]
) -> Part:
    """The topmost block with what stands above it; `also` takes the place of the block's own."""
    return Part(last.name, (*last.run, *run), also, pool=pool)
