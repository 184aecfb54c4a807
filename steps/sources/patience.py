"""Requests that are made again when what went wrong may pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from steps import entry

T = TypeVar("T")

# How long a server may take to begin its answer, in seconds.
TIMEOUT = 15.0
# The pauses between the times a request is made, in seconds.
PAUSES = (1.0, 2.0, 4.0)
# A server that wants us to wait longer than this, in seconds, is not waited for.
LONGEST_PAUSE = 60.0


def patiently(
    call: Callable[[], T],
    what: str,
    may_pass: Callable[[Exception], float | None],
    reason: Callable[[Exception], str],
    tell: Callable[[Exception], NoReturn],
) -> T:
    """Call, and call again while it fails with what may pass.

    Args:
        call: the request.
        what: is asked for, in messages.
        may_pass: how long a failure's server wants us to wait, in seconds, 0 where it does not say; None for
            what does not pass.
        reason: a failure in a word or two.
        tell: raises our own error for a failure.
    """
    for pause in (*PAUSES, None):
        try:
            return call()
        except Exception as error:
            wait = may_pass(error)
            if pause is None or wait is None or wait > LONGEST_PAUSE:
                tell(error)
            entry.say(f"{what}: {reason(error)}; again in {max(pause, wait):.0f} s")
            time.sleep(max(pause, wait))
    raise AssertionError("the last failure is always told")


def seconds(retry_after: str | None) -> float:
    """The seconds of a `Retry-After` header; 0 where there is none or it names a date."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else 0.0
