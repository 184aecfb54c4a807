"""Several processes that train one network: who they are, and what each computes.

Every process has the whole network and computes its part of each batch; DistributedDataParallel adds the
gradients up. Whatever is decided, said or written is the first one's affair. What comes out is what one
process makes of the same batches, but for rounding and the draws of dropout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from steps.errors import HeadstartError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of a training, seen from one of them.

    Attributes:
        rank: this one's number, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def alone(self) -> bool:
        """There is no other."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """This is the one that decides, says and writes."""
        return self.rank == 0

    def own(self, size: int, parts: int = 1) -> list[int]:
        """Which places of a batch this process computes.

        Every part of the batch is dealt out by itself, so that the processes' n-th parts together are the
        n-th part of one process. Where there are fewer samples than processes in a part, each computes all.

        Args:
            size: samples in the batch.
            parts: how many parts the batch is computed in, one after the other.
        """
        if self.alone or size // parts < self.count:
            return list(range(size))
        return [place for part in even(range(size), parts) for place in even(part, self.count)[self.rank]]

    def shared(self, compute: Callable[[], T]) -> T:
        """What the first process finds, for all; its mistake is everybody's mistake.

        Args:
            compute: called in the first process alone; what it gives can be pickled.

        Raises:
            HeadstartError: `compute` raised it.
        """
        if self.alone:
            return compute()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = compute()
            except HeadstartError as error:
                told[1] = error
        distributed.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        if told[1] is not None:
            raise told[1]
        found: T = told[0]
        return found

    def mean(self, value: float) -> float:
        """The mean of the processes' values; not finite where one of them is not."""
        if self.alone:
            return value
        told = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(told)
        return told.item() / self.count

    def wrapped(self, network: nn.Module) -> nn.Module:
        """The network as what adds the gradients up; made anew whenever other tensors train.

        With `find_unused_parameters` the gradients keep the order in which they are added, from the first
        step on: a training that is resumed ends with the same bytes.
        """
        if self.alone:
            return network
        return nn.parallel.DistributedDataParallel(
            network, find_unused_parameters=True, forward_sync_buffers=False
        )

    @contextmanager
    def draws(self, *numbers: int) -> Iterator[None]:
        """Within the block random numbers are this process's own; afterwards all go on with the common ones.

        Args:
            numbers: of the seed and the step. Nothing else decides the draws, so nothing has to be kept for
                a training that is resumed.
        """
        if self.alone:
            yield
            return
        # The CPU's generator, and that of the GPU this process has.
        with torch.random.fork_rng(devices=_gpu()):
            torch.manual_seed(seed_of(*numbers, self.rank))
            yield

    def meeting(self, network: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Around the backward pass of a part: gradients are added up after a batch's last part alone."""
        if last or not isinstance(network, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return network.no_sync()


ALONE = Ranks()


def seed_of(*numbers: int) -> int:
    """A seed that differs wherever one of the numbers does."""
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little") >> 1


def _gpu() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


def even(places: Sequence[int], count: int) -> list[Sequence[int]]:
    """Places in so many runs, as even as can be, the longer ones first: as `Tensor.tensor_split`."""
    size, longer = divmod(len(places), count)
    ends = [size * number + min(number, longer) for number in range(count + 1)]
    return [places[start:end] for start, end in pairwise(ends)]


# ------------------------------------------------------------------------------------ batch normalisation


class WholeBatch(TorchFunctionMode):
    """Within the block batch normalisations take mean and variance over all processes' samples.

    So a batch that is dealt out is normalised as one that is not. Torch's own SyncBatchNorm runs on GPUs
    alone, and takes the place of modules, of which timm has its own kinds; here any that calls
    `functional.batch_norm` is served as it is.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function gives
        """The function itself, but for one."""
        if func is functional.batch_norm:
            return batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def batch_norm(
    inputs: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`functional.batch_norm` over the samples of all processes; shapes (samples, channels, ...).

    Source: Ioffe and Szegedy, Batch Normalization, 2015; over devices: Peng et al., MegDet, 2018.
    """
    if not training:
        return functional.batch_norm(inputs, running_mean, running_var, weight, bias, False, momentum, eps)
    values = inputs if inputs.dtype == torch.float64 else inputs.float()
    mean, variance, count = _of_all(values)
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = variance * count / (count - 1)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    shape = [-1 if dim == 1 else 1 for dim in range(values.ndim)]
    found = values * scale.to(values.dtype).view(shape) + shift.to(values.dtype).view(shape)
    return found.to(inputs.dtype)


def _of_all(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each channel over the samples of all processes, and how many values they are of.

    The few sums are in float64, where nothing is lost in the difference of two squares.
    """
    others = [dim for dim in range(values.ndim) if dim != 1]
    variance, mean = torch.var_mean(values, others, correction=0)
    variance, mean = variance.double(), mean.double()
    count = torch.full_like(mean[:1], values.numel() / values.shape[1])
    sums = _Added.apply(torch.cat([mean * count, (variance + mean.square()) * count, count]))
    assert isinstance(sums, Tensor)
    firsts, seconds, total = sums[: len(mean)], sums[len(mean) : -1], sums[-1:]
    mean = firsts / total
    return mean, seconds / total - mean.square(), total.detach()


class _Added(torch.autograd.Function):
    """The sum over the processes, through which gradients flow back to all of them."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:  # noqa: ANN401 - torch's own
        """The sum."""
        return _sum(values)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401 - torch's own
        """What all processes' losses say of these values."""
        return _sum(gradients[0])


def _sum(values: Tensor) -> Tensor:
    found = values.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(found)
    return found
