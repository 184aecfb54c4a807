"""What models say of samples, as columns of a table."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from steps.kinds import KINDS, SHARE
from steps.tasks import Said, Task


def columns(task: Task, rows: pd.DataFrame, said: Said, classes: list[str]) -> dict[str, Any]:
    """Columns of what was said of these rows.

    Of a classifier `label`, `predicted` and `probabilities`; of any other task `predicted`, the task's
    dictionary as JSON, and `share_<metric>` for each of its metrics: the share of the item, whose mean is the
    metric.

    Args:
        task: the task.
        rows: of the manifest, as many as were predicted.
        said: of the rows.
        classes: in the order of the network's outputs.
    """
    kind = KINDS[task.name]
    if kind.classified:
        probabilities = np.asarray(said)
        names = np.asarray(classes, dtype=object)
        return {
            "label": rows["label"].to_numpy(),
            "predicted": names[probabilities.argmax(axis=1)],
            "probabilities": list(probabilities),
        }
    shares = task.scores(task.truths(rows), said, classes)
    texts = [json.dumps(one, ensure_ascii=False, sort_keys=True) for one in said]
    return {"predicted": texts, **{f"{SHARE}{name}": shares[name] for name in kind.metrics}}


def finite(columns: dict[str, Any]) -> bool:
    """Whether all probabilities or shares are finite."""
    numbers = [one for name, one in columns.items() if name == "probabilities" or name.startswith(SHARE)]
    return all(bool(np.isfinite(np.asarray(one)).all()) for one in numbers)
