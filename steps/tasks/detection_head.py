"""The head of a detector, its loss, and how boxes are read off its outputs: FCOS.

Source: Tian et al., FCOS: Fully Convolutional One-Stage Object Detection, 2019; the feature pyramid is that
of Lin et al., Feature Pyramid Networks, 2017. The layers are torchvision's, with group normalisation: it does
not depend on the batch, which is small here. Every pixel of a map says how far the edges of the box around it
are, and nothing is laid out by hand for a data set, as the sizes of anchor boxes would be.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.fcos import FCOSHead  # type: ignore[import-untyped]
from torchvision.ops import (  # type: ignore[import-untyped]
    FeaturePyramidNetwork,
    batched_nms,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from steps.tasks.of_targets import Unmixed

# The finest stride that is looked at: smaller ones are too many points, for what they add. In images below so
# many pixels a side it is half of it, or small objects would fall between the points.
FINEST, SMALL_SIDE = 8, 96
# A quarter of the paper's: the data are small.
CHANNELS, CONVOLUTIONS = 64, 2
# Of the paper, and of torchvision: a point of a map is for boxes whose centre is so many of its pixels away,
# and whose edges are between 4 and 8 of its pixels away. The first and last map take what is left over.
RADIUS, NEAREST, FARTHEST = 1.5, 4.0, 8.0
# Overlap at which of two boxes of a class the weaker goes, and boxes of an image that are looked at at all.
OVERLAP, CANDIDATES = 0.6, 1000


class FcosHead(nn.Module):
    """Feature maps to what every point of them says.

    Args:
        shapes: channels and stride of every map, the largest first.
        classes: how many there are.
        side: of the images, in pixels.
    """

    def __init__(self, shapes: list[tuple[int, int]], classes: int, side: int) -> None:
        super().__init__()
        finest = FINEST if side >= SMALL_SIDE else FINEST // 2
        self.used = [place for place, (_, stride) in enumerate(shapes) if stride >= finest]
        self.strides = [shapes[place][1] for place in self.used]
        self.pyramid = FeaturePyramidNetwork([shapes[place][0] for place in self.used], CHANNELS)
        self.fcos = FCOSHead(CHANNELS, num_anchors=1, num_classes=classes, num_convs=CONVOLUTIONS)

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """What every point of the maps says.

        Args:
            maps: each (batch, channels, height, width).

        Returns:
            `cls_logits` (batch, points, classes); `bbox_regression` (batch, points, 4), how far the left,
            upper, right and lower edge are, in strides; `bbox_ctrness` (batch, points, 1), a logit; and
            `points` (batch, points, 3): x, y and stride, in pixels of the input.
        """
        chosen = OrderedDict((str(place), maps[place]) for place in self.used)
        pyramid = list(self.pyramid(chosen).values())
        found: dict[str, Tensor] = self.fcos(pyramid)
        points = torch.cat([_points(one, stride) for one, stride in zip(pyramid, self.strides, strict=True)])
        return found | {"points": points.expand(len(maps[0]), -1, -1)}


def _points(feature_map: Tensor, stride: int) -> Tensor:
    """The middle of every pixel of a map, and the stride; shape (height x width, 3)."""
    height, width = feature_map.shape[-2:]
    down = (torch.arange(height, device=feature_map.device) + 0.5) * stride
    right = (torch.arange(width, device=feature_map.device) + 0.5) * stride
    y, x = torch.meshgrid(down, right, indexing="ij")
    return torch.stack([x, y, torch.full_like(x, stride)], dim=-1).reshape(-1, 3)


def matched(points: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """Which box each point is for; of several the smallest.

    Args:
        points: shape (points, 3).
        boxes: left, top, right, bottom; shape (batch, boxes, 4).
        labels: -1 where there is no box; shape (batch, boxes).

    Returns:
        Places among the boxes, -1 for none; shape (batch, points), int64.
    """
    at, stride = points[:, None, :2], points[:, 2]
    low, high = boxes[:, None, :, :2], boxes[:, None, :, 2:]
    edges = torch.cat([at - low, high - at], dim=-1)  # (batch, points, boxes, 4)
    from_centre = (at - (low + high) / 2).abs().amax(dim=-1)
    nearest, farthest = stride * NEAREST, stride * FARTHEST
    nearest = torch.where(stride == stride.min(), 0, nearest)
    farthest = torch.where(stride == stride.max(), torch.inf, farthest)
    reach = edges.amax(dim=-1)
    fits = (from_centre < RADIUS * stride[:, None]) & (edges.amin(dim=-1) > 0) & (labels >= 0)[:, None]
    fits &= (reach > nearest[:, None]) & (reach < farthest[:, None])
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    smallest, place = torch.where(fits, area[:, None], torch.inf).min(dim=-1)
    return torch.where(smallest.isinf(), -1, place)


def decoded(points: Tensor, regression: Tensor) -> Tensor:
    """Left, top, right and bottom of the box that each point speaks of, in pixels of the input."""
    far = regression * points[..., 2:]
    return torch.cat([points[..., :2] - far[..., :2], points[..., :2] + far[..., 2:]], dim=-1)


class FcosLoss(Unmixed):
    """Focal loss of the classes, GIoU loss of the boxes and cross-entropy of the centreness, added up.

    Each is a sum over points, divided by the number of points that are for a box, in the whole batch.
    Sources: Lin et al., Focal Loss, 2017; Rezatofighi et al., Generalized Intersection over Union, 2019.
    """

    def share(
        self, outputs: dict[str, Tensor], targets: dict[str, Tensor], whole: dict[str, Tensor]
    ) -> Tensor:
        """This part's share of the mean loss of the whole batch."""
        points = outputs["points"][0]
        place = matched(points, targets["boxes"], targets["labels"])
        of_whole = place if whole is targets else matched(points, whole["boxes"], whole["labels"])
        return _sum_of_losses(outputs, targets, place) / (of_whole >= 0).sum().clamp(min=1)


def _sum_of_losses(outputs: dict[str, Tensor], targets: dict[str, Tensor], place: Tensor) -> Tensor:
    for_box = place >= 0
    logits = outputs["cls_logits"]
    label = targets["labels"].gather(1, place.clamp(min=0))
    label = torch.where(for_box, label, logits.shape[-1])
    hot = functional.one_hot(label, logits.shape[-1] + 1)[..., :-1].to(logits.dtype)
    loss: Tensor = sigmoid_focal_loss(logits, hot, reduction="sum")
    points = outputs["points"][for_box]
    boxes = targets["boxes"].gather(1, place.clamp(min=0)[..., None].expand(-1, -1, 4))[for_box]
    said = decoded(points, outputs["bbox_regression"][for_box])
    loss = loss + generalized_box_iou_loss(said, boxes, reduction="sum")
    centre = outputs["bbox_ctrness"][for_box].squeeze(-1)
    return loss + functional.binary_cross_entropy_with_logits(
        centre, _centreness(points, boxes), reduction="sum"
    )


def _centreness(points: Tensor, boxes: Tensor) -> Tensor:
    """1 in the middle of a box, 0 at its edges (equation 3 of the paper); shape (points,)."""
    low, high = points[:, :2] - boxes[:, :2], boxes[:, 2:] - points[:, :2]
    return (torch.minimum(low, high) / torch.maximum(low, high)).prod(dim=-1).sqrt()


@dataclass(frozen=True)
class Found:
    """The boxes of one image, the surest first.

    Attributes:
        boxes: left, top, right, bottom in pixels of the input; shape (boxes, 4).
        labels: class indices, shape (boxes,).
        scores: shape (boxes,).
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


def found(
    outputs: dict[str, Tensor], row: int, size: tuple[int, int], threshold: float, at_most: int
) -> Found:
    """The boxes of one image of a batch.

    A score is the geometric mean of the class's probability and the centreness, as torchvision's is.

    Args:
        outputs: of the head, in float32.
        row: the image's place in the batch.
        size: width and height of the image in the square; boxes are cut there.
        threshold: boxes with a lower score are left out.
        at_most: how many boxes at most.
    """
    sure = outputs["cls_logits"][row].sigmoid() * outputs["bbox_ctrness"][row].sigmoid()
    scores = sure.sqrt().flatten()
    best = (scores > threshold).nonzero().flatten()
    best = best[scores[best].sort(descending=True, stable=True).indices[:CANDIDATES]]
    point, label = best // sure.shape[-1], best % sure.shape[-1]
    boxes = decoded(outputs["points"][row][point], outputs["bbox_regression"][row][point])
    edge = torch.tensor([*size, *size], dtype=boxes.dtype, device=boxes.device)
    boxes = torch.minimum(boxes.clamp(min=0), edge)
    real = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    boxes, label, score = boxes[real], label[real], scores[best][real]
    kept = batched_nms(boxes, score, label, OVERLAP)[:at_most]
    return Found(boxes[kept], label[kept], score[kept])
