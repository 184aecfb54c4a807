import io
import warnings
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from steps.report import plots

WORDS = [
    "sport",
    "$\\nope{$",
    "日本語",
    "a very long label never ends",
    "two\nlines",
    "\x00",
    "<b>",
]


def comparison(arms: int, classes: list[str], metric: str = "accuracy") -> dict[str, Any]:
    names = ["scratch", *(f"arm_{at}" for at in range(1, arms))]
    return {
        "task": "image-classification",
        "metric": {"name": metric, "higher_is_better": metric != "log_loss"},
        "reference": "scratch",
        "target": 0.6,
        "classes": classes,
        "margin": 0.01,
        "best_arm": names[-1],
        "verdict": {"arm": names[-1]},
        "arms": [
            {
                "arm": name,
                "validation": {"mean": at / arms},
                "improvement": {"value": 0.1 * at, "ci_low": 0.1 * at - 0.05, "ci_high": 0.1 * at + 0.05}
                if at
                else None,
            }
            for at, name in enumerate(names)
        ],
        "efficiency": {
            "labels": [10, 100],
            "arms": [
                {
                    "arm": name,
                    "points": [{"labels": n, "mean": 0.5, "ci_low": 0.4, "ci_high": 0.6} for n in (10, 100)],
                }
                for name in names[:3]
            ],
        },
    }


def curves_of(about: dict[str, Any], lengths: tuple[int, ...]) -> dict[str, list[list[float]]]:
    rng = np.random.default_rng(0)
    return {one["arm"]: [rng.random(length).tolist() for length in lengths] for one in about["arms"]}


def counts_of(classes: int) -> NDArray[np.float64]:
    return np.random.default_rng(1).integers(0, 9, (classes, classes)).astype(np.float64)


def draw() -> dict[str, bytes]:
    about = comparison(3, list("abc"))
    return plots.draw(about, curves_of(about, (5, 5)), counts_of(3))


def curves(arms: int, lengths: tuple[int, ...] = (5, 5)) -> bytes:
    """Learning curves in one dress; a warning is a failure."""
    about, dress = comparison(arms, list("ab")), plots.DRESSES["light"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return plots.png(lambda: plots.learning_curves(about, curves_of(about, lengths), dress), dress)


def confusion(labels: list[str]) -> bytes:
    """A confusion matrix in one dress; a warning is a failure."""
    dress = plots.DRESSES["dark"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return plots.png(lambda: plots.confusion(counts_of(len(labels)), labels, dress), dress)


def size(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


def test_the_same_numbers_give_the_same_bytes_whatever_the_user_set() -> None:
    first = draw()
    with mpl.rc_context({"lines.linestyle": ":", "axes.ymargin": 0.4, "image.origin": "lower"}):
        assert draw() == first


def test_all_plots_are_drawn_on_light_paper() -> None:
    drawn = draw()
    assert set(drawn) == {"learning_curves", "confusion", "differences", "efficiency"}
    for content in drawn.values():
        assert np.asarray(Image.open(io.BytesIO(content)).convert("L"))[0, 0] > 200


def test_what_there_is_not_is_not_drawn() -> None:
    about = comparison(1, list("ab")) | {"efficiency": None}
    assert set(plots.draw(about, curves_of(about, (5,)), counts_of(2))) == {"learning_curves", "confusion"}
    assert set(plots.draw(about, curves_of(about, (5,)), None)) == {"learning_curves"}


@pytest.mark.parametrize("metric", ["accuracy", "log_loss", "perplexity"])
@pytest.mark.parametrize("name", ["differences", "efficiency"])
def test_differences_and_efficiency_of_any_metric(metric: str, name: str) -> None:
    about, dress = comparison(30, list("ab"), metric), plots.DRESSES["dark"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = plots.png(lambda: getattr(plots, name)(about, dress), dress)
    assert size(content)[0] == 1280


def test_labels_of_any_kind_can_be_drawn() -> None:
    confusion(WORDS)


def test_labels_are_short_plain_and_in_the_fonts_signs() -> None:
    shown = [plots.drawable(label, at) for at, label in enumerate(WORDS)]
    assert shown == ["sport", "$\\nope{$", "#3", "a very long lab…", "two lines", "#6", "<b>"]


@pytest.mark.parametrize("arms", [1, 2, 25])
def test_any_number_of_arms(arms: int) -> None:
    width, height = size(curves(arms))
    assert 1.0 < width / height < 2.2


def test_colours_go_to_the_arms_that_matter() -> None:
    dress = plots.DRESSES["light"]
    about = comparison(25, ["a", "b"])
    names = [one["arm"] for one in about["arms"]]
    colours = plots.colours_of(about, names, dress)
    # The reference, the judged arm, and the best five of the others on validation.
    assert list(colours) == ["scratch", *(f"arm_{at}" for at in range(19, 24)), "arm_24"]
    assert len(set(colours.values())) == len(colours)
    lower = plots.colours_of(comparison(25, ["a", "b"], "log_loss"), names, dress)
    assert list(lower) == ["scratch", *(f"arm_{at}" for at in range(1, 6)), "arm_24"]


def test_one_epoch_and_seeds_of_unequal_length() -> None:
    curves(2, lengths=(1,))
    curves(2, lengths=(1, 6, 3))


@pytest.mark.parametrize("classes", [2, 30, 100])
def test_any_number_of_classes(classes: int) -> None:
    width, height = size(confusion([f"class {at}" for at in range(classes)]))
    assert width == height
    assert width <= 1600
