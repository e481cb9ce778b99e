"""What a model learns from in a federated job and is judged by there: labels of pictures, or boxes in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edged.federation.updates import SourceError
from edged.train.box_lessons import BoxLessons
from edged.train.lessons import Lessons
from edgekit.messages.federation import LocalTraining
from edgekit.packages import DetectionSpec, InputSpec
from edgekit.runtimes.base import TensorInfo
from edgekit.training import Augmentation, BoxedExamples, Examples, LabelledExamples, TrainingError
from edgekit.vision.classification import softmax
from edgekit.vision.detection.boxes import ranked
from edgekit.vision.detection.heads import HeadConfig, make_head
from edgekit.vision.detection.metrics import Truth, match

BATCH = 32
BOX_BATCH = 4
OVERLAP = 0.5
"""IoU from which a box counts as found, as where a candidate is judged."""

Ask = Callable[[NDArray[np.float32]], Mapping[str, NDArray[Any]]]
"""Pictures as the model wants them -> its outputs by name."""
Judged = tuple[NDArray[np.int64], float]


class Subject(Protocol):
    """Built once for a job; `image` is the name of the model's input."""

    samples: int
    """Examples that teach."""

    def examples(self, local: LocalTraining, image: str) -> Examples:
        """Those that teach, as a Trainer sees them."""

    def judged(self, ask: Ask, image: str) -> Judged:
        """(confusion matrix, mean loss) on those that judge. Raises SourceError, TrainingError, DatasetError."""


class Labels:
    """Of a classifier."""

    def __init__(self, lessons: Lessons, spec: InputSpec, logits: str) -> None:
        self._lessons, self._logits = lessons, logits
        self._learn, self._judge = lessons.pictures(lessons.learn, spec), lessons.pictures(lessons.judge, spec)
        self.samples = len(lessons.learn.pictures)

    def examples(self, local: LocalTraining, image: str) -> LabelledExamples:
        """See Subject."""
        return LabelledExamples(
            self._learn,
            self._lessons.learn.labels,
            len(self._lessons.classes),
            seed=local.seed,
            augmentation=augmentation(local),
            image=image,
        )

    def judged(self, ask: Ask, image: str) -> Judged:
        """See Subject: rows are what pictures are, columns what the model says; the loss is the cross entropy."""
        labels, count = self._lessons.judge.labels, len(self._lessons.classes)
        confusion, loss = np.zeros((count, count), np.int64), 0.0
        if not len(labels):
            return confusion, loss
        examples = LabelledExamples(self._judge, labels, count, image=image)
        for start in range(0, len(labels), BATCH):
            places = np.arange(start, min(len(labels), start + BATCH))
            logits = ask(examples.plain(places)[image])[self._logits]
            if not np.isfinite(logits).all():
                raise SourceError("the shared model gives NaN or infinity on this device's pictures")
            truth = labels[places]
            np.add.at(confusion, (truth, logits.argmax(axis=1)), 1)
            said = softmax(logits)[np.arange(len(truth)), truth]
            loss -= float(np.log(np.maximum(said, np.finfo(np.float32).tiny)).sum())
        return confusion, loss / len(labels)


class Boxes:
    """Of a centre-point detector. What the service cuts into tiles is taught and judged tile by tile."""

    def __init__(self, lessons: BoxLessons, spec: InputSpec, detection: DetectionSpec) -> None:
        """Raises SourceError for another head."""
        if detection.head != "centernet" or len(detection.outputs) != 3 or len(detection.strides) != 1:
            raise SourceError("only centre-point detectors, whose maps are named, learn together")
        self._lessons, self._spec, self._detection = lessons, spec, detection
        (self._stride,) = detection.strides
        self.samples = len(lessons.taught(lessons.learn)[0])

    def examples(self, local: LocalTraining, image: str) -> BoxedExamples:
        """See Subject."""
        return self._lessons.examples(
            self._lessons.learn,
            self._spec,
            self._stride,
            seed=local.seed,
            augmentation=augmentation(local, rotation=2.0),
            image=image,
        )

    def judged(self, ask: Ask, image: str) -> Judged:
        """See Subject. The last row is for false alarms and the last column for boxes that were not found.

        A box that was found with another label counts as one of each. The loss is the share that is not right.
        """
        count, spec, detection = len(self._lessons.classes), self._spec, self._detection
        confusion = np.zeros((count + 1, count + 1), np.int64)
        if not self._lessons.judge.pictures:
            return confusion, 0.0
        examples = self._lessons.examples(self._lessons.judge, spec, self._stride, image=image)
        heat, size, offset = detection.outputs
        grid = spec.height // self._stride, spec.width // self._stride
        tensors = [
            TensorInfo(name, (1, channels, *grid), "float32")
            for name, channels in zip(detection.outputs, (count, 2, 2), strict=True)
        ]
        config = HeadConfig(
            spec.width, spec.height, count, detection.score_floor, (heat, size, offset), strides=(self._stride,)
        )
        head = make_head("centernet", config, tensors)
        for start in range(0, len(examples.truths), BOX_BATCH):
            places = np.arange(start, min(len(examples.truths), start + BOX_BATCH))
            outputs = ask(examples.plain(places)[image])
            if any(not np.isfinite(outputs[name]).all() for name in detection.outputs):
                raise SourceError("the shared model gives NaN or infinity on this device's pictures")
            for row, place in enumerate(places.tolist()):
                one = head.decode([outputs[name][row : row + 1] for name in detection.outputs])
                found = ranked(one.boxes, one.scores, one.labels, np.zeros_like(one.scores)).above(detection.report)
                truth = Truth(examples.boxes(place), examples.truths[place].labels)
                taken = match(found, truth, np.array([OVERLAP]))[0]
                hit = np.zeros(len(truth), bool)
                hit[taken[taken >= 0]] = True
                np.add.at(confusion, (truth.labels[hit], truth.labels[hit]), 1)
                np.add.at(confusion[:, count], truth.labels[~hit], 1)
                np.add.at(confusion[count], found.labels[taken < 0], 1)
        return confusion, 1.0 - float(np.trace(confusion)) / max(1, int(confusion.sum()))


def subject_of(lessons: Lessons | BoxLessons, spec: InputSpec, logits: str, detection: DetectionSpec | None) -> Subject:
    """What these lessons teach a model with this input. Raises SourceError where that cannot be done together."""
    if isinstance(lessons, Lessons):
        return Labels(lessons, spec, logits)
    if detection is None:
        raise SourceError("a model that is no detector cannot learn boxes")
    try:
        return Boxes(lessons, spec, detection)
    except TrainingError as error:
        raise SourceError(str(error)) from None


def augmentation(local: LocalTraining, rotation: float = 8.0) -> Augmentation | None:
    """What the job's words mean for pictures: as in `cloudd train`.

    `rotation`: degrees; the upright box around a turned one is larger than the object, so boxes are turned less.
    """
    if not local.augment:
        return None
    return Augmentation(
        flip_horizontal=local.symmetry != "none",
        flip_vertical=local.symmetry == "any",
        quarter_turns=local.symmetry == "any",
        rotation=rotation,
        scale=0.1,
        shift=0.05,
        brightness=0.1,
        contrast=0.15,
        noise=5.0,
    )
