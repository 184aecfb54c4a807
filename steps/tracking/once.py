"""What makes something in MLflow is asked for once.

MLflow's client sends a request again that got no answer or an error of the server, also where it was carried
out and only its answer was lost. To set a tag twice changes nothing. To make a run or a version twice makes
two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

Made = TypeVar("Made")

# Read by MLflow's client at each request.
_REPEATS = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


def once(make: Callable[[], Made], find: Callable[[], Made | None]) -> Made:
    """Make something without ever asking for it twice; where no answer comes, look whether it was made.

    Args:
        make: asks the server for it.
        find: looks for it; None where it is not there.

    Raises:
        Exception: as `make`, where it was not made.
    """
    try:
        with _sent_once():
            return make()
    except Exception:
        found = None
        with suppress(Exception):  # what went wrong first is to be told
            found = find()
        if found is None:
            raise
        return found


@contextmanager
def _sent_once() -> Iterator[None]:
    before = os.environ.get(_REPEATS)
    os.environ[_REPEATS] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_REPEATS]
        else:
            os.environ[_REPEATS] = before
