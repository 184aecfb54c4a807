"""A registered model of a few bytes: MLflow loads it with this very module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from steps.tracking import registry, store
from steps.tracking.registry import Candidate, Version
from steps.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.models import Model

MODEL = "headstart-toys"


class Toy:
    """Says what its file holds."""

    def __init__(self, path: str) -> None:
        self.said = Path(path, "words.txt").read_text("utf-8")

    def predict(self, inputs: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        return inputs.assign(label=self.said)


def _load_pyfunc(path: str) -> Toy:
    """What MLflow calls."""
    return Toy(path)


def add(opened: Store, words: str, **tags: str) -> Version:
    """Register a model that says these words."""
    root = store.artifact_root(opened.uri)
    location = None if root is None else (root / "toys").as_uri()
    found = opened.client.get_experiment_by_name("headstart/toys")
    experiment_id = (
        found.experiment_id if found else opened.client.create_experiment("headstart/toys", location)
    )
    run = opened.client.create_run(experiment_id, run_name=f"full seed {words}")

    def save(path: Path, described: Model) -> None:
        import mlflow.pyfunc

        data = path.with_name("toy")
        data.mkdir()
        (data / "words.txt").write_text(words, "utf-8")
        (data / "more.txt").write_text("more", "utf-8")
        mlflow.pyfunc.save_model(
            path, loader_module="tests.tracking.toymodel", data_path=str(data), mlflow_model=described,
            pip_requirements=["pandas"],
        )  # fmt: skip

    return registry.add(
        opened,
        Candidate(
            MODEL,
            f"sha-of-{words}",
            experiment_id,
            run.info.run_id,
            tags,
            f"Says {words}.",
            {"test_accuracy": 1.0},
            save,
        ),
    )
