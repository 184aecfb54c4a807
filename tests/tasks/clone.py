"""A clone with one experiment on a toy backbone, taken through every step in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from steps import artifacts, params, resolve
from steps.params import Params
from tests import twin
from tests.tracking import made

NAME = "toy"
# Run in a process of its own, where every connection is refused: only the model's own files are there.
PREDICTS = """
import json, socket, sys

def refused(*arguments, **named):
    raise OSError("no network here")

socket.socket.connect = refused
socket.create_connection = refused
import mlflow.pyfunc, numpy as np, pandas as pd

def plain(value):
    if isinstance(value, np.ndarray):
        return [plain(one) for one in value]
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return value.item() if isinstance(value, np.generic) else value

rows = json.loads(sys.argv[2])
found = mlflow.pyfunc.load_model(sys.argv[1]).predict(pd.DataFrame(rows))
print(json.dumps([plain(row) for row in found.to_dict(orient="records")]))
"""


def lay_out(root: Path, experiment: dict[str, Any], pretrained: dict[str, Any] | None = None) -> None:
    """Make `root` a clone with this one experiment; packages `toy_vision` and `toy_text` are made.

    Args:
        root: an empty folder, the working directory from now on.
        experiment: its entry in params.yaml; what is left out is small: two epochs, two seeds, three arms.
        pretrained: further entries below `pretrained:`.
    """
    # Another test may have left MLflow's own idea of where the server is.
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    packages = root / "packages"
    pins = {"toy-vision": twin.vision_package(packages), "toy-text": twin.text_package(packages)}
    sys.path.insert(0, str(packages))
    whole = twin.params(pins)
    small = {
        "split": {"test": 0.3, "validation": 0.2},
        "training": {"epochs": 2, "batch_size": 8, "seeds": [1, 2]},
        "tuning": {"trials": 1},
    }
    whole["experiments"] = {NAME: {**small, **experiment}}
    whole["pretrained"] |= pretrained or {}
    (root / "requirements.lock").write_text("# none\n")
    made.store(root)
    for path, settings in resolve.settings_files(params.parse(Params, whole, "params.yaml")).items():
        artifacts.write_json(path, settings.model_dump(mode="json"))


def run(*, after: str = "", until: str = "register") -> dict[str, Any]:
    """Take the experiment through its steps, or a part of them; gives comparison.json where it was made."""
    from steps import (
        baseline,
        compare,
        curve,
        embed,
        evaluate,
        fetch,
        ingest,
        register,
        split,
        validate,
    )

    settings = Path("work/params") / NAME
    slug = json.loads((settings / "compare.json").read_text())["model"]["pretrained"]
    arms = [path.stem for path in sorted((settings / "arms").iterdir())]
    steps: dict[str, Callable[[], None]] = {
        "ingest": lambda: ingest.ingest(NAME),
        "validate": lambda: validate.validate(NAME),
        "split": lambda: split.split(NAME),
        "fetch": lambda: fetch.fetch(slug),
        "embed": lambda: embed.embed(NAME),
        "baseline": lambda: baseline.baseline(NAME),
        "train": lambda: train_all(arms),
        "evaluate": lambda: evaluate.evaluate(NAME),
        "curve": lambda: curve.curve(NAME),
        "compare": lambda: compare.compare(NAME),
        "register": lambda: register.register(NAME),
    }
    names = list(steps)
    for name in names[names.index(after) + 1 if after else 0 : names.index(until) + 1]:
        steps[name]()
    report = artifacts.report_dir(NAME) / "comparison.json"
    return json.loads(report.read_text()) if report.exists() else {}


def train_all(arms: list[str]) -> None:
    """Train one arm after the other."""
    from steps import train

    for arm in arms:
        train.train(NAME, arm)


def predicted(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """What the champion says, loaded by MLflow in a fresh process without network and without this code."""
    about = json.loads(artifacts.registration_file(NAME).read_text())
    uri = f"models:/{about['model']}/{about['version']}"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTHONPATH"))
    }
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{Path.cwd()}/mlflow/mlflow.db"
    done = subprocess.run(
        [sys.executable, "-c", PREDICTS, uri, json.dumps(rows)], cwd=Path.cwd(), env=environment,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_rows() -> pd.DataFrame:
    """The manifest's rows of the test split."""
    from steps import data

    rows = data.read_split(NAME)
    return rows[rows["split"] == "test"]
