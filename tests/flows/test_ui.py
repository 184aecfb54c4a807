"""The pages of a clone: what starts together ends together, and tells why."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flows import lock, server, ui
from flows.ui import Service, ServiceError, Services
from steps.errors import BusyError, UserError
from steps.operation import Nightly
from steps.tracking import addresses, store
from tests.flows.test_deploy import waited
from tests.twin import Twin, build

SLEEP = "import time; print('here', flush=True); time.sleep(600)"
# Neither wants to end, and the second has a session of its own, as the stages of a run have.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("here", flush=True)
time.sleep(600)
"""


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that carry a mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(ui.MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found


def service(
    folder: Path, script: str, name: str = "a server", healthy: Callable[[], bool] | None = None
) -> Service:
    log = folder / f"{name}.log"

    def says() -> bool:
        return "here" in log.read_text()

    return Service(name, [sys.executable, "-c", script], log, healthy or says)


@pytest.fixture
def services() -> Iterator[Services]:
    made = Services(uuid.uuid4().hex)
    yield made
    made.stop(0.2)


@pytest.mark.survives(
    "processes",
    "a server that ignores the request to end",
    how="a child that ignores SIGTERM, with a grandchild in a session of its own",
    held="both are killed after a grace period",
)
def test_all_come_up_and_nothing_is_left(services: Services, tmp_path: Path) -> None:
    services.start(service(tmp_path, SLEEP, "one"))
    services.start(service(tmp_path, STUBBORN, "two"))
    services.wait_until_healthy(30)
    assert waited(lambda: len(marked(services.mark)) == 3, 10)
    services.stop(0.5)
    assert marked(services.mark) == []


def test_one_that_ends_is_told_with_the_end_of_its_log(services: Services, tmp_path: Path) -> None:
    services.start(service(tmp_path, SLEEP, "one"))
    script = "print('here', flush=True)\nfor n in range(99): print('line', n)\nraise SystemExit('no room')"
    services.start(service(tmp_path, script, "two"))
    services.running[1][1].wait(30)
    with pytest.raises(ServiceError, match=r"two ended with exit code 1; the end of .*two\.log:") as caught:
        services.check()
    assert "line 98" in str(caught.value)
    assert "no room" in str(caught.value)
    assert "line 50" not in str(caught.value)


def test_one_that_is_killed_is_told(services: Services, tmp_path: Path) -> None:
    services.start(service(tmp_path, SLEEP, "one"))
    services.running[0][1].kill()
    services.running[0][1].wait()
    with pytest.raises(ServiceError, match="one was killed by signal 9"):
        services.check()


def test_one_that_does_not_come_up_is_told(services: Services, tmp_path: Path) -> None:
    services.start(service(tmp_path, SLEEP, "one", lambda: False))
    with pytest.raises(ServiceError, match="one is not up after 0 s"):
        services.wait_until_healthy(0.3)


def test_the_log_before_is_kept(services: Services, tmp_path: Path) -> None:
    (tmp_path / "one.log").write_text("yesterday")
    services.start(service(tmp_path, SLEEP, "one"))
    services.wait_until_healthy(30)
    assert (tmp_path / "one.log.1").read_text() == "yesterday"


def test_a_port_in_use_is_named_with_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(UserError, match=rf"cannot listen at 127\.0\.0\.1:{port} .*--prefect-port"),
            ui.running("127.0.0.1", port, 0, Nightly()),
        ):
            pass


def test_an_address_of_another_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with (
        pytest.raises(UserError, match=r"cannot listen at 192\.0\.2\.1:"),
        ui.running("192.0.2.1", 0, 0, Nightly()),
    ):
        pass


def test_a_second_time_in_a_clone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ui._alone() as stream:
        ui._write(stream, {"prefect": "http://127.0.0.1:4200", "mlflow": "http://127.0.0.1:5000"})
        assert server.shown_by_ui() == "http://127.0.0.1:4200/api"
        with (
            pytest.raises(BusyError, match=r"shown already: http://127\.0\.0\.1:4200 and http"),
            ui.running("127.0.0.1", 0, 0, Nightly()),
        ):
            pass
    # What a process left behind that was killed is not believed.
    assert server.shown_by_ui() is None


@pytest.mark.survives(
    "processes",
    "what `headstart ui` left behind when it was killed",
    how="a process that carries the mark of an earlier start",
    held="the next start ends it before anything else",
)
def test_leftovers_of_a_killed_one_are_ended(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    services.start(service(tmp_path, SLEEP, "one"))
    with ui._alone() as stream:
        ui._write(stream, {"mark": services.mark})
    assert marked(services.mark)
    with ui._alone():
        assert marked(services.mark) == []


def test_the_store_is_where_steps_publish_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert addresses.database_of(addresses.LOCAL) == ui.STORE
    assert store.artifact_root(addresses.LOCAL) == ui.FILES.resolve()


def test_mlflow_is_called_by_names_of_this_machine_alone() -> None:
    names = ui._names("192.0.2.7", 5000)
    assert "192.0.2.7:5000" in names
    assert socket.gethostname() in names
    assert not any("*" in name for name in names)


# ------------------------------------------------------------------------------------------- the real ones


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return build(tmp_path_factory.mktemp("ui") / "clone")


def started(clone: Twin, **environment: str) -> tuple[subprocess.Popen[str], str]:
    """Start `headstart ui` and wait until it says that all is up; its process, and what it printed."""
    process = clone.start("ui", "--prefect-port", "0", "--mlflow-port", "0", environment=environment)
    printed = ""
    assert process.stdout is not None
    for line in process.stdout:
        printed += line
        if "Ready" in line:
            return process, printed
    raise AssertionError(printed)


def mark_of(clone: Twin) -> str:
    with (clone.root / ui.LOCK_FILE).open() as stream:
        return str(lock.read_holder(stream)["mark"])


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_real_ones_stop_with_ctrl_c(clone: Twin, number: signal.Signals) -> None:
    process, printed = started(clone)
    mark = mark_of(clone)
    addresses = re.findall(r"(?m)^(?:Prefect|MLflow) +(http\S+)", printed)
    assert len(addresses) == 2
    for address in addresses:
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert answer.status == 200
    assert "cron 0 3 * * * UTC" in printed
    assert re.search(r"(?m)^Reports +file://.*/reports/index\.html", printed)
    assert len(marked(mark)) >= 4
    # Another one in the same clone, and a page of another site in disguise.
    assert "shown already" in clone.headstart("ui", expect=2)
    # The server of these pages is the one to register deployments at.
    assert "unchanged headstart-nightly/nightly: cron 0 3 * * * UTC" in clone.headstart("deploy")
    missing = clone.headstart("deploy", "--notify", "webhook", expect=2)
    assert "error: set HEADSTART_WEBHOOK_URL in the environment" in missing
    disguised = urllib.request.Request(addresses[1], headers={"Host": "evil.example.org"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(disguised, timeout=10)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == (0 if number == signal.SIGINT else 128 + number)
    assert ("All of them are stopped." in out) == (number == signal.SIGINT)
    assert marked(mark) == []
    assert server.shown_by_ui(clone.root / ui.LOCK_FILE) is None


@pytest.mark.long
@pytest.mark.faults
@pytest.mark.survives(
    "processes",
    "the worker of `headstart ui` is killed",
    how="SIGKILL while all are up",
    held="the servers are stopped, nothing is left, the message has the end of the log",
)
def test_where_one_dies_the_others_are_stopped(clone: Twin) -> None:
    process, _ = started(clone)
    mark = mark_of(clone)
    victim = next(one for one in marked(mark) if "worker" in one.cmdline())
    os.kill(victim.pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: the worker was killed by signal 9; the end of .headstart/logs/worker.log:" in out
    assert marked(mark) == []


@pytest.mark.long
@pytest.mark.faults
@pytest.mark.survives(
    "processes",
    "`headstart ui` itself is killed",
    how="SIGKILL while all are up",
    held="the next start ends the old servers and comes up",
)
def test_after_a_kill_the_next_start_cleans_up(clone: Twin) -> None:
    process, _ = started(clone)
    mark = mark_of(clone)
    process.kill()
    process.wait()
    assert marked(mark)
    again, _ = started(clone)
    assert marked(mark) == []
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=60)
    assert marked(mark_of(clone) if (clone.root / ui.LOCK_FILE).stat().st_size else mark) == []
