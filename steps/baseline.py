"""baseline: what simple methods reach on the same splits, how well features suit, which labels look wrong."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from steps import answers, artifacts, classical, data, entry, ledger, metrics, params, tasks
from steps.classical import Baseline, Sides
from steps.errors import DataError
from steps.kinds import KINDS, SHARE
from steps.params import BaselineSettings
from steps.scans import Rule

ABOUT = {
    "majority": "the training split's most frequent class, always",
    "pixels_logistic": "logistic regression on 16 x 16 pixels",
    "tfidf_logistic": "logistic regression on TF-IDF of words and pairs of words",
    "features_knn": "nearest neighbours on features of the pretrained backbone",
    "features_logistic": "logistic regression on features of the pretrained backbone",
    "random_knn": "nearest neighbours on features of the same backbone with random weights",
    "random_logistic": "logistic regression on features of the same backbone with random weights",
    "pretrained": "features of the pretrained backbone",
    "random": "features of the same backbone with random weights",
    "pixels": "16 x 16 pixels",
    "tfidf": "TF-IDF of words and pairs of words, its leading 64 components",
}
# The map: rows at most, components that t-SNE starts from, rows below which it makes no sense, its steps.
MOST_POINTS, COMPONENTS, FEWEST_POINTS, STEPS = 1500, 50, 30, 500
PERPLEXITY, SEED = 30.0, 0
# Suspicious labels: components of the features, and how many are told at most.
SUSPECT_COMPONENTS, MOST_SUSPECTS = 64, 50
OF_SUSPECTS = ("id", "split", "label", "suggested", "confidence")


def baseline(experiment: str) -> None:
    """Write `work/<experiment>/baseline/`: predictions, the ranking of features, a map, suspicious labels.

    Raises:
        UserError: a step before it has not run.
        DataError: an image cannot be read.
    """
    settings = params.read_settings(BaselineSettings, artifacts.settings_file(experiment, "baseline"))
    rows = data.read_split(experiment)
    if not KINDS[settings.task].classified:
        of_targets(experiment, settings, rows)
        return
    classes = data.classes_of(rows)
    used = rows[rows["split"] != ""].reset_index(drop=True)
    labels = data.label_indices(used["label"], classes)
    # How sums are split among threads changes their last digits, and files have to be the same whatever their
    # number. Only libraries that are loaded can be limited.
    import sklearn.manifold  # noqa: F401

    with threadpool_limits(limits=1), artifacts.new_folder(artifacts.baseline_dir(experiment)) as folder:
        sources = read_sources(experiment, settings, used)
        found = fit_all(sources, used, labels, len(classes))
        write_predictions(found, used, classes, folder / "predictions.parquet")
        about = {
            "baselines": [
                {"name": name, "about": ABOUT[name], "chosen": one.chosen} for name, one in found.items()
            ],
            "ranking": rank(sources, used, labels, len(classes), settings.evaluation.confidence),
        }
        artifacts.write_json(folder / "baseline.json", about)
        write(draw_map(sources["features"], used), folder / "map.parquet")
        doubted = suspects(sources["features"], used, labels, classes)
        write(doubted, folder / "suspects.parquet")
        record(experiment, settings, used, list(found))
    entry.say(summary(found, labels[(used["split"] == "test").to_numpy()], settings, len(doubted)))


# --------------------------------------------------------------------------------- tasks without classes


def of_targets(experiment: str, settings: BaselineSettings, rows: pd.DataFrame) -> None:
    """The same folder for a task whose targets are no classes: its own baselines, and the map.

    There are no labels that features could suit, or that could be doubted: the ranking and the table of
    suspicious labels are empty.
    """
    task = tasks.get(settings.task)
    used, classes = rows[rows["split"] != ""].reset_index(drop=True), task.classes(rows)
    test = used[used["split"] == "test"]
    features = data.read_features(artifacts.features_dir(experiment), used["id"])
    import sklearn.manifold  # noqa: F401

    with threadpool_limits(limits=1), artifacts.new_folder(artifacts.baseline_dir(experiment)) as folder:
        pretrained = artifacts.pretrained_dir(settings.model.pretrained)
        found = task.baselines(used, classes, artifacts.data_dir(experiment), settings.model, pretrained)
        told = {name: answers.columns(task, test, one.said, classes) for name, one in found.items()}
        write_answers(told, test["id"], KINDS[task.name].metrics, folder / "predictions.parquet")
        about = [{"name": name, "about": one.about, "chosen": {}} for name, one in found.items()]
        artifacts.write_json(folder / "baseline.json", {"baselines": about, "ranking": []})
        write(draw_map(features, used), folder / "map.parquet")
        write(pd.DataFrame(columns=list(OF_SUSPECTS)), folder / "suspects.parquet")
        record(experiment, settings, used, list(found))
    metric = settings.evaluation.metric
    values = {name: float(np.mean(columns[f"{SHARE}{metric}"])) for name, columns in told.items()}
    said = ", ".join(f"{name} {metrics.figure(metric, value)}" for name, value in values.items())
    entry.say(f"baselines, {metrics.SHOWN[metric]} on {len(test)} test items: {said or 'none'}")


def write_answers(
    told: dict[str, dict[str, Any]], ids: pd.Series, names: tuple[str, ...], path: Path
) -> None:
    """A row for each baseline and test sample: id, baseline, predicted, and its share in every metric."""
    types = {"id": pa.string(), "baseline": pa.string(), "predicted": pa.string()}
    schema = pa.schema(types | {f"{SHARE}{name}": pa.float64() for name in names})
    tables = [
        pa.table(
            {
                "id": list(ids),
                "baseline": [name] * len(ids),
                **{key: list(one) for key, one in columns.items()},
            },
            schema,
        )
        for name, columns in told.items()
    ]
    pq.write_table(pa.concat_tables(tables) if tables else schema.empty_table(), path, compression="zstd")


# ------------------------------------------------------------------------------------------- what there is


def read_sources(experiment: str, settings: BaselineSettings, used: pd.DataFrame) -> dict[str, Any]:
    """What baselines work on, by name, a row for each used sample: features, and pixels or texts.

    Raises:
        DataError: an image cannot be read.
    """
    folder = artifacts.features_dir(experiment)
    found: dict[str, Any] = {
        "features": data.read_features(folder, used["id"]),
    }
    # embed writes its folder as a whole: where there are none, there is no such network, as of a SavedModel.
    if (folder / data.RANDOM_FEATURES).exists():
        found["random"] = data.read_features(folder, used["id"], data.RANDOM_FEATURES)
    if KINDS[settings.task].content == "text":
        # Of two texts the words of both.
        texts = used["text"].str.cat(used["pair"].fillna(""), sep=" ").str.strip()
        return found | {
            "texts": (texts if used["pair"].notna().any() else used["text"]).to_numpy(dtype=object)
        }
    files = [artifacts.data_dir(experiment) / str(path) for path in used["path"]]
    try:
        return found | {"pixels": classical.pixels(files, Rule.of(settings.model))}
    except OSError as error:
        raise DataError(f"{experiment}: an image cannot be read: {error}; run ingest and validate") from None


def sides_of(source: NDArray[Any], split: pd.Series) -> Sides:
    """The rows of each split; texts become TF-IDF with the words of train."""
    parts = [source[(split == side).to_numpy()] for side in data.SPLITS]
    return Sides(*(classical.tf_idf(*(part.tolist() for part in parts)) if is_text(source) else parts))


def is_text(source: NDArray[Any]) -> bool:
    """Whether a source holds texts, not numbers."""
    return source.dtype == object


# --------------------------------------------------------------------------------------------- predictions


def fit_all(
    sources: dict[str, Any], used: pd.DataFrame, labels: NDArray[np.int64], classes: int
) -> dict[str, Baseline]:
    """Every baseline's predictions of the test split, by its name.

    Args:
        sources: as `read_sources` gives them.
        used: their rows.
        labels: class of each row.
        classes: how many there are.
    """
    train, validation, test = (labels[(used["split"] == side).to_numpy()] for side in data.SPLITS)
    found = {"majority": classical.majority(train, len(test), classes)}
    for name, source in sources.items():
        sides = sides_of(source, used["split"])
        if name in ("pixels", "texts"):
            kind = "pixels" if name == "pixels" else "tfidf"
            found[f"{kind}_logistic"] = classical.logistic(sides, train, validation, classes)
            continue
        found[f"{name}_knn"] = classical.neighbours(sides, train, validation, classes)
        found[f"{name}_logistic"] = classical.logistic(sides, train, validation, classes)
    return {name: found[name] for name in ABOUT if name in found}


def write_predictions(found: dict[str, Baseline], used: pd.DataFrame, classes: list[str], path: Path) -> None:
    """A row for each baseline and test sample: id, baseline, label, predicted, probabilities."""
    test = used[used["split"] == "test"]
    tables = [
        pa.table(
            {
                "id": pa.array(test["id"], pa.string()),
                "baseline": pa.array([name] * len(test), pa.string()),
                "label": pa.array(test["label"], pa.string()),
                "predicted": pa.array([classes[at] for at in one.probabilities.argmax(axis=1)], pa.string()),
                "probabilities": pa.array(list(one.probabilities.astype(np.float32)), pa.list_(pa.float32())),
            }
        )
        for name, one in found.items()
    ]
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


def record(experiment: str, settings: BaselineSettings, used: pd.DataFrame, names: list[str]) -> None:
    """Write down that the test split was looked at, once for each baseline."""
    tested = ledger.test_sha256(used[used["split"] == "test"])
    digest = artifacts.sha256_json(settings.model_dump(mode="json"))
    ledger.record(experiment, tested, [f"baseline/{name}/{digest}" for name in names])


# ------------------------------------------------------------------------------------------------- ranking


def rank(
    sources: dict[str, Any],
    used: pd.DataFrame,
    labels: NDArray[np.int64],
    classes: int,
    confidence: float,
) -> list[dict[str, Any]]:
    """How well each kind of features suits the labels of train and validation; the test split has no say."""
    seen = used["split"].isin(["train", "validation"]).to_numpy()
    found = []
    for source, name in {
        "features": "pretrained",
        "random": "random",
        "pixels": "pixels",
        "texts": "tfidf",
    }.items():
        if source not in sources:
            continue
        rows = sources[source][seen]
        matrix = classical.dense(classical.tf_idf(rows.tolist())[0]) if is_text(rows) else rows
        one = classical.transferability_of(matrix, labels[seen], classes, confidence)
        found.append({"name": name, "about": ABOUT[name], **one.as_json()})
    return found


# -------------------------------------------------------------------------------------- map and suspicions


def draw_map(features: NDArray[np.float32], used: pd.DataFrame) -> pd.DataFrame:
    """Samples as points of a plane that lie near where their features do: id, x and y, within -1 to 1.

    t-SNE (van der Maaten and Hinton, Visualizing Data using t-SNE, 2008) of 50 principal components; the
    first two of these where there are few rows. Of too many rows the test split comes first.
    """
    kept = chosen_rows(used["split"])
    reduced = classical.principal(features[kept], COMPONENTS)
    plane = np.zeros((len(kept), 2))
    if len(kept) < FEWEST_POINTS or reduced.shape[1] < 2:
        plane[:, : reduced.shape[1]] = reduced[:, :2]
    else:
        from sklearn.manifold import TSNE

        perplexity = min(PERPLEXITY, (len(kept) - 1) / 3)
        found = TSNE(2, perplexity=perplexity, max_iter=STEPS, init="pca", random_state=SEED)
        plane[:] = found.fit_transform(reduced)
    plane /= max(float(np.abs(plane).max()), float(np.finfo(np.float32).tiny))
    return pd.DataFrame({"id": used["id"].to_numpy()[kept], "x": plane[:, 0], "y": plane[:, 1]}).round(4)


def chosen_rows(split: pd.Series, most: int = MOST_POINTS) -> NDArray[np.intp]:
    """Places of so many rows at most, evenly spread: of the test split first, then of the others."""
    is_test = (split == "test").to_numpy()
    test, others = np.flatnonzero(is_test), np.flatnonzero(~is_test)
    test = _spread(test, most)
    return np.concatenate([test, _spread(others, most - len(test))])


def _spread(places: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    if len(places) <= most:
        return places
    return places[(np.arange(most) * len(places)) // max(most, 1)]


def suspects(
    features: NDArray[np.float32], used: pd.DataFrame, labels: NDArray[np.int64], classes: list[str]
) -> pd.DataFrame:
    """Labels that are likely wrong, the likeliest first: id, split, label, suggested, confidence.

    Confident learning (Northcutt, Jiang and Chuang, 2021) on cross-validated probabilities of logistic
    regression: a label is suspicious where the others of its class make another class likelier.

    Args:
        features: shape (rows, features).
        used: id, split and label of each row.
        labels: class of each row.
        classes: their names.
    """
    from cleanlab.filter import find_label_issues

    # Classes that no used row has cannot be suggested.
    present, places = np.unique(labels, return_inverse=True)
    said = classical.cross_validated(features, places, len(present), SUSPECT_COMPONENTS)
    # It warns of small classes, in which nothing may be found: that is nothing to be told on every run.
    with warnings.catch_warnings(action="ignore"):
        ranked = find_label_issues(places, said, return_indices_ranked_by="self_confidence", n_jobs=1)
    # A class of one row is never predicted for it: that says nothing against its label.
    known = [at for at in ranked if said[at].argmax() != places[at] and (places == places[at]).sum() > 1]
    kept = known[:MOST_SUSPECTS]
    rows = used.iloc[kept]
    return pd.DataFrame(
        {
            "id": rows["id"].to_numpy(dtype=object),
            "split": rows["split"].to_numpy(dtype=object),
            "label": rows["label"].to_numpy(dtype=object),
            "suggested": np.array([classes[present[said[at].argmax()]] for at in kept], dtype=object),
            "confidence": np.array([said[at].max() for at in kept], dtype=np.float64).round(6),
        }
    )


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write texts and numbers as Parquet; equal tables are equal bytes, empty ones have their types too."""
    numbers = ("x", "y", "confidence")
    fields = [(name, pa.float64() if name in numbers else pa.string()) for name in frame.columns]
    table = pa.Table.from_pandas(frame, pa.schema(fields), preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), path, compression="zstd")


def summary(
    found: dict[str, Baseline], truth: NDArray[np.int64], settings: BaselineSettings, doubted: int
) -> str:
    """The best baseline on the test split, and how many labels look wrong."""
    metric = settings.evaluation.metric
    scores = {name: metrics.score(metric, truth, one.probabilities) for name, one in found.items()}
    sign = 1 if metrics.HIGHER_IS_BETTER[metric] else -1
    best = max(scores, key=lambda name: sign * scores[name])
    return (
        f"best of {len(found)} baselines: {ABOUT[best]}, {metrics.SHOWN[metric]} "
        f"{metrics.figure(metric, scores[best])} on {len(truth)} test items; {doubted} suspicious labels"
    )


def main() -> int:
    """Run `python -m steps.baseline <experiment>`."""
    return entry.run(baseline, "experiment")


if __name__ == "__main__":
    sys.exit(main())
