from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score

from steps import artifacts, raw, tasks
from steps.layouts import PackageData, TableData
from steps.tasks import of_labels
from tests.tasks import clone

Given = tuple[NDArray[np.bool_], NDArray[np.float64]]


@st.composite
def outputs(draw: st.DrawFn) -> Given:
    """Labels and probabilities with many ties."""
    items, classes = draw(st.integers(2, 12)), draw(st.integers(1, 4))
    truth = draw(st.lists(st.booleans(), min_size=items * classes, max_size=items * classes))
    said = draw(
        st.lists(
            st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]), min_size=items * classes, max_size=items * classes
        )
    )
    return np.array(truth).reshape(items, classes), np.array(said).reshape(items, classes)


def mean_average_precision(truth: NDArray[np.bool_], said: NDArray[np.float64]) -> float:
    """scikit-learn's, over the labels that an item has."""
    known = [at for at in range(truth.shape[1]) if truth[:, at].any()]
    return (
        float(np.mean([average_precision_score(truth[:, at], said[:, at]) for at in known])) if known else 0.0
    )


def micro_f1(truth: NDArray[np.bool_], said: NDArray[np.float64]) -> float:
    return float(f1_score(truth.ravel(), (said >= 0.5).ravel(), zero_division=0))


@settings(max_examples=150, deadline=None)
@given(outputs())
def test_metrics_agree_with_scikit_learn_and_their_shares_with_leaving_out(made: Given) -> None:
    truth, said = made
    for found, reference in (
        (of_labels.average_precision_shares(truth, said), mean_average_precision),
        (of_labels.micro_f1_shares(truth, said >= 0.5), micro_f1),
    ):
        assert found.mean() == pytest.approx(reference(truth, said))
        rest = [reference(np.delete(truth, at, 0), np.delete(said, at, 0)) for at in range(len(truth))]
        expected = reference(truth, said) + (len(truth) - 1) * (np.mean(rest) - np.array(rest))
        np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(("dataset", "labels"), [("digit-groups", 10), ("bbc-news-mixed", 5)])
def test_composed_data_use_everything_once_and_are_the_same_every_time(dataset: str, labels: int) -> None:
    def read() -> list[raw.RawSample]:
        data = PackageData(source="package", dataset=dataset, path="requirements.lock")
        return list(raw.read(data, "image-multilabel", Path("nowhere")).samples)

    first = read()
    assert first == read()
    assert len(first) == 400
    assert len({one.content for one in first}) == 400
    assert {label for one in first for label in one.target} == {name for one in first for name in one.target}
    assert len({label for one in first for label in one.target}) == labels
    assert all(one.label == min(one.target) for one in first)


def test_a_table_gives_lists_of_labels(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("body,topics\nfirst,b; a;b\nsecond,\n", "utf-8")
    data = TableData(source="table", path=str(tmp_path / "t.csv"), text="body", labels="topics")
    found = list(raw.read(data, "text-multilabel", tmp_path / "u").samples)
    assert [(one.target, one.label) for one in found] == [(["a", "b"], "a"), ([], "none")]


def texts(root: Path) -> dict[str, Any]:
    """A table of sentences about one or two topics."""
    from tests import twin

    twin.write_topics(root / "raw/topics.csv")
    lines = (root / "raw/topics.csv").read_text().splitlines()[1:]
    pairs = [
        (first.rsplit(",", 1), second.rsplit(",", 1)) for first, second in zip(lines, lines[7:], strict=False)
    ]
    rows = [f"{a[0]} {b[0]},{';'.join(sorted({a[1], b[1]}))}" for a, b in pairs]
    (root / "raw/many.csv").write_text("\n".join(["body,topics", *rows]) + "\n")
    return {
        "task": "text-multilabel",
        "data": {"source": "table", "path": "raw/many.csv", "text": "body", "labels": "topics"},
        "model": {"pretrained": "toy-text", "max_tokens": 24},
        "curve": {"labels": [10], "arms": ["full"], "seeds": [1]},
    }


@pytest.mark.flow
def test_texts_with_several_labels_from_a_table_to_a_registered_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clone.lay_out(tmp_path, texts(tmp_path))
    found = clone.run()
    assert found["metric"]["name"] == "mean_average_precision"
    assert {one["arm"] for one in found["arms"]} == {"scratch", "frozen", "full"}
    assert [one["name"] for one in found["baselines"]] == ["frequencies"]
    said = clone.predicted([{"text": "rose tulip ship crane"}, {"text": "oven"}])
    assert all(set(one) == {"labels", "probabilities"} for one in said)
    assert all(set(one["probabilities"]) == {"garden", "harbour", "kitchen"} for one in said)


@pytest.mark.flow
def test_images_with_several_labels_from_a_folder_to_a_registered_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import twin

    monkeypatch.chdir(tmp_path)
    twin.draw_shapes(tmp_path / "raw/shapes")
    files = sorted((tmp_path / "raw/shapes").rglob("*.png"))
    rows = [f"{path.relative_to(tmp_path / 'raw')},{path.parent.name}" for path in files]
    (tmp_path / "raw/table.csv").write_text("\n".join(["file,kinds", *rows]) + "\n")
    clone.lay_out(
        tmp_path,
        {
            "task": "image-multilabel",
            "data": {
                "source": "table", "path": "raw", "table": "table.csv", "image": "file", "labels": "kinds"
            },
            "model": {"pretrained": "toy-vision", "image_size": 32},
        },
    )  # fmt: skip
    clone.run()
    row = next(clone.test_rows().itertuples())
    path = artifacts.data_dir(clone.NAME) / str(row.path)
    (said,) = clone.predicted([{"image": base64.b64encode(path.read_bytes()).decode()}])
    assert set(said["probabilities"]) == {"circle", "square", "triangle"}
    case = tasks.get("image-multilabel").case(row, said, artifacts.data_dir(clone.NAME))
    assert case.truth in ("circle", "square", "triangle")
    assert case.pictures[0][1][:4] == b"RIFF"
