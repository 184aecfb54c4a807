"""How the several processes of a training begin and end: as torchrun starts them, and with one message.

Whoever runs `torchrun -m steps.train` by hand gets the same processes as `machine.processes` starts.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import uuid4

import torch
from torch import distributed

from steps import errors
from steps.errors import HeadstartError, UserError
from steps.parallel import ALONE, Ranks

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

# How long a process waits for another. One may validate or fill a cache for hours while the others wait; one
# that died is noticed by torchrun at once, whatever this says.
PATIENCE = timedelta(days=1)
# Where a process that `launch` started leaves its error, and how often it looks whether its parent lives.
REPORTS, LOOK_SECONDS = "HEADSTART_PROCESS_REPORTS", 0.5


def inside() -> bool:
    """This process is one of several that torchrun started."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Meet the other processes, where there are any; all but the first print nothing from now on.

    Over gloo on CPUs, over NCCL on NVIDIA GPUs, one for each process.

    Raises:
        UserError: the device is not for several processes, or there are too few of them.
    """
    if not inside():
        yield ALONE
        return
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    _check_device(device, int(os.environ.get("LOCAL_WORLD_SIZE", str(ranks.count))))
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not ranks.first:
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    yield ranks
    # Not after an error: it would wait for those that wait for us.
    distributed.destroy_process_group()


def _check_device(device: torch.device, here: int) -> None:
    """See whether so many processes of this machine can have the device.

    Raises:
        UserError: they cannot.
    """
    if device.type == "mps":
        raise UserError("machine.processes: Apple's GPU serves one process; take 1, or `device: cpu`")
    if device.type == "cuda" and torch.cuda.device_count() < here:
        raise UserError(
            f"machine.processes: {here} processes need as many GPUs, torch finds {torch.cuda.device_count()} "
            "here: lower it"
        )


def launch(module: str, arguments: Sequence[str], count: int, device: torch.device) -> None:
    """Run `python -m module` in so many processes, as torchrun does; all end when one of them fails.

    Each gets an even share of the cores, unless OMP_NUM_THREADS says how many.

    Raises:
        UserError: the device is not for so many processes.
        HeadstartError: of the kind and in the words of the process that failed first.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _check_device(device, count)
    with TemporaryDirectory(prefix="headstart-processes-") as folder:
        config = LaunchConfig(
            1, 1, count, run_id=uuid4().hex, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1", max_restarts=0, shutdown_timeout=5,
        )  # fmt: skip
        with _environment(Path(folder), count), _quiet():
            try:
                elastic_launch(config, sys.executable)("-u", "-m", module, *arguments)
            except ChildFailedError as error:
                raise _cause(Path(folder), error.failures, count) from None
            except SignalException as error:
                if error.sigval == signal.SIGINT:
                    raise KeyboardInterrupt from None
                raise SystemExit(128 + error.sigval) from None


@contextmanager
def _environment(folder: Path, count: int) -> Iterator[None]:
    """What the processes inherit."""
    before = dict(os.environ)
    os.environ[REPORTS] = str(folder)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    # DistributedDataParallel warns that looking for parameters without a gradient found none.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    loopback = {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback.pop())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Torchrun tells of a failure in a page; we do in a line."""
    log = logging.getLogger("torch.distributed.elastic")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


# ---------------------------------------------------------------------------------------------- what failed


def reporting() -> bool:
    """`launch` started this process, and wants to tell of errors itself."""
    return REPORTS in os.environ and inside()


def reported(work: Callable[[], None]) -> int:
    """Do the work of one of the processes; leave an error where `launch` finds it, and give the exit code.

    The process ends as soon as the one that started it does: nobody else would end it.
    """
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a pipe would hold lines back
    try:
        work()
    except Exception as error:
        _leave(error)
        return error.exit_code if isinstance(error, HeadstartError) else 1
    return 0


def _leave(error: Exception) -> None:
    told = {
        "time": time.time(),
        "type": type(error).__name__,
        "message": str(error),
        "foreseen": isinstance(error, HeadstartError),
        "trace": traceback.format_exc(),
    }
    path = Path(os.environ[REPORTS]) / f"{os.environ['RANK']}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(told), "utf-8")
    partial.replace(path)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)


def _cause(folder: Path, failures: Mapping[int, ProcessFailure], count: int) -> HeadstartError:
    """What began it: a mistake that was foreseen, a process that was killed, else the earliest error.

    When one process ends, the others fail as well, for want of it.
    """
    told = {int(path.stem): json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}
    in_turn = sorted(told.items(), key=lambda one: one[1]["time"])
    for _, one in in_turn:
        if one["foreseen"]:
            kind: type[HeadstartError] = getattr(errors, one["type"], HeadstartError)
            return kind(one["message"])
    # Those that torchrun itself ended come last.
    for number, failure in sorted(failures.items(), key=lambda one: one[1].exitcode == -signal.SIGTERM):
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            return HeadstartError(
                f"process {number + 1} of {count} was ended by {name}, and the others with it: run again, it "
                "goes on from the last checkpoint; where memory ran out, raise `machine.accumulate` or lower "
                "`machine.processes`"
            )
    for number, one in in_turn:
        sys.stderr.write(one["trace"])
        return HeadstartError(f"process {number + 1} of {count}: {one['type']}: {one['message']}")
    codes = ", ".join(f"process {number + 1} with code {one.exitcode}" for number, one in failures.items())
    return HeadstartError(f"training in {count} processes ended early: {codes}")
