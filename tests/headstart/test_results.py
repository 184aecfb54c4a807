from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from flows.summary import ArmRow, Summary
from headstart import results

ROWS = (
    ArmRow("scratch", "66.0 (60.1 to 71.2)", epochs="25", trials="4"),
    ArmRow(
        "full", "86.0 (82.0 to 89.5)", "+20.0 (+14.1 to +26.3)", "helps", "4", "6.2", "> 300",
        "4 (1 failed)", is_best=True,
    ),
)  # fmt: skip


def shown(*summaries: Summary, width: int = 200, terminal: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=terminal, color_system=None)
    results.show(console, summaries)
    return stream.getvalue()


def summary(model: str | None = None, uri: str | None = None) -> Summary:
    return Summary(
        "digits",
        "accuracy in %",
        "100 training labels, 805 test items",
        "scratch",
        ROWS,
        "`full` beats `scratch`.",
        Path("reports/digits"),
        model,
        uri,
    )


def test_the_table_the_verdict_and_the_addresses() -> None:
    text = shown(summary("headstart-digits version 1 @champion", "sqlite:///mlflow/mlflow.db"))
    assert "digits  100 training labels, 805 test items\n" in text
    assert "over scratch" in text
    line = next(line for line in text.splitlines() if line.startswith("full"))
    assert " ".join(line.split()) == (
        "full 86.0 (82.0 to 89.5) +20.0 (+14.1 to +26.3) helps 4 6.2 > 300 4 (1 failed)"
    )
    assert "wider terminal" not in text
    assert "full beats scratch." in text
    assert "reports/digits/report.html" in text
    assert "mlflow ui --backend-store-uri sqlite:///mlflow/mlflow.db" in text


def test_a_server_has_its_own_address_and_what_is_not_registered_can_be() -> None:
    assert "http://server:5000" in shown(summary("m version 1", "http://server:5000"))
    assert "not registered; `headstart publish digits` does it" in shown(summary())


@pytest.mark.parametrize("width", [50, 60, 80, 100])
def test_a_narrow_terminal_has_fewer_columns_and_says_which(width: int) -> None:
    text = shown(summary(), width=width, terminal=True)
    table = text[: text.index("full beats")].splitlines()
    assert all(len(line) <= width for line in table)
    assert not any(line.startswith(" " * 20 + "(") for line in table), "a cell was folded"
    assert sum(line.startswith(("scratch  ", "full  ")) for line in table) == 2
    joined = " ".join(text.split())
    for head, first in {"over scratch": 60, "labels saved": 80, "tuning trials": 100}.items():
        missing = joined.partition("also has: ")[2].partition(".")[0]
        assert (head in missing) == (width < first), (head, width)
    assert ("helps" in text) == (width >= 60)


def test_what_no_arm_has_is_no_column() -> None:
    bare = tuple(replace(row, saved="-", sooner="-") for row in ROWS)
    text = shown(replace(summary(), rows=bare))
    assert "labels" not in text.splitlines()[1]
    assert "sooner" not in text
    assert "trials" in text


def test_an_old_result_names_no_reference() -> None:
    assert "over the reference" in shown(replace(summary(), reference="-"))


def test_names_neither_steer_the_terminal_nor_style_it() -> None:
    hostile = replace(ROWS[1], arm="\x1b[2J[red]x[/red]\r")
    text = shown(replace(summary(), rows=(ROWS[0], hostile), experiment="\x1b]0;title\x07d"))
    assert "\x1b" not in text
    assert "\r" not in text
    assert "[2J[red]x[/red]" in text


def test_two_results_are_two_tables() -> None:
    text = shown(summary(), replace(summary(), experiment="news"))
    assert text.index("digits  100") < text.index("news  100")
    assert text.count("full beats scratch.") == 2


def test_what_is_saved_is_called_as_the_task_counts() -> None:
    told = replace(summary(), counted="labelled samples")
    names = [column.name for column in results.columns_of(told)]
    assert "labelled samples\nsaved" in names
    assert "labels\nsaved" not in names
