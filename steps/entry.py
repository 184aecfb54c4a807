"""How every step is started from a command line: arguments in, one-line errors and exit codes out."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from steps.errors import HeadstartError


def run(step: Callable[..., None], *names: str) -> int:
    """Call `step` with the command line's arguments, one for each of `names`; give the exit code.

    0: fine. 1: our mistake, with a traceback when it was not foreseen. 2: the user's, in one line.
    Whoever started the process may name a file in HEADSTART_ERROR_FILE to read the error from.
    """
    arguments = sys.argv[1:]
    if len(arguments) != len(names):
        return _fail(f"usage: python -m {step.__module__} {' '.join(f'<{name}>' for name in names)}", 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a pipe would hold lines back
    try:
        step(*arguments)
    except HeadstartError as error:
        return _fail(" ".join(str(error).split()) if "\n" not in str(error) else str(error), error.exit_code)
    except Exception as error:
        traceback.print_exc()
        return _fail(f"{type(error).__name__}: {error}", 1)
    return 0


def _fail(message: str, exit_code: int) -> int:
    print(f"error: {message}", file=sys.stderr)  # noqa: T201 - this is the terminal's door
    error_file = os.environ.get("HEADSTART_ERROR_FILE")
    if error_file:
        Path(error_file).write_text(json.dumps({"exit_code": exit_code, "message": message}), "utf-8")
    return exit_code


def say(line: str) -> None:
    """Print one line of progress."""
    print(line, flush=True)  # noqa: T201 - this is the terminal's door
