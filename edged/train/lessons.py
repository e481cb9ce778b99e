"""The labelled pictures of a service: which of them teach, which choose and which judge, as serving prepares them.

A picture's side follows from its group (board or lot), or from its content where it has none, and from nothing else. So
what judged one candidate has taught none, however many jobs there are. Where a picture's source said train, val or
test, that is followed.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from edged.samples.opening import open_store
from edged.samples.records import Label
from edged.samples.store import SampleStore
from edged.samples.versions import VersionError
from edged.train.views import View, Views, cut_for_classifiers, views
from edgekit import toml
from edgekit.datasets.dataset import Dataset, DatasetError, Picture, labels_of
from edgekit.datasets.parts import place
from edgekit.packages import InputSpec
from edgekit.services import Pipeline, Samples, Service
from edgekit.training import Augmentation, LabelledExamples, Pictures, TrainingError
from edgekit.vision.images import ImageError, decode, encode_png, sniff
from edgekit.vision.pipeline import decoded_box, narrowest, regions
from edgekit.vision.preprocess import reduced_size

SHARES = {"learn": 0.6, "choose": 0.1, "judge": 0.3}
CACHE_BYTES = 64 << 20
"""Bytes of decoded pictures that a job keeps; the others are decoded anew each time."""
MOST_NEW = 64
"""Classes that one job adds, the most frequent ones."""
_NAMED = 10
"""Labels that were left out and are named."""
_SALT = "learning 1"
_GIVEN = {"train": "learn", "val": "choose", "test": "judge"}
_STRICTEST = ("judge", "choose", "learn")
_KEEP = Samples(keep="all", quota_mb=1 << 24, count=10_000_000, days=3650.0)


class LessonError(ValueError):
    """Nothing can be learned from this dataset for this service; the message is a clause that says why."""


class Side(Protocol):
    """Some of the pictures, with their labels."""

    @property
    def pictures(self) -> tuple[Picture, ...]: ...

    def counts(self, classes: Sequence[str]) -> dict[str, int]:
        """Labels of each class that has any."""
        ...

    def without(self, files: Collection[str]) -> Self:
        """The others."""
        ...


S = TypeVar("S", bound=Side)


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the pictures; with `views` a row for each part of them that the model sees by itself."""

    pictures: tuple[Picture, ...]
    labels: NDArray[np.int64]  # [n], indices into Lessons.classes
    labelled_at: NDArray[np.float64]  # [n], seconds since the epoch: when this label was first given
    views: tuple[View, ...] = ()  # [n], or none

    def counts(self, classes: Sequence[str]) -> dict[str, int]:
        """Pictures of each class that has any."""
        found = np.bincount(self.labels, minlength=len(classes))
        return {label: int(count) for label, count in zip(classes, found, strict=True) if count}

    def without(self, files: Collection[str]) -> Part:
        """The others."""
        kept = [at for at, one in enumerate(self.pictures) if one.file not in files]
        views = tuple(self.views[at] for at in kept) if self.views else ()
        return Part(tuple(self.pictures[at] for at in kept), self.labels[kept], self.labelled_at[kept], views)


@dataclass(frozen=True, eq=False)
class Taught(ABC, Generic[S]):
    """What there is to learn from, in a fixed order. `notes` are sentences about what was left out."""

    dataset: Dataset
    classes: tuple[str, ...]  # those of the model in its order, then new ones in the order of the alphabet
    known: int  # how many of them the model has
    learn: S
    choose: S
    judge: S
    notes: tuple[str, ...]
    pipeline: Pipeline | None

    @classmethod
    def divided(
        cls,
        dataset: Dataset,
        classes: tuple[str, ...],
        known: int,
        part: Callable[[str], S],
        notes: Sequence[str],
        pipeline: Pipeline | None,
    ) -> Self:
        """With what `part` gives for each of its three sides. Raises LessonError as `check_new`."""
        lessons = cls(dataset, classes, known, part("learn"), part("choose"), part("judge"), tuple(notes), pipeline)
        check_new(lessons)
        return lessons

    @property
    def digest(self) -> str:
        """Of the dataset version, without what was left out; see `edgekit.datasets`."""
        return self.dataset.digest

    @property
    def new(self) -> tuple[str, ...]:
        """The classes that the model does not have."""
        return self.classes[self.known :]

    def reader(self, part: S) -> Callable[[int], bytes]:
        """Gives the picture at a place of `part` as its model gets it, before the package's own preparation.

        It raises DatasetError for a picture that is gone or damaged, or that the region of interest does not fit.
        """
        return lambda at: self.dataset.read(part.pictures[at])

    @abstractmethod
    def each(self, part: S, spec: InputSpec) -> Pictures:
        """For each place of `part` something that the model would see of that picture."""

    def readable(self, spec: InputSpec, looked: Callable[[int, int], None]) -> Self:
        """Without the pictures that are to teach or choose and cannot be decoded; `looked` hears how many were tried.

        Raises LessonError if a new class has none left.
        """
        total = len(self.learn.pictures) + len(self.choose.pictures)
        tried, bad = 0, set()
        for part in (self.learn, self.choose):
            pictures = self.each(part, spec)
            for at, picture in enumerate(part.pictures):
                try:
                    pictures.fitted(at)
                except (DatasetError, TrainingError):
                    bad.add(picture.file)
                tried += 1
                looked(tried, total)
        if not bad:
            return self
        found = replace(
            self,
            dataset=Dataset(tuple(one for one in self.dataset.pictures if one.file not in bad), self.dataset.fetch),
            learn=self.learn.without(bad),
            choose=self.choose.without(bad),
            notes=(*self.notes, f"{len(bad)} pictures cannot be decoded and were left out"),
        )
        check_new(found)
        return found


@dataclass(frozen=True, eq=False)
class Lessons(Taught[Part]):
    """Pictures, or parts of them, with one label each."""

    def pictures(self, part: Part, spec: InputSpec, cache_bytes: int = CACHE_BYTES) -> Pictures:
        """The pictures of `part` for a model with this input."""
        pipeline = self.pipeline
        read = self.reader(part)
        if part.views:
            return Views(read, _by_first(part), spec, cut_for_classifiers, cache_bytes)
        return Pictures(
            read if pipeline is None else lambda at: region_of_interest(read(at), spec, pipeline), spec, cache_bytes
        )

    def each(self, part: Part, spec: InputSpec) -> Pictures:
        """See Taught.each."""
        return self.pictures(part, spec, cache_bytes=0)

    def examples(
        self,
        part: Part,
        spec: InputSpec,
        *,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        image: str = "image",
        cache_bytes: int = CACHE_BYTES,
    ) -> LabelledExamples:
        """`part` as a Trainer sees it; `image` is the name of the model's input tensor.

        Raises TrainingError if there is no picture in it.
        """
        pictures = self.pictures(part, spec, cache_bytes)
        return LabelledExamples(
            pictures, part.labels, len(self.classes), seed=seed, augmentation=augmentation, image=image
        )


def _by_first(part: Part) -> list[View]:
    """The views, each with the first row of its picture, so that a picture is decoded once for all of them."""
    first: dict[str, int] = {}
    rows = [first.setdefault(one.file, at) for at, one in enumerate(part.pictures)]
    return [replace(view, picture=row) for view, row in zip(part.views, rows, strict=True)]


def open_samples(state_dir: Path, device_id: str) -> SampleStore:
    """The sample store, for reading beside its other owners; close it.

    Raises SealError, StoreError, OSError.
    """
    # With these bounds nothing is removed that its own service would keep, and the ballast is left to those who write.
    return open_store(
        state_dir, device_id, lambda service: _KEEP, reserve=1 << 60, on_event=lambda event: None, wall=time.time
    )


def check_service(service: Service) -> None:
    """Raises LessonError for a service whose model cannot learn on the device yet."""
    if service.task not in ("classification", "detection"):
        raise LessonError(
            f"learning on the device is for classification and detection so far; {service.name} is for {service.task}"
        )


def load_lessons(
    store: SampleStore, name: str, service: Service, known: Sequence[str], new_class: int | None = None
) -> Lessons:
    """The pictures of the dataset version `name` that a classifier with the labels `known` can learn from.

    A label that is not `known` becomes a class from `new_class` pictures on; None: never. Raises LessonError where
    there is nothing to learn from, sqlite3.Error.
    """
    check_service(service)
    if service.task != "classification":
        raise LessonError(f"{service.name} is for {service.task}; its model learns from boxes, not from whole pictures")
    if service.pipeline is not None and service.pipeline.tiles is not None:
        raise LessonError(f"{service.name} cuts pictures into tiles, and learns from those")
    dataset, notes = read_version(store, name, service)
    if dataset.detection:
        raise LessonError(f"the dataset version {name} has boxes; a classifier learns from labels of whole pictures")
    classes, more = classes_of(Counter(one.label for one in dataset.pictures), known, new_class)
    index = {label: at for at, label in enumerate(classes)}
    used = Dataset(tuple(one for one in dataset.pictures if one.label in index), dataset.fetch)
    if not used.pictures:
        raise LessonError(f"the dataset version {name} has no picture with a label that {service.name} could learn")
    sides = sides_of(used.pictures)
    times = {one.file: labelled_at(store, one) for one in used.pictures}

    def part(side: str) -> Part:
        mine = tuple(one for one in used.pictures if sides[one.file] == side)
        return Part(
            mine,
            np.array([index[one.label] for one in mine], np.int64),
            np.array([times[one.file] for one in mine], np.float64),
        )

    return Lessons.divided(used, classes, len(known), part, (*notes, *more), service.pipeline)


def read_version(store: SampleStore, name: str, service: Service) -> tuple[Dataset, list[str]]:
    """A dataset version of this service, and notes about what does not open. Raises LessonError, sqlite3.Error."""
    try:
        info = store.versions.show(name)
        dataset, damaged = store.versions.dataset(name)
    except VersionError as error:
        raise LessonError(str(error)) from None
    if info.service != service.name:
        raise LessonError(f"the dataset version {name} is of the service {info.service}, not of {service.name}")
    return dataset, [f"{len(damaged)} pictures do not open and were left out"] if damaged else []


def classes_of(
    counts: Mapping[str, int], known: Sequence[str], new_class: int | None
) -> tuple[tuple[str, ...], list[str]]:
    """The classes to learn, `known` ones first, and notes about labels that are left out.

    `counts`: pictures with each label. One that is not `known` becomes a class from `new_class` on; None: never.
    """
    unknown = sorted((label for label in counts if label not in set(known)), key=lambda label: (-counts[label], label))
    new = sorted(label for label in unknown[:MOST_NEW] if new_class is not None and counts[label] >= new_class)
    left = [label for label in unknown if label not in new]
    notes = []
    for label in left[:_NAMED]:
        why = "the model does not have it" if new_class is None else f"a new class needs {new_class}"
        if new_class is not None and counts[label] >= new_class:
            why = f"a job adds at most {MOST_NEW} classes"
        notes.append(f"{counts[label]} pictures with the label {toml.show(label)} were left out: {why}")
    if len(left) > _NAMED:
        notes.append(f"so were those of {len(left) - _NAMED} rarer labels")
    return (*known, *new), notes


def fitting(pictures: Sequence[Picture], classes: Collection[str], service: Service) -> tuple[list[Picture], list[str]]:
    """The pictures with labels of `classes` only that fit the service's pipeline, and a note about those left out."""
    known = set(classes)
    learnable = [one for one in pictures if known.issuperset(labels_of(one))]
    found = []
    for one in learnable:
        with suppress(ImageError):
            views(0, (one.width, one.height), service.pipeline)
            found.append(one)
    lost = len(learnable) - len(found)
    return found, [f"{lost} pictures do not fit the service's pipeline and were left out"] if lost else []


def region_of_interest(data: bytes, spec: InputSpec, pipeline: Pipeline) -> bytes:
    """The part of an encoded picture that a service without tiles looks at, as a PNG of the pixels that serving gets.

    Raises DatasetError for a picture that cannot be used.
    """
    try:
        info = sniff(data)
        box = regions(pipeline, info.width, info.height)[0]
        whole = info.width, info.height
        image = decode(data, spec.colour, reduce_to=reduced_size(spec, narrowest([box], whole)))
    except ImageError as error:
        raise DatasetError(f"a picture cannot be used: {error}") from None
    left, top, right, bottom = decoded_box(box, whole, (image.shape[1], image.shape[0]))
    return encode_png(np.ascontiguousarray(image[top:bottom, left:right]), spec.colour)


def is_judging(picture: Picture) -> bool:
    """Whether a picture without a given part falls to those that judge, labelled or not."""
    return _placed(picture) == "judge"


def sides_of(pictures: Sequence[Picture]) -> dict[str, str]:
    """The side of each picture by its file; all of one group stand on the strictest side that one of them names."""
    given: dict[str, str] = {}
    for one in pictures:
        side = _GIVEN.get(one.part)
        if one.group and side is not None:
            given[one.group] = min(side, given.get(one.group, side), key=_STRICTEST.index)
    return {one.file: given.get(one.group) or (_GIVEN.get(one.part) or _placed(one)) for one in pictures}


def _placed(picture: Picture) -> str:
    at, end = place(picture, _SALT), 0.0
    for side, share in SHARES.items():
        end += share
        if at < end:
            return side
    return "judge"  # the shares' sum is a rounding below 1


def labelled_at(store: SampleStore, picture: Picture) -> float:
    """When somebody first gave the label that the version fixed: saying the same again later makes it no newer.

    A label whose history is gone is as new as can be, so that it never counts as one from before a batch.
    """
    said = Label(label=picture.label) if picture.boxes is None else Label(boxes=picture.boxes)
    times = [one.at for one in store.index.labels(picture.file) if one.authority and one.label == said]
    return min(times, default=math.inf)


def check_new(lessons: Taught[S]) -> None:
    """Raises LessonError for a new class without anything to learn from, or to be judged by."""
    taught, judged = (part.counts(lessons.classes) for part in (lessons.learn, lessons.judge))
    for label in lessons.new:
        if label not in taught or label not in judged:
            raise LessonError(
                f"all {taught.get(label) or judged.get(label, 0)} labels of the new class {toml.show(label)} fell to "
                "one side, because they are of one board or lot, or too few; label some of another board or lot"
            )
