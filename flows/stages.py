"""The joint to DVC: is a stage out of date, and if so, run it in a process of its own.

The question is asked in this process, where the answer takes some hundredths of a second. Only a stage
that has to run gets a process: `dvc repro --single-item`, in a session of its own, so that a signal meant
for us does not tear it down halfway, and so that we can end it with everything it started.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from typing import IO, Any, Literal

from steps import errors
from steps.errors import DataError, HeadstartError, ParamsError, StageError, UserError
from steps.params import Params

How = Literal["ran", "restored", "unchanged"]
Tell = Callable[[str], None]

# What a process may take to end by itself once asked to.
GRACE_SECONDS = 5.0

# What is done about a dvc.lock that cannot be read.
DAMAGED = (
    "dvc.lock is damaged, as after a power cut while it was written ({}); `git checkout dvc.lock` brings the "
    "last committed one back, then run again: what is unchanged comes from DVC's cache, nothing is lost"
)

# What DVC says around a step's own lines; and the step's own error, which is raised instead.
_CHATTER = re.compile(
    r"Running stage '|> |Stage '.*' (didn't change|is cached)|(Generating|Updating) lock file"
    r"|To track the changes with git|\tgit add |To enable auto staging|\tdvc config core\.autostage"
    r"|Use `dvc push` to send|Data and pipelines are up to date|ERROR: failed to reproduce"
    r"|Verifying data sources in stage|'.*\.dvc' didn't change|error: "
)


def of_experiment(experiment: str, checked: Params) -> list[tuple[str, str]]:
    """The stages of an experiment in an order in which they can run, each as its step and of what it is."""
    slug = checked.experiments[experiment].model.pretrained
    return [
        *((step, experiment) for step in ("ingest", "validate", "split")),
        ("fetch", slug),
        *((step, experiment) for step in ("embed", "baseline")),
        *(("train", f"{experiment}/{arm}") for arm in checked.arms),
        *((step, experiment) for step in ("evaluate", "curve", "compare")),
    ]


def chosen(names: list[str], checked: Params) -> list[str]:
    """The experiments of these names, each once; all where none is named.

    Raises:
        ParamsError: params.yaml has no such experiment.
    """
    for name in names:
        if name not in checked.experiments:
            close = difflib.get_close_matches(name, checked.experiments, n=1)
            known = ", ".join(checked.experiments)
            hint = f"did you mean {close[0]!r}?" if close else f"there is {known}"
            raise ParamsError(f"params.yaml has no experiment {name!r}; {hint}")
    return list(dict.fromkeys(names)) or list(checked.experiments)


def stage_name(step: str, of: str = "") -> str:
    """A stage's name in dvc.yaml; `of` is an experiment, an arm of one, a slug of weights, or nothing."""
    return f"{step}@{of.replace('/', '-')}" if of else step


@dataclass(frozen=True)
class Outcome:
    """What became of one stage.

    Attributes:
        stage: its name in dvc.yaml.
        how: `ran`; `restored` from DVC's cache of earlier runs; or `unchanged`, there was nothing to do.
        seconds: wall time.
        last_line: the last line the step said, if it ran.
    """

    stage: str
    how: How
    seconds: float
    last_line: str = ""


@dataclass(frozen=True)
class Change:
    """One thing that differs from what dvc.lock says of a stage.

    Attributes:
        path: of the file or folder; of a stage whose command changed, its name.
        role: what it is to the stage: something it depends on, something it makes, or the stage itself.
        how: `modified`, `deleted`, `not in cache`, or `never run`.
    """

    path: str
    role: Literal["dep", "out", "stage"]
    how: str


class Stopped(HeadstartError):  # noqa: N818 - nothing went wrong
    """The run was stopped from outside, in Prefect."""


class UnreachableError(DataError):
    """A place that data come from does not answer, or does not have them; trying again later may help."""


class Stages:
    """The stages of the clone in the working directory.

    Args:
        grace_seconds: what a process may take to end by itself once asked to.
        environment: variables that every process of a stage gets beside ours.
    """

    def __init__(
        self, grace_seconds: float = GRACE_SECONDS, environment: Mapping[str, str] | None = None
    ) -> None:
        self.grace_seconds = grace_seconds
        self.environment = dict(environment or {})
        self.stopped = Event()
        self._repo: Any = None

    def up_to_date(self, stage: str) -> bool:
        """Whether nothing that DVC watches of the stage has changed; what comes before it must be done.

        A stage here is one of dvc.yaml by its name, or a `.dvc` file by its path.

        Raises:
            UserError: there is no such stage, or DVC cannot work here.
        """
        with _dvc_errors_named():
            node = self._node(stage)
            with node.repo.lock:
                return not node.status()

    def changes(self, stage: str) -> tuple[Change, ...]:
        """What makes a stage, or a `.dvc` file, out of date; nothing where it is up to date.

        Raises:
            UserError: there is no such stage, or DVC cannot work here.
        """
        with _dvc_errors_named():
            node = self._node(stage)
            with node.repo.lock:
                found = node.status().get(stage, [])
        if found and node.deps and not any(dep.hash_info for dep in node.deps):
            return (Change(stage, "stage", "never run"),)
        return tuple(_changes(stage, found))

    def raw_data_of(self, stage: str) -> list[str]:
        """The `.dvc` files whose data a stage depends on."""
        with _dvc_errors_named():
            before = self._index().graph.successors(self._node(stage))
            return sorted(str(one.addressing) for one in before if one.is_data_source)

    def run(self, stage: str, tell: Tell, *, force: bool = False) -> Outcome:
        """Bring one stage up to date, passing each line it says to `tell` as it comes.

        Args:
            stage: its name.
            tell: gets the lines.
            force: run it also where nothing has changed, and take nothing from the cache of earlier runs.

        Raises:
            HeadstartError: the step's own error, of its own class; StageError if it left none.
            UnreachableError: its raw data lie in a remote that does not answer.
            Stopped: `stop` was called.
        """
        started = monotonic()
        self._bring_raw_data(stage, tell)
        if not force and self.up_to_date(stage):
            return Outcome(stage, "unchanged", monotonic() - started)
        command = ["dvc", "--wait-for-lock", "repro", "--single-item", *["--force"] * force, stage]
        try:
            how, last_line = self._run(command, stage, tell)
        finally:
            self._forget()
        return Outcome(stage, how, monotonic() - started, last_line)

    def run_outside(self, step: str, *arguments: str, tell: Tell) -> Outcome:
        """Run a step that is no stage, because what it changes is outside of DVC's care."""
        started = monotonic()
        name = "@".join((step, *arguments))
        _, last_line = self._run([f"steps.{step}", *arguments], name, tell)
        return Outcome(name, "ran", monotonic() - started, last_line)

    def stop(self) -> None:
        """End what is running and start nothing more; may be called from another thread."""
        self.stopped.set()

    def _bring_raw_data(self, stage: str, tell: Tell) -> None:
        """Bring or record what the user put under DVC with `dvc add` and the stage depends on."""
        for source in self.raw_data_of(stage):
            if self.up_to_date(source):
                continue
            # DVC keeps the name of the output; where it is missing it can only come from elsewhere.
            missing = not all(out.exists for out in self._node(source).outs)
            if missing or self._pointer_is_newer(stage, source):
                self._bring(source, tell)
            else:
                tell(f"{source}: the data changed; recorded")
                self._dvc(["repro", "--single-item", source], source)

    def _pointer_is_newer(self, stage: str, source: str) -> bool:
        """Whether the `.dvc` file was changed, as `git pull` does, and the data are those of the last run.

        Raises:
            DataError: both were changed, so one of the two would be lost.
        """
        read = {dep.fs_path: dep for dep in self._node(stage).deps if dep.hash_info}
        for out in self._node(source).outs:
            dep = read.get(out.fs_path)
            if dep is None or dep.hash_info == out.hash_info:
                continue
            with _dvc_errors_named():
                if not dep.status():
                    return True
            raise DataError(
                f"{source} and the data it names were both changed since the last run, and differ; "
                f"`dvc checkout --force {source}` takes the data that the file names, "
                f"`dvc commit --force {source}` those that are here"
            )
        return False

    def _bring(self, source: str, tell: Tell) -> None:
        """Bring data from DVC's cache, or from its remote where there is one.

        Raises:
            DataError: there is no remote.
            UnreachableError: the remote does not answer, or does not have them.
        """
        tell(f"{source}: brought from the cache")
        try:
            self._dvc(["checkout", source], source)
        except StageError:
            pass
        else:
            return
        if not self._has_remote():
            raise DataError(
                f"the data of {source} are neither here nor in DVC's cache, and there is no remote; "
                "put them back, or name a remote with `dvc remote add`"
            )
        tell(f"{source}: not in the cache; pulled from the remote")
        try:
            self._dvc(["pull", source], source)
        except StageError as error:
            # DVC says of some remotes that do not answer that they lack the data.
            raise UnreachableError(
                f"the data of {source} are not here, and the remote did not give them ({error}); "
                "look whether it answers and lets you in, or `dvc push` them where they are"
            ) from None

    def _has_remote(self) -> bool:
        self._index()
        return bool(self._repo.config["core"].get("remote"))

    def _dvc(self, command: list[str], name: str, tell: Tell = lambda _: None) -> None:
        """Run a command of DVC's own on a `.dvc` file."""
        try:
            self._run(["dvc", "--wait-for-lock", *command], name, tell)
        finally:
            self._forget()

    def _run(self, command: list[str], name: str, tell: Tell) -> tuple[How, str]:
        if self.stopped.is_set():
            raise Stopped(f"{name}: not started, the run was stopped")
        how: How = "ran"
        last_line = complaint = ""
        with tempfile.TemporaryDirectory(prefix="headstart-") as folder:
            error_file = Path(folder) / "error.json"
            with self._process(command, error_file) as process:
                assert process.stdout is not None
                for line in _lines(process.stdout):
                    if line.startswith("Stage '") and line.endswith("outputs"):
                        how = "restored"
                    elif line.startswith("Stage '") and line.endswith("skipping"):
                        how = "unchanged"
                    if line.startswith("ERROR: "):
                        complaint = line.removeprefix("ERROR: ")
                    if line and not _CHATTER.match(line):
                        last_line = line
                        tell(line)
                exit_code = process.wait()
            if self.stopped.is_set():
                raise Stopped(f"{name}: the run was stopped")
            if exit_code != 0:
                raise _error_of(name, error_file, complaint or last_line, exit_code)
        return how, last_line

    @contextmanager
    def _process(self, command: list[str], error_file: Path) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=_environment(error_file) | self.environment,
            start_new_session=True,
        )
        try:
            with _watched(process, self.stopped, self.grace_seconds):
                yield process
        finally:
            end_group(process, self.grace_seconds)
            assert process.stdout is not None
            process.stdout.close()

    def _node(self, stage: str) -> Any:  # noqa: ANN401 - DVC is not typed
        for node in self._index().stages:
            if node.addressing == stage:
                return node
        raise UserError(f"dvc.yaml has no stage {stage!r}")

    def _index(self) -> Any:  # noqa: ANN401 - DVC is not typed
        if self._repo is None:
            from dvc.repo import Repo

            # DVC draws a bar for every file that it hashes, unless its loggers are this quiet.
            for name in ("dvc", "dvc_data"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            self._repo = Repo(".", _wait_for_lock=True)
        return self._repo.index  # reads dvc.yaml and dvc.lock once

    def _forget(self) -> None:
        """Read dvc.yaml and dvc.lock anew the next time; a process of ours may have changed them."""
        if self._repo is not None:
            self._repo.close()
            self._repo = None


def end_group(process: subprocess.Popen[str], grace_seconds: float) -> None:
    """End a process and all it started: ask, wait, then kill. Does nothing where all has ended."""
    if _signal_group(process.pid, signal.SIGTERM):
        try:
            deadline = monotonic() + grace_seconds
            while monotonic() < deadline and _signal_group(process.pid, 0):
                process.poll()  # a child that ended stays in its group until it is waited for
                sleep(0.02)
        finally:  # also when a second Ctrl-C cuts the wait short
            _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


@contextmanager
def _watched(process: subprocess.Popen[str], stopped: Event, grace_seconds: float) -> Iterator[None]:
    """End the process when `stopped` is set, while the caller is busy reading its lines."""
    from threading import Thread

    done = Event()

    def watch() -> None:
        while not done.is_set():
            if stopped.wait(0.1):
                end_group(process, grace_seconds)
                return

    watcher = Thread(target=watch, name="headstart-stop", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _environment(error_file: Path) -> dict[str, str]:
    here = str(Path(sys.executable).parent)
    return {
        **os.environ,
        # dvc.yaml says `python`: it must be ours, also where no environment was activated.
        "PATH": os.pathsep.join([here, os.environ.get("PATH", os.defpath)]),
        # DVC would run the user's own shell, with its own start-up files and manners.
        "SHELL": "/bin/sh",
        "PYTHONUNBUFFERED": "1",
        "HEADSTART_ERROR_FILE": str(error_file),
    }


def _lines(stream: IO[str]) -> Iterator[str]:
    for line in stream:
        yield line.rstrip()


def _error_of(name: str, error_file: Path, complaint: str, exit_code: int) -> HeadstartError:
    """The exception that the step itself wrote down, or the best that can be said without."""
    with suppress(OSError, ValueError, KeyError):
        said = json.loads(error_file.read_text("utf-8"))
        fallback = UserError if said["exit_code"] == UserError.exit_code else StageError
        kind = getattr(errors, said["type"], fallback)
        is_ours = isinstance(kind, type) and issubclass(kind, HeadstartError)
        return (kind if is_ours else fallback)(f"{name}: {said['message']}")
    ended = re.search(r"exited with (-?\d+)", complaint)
    if ended and int(ended[1]) in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return StageError(f"{name}: was killed from outside, most often for want of memory")
    return StageError(f"{name}: ended with exit code {ended[1] if ended else exit_code}: {complaint}")


@contextmanager
def _dvc_errors_named() -> Iterator[None]:
    from dvc.exceptions import DvcException

    try:
        yield
    except DvcException as error:
        said = " ".join(str(error).split())
        if "dvc.lock" in said:
            raise UserError(DAMAGED.format(said)) from None
        raise UserError(f"DVC cannot go on: {said}") from None


def _changes(stage: str, found: list[Any]) -> Iterator[Change]:
    """DVC's own words of what changed, one by one."""
    for one in found:
        if isinstance(one, str):  # of the stage itself, "changed checksum" or "always changed"
            yield Change(stage, "stage", "modified")
            continue
        for role, key in (("dep", "changed deps"), ("out", "changed outs")):
            for path, how in one.get(key, {}).items():
                yield Change(path, role, how)  # type: ignore[arg-type]  # one of the two
