"""container: write a registered model with MLflow's own recipe for a container, ready to be built."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from steps import artifacts, entry
from steps.errors import UserError
from steps.tracking import naming, registry, scoring, store

ADVICE = "the recipe needs its model registry: start it, or correct MLFLOW_TRACKING_URI"


def container(name: str, folder: Path) -> None:
    """Write `Dockerfile` and the model's files, as they were registered, into a new folder.

    Args:
        name: an experiment or a registered model; with `@` an alias or a number, else its champion is meant.
        folder: that does not exist yet, or is empty.

    Raises:
        UserError: there is no such version, or there is something in the folder.
        TrackingError: MLflow does not answer, or the version's files are gone or altered.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: name a folder that is new or empty")
    with store.opened(ADVICE) as opened:
        version = naming.version_of(opened, name if "@" in name else f"{name}@{registry.CHAMPION}")
        with artifacts.new_folder(folder) as partial:
            scoring.recipe(version, partial)
    entry.say(f"version {version.number} of {version.model} with its recipe is in {folder}; build it with")
    entry.say(f"docker build -t {version.model}:{version.number} {folder}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; usage: python -m steps.container EXPERIMENT|MODEL[@ALIAS] FOLDER")


def _main() -> None:
    parser = _Parser(prog="python -m steps.container")
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    container(given.name, given.folder)


def main() -> int:
    """Run `python -m steps.container EXPERIMENT|MODEL[@ALIAS] FOLDER`."""
    return entry.guarded(_main)


if __name__ == "__main__":
    sys.exit(main())
