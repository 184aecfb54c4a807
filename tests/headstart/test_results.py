from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from flows.summary import ArmRow, Summary
from headstart import results


def shown(*summaries: Summary) -> str:
    stream = io.StringIO()
    results.show(Console(file=stream, width=200), summaries)
    return stream.getvalue()


def summary(model: str | None, uri: str | None) -> Summary:
    rows = (
        ArmRow("scratch", "66.0 % (60.1 to 71.2)", 3, "25", "41", False),
        ArmRow("full", "86.0 % (82.0 to 89.5)", 3, "4", "12", True),
    )
    return Summary("digits", "accuracy", rows, "`full` beats `scratch`.", Path("reports/digits"), model, uri)


def test_the_table_the_verdict_and_the_addresses() -> None:
    text = shown(summary("headstart-digits version 1 @champion", "sqlite:///mlflow/mlflow.db"))
    assert "full     accuracy     86.0 % (82.0 to 89.5)      3                 4                 12" in text
    assert "full beats scratch." in text
    assert "reports/digits/report.html" in text
    assert "mlflow ui --backend-store-uri sqlite:///mlflow/mlflow.db" in text


def test_a_server_has_its_own_address_and_what_is_not_registered_can_be() -> None:
    assert "http://server:5000" in shown(summary("m version 1", "http://server:5000"))
    assert "not registered; `headstart publish digits` does it" in shown(summary(None, None))
    assert shown() == ""
