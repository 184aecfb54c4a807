"""MLflow's server and its database are killed, restarted, slow or wrong while a result goes there.

Every fault is hit on purpose: a proxy counts the requests, and does its damage at the one that is meant.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from steps import artifacts
from steps import frozen as frozen_sets
from steps.tracking import aliases, registry, store
from tests.between import Answer, Between, LostError, Request, Rule, between
from tests.topology import USER, Postgres, base_environment, end, postgres, wait_for
from tests.tracking import made
from tests.tracking.servers import free_port

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parent.parent
NAME, MODEL, TOYS = "colours", "headstart-colours", "headstart-toys"
TRAININGS = {f"{arm} seed {seed}" for arm in ("scratch", "frozen", "full") for seed in (1, 2)}
UPLOAD = "/api/2.0/mlflow-artifacts/artifacts/"
# MLflow's ViewType.ALL: what was deleted, too.
EVERYTHING: Any = 3
# As often as a command may fail one time after the other.
TRIES = 80
# Does each command of its input in a fork of itself, which has all imports and no threads: they take seconds.
DRIVER = """
import json, os, sys
import mlflow.pyfunc, timm, torch
from steps import contest, entry, register
from steps.tracking import aliases, store
torch.set_num_threads(1)
def promote(model, number, why):
    with store.opened() as opened:
        aliases.promote(opened, model, number, why=why)
WORK = {"register": register.register, "promote": promote}
for line in sys.stdin:
    folder, name, environment, arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 70
        try:
            log = os.open(os.path.join(folder, "said.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(folder)
            os.environ.update(environment)
            code = entry.guarded(lambda: WORK[name](*arguments))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass
class Mlflow:
    """MLflow's server on a port of its own, that can be killed and started again."""

    folder: Path
    backend: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.backend]
        command += ["--artifacts-destination", str(self.folder / "files"), "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = self.folder / "server.log"
        with log.open("a") as stream:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=base_environment(self.folder) | quiet, stdout=stream,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        wait_for(f"{self.address}/health", self.process, log)

    def kill(self) -> None:
        """SIGKILL to it and all its workers."""
        if self.process is not None:
            end(self.process)
            self.process = None


@contextmanager
def mlflow(folder: Path, backend: str = "") -> Iterator[Mlflow]:
    """MLflow's server until the block ends, upon an empty SQLite store where no other is named."""
    folder.mkdir()
    if not backend:
        made.store(folder)
        backend = f"sqlite:///{folder}/mlflow/mlflow.db"
    server = Mlflow(folder, backend)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@dataclass
class Commands:
    """Steps as the command line starts them, each in a process of its own.

    Attributes:
        driver: makes the processes.
        folder: the clone.
        environment: beside this process's own.
        lines: what each command that failed said.
    """

    driver: subprocess.Popen[str]
    folder: Path
    environment: dict[str, str]
    lines: list[str] = field(default_factory=list)

    def try_once(self, name: str, *arguments: str) -> bool:
        """Whether it succeeded; if not, it must have said why in one line."""
        assert self.driver.stdin is not None
        assert self.driver.stdout is not None
        self.driver.stdin.write(json.dumps([str(self.folder), name, self.environment, arguments]) + "\n")
        self.driver.stdin.flush()
        code = int(self.driver.stdout.readline())
        said = (self.folder / "said.txt").read_text()
        assert "Traceback" not in said, said
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert (code, len(errors)) in ((0, 0), (1, 1), (2, 1)), f"{code}\n{said}"
        self.lines += errors
        return code == 0

    def until_done(
        self, name: str, *arguments: str, between: Callable[[], object] = lambda: None, tries: int = TRIES
    ) -> None:
        """Call it until it succeeds."""
        for _ in range(tries):
            if self.try_once(name, *arguments):
                return
            between()
        raise AssertionError("\n".join(self.lines))


@pytest.fixture(scope="module")
def driver() -> Iterator[subprocess.Popen[str]]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "HEADSTART_"))
    }
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER], env=kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def commands(driver: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """In a clone with a finished result, which is not published yet."""
    clone = tmp_path / "clone"
    made.clone(clone)
    monkeypatch.chdir(clone)
    # Nobody has to wait for the moment at which a client asks again.
    return Commands(driver, clone, {"MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0"})


@pytest.fixture
def served(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Mlflow, Between]]:
    """A server, and the proxy that the commands know in its place; the test itself asks the server."""
    with mlflow(tmp_path / "server") as server, between(server.port) as proxy:
        commands.environment["MLFLOW_TRACKING_URI"] = proxy.url
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        yield server, proxy


def check() -> None:
    """MLflow holds one version, a run for each training, one decision, and every byte."""
    with store.opened() as opened:
        client = opened.client
        found = client.get_experiment_by_name(f"headstart/{NAME}")
        assert found is not None
        runs = client.search_runs([found.experiment_id], "", EVERYTHING)
        kinds = Counter(run.data.tags["headstart.kind"] for run in runs)
        assert kinds == {"comparison": 1, "training": len(TRAININGS)}
        assert {run.info.run_name for run in runs} > TRAININGS
        for run in runs:
            check_run(opened, run)
        models = client.search_logged_models([found.experiment_id])
        assert [str(one.status) for one in models] == ["READY"]
        check_versions(opened, MODEL, 1, {"champion": "1"}, ["promote 1"])
        version = registry.champion(opened, MODEL)
        assert version is not None
        assert registry.verify(version), "no list of files"


def check_run(opened: store.Store, run: Any) -> None:
    """It is complete: no value is there twice, and the files are those of the clone, byte by byte."""
    run_id, kind = run.info.run_id, run.data.tags["headstart.kind"]
    assert (run.info.status, run.data.tags["headstart.complete"]) == ("FINISHED", "true")
    losses = opened.client.get_metric_history(run_id, "train_loss")
    assert [one.step for one in losses] == ([1, 2] if kind == "training" else [])
    if kind == "training":
        return
    (frozen,) = Path(f".headstart/frozen/{NAME}").iterdir()
    for path, here in {"report": artifacts.report_dir(NAME), f"frozen/{frozen.name}": frozen}.items():
        with TemporaryDirectory() as folder:
            there = Path(opened.client.download_artifacts(run_id, path, folder))
            if (there / frozen_sets.ARCHIVE).exists():
                with tarfile.open(there / frozen_sets.ARCHIVE) as archive:
                    archive.extractall(there, filter="data")
                (there / frozen_sets.ARCHIVE).unlink()
            assert artifacts.sha256_files(there) == artifacts.sha256_files(here)
            assert len(artifacts.sha256_files(here)) >= 5


def check_versions(
    opened: store.Store, model: str, count: int, now: Mapping[str, str], ledger: list[str]
) -> None:
    """So many versions; these aliases; a sound ledger with these entries, each written once and finished."""
    client = opened.client
    found = client.search_model_versions(f"name = '{model}'")
    assert sorted(int(one.version) for one in found) == list(range(1, count + 1))
    assert aliases.current(opened, model) == now
    entries = aliases.history(opened, model)
    assert [f"{one.what} {one.after['champion']}" for one in entries] == ledger
    assert aliases.settle(opened, model) is None
    decisions = client.get_experiment_by_name(aliases.DECISIONS)
    assert decisions is not None
    wanted = f"tags.`{aliases.MODEL}` = '{model}'"
    runs = client.search_runs([decisions.experiment_id], wanted, EVERYTHING)
    assert [(run.info.status, run.info.lifecycle_stage) for run in runs] == [("FINISHED", "active")] * len(
        ledger
    )


# ------------------------------------------------------------------------ answers that are lost, late, wrong


def first_of_each(then: Rule, apart_from: bytes = rb"\d{13}") -> Rule:
    """A rule for the first time that a request comes which changes something; later ones are handed on.

    Args:
        then: what is done with it.
        apart_from: what is no difference between two requests, as a pattern; a time in milliseconds.
    """
    seen: set[tuple[str, bytes, bytes]] = set()

    def rule(request: Request) -> Answer:
        path, body = (re.sub(apart_from, b"", one) for one in (request.path.encode(), request.body))
        sign = (request.method, path, body)
        if not request.changes or sign in seen:
            return request.forward()
        seen.add(sign)
        return then(request)

    return rule


def lose(request: Request) -> Answer:
    """Let the server do what was asked for, and close the connection without its answer."""
    request.forward()
    raise LostError


@pytest.mark.survives(
    "servers",
    "every answer of MLflow's server is lost once",
    how="a proxy that hands on what changes something, and closes the connection in place of the answer",
    held="register ends well at once: one version, a run for each training, one decision, every byte",
)
def test_what_was_done_and_not_answered_is_not_done_twice(
    served: tuple[Mlflow, Between], commands: Commands
) -> None:
    served[1].rule = first_of_each(lose)
    assert commands.try_once("register", NAME), commands.lines
    check()
    assert commands.try_once("register", NAME), commands.lines
    check()


@pytest.mark.survives(
    "servers",
    "the connection to MLflow breaks at each request in turn",
    how="the same with a client that asks once: each command gets a request further than the one before",
    held="one line each time; in the end one version, a run for each training, one decision, every byte",
)
def test_a_connection_that_breaks_at_each_request_in_turn(
    served: tuple[Mlflow, Between], commands: Commands
) -> None:
    commands.environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    # Numbers and ids are no difference: one training stands for all, and a lease for those after it.
    losing = first_of_each(lose, apart_from=rb"[0-9a-f]{32}|\d+")
    served[1].rule = lambda one: one.forward() if one.path.startswith(UPLOAD) else losing(one)
    commands.until_done("register", NAME)
    assert len(commands.lines) > 20
    assert all("MLflow at http://127.0.0.1:" in line for line in commands.lines)
    check()


@pytest.mark.survives(
    "servers",
    "MLflow's server answers 500 and 502 now and then",
    how="one of five to eleven requests: by turns 500 in place of doing it, and 502 after it was done",
    held="one line or success; the next try ends with one version, a run for each training, one decision",
)
def test_a_server_that_answers_with_an_error_now_and_then(
    served: tuple[Mlflow, Between], commands: Commands
) -> None:
    # Uneven, so that no request of a command that is repeated is hit each time.
    gaps, kinds = itertools.cycle((5, 7, 11)), itertools.cycle((500, 502))
    wait, given = next(gaps), Counter[int]()
    lock = threading.Lock()

    def rule(request: Request) -> Answer:
        nonlocal wait
        with lock:
            wait = wait - 1 if wait else next(gaps)
            kind = 200 if wait else next(kinds)
            given[kind] += 1
        if kind == 500:
            return Answer(500)
        answer = request.forward()
        return answer if kind == 200 else Answer(kind)

    served[1].rule = rule
    commands.until_done("register", NAME)
    assert min(given[500], given[502]) > 15
    check()


@pytest.mark.survives(
    "servers",
    "MLflow's server is slow, and slower than the time-out",
    how="each answer a tenth of a second late; of each kind of request one later than the time-out",
    held="one line or success; one version, a run for each training, one decision, no value twice",
)
def test_a_server_slower_than_the_time_out(served: tuple[Mlflow, Between], commands: Commands) -> None:
    commands.environment["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "1"
    late: set[tuple[str, str]] = set()

    def rule(request: Request) -> Answer:
        kind = (request.method, re.sub(r"/(m-)?[0-9a-f]{32}.*", "", request.path))
        answer = request.forward()
        if request.changes and kind not in late:
            late.add(kind)
            time.sleep(1.3)
        elif not request.path.startswith(UPLOAD):
            time.sleep(0.1)
        return answer

    served[1].rule = rule
    commands.until_done("register", NAME)
    assert len(late) > 12
    check()


@pytest.mark.survives(
    "servers",
    "MLflow's server is killed in the middle of an upload",
    how="SIGKILL once half of a file has come, four times; started again at once, or after the command",
    held="one line or success; no version before its files are whole; in the end every byte as in the clone",
)
def test_a_server_that_is_killed_in_mid_upload(served: tuple[Mlflow, Between], commands: Commands) -> None:
    server, proxy = served
    points = ["/report/comparison.json", "/items.parquet", "/MLmodel", "/model.safetensors"]
    at_once = {"/report/comparison.json", "/model.safetensors"}

    def rule(request: Request) -> Answer:
        if server.process is None:
            raise LostError
        if not points or request.method != "PUT" or not request.path.endswith(points[0]):
            return request.forward()
        point = points.pop(0)
        connection = request.forward_half()
        server.kill()
        connection.close()
        if point in at_once:
            server.start()
        raise LostError

    def again() -> None:
        if server.process is None:
            server.start()
        with store.opened() as opened:
            assert not opened.client.search_model_versions(f"name = '{MODEL}'")

    proxy.rule = rule
    commands.until_done("register", NAME, between=again)
    assert not points
    assert len(commands.lines) >= 2
    check()


# --------------------------------------------------------------------------------------- PostgreSQL restarted


@dataclass
class Restarts:
    """Restarts PostgreSQL at requests that were chosen, one after the other.

    Attributes:
        database: the server.
        name: of the database that MLflow has in it.
        plan: what is to come: the end of a request's path, and what is done there. `restart`: the request
            finds PostgreSQL stopped. `away`: so does all that follows, until the command has ended. `lost`:
            restarted after it was carried out, in place of the answer. The name of a table: its lock holds
            the request up in mid-transaction, and the restart breaks it.
        away: PostgreSQL is stopped.
        done: how many restarts there were.
    """

    database: Postgres
    name: str
    plan: list[tuple[str, str]]
    away: bool = False
    done: int = 0

    def rule(self, request: Request) -> Answer:
        if not self.plan or not request.changes or not request.path.endswith(self.plan[0][0]):
            return request.forward()
        _, how = self.plan.pop(0)
        if how == "lost":
            request.forward()
            self.stop()
            self.start()
            raise LostError
        if how in ("restart", "away"):
            self.stop()
            answer = request.forward()
            assert answer.status >= 500, answer
            if how == "restart":
                self.start()
            return answer
        return self.in_midst(request, how)

    def in_midst(self, request: Request, table: str) -> Answer:
        """Break the transaction that writes to this table."""
        answers: list[Answer] = []
        asking = threading.Thread(target=lambda: answers.append(request.forward()))
        with self.locked(table):
            asking.start()
            self.wait_for_locks("NOT granted")
            self.stop()
        self.start()
        asking.join()
        assert answers[0].status >= 500, answers
        return answers[0]

    @contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Let nobody write to a table, until PostgreSQL stops."""
        statement = f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE; SELECT pg_sleep(60)"
        command = [str(self.database.binaries / "psql"), "-X", "-d", self.name, "-c", statement]
        holder = subprocess.Popen(
            command,
            env=os.environ | self.database.client,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self.wait_for_locks("granted AND mode = 'ShareRowExclusiveLock'")
            yield
        finally:
            holder.kill()
            holder.wait()

    def wait_for_locks(self, which: str) -> None:
        deadline = time.monotonic() + 20
        while self.database.sql("-c", f"SELECT count(*) FROM pg_locks WHERE {which}") == "0":
            assert time.monotonic() < deadline, which
            time.sleep(0.02)

    def stop(self) -> None:
        """By turns as a crash and as a restart that an administrator asks for."""
        self.done += 1
        self.away = True
        self.database.stop("immediate" if self.done % 2 else "fast")

    def start(self) -> None:
        if self.away:
            self.database.start()
            self.away = False


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as found:
        yield found


@pytest.fixture
def upon_postgres(
    database: Postgres, tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Restarts]:
    """MLflow's server upon an empty database of PostgreSQL, behind a proxy."""
    restarts = Restarts(database, f"mlflow_{free_port()}", [])
    database.sql("-c", f"CREATE DATABASE {restarts.name}")
    backend = f"postgresql+psycopg2://{USER}:{database.password}@127.0.0.1:{database.port}/{restarts.name}"
    with mlflow(tmp_path / "server", backend) as server, between(server.port) as proxy:
        commands.environment["MLFLOW_TRACKING_URI"] = proxy.url
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        proxy.rule = restarts.rule
        yield restarts


@pytest.mark.survives(
    "servers",
    "PostgreSQL is restarted while a result is published and registered",
    how="`pg_ctl -m immediate` and `-m fast` at fifteen requests: before, in mid-transaction, and after",
    held="one line or success; the next try ends with one version, a run for each training, one decision",
)
def test_postgresql_restarted_while_a_result_is_registered(
    upon_postgres: Restarts, commands: Commands
) -> None:
    upon_postgres.plan = [
        ("/runs/create", "restart"), ("/runs/create", "tags"), ("/runs/log-batch", "metrics"),
        ("/runs/log-inputs", "lost"), ("/runs/set-tag", "away"), ("/runs/create", "lost"),
        ("/logged-models", "logged_model_tags"), ("/runs/outputs", "lost"),
        ("/registered-models/create", "restart"), ("/model-versions/create", "model_version_tags"),
        ("/model-versions/create", "lost"), ("/registered-models/create", "registered_model_tags"),
        ("/runs/create", "tags"), ("/registered-models/alias", "registered_model_aliases"),
        ("/runs/update", "away"),
    ]  # fmt: skip
    commands.until_done("register", NAME, between=upon_postgres.start)
    assert (upon_postgres.plan, upon_postgres.done) == ([], 15)
    assert len(commands.lines) >= 4
    check()


@pytest.mark.survives(
    "servers",
    "PostgreSQL is restarted while a champion is promoted",
    how="the same at nine requests of a promotion: lease, entry, head of the ledger, alias, give-back",
    held="one line or success; the ledger has one entry, written once, and the aliases are what it says",
)
def test_postgresql_restarted_while_a_champion_is_promoted(
    upon_postgres: Restarts, commands: Commands
) -> None:
    with store.opened() as opened:
        opened.client.create_registered_model(TOYS)
        run = opened.client.create_run("0")
        for _ in (1, 2):
            opened.client.create_model_version(TOYS, f"{run.info.artifact_uri}/model", run.info.run_id)
        aliases.promote(opened, TOYS, "1", why="the first")
    upon_postgres.plan = [
        ("/registered-models/create", "registered_models"), ("/registered-models/create", "lost"),
        ("/runs/create", "tags"), ("/runs/create", "lost"), ("/registered-models/set-tag", "away"),
        ("/registered-models/alias", "registered_model_aliases"), ("/registered-models/alias", "lost"),
        ("/runs/update", "restart"), ("/registered-models/rename", "away"),
    ]  # fmt: skip
    for _ in range(TRIES):
        commands.try_once("promote", TOYS, "2", "a better one")
        upon_postgres.start()
        if not upon_postgres.plan:
            break
    with store.opened() as opened:
        aliases.settle(opened, TOYS)
        check_versions(opened, TOYS, 2, {"champion": "2", "previous": "1"}, ["promote 1", "promote 2"])
