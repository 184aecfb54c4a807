"""Prefect's server is killed, restarted, slow or wrong while a run or a night goes on.

The graph is the real one and its steps are stand-ins; a training waits until the test has done its damage.
"""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flows import records
from tests.between import Answer, Between, Request, Rule, between, untouched
from tests.flows import miniature
from tests.flows.receivers import post
from tests.topology import base_environment, end, wait_for
from tests.tracking.servers import free_port

pytestmark = [pytest.mark.flow, pytest.mark.faults]

WAIT_SECONDS = 120.0
# Put before the stand-in of a training: it says that it has begun, and waits as long as it is to.
HOLD = """
import pathlib, sys, time
arm = sys.argv[2]
pathlib.Path(f"begun-{arm}").touch()
while pathlib.Path(f"hold-{arm}").exists():
    time.sleep(0.05)
"""
# Stand-ins leave nothing that the page of all experiments could show.
COMMAND = (
    f"import sys; sys.path.insert(0, {str(miniature.ROOT)!r}); from headstart import cli; "
    "from steps.report import index; index.write = lambda folder: None; "
    "sys.argv = ['headstart', *sys.argv[1:]]; sys.exit(cli.main())"
)


@dataclass
class Prefect:
    """Prefect's server on a port of its own, that can be killed and started again."""

    folder: Path
    database: str = ""
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def start(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--host", "127.0.0.1"]
        settings = {"PREFECT_HOME": str(self.folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        if self.database:
            settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = self.database
        log = self.folder / "server.log"
        with log.open("a") as stream:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)],
                env=base_environment(self.folder) | settings | {"DO_NOT_TRACK": "1"},
                stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip
        wait_for(f"{self.api}/health", self.process, log)

    def kill(self) -> None:
        """SIGKILL to it and all its workers."""
        if self.process is not None:
            end(self.process)
            self.process = None

    def newest(self, flow: str) -> str:
        """The state of a flow's newest run."""
        newest = {"sort": "EXPECTED_START_TIME_DESC", "limit": 1}
        (found,) = post(f"{self.api}/flow_runs/filter", flows={"name": {"any_": [flow]}}, **newest)
        return str(found["state_type"])


@contextmanager
def prefect(folder: Path, database: str = "") -> Iterator[Prefect]:
    folder.mkdir()
    server = Prefect(folder, database)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which everything was run and registered, before trainings had to wait."""
    root = miniature.build(tmp_path_factory.mktemp("restarted") / "clone")
    command = [sys.executable, "-m", "steps.register", "shapes"]
    subprocess.run(command, cwd=root, env=miniature.environment(), check=True, capture_output=True)
    train = root / "steps/train.py"
    train.write_text(HOLD + train.read_text())
    miniature.edit(root, experiments__shapes__training__epochs=3)
    miniature.forget_steps(root)
    return root


@dataclass
class Clone:
    """A clone in which the trainings, and all that comes after them, are out of date."""

    root: Path
    api: str
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, command: str) -> subprocess.Popen[str]:
        kept = {
            name: value
            for name, value in miniature.environment().items()
            if not name.startswith(("PREFECT_", "MLFLOW_"))
        }
        return subprocess.Popen(
            [sys.executable, "-P", "-c", COMMAND, command], cwd=self.root,
            env=kept | {"PREFECT_API_URL": self.api, "HOME": str(self.root.parent)} | self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    @contextmanager
    def running(self, command: str) -> Iterator[subprocess.Popen[str]]:
        """A command that is killed with all it started, should the test fail before it has ended."""
        started = self.start(command)
        try:
            yield started
        finally:
            end(started)  # type: ignore[arg-type]  # text or bytes, it is only killed

    @contextmanager
    def through(self, server: Prefect, rule: Rule = untouched) -> Iterator[Between]:
        """Reach the server by way of a proxy, until the block ends."""
        with between(server.port) as proxy:
            proxy.rule, self.api = rule, f"{proxy.url}/api"
            yield proxy
        self.api = server.api

    def hold(self, *arms: str) -> None:
        for arm in arms:
            (self.root / f"hold-{arm}").touch()

    def let_go(self, arm: str) -> None:
        (self.root / f"hold-{arm}").unlink()

    def wait_until_it_trains(self, arm: str, started: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not (self.root / f"begun-{arm}").exists():
            assert started.poll() is None, started.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def ended(self, started: subprocess.Popen[str]) -> tuple[int, str]:
        """Its exit code and what it said; it must not have lost its composure."""
        said = started.communicate(timeout=WAIT_SECONDS)[0]
        assert "Traceback" not in said, said
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == (started.returncode != 0), said
        return started.returncode, said

    def check(self) -> None:
        """Each step ran once, there is one new version, and the next run has nothing to do."""
        assert Counter(miniature.steps_run(self.root)) == {
            "train shapes": 2, "evaluate shapes": 1, "curve shapes": 1, "compare shapes": 1,
            "register shapes": 1,
        }  # fmt: skip
        with self.running("run") as again:
            code, said = self.ended(again)
        assert (code, "Nothing changed: all" in said) == (0, True), said
        with closing(sqlite3.connect(self.root / "mlflow/mlflow.db")) as store:
            assert store.execute("SELECT COUNT(*) FROM model_versions").fetchone() == (2,)


@pytest.fixture
def clone(built: Path, server: Prefect, tmp_path: Path) -> Clone:
    root = tmp_path / "clone"
    shutil.copytree(built, root)
    return Clone(root, server.api)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    with prefect(tmp_path_factory.mktemp("server") / "prefect") as found:
        yield found


@pytest.mark.survives(
    "servers",
    "Prefect's server is killed and started again while stages run",
    how="SIGKILL to a real server while a training waits, started again before it ends, or seconds after",
    held="the run goes on and is Completed at the server; each stage ran once; the next run changes nothing",
)
def test_a_run_goes_on_over_restarts_of_prefects_server(server: Prefect, clone: Clone) -> None:
    clone.hold("scratch", "full")
    with clone.running("run") as run:
        clone.wait_until_it_trains("scratch", run)
        server.kill()
        server.start()
        clone.let_go("scratch")
        clone.wait_until_it_trains("full", run)
        server.kill()
        clone.let_go("full")
        time.sleep(3)  # stages end and begin meanwhile
        server.start()
        code, said = clone.ended(run)
    assert code == 0, said
    assert server.newest("headstart") == "COMPLETED"
    clone.check()


# Prefect's client waits for its server to come back, for more than a minute.
@pytest.mark.long
@pytest.mark.survives(
    "servers",
    "Prefect's server is lost in the middle of a run",
    how="SIGKILL to a real server while a training waits, and no other until the run has ended",
    held="one line, nothing that was done is lost; with a server again, the next run goes on to the end",
)
def test_a_run_whose_server_stays_away_ends_in_one_line(server: Prefect, clone: Clone) -> None:
    clone.environment["PREFECT_CLIENT_MAX_RETRIES"] = "1"
    clone.hold("full")
    with clone.running("run") as run:
        clone.wait_until_it_trains("full", run)
        server.kill()
        clone.let_go("full")
        code, said = clone.ended(run)
    assert code == 1
    assert "error: the Prefect server was lost (" in said
    assert "what was done is kept; run again to go on where it was" in said
    server.start()
    clone.check()


@pytest.mark.survives(
    "servers",
    "Prefect's server is slow, and answers 502 and 503 now and then",
    how="a proxy before a real server: answers come late, one later than the time-out, or are errors",
    held="the run goes on and is Completed at the server; each stage ran once; the next run changes nothing",
)
def test_a_run_bears_a_slow_server(server: Prefect, clone: Clone) -> None:
    numbers, late = itertools.count(1), itertools.count(1)

    def rule(request: Request) -> Answer:
        number = next(numbers)
        if number % 7 == 0:
            return Answer(502 if number % 2 else 503)
        answer = request.forward()
        time.sleep(2.5 if request.path.endswith("/set_state") and next(late) == 2 else 0.1)
        return answer

    clone.environment |= {"PREFECT_API_REQUEST_TIMEOUT": "2", "PREFECT_CLIENT_RETRY_JITTER_FACTOR": "0"}
    with clone.through(server, rule), clone.running("run") as run:
        code, said = clone.ended(run)
    assert (code, next(numbers) > 14, next(late) > 2) == (0, True, True), said
    assert server.newest("headstart") == "COMPLETED"
    clone.check()


@pytest.mark.survives(
    "servers",
    "Prefect's server answers 500 from the middle of a run on",
    how="a proxy before a real server, from the moment at which a training waits",
    held="one line, nothing that was done is lost; the next run goes on to the end",
)
def test_a_run_whose_server_breaks_ends_in_one_line(server: Prefect, clone: Clone) -> None:
    clone.hold("full")
    with clone.through(server) as proxy, clone.running("run") as run:
        clone.wait_until_it_trains("full", run)
        proxy.rule = lambda request: Answer(500, (("Content-Type", "application/json"),), b"{}")
        clone.let_go("full")
        code, said = clone.ended(run)
    assert code == 1
    assert "error: the Prefect server answers 500; what was done is kept; run again" in said
    clone.check()


@pytest.mark.survives(
    "servers",
    "Prefect's server is killed and started again in the middle of a night",
    how="SIGKILL to a real server while a training waits, started again seconds after it has ended",
    held="the night goes on and is Completed; one version and one record; the next night has nothing to do",
)
def test_a_night_goes_on_over_a_restart_of_prefects_server(
    server: Prefect, clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone.hold("scratch")
    with clone.running("nightly") as night:
        clone.wait_until_it_trains("scratch", night)
        server.kill()
        clone.let_go("scratch")
        time.sleep(3)
        server.start()
        code, said = clone.ended(night)
    assert code == 0, said
    assert server.newest("headstart-nightly") == "COMPLETED"
    with clone.running("nightly") as night:
        code, said = clone.ended(night)
    assert (code, "nothing to do: no cause to train anew" in said) == (0, True), said
    monkeypatch.chdir(clone.root)
    nights = [one["experiments"]["shapes"]["outcome"] for one in records.recent()]
    assert nights == ["nothing", "promoted"]
    clone.check()
