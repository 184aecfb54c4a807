"""The servers and the worker of a clone, for people to look at: started together, stopped together.

Prefect's server keeps its database in `.headstart/prefect`, MLflow's looks at the store in `mlflow/`: the
same that `headstart run` writes to when no server is set. What the environment names is used instead.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil

from flows import lock, server
from steps.errors import BusyError, HeadstartError, UserError
from steps.tracking import addresses

if TYPE_CHECKING:
    from flows.deploy import Done
    from steps.operation import Nightly

LOGS = Path(".headstart/logs")
LOCK_FILE = Path(".headstart/ui.lock")
# Every process we start inherits this, and so do those that they start.
MARK = "HEADSTART_UI"
# Where steps write to when MLFLOW_TRACKING_URI is not set; steps/tracking/addresses.py says the same.
STORE, FILES = Path("mlflow/mlflow.db"), Path("mlflow/artifacts")
REPORTS = Path("reports/index.html")

START_SECONDS = 180.0
STOP_SECONDS, IDLE_SECONDS = 15.0, 1.0
POLL_SECONDS = 0.2
ANSWER_SECONDS = 5.0
TOLD_LINES = 15
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")


class ServiceError(HeadstartError):
    """A server or the worker ended by itself, or never came up."""


@dataclass(frozen=True)
class Addresses:
    """Where to look.

    Attributes:
        prefect: the pages of Prefect.
        mlflow: the pages of MLflow.
        reports: the file with all reports.
        has_reports: whether it is there yet.
    """

    prefect: str
    mlflow: str
    reports: str
    has_reports: bool


@dataclass(frozen=True)
class Service:
    """A process of ours.

    Attributes:
        name: what people call it.
        command: program and arguments.
        log: where it writes.
        is_healthy: whether it does its work.
        environment: beside what we have.
        has_runs: its children are flow runs, which it would wait for to the end.
    """

    name: str
    command: list[str]
    log: Path
    is_healthy: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    has_runs: bool = False


class Services:
    """Processes that live and die together."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.running: list[tuple[Service, subprocess.Popen[bytes]]] = []

    def start(self, service: Service) -> None:
        """Start a process in a session of its own: a Ctrl-C in the terminal is our affair, not theirs."""
        service.log.parent.mkdir(parents=True, exist_ok=True)
        if service.log.exists():
            service.log.replace(service.log.with_suffix(".log.1"))
        here = str(Path(sys.executable).parent)
        environment = {
            **os.environ,
            # The servers start programs of their own by name: those of our environment.
            "PATH": os.pathsep.join([here, os.environ.get("PATH", os.defpath)]),
            "PYTHONUNBUFFERED": "1",
            MARK: self.mark,
            **service.environment,
        }
        with service.log.open("wb") as log:
            process = subprocess.Popen(
                service.command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.running.append((service, process))

    def wait_until_healthy(self, seconds: float = START_SECONDS) -> None:
        """Wait for all that were started.

        Raises:
            ServiceError: one of them ended, or does not come up in time.
        """
        deadline = time.monotonic() + seconds
        waiting = [service for service, _ in self.running]
        while waiting:
            self.check()
            waiting = [service for service in waiting if not service.is_healthy()]
            if waiting and time.monotonic() > deadline:
                raise ServiceError(_told(waiting[0], f"is not up after {seconds:.0f} s"))
            time.sleep(POLL_SECONDS if waiting else 0)

    def check(self) -> None:
        """Look whether all are alive.

        Raises:
            ServiceError: one is not; the message has the end of its log.
        """
        for service, process in self.running:
            code = process.poll()
            if code is not None:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise ServiceError(_told(service, how))

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End all of them and whatever they started, the last one first; nothing is left.

        Each has its time to end by itself: the worker's runs tell the server, which is there until then.
        """
        for service, process in reversed(self.running):
            runs = _children(process) if service.has_runs else []
            for one in (process, *runs):
                with suppress(ProcessLookupError, psutil.Error):
                    one.terminate()
            psutil.wait_procs(runs, timeout=seconds)
            # A worker without runs sleeps until it looks for the next one, and has nothing to tell.
            with suppress(subprocess.TimeoutExpired):
                process.wait(IDLE_SECONDS if service.has_runs else seconds)
            process.kill()
            process.wait()
        end_marked(self.mark)
        self.running.clear()


@dataclass(frozen=True)
class Shown:
    """The pages of a clone.

    Attributes:
        addresses: where to look.
        services: the processes behind them.
        deployments: what became of each of them, as `flows.deploy.deploy` tells it.
    """

    addresses: Addresses
    services: Services
    deployments: list[Done]


@contextmanager
def running(host: str, prefect_port: int, mlflow_port: int, nightly: Nightly) -> Iterator[Shown]:
    """Both servers and the worker, healthy; all of them end with the block.

    Args:
        host: the address they listen at.
        prefect_port: of Prefect's pages; 0 takes a free one.
        mlflow_port: of MLflow's pages; 0 takes a free one.
        nightly: when the nightly run starts.

    Raises:
        BusyError: it is going on in this clone already.
        UserError: a port is in use.
        ServiceError: one of them does not come up.
    """
    with _alone() as stream:
        services = Services(uuid.uuid4().hex)
        _write(stream, {"mark": services.mark})
        try:
            prefect = _start_prefect(services, host, prefect_port)
            mlflow = _start_mlflow(services, host, mlflow_port)
            # Not before the address is in the environment, where Prefect reads it when it is imported.
            from flows import deploy

            services.wait_until_healthy()
            done = deploy.deploy(deploy.POOL, nightly)
            services.start(_worker(deploy.POOL))
            services.wait_until_healthy()
            found = Addresses(prefect, mlflow, REPORTS.resolve().as_uri(), REPORTS.exists())
            # From now on `headstart run` shows itself in these pages.
            _write(stream, {"mark": services.mark, "pid": os.getpid(), **asdict(found)})
            yield Shown(found, services, done)
        finally:
            with _undisturbed():
                _write(stream, {"mark": services.mark})
                services.stop()
                _write(stream, {})


def end_marked(mark: str) -> None:
    """Kill every process that carries the mark; a flow run's stages live in sessions of their own."""
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.pid != os.getpid():
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=5)


def _children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return list(psutil.Process(process.pid).children())
    return []


# --------------------------------------------------------------------------------------------- the servers


def _start_prefect(services: Services, host: str, port: int) -> str:
    """Start Prefect's server, unless the environment names one; give its address for people."""
    named = os.environ.get("PREFECT_API_URL")
    if named:
        server.reach()
        return addresses.shown(named).rstrip("/").removesuffix("/api")
    port = _free(host, port, "--prefect-port")
    address = f"http://{_reached(host)}:{port}"
    command = [
        sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port),
        "--log-level", "WARNING",
    ]  # fmt: skip
    environment = {
        # The pages ask the server that they come from, by whatever name it was reached.
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_URL": address,
        # In memory, a restart would forget who holds a place, and nobody would ever give it back.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_HOME": str(server.HOME.absolute()),
    }
    log = LOGS / "prefect.log"
    services.start(
        Service("Prefect's server", command, log, lambda: _answers(f"{address}/api/health"), environment)
    )
    # Not before the server has it, which would ask itself; our client and the worker do.
    os.environ["PREFECT_API_URL"] = f"{address}/api"
    return address


def _start_mlflow(services: Services, host: str, port: int) -> str:
    """Start MLflow's server on the clone's store, unless the environment names one; give its address."""
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    if named.startswith(("http://", "https://")):
        return addresses.shown(named).rstrip("/")
    port = _free(host, port, "--mlflow-port")
    address = f"http://{_reached(host)}:{port}"
    STORE.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1",
        # Files lie where `headstart run` puts them, so whoever publishes through the server does the same.
        "--no-serve-artifacts",
    ]  # fmt: skip
    environment = {
        # Not as an argument, which every user of the machine can read: it may hold a password.
        "MLFLOW_BACKEND_STORE_URI": named or f"sqlite:///{STORE.resolve()}",
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(FILES.resolve()),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    if host not in LOOPBACK and "MLFLOW_SERVER_ALLOWED_HOSTS" not in os.environ:
        environment["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join(_names(host, port))
    log = LOGS / "mlflow.log"
    services.start(
        Service("MLflow's server", command, log, lambda: _answers(f"{address}/health"), environment)
    )
    return address


def _worker(pool: str) -> Service:
    """The worker that runs the deployments in this clone."""
    from flows import deploy

    command, environment = deploy.worker(pool)
    earlier = deploy.sign_of_life(pool)
    return Service(
        "the worker",
        command,
        LOGS / "worker.log",
        lambda: deploy.sign_of_life(pool) not in (None, earlier),
        environment,
        has_runs=True,
    )


def _names(host: str, port: int) -> list[str]:
    """By which names a machine's server may be called; another one is somebody's page in disguise."""
    names = ["localhost", "127.0.0.1", socket.gethostname(), socket.getfqdn()]
    if host in EVERYWHERE:
        with suppress(OSError):
            names += socket.gethostbyname_ex(socket.gethostname())[2]
    else:
        names.append(host)
    known = list(dict.fromkeys(names))
    return [*known, *(f"{name}:{port}" for name in known)]


def _free(host: str, port: int, option: str) -> int:
    """The port, or a free one for 0.

    Raises:
        UserError: something listens there, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(
                f"cannot listen at {host}:{port} ({reason}); choose another port with {option}, "
                "or end what listens there"
            ) from None
        return int(probe.getsockname()[1])


def _reached(host: str) -> str:
    """The name by which a browser on this machine reaches it."""
    if host in EVERYWHERE:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it asks for a name: it is there
    except (OSError, ValueError):
        return False


def _told(service: Service, how: str) -> str:
    """What happened to a service, with the end of its log."""
    try:
        lines = service.log.read_text("utf-8", errors="replace").splitlines()[-TOLD_LINES:]
    except OSError:
        lines = []
    end = "\n  ".join(["", *lines]) if lines else " (it is empty)"
    return f"{service.name} {how}; the end of {service.log}:{end}"


# ----------------------------------------------------------------------------------------------- the clone


@contextmanager
def _alone() -> Iterator[IO[str]]:
    """Hold the clone's pages for this process, and end what a killed one left behind.

    Raises:
        BusyError: another process holds them.
    """
    LOCK_FILE.parent.mkdir(parents=True, exist_ok=True)
    with LOCK_FILE.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = lock.read_holder(stream)
            where = f": {held['prefect']} and {held['mlflow']}" if "prefect" in held else ", just starting"
            raise BusyError(f"the pages of this clone are shown already{where}") from None
        left = lock.read_holder(stream).get("mark")
        if left and left != os.environ.get(MARK):
            end_marked(left)
        yield stream


def _write(stream: IO[str], held: dict[str, Any]) -> None:
    stream.seek(0)
    stream.truncate()
    stream.write(json.dumps(held) if held else "")
    stream.flush()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no second Ctrl-C break off the stopping, which has an end of its own."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
