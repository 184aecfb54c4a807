"""The report and the list of experiments in a real Chromium: nothing runs, all of it can be read."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from steps.report import history, index, pages
from steps.report.sheet import MapPoint, Mistake, Sheet, Suspect
from tests.report import browser, example
from tests.report.example import HOSTILE, Example

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.chromium() is None, reason="there is no Chromium on this machine"),
]
# A phone, a tablet and a desk.
WIDTHS = (380, 768, 1400)


def hostile() -> str:
    """Whatever can be named is named badly."""
    made = example.sheet(Example(experiment=HOSTILE[0], classes=HOSTILE, text=True, arms=3))
    named = example.sheet(Example(experiment=HOSTILE[1], classes=HOSTILE, arms=2)).comparison
    it = made.comparison | {
        "notes": list(HOSTILE), "slices": [one | {"value": HOSTILE[0]} for one in named["slices"]],
        "data": named["data"] | {"origin": {"source": "folder", "path": HOSTILE[1]}},
        "verdict": made.comparison["verdict"] | {"text": f"`arm` {HOSTILE[2]} {HOSTILE[0]} {HOSTILE[3]}"},
    }  # fmt: skip
    tokens = [(text, 0.5 - at / 4) for at, text in enumerate(HOSTILE)]
    return pages.report(
        Sheet(
            comparison=it,
            curves=made.curves,
            points=[MapPoint(at, -at, one, HOSTILE[0], "test", None, one) for at, one in enumerate(HOSTILE)],
            mistakes=[Mistake(one, one, HOSTILE[0], 0.9, None, tokens) for one in HOSTILE],
            suspects=[Suspect(one, "test", one, HOSTILE[1], 0.9, None, one) for one in HOSTILE],
            duplicates=[(one, HOSTILE[0]) for one in HOSTILE],
        )
    )


def listing(folder: Path) -> str:
    """Three experiments with a history, one of them named badly."""
    names = {"digits": "digits", "bbc-news": "bbc-news", "evil": HOSTILE[0]}
    for at, (place, name) in enumerate(names.items()):
        it = example.sheet(Example(experiment=name, arms=3, points=0)).comparison
        for day in range(1, 5):
            it["arms"][0]["seconds"] = day
            history.record(
                it, datetime(2025, 1, day, tzinfo=UTC), history.file_of(name, folder / "histories")
            )
        it["verdict"]["call"] = ("helps", "undecided", "equal")[at]
        (folder / "reports" / place).mkdir(parents=True)
        (folder / "reports" / place / "comparison.json").write_text(json.dumps(it), "utf-8")
    return index.write(folder / "reports", folder / "histories").read_text("utf-8")


@pytest.fixture(
    scope="module",
    params=["images", "texts", "hostile", "many classes", "boxes", "marks", "pretraining", "index"],
)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "index":
        return listing(tmp_path_factory.mktemp("listing"))
    if request.param == "hostile":
        return hostile()
    made = {
        "images": Example(points=150),
        "texts": Example(text=True, metric="log_loss", arms=9, classes=tuple("abcdef"), points=200),
        "boxes": Example(task="object-detection", metric="coco_map", classes=("cat", "dog"), points=80),
        "marks": Example(task="token-classification", metric="entity_f1", text=True, arms=3, points=0),
        "pretraining": Example(
            task="masked-language-model", metric="loss", text=True, arms=1, points=0, efficiency=False
        ),
        "many classes": Example(classes=tuple(f"kind {at}" for at in range(30)), points=150, resamples=2),
    }
    return pages.report(example.sheet(made[request.param]))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_can_be_read_by_everyone_and_run_nothing(page: str, dark: bool) -> None:
    widths = (380, 1400) if dark else WIDTHS
    for told, width in zip(browser.look(page, widths, dark), widths, strict=True):
        assert told.width == width
        assert told.dark == dark
        assert told.violations == []
        assert told.scrolls <= told.width, told.beyond
        assert (told.called, told.scripts, told.handlers, told.frames) == (0, 0, 0, 0)


def test_a_page_that_runs_something_is_noticed() -> None:
    page = hostile().replace("</main>", "<script>alert(1)</script><img src=x onerror=alert(1)></main>")
    told = browser.look(page, (1400,), dark=False)[0]
    assert told.called == 2
    assert told.scripts == 1
    assert told.handlers == 1
    assert "image-alt" in [rule for rule, *_ in told.violations]


@pytest.mark.survives(
    "data",
    "class names that are markup",
    how="markup as names, in a real browser",
    held="shown letter by letter",
)
def test_hostile_names_are_shown_as_they_are() -> None:
    told = browser.look(hostile(), (1400,), dark=False)[0]
    for name in HOSTILE[:7]:
        assert " ".join(name.split()) in told.text
    assert "49" not in told.text.split()


def test_the_policy_alone_would_stop_a_script() -> None:
    page = pages.report(example.sheet(Example(arms=2, points=0)))
    evil = "<p id='seen'></p><script>document.getElementById('seen').textContent = 'it ran';</script>"
    assert "it ran" not in browser.dump(page.replace("</main>", f"{evil}</main>")).split("<script>")[0]
