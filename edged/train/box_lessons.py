"""The labelled boxes of a service: which pictures teach, which choose and which judge a detector.

A picture's side follows from the same rules as a classifier's (`edged.train.lessons`). A picture with a box that
nothing can be learned of is left out as a whole: as background that box would teach the model not to find it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edged.samples.store import SampleStore
from edged.train.lessons import (
    CACHE_BYTES,
    LessonError,
    Taught,
    classes_of,
    fitting,
    labelled_at,
    read_version,
    sides_of,
)
from edged.train.views import View, Views, cut_for_detectors, inside, spread, views
from edgekit.datasets.dataset import Dataset, Picture, labels_of
from edgekit.packages import InputSpec
from edgekit.services import Service
from edgekit.training import Augmentation, BoxedExamples
from edgekit.vision.detection.boxes import intersections
from edgekit.vision.detection.metrics import Truth

EMPTY_VIEWS = 2
"""Tiles of a picture without a box that teach: enough to know the background, and no thousands of the same."""


@dataclass(frozen=True, eq=False)
class BoxPart:
    """Some of the pictures, each with its true boxes."""

    pictures: tuple[Picture, ...]
    truths: tuple[Truth, ...]  # [n], pixels of the full picture; labels are indices into BoxLessons.classes
    labelled_at: NDArray[np.float64]  # [n], seconds since the epoch: when these boxes were first given

    @property
    def boxes(self) -> int:
        """True boxes in all."""
        return sum(len(one) for one in self.truths)

    def counts(self, classes: Sequence[str]) -> dict[str, int]:
        """Boxes of each class that has any."""
        found = np.zeros(len(classes), np.int64)
        for truth in self.truths:
            found += np.bincount(truth.labels, minlength=len(classes))
        return {label: int(count) for label, count in zip(classes, found, strict=True) if count}

    def without(self, files: Collection[str]) -> BoxPart:
        """The others."""
        kept = [at for at, one in enumerate(self.pictures) if one.file not in files]
        chosen = tuple(self.pictures[at] for at in kept)
        return BoxPart(chosen, tuple(self.truths[at] for at in kept), self.labelled_at[kept])


@dataclass(frozen=True, eq=False)
class BoxLessons(Taught[BoxPart]):
    """Pictures with boxes. What lies outside of the service's region of interest is in none of them."""

    def views(self, part: BoxPart) -> Iterator[list[View]]:
        """What the service looks at in each picture of `part`."""
        for at, one in enumerate(part.pictures):
            yield views(at, (one.width, one.height), self.pipeline)

    def each(self, part: BoxPart, spec: InputSpec) -> Views:
        """See Taught.each."""
        first = [of_one[0] for of_one in self.views(part)]
        return Views(self.reader(part), first, spec, cut_for_detectors, cache_bytes=0)

    def examples(
        self,
        part: BoxPart,
        spec: InputSpec,
        stride: int,
        *,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        image: str = "image",
        cache_bytes: int = CACHE_BYTES,
    ) -> BoxedExamples:
        """`part` as a Trainer sees it: its `taught` views.

        `image` is the name of the model's input tensor, whose cells have `stride` pixels. Raises TrainingError if there
        is no picture, or the cells do not fit.
        """
        chosen, truths = self.taught(part)
        pictures = Views(self.reader(part), chosen, spec, cut_for_detectors, cache_bytes)
        return BoxedExamples(
            pictures, truths, len(self.classes), stride, seed=seed, augmentation=augmentation, image=image
        )

    def taught(self, part: BoxPart) -> tuple[list[View], list[Truth]]:
        """Every view of `part` with a box, and EMPTY_VIEWS of a picture without one; boxes in pixels of the picture."""
        chosen: list[View] = []
        truths: list[Truth] = []
        for of_one, truth, picture in zip(self.views(part), part.truths, part.pictures, strict=True):
            empty = []
            for view in of_one:
                boxes, rows = inside(truth.boxes, view.box)
                if len(rows):
                    chosen.append(view)
                    truths.append(Truth(boxes, truth.labels[rows]))
                elif not intersections(truth.boxes, np.array([view.box])).any():
                    empty.append(view)
            for view in spread(empty, EMPTY_VIEWS, picture):
                chosen.append(view)
                truths.append(Truth(np.zeros((0, 4)), np.zeros(0, np.int64)))
        return chosen, truths


def load_box_lessons(
    store: SampleStore, name: str, service: Service, known: Sequence[str], new_class: int | None = None
) -> BoxLessons:
    """The pictures of the dataset version `name` that a detector with the labels `known` can learn from.

    A label that is not `known` becomes a class from `new_class` pictures with such a box on; None: never. Raises
    LessonError where there is nothing to learn from, sqlite3.Error.
    """
    if service.task != "detection":
        raise LessonError(f"{service.name} is for {service.task}, and only a detector learns boxes")
    dataset, notes = read_version(store, name, service)
    if any(one.boxes is None for one in dataset.pictures):
        raise LessonError(f"the dataset version {name} has labels of whole pictures; a detector learns from boxes")
    classes, more = classes_of(Counter(label for one in dataset.pictures for label in labels_of(one)), known, new_class)
    notes += more
    index = {label: at for at, label in enumerate(classes)}
    used, more = fitting(dataset.pictures, classes, service)
    notes += more
    if not any(one.boxes for one in used):
        raise LessonError(f"the dataset version {name} has no box with a label that {service.name} could learn")
    sides = sides_of(used)

    def part(side: str) -> BoxPart:
        mine = tuple(one for one in used if sides[one.file] == side)
        truths = tuple(_truth(one, index, service) for one in mine)
        return BoxPart(mine, truths, np.array([labelled_at(store, one) for one in mine], np.float64))

    dataset = Dataset(tuple(used), dataset.fetch)
    return BoxLessons.divided(dataset, classes, len(known), part, notes, service.pipeline)


def _truth(picture: Picture, index: dict[str, int], service: Service) -> Truth:
    """The boxes whose centre the service looks at."""
    seen = np.array([view.box for view in views(0, (picture.width, picture.height), service.pipeline)], np.float64)
    low, high = seen[:, :2].min(axis=0), seen[:, 2:].max(axis=0)
    boxes = np.array([(one.left, one.top, one.right, one.bottom) for one in picture.boxes or ()], np.float64)
    boxes = boxes.reshape(-1, 4)
    labels = np.array([index[one.label] for one in picture.boxes or ()], np.int64)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    kept = ((low <= centres) & (centres < high)).all(axis=1)
    return Truth(boxes[kept], labels[kept])
