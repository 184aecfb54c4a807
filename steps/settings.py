"""The base of all models of settings, and the near names a mistake is told with."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all models: frozen, strict types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def suggest(name: str, known: Iterable[object]) -> str:
    """The end of a message about an unknown name: the nearest one we know, or all of them."""
    names = [str(one) for one in known]
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there is {', '.join(names)}"


def as_yaml(value: Any) -> str:  # noqa: ANN401 - any value of a setting
    """A value as it may stand in params.yaml, on one line."""
    if isinstance(value, Settings):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {as_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        mantissa, e, exponent = repr(value).partition("e")
        # YAML takes 1e-05 for a text.
        return mantissa if not e else f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent)}"
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.-]*", value)
    if isinstance(value, str) and (not plain or value in ("null", "true", "false")):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
