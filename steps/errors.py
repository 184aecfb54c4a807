"""The exceptions Headstart raises itself. Each is one line that names the thing and what to change."""

from __future__ import annotations


class HeadstartError(Exception):
    """Something stopped the pipeline that the user cannot mend by editing input; exit code 1."""

    exit_code = 1


class UserError(HeadstartError):
    """Something the user can mend: parameters, data, weights, settings, disk space; exit code 2."""

    exit_code = 2


class ParamsError(UserError):
    """params.yaml, or a file made from it, says something impossible."""


class DataError(UserError):
    """The raw data cannot be used as they are."""


class UnreadableError(DataError):
    """Some of the inputs of a prediction cannot be read.

    Attributes:
        reasons: why, for the row of each that cannot.
        inputs: how many there were in all.
    """

    def __init__(self, reasons: dict[int, str], inputs: int) -> None:
        self.reasons, self.inputs = reasons, inputs
        first = "; ".join(f"row {row}: {reason}" for row, reason in list(reasons.items())[:5])
        super().__init__(f"{len(reasons)} of {inputs} inputs cannot be read: {first}")


class ValidationFailedError(DataError):
    """An expectation of level `error` does not hold."""


class WeightsError(UserError):
    """Pretrained weights are missing, altered, or do not fit their architecture."""


class TrainingError(UserError):
    """Training cannot go on, e.g. a loss that is not finite."""


class DiskFullError(UserError):
    """A write failed for want of space; nothing half-written is left behind."""


class BusyError(UserError):
    """Another run of the pipeline holds this clone."""


class TrackingError(HeadstartError):
    """The tracking server cannot be reached or refuses; results are safe in their journals."""


class LedgerError(UserError):
    """The ledger of aliases in MLflow was changed or cut after it was written."""


class StageError(HeadstartError):
    """A stage ended with an error of its own."""
