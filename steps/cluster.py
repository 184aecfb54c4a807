"""Work on many batches, spread over a Ray cluster or over this machine's cores: the same functions elsewhere.

Ray takes care of what can go wrong between machines: a worker that dies is replaced, and its batch computed
again. What a worker computes it computes with as many threads as this process would, so that the same
machines give the same bytes.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from steps import errors
from steps.errors import HeadstartError, UserError

G = TypeVar("G")
R = TypeVar("R")
# The address that stands for a cluster of this machine alone, which lives as long as the work.
LOCAL = "local"
ANSWERS_WITHIN = 10.0  # seconds
# No reports of use to Ray's makers; no lines of its own but errors.
SILENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def over_ray(
    make: Callable[[G], Callable[[list[int]], R]],
    given: G,
    batches: Sequence[list[int]],
    *,
    address: str,
    threads: int,
    gpu: bool | None = False,
    asked: str = "machine.ray",
) -> Iterator[tuple[list[int], R]]:
    """What workers make of every batch, in the batches' order.

    Args:
        make: called once in each worker with what is given; gives the function of a batch's places. A plain
            function of a module, or a `functools.partial` of one.
        given: what `make` needs, e.g. all contents; kept once on each machine.
        batches: places of samples.
        address: `local`, or that of a cluster, e.g. `head:6379`, of which this machine is one. Its machines
            have Headstart installed and see this folder under the same path.
        threads: of a worker.
        gpu: a worker needs one; None: it has one where the cluster has any.
        asked: what the user gave the address to, for messages.

    Raises:
        UserError: Ray is not installed, no cluster is there, or it has no GPU.
        HeadstartError: what a worker raised.
    """
    with _cluster(address, asked) as ray:
        from ray.data import ActorPoolStrategy
        from ray.data import range as numbers

        resources = _resources(ray, threads, gpu, address)
        # A few batches a task, and some tasks for each worker.
        blocks = min(len(batches), max(64, 4 * resources["workers"]))
        found = numbers(len(batches), override_num_blocks=max(blocks, 1)).map_batches(
            _Worker,
            batch_size=1,
            compute=ActorPoolStrategy(min_size=1, max_size=resources["workers"]),
            num_cpus=resources["cpus"],
            num_gpus=resources["gpus"],
            fn_constructor_args=(make, ray.put(given), ray.put(list(batches)), threads),
        )
        for row in found.iter_rows():
            mistake, result = pickle.loads(row["found"])
            if mistake is not None:
                raise getattr(errors, mistake[0], HeadstartError)(mistake[1])
            yield batches[row["id"]], result


class _Worker:
    """A process of the cluster, which keeps what `make` made."""

    def __init__(
        self,
        make: Callable[[Any], Callable[[list[int]], Any]],
        given: object,
        batches: object,
        threads: int,
    ) -> None:
        import ray
        import torch

        torch.set_num_threads(threads)
        self.batches: Sequence[list[int]] = ray.get(batches)
        self.compute = make(ray.get(given))

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """Results, pickled, by the batches' numbers; a mistake that was foreseen is a result as well."""
        return {"id": rows["id"], "found": [self._of(int(number)) for number in rows["id"]]}

    def _of(self, number: int) -> bytes:
        try:
            return pickle.dumps((None, self.compute(self.batches[number])))
        except HeadstartError as error:
            return pickle.dumps(((type(error).__name__, str(error)), None))


@contextmanager
def _cluster(address: str, asked: str) -> Iterator[Any]:
    """Ray, connected; let go of at the end.

    Raises:
        UserError: it is not installed, or no cluster answers.
    """
    with _silent():
        try:
            import ray
            import ray.data
        except ImportError:
            raise UserError(
                f"{asked}: Ray is not installed here: `pip install -e .[ray]`, or leave it out"
            ) from None
        _quiet(ray)
        _connect(ray, address, asked)
        try:
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str, asked: str) -> None:  # noqa: ANN401 - a module
    """Begin.

    Raises:
        UserError: no cluster answers.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options |= {"include_dashboard": False}
    try:
        _knock(address)
        with _no_words():
            ray.init(address=address, **options)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{asked}: no Ray cluster answers at {address!r}: start one, set RAY_AUTH_TOKEN if it has a "
            f"token, or write `local` for this machine alone ({reason})"
        ) from None


@contextmanager
def _silent() -> Iterator[None]:
    """What Ray reads from the environment, also in the processes it starts."""
    before = {name: os.environ.get(name) for name in SILENT}
    os.environ.update(SILENT)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _knock(address: str) -> None:
    """See whether anybody is there: Ray itself would try for minutes, and end the process.

    Raises:
        OSError: nobody.
    """
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=ANSWERS_WITHIN).close()


@contextmanager
def _no_words() -> Iterator[None]:
    """Ray's core says on stderr how it was told to say little; what goes wrong it raises."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _quiet(ray: Any) -> None:  # noqa: ANN401 - a module
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True


def _resources(ray: Any, threads: int, gpu: bool | None, address: str) -> dict[str, int]:  # noqa: ANN401
    """How many workers fit, and the cores and GPUs each reserves.

    Raises:
        UserError: the cluster has no GPU.
    """
    total = ray.cluster_resources()
    gpu = bool(total.get("GPU")) if gpu is None else gpu
    if gpu and not total.get("GPU"):
        raise UserError(f"machine.device: cuda, but the Ray cluster at {address!r} has no GPU")
    # A reservation that no machine can meet would wait for ever.
    largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes())
    cpus = max(1, min(threads, largest))
    workers = int(total["GPU"]) if gpu else int(total.get("CPU", 1)) // cpus
    return {"cpus": cpus, "gpus": int(gpu), "workers": max(1, workers)}
