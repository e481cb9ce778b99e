"""How good detections are: COCO's average precision, precision and recall at one point, escapes and overkill.

Average precision follows pycocotools' COCOeval: within a picture and a class the detections, the best first and 100 at
most, each take the free true box that overlaps them most; precision is made monotonous and read at the 101 recalls
0, 0.01 ... 1; classes without a true box do not count. There are no crowds and no ranges of area here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.vision.detection.boxes import Detections, iou

COCO_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
COCO_RECALLS = np.linspace(0.0, 1.0, 101)
COCO_MAX_DETECTIONS = 100
DEEPPCB_IOU = 0.33
"""A defect counts as found above this IoU: Tang et al. 2019 (arXiv 1902.06197), section 4."""


@dataclass(frozen=True, eq=False)
class Truth:
    """The true boxes of one picture. Raises ValueError for arrays that do not belong together."""

    boxes: NDArray[Any]  # [n, 4]: left, top, right, bottom
    labels: NDArray[Any]  # [n]: indices

    def __post_init__(self) -> None:
        if self.boxes.shape != (len(self.labels), 4) or self.labels.ndim != 1:
            raise ValueError("true boxes must be [n, 4] and their labels [n]")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class AveragePrecision:
    """0..1 each; None where there was no true box to find."""

    ap: float | None  # mean over IoU 0.50 to 0.95 and over classes
    ap50: float | None
    ap75: float | None
    per_class: list[float | None]  # over IoU 0.50 to 0.95
    per_class50: list[float | None]


@dataclass(frozen=True)
class Counts:
    """What an inspection with one threshold gets right and wrong. Shares are None where there is nothing to share."""

    found: int  # true boxes with a detection
    missed: int  # true boxes without one
    false: int  # detections without a true box
    bad_pictures: int  # with a true box
    escaped_pictures: int  # of these, those in which not one true box was found
    incomplete_pictures: int  # of these, those in which at least one true box was missed
    good_pictures: int  # without a true box
    overkilled_pictures: int  # of these, those with a detection

    @property
    def precision(self) -> float | None:
        """Share of the detections that are true."""
        return _share(self.found, self.found + self.false)

    @property
    def recall(self) -> float | None:
        """Share of the true boxes that are found."""
        return _share(self.found, self.found + self.missed)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall: 2 found / (2 found + missed + false)."""
        return _share(2 * self.found, 2 * self.found + self.missed + self.false)

    @property
    def escape_boxes(self) -> float | None:
        """Escape rate per box: share of the true defects without a detection."""
        return _share(self.missed, self.found + self.missed)

    @property
    def escape_pictures(self) -> float | None:
        """Escape rate per picture: share of the bad pictures in which no defect was found.

        A false alarm elsewhere on a bad board is no find: who looks at the place it marks finds nothing there.
        """
        return _share(self.escaped_pictures, self.bad_pictures)

    @property
    def overkill_boxes(self) -> float | None:
        """Overkill rate per detection: share of the detections without a true box."""
        return _share(self.false, self.found + self.false)

    @property
    def overkill_pictures(self) -> float | None:
        """Overkill rate per picture: share of the good pictures that were reported bad."""
        return _share(self.overkilled_pictures, self.good_pictures)


def match(
    found: Detections, truth: Truth, overlaps: NDArray[Any], *, class_aware: bool = True, above: bool = False
) -> NDArray[np.intp]:
    """For each IoU threshold and detection the row of the true box that it takes, -1 for none: [thresholds, n].

    The detections choose in order of score; each takes the free true box with the highest IoU, if that is at least the
    threshold (or, with `above`, more than it). `class_aware`: only boxes of its own label.
    """
    thresholds = np.asarray(overlaps, np.float64)
    taken = np.full((len(thresholds), len(found)), -1, np.intp)
    if not len(found) or not len(truth):
        return taken
    shared = iou(found.boxes, truth.boxes)
    if class_aware:
        shared[found.labels[:, np.newaxis] != truth.labels[np.newaxis]] = -1.0
    rows = np.arange(len(thresholds))
    free = np.ones((len(thresholds), len(truth)), bool)
    for index, row in enumerate(shared):
        offered = np.where(free, row, -1.0)
        # COCOeval lets the last of several equals win.
        best = len(truth) - 1 - offered[:, ::-1].argmax(axis=1)
        value = offered[rows, best]
        enough = (value > thresholds) if above else (value >= thresholds)
        enough &= value > 0
        taken[enough, index] = best[enough]
        free[rows[enough], best[enough]] = False
    return taken


def average_precision(results: Sequence[Detections], truths: Sequence[Truth], classes: int) -> AveragePrecision:
    """COCO's measures over pictures: `results[i]` are all detections of picture i, down to the lowest scores wanted.

    Raises ValueError if there are not as many results as truths, or a label is not below `classes`.
    """
    _check(results, truths)
    for labels in (*(result.labels for result in results), *(truth.labels for truth in truths)):
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"labels must be 0 to {classes - 1}")
    table = np.array([_class_precision(results, truths, label) for label in range(classes)])  # [classes, IoUs]
    return AveragePrecision(
        ap=_mean(table),
        ap50=_mean(table[:, COCO_IOUS.index(0.5)]),
        ap75=_mean(table[:, COCO_IOUS.index(0.75)]),
        per_class=[_mean(row) for row in table],
        per_class50=[_mean(row[:1]) for row in table],
    )


def count(
    results: Sequence[Detections],
    truths: Sequence[Truth],
    report: float,
    overlap: float = DEEPPCB_IOU,
    *,
    class_aware: bool = True,
) -> Counts:
    """What an inspection that reports scores of at least `report` gets right; a find has an IoU above `overlap`.

    Raises ValueError if there are not as many results as truths.
    """
    _check(results, truths)
    found = missed = false = bad = escaped = incomplete = good = overkilled = 0
    for result, truth in zip(results, truths, strict=True):
        reported = result.above(report)
        taken = match(reported, truth, np.array([overlap]), class_aware=class_aware, above=True)[0]
        hits = int((taken >= 0).sum())
        found, missed, false = found + hits, missed + len(truth) - hits, false + len(reported) - hits
        if len(truth):
            bad, escaped, incomplete = bad + 1, escaped + (hits == 0), incomplete + (hits < len(truth))
        else:
            good, overkilled = good + 1, overkilled + (len(reported) > 0)
    return Counts(found, missed, false, bad, escaped, incomplete, good, overkilled)


def _class_precision(results: Sequence[Detections], truths: Sequence[Truth], label: int) -> NDArray[np.float64]:
    """Average precision of one class at each of COCO_IOUS; NaN without a true box."""
    scores, hits, total = [], [], 0
    # COCOeval's threshold, a hair below 1, only matters for an IoU of 1.
    thresholds = np.minimum(COCO_IOUS, 1 - 1e-10)
    for result, truth in zip(results, truths, strict=True):
        mine = result.take(np.flatnonzero(result.labels == label)[:COCO_MAX_DETECTIONS])
        true = truth.labels == label
        wanted = Truth(truth.boxes[true], truth.labels[true])
        scores.append(mine.scores)
        hits.append(match(mine, wanted, thresholds) >= 0)
        total += len(wanted)
    if total == 0:
        return np.full(len(COCO_IOUS), np.nan)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    right = np.concatenate(hits, axis=1)[:, order]
    return np.array([_interpolated(row, total) for row in right])


def _interpolated(right: NDArray[np.bool_], total: int) -> float:
    """Mean precision at COCO_RECALLS of detections, the best first, of `total` true boxes."""
    found = np.cumsum(right)
    recall = found / total
    precision = found / np.arange(1, len(right) + 1)
    monotonous = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, COCO_RECALLS, side="left")
    reached = places < len(right)
    return float(monotonous[places[reached]].sum() / len(COCO_RECALLS))


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _check(results: Sequence[Detections], truths: Sequence[Truth]) -> None:
    if len(results) != len(truths):
        raise ValueError(f"{len(results)} results for {len(truths)} pictures with truth")
