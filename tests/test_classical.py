from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from steps import classical, transferability
from steps.classical import Sides

Labels = NDArray[np.int64]


@pytest.fixture(autouse=True)
def no_warnings() -> None:
    warnings.simplefilter("error")


def made(
    rows: tuple[int, int, int], width: int, classes: int, signal: float = 0.5, seed: int = 0
) -> tuple[Sides, list[Labels]]:
    """Three splits of features that tell the classes, of very different size and offset."""
    random = np.random.default_rng(seed)
    means = signal * random.normal(size=(classes, width))
    labels = [np.arange(count) % classes for count in rows]
    scale, offset = random.exponential(1, width) * 100, random.normal(size=width)
    found = [((random.normal(size=(len(one), width)) + means[one]) * scale + offset) for one in labels]
    return Sides(*(one.astype(np.float32) for one in found)), labels


def test_the_majority_has_the_shares_of_train() -> None:
    found = classical.majority(np.array([2, 2, 2, 0, 1]), 4, 3)
    assert found.probabilities.tolist() == [[2 / 8, 2 / 8, 4 / 8]] * 4
    assert (classical.majority(np.array([1, 1]), 1, 3).probabilities > 0).all()


@pytest.mark.parametrize("width", [5, 300])
def test_logistic_regression_is_scikit_learns_on_standardised_features(width: int) -> None:
    """More features than rows are turned into the rows' span first, which changes nothing."""
    sides, (train, validation, _) = made((80, 60, 50), width, 4)
    found = classical.logistic(sides, train, validation, 4)
    losses = {}
    for strength in classical.STRENGTHS:
        scaler = StandardScaler().fit(sides.train)
        model = LogisticRegression(C=strength / width, tol=1e-8, max_iter=10_000)
        model.fit(scaler.transform(sides.train), train)
        losses[strength] = log_loss(validation, model.predict_proba(scaler.transform(sides.validation)))
        if found.chosen == {"C": strength}:
            expected = model.predict_proba(scaler.transform(sides.test))
            assert np.allclose(found.probabilities, expected, atol=0.01)
    assert found.chosen == {"C": min(losses, key=losses.__getitem__)}


def test_neighbours_are_scikit_learns() -> None:
    sides, (train, validation, test) = made((80, 60, 50), 6, 4)
    found = classical.neighbours(sides, train, validation, 4)
    scaler = StandardScaler().fit(sides.train)
    losses, said = {}, {}
    for number in classical.NEIGHBOURS:
        model = KNeighborsClassifier(number).fit(scaler.transform(sides.train), train)
        looked, asked = (
            (number * model.predict_proba(scaler.transform(rows)) + 1 / 4) / (number + 1)
            for rows in (sides.validation, sides.test)
        )
        losses[number], said[number] = log_loss(validation, looked), asked
    best = min(losses, key=losses.__getitem__)
    assert found.chosen == {"k": best}
    assert np.allclose(found.probabilities, said[best], atol=2e-3)
    assert (found.probabilities.argmax(axis=1) == test).mean() > 0.5


def test_equally_many_votes_go_to_the_nearer_class() -> None:
    votes = classical._votes(np.array([[2, 1], [1, 2]]), 3)
    assert votes.argmax(axis=1).tolist() == [2, 1]
    assert votes.sum(axis=1) == pytest.approx([1, 1])
    assert votes[0] == pytest.approx([1 / 9, 4 / 9, 4 / 9], abs=1e-3)


def test_more_neighbours_than_rows_are_not_asked_for() -> None:
    sides, (train, validation, _) = made((4, 10, 3), 3, 2)
    found = classical.neighbours(sides, train, validation, 2)
    assert found.chosen["k"] in (1, 3)
    assert found.probabilities.shape == (3, 2)


def test_probabilities_are_in_the_order_of_the_classes_also_of_those_nobody_has() -> None:
    sides, (train, validation, test) = made((60, 30, 30), 8, 3, signal=2)
    twice = np.array([0, 2, 4])
    for baseline in (classical.logistic, classical.neighbours):
        found = baseline(sides, twice[train], twice[validation], 6).probabilities
        assert found.shape == (30, 6)
        assert (found.argmax(axis=1) == twice[test]).mean() > 0.9
    # A class that validation or test alone has is one that nobody predicts; a single class is all there is.
    validation[0] = 5
    assert classical.logistic(sides, train, validation, 6).probabilities[:, 3:].max() == 0
    alone = classical.fit(np.zeros((3, 1)), np.ones(3, np.int64), np.zeros((2, 1)), 3, 1.0)
    assert alone.tolist() == [[0, 1, 0]] * 2


def test_features_without_any_content_give_the_classes_shares() -> None:
    nothing = Sides(np.ones((30, 400)), np.ones((10, 400)), np.ones((7, 400)))
    train, validation = np.arange(30) % 3, np.arange(10) % 3
    for baseline in (classical.logistic, classical.neighbours):
        found = baseline(nothing, train, validation, 3).probabilities
        assert np.isfinite(found).all()
    assert classical.logistic(nothing, train, validation, 3).probabilities == pytest.approx(1 / 3, abs=1e-3)
    assert np.isfinite(classical.cross_validated(nothing.train, train, 3)).all()


def test_the_usual_size_takes_seconds_and_gives_the_same_twice() -> None:
    sides, (train, validation, test) = made((100, 100, 805), 1280, 10, signal=0.15)
    started = process_time()
    first = [one(sides, train, validation, 10) for one in (classical.logistic, classical.neighbours)]
    assert process_time() - started < 2
    again = [one(sides, train, validation, 10) for one in (classical.logistic, classical.neighbours)]
    for one, other in zip(first, again, strict=True):
        assert one.chosen == other.chosen
        assert (one.probabilities == other.probabilities).all()
        assert (one.probabilities.argmax(axis=1) == test).mean() > 0.3


# --------------------------------------------------------------------------------------------------- features


def test_pixels_are_small_and_grey_where_all_are(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(values).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([values] * 3, axis=2)).resize((64, 32)).save(tmp_path / "wide.png")
    both = classical.pixels([tmp_path / "grey.png", tmp_path / "wide.png"])
    assert both.shape == (2, 256)
    assert both.dtype == np.float32
    assert both.reshape(2, 16, 16)[0, ::2, ::2] == pytest.approx(values / 255, abs=1e-6)
    red = np.zeros((8, 8, 4), np.uint8)
    red[..., 0], red[:4, :, 3] = 255, 255  # the lower half shows the ground
    Image.fromarray(red).save(tmp_path / "red.png")
    coloured = classical.pixels([tmp_path / "grey.png", tmp_path / "red.png"])
    assert coloured.shape == (2, 768)
    assert coloured[1].reshape(16, 16, 3)[0, 0].tolist() == [1, 0, 0]
    assert coloured[1].reshape(16, 16, 3)[-1, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16"])
def test_images_of_every_mode_are_read(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.full((20, 30), 200, np.uint8)).convert("L")
    kept = Image.fromarray(np.full((20, 30), 200 * 256, np.uint16)) if mode == "I;16" else image.convert(mode)
    path = tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}"
    kept.save(path)
    found = classical.pixels([path])
    assert found.shape[1] in (256, 768)
    assert found.mean() == pytest.approx(200 / 255, abs=0.03)


def test_words_come_from_train_alone() -> None:
    train, other = classical.tf_idf(["the red rose", "the old ship ship"], ["a zebra", "red ship"])
    assert train.shape[1] == other.shape[1] == 10  # five words and five pairs
    assert other[0].nnz == 0
    assert other[1].nnz == 2
    assert np.asarray(train.multiply(train).sum(axis=1)).ravel() == pytest.approx([1, 1])
    # Texts without a word, as in other writing systems or of single letters.
    assert classical.tf_idf(["a", "b"], ["a"])[0].shape == (2, 2)


def test_dense_components_keep_the_distances_of_sparse_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{'rose soil' if at % 2 else 'ship sail'} number {at} {at % 7}x" for at in range(40)]
    matrix = classical.tf_idf(texts)[0]
    full, few = classical.dense(matrix, 100), classical.dense(matrix, 2)
    assert full @ full.T == pytest.approx((matrix @ matrix.T).toarray(), abs=1e-9)
    assert few.shape == (40, 2)
    assert few == pytest.approx(full[:, :2])
    monkeypatch.setattr(classical, "SPAN", 10)
    assert np.abs(classical.dense(matrix, 2)) == pytest.approx(np.abs(few), abs=1e-3)


def test_texts_are_told_apart_by_their_words() -> None:
    texts = [["rose and thorn", "rose and soil", "ship at sea", "ship and sail"]] * 3
    labels = np.array([0, 0, 1, 1])
    found = classical.logistic(Sides(*classical.tf_idf(*texts)), labels, labels, 2)
    assert found.probabilities.argmax(axis=1).tolist() == labels.tolist()
    assert found.probabilities.shape == (4, 2)


def test_many_rows_of_sparse_features_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{'rose soil' if at % 2 else 'ship sail'} number {at}" for at in range(60)]
    labels = np.arange(60) % 2
    sides = Sides(*classical.tf_idf(texts, texts[:20], texts[20:40]))
    turned = classical.logistic(sides, labels, labels[:20], 2)
    monkeypatch.setattr(classical, "SPAN", 10)
    plain = classical.logistic(sides, labels, labels[:20], 2)
    assert plain.chosen == turned.chosen
    assert np.allclose(plain.probabilities, turned.probabilities, atol=0.01)


# ------------------------------------------------------------------------------------------- cross-validation


def test_folds_spread_every_class() -> None:
    labels = np.repeat([0, 1, 2, 3], [50, 23, 4, 1])
    found = classical.folds(labels)
    for label in (0, 1, 2):
        counts = np.bincount(found[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert max(np.bincount(found)) - min(np.bincount(found)) <= 1
    assert (found == classical.folds(labels)).all()


def test_nobody_is_judged_by_a_model_that_saw_it() -> None:
    """Random labels of more features than rows are learnt by heart, and told no better than by chance."""
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(150, 300)), random.integers(0, 3, 150)
    found = classical.cross_validated(features, labels, 3)
    assert found.sum(axis=1) == pytest.approx(1)
    assert 0.15 < (found.argmax(axis=1) == labels).mean() < 0.48
    assert classical.principal(features, 10).shape == (150, 10)


def test_a_class_of_one_row_stops_nothing() -> None:
    sides, (labels, *_) = made((40, 3, 3), 5, 2, signal=2)
    labels[7] = 3
    found = classical.cross_validated(sides.train, labels, 4)
    assert found.shape == (40, 4)
    assert found[7, 3] == 0
    assert np.isfinite(found).all()


def test_principal_components_are_those_of_the_covariance() -> None:
    for rows in (50, 200):
        features = made((rows, 1, 1), 100, 2)[0].train
        found = classical.principal(features, 3)
        standard = StandardScaler().fit_transform(features) / 10
        values = np.linalg.eigvalsh(np.cov(standard, rowvar=False))[::-1]
        assert found.var(axis=0, ddof=1) == pytest.approx(values[:3], rel=1e-4)


def test_transferability_is_all_scores_of_the_same_features() -> None:
    strong, weak = (made((200, 1, 1), 50, 4, signal=signal)[0].train for signal in (0.6, 0.1))
    labels = np.arange(200) % 4
    one, other = (classical.transferability_of(rows, labels, 4, 0.95) for rows in (strong, weak))
    assert one.log_me == transferability.log_me(strong, labels)
    assert one.h_score == transferability.h_score(strong, labels)
    assert one.n_leep == transferability.n_leep(strong, labels)
    assert one.probe.value > other.probe.high
    assert (one.probe.items, one.probe.seeds) == (200, 1)


def test_it_starts_without_torch() -> None:
    code = "import sys; import steps.classical; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
