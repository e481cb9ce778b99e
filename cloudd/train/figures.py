"""How good a model is on the pictures that judge it, with the range in which each figure lies at 95 % confidence.

Ranges are Clopper and Pearson's, which hold for every number of independent pictures. Pictures of one board are not
quite independent: with few boards the true range is wider.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.gates.binomial import binomial_cdf, clopper_pearson_upper
from edgekit.vision.detection.boxes import Detections
from edgekit.vision.detection.metrics import Truth, average_precision, count

CONFIDENCE = 0.95
IOU = 0.5
"""A box counts as found above this overlap."""


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """`hits` of `trials`, and the range of the true share."""

    hits: int
    trials: int
    low: float
    high: float

    @property
    def value(self) -> float | None:
        """None without a trial."""
        return self.hits / self.trials if self.trials else None


class LabelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Of one label. Items are pictures, or boxes."""

    label: str
    recall: Share  # of the items that have the label, those that were found
    precision: Share  # of the items that were given the label, those that have it
    ap50: float | None = None  # boxes only: average precision at IoU 0.5


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of a model. `reason`: why it is not worth keeping, "" if it is."""

    pictures: int
    right: Share  # classifier: pictures with the right answer; detector: reported boxes that are true
    rival: str  # what the model has to beat
    rival_right: int | None  # pictures that the rival gets right; None for a detector
    labels: list[LabelFigures]
    confidence: float = CONFIDENCE
    reason: str = ""


def share(hits: int, trials: int) -> Share:
    """The range holds with probability CONFIDENCE or more."""
    if not trials:
        return Share(hits=0, trials=0, low=0.0, high=1.0)
    tail = (1 - CONFIDENCE) / 2
    low = 1 - clopper_pearson_upper(trials - hits, trials, tail)
    return Share(hits=hits, trials=trials, low=low, high=clopper_pearson_upper(hits, trials, tail))


def judge_answers(
    answers: NDArray[np.int64], truth: NDArray[np.int64], labels: Sequence[str], frequent: int
) -> Figures:
    """Of a classifier: `answers` and `truth` [n] are indices into `labels`.

    Refused is what may be no better than always answering `frequent`, the most frequent label of the pictures that it
    was trained on: unless, if both were equally good, the model would lose as few of the pictures that only one of them
    gets right with a chance of at most 1 - CONFIDENCE (McNemar's exact test, one-sided).
    """
    n = len(truth)
    right, rival = answers == truth, truth == frequent
    lost, gained = int((rival & ~right).sum()), int((right & ~rival).sum())
    reason = ""
    if binomial_cdf(lost, lost + gained, 0.5) > 1 - CONFIDENCE:
        reason = (
            f"it gets {int(right.sum())} of {n} pictures right, and always saying {labels[frequent]!r} gets "
            f"{int(rival.sum())}: it is not better for sure ({CONFIDENCE:.0%}). More pictures, of the rare labels "
            "above all, more epochs or a larger --size may help"
        )
    found = [
        LabelFigures(
            label=label,
            recall=share(int((right & (truth == index)).sum()), int((truth == index).sum())),
            precision=share(int((right & (answers == index)).sum()), int((answers == index).sum())),
        )
        for index, label in enumerate(labels)
    ]
    return Figures(
        pictures=n,
        right=share(int(right.sum()), n),
        rival=f"always {labels[frequent]}",
        rival_right=int(rival.sum()),
        labels=found,
        reason=reason,
    )


def judge_boxes(found: Sequence[Detections], truths: Sequence[Truth], labels: Sequence[str], report: float) -> Figures:
    """Of a detector that reports boxes from the score `report` on.

    Refused is what may be no better than reporting nothing: of the boxes that it reports no more than half may be true,
    so that it makes as many mistakes as it spares.
    """
    average = average_precision(found, truths, len(labels))
    figures = []
    for index, label in enumerate(labels):
        mine = [one.take(one.labels == index) for one in found]
        wanted = [Truth(one.boxes[one.labels == index], one.labels[one.labels == index]) for one in truths]
        counts = count(mine, wanted, report, IOU)
        figures.append(
            LabelFigures(
                label=label,
                recall=share(counts.found, counts.found + counts.missed),
                precision=share(counts.found, counts.found + counts.false),
                ap50=average.per_class50[index],
            )
        )
    hits = sum(one.precision.hits for one in figures)
    right = share(hits, sum(one.precision.trials for one in figures))
    reason = ""
    if right.low <= 0.5:
        reason = (
            f"of the {right.trials} boxes that it reports {right.hits} are true, which could be half of them or less "
            f"({CONFIDENCE:.0%}): it is not better than reporting nothing for sure. More pictures, more epochs or a "
            "larger --size may help"
        )
    return Figures(
        pictures=len(truths), right=right, rival="reporting nothing", rival_right=None, labels=figures, reason=reason
    )


def best_report(found: Sequence[Detections], truths: Sequence[Truth]) -> float:
    """The score from which boxes are reported with the best F1 over all labels; the nearest to 0.5 of several."""

    def quality(step: int) -> tuple[float, int]:
        counts = count(found, truths, step / 20, IOU)
        return counts.f1 or 0.0, -abs(step - 10)

    return max(range(2, 19), key=quality) / 20
