"""What one batch feeds to a train step: augmented pictures with their labels, or with the maps of their boxes.

What is fed depends on nothing but the places, the epoch, the seed and how far the epoch is: a training that was
interrupted goes on with the same pictures, pixel for pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.training.augment import Augmentation, augment
from edgekit.training.centre_targets import centre_targets
from edgekit.training.errors import TrainingError
from edgekit.training.pictures import Pictures
from edgekit.vision.detection.metrics import Truth

Feeds = dict[str, NDArray[Any]]

_NO_BOXES = np.zeros((0, 4), np.float32)


class Examples(Protocol):
    """A dataset as a training sees it."""

    @property
    def groups(self) -> NDArray[np.intp]:
        """[n]: the class of each example, or another whole number by which they are balanced."""
        ...

    def feeds(self, places: NDArray[np.intp], epoch: int, start: int) -> Feeds:
        """The inputs of one batch, which is at `start` (0-based, in examples) of its epoch, with augmentation.

        Raises TrainingError for a picture that cannot be used, OSError for one that cannot be read.
        """
        ...

    def plain(self, places: NDArray[np.intp]) -> Feeds:
        """The same without augmentation."""
        ...


class LabelledExamples:
    """Pictures of one class each.

    `labels` [n], `classes` in all. `each` has further inputs of the train step with one row an example, as `teacher`
    for distillation.
    """

    def __init__(
        self,
        pictures: Pictures,
        labels: NDArray[Any],
        classes: int,
        *,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        each: Mapping[str, NDArray[Any]] | None = None,
        image: str = "image",
    ) -> None:
        self.labels = np.asarray(labels, np.int64)
        if not len(self.labels) or self.labels.min() < 0 or self.labels.max() >= classes:
            raise TrainingError(f"the labels must be at least one, and lie from 0 to {classes - 1}")
        for name, rows in (each or {}).items():
            if len(rows) != len(self.labels) or not np.isfinite(rows).all():
                raise TrainingError(f'"{name}" needs one finite row for each of the {len(self.labels)} examples')
        self.classes = classes
        self._pictures, self._image = pictures, image
        self._each = dict(each or {})
        self._changes = _Changes(augmentation, seed)

    @property
    def groups(self) -> NDArray[np.intp]:
        """See Examples.groups."""
        return self.labels.astype(np.intp)

    def feeds(self, places: NDArray[np.intp], epoch: int, start: int) -> Feeds:
        """See Examples.feeds."""
        images = [
            self._changes.apply(self._pictures.fitted(int(place)).image, _NO_BOXES, epoch, start + index)[0]
            for index, place in enumerate(places)
        ]
        return self._batch(images, places)

    def plain(self, places: NDArray[np.intp]) -> Feeds:
        """See Examples.plain."""
        return self._batch([self._pictures.fitted(int(place)).image for place in places], places)

    def _batch(self, images: Sequence[NDArray[np.uint8]], places: NDArray[np.intp]) -> Feeds:
        return {
            self._image: np.concatenate([self._pictures.tensor(image) for image in images]),
            "labels": self.labels[places],
            **{name: rows[places] for name, rows in self._each.items()},
        }


class BoxedExamples:
    """Pictures with boxes, for a centre-point detector whose cells are `stride` pixels of the model's input.

    `truths` [n]: boxes in pixels of each picture as it came, labels from 0 to `classes` - 1.
    """

    def __init__(
        self,
        pictures: Pictures,
        truths: Sequence[Truth],
        classes: int,
        stride: int,
        *,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        image: str = "image",
    ) -> None:
        for place, truth in enumerate(truths):
            _check_truth(truth, place, classes)
        if not len(truths) or pictures.width % stride or pictures.height % stride:
            raise TrainingError(
                f"{len(truths)} pictures of {pictures.width}x{pictures.height} with cells of {stride} pixels: at least "
                "one is needed, and sides that cells divide"
            )
        self.truths, self.classes, self.stride = tuple(truths), classes, stride
        self._pictures, self._image = pictures, image
        self._changes = _Changes(augmentation, seed)

    @property
    def groups(self) -> NDArray[np.intp]:
        """See Examples.groups: the rarest class of each picture, `classes` for one without boxes."""
        counts = np.zeros(self.classes + 1, np.intp)
        for truth in self.truths:
            counts[: self.classes] += np.bincount(truth.labels.astype(np.intp), minlength=self.classes)
        return np.array(
            [
                min(truth.labels, key=lambda label: counts[label]) if len(truth) else self.classes
                for truth in self.truths
            ],
            np.intp,
        )

    def feeds(self, places: NDArray[np.intp], epoch: int, start: int) -> Feeds:
        """See Examples.feeds."""
        return self._batch(
            [
                self._changes.apply(*self._fitted(int(place)), epoch, start + index)
                for index, place in enumerate(places)
            ],
            places,
        )

    def plain(self, places: NDArray[np.intp]) -> Feeds:
        """See Examples.plain."""
        fitted = [self._fitted(int(place)) for place in places]
        return self._batch([(image, boxes, np.arange(len(boxes))) for image, boxes in fitted], places)

    def boxes(self, place: int) -> NDArray[np.float32]:
        """The boxes of one picture in pixels of the model's input."""
        return self._fitted(place)[1]

    def _fitted(self, place: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        fitted = self._pictures.fitted(place)
        return fitted.image, fitted.placement.to_input(self.truths[place].boxes)

    def _batch(
        self,
        rows: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.intp]]],
        places: NDArray[np.intp],
    ) -> Feeds:
        cells = self._pictures.height // self.stride, self._pictures.width // self.stride
        maps = [
            centre_targets(boxes, self.truths[place].labels[kept].astype(np.intp), self.classes, *cells, self.stride)
            for (_, boxes, kept), place in zip(rows, places, strict=True)
        ]
        return {
            self._image: np.concatenate([self._pictures.tensor(image) for image, _, _ in rows]),
            "heat_target": np.stack([one["heat"] for one in maps]),
            "size_target": np.stack([one["size"] for one in maps]),
            "offset_target": np.stack([one["offset"] for one in maps]),
            "centres": np.stack([one["centres"] for one in maps]),
        }


class _Changes:
    """Augmentation with a generator of its own for every example that is shown."""

    def __init__(self, spec: Augmentation | None, seed: int) -> None:
        self._spec, self._seed = spec, seed

    def apply(
        self, image: NDArray[np.uint8], boxes: NDArray[np.float32], epoch: int, number: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.intp]]:
        if self._spec is None:
            return image, boxes, np.arange(len(boxes))
        return augment(image, boxes, self._spec, np.random.default_rng([self._seed, epoch, number]))


def _check_truth(truth: Truth, place: int, classes: int) -> None:
    if not len(truth):
        return
    boxes = np.asarray(truth.boxes)
    if not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
        raise TrainingError(f"picture {place} has a box without a size, or with values that are not numbers")
    if truth.labels.min() < 0 or truth.labels.max() >= classes:
        raise TrainingError(f"picture {place} has a box with a label outside of 0 to {classes - 1}")
