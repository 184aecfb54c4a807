"""What the report shows of the samples: the map of embeddings, mistakes or cases, suspicious labels."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageStat

from steps import artifacts, data, metrics, scans, slices, tasks
from steps.errors import DataError
from steps.report import wording
from steps.report.sheet import MapPoint, Mistake, Suspect, Told
from steps.results import Results

# Sides of thumbnails, in pixels: in a gallery, and in the map where there are hundreds.
LARGE, SMALL = 96, 40
# Characters of a text that a reader of the map sees.
EXCERPT = 160
# Test items that are shown of those that score worst, and of those that score as most do.
WORST = TYPICAL = 6
# Of the order among equals.
SEED = 6
# Reading more images than these for a slice takes longer than all the rest.
MEASURED = 2000


@dataclass(frozen=True)
class Samples:
    """The samples of an experiment, by id, as a reader sees them."""

    experiment: str

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Accepted samples with their split, by id."""
        return data.read_split(self.experiment).set_index("id")

    def thumbnail(self, name: str, side: int) -> bytes | None:
        """A small WebP picture of an image; None of a text.

        Raises:
            DataError: the image cannot be read.
        """
        path = self._path(name)
        if path is None:
            return None
        small = _shown(path)
        if max(small.size) < side:  # a scan of eight pixels would be a dot
            whole = side // max(small.size)
            small = small.resize((small.width * whole, small.height * whole), Image.Resampling.NEAREST)
        small.thumbnail((side, side))
        stream = io.BytesIO()
        small.save(stream, "WEBP", quality=60, method=4)
        return stream.getvalue()

    def text(self, name: str) -> str:
        """The beginning of a text, on one line, and of its pair where it has one; of an image its id."""
        row = self.rows.loc[name]
        if not isinstance(row["text"], str):
            return name
        texts = [one for one in (row["text"], row.get("pair")) if isinstance(one, str)]
        return " ¦ ".join(_beginning(one, EXCERPT // len(texts)) for one in texts)

    def brightness(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Mean grey value of each image, 0 black to 255 white."""
        found = []
        for name in names:
            path = self._path(name)
            assert path is not None, name
            found.append(ImageStat.Stat(_shown(path).convert("L")).mean[0])
        return np.asarray(found, dtype=np.float64)

    def _path(self, name: str) -> Path | None:
        path = self.rows.loc[name, "path"]
        return artifacts.data_dir(self.experiment) / path if isinstance(path, str) else None


def _beginning(text: str, most: int) -> str:
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _shown(path: Path) -> Image.Image:
    try:
        return scans.picture(path)
    except (OSError, DataError) as error:
        raise DataError(f"{path} cannot be read: {error}; run `ingest` and `validate` again") from None


def points(results: Results, samples: Samples, arm: str, at: int) -> list[MapPoint]:
    """Every sample of the map, with what one run of an arm said of it where it is in the test split."""
    places = pd.read_parquet(artifacts.baseline_dir(results.experiment) / "map.parquet")
    predicted: dict[str, str] = {}
    scored: dict[str, str] = {}
    if results.kind.classified:
        said = results.crossed.probabilities[arm][at].argmax(axis=1).tolist()
        predicted = {
            name: results.classes[index] for name, index in zip(results.crossed.ids, said, strict=True)
        }
    else:
        scores = results.crossed.scores(arm, results.metric)[at].tolist()
        scored = {
            name: share_in_words(results.metric, score)
            for name, score in zip(results.crossed.ids, scores, strict=True)
        }
    found = []
    for name, x, y in zip(places["id"], places["x"], places["y"], strict=True):
        row = samples.rows.loc[name]
        label = str(row["label"]) if isinstance(row["label"], str) else ""
        found.append(
            MapPoint(
                float(x), float(y), label, predicted.get(name), str(row["split"]),
                samples.thumbnail(name, SMALL), samples.text(name), scored.get(name, ""),
            )
        )  # fmt: skip
    return found


def share_in_words(metric: str, share: float) -> str:
    """What one item has of a metric, e.g. `SQuAD F1 40.0 %`."""
    what = metrics.SHOWN[metric] if metric in slices.MEANS else f"share in {metrics.SHOWN[metric]}"
    return f"{what} {wording.level(share, metric)}{wording.unit(metric)}"


def cases(results: Results, samples: Samples, arm: str, at: int) -> list[Told]:
    """The test items that score worst with one run of an arm, and typical ones; none of a classifier.

    Raises:
        DataError: a sample cannot be read.
    """
    if results.kind.classified:
        return []
    run, task = results.runs[arm][at], tasks.get(results.settings.task)
    scores = results.crossed.scores(arm, results.metric)[at]
    path = artifacts.evaluation_dir(results.experiment) / "predictions.parquet"
    told = data.read_made(path, "evaluate")
    mine = (told["arm"] == arm) & (told["resample"] == run.resample) & (told["seed"] == run.seed)
    said = dict(zip(told["id"][mine], told["predicted"][mine], strict=True))
    worst, typical = chosen(scores, metrics.HIGHER_IS_BETTER[results.metric])
    names = [results.crossed.ids[place] for place in worst + typical]
    rows = samples.rows.loc[names].reset_index()
    found = []
    for place, name, row in zip(worst + typical, names, rows.itertuples(), strict=True):
        case = task.case(row, json.loads(said[name]), artifacts.data_dir(results.experiment))
        found.append(
            Told(
                name, place in worst, share_in_words(results.metric, float(scores[place])),
                case.truth, case.predicted, case.pictures, case.marks,
            )
        )  # fmt: skip
    return found


def chosen(scores: NDArray[np.float64], higher_is_better: bool) -> tuple[list[int], list[int]]:
    """The places of the items that score worst, the worst first, and of those nearest to the median.

    Equals are told apart by an order drawn once and for all, for the first ones may all be of one kind.

    Args:
        scores: shape (items,).
        higher_is_better: of the scores.
    """
    order = np.random.default_rng(SEED).permutation(len(scores))
    drawn = scores[order]
    worst = order[np.argsort(drawn if higher_is_better else -drawn, kind="stable")][:WORST].tolist()
    near = order[np.argsort(np.abs(drawn - np.median(scores)), kind="stable")].tolist()
    return worst, [place for place in near if place not in worst][:TYPICAL]


def mistakes(results: Results, samples: Samples) -> list[Mistake]:
    """The most confident mistakes that evaluate found."""
    rows = pd.read_parquet(artifacts.evaluation_dir(results.experiment) / "mistakes.parquet")
    return [
        Mistake(
            row["id"], row["label"], row["predicted"], float(row["confidence"]),
            samples.thumbnail(row["id"], LARGE),
            [(str(word), float(weight)) for word, weight in json.loads(row["tokens"])],
            samples.text(row["id"]),
        )
        for row in rows.to_dict("records")
    ]  # fmt: skip


def suspects(results: Results, samples: Samples) -> list[Suspect]:
    """The labels that baseline doubts most."""
    rows = pd.read_parquet(artifacts.baseline_dir(results.experiment) / "suspects.parquet")
    return [
        Suspect(
            row["id"], row["split"], row["label"], row["suggested"], float(row["confidence"]),
            samples.thumbnail(row["id"], LARGE), samples.text(row["id"]),
        )
        for row in rows.to_dict("records")
    ]  # fmt: skip


def near_duplicates(samples: Samples) -> list[tuple[str, str]]:
    """Samples with the one before them that they nearly repeat, among those in a split."""
    rows = samples.rows
    of = rows.loc[(rows["split"] != "") & rows["near_duplicate_of"].notna(), "near_duplicate_of"]
    return [(str(name), str(other)) for name, other in of.items()]


def facts(samples: Samples, ids: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """By what the test items may be told apart: for each name a value of every item, numbers or texts."""
    rows = samples.rows.loc[list(ids), ["text", "size", "group"]]
    found: dict[str, NDArray[np.generic]] = {}
    if rows["text"].notna().all():
        found["length in characters"] = rows["text"].str.len().to_numpy(dtype=np.float64)
    else:
        found["file size in bytes"] = rows["size"].to_numpy(dtype=np.float64)
        if len(ids) <= MEASURED:
            found["brightness, 0 to 255"] = samples.brightness(ids)
    groups = rows["group"].nunique()
    if 1 < groups <= 20:
        found["group"] = rows["group"].fillna("none").to_numpy(dtype=object)
    return found
