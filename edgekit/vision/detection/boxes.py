"""Boxes as arrays: the struct that every part of detection shares, overlap, and suppression of repeated boxes.

A box is (left, top, right, bottom) in pixels as real numbers; right and bottom lie outside, so the whole of a picture
of 640x480 is (0, 0, 640, 480) and a box's area is (right - left) * (bottom - top).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]
"""[n, 4]: left, top, right, bottom."""


_BLOCK = 64  # boxes that are compared with all others at once: few calls, and little memory


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one picture, the highest score first.

    `labels` are indices into the model's list of labels. `margins` are 0..1: how far each box is from being judged
    otherwise, see `margins_of`; 1 - margin is its hardness. Raises ValueError for arrays that do not belong together.
    """

    boxes: Boxes  # [n, 4]
    scores: NDArray[np.float32]  # [n], 0..1
    labels: NDArray[np.int32]  # [n]
    margins: NDArray[np.float32]  # [n], 0..1

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes.shape != (count, 4) or not (
            self.scores.shape == self.labels.shape == self.margins.shape == (count,)
        ):
            raise ValueError("boxes must be [n, 4]; scores, labels and margins [n]")

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, chosen: NDArray[Any]) -> Detections:
        """The rows that `chosen` selects: a mask, or indices that ascend (so that the order by score stays)."""
        return Detections(self.boxes[chosen], self.scores[chosen], self.labels[chosen], self.margins[chosen])

    def above(self, score: float) -> Detections:
        """Those with at least this score."""
        return self.take(self.scores >= score)

    def placed(self, boxes: NDArray[Any]) -> Detections:
        """The same detections with other boxes, [n, 4], for instance in the pixels of another picture."""
        return Detections(np.asarray(boxes, np.float32), self.scores, self.labels, self.margins)

    def clipped(self, width: float, height: float) -> Detections:
        """Boxes cut off at (0, 0, width, height); those of which nothing is left are dropped."""
        inside = clip(self.boxes, (0.0, 0.0, width, height))
        return self.placed(inside).take(areas(inside) > 0)


NONE = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32), np.empty(0, np.float32))
"""Nothing was found."""


def ranked(boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any], margins: NDArray[Any]) -> Detections:
    """Detections of rows in any order. Rows of equal score keep their order."""
    order = np.argsort(-scores, kind="stable")
    return Detections(
        np.asarray(boxes[order], np.float32),
        np.asarray(scores[order], np.float32),
        np.asarray(labels[order], np.int32),
        np.asarray(margins[order], np.float32),
    )


def joined(parts: Sequence[Detections]) -> Detections:
    """All rows of several detections as one, ranked."""
    if not parts:
        return NONE
    return ranked(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.margins for part in parts]),
    )


def margins_of(scores: NDArray[Any], seconds: NDArray[Any], report: float) -> NDArray[np.float32]:
    """How far each candidate is from being judged otherwise, 0..1.

    `scores` [n] are the probabilities of each candidate's label, `seconds` [n] those of its runner-up among the other
    labels, 0 where the model does not tell; `report` is the score, above 0 and below 1, from which a box counts.

    A candidate is judged to be its label if its score is at least `report`, and nothing otherwise. At `report` = 1/2
    the margin is that of a classifier whose further class "nothing" has the probability 1 - score: the best of all
    minus the runner-up. So it falls towards 0 where the judgement could tip, from box to nothing, from nothing to box,
    or from one label to another, and is high for a sure box and for a sure nothing alike: a gate that sends what has a
    small margin does not send every shadow that got a score of 0.05. For another `report`, "nothing" is scaled on both
    sides so that it still draws level with the box exactly there; a margin that took 1/2 for granted would call a box
    of 0.26 safe at a threshold of 0.25.
    """
    values = np.asarray(scores, np.float64)
    sure = np.minimum((values - report) / (1 - report), values - seconds)
    margins = np.where(values >= report, sure, (report - values) / report)
    return np.asarray(np.clip(margins, 0, 1), np.float32)


def areas(boxes: NDArray[Any]) -> NDArray[np.float64]:
    """Pixels of each box, [n]; 0 for a box whose edges are in the wrong order."""
    sides = np.maximum(np.asarray(boxes[:, 2:], np.float64) - boxes[:, :2], 0)
    return np.asarray(sides[:, 0] * sides[:, 1])


def intersections(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Pixels that each box of `first` [n, 4] shares with each of `second` [m, 4]: [n, m]."""
    one, other = np.asarray(first, np.float64)[:, np.newaxis], np.asarray(second, np.float64)[np.newaxis]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    np.maximum(sides, 0, out=sides)
    return np.asarray(sides[..., 0] * sides[..., 1])


def iou(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union of each box of `first` [n, 4] with each of `second` [m, 4]: [n, m], 0..1.

    0 where both boxes are empty.
    """
    common = intersections(first, second)
    union = areas(first)[:, np.newaxis] + areas(second)[np.newaxis] - common
    return np.asarray(np.divide(common, union, out=np.zeros_like(common), where=union > 0))


def clip(boxes: NDArray[Any], within: tuple[float, float, float, float]) -> NDArray[Any]:
    """Boxes [n, 4] cut off at the edges of `within` (left, top, right, bottom)."""
    left, top, right, bottom = within
    low, high = np.array([left, top] * 2, boxes.dtype), np.array([right, bottom] * 2, boxes.dtype)
    return np.asarray(np.clip(boxes, low, high))


def nms(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    labels: NDArray[Any],
    overlap: float,
    *,
    class_agnostic: bool = False,
    max_candidates: int = 1000,
    max_kept: int = 300,
) -> NDArray[np.intp]:
    """Greedy non-maximum suppression: indices of the boxes that stay, the highest score first.

    A box goes if its IoU with a better one that stays is above `overlap` (1.0: none goes); unless `class_agnostic`,
    only boxes of its own label count. The work is bounded: only the `max_candidates` best are looked at, and
    `max_kept` stay at most. Equal scores stand in the order of their indices.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")[:max_candidates]
    rows = np.asarray(boxes, np.float64)[order]
    kinds = np.zeros(len(order), np.int32) if class_agnostic else np.asarray(labels)[order]
    if overlap >= 1:
        return order[:max_kept]
    kept: list[int] = []
    alive = np.arange(len(order))
    while alive.size and len(kept) < max_kept:
        block = alive[:_BLOCK]
        repeats = (iou(rows[block], rows[alive]) > overlap) & (kinds[block][:, np.newaxis] == kinds[alive])
        gone = np.zeros(len(alive), bool)
        for place, row in enumerate(block):
            if not gone[place] and len(kept) < max_kept:
                kept.append(int(row))
                gone |= repeats[place]
        alive = alive[_BLOCK:][~gone[_BLOCK:]]
    return order[kept]
