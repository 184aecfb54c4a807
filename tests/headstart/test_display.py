from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from rich.console import Console

from flows.stages import Outcome
from headstart import display


@pytest.fixture(autouse=True)
def quiet_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A logger of the test's own: Prefect's wants a server."""
    monkeypatch.setattr(display, "LOGGER", "test-display")
    logging.getLogger("test-display").propagate = False


def say(title: str | None, event: str, text: str = "", **more: Any) -> None:
    extra = {} if title is None else {"title": title, "event": event, **more}
    logging.getLogger(display.LOGGER).info(text, extra=extra)


def play(console: Console) -> None:
    logging.getLogger(display.LOGGER).setLevel(logging.INFO)
    with display.shown(console):
        say(None, "", "Finished in state Completed()")
        say("train digits/full", "started")
        say("train digits/full", "line", "epoch 1/2 [bold]")
        say("train digits/full", "ended", outcome=Outcome("s", "ran", 75.0, "epoch 2/2 [x]"))
        say("compare digits", "started")
        say("compare digits", "ended", outcome=Outcome("s", "unchanged", 0.1))
        say("fetch a", "started")
        say("fetch a", "line", "the last words")
        say("fetch a", "failed")


def test_elsewhere_every_line_has_its_time() -> None:
    stream = io.StringIO()
    play(Console(file=stream, width=200))
    lines = [line[10:] for line in stream.getvalue().splitlines()]
    assert lines == [
        "train digits/full          epoch 1/2 [bold]",
        "train digits/full          done in 1 min 15 s",
        "compare digits             unchanged",
        "fetch a                    the last words",
        "fetch a                    failed",
    ]
    assert stream.getvalue()[2] == stream.getvalue()[5] == ":"


def test_in_a_terminal_each_stage_keeps_one_line() -> None:
    stream = io.StringIO()
    play(Console(file=stream, width=60, force_terminal=True, color_system=None))
    kept = stream.getvalue().replace("\r", "\n")
    assert "✓ train digits/full          1 min 15 s  epoch 2/2 [x]" in kept
    assert f"· compare digits{' ' * 25}unchanged" in kept
    assert "    the last words" in kept
    assert "Completed()" not in kept


@pytest.mark.parametrize(
    ("title", "text", "shown"),
    [
        ("train digits/full", "digits/full trial 2 of 4: rate 0.01", "trial 2 of 4: rate 0.01"),
        ("train digits/full", "digits/full: the declared values stay", "the declared values stay"),
        ("train digits/full", "digits/full_2 trial 2 of 4", "digits/full_2 trial 2 of 4"),
        ("train digits/full", "digits/full", "digits/full"),
        ("compare digits", "On digits with 100 labels", "On digits with 100 labels"),
        ("resolve", "3 files", "3 files"),
    ],
)
def test_what_the_title_says_is_not_said_twice(title: str, text: str, shown: str) -> None:
    assert display.beside(title, text) == shown


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (42, "42 s"), (61, "1 min 1 s")])
def test_elapsed(seconds: float, text: str) -> None:
    assert display.elapsed(seconds) == text
