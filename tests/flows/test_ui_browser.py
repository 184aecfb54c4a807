"""The pages in a real browser: what docs/ui.md says a person sees and does, done and looked at.

With HEADSTART_PICTURES=1 the pictures of docs/ui.md are taken anew.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.flows.devtools import Page, opened
from tests.flows.test_ui import started
from tests.report.browser import chromium
from tests.twin import Twin, build

IMAGES = Path(__file__).resolve().parents[2] / "docs/images"
LARGEST = 200_000

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(chromium() is None, reason="there is no Chromium here"),
]

# A row of MLflow's table of runs lies in several pieces, of which one has the name and one the box to tick.
BOX = """(() => {
  const row = [...document.querySelectorAll('.ag-row')].find(one => one.innerText.includes(NAME));
  const box = row && document.querySelector(
    `.ag-row[row-id="${row.getAttribute('row-id')}"] input[type=checkbox]`);
  if (!box) return null;
  const at = box.getBoundingClientRect();
  return [at.left + at.width / 2, at.top + at.height / 2];
})()"""
# Where to press: the first visible thing of a selector.
AT = """(() => {
  const one = document.querySelector(SELECTOR);
  const at = one && one.getBoundingClientRect();
  return at && at.width ? [at.left + at.width / 2, at.top + at.height / 2] : null;
})()"""
CLOSE = AT.replace("SELECTOR", repr("[aria-label=Close]"))
# Opens the runs below a comparison.
UNFOLD = AT.replace("SELECTOR", repr(".ag-row button"))
NEWEST = AT.replace("SELECTOR", repr("a[href*='/artifacts/artifact/']"))


@dataclass(frozen=True)
class Pages:
    """The addresses of a clone whose pages are shown."""

    clone: Twin
    prefect: str
    mlflow: str


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    clone = build(tmp_path_factory.mktemp("browser") / "clone")
    clone.edit_params(nightly__experiments=["shapes"])
    process, printed = started(clone)
    try:
        prefect, mlflow = re.findall(r"(?m)^(?:Prefect|MLflow) +(http\S+)", printed)
        # Its run is to be seen in these pages, too.
        clone.headstart("run", "shapes")
        yield Pages(clone, prefect, mlflow)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=90)


@pytest.fixture(scope="module")
def browser(pages: Pages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(tmp_path_factory.mktemp("chromium")) as page:
        yield page


def picture(page: Page, name: str, height: int = 800) -> None:
    """Take the picture of docs/ui.md, where asked to; whatever moves has come to rest."""
    if not os.environ.get("HEADSTART_PICTURES"):
        return
    page.size(height)
    time.sleep(1.5)
    path = IMAGES / f"ui-{name}.png"
    page.picture(path)
    assert path.stat().st_size <= LARGEST, path


def test_the_schedule_is_run_by_hand_and_followed(pages: Pages, browser: Page) -> None:
    browser.goto(pages.prefect)
    browser.click("Deployments")
    browser.wait_for("nightly", "pipeline", "headstart-nightly")
    browser.click("nightly", "a")
    browser.wait_for("At 03:00 AM", "Entrypoint", "flows.nightly.nightly", "Ready")
    browser.click("Upcoming", "[role=tab]")
    shown = browser.wait_for("3 Flow runs", "auto-scheduled")
    assert len(re.findall(r"\d{4}/\d\d/\d\d 03:00:00 AM", shown)) == 3, shown
    picture(browser, "schedule", 1000)

    browser.click("Run", "button")
    browser.click("Quick run", "[role=menuitem]")
    browser.click("View run")
    # The state of the run stands alone on its line; in the log are those of its tasks, too.
    shown = browser.wait_for("\nCompleted\n", seconds=600)
    if "Beginning flow run" not in shown:
        # A night without a cause is over within a second, before its log has arrived; the page asks no more.
        browser.goto(str(browser.evaluate("location.href")))
    shown = browser.wait_for("Beginning flow run", "\nCompleted\n")
    assert "set_working_directory" in shown
    picture(browser, "log")

    browser.click("Artifacts", "[role=tab]")
    browser.click("headstart-nightly", "h3")
    browser.press(NEWEST)
    browser.wait_for("Night of", "shapes", "no cause")
    picture(browser, "artifact")


def test_a_run_of_the_terminal_is_there_too(pages: Pages, browser: Page) -> None:
    browser.goto(f"{pages.prefect}/v2/runs")
    browser.wait_for("headstart shapes", "Completed")


def test_the_arms_are_compared_in_mlflow(pages: Pages, browser: Page) -> None:
    browser.goto(f"{pages.mlflow}/#/experiments")
    browser.click("Model training")
    browser.click("headstart/shapes", "a, span")
    browser.wait_for("matching runs")
    browser.press(CLOSE)
    browser.press(UNFOLD)
    browser.wait_for("scratch seed 1", "full seed 2", "frozen seed 1")
    for arm in ("scratch seed 1", "full seed 1", "frozen seed 1"):
        browser.press(BOX.replace("NAME", repr(arm)))
    picture(browser, "runs")
    browser.click("Compare", "button")
    shown = browser.wait_for("Comparing 3 Runs", "test_accuracy", "trainable_parameters")
    assert re.search(r"arm\s+(scratch|full|frozen)\s+(scratch|full|frozen)\s+(scratch|full|frozen)", shown)
    picture(browser, "compare", 1000)


def test_the_champion_is_found_by_its_alias(pages: Pages, browser: Page) -> None:
    browser.goto(f"{pages.mlflow}/#/models")
    browser.wait_for("headstart-shapes", "champion")
    # Who comes for the first time is told of aliases, by a box over the page.
    browser.click("Try it now", "button")
    browser.click("headstart-shapes", "a")
    browser.wait_for("Version 1", "champion", "headstart.arm", "headstart.reason")
    with suppress(AssertionError):  # a box for newcomers, which does not always come
        browser.press(CLOSE, seconds=5)
    picture(browser, "champion", 1000)
