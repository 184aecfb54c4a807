"""serve: answer predictions over HTTP with the version that an alias points to, and follow the alias.

MLflow's own scoring server answers; before it stands `door`. When the alias moves, the new version is loaded
beside the old one, its files compared with what was registered, warmed up, and only then takes over: a
request that is under way is still answered by the version it came in under.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any, NoReturn

import pandas as pd

from steps import artifacts, door, entry, params
from steps.errors import HeadstartError, UserError
from steps.kinds import KINDS
from steps.operation import Serving
from steps.recording import GIB, Recorder
from steps.tracking import naming, registry, scoring, store
from steps.tracking.registry import Loaded, Version

ADVICE = "serving needs its model registry: start it, or correct MLFLOW_TRACKING_URI"
# A version that cannot be loaded is tried again after so long, then twice as long, up to a limit.
AGAIN_SECONDS, AGAIN_MOST = 30.0, 600.0
# Requests under way when the server is told to stop have so long to end.
STOP_SECONDS = 30
# How long a connection may be idle, or its next request's head on the way.
IDLE_SECONDS = 20.0
BACKLOG = 128
# Predictions at a time: two keep two cores busy, more only wait for Python's lock, and all come late.
WORKERS = 2

log = logging.getLogger("headstart.serve")


@dataclass(frozen=True)
class Served:
    """A version that answers.

    Attributes:
        version: its number.
        app: MLflow's server around it.
        since: when it took over, ISO, UTC.
        task: its task.
    """

    version: str
    app: Callable[..., Awaitable[None]]
    since: str
    task: str


class Keeper:
    """Knows which version answers now, and looks for the next.

    Args:
        reference: what is followed, `digits@champion`.
        experiment: whose model it is.
        limits: of requests, and whether they are recorded.
    """

    def __init__(self, reference: str, experiment: str, limits: Serving) -> None:
        self.reference, self.experiment, self.limits = reference, experiment, limits
        self.recorder: Recorder | None = None
        self.now: Served | None = None
        self.degraded: str | None = None
        self.refreshed: str | None = None
        self._again: dict[str, tuple[float, float]] = {}

    def current(self) -> Served:
        """The version that answers now."""
        assert self.now is not None
        return self.now

    def take(self, version: Version) -> None:
        """Load a version, try it out, and let it answer from now on.

        Raises:
            TrackingError: its files are gone or altered.
            HeadstartError: it cannot predict.
        """
        loaded = registry.load(version)
        kind = KINDS[version.tags["headstart.task"]]
        if self.limits.record and self.recorder is None:
            self.recorder = Recorder(self.experiment, kind, int(self.limits.record_gib * GIB))
        ask = door.guarded(loaded.predict, kind, self.limits, self._record(version.number))
        app = scoring.app(loaded, ask)
        _warm(loaded, version)
        self.now = Served(version.number, app, _now(), version.tags["headstart.task"])
        self.degraded, self.refreshed = None, _now()
        self._again.clear()

    def look(self) -> None:
        """Look at the alias once; whatever goes wrong is told, and the version there is goes on answering."""
        try:
            with store.opened(ADVICE) as opened:
                version = naming.version_of(opened, self.reference)
                if version.number != self.current().version:
                    self._follow(version)
                else:
                    self.degraded = None
            self.refreshed = _now()
        except HeadstartError as error:
            self._tell(str(error))
        except Exception as error:
            log.exception("looking for a new version failed")
            self._tell(f"{type(error).__name__}: {error}")

    def _follow(self, version: Version) -> None:
        """Load a new version, unless it failed a moment ago."""
        at, pause = self._again.get(version.number, (0.0, AGAIN_SECONDS))
        if monotonic() < at:
            return
        before = self.current()
        try:
            if version.tags["headstart.task"] != before.task:
                raise UserError(
                    f"version {version.number} is for {version.tags['headstart.task']}, not {before.task}: "
                    "stop the server and start it again"
                )
            self.take(version)
        except Exception:
            self._again[version.number] = (monotonic() + pause, min(2 * pause, AGAIN_MOST))
            raise
        entry.say(f"{self.experiment}: version {version.number} took over from version {before.version}")
        gc.collect()  # the old network may be large, and nothing else asks for its memory

    def _record(self, version: str) -> Callable[[pd.DataFrame, pd.DataFrame], None]:
        recorder = self.recorder
        if recorder is None:
            return lambda asked, said: None
        return lambda asked, said: recorder.add(version, asked, said)

    def _tell(self, reason: str) -> None:
        """Say once what is wrong."""
        reason = " ".join(reason.split())
        if reason != self.degraded:
            log.warning("version %s goes on answering: %s", self.current().version, reason)
        self.degraded = reason

    def health(self) -> dict[str, Any]:
        """What the health page tells."""
        now = self.current()
        told: dict[str, Any] = {
            "status": "ok" if self.degraded is None else "degraded",
            "serves": self.reference,
            "version": now.version,
            "since": now.since,
            "refreshed": self.refreshed,
            "reason": None if self.degraded is None else _public(self.degraded),
        }
        if self.recorder is not None:
            told |= {"recorded": self.recorder.written, "dropped": self.recorder.dropped}
        return told

    def watch(self, stop: threading.Event) -> None:
        """Look again and again, until told to stop."""
        while not stop.wait(self.limits.refresh_seconds):
            self.look()


def _warm(loaded: Loaded, version: Version) -> None:
    """Let a model answer once: the first answer takes longest, and shows that it can."""
    example = scoring.example(loaded)
    if example is None:
        return
    try:
        loaded.predict(example)
    except Exception as error:
        raise HeadstartError(
            f"version {version.number} of {version.model} cannot predict its own example: {error}"
        ) from error


def _public(reason: str) -> str:
    """A reason without the server's folders: strangers may read the health page."""
    here = os.getcwd()  # noqa: PTH109 - as text
    return reason.replace(f"{here}/", "")[:500]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# ------------------------------------------------------------------------------------------------- the server


def serve(name: str, host: str = "127.0.0.1", port: int = 5001) -> None:
    """Serve until told to stop.

    Args:
        name: an experiment or a registered model; with `@` an alias or a number, else its champion is meant.
        host: the address to bind to.
        port: 0 for any that is free.

    Raises:
        UserError: there is no such version, or the port is taken.
        TrackingError: MLflow does not answer, or the version's files are gone or altered.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    with _bound(host, port) as listening:
        entry.keep_freed_memory()
        workers = _threads()
        keeper = _keeper(name)
        kind = KINDS[keeper.current().task]
        app = door.Door(keeper.current, kind, keeper.limits, keeper.health)
        _told(keeper, listening)
        stop = threading.Event()
        watching = threading.Thread(target=keeper.watch, args=(stop,), name="refresh", daemon=True)
        watching.start()
        try:
            _run(app, listening, workers)
        finally:
            stop.set()
            if keeper.recorder is not None:
                keeper.recorder.close()
    entry.say(f"{keeper.experiment}: stopped")


def _keeper(name: str) -> Keeper:
    """The keeper of what the user named, with a version that answers."""
    reference = name if "@" in name else f"{name}@{registry.CHAMPION}"
    with store.opened(ADVICE) as opened:
        version = naming.version_of(opened, reference)
        experiment = version.model.removeprefix(registry.name_of(""))
        path = artifacts.settings_file(experiment, "serving")
        limits = params.read_settings(Serving, path) if path.exists() else Serving()
        keeper = Keeper(reference, experiment, limits)
        keeper.take(version)
    return keeper


def _bound(host: str, port: int) -> socket.socket:
    """A socket that nobody can connect to yet; a taken port is told before the model is loaded."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        told = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{host}, port {port}: {told}; choose others with --host and --port") from None
    return found


def _told(keeper: Keeper, listening: socket.socket) -> None:
    host, port = listening.getsockname()[:2]
    now, shown = keeper.current(), f"[{host}]" if ":" in host else host
    entry.say(
        f"{keeper.experiment}: version {now.version}, {keeper.reference}, answers at "
        f"http://{shown}:{port}{door.PREDICT}"
    )
    if not _loopback(host):
        entry.say(
            f"warning: {host} is open to other machines, and whoever reaches it may ask; "
            "put a proxy with TLS and a password before it"
        )


def _loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _threads() -> int:
    """Share the cores out between predictions; gives how many there are at a time."""
    import torch

    cores = len(os.sched_getaffinity(0))
    workers = min(WORKERS, cores)
    torch.set_num_threads(max(1, cores // workers))
    return workers


def _run(app: door.Door, listening: socket.socket, workers: int) -> None:
    import uvicorn

    from steps.connection import patient

    config = uvicorn.Config(
        app,
        http=patient(IDLE_SECONDS),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(IDLE_SECONDS),
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    server = uvicorn.Server(config)

    async def work() -> None:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="predict")
        asyncio.get_running_loop().set_default_executor(pool)
        await server.serve(sockets=[listening])

    # Uvicorn raises the signal once more when it has stopped in good order; that is no accident then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: None)
    asyncio.run(work())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"{message}; usage: python -m steps.serve EXPERIMENT|MODEL[@ALIAS] [--host HOST] [--port PORT]"
        )


def _main() -> None:
    parser = _Parser(prog="python -m steps.serve")
    parser.add_argument("name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5001)
    given = parser.parse_args()
    serve(given.name, given.host, given.port)


def main() -> int:
    """Run `python -m steps.serve EXPERIMENT|MODEL[@ALIAS] [--host HOST] [--port PORT]`."""
    return entry.guarded(_main)


if __name__ == "__main__":
    sys.exit(main())
