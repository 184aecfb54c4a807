"""Averages of weights: over the steps of a training (EMA), and over its best epochs (soup)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

# How many of the best epochs a soup is made of, at most.
INGREDIENTS = 4

State = dict[str, Tensor]


def copied(tensors: State) -> State:
    """The tensors as they are now."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def put(tensors: State, values: State) -> None:
    """Give tensors of a network these values, in place."""
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


class Ema:
    """The exponential moving average of what training moves.

    After step t (from 1) the average is `d * average + (1 - d) * weights` with
    `d = min(decay, (1 + t) / (10 + t))`: without the warm-up, short trainings would mostly average their
    own start. Source: Polyak and Juditsky, 1992; the warm-up is TensorFlow's ExponentialMovingAverage.

    Attributes:
        average: by name; whole numbers (counts of batches) are taken over as they are.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: State = {}

    def cover(self, moving: State) -> None:
        """Average these too, from their present values on."""
        self.average |= copied({name: one for name, one in moving.items() if name not in self.average})

    @torch.no_grad()
    def update(self, moving: State, step: int) -> None:
        """Take in the weights after a step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        means = [name for name, tensor in moving.items() if tensor.is_floating_point()]
        torch._foreach_lerp_(
            [self.average[name] for name in means], [moving[name] for name in means], 1 - decay
        )
        for name in moving.keys() - set(means):
            self.average[name].copy_(moving[name])

    @contextmanager
    def in_place_of(self, moving: State) -> Iterator[None]:
        """Within the block the network has the averaged weights."""
        own = copied(moving)
        put(moving, self.average)
        try:
            yield
        finally:
            put(moving, own)


@dataclass
class Soup:
    """The weights of a training's best epochs, to be averaged when it ends.

    Source: Wortsman et al., Model soups, 2022; the ingredients here are epochs of one training.

    Attributes:
        kind: `uniform` averages all; `greedy` takes them best first and keeps each that does not make the
            validation loss of the average worse.
        kept: (validation loss, epoch, weights), best first.
    """

    kind: str
    kept: list[tuple[float, int, State]] = field(default_factory=list)

    def cover(self, moving: State) -> None:
        """Layers that are freed now were at their start in every epoch before."""
        for _, _, state in self.kept:
            state |= copied({name: one for name, one in moving.items() if name not in state})

    def add(self, loss: float, epoch: int, moving: State) -> None:
        """Keep the weights if the epoch is among the best."""
        if len(self.kept) == INGREDIENTS and loss >= self.kept[-1][0]:
            return
        self.kept.append((loss, epoch, copied(moving)))
        self.kept.sort(key=lambda one: one[:2])
        del self.kept[INGREDIENTS:]

    def make(self, loss_of: Callable[[State], float]) -> tuple[State, list[int]]:
        """The averaged weights, and the epochs that went in.

        Args:
            loss_of: the validation loss with such weights.
        """
        states, epochs = [state for _, _, state in self.kept], [epoch for _, epoch, _ in self.kept]
        if self.kind == "uniform":
            return mean(states), epochs
        chosen, lowest = [0], self.kept[0][0]
        for place in range(1, len(states)):
            loss = loss_of(mean([states[one] for one in [*chosen, place]]))
            if loss <= lowest:
                chosen.append(place)
                lowest = loss
        return mean([states[one] for one in chosen]), [epochs[one] for one in chosen]


def mean(states: list[State]) -> State:
    """The mean of each tensor over states; of whole numbers the first state's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0)
        if first.is_floating_point()
        else first
        for name, first in states[0].items()
    }
