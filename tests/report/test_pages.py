import io
import itertools
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from ruamel.yaml import YAML

from steps.kinds import KINDS
from steps.report import pages, wording
from steps.report.pictures import Pictures, kind_of
from steps.report.sheet import MapPoint, Mistake, Sheet, Told
from tests.report import example
from tests.report.example import HOSTILE, Example

VOID = {"meta", "br", "link", "img", "input", "hr"}
# In the order that a reader expects.
ORDER = (
    "arms", "notes", "differences", "learning", "efficiency", "baselines", "ranking", "pairs", "classes",
    "slices", "confusion", "calibration", "map", "mistakes", "suspects", "duplicates", "data", "cost",
    "ledger", "provenance", "again",
)  # fmt: skip


class Elements(HTMLParser):
    """Every element with its attributes, and all text; what is not closed in order is a failure."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def attributes(self, name: str) -> list[str]:
        return [str(attrs[name]) for _, attrs in self.found if name in attrs]


@pytest.fixture(scope="module")
def sheet() -> Sheet:
    return example.sheet()


@pytest.fixture(scope="module")
def comparison(sheet: Sheet) -> dict[str, Any]:
    return sheet.comparison


@pytest.fixture(scope="module")
def page(sheet: Sheet) -> Elements:
    return Elements(pages.report(sheet))


@pytest.fixture(scope="module")
def hostile() -> Sheet:
    return example.sheet(Example(experiment=HOSTILE[0], classes=HOSTILE, text=True, arms=3, points=60))


# --------------------------------------------------------------------------------------------- report


def test_the_report_opens_with_the_verdict_and_then_the_sections_in_order(
    page: Elements, comparison: dict[str, Any]
) -> None:
    said = comparison["verdict"]["text"].replace("`", "")
    ids = page.attributes("id")
    assert page.text.index(said) < page.text.index("The arms on the test split")
    assert [name for name in ids if name in ORDER] == list(ORDER)
    assert len(ids) == len(set(ids))


def test_every_number_of_the_arms_is_there(page: Elements, comparison: dict[str, Any]) -> None:
    for arm in comparison["arms"]:
        assert f"{arm['ci_low'] * 100:.1f} to {arm['ci_high'] * 100:.1f}" in page.text
        assert f"{arm['validation']['mean'] * 100:.1f}" in page.text
    for one in comparison["baselines"]:
        assert f"{one['name']}{one['about']}" in page.text
    assert "dvc repro compare@digits" in page.text


def test_links_lead_to_sections_or_to_the_list_of_experiments(page: Elements) -> None:
    ids = set(page.attributes("id"))
    links = page.attributes("href")
    addresses = [link for link in links if not link.startswith(("#", "data:image/"))]
    assert addresses == ["../index.html"]
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    assert [
        link[1:] for tag, attrs in page.found if tag == "a" and (link := str(attrs["href"]))[1:] in ORDER
    ] == list(ORDER)


def test_the_report_needs_nothing_else(page: Elements) -> None:
    assert not {"script", "img", "link", "iframe", "object", "form"} & {tag for tag, _ in page.found}
    policy = next(attrs for tag, attrs in page.found if "http-equiv" in attrs)
    assert str(policy["content"]).startswith("default-src 'none'")


def test_charts_are_named_described_and_have_a_table(page: Elements) -> None:
    ids = set(page.attributes("id"))
    charts = [
        attrs for tag, attrs in page.found if tag == "svg" and "chart" in str(attrs.get("class")).split()
    ]
    assert len(charts) == 6
    for attrs in charts:
        assert attrs["role"] in ("img", "group")
        assert set(str(attrs["aria-labelledby"]).split()) <= ids
    for words in (
        "The curves as a table",
        "The curve as a table",
        "The matrix as a table",
        "The bins as a table",
    ):
        assert words in page.text


def test_headings_go_down_one_level_at_a_time(page: Elements) -> None:
    levels = [int(tag[1]) for tag, _ in page.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_hostile_names_stay_text(hostile: Sheet) -> None:
    page = Elements(pages.report(hostile))
    assert not {"script", "img", "iframe", "object"} & {tag for tag, _ in page.found}
    assert not [name for _, attrs in page.found for name in attrs if name.startswith("on")]
    for name in HOSTILE:
        assert wording.label(name) in page.text
    assert "x" * 200 not in page.text


def test_a_lone_surrogate_does_not_stop_the_page() -> None:
    made = example.sheet(Example(classes=("a\ud800", "b"), points=10, mistakes=1, arms=2))
    assert "a�" in pages.report(made).encode("utf-8").decode("utf-8")


def test_one_arm_and_nothing_else_make_a_report_without_empty_sections() -> None:
    made = example.sheet(Example(arms=1, seeds=1, epochs=1, points=0, mistakes=0, efficiency=False))
    it = made.comparison | {
        "pairs": [], "baselines": [], "probe": None, "ranking": [], "ranking_correlation": None, "slices": [],
    }  # fmt: skip
    page = Elements(pages.report(Sheet(it, made.curves)))
    ids = [name for name in page.attributes("id") if name in ORDER]
    assert ids == ["arms", "notes", "learning", "classes", "confusion", "calibration", "data", "cost",
                   "ledger", "provenance", "again"]  # fmt: skip


def test_what_one_run_does_not_tell_is_a_dash(sheet: Sheet) -> None:
    arm = sheet.comparison["arms"][1]
    unknown = {"value": 2.0, "ci_low": None, "ci_high": None}
    lonely = arm | {
        "speedup": {"epochs": unknown, "steps": None, "seconds": None, "censored": 1},
        "area": unknown, "epochs_to_target": None,
        "stability": arm["stability"] | {"sd": None},
    }  # fmt: skip
    it = sheet.comparison | {"arms": [sheet.comparison["arms"][0], lonely], "best_arm": arm["arm"]}
    it["verdict"] = it["verdict"] | {"arm": arm["arm"]}
    page = pages.report(Sheet(it, {name: sheet.curves[name] for name in ("scratch", arm["arm"])}))
    assert "None" not in Elements(page).text


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss"])
def test_every_metric_has_its_unit(metric: str) -> None:
    text = Elements(pages.report(example.sheet(Example(metric=metric, points=20)))).text
    tiles = text[text.index("llrd over scratch") :].split(" interval")[0]
    assert (" points" in tiles) == (metric != "log_loss")
    assert {"accuracy": "accuracy, %", "macro_f1": "macro-F1, %", "log_loss": "log-loss"}[metric] in text


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"labels": 143.4, "ci_low": 80.0, "ci_high": 300.0}, "143 labels saved (80 to 300): so many more"),
        ({"labels": 143.0}, "143 labels saved: so many more"),
        ({"labels": 300.0, "more_than": True}, "more than 300 labels saved: with the most labels tried"),
        ({"labels": 0.0, "more_than": True}, "how many labels are saved cannot be told: with no number"),
        ({"labels": -40.0}, "40 labels more needed than scratch"),
        ({}, "nothing can be said"),
    ],
)
def test_labels_saved_in_words(sheet: Sheet, saved: dict[str, Any], words: str) -> None:
    unknown = {"arm": "llrd", "labels": None, "ci_low": None, "ci_high": None, "more_than": False}
    efficiency = sheet.comparison["efficiency"] | {"saved": [unknown | saved]}
    page = Elements(pages.report(Sheet(sheet.comparison | {"efficiency": efficiency}, sheet.curves)))
    assert f"llrd: {words}" in page.text
    assert ("Labels saved> 143" in page.text) == saved.get("more_than", False)


def test_the_report_is_the_same_each_time(sheet: Sheet) -> None:
    assert pages.report(sheet) == pages.report(sheet)


# ------------------------------------------------------------------------------- tasks without classes


DETECTION = Example(
    experiment="scenes", task="object-detection", metric="coco_map", arms=4, points=60,
    classes=("cat", "dog"), groups=31,
)  # fmt: skip
ENTITIES = Example(
    experiment="news", task="token-classification", metric="entity_f1", text=True, arms=3, points=0,
    classes=("LOC", "PER"),
)  # fmt: skip
PRETRAINING = Example(
    experiment="wiki", task="masked-language-model", metric="loss", text=True, arms=1, seeds=1, points=0,
    efficiency=False,
)  # fmt: skip
OTHER_ORDER = (
    "arms", "notes", "metrics", "differences", "learning", "efficiency", "baselines", "pairs", "slices",
    "distribution", "map", "cases", "duplicates", "data", "cost", "ledger", "provenance", "again",
)  # fmt: skip


def test_a_task_without_classes_has_cases_and_nothing_of_classes() -> None:
    made = example.sheet(DETECTION)
    page = Elements(pages.report(made))
    assert [name for name in page.attributes("id") if name in {*ORDER, *OTHER_ORDER}] == list(OTHER_ORDER)
    assert "object detection · 2 classes · 100 training samples · 805 test items in 31 groups" in page.text
    assert "runs and groups of test items into account" in page.text
    for word in ("Calibration", "McNemar", "Suspicious", "named wrongly", "training labels", "log-loss"):
        assert word not in page.text
    for arm in made.comparison["arms"]:
        for found in arm["metrics"].values():
            assert f"{100 * found['ci_low']:.1f} to {100 * found['ci_high']:.1f}" in page.text
    assert "143 labelled samples saved" in page.text
    shots = [attrs for tag, attrs in page.found if tag == "svg" and attrs.get("class") == "shot"]
    assert len(shots) == 36
    assert {str(attrs["aria-label"]).split(":")[0] for attrs in shots} == {"image", "true", "predicted"}
    charts = [
        attrs for tag, attrs in page.found if tag == "svg" and "chart" in str(attrs.get("class")).split()
    ]
    assert {str(attrs["aria-labelledby"]).split()[0] for attrs in charts} == {
        "learning-h", "efficiency-h", "distribution-h", "map-h",
    }  # fmt: skip
    assert "The distribution as a table" in page.text


def test_marks_are_told_in_words_and_signs_not_by_colour_alone() -> None:
    html = pages.report(example.sheet(ENTITIES))
    page = Elements(html)
    assert "missed true, and not said" in page.text
    assert '<mark class="right"><span class="unseen">right: </span>Ada Lovelace</mark>' in html
    assert '<mark class="missed"><span class="unseen">missed: </span>Acme</mark> in ' in html
    for mark, sign in (("right", "✓"), ("missed", "?"), ("wrong", "✗")):
        assert f'mark.{mark}::after {{ content: "{sign}" / "";' in html


def test_hostile_cases_stay_text_and_keep_to_their_room() -> None:
    evil = [
        Told(one, at % 2 == 0, one, one, one, ((one, noise(1)),), ((one, "right"), (one, one), ("tail", "")))
        for at, one in enumerate(HOSTILE)
    ]
    made = example.sheet(ENTITIES)
    html = pages.report(replace(made, cases=evil))
    page = Elements(html)
    assert not {"script", "img", "iframe", "object"} & {tag for tag, _ in page.found}
    assert not [name for _, attrs in page.found for name in attrs if name.startswith("on")]
    assert {str(attrs["class"]) for tag, attrs in page.found if tag == "mark"} == {"right", "missed", "wrong"}
    assert "x" * 1000 not in page.text
    assert html.count("data:image/png") == 1


def test_too_many_pictures_of_cases_are_left_out_and_it_says_so() -> None:
    cases = [
        Told(f"{at}", True, "0", "a", "b", tuple((f"{part}", noise(4 * at + part)) for part in range(4)))
        for at in range(24)
    ]
    page = pages.report(replace(example.sheet(ENTITIES), cases=cases))
    assert len(page.encode("utf-8")) < 3_000_000
    assert "pictures were left out to keep this page small" in page


def test_one_arm_of_pretraining_is_compared_with_nothing() -> None:
    page = Elements(pages.report(example.sheet(PRETRAINING)))
    assert "Nothing to compare" in page.text
    assert "wiki: masked language model" in page.text
    assert not {"pairs", "differences"} & set(page.attributes("id"))
    for word in ("labels", "better than", "Holm", "None"):
        assert word not in page.text[: page.text.index("Parts of the test split")].replace("Near", "")
    index = page.text.index("lower is better")
    assert "token accuracy, %" in page.text[index - 40 : index + 60]


@pytest.mark.parametrize(
    ("task", "metric", "tag", "use"),
    [
        ("object-detection", "coco_map", "object-detection", "Finds objects"),
        ("semantic-segmentation", "mean_iou", "image-segmentation", "every pixel"),
        ("token-classification", "entity_f1", "token-classification", "Marks entities"),
        ("question-answering", "squad_f1", "question-answering", "word for word"),
        ("summarisation", "rouge_l", "summarization", "a person must read it"),
        ("masked-language-model", "perplexity", "fill-mask", "hidden words"),
        ("causal-language-model", "loss", "text-generation", "the next word"),
        ("text-multilabel", "micro_f1", "text-classification", "Names every label"),
        ("text-pair-classification", "accuracy", "text-classification", "into 10 classes"),
        ("masked-image-model", "psnr", "image-feature-extraction", "hidden parts of images"),
    ],
)
def test_the_card_of_every_task(task: str, metric: str, tag: str, use: str) -> None:
    it = example.sheet(Example(task=task, metric=metric, arms=3, points=0)).comparison
    text = pages.model_card(it)
    meta: Any = ModelCard(text).data
    assert meta.pipeline_tag == tag
    assert len(set(meta.metrics)) == len(meta.metrics)
    assert {one.metric_type for one in meta.eval_results} == set(meta.metrics)
    assert use in text[text.index("## Intended use") : text.index("## Data")]
    assert ("## Calibration" in text) == (task == "text-pair-classification")
    assert "log-loss" not in text or task == "text-pair-classification"
    assert "None" not in text


def test_every_task_has_a_use_and_a_name_on_the_hub() -> None:
    others = {name for name, kind in KINDS.items() if not kind.classified}
    assert set(pages.USES) == others
    assert set(pages.PIPELINES) <= set(KINDS)


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"source": "hf", "model": "owner/name", "revision": "abc", "licence": ""}, "owner/name"),
        ({"source": "folder", "folder": "mine", "licence": "MIT"}, None),
    ],
)
def test_where_weights_are_from_is_told_as_far_as_it_is_known(
    about: dict[str, Any], told: str | None
) -> None:
    it = example.sheet(Example(arms=3, points=0)).comparison
    sha256 = it["pretrained"]["sha256"]
    card = pages.model_card(it | {"pretrained": {"name": "w", "sha256": sha256, **about}})
    meta = header_of(card)
    assert meta.get("base_model") == told
    assert meta["license"] == ("mit" if about["licence"] else "unknown")
    assert ("no licence is stated" in card) == (not about["licence"])


# ------------------------------------------------------------------------------------------- budgets


def noise(at: int) -> bytes:
    """A picture that no packing makes small: about 28 KB."""
    stream = io.BytesIO()
    grey = np.random.default_rng(at).integers(0, 256, (160, 160), dtype=np.uint8)
    Image.fromarray(grey).save(stream, "PNG")
    return stream.getvalue()


def test_however_much_comes_in_the_page_stays_below_three_megabytes_and_says_what_it_left_out() -> None:
    started = time.monotonic()
    classes = tuple(f"{name}{at}" for at in range(100) for name in HOSTILE)
    made = example.sheet(Example(classes=classes, arms=40, points=0, mistakes=0, items=10_000))
    pictures = [noise(at) for at in range(120)]
    full = Sheet(
        comparison=made.comparison,
        curves=made.curves,
        points=[
            MapPoint(
                at % 97, at % 89, classes[at % 1000], classes[at % 7], "test", pictures[at % 120], "<" * 5000
            )
            for at in range(10_000)
        ],
        mistakes=[
            Mistake(f"{at}", classes[at], classes[at + 1], 0.9, pictures[at], [("&" * 300, 1.0)] * 600)
            for at in range(100)
        ],
        duplicates=[("<" * 3000, "&" * 3000)] * 5000,
    )
    page = pages.report(full)
    assert len(page.encode("utf-8")) <= 3_000_000
    assert time.monotonic() - started < 20
    text = Elements(page).text
    assert "points are drawn" in text or "The map was left out" in text
    assert "rows are shown; tables/per_class.csv holds all" in text


def test_seven_arms_and_ten_thousand_items_take_less_than_five_seconds() -> None:
    made = example.sheet(Example(items=10_000, points=10_000, mistakes=200))
    started = time.monotonic()
    page = pages.report(made)
    assert time.monotonic() - started < 5
    assert len(page) < 3_000_000
    assert "1,000 of 10,000 points are drawn" in Elements(page).text


def test_a_thousand_classes_show_the_weakest_and_fold_the_rest() -> None:
    made = example.sheet(Example(classes=tuple(f"kind {at}" for at in range(1000)), points=0, mistakes=0))
    page = pages.report(made)
    weakest = min(made.comparison["per_class"], key=lambda one: one["f1"]["value"])
    section = page[page.index('id="classes"') :]
    assert section.index(f">{weakest['label']}<") < section.index("960 more rows")
    assert "1,000 classes are too many for a matrix" in page
    assert len(page) < 3_000_000


def test_a_picture_that_comes_twice_is_there_once() -> None:
    pictures = Pictures(100_000)
    first = pictures.add(noise(1))
    assert pictures.add(noise(1)) == first
    assert str(pictures.definitions()).count("data:image/png") == 1


def test_pictures_keep_to_their_budget() -> None:
    pictures = Pictures(60_000)
    assert [pictures.add(noise(at)) is None for at in range(4)] == [False, True, True, True]
    assert pictures.left_out == 3
    assert len(pictures.definitions()) <= 60_000


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_kinds_of_pictures_are_told_by_their_bytes(kind: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, kind.upper())
    assert kind_of(stream.getvalue()) == f"image/{kind}"


@pytest.mark.parametrize("data", [None, b"", b"<svg onload=alert(1)>", b"GIF89a", b"RIFF____AVI "])
def test_what_is_no_picture_is_not_shown(data: bytes | None) -> None:
    pictures = Pictures(100_000)
    assert pictures.add(data) is None
    assert pictures.definitions() == ""


def test_words_are_marked_by_how_much_they_tell() -> None:
    tokens = [("goal", 2.0), ("##keeper", 1.1), ("bank", -1.5), ("the", 0.1), ("Ġscored", 0.8)]
    pieces = pages.spoken(Mistake("1", "a", "b", 0.9, None, tokens), 4)
    assert [(one.text, one.gap, one.kind) for one in pieces] == [
        ("goal", True, "p4"), ("keeper", False, "p2"), ("bank", True, "m3"), ("the", True, ""),
        ("…", True, ""),
    ]  # fmt: skip
    assert pages.spoken(Mistake("1", "a", "b", 0.9, None, [("x", 0.0)]), 9)[0].kind == ""


# --------------------------------------------------------------------------------------------- colours


def luminance(colour: str) -> float:
    values = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dress", [0, 1], ids=["light", "dark"])
def test_text_and_marks_stand_out_in_both_dresses(sheet: Sheet, dress: int) -> None:
    style = pages.report(sheet).split("<style>")[1].split("@media print")[0]
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[dress]
    of = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for text, paper in [
        ("ink", "paper"), ("ink", "card"), ("soft", "paper"), ("soft", "card"), ("accent", "card"),
        ("accent", "paper"), ("good", "good-soft"), ("bad", "bad-soft"), ("open", "open-soft"),
        ("soft", "band"),
        ("ink", "good-soft"), ("ink", "bad-soft"), ("ink", "open-soft"),
    ]:  # fmt: skip
        assert contrast(of[text], of[paper]) >= 4.5, (text, paper)
    marks = [name for name in of if re.fullmatch(r"[tk]-\w+", name)]
    assert len(marks) == 7 + 12
    for name in marks:
        assert contrast(of[name], of["card"]) >= 3, name
    assert len({of[name] for name in marks if name.startswith("k")}) == 12


# ----------------------------------------------------------------------------------------- model card


def header_of(card: str) -> Any:
    return YAML(typ="safe").load(card.split("---\n", 2)[1])


def test_the_card_has_a_header_the_hub_can_read(comparison: dict[str, Any]) -> None:
    text = pages.model_card(comparison)
    card = ModelCard(text)
    meta: Any = card.data
    assert meta.pipeline_tag == "image-classification"
    assert (meta.license, meta.library_name, meta.base_model, meta.datasets) == (
        "apache-2.0",
        "pytorch",
        None,
        None,
    )
    assert set(meta.metrics or []) == {"accuracy", "f1", "log_loss"}
    best = next(arm for arm in comparison["arms"] if arm["arm"] == comparison["best_arm"])
    values = {one.metric_type: one.metric_value for one in meta.eval_results or []}
    assert values["accuracy"] == pytest.approx(best["test"]["accuracy"], abs=1e-6)
    assert set(values) == {"accuracy", "f1", "log_loss"}
    for title in (
        "Intended use",
        "Data",
        "Evidence",
        "Calibration",
        "How it was tuned",
        "Limits",
        "Licence and origin",
    ):
        assert f"\n## {title}" in card.text
    # The header is what it was when the hub's own library writes it again.
    assert header_of(str(card)) == header_of(text)


def test_the_card_names_weights_and_data_of_the_hub(comparison: dict[str, Any]) -> None:
    pretrained = comparison["pretrained"] | {"source": "hub", "repo": "timm/resnet18.a1_in1k"}
    data = comparison["data"] | {"origin": {"source": "hub", "dataset": "ylecun/mnist"}}
    meta: Any = ModelCard(pages.model_card(comparison | {"pretrained": pretrained, "data": data})).data
    assert (meta.base_model, meta.datasets) == ("timm/resnet18.a1_in1k", ["ylecun/mnist"])


def test_hostile_labels_make_no_markup_in_the_card(hostile: Sheet) -> None:
    names = ["| a | `b` | [c](javascript:alert(1)) |", "---\nlicense: stolen", *HOSTILE]
    made = example.sheet(Example(classes=tuple(names), arms=3, points=0))
    card = pages.model_card(made.comparison)
    assert "<script" not in card
    assert "<img" not in card
    assert header_of(card)["license"] == "apache-2.0"
    assert "](javascript" not in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}
    assert cells == {9, 6}
    assert "x" * 200 not in card


def test_a_model_from_scratch_claims_no_pretrained_licence(comparison: dict[str, Any]) -> None:
    card = pages.model_card(comparison | {"best_arm": "scratch"})
    assert "license" not in header_of(card)
    assert "no pretrained weights are in it" in card


def test_an_unknown_licence_is_named(comparison: dict[str, Any]) -> None:
    pretrained = comparison["pretrained"] | {"licence": "Ours: only"}
    meta = header_of(pages.model_card(comparison | {"pretrained": pretrained}))
    assert (meta["license"], meta["license_name"]) == ("other", "Ours: only")


def test_the_card_names_the_run_that_is_handed_on() -> None:
    it = example.sheet(Example(resamples=2, seeds=2, arms=3, points=0)).comparison | {
        "best_resample": 2,
        "best_seed": 1,
    }
    card = pages.model_card(it)
    assert "seed 1 of training subset 2" in card
    assert it["provenance"]["weights_sha256"][it["best_arm"]]["2-1"] in card


# --------------------------------------------------------------------------------------------- wording


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "–"), (0.04, "0.0 s"), (59.9, "59.9 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_times_in_words(value: float | None, words: str) -> None:
    assert wording.seconds(value) == words


def test_signs() -> None:
    assert wording.signed(0.0312, "accuracy") == "+3.1"
    assert wording.signed(-0.0312, "accuracy") == "−3.1"
    assert wording.signed(-0.25, "log_loss") == "−0.250"
    assert wording.signed(None, "accuracy") == "–"


@pytest.mark.parametrize(
    ("value", "words"), [(None, "–"), (1e-9, "<\u00a00.001"), (0.0123, "0.012"), (0.5, "0.50"), (1.0, "1.00")]
)
def test_p_values(value: float | None, words: str) -> None:
    assert wording.p_value(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([0.0001, 0.03], "0.0001 to 0.03"),
        (["linear", "mlp"], "linear, mlp"),
        ([True, False], "True, False"),
        (8, "8"),
    ],
)
def test_settings_in_words(value: Any, words: str) -> None:
    assert wording.setting(value) == words


def test_labels_are_one_line_without_unseen_signs() -> None:
    assert wording.label("a\x00b\n c\u2028d") == "a b c d"
    assert wording.label("ab", 1) == "…"


def test_the_templates_are_packed_with_the_package() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    packed = project["tool"]["setuptools"]["package-data"]["steps.report"]
    assert packed == ["templates/*.j2"]
    assert all(path.suffix == ".j2" for path in pages.TEMPLATES.iterdir())
