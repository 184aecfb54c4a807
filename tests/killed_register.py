"""Kills registrations at every call that changes MLflow, and lets them be repeated: a process of its own.

Like `tests/killed.py` it imports all that is needed once, and does every piece of work in a fork of itself.

    python -m tests.killed_register FOLDER [CALL...]
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import timm  # noqa: F401 - imported here, not in every fork
import torch
from mlflow import MlflowClient

from steps import artifacts, contest, register  # noqa: F401 - the same
from steps.tracking import aliases, journal, publish, store
from tests.tracking import made

NAME = "colours"
CHANGING = ("create_", "set_", "log_", "delete_", "finalize_", "update_", "rename_", "transition_")


def in_fork(work: Callable[[], object]) -> int:
    """Do the work in a process of its own; gives its exit code."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            work()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def done(work: Callable[[], object]) -> None:
    code = in_fork(work)
    if code != 0:
        raise RuntimeError(f"exit code {code}:\n{Path('log.txt').read_text()}")


def better() -> None:
    """Another arm wins, whose decision does not hang on chance."""
    path = artifacts.report_dir(NAME) / "comparison.json"
    artifacts.write_json(path, artifacts.read_json(path, "compare") | {"best_arm": "frozen"})
    gate = {"margin": 1.0, "slices": False, "calibration": None, "latency": None}
    path = artifacts.settings_file(NAME, "register")
    artifacts.write_json(path, {"gate": artifacts.read_json(path, "resolve")["gate"] | gate})


def published() -> None:
    """All but the registration; what becomes of a broken publication is asked elsewhere."""
    with store.alone(), store.opened() as opened:
        publish.publish(opened, journal.read(NAME))


def registered(kill_at: int | None = None) -> None:
    """Register; die without a word before the n-th call that changes something. Counts the calls."""
    calls = 0

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == kill_at:
                os._exit(9)
            return call(*arguments, **named)

        return wrapped

    for name in dir(MlflowClient):
        if name.startswith(CHANGING):
            setattr(MlflowClient, name, counted(name, getattr(MlflowClient, name)))
    register.register(NAME)
    Path("calls.txt").write_text(str(calls))


def told() -> None:
    """What MLflow and the clone hold in the end."""
    model = f"headstart-{NAME}"
    with store.opened() as opened:
        versions = opened.client.search_model_versions(f"name = '{model}'")
        champion = next(one for one in versions if str(one.version) == "2")
        entries = aliases.history(opened, model)
        logged = opened.client.search_logged_models(
            [one.experiment_id for one in opened.client.search_experiments()]
        )
        found = {
            "versions": sorted(str(one.version) for one in versions),
            "aliases": aliases.current(opened, model),
            "ledger": [f"{one.what} {one.after.get('champion')}" for one in entries],
            "models": sorted(str(one.status) for one in logged),
            "tags": sorted(champion.tags),
            "decided": champion.tags[register.DECIDED_FOR],
            "note": artifacts.read_json(artifacts.registration_file(NAME), "register")["aliases"],
            "left": [one.name for one in Path(".headstart").glob("*-*")],
            "loads": len(mlflow.pyfunc.load_model(f"models:/{model}@champion").metadata.metadata),
        }
        # A lease that a killed process still has is in nobody's way, and goes with the next move.
        found["then"] = aliases.rollback(opened, model, why="to see that it can be moved").after
        found["leases"] = [
            one.name for one in opened.client.search_registered_models() if ".lease" in one.name
        ]
    Path("told.json").write_text(json.dumps(found))


def ended() -> dict[str, Any]:
    """Register to the end; gives what came of it."""

    def work() -> None:
        registered()
        told()

    done(work)
    found: dict[str, Any] = json.loads(Path("told.json").read_text())
    return found


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    torch.set_num_threads(1)
    clone, kept = folder / "clone", folder / "kept"
    clone.mkdir()
    made.clone(clone)
    made.store(clone)
    with chdir(clone):
        done(registered)
        better()
        done(published)
    # MLflow knows full paths: every attempt is made in the same place.
    shutil.copytree(clone, kept, symlinks=True)
    killed: list[dict[str, Any]] = []
    with chdir(clone):
        unbroken = ended()
        calls = int(Path("calls.txt").read_text())
    for at in [int(one) for one in sys.argv[2:]] or range(1, calls + 1):
        shutil.rmtree(clone)
        shutil.copytree(kept, clone, symlinks=True)
        with chdir(clone):
            code = in_fork(lambda at=at: registered(at))  # type: ignore[misc]
            assert code == 9, f"call {at}: {code}\n{Path('log.txt').read_text()}"
            killed.append(ended())
        sys.stderr.write(f"killed at call {at} of {calls}\n")
    sys.stdout.write(json.dumps({"calls": calls, "unbroken": unbroken, "killed": killed}) + "\n")


if __name__ == "__main__":
    main()
