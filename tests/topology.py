"""The topology of deploy/, as processes of this machine: PostgreSQL, an S3-compatible store, both servers.

The servers are started by deploy/entrypoint, as the containers do it. All passwords are made up for a test.
"""

from __future__ import annotations

import base64
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.tracking.servers import free_port
from tests.twin import Twin, git

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
USER, BUCKET = "twin", "headstart"
START_SECONDS = 120.0


def server_binaries() -> Path:
    """The folder of PostgreSQL's programs; skips where there is none."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    folders += [Path(found).resolve().parent] if found else []
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "pg_ctl", "psql", "pg_dump", "pg_restore")):
            return folder
    pytest.skip("PostgreSQL is not installed: no initdb on PATH or below /usr/lib/postgresql")


@dataclass
class Postgres:
    """A PostgreSQL server on a free port, that can be stopped and started again."""

    binaries: Path
    folder: Path
    port: int
    password: str
    user: str | None  # it refuses to run as root

    @property
    def environment(self) -> dict[str, str]:
        return {
            "POSTGRES_USER": USER, "POSTGRES_PASSWORD": self.password,
            "POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(self.port),
        }  # fmt: skip

    @property
    def client(self) -> dict[str, str]:
        """What psql and pg_dump read."""
        return {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": USER, "PGPASSWORD": self.password}

    def control(self, *arguments: str) -> None:
        command = [str(self.binaries / "pg_ctl"), "-D", str(self.folder / "data"), "-w", *arguments]
        subprocess.run(command, check=True, capture_output=True, user=self.user, cwd=self.folder)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        options += " -c fsync=off -c max_connections=100"
        self.control("-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        self.control("-m", mode, "stop")

    def sql(self, *arguments: str, database: str = "postgres") -> str:
        command = [
            str(self.binaries / "psql"),
            "-X",
            "-At",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            database,
            *arguments,
        ]
        done = subprocess.run(
            command, env=os.environ | self.client, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@contextmanager
def postgres() -> Iterator[Postgres]:
    """PostgreSQL with the databases of deploy/databases.sql, gone when the block ends."""
    binaries = server_binaries()
    user = None
    if os.geteuid() == 0:
        names = {one.pw_name for one in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
    # pytest's own folders are closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="headstart-postgres-"))
    server = Postgres(binaries, folder, free_port(), secrets.token_urlsafe(12), user)
    started = False
    try:
        if user:
            shutil.chown(folder, user)
        word = folder / "password"
        word.write_text(server.password)
        word.chmod(0o644)
        command = [str(binaries / "initdb"), "-D", str(folder / "data"), "-U", USER, "--pwfile", str(word)]
        subprocess.run(
            [*command, "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"],
            check=True, capture_output=True, user=user, cwd=folder,
        )  # fmt: skip
        server.start()
        started = True
        server.sql("-f", str(DEPLOY / "databases.sql"))
        yield server
    finally:
        if started:
            _stop_if_running(server)
        shutil.rmtree(folder, ignore_errors=True)


def _stop_if_running(server: Postgres) -> None:
    """Stop it; a test may have stopped it already."""
    if (server.folder / "data/postmaster.pid").exists():
        server.stop("immediate")


@contextmanager
def process(
    command: list[str], folder: Path, name: str, environment: Mapping[str, str], page: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """Run something with its log in `<folder>/<name>.log` until the block ends; wait until `page` answers."""
    log = folder / f"{name}.log"
    with log.open("a") as stream:
        started = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdout=stream, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            if page:
                wait_for(page, started, log)
            yield started
        finally:
            end(started)


def end(started: subprocess.Popen[bytes]) -> None:
    """Kill a process, its group and all its children, whatever sessions they are in."""
    try:
        family = [*psutil.Process(started.pid).children(recursive=True), psutil.Process(started.pid)]
    except psutil.NoSuchProcess:
        family = []
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    with suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()


def wait_for(page: str, started: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until an address answers, with whatever code."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert started.poll() is None, log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(page, timeout=5):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{page} does not answer: {log.read_text()[-4000:]}")


def base_environment(home: Path) -> dict[str, str]:
    """This process's environment without anybody's settings of the servers."""
    dropped = ("PREFECT_", "MLFLOW_", "DVC_", "HEADSTART_", "PYTEST_", "COV_", "AWS_", "POSTGRES_", "PG")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    here = str(Path(sys.executable).parent)
    return kept | {
        "PATH": os.pathsep.join([here, kept.get("PATH", os.defpath)]),
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
    }  # fmt: skip


@dataclass
class Topology:
    """Everything that runs.

    Attributes:
        root: the folder of all files and logs.
        postgres: the database of both servers.
        store: what a client of the S3-compatible store needs, as environment variables.
        prefect, mlflow: addresses.
        password: of both servers' one user.
    """

    root: Path
    postgres: Postgres
    store: dict[str, str]
    password: str
    prefect: str = ""
    mlflow: str = ""
    servers: dict[str, str] = field(default_factory=dict)

    @property
    def client(self) -> dict[str, str]:
        """The environment of a clone: both servers with their password, the store for DVC alone."""
        return {
            "PREFECT_API_URL": f"{self.prefect}/api",
            "PREFECT_API_AUTH_STRING": f"{USER}:{self.password}",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.password,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "1",
            **self.store,
        }

    @contextmanager
    def server(self, which: str, *, wait: bool = True) -> Iterator[subprocess.Popen[bytes]]:
        """`prefect` or `mlflow`, as deploy/entrypoint starts it."""
        address, page = {"prefect": (self.prefect, "/api/health"), "mlflow": (self.mlflow, "/health")}[which]
        own = {"PORT": address.rsplit(":", 1)[1], "BIND": "127.0.0.1", "MLFLOW_WORKERS": "1"}
        own["PREFECT_HOME"] = str(self.root / "prefect-home")
        command = ["sh", str(DEPLOY / "entrypoint"), which]
        with process(command, self.root, which, self.servers | own) as started:
            if wait:
                wait_for(address + page, started, self.root / f"{which}.log")
            yield started

    @contextmanager
    def worker(self, clone: Twin, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """A worker of the pool `headstart` in a clone of its own."""
        command = [sys.executable, "-m", "headstart.cli", "worker", "--pool", "headstart", "--name", name]
        with process(command, clone.root, "worker", clone.environment | self.client) as started:
            yield started

    def wait_for_pool(self, name: str = "headstart") -> None:
        """Wait until the first worker has made the pool."""
        token = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
        page = urllib.request.Request(f"{self.prefect}/api/work_pools/{name}")
        page.add_header("Authorization", f"Basic {token}")
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with suppress(urllib.error.HTTPError), urllib.request.urlopen(page, timeout=20):
                return
            time.sleep(0.5)
        raise AssertionError(f"no worker made the pool {name}")

    def clone(self, origin: Twin, name: str) -> Twin:
        """A git clone of the twin's bare repository, with nothing made yet."""
        target = self.root / name
        git(self.root, "clone", "--quiet", str(self.root / "origin.git"), str(target))
        (target / ".home").mkdir()
        assert origin.root != target
        return Twin(target)

    def publish(self, twin: Twin) -> None:
        """Give the twin the store as its DVC remote, and a bare repository that workers clone."""
        remote = ["remote", "add", "--default", "store", f"s3://{BUCKET}/dvc"]
        twin.run("dvc", *remote)
        git(twin.root, "add", ".dvc/config")
        git(twin.root, "commit", "--quiet", "--message", "The DVC remote")
        git(self.root, "clone", "--quiet", "--bare", str(twin.root), str(self.root / "origin.git"))
        git(twin.root, "remote", "add", "origin", str(self.root / "origin.git"))
        git(twin.root, "fetch", "--quiet", "origin")


@contextmanager
def topology(root: Path) -> Iterator[Topology]:
    """PostgreSQL, the store with its bucket, Prefect's and MLflow's servers, both with a password."""
    root.mkdir(parents=True, exist_ok=True)
    home = root / "home"
    home.mkdir()
    with ExitStack() as stack:
        database = stack.enter_context(postgres())
        environment = base_environment(home)
        address = f"http://127.0.0.1:{free_port()}"
        moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", address.rsplit(":", 1)[1]]
        stack.enter_context(process(moto, root, "store", environment, address))
        store = {
            "AWS_ACCESS_KEY_ID": "twin", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": address,
        }  # fmt: skip
        # One that a URL and an INI file could take amiss.
        password = f"p%@{secrets.token_urlsafe(12)}"
        made = Topology(root, database, store, password)
        made.prefect = f"http://127.0.0.1:{free_port()}"
        made.mlflow = f"http://127.0.0.1:{free_port()}"
        made.servers = environment | database.environment | store | {
            "HEADSTART_USER": USER, "HEADSTART_PASSWORD": password, "S3_BUCKET": BUCKET,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        }  # fmt: skip
        subprocess.run(["sh", str(DEPLOY / "entrypoint"), "buckets"], env=made.servers, check=True)
        started = stack.enter_context(made.server("prefect", wait=False))  # beside the other, to save time
        stack.enter_context(made.server("mlflow"))
        wait_for(f"{made.prefect}/api/health", started, root / "prefect.log")
        yield made
