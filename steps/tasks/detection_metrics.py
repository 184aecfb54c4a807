"""COCO's mean average precision, and each image's share in it. No torch.

Predicted boxes are matched to true ones by pycocotools, the reference implementation (Lin et al., Microsoft
COCO, 2014): areas of all sizes, at most 100 boxes of an image and class. What remains is the average over
recalls, classes and overlaps; it is done here, because it is needed again without each image in turn.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steps.metrics import shares_of

if TYPE_CHECKING:
    from pycocotools.coco import COCO

# The metrics and which of the ten overlaps they are averaged over; the first overlap is 0.5.
OVERLAPS = {"coco_map": slice(None), "coco_map_50": slice(1)}
MOST_BOXES = 100
# All areas, as COCO has it.
AREAS = [0.0, 1e10]
# Numbers worked on at a time: what fits into a processor's cache.
BLOCK = 1 << 16

Floats = NDArray[np.float64]


def read_target(target: str) -> dict[str, Any]:
    """What the column `target` holds."""
    told: dict[str, Any] = json.loads(target)
    return told


def shares(
    truths: Sequence[dict[str, Any]], said: Sequence[dict[str, Any]], classes: list[str]
) -> dict[str, Floats]:
    """Each image's share in every metric, as pseudo-values of the jackknife.

    A class of which no image has a true box is left out of the mean, as COCO has it. Where no class remains,
    there is nothing to find and the metric is 0; COCO's is -1 there.

    Args:
        truths: `boxes` and `labels` of each image.
        said: `boxes`, `labels` and `scores` of each image.
        classes: in any order.

    Returns:
        By metric, shape (images,).
    """
    whole, without = _tables(truths, said, classes)
    found = {}
    for name, overlaps in OVERLAPS.items():
        value = _mean(whole[None, :, overlaps])[0]
        found[name] = shares_of(float(value), _mean(without[:, :, overlaps]))
    return found


def average_precisions(
    truths: Sequence[dict[str, Any]], said: Sequence[dict[str, Any]], classes: list[str]
) -> dict[str, dict[str, float | None]]:
    """Average precision of each class in every metric; None where no image has a true box of the class."""
    found: dict[str, dict[str, float | None]] = {name: {} for name in OVERLAPS}
    for label, matches in zip(classes, _matches(truths, said, classes), strict=True):
        whole = matches.average_precision()
        for name, overlaps in OVERLAPS.items():
            found[name][label] = None if matches.boxes == 0 else float(whole[overlaps].mean())
    return found


def _tables(
    truths: Sequence[dict[str, Any]], said: Sequence[dict[str, Any]], classes: list[str]
) -> tuple[Floats, Floats]:
    """Average precisions by class and overlap, and the same without each image: (images, classes, overlaps).

    NaN where there is no true box.
    """
    matches = list(_matches(truths, said, classes))
    whole = np.stack([one.average_precision() for one in matches])
    without = np.repeat(whole[None], len(truths), axis=0)
    for place, one in enumerate(matches):
        without[one.images, place] = one.without_each()
    return whole, without


def _mean(precisions: Floats) -> Floats:
    """Over overlaps and classes that have true boxes; shape (n, classes, overlaps) to (n,)."""
    there = ~np.isnan(precisions)
    counts = there.sum(axis=(1, 2))
    sums = np.where(there, precisions, 0.0).sum(axis=(1, 2))
    return np.asarray(np.divide(sums, counts, out=np.zeros(len(precisions)), where=counts > 0))


@dataclass(frozen=True)
class _Matches:
    """What came of the boxes of one class.

    Attributes:
        images: places of the images that have a true or predicted box of the class, ascending.
        true_boxes: how many true ones each of them has, shape (images,).
        owners: place in `images` of each prediction, the surest first; shape (predictions,).
        hits: whether each prediction matches at each overlap, shape (overlaps, predictions).
        recalls: where precision is read, ascending from 0.
    """

    images: NDArray[np.intp]
    true_boxes: NDArray[np.int64]
    owners: NDArray[np.intp]
    hits: NDArray[np.bool_]
    recalls: Floats

    @property
    def boxes(self) -> int:
        """True boxes of all images."""
        return int(self.true_boxes.sum())

    def average_precision(self) -> Floats:
        """At each overlap, NaN where there is no true box; shape (overlaps,)."""
        if self.boxes == 0:
            return np.full(len(self.hits), np.nan)
        needed = self._needed(np.array([self.boxes]))
        nobody = np.array([-1])
        return np.stack([self._averages(hits, nobody, needed)[0] for hits in self.hits])

    def without_each(self) -> Floats:
        """The same without each image, shape (images, overlaps)."""
        left = self.boxes - self.true_boxes
        needed = self._needed(np.maximum(left, 1))
        found = np.empty((len(self.images), len(self.hits)))
        everybody = np.arange(len(self.images))
        for place, hits in enumerate(self.hits):
            rows = max(1, BLOCK // max(1, int(hits.sum())))
            for start in range(0, len(self.images), rows):
                part = slice(start, start + rows)
                found[part, place] = self._averages(hits, everybody[part], needed[part])
        found[left == 0] = np.nan
        return found

    def _needed(self, boxes: NDArray[np.int64]) -> NDArray[np.intp]:
        """How many hits bring each recall, for so many true boxes; shape (len(boxes), recalls).

        The same division and comparison as in pycocotools, so that rounding falls on the same side.
        """
        kinds, which = np.unique(boxes, return_inverse=True)
        # The recall of 0 is that of the first prediction; precision from there on is best at the first hit.
        table = [np.searchsorted(np.arange(1, one + 1) / one, self.recalls) + 1 for one in kinds]
        return np.array(table, dtype=np.intp).reshape(-1, len(self.recalls))[which]

    def _averages(
        self, hits: NDArray[np.bool_], leave_out: NDArray[np.intp], needed: NDArray[np.intp]
    ) -> Floats:
        """Average precision without each of these images; -1 leaves none out.

        Precision is only looked at where a prediction hits: between two hits it falls, and of all precisions
        from a recall on the best one counts.

        Args:
            hits: of each prediction.
            leave_out: places in `images`, shape (n,).
            needed: hits for each recall, shape (n, recalls).
        """
        at = np.flatnonzero(hits)
        if len(at) == 0:
            return np.zeros(len(leave_out))
        owner = self.owners[at]
        misses = np.flatnonzero(~hits)
        own_hit = owner == leave_out[:, None]
        hit_count = np.arange(1, len(at) + 1) - np.cumsum(own_hit, axis=1)
        own_miss = np.zeros((len(leave_out), len(at) + 1), dtype=np.int64)
        row, miss = np.nonzero(self.owners[misses] == leave_out[:, None])
        np.add.at(own_miss, (row, np.searchsorted(at, misses[miss])), 1)
        miss_count = at - np.arange(len(at)) - np.cumsum(own_miss[:, :-1], axis=1)
        precision = hit_count / (miss_count + hit_count + np.spacing(1))
        precision[own_hit] = 0.0
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # The n-th hit that is left stands behind as many as were taken away before it.
        order = np.argsort(own_hit, axis=1, kind="stable")
        left = hit_count[:, -1:]
        place = np.take_along_axis(order, np.minimum(needed, len(at)) - 1, axis=1)
        read = np.where(needed <= left, np.take_along_axis(best, place, axis=1), 0.0)
        return np.asarray(read.mean(axis=1))


def _matches(
    truths: Sequence[dict[str, Any]], said: Sequence[dict[str, Any]], classes: list[str]
) -> Iterator[_Matches]:
    """What pycocotools makes of every class, in the order of the classes."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(_coco(truths, classes, said=False), _coco(said, classes, said=True), "bbox")
        judge.params.imgIds = list(range(len(truths)))
        judge.params.catIds = list(range(len(classes)))
        judge.params.areaRng, judge.params.areaRngLbl = [AREAS], ["all"]
        judge.params.maxDets = [MOST_BOXES]
        judge.evaluate()
    recalls, overlaps = np.asarray(judge.params.recThrs), len(judge.params.iouThrs)
    for place in range(len(classes)):
        of_class = judge.evalImgs[place * len(truths) : (place + 1) * len(truths)]
        yield _of_class(of_class, recalls, overlaps)


def _of_class(images: list[dict[str, Any] | None], recalls: Floats, overlaps: int) -> _Matches:
    there = [(place, one) for place, one in enumerate(images) if one is not None]
    scores = np.concatenate([one["dtScores"] for _, one in there]) if there else np.empty(0)
    # The surest first; of equal ones the earlier image's, as pycocotools has it.
    order = np.argsort(-scores, kind="mergesort")
    owners = [np.full(len(one["dtScores"]), place) for place, (_, one) in enumerate(there)]
    hits = [np.asarray(one["dtMatches"], dtype=bool).reshape(overlaps, -1) for _, one in there]
    return _Matches(
        images=np.array([place for place, _ in there], dtype=np.intp),
        true_boxes=np.array([len(one["gtIds"]) for _, one in there], dtype=np.int64),
        owners=np.concatenate([*owners, np.empty(0, np.intp)])[order].astype(np.intp),
        hits=np.concatenate([*hits, np.empty((overlaps, 0), bool)], axis=1)[:, order],
        recalls=recalls,
    )


def _coco(images: Sequence[dict[str, Any]], classes: list[str], *, said: bool) -> COCO:
    """Boxes as pycocotools wants them."""
    from pycocotools.coco import COCO

    places = {label: place for place, label in enumerate(classes)}
    annotations: list[dict[str, Any]] = []
    for place, one in enumerate(images):
        sure = one["scores"] if said else [1.0] * len(one["boxes"])
        for box, label, score in zip(one["boxes"], one["labels"], sure, strict=True):
            # Numbered from 1: what matches number 0 would count as no match.
            number = len(annotations) + 1
            told = {"id": number, "image_id": place, "category_id": places[label], "bbox": list(box)}
            annotations.append(told | {"area": box[2] * box[3], "iscrowd": 0, "score": score})
    made = COCO()
    made.dataset = {
        "images": [{"id": place} for place in range(len(images))],
        "categories": [{"id": place, "name": label} for label, place in places.items()],
        "annotations": annotations,
    }
    made.createIndex()
    return made
