"""What every command does at the terminal: find the clone, run a step in the open, print."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from steps.errors import UserError


def enter_clone() -> None:
    """Make the root of the clone the working directory.

    Raises:
        UserError: the working directory is in no clone.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if all((folder / name).exists() for name in ("params.yaml", "dvc.yaml", "steps")):
            os.chdir(folder)
            return
    raise UserError(f"{here} is in no clone of Headstart; go to the folder that has params.yaml and dvc.yaml")


def run_step(step: str, *arguments: str) -> int:
    """Run a step in a process of its own, in the open; give its exit code."""
    return subprocess.run([sys.executable, "-m", f"steps.{step}", *arguments], check=False).returncode


def console() -> Console:
    """The terminal; a pipe has no width, so its lines are not folded at 80."""
    return Console() if sys.stdout.isatty() else Console(width=200, force_terminal=False)


def absolute(text: str) -> str:
    """A path as it is meant from where the user stands; any other text as it is."""
    return str(Path(text).absolute()) if _is_path(text) else text


def _is_path(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # a long text is no file name
        return False
