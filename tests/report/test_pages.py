import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from steps import compare
from steps.report import pages
from tests import evaluated
from tests.evaluated import Made

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "| a | `b` | [c](javascript:alert(1)) |",
    "---\nlicense: stolen",
    "$\\frac{1}{0}$",
]
DRAWN = {dress: {"learning_curves": b"one", "confusion": b"two"} for dress in ("light", "dark")}


class Elements(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("clone"))
        evaluated.make(Made(labels=HOSTILE, items=60, missing_class=True))
        return compare.weigh(compare.read("made-up"))


def test_the_report_opens_with_the_verdict_and_then_the_table(comparison: dict[str, Any]) -> None:
    page = pages.report(comparison, DRAWN)
    text = Elements(page).text
    said = comparison["verdict"]["text"].replace("`", "")
    assert said in text
    assert text.index(said) < text.index("The arms on the test split") < text.index("How fast they learn")
    for arm in comparison["arms"]:
        assert f"{100 * arm['mean']:.1f}" in text
    assert "dvc repro compare@made-up" in text


def test_hostile_labels_stay_text(comparison: dict[str, Any]) -> None:
    page = Elements(pages.report(comparison, DRAWN))
    assert not {"script", "iframe", "object", "form"} & {tag for tag, _ in page.found}
    assert not [name for _, attrs in page.found for name in attrs if name.startswith("on")]
    for label in HOSTILE:
        assert " ".join(label.split()) in page.text


def test_the_report_needs_nothing_else(comparison: dict[str, Any]) -> None:
    page = Elements(pages.report(comparison, DRAWN))
    sources = [attrs.get(name) for _, attrs in page.found for name in ("src", "srcset") if name in attrs]
    assert sources
    assert all(str(source).startswith("data:image/png;base64,") for source in sources)
    links = [attrs["href"] for tag, attrs in page.found if tag in ("a", "link")]
    assert links == ["../index.html"]
    policy = next(attrs for tag, attrs in page.found if "http-equiv" in attrs)
    assert str(policy["content"]).startswith("default-src 'none'")


def test_light_and_dark_pictures_are_both_there(comparison: dict[str, Any]) -> None:
    drawn = {dress: dict.fromkeys(("learning_curves", "confusion"), dress.encode()) for dress in DRAWN}
    page = Elements(pages.report(comparison, drawn))
    dark = [attrs for tag, attrs in page.found if tag == "source" and "dark" in str(attrs["media"])]
    assert len(dark) == 2
    assert {str(attrs["srcset"]) for attrs in dark} == {pages._data_uri(b"dark")}


def test_the_card_has_a_header_the_hub_can_read(comparison: dict[str, Any]) -> None:
    card = pages.model_card(comparison)
    _, header, body = card.split("---\n", 2)
    meta = YAML(typ="safe").load(header)
    assert meta["pipeline_tag"] == "image-classification"
    assert meta["license"] == "apache-2.0"
    result = meta["model-index"][0]["results"][0]
    values = {one["type"]: one["value"] for one in result["metrics"]}
    best = next(arm for arm in comparison["arms"] if arm["arm"] == comparison["best_arm"])
    assert values["accuracy"] == pytest.approx(best["test"]["accuracy"], abs=1e-6)
    assert set(values) == {"accuracy", "f1", "log_loss"}
    for title in ("Intended use", "Data", "Evidence", "Limits", "Licence and origin"):
        assert f"\n## {title}" in body


def test_hostile_labels_make_no_markup_in_the_card(comparison: dict[str, Any]) -> None:
    card = pages.model_card(comparison)
    assert "<script" not in card
    assert "<img" not in card
    assert "\nlicense: stolen" not in card
    assert "](javascript" not in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}
    assert cells == {8, 6}


def test_a_model_from_scratch_claims_no_pretrained_licence(comparison: dict[str, Any]) -> None:
    card = pages.model_card(comparison | {"best_arm": "scratch"})
    assert "license" not in YAML(typ="safe").load(card.split("---\n", 2)[1])
    assert "no pretrained weights are in it" in card


def test_an_unknown_licence_is_named(comparison: dict[str, Any]) -> None:
    pretrained = comparison["pretrained"] | {"licence": "Ours: only"}
    card = pages.model_card(comparison | {"pretrained": pretrained})
    meta = YAML(typ="safe").load(card.split("---\n", 2)[1])
    assert (meta["license"], meta["license_name"]) == ("other", "Ours: only")


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "–"), (0.04, "0.0 s"), (59.9, "59.9 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_times_in_words(value: float | None, words: str) -> None:
    assert pages.seconds(value) == words


def test_signs() -> None:
    assert pages.signed(0.0312, "accuracy") == "+3.1"
    assert pages.signed(-0.0312, "accuracy") == "−3.1"
    assert pages.signed(-0.25, "log_loss") == "−0.250"


def test_bars_lie_within_the_common_scale(comparison: dict[str, Any]) -> None:
    bars = pages.bars(comparison)
    assert min(bar["low"] for bar in bars.values()) == 0
    assert max(bar["high"] for bar in bars.values()) == 100
    assert all(bar["low"] <= bar["mean"] <= bar["high"] for bar in bars.values())


def test_the_templates_are_packed_with_the_package() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    packed = project["tool"]["setuptools"]["package-data"]["steps.report"]
    assert packed == ["templates/*.j2"]
    assert all(path.suffix == ".j2" for path in pages.TEMPLATES.iterdir())
