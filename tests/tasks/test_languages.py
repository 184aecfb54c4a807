from __future__ import annotations

import pandas as pd

from steps import tasks
from steps.params import Validation
from steps.tasks import languages

ENGLISH = (
    "The train to London leaves at eight in the evening, since the line through the hills is closed. " * 2
)
GERMAN = 2 * "Der Zug nach Berlin fährt heute erst um acht Uhr, weil die Strecke gesperrt ist. "


def test_texts_in_another_language_are_told_and_short_ones_are_not_judged() -> None:
    texts = [ENGLISH, GERMAN, ENGLISH * 20, "Guten Tag", "", ENGLISH.upper()]
    assert languages.others(texts) == [None, "de", None, None, None, None]
    assert languages.others(["short", ""]) == [None, None]
    assert languages.others([]) == []


def test_validate_warns_of_them() -> None:
    manifest = pd.DataFrame({"id": ["a", "b", "c"], "text": [ENGLISH, ENGLISH + "x", GERMAN]})
    task = tasks.get("text-classification")
    found = task.facts(manifest, None, Validation())  # type: ignore[arg-type]
    assert found["other_language"].tolist() == [None, None, "de"]
    names = [one.name for one in task.expectations(Validation())]
    assert "language_consistent" in names
