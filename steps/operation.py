"""Settings of what happens after training: the gate, drift, the nightly run, serving.

None of them changes what is trained, so no stage of the graph depends on one.
"""

from __future__ import annotations

import zoneinfo
from typing import Annotated, Literal

from pydantic import Field, field_validator

from steps.settings import Settings


class Gate(Settings):
    """What a candidate must show before it becomes champion; none of it changes a training."""

    margin: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="The largest loss against the champion that may stay possible, in the metric's own unit; "
        "left out, what the metric tolerates.",
    )
    min_items: int = Field(30, ge=2, description="Fewer test items decide nothing.")
    slices: bool = Field(True, description="No class or slice of the test items may be significantly worse.")
    calibration: Annotated[float, Field(ge=0, le=1)] | None = Field(
        0.05, description="By how much the expected calibration error may grow; `null` does not look."
    )
    latency: Annotated[float, Field(ge=1)] | None = Field(
        2.0, description="How many times the champion's time a prediction may take; `null` does not look."
    )
    looks: int = Field(
        100, ge=1, description="How many decisions one frozen test set may serve before it is worn out."
    )


class Drift(Settings):
    """How new data are compared with those the champion was trained on."""

    method: Literal["mmd", "classifier"] = Field(
        "mmd", description="Maximum mean discrepancy, or whether a classifier can tell the two apart."
    )
    level: float = Field(0.05, gt=0, lt=0.5, description="Share of false alarms, over all tests together.")
    permutations: int = Field(500, ge=99, description="That the p-value is taken from.")
    min_items: int = Field(30, ge=10, description="Fewer new items tell nothing.")
    max_items: int = Field(
        1000, ge=50, le=5000, description="Of either side that are compared, drawn by their hashes."
    )


class Nightly(Settings):
    """When the pipeline looks for a cause to train anew, and which."""

    cron: str = Field("0 3 * * *", description="Minute, hour, day of month, month, day of week.")
    timezone: str = Field("UTC", description="A name of the IANA database, e.g. `Europe/Vienna`.")
    experiments: Annotated[tuple[str, ...], Field(strict=False)] | None = Field(
        None, description="Left out, all."
    )
    champion_days: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="An older champion is built anew from the same data, as a proof that it still can be; "
        "left out, age is no cause.",
    )
    on_drift: bool = Field(
        True, description="Whether drift of monitored inputs is told; it needs new labels, not a training."
    )
    retries: int = Field(2, ge=0, description="How often a step that needs the network is tried again.")

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, cron: str) -> str:
        if len(cron.split()) != 5:
            raise ValueError(f"needs five fields, as in `0 3 * * *` (three in the morning), is {cron!r}")
        return cron

    @field_validator("timezone")
    @classmethod
    def _known(cls, timezone: str) -> str:
        if timezone not in zoneinfo.available_timezones():
            raise ValueError(f"{timezone!r} is no time zone; write one such as `UTC` or `Europe/Vienna`")
        return timezone


class Serving(Settings):
    """What a served model accepts."""

    max_bytes: int = Field(16 * 2**20, ge=1024, description="Of a request; more is refused unread.")
    max_rows: int = Field(256, ge=1, description="Inputs in one request.")
    max_characters: int = Field(100_000, ge=1, description="Of a text.")
    refresh_seconds: float = Field(10.0, gt=0, description="How often a new champion is looked for.")
    read_seconds: float = Field(20.0, gt=0, description="A request that is not whole by then is refused.")
    record: bool = Field(False, description="Keep what was asked, for `headstart monitor`.")
    record_gib: float = Field(1.0, gt=0, description="Of what is kept; the oldest goes first.")
