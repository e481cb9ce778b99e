"""What goes to cloudd of the pictures of a job: a PNG of the pixels that the model gets, and what they show.

A row is what the model looks at in one go: a picture, its region of interest or a tile. One part of the lessons has as
many rows as its training has examples, so that cloudd teaches from what the device would have learned from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edged.train.box_lessons import BoxLessons, BoxPart
from edged.train.lessons import LessonError, Lessons, Part
from edged.train.views import Views, cut_for_detectors
from edgekit.messages.retraining import CHOOSING_BOXES, MAX_BOXES, TaughtBox, too_few
from edgekit.packages import InputSpec
from edgekit.training import Pictures
from edgekit.vision.detection.metrics import Truth
from edgekit.vision.images import encode_png

_DIGITS = 2
"""Of a box's sides, behind the point: a hundredth of a pixel."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one part. `files`: the sample that each one is of."""

    files: tuple[str, ...]
    labels: tuple[int, ...]  # of a classifier, one a row; else none
    truths: tuple[Truth, ...]  # of a detector, one a row, in pixels of the picture; else none
    pictures: Pictures
    spec: InputSpec

    def __len__(self) -> int:
        return len(self.files)

    def png(self, row: int) -> bytes:
        """What is sent. Raises TrainingError, DatasetError for a picture that is gone or damaged."""
        return encode_png(self.pictures.fitted(row).image, self.spec.colour)

    def shown(self, row: int) -> tuple[int, tuple[TaughtBox, ...] | None]:
        """The label of a row, or 0 and its boxes in pixels of the model's input."""
        if not self.truths:
            return self.labels[row], None
        truth = self.truths[row]
        sides = np.round(self.pictures.fitted(row).placement.to_input(truth.boxes).astype(np.float64), _DIGITS)
        return 0, tuple(TaughtBox(int(label), *box) for label, box in zip(truth.labels, sides.tolist(), strict=True))

    def counts(self, classes: int) -> list[int]:
        """Rows that show each class."""
        found = Counter(self.labels)
        for truth in self.truths:
            found.update({int(label) for label in truth.labels})
        return [found[label] for label in range(classes)]


def rows_of(lessons: Lessons | BoxLessons, part: Part | BoxPart, spec: InputSpec) -> Rows:
    """The rows of a part that teaches or chooses, for a model with this input."""
    if isinstance(lessons, BoxLessons):
        assert isinstance(part, BoxPart), "a detector learns boxes"
        chosen, truths = lessons.taught(part)
        pictures = Views(lessons.reader(part), chosen, spec, cut_for_detectors, cache_bytes=0)
        return Rows(tuple(part.pictures[one.picture].file for one in chosen), (), tuple(truths), pictures, spec)
    assert isinstance(part, Part), "a classifier learns labels"
    files = tuple(one.file for one in part.pictures)
    return Rows(files, tuple(part.labels.tolist()), (), lessons.pictures(part, spec, cache_bytes=0), spec)


def check(classes: Sequence[str], learn: Rows, choose: Rows) -> None:
    """Raises LessonError where cloudd would refuse these rows, before a picture of them is looked at."""
    if reason := too_few(classes, learn.counts(len(classes))):
        raise LessonError(reason)
    boxes = [len(one) for one in (*learn.truths, *choose.truths)]
    if boxes and sum(map(len, choose.truths)) < CHOOSING_BOXES:
        raise LessonError(f"cloudd chooses by {CHOOSING_BOXES} boxes at least, and fewer are in the pictures for that")
    if max(boxes, default=0) > MAX_BOXES:
        raise LessonError(f"a picture has {max(boxes)} boxes; {MAX_BOXES} are sent at most")
