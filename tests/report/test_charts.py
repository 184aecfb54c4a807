import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup

from steps.report import charts, palette, svg
from steps.report.sheet import MapPoint
from steps.report.svg import Scale
from tests.report import example
from tests.report.example import HOSTILE, Example


def parsed(markup: Markup) -> ElementTree.Element:
    """The drawing; what is not well-formed is a failure."""
    return ElementTree.fromstring(str(markup))


def places(markup: Markup) -> list[float]:
    return [float(one) for one in re.findall(r'(?:x|y|cx|cy|x1|x2|y1|y2)="(-?[\d.]+)%"', str(markup))]


# ------------------------------------------------------------------------------------------------ svg


def test_everything_in_an_element_is_escaped() -> None:
    drawn = svg.element("text", "<b>&", title='"><script>', class_="a")
    assert str(drawn) == '<text title="&#34;&gt;&lt;script&gt;" class="a">&lt;b&gt;&amp;</text>'
    assert str(svg.element("g", drawn)) == f"<g>{drawn}</g>"


def test_what_is_none_is_left_out_and_numbers_are_short() -> None:
    assert (
        str(svg.element("rect", x=1.005, y=0.0, rx=None, stroke_width=2))
        == '<rect x="1" y="0" stroke-width="2"/>'
    )


def test_scales_go_from_end_to_end_and_not_beyond() -> None:
    assert [Scale(10, 20)(value) for value in (10, 15, 20, 99)] == [0, 50, 100, 100]
    assert [Scale(0, 1, up=True)(value) for value in (0, 1)] == [100, 0]
    assert Scale(10, 1000, log=True)(100) == pytest.approx(50)
    assert Scale(3, 3)(3) == 50


@pytest.mark.parametrize(
    ("ends", "found"),
    [
        ((0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ((-0.13, 0.08), [-0.1, -0.05, 0, 0.05]),
        ((0.501, 0.509), [0.502, 0.504, 0.506, 0.508]),
        ((4, 4), [4]),
    ],
)  # fmt: skip
def test_ticks_are_round(ends: tuple[float, float], found: list[float]) -> None:
    assert svg.ticks(*ends) == pytest.approx(found)


@pytest.mark.parametrize(
    ("last", "found"),
    [(1, [1]), (5, [1, 2, 3, 4, 5]), (20, [1, 5, 10, 15, 20]), (1000, [1, 200, 400, 600, 800, 1000])],
)
def test_epochs_are_whole(last: int, found: list[int]) -> None:
    assert svg.whole_ticks(last) == found


def test_thinning_keeps_both_ends() -> None:
    assert svg.thin(3, 5) == [0, 1, 2]
    thinned = svg.thin(1000, 5)
    assert (thinned[0], thinned[-1], len(thinned)) == (0, 999, 5)


# --------------------------------------------------------------------------------------------- charts


def test_an_interval_lies_where_its_scale_says() -> None:
    strip = charts.differences("accuracy", [{"ci_low": -0.1, "ci_high": 0.1}], 0.01)
    drawn = parsed(strip.draw(-0.1, 0.05, 0.1))
    line, dot = drawn[0], drawn[1]
    zero = strip.scale(0)
    low, high, at = (float(str(one).rstrip("%")) for one in (line.get("x1"), line.get("x2"), dot.get("cx")))
    assert 0 < low < zero < at < high < 100
    assert (high - zero) == pytest.approx(2 * (at - zero), abs=0.05)
    assert f"--z:{svg.percent(zero)}" in strip.style
    assert [label for _, label in strip.marks if label == "0"] == ["0"]


def test_the_band_of_the_margin_is_as_wide_as_it_is() -> None:
    strip = charts.differences("accuracy", [{"ci_low": -0.1, "ci_high": 0.1}], 0.02)
    assert strip.band == (-0.02, 0.02)
    share = (strip.scale(0.02) - strip.scale(-0.02)) / (strip.scale(0.1) - strip.scale(-0.1))
    assert share == pytest.approx(0.2)


@pytest.mark.parametrize(
    "made",
    [
        Example(points=0),
        Example(points=0, arms=1, seeds=1, epochs=1),
        Example(points=0, arms=25, epochs=700, metric="log_loss"),
    ],
    ids=["seven arms", "one epoch", "many"],
)
def test_learning_curves_stay_within_their_drawing(made: Example) -> None:
    sheet = example.sheet(made)
    markup = charts.learning(sheet.comparison, sheet.curves)
    drawn = parsed(markup)
    assert all(0 <= place <= 100 for place in places(markup))
    lines = [one for one in drawn.iter("path") if one.get("class") == "line"]
    assert len(lines) == min(made.arms, 7)
    for line in lines:
        assert 1 <= str(line.get("d")).count("L") + 1 <= charts.LINE_POINTS
    moments = [one for one in drawn.iter("g") if one.get("class") == "moment"]
    assert len(moments) == min(made.epochs, charts.HOVERS)
    assert sum(one.get("tabindex") == "0" for one in moments) == min(made.epochs, 10)


def test_the_box_of_an_epoch_has_the_best_arm_on_top() -> None:
    sheet = example.sheet(Example(arms=3, points=0))
    first = next(
        one
        for one in parsed(charts.learning(sheet.comparison, sheet.curves)).iter("g")
        if one.get("tabindex")
    )
    told = str(first.get("aria-label")).split("; ")
    assert told[0] == "epoch 1"
    figures = [float(line.split()[0]) for line in told[1:]]
    assert len(figures) == 3
    assert figures == sorted(figures, reverse=True)


def test_runs_of_unequal_length_go_on_alone() -> None:
    sheet = example.sheet(Example(arms=2, seeds=2, points=0))
    sheet.curves["frozen"][0] = sheet.curves["frozen"][0][:5]
    drawn = parsed(charts.learning(sheet.comparison, sheet.curves))
    assert len([one for one in drawn.iter("path") if one.get("class") == "tail"]) == 1
    arms, rows = charts.curve_rows(sheet.comparison, sheet.curves)
    assert rows[-1][1][arms.index("frozen")] is None


def test_the_efficiency_curve_is_even_in_ratios() -> None:
    it = example.sheet(Example(points=0)).comparison
    markup = charts.efficiency(it)
    drawn = parsed(markup)
    group = next(one for one in drawn.iter("g") if one.get("class") == "series s-ref")
    across = [float(str(one.get("cx")).rstrip("%")) for one in group.iter("circle")]
    steps = [after - before for before, after in itertools.pairwise(across)]
    assert steps == pytest.approx([steps[0]] * 4, abs=0.02)
    assert "scratch, 25 labels" in str(markup)


def test_every_reliable_bin_is_drawn_with_its_interval() -> None:
    arm = example.sheet(Example(points=0)).comparison["arms"][0]
    drawn = parsed(charts.reliability(arm, "reliability-0", "0"))
    dots = list(drawn.iter("circle"))
    assert len(dots) == len(arm["calibration"]["bins"])
    one = arm["calibration"]["bins"][0]
    assert float(str(dots[0].get("cx")).rstrip("%")) == pytest.approx(100 * one["confidence"], abs=0.01)
    assert float(str(dots[0].get("cy")).rstrip("%")) == pytest.approx(100 * (1 - one["accuracy"]), abs=0.01)


def test_cells_show_what_is_taken_for_what() -> None:
    drawn = parsed(charts.confusion([[0.9, 0.1], [0.0, 1.0]], ["cat", "dog"]))
    titles = [str(one.findtext("title")) for one in drawn.iter("rect") if one.find("title") is not None]
    assert titles == ["cat taken for cat: 90 %", "cat taken for dog: 10 %", "dog taken for dog: 100 %"]
    misses = [one for one in drawn.iter("rect") if one.get("class") == "miss"]
    assert (misses[0].get("x"), misses[0].get("y")) == ("50%", "0%")


@pytest.mark.parametrize("classes", [2, 20, 24, 40, 60])
def test_matrices_of_any_size_can_be_drawn(classes: int) -> None:
    it = example.sheet(Example(classes=tuple(f"kind {at}" for at in range(classes)), points=0)).comparison
    drawn = parsed(charts.confusion(it["confusion"], it["classes"]))
    labels = [one.text for one in drawn.iter("text") if one.get("class") == "tick"]
    assert ("kind 0" in labels) == (classes <= charts.NAMED)
    assert ("1" in labels) == (classes > charts.NAMED)
    assert any(one.get("class") == "cell" for one in drawn.iter("text")) == (classes <= charts.FIGURES)


def test_the_most_frequent_confusions_come_first() -> None:
    found = charts.frequent([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.1, 0.5, 0.4]], ["a", "b", "c"])
    assert found == [("c", "b", 0.5), ("a", "b", 0.3), ("c", "a", 0.1)]


# ------------------------------------------------------------------------------------------------- map


def point(at: int, predicted: str | None, label: str = "a") -> MapPoint:
    return MapPoint(float(at % 7), float(at % 11), label, predicted, "test", None, f"sample {at}")


def test_mistakes_are_told_by_shape_as_well_as_colour() -> None:
    points = [point(0, "a"), point(1, "b"), point(2, None)]
    drawn = charts.embedding(points, ["a", "b"], [None] * 3, 10)
    root = parsed(drawn.markup)
    marks = root.find("g")
    assert marks is not None
    assert sorted(str(one.get("class")) for one in marks) == ["o k-0", "o open k-0", "x k-0"]
    assert drawn.legend == [("k-0", "a"), ("k-1", "b")]


def test_with_many_classes_colours_tell_right_from_wrong() -> None:
    classes = [f"kind {at}" for at in range(13)]
    drawn = charts.embedding([point(0, "a"), point(1, "b")], classes, [None] * 2, 10)
    assert drawn.legend == [("k-right", "right"), ("k-wrong", "wrong")]
    assert 'class="x k-wrong"' in str(drawn.markup)


def test_too_many_points_are_thinned_but_mistakes_stay() -> None:
    points = [point(at, "b" if at % 100 == 0 else "a") for at in range(5000)]
    chosen = charts.chosen_points(points, 500)
    assert len(chosen) == 500
    assert set(range(0, 5000, 100)) <= set(chosen)
    assert max(after - before for before, after in itertools.pairwise(chosen)) < 30


def test_every_point_can_be_met_by_mouse_and_mistakes_by_keyboard() -> None:
    points = [point(at, "b" if at < 60 else "a") for at in range(100)]
    root = parsed(charts.embedding(points, ["a", "b"], ["t0"] * 100, 1000).markup)
    spots = [one for one in root.iter("g") if one.get("class") == "spot"]
    assert len(spots) == 100
    assert sum(one.get("tabindex") == "0" for one in spots) == charts.FOCUSED
    assert all(one.find("./g/use") is not None for one in spots)
    reached = [str(one.get("aria-label")) for one in spots if one.get("tabindex")]
    assert reached[0] == "sample 0: true a, said b"


def test_hostile_samples_are_text() -> None:
    points = [MapPoint(at, at, one, HOSTILE[0], "test", None, one) for at, one in enumerate(HOSTILE)]
    root = parsed(charts.embedding(points, HOSTILE, [None] * len(points), 100).markup)
    assert not {"script", "img", "b"} & {one.tag for one in root.iter()}
    assert any("<script>" in str(one.text) for one in root.iter("text"))


# ------------------------------------------------------------------------------------- palette, sparkline


def test_tones_go_to_the_arms_that_matter() -> None:
    it = example.sheet(Example(arms=12, points=0)).comparison
    tones = palette.tones(it, [arm["arm"] for arm in it["arms"]])
    assert list(tones.values()) == ["ref", "1", "2", "3", "4", "5", "0"]
    assert (tones["scratch"], tones[it["verdict"]["arm"]]) == ("ref", "0")
    assert list(palette.tones(it, ["scratch"])) == ["scratch"]


def test_the_distribution_is_drawn_over_the_whole_width_from_the_ground() -> None:
    it = example.sheet(Example(task="object-detection", metric="coco_map", points=0)).comparison
    drawn = charts.distribution(it)
    assert parsed(drawn).tag == "svg"
    paths = re.findall(r'<path class="(\w+)" d="M([^"]+)"', str(drawn))
    assert [kind for kind, _ in paths] == ["spread", "line"]
    for (kind, path), one in zip(paths, it["distribution"]["arms"], strict=True):
        places = [tuple(map(float, place.split())) for place in path.rstrip("Z").split("L")]
        assert (places[0], places[-1]) == ((0, 100), (100, 100))
        assert path.endswith("Z") == (kind == "spread")
        # The highest bin is drawn highest.
        highest = min(places, key=lambda place: place[1])[0]
        assert highest == pytest.approx(100 * int(np.argmax(one["counts"])) / 20)
    for arm, tone in charts.distribution_tones(it).items():
        assert (tone == "ref") == (arm == "scratch")


def test_a_map_without_classes_tells_scores_and_no_mistakes() -> None:
    points = [
        MapPoint(0, 0, "cat", None, "test", None, "one", "share in COCO mAP 31.2 %"),
        MapPoint(1, 1, "", None, "train", None, "two"),
    ]
    drawn = charts.embedding(points, ["cat"], [None, None], 10, classified=False)
    text = str(drawn.markup)
    assert "named wrongly" not in text
    assert "true:" not in text
    assert text.count('class="o k-0"') == 1
    assert text.count('class="o open k-right"') == 1
    assert "share in COCO m" in text
    many = charts.embedding(points, [f"{at}" for at in range(40)], [None, None], 10, classified=False)
    assert many.legend == [("k-right", "test item")]


def test_a_sparkline_ends_at_its_newest_value() -> None:
    root = parsed(charts.sparkline([0.1, 0.3, 0.2], "three results"))
    assert root.get("aria-label") == "three results"
    dot = root.find("circle")
    assert dot is not None
    assert dot.get("cx") == "100%"
    assert 30 < float(str(dot.get("cy")).rstrip("%")) < 70
