"""How every step is started from a command line: arguments in, one-line errors and exit codes out."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Self

from steps.errors import HeadstartError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

# What a shell says of a process that ended by SIGPIPE.
READER_GONE = 141
# Of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# Where no terminal is, a line this often tells that work goes on.
QUIET_SECONDS = 10.0


def run(step: Callable[..., None], *names: str) -> int:
    """Call `step` with the command line's arguments, one for each of `names`; give the exit code.

    0: fine. 1: our mistake, with a traceback when it was not foreseen. 2: the user's, in one line.
    Whoever started the process may name a file in HEADSTART_ERROR_FILE to read the error from.
    """
    arguments = sys.argv[1:]
    if len(arguments) != len(names):
        return _fail(f"usage: python -m {step.__module__} {' '.join(f'<{name}>' for name in names)}", 2)
    return guarded(lambda: step(*arguments))


def guarded(work: Callable[[], None]) -> int:
    """Do the work; give the exit code, after telling of an error as `run` says."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a pipe would hold lines back
    try:
        work()
    except HeadstartError as error:
        line = " ".join(str(error).split()) if "\n" not in str(error) else str(error)
        return _fail(line, error.exit_code, type(error).__name__)
    except BrokenPipeError:
        # Whoever reads has enough, as `head` after its lines; Python would complain once more on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except Exception as error:
        traceback.print_exc()
        return _fail(f"{type(error).__name__}: {error}", 1, type(error).__name__)
    return 0


def _fail(message: str, exit_code: int, kind: str = "UserError") -> int:
    print(f"error: {message}", file=sys.stderr)  # noqa: T201 - this is the terminal's door
    error_file = os.environ.get("HEADSTART_ERROR_FILE")
    if error_file:
        Path(error_file).write_text(
            json.dumps({"exit_code": exit_code, "type": kind, "message": message}), "utf-8"
        )
    return exit_code


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed for the next batch, not to hand it back and have it zeroed again.

    A batch frees and asks for the same blocks of megabytes; each then costs a page fault every 4 KiB.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another libc than glibc
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def say(line: str) -> None:
    """Print one line of progress."""
    print(line, flush=True)  # noqa: T201 - this is the terminal's door


class Progress:
    """Tells how far a long piece of work is: a bar on a terminal, now and then a line elsewhere.

    Args:
        label: what is being done.
        total: how many units there are.
    """

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total = label, total
        self.done, self.words = 0, ""
        self.started = self.told = perf_counter()
        self.bar: Bar | None = None

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, transient=True)
            self.bar.add_task(self.label, total=self.total)
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def reached(self, done: int) -> None:
        """So many units are done."""
        self.done = done
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done)
        elif perf_counter() - self.told >= QUIET_SECONDS:
            self.told = perf_counter()
            words = f", {self.words}" if self.words else ""
            say(f"{self.label}: {done / self.total:.0%} after {self.told - self.started:.0f} s{words}")

    def note(self, words: str) -> None:
        """Say these words with the progress from now on."""
        self.words = words
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], description=f"{self.label}  {words}")
