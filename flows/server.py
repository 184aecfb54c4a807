"""How Prefect is reached: the server that PREFECT_API_URL names, that of `headstart ui`, or one for a run."""

from __future__ import annotations

import fcntl
import os
import signal
import urllib.error
import urllib.request
from pathlib import Path

from flows.lock import read_holder
from steps.errors import UserError
from steps.tracking.addresses import shown

ANSWER_SECONDS = 5.0
HOME = Path(".headstart/prefect")
UI_LOCK = Path(".headstart/ui.lock")


def prepare(home: Path = HOME, *, pages: bool = True) -> None:
    """Settle Prefect's settings; must come before the first `import prefect`, which reads them.

    With a server of the user's own nothing but the console's noise is changed. Without one, Prefect
    keeps its database in the clone, so the user's own Prefect profile stays untouched.

    Args:
        home: where Prefect keeps its database.
        pages: use the server that `headstart ui` runs in this clone, where it does.
    """
    # Run and task logs go to the server in full; the terminal gets what `headstart` shows of them.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if os.environ.get("PREFECT_API_URL"):
        return
    home.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_HOME"] = str(home.absolute())
    for name, value in {
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    }.items():
        os.environ.setdefault(name, value)
    address = shown_by_ui() if pages else None
    if address is not None:
        os.environ["PREFECT_API_URL"] = address


def shown_by_ui(lock: Path = UI_LOCK) -> str | None:
    """The API of the server that `headstart ui` runs in this clone; None where it does not."""
    try:
        with lock.open(encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # somebody holds it, so what it says is true
                address = read_holder(stream).get("prefect")
                return f"{address}/api" if address else None
    except FileNotFoundError:
        pass
    return None


def reach() -> None:
    """Make sure that Prefect's API answers; start it where none is set, for as long as this process lives.

    Prefect itself stops the server that it started, at exit, once the last log lines are sent.

    Raises:
        UserError: the server that PREFECT_API_URL names does not answer.
    """
    url = os.environ.get("PREFECT_API_URL")
    if url:
        _ask(url)
        return
    from prefect.server.api.server import SubprocessASGIServer

    # A Ctrl-C in the terminal reaches every process; the server has to outlive it, to be told how the run
    # ended. It inherits what is blocked here.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        SubprocessASGIServer().start()  # the one that Prefect's clients look for, too
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def needed() -> None:
    """Make sure that there is a server that outlives this process.

    Raises:
        UserError: none is named, or it does not answer.
    """
    if not os.environ.get("PREFECT_API_URL"):
        raise UserError(
            "there is no Prefect server to register deployments at; start `headstart ui` in this clone, "
            "or set PREFECT_API_URL to the API of yours, such as http://127.0.0.1:4200/api"
        )
    reach()


def _ask(url: str) -> None:
    try:
        with urllib.request.urlopen(f"{shown(url).rstrip('/')}/health", timeout=ANSWER_SECONDS):
            pass
    except urllib.error.HTTPError:
        return  # it answers; whether it lets us in is Prefect's affair
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"the Prefect server at PREFECT_API_URL={shown(url)} does not answer ({reason}); "
            "start it with `prefect server start`, or unset PREFECT_API_URL to run without"
        ) from None
