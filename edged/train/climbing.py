"""One rung of the ladder: what a candidate of a classifier or a detector is made of, and what is said about how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np

from edged.samples.store import SampleStore
from edged.train import head, retraining, scene, tuning
from edged.train.box_lessons import BoxLessons
from edged.train.candidate import Made
from edged.train.detector import DetectorNetwork, read_detector
from edged.train.lessons import Lessons
from edged.train.network import Network, read_network
from edged.train.pace import Workplace
from edged.train.views import Cut, cut_for_classifiers, cut_for_detectors
from edgekit.graphs.errors import NetworkError
from edgekit.messages.learning import TrainOrder
from edgekit.packages import Package
from edgekit.services import Service

N = TypeVar("N", Network, DetectorNetwork)
L = TypeVar("L", Lessons, BoxLessons)


@dataclass(frozen=True, eq=False)
class Pupil(ABC, Generic[N, L]):
    """A model with what it learns from. Methods raise NetworkError for what it cannot do."""

    network: N
    base: Package
    lessons: L
    at: Workplace

    BOXES: ClassVar[bool]

    @property
    @abstractmethod
    def cut(self) -> Cut:
        """How serving cuts what it looks at."""

    @property
    @abstractmethod
    def logits(self) -> str:
        """The name of a classifier's output, "" of a detector."""

    @abstractmethod
    def taught(self) -> int:
        """Pictures that gradient steps would learn from, or parts of them; there are enough to begin with."""

    @abstractmethod
    def start(self) -> N:
        """What gradient steps begin with: it knows the new classes."""

    @abstractmethod
    def relearned(self) -> tuple[N, Sequence[str]]:
        """With a head that was learned in closed form, and what is said about it."""


class ClassifierPupil(Pupil[Network, Lessons]):
    """A classifier, with labels of pictures or of parts of them."""

    BOXES = False

    @property
    def cut(self) -> Cut:
        """See Pupil."""
        return cut_for_classifiers

    @property
    def logits(self) -> str:
        """See Pupil."""
        return self.network.logits

    def taught(self) -> int:
        """See Pupil."""
        part = self.lessons.learn
        if not part.pictures or len(np.unique(part.labels)) < 2:
            raise NetworkError("pictures of at least two classes are needed to learn from")
        return len(part.pictures)

    def start(self) -> Network:
        """See Pupil."""
        if not self.lessons.new:
            return self.network
        return head.relearned(self.network, self.lessons, self.base.manifest.input, self.at, widen=False)[0]

    def relearned(self) -> tuple[Network, Sequence[str]]:
        """See Pupil."""
        return head.relearned(self.network, self.lessons, self.base.manifest.input, self.at)


class DetectorPupil(Pupil[DetectorNetwork, BoxLessons]):
    """A detector, with boxes."""

    BOXES = True

    @property
    def cut(self) -> Cut:
        """See Pupil."""
        return cut_for_detectors

    @property
    def logits(self) -> str:
        """See Pupil."""
        return ""

    def taught(self) -> int:
        """See Pupil."""
        if not self.lessons.learn.boxes:
            raise NetworkError("no box is there to learn from")
        return len(self.lessons.taught(self.lessons.learn)[0])

    def start(self) -> DetectorNetwork:
        """See Pupil."""
        return self.network.with_classes(len(self.lessons.classes)) if self.lessons.new else self.network

    def relearned(self) -> tuple[DetectorNetwork, Sequence[str]]:
        """See Pupil."""
        raise NetworkError('the rung "head" is for classifiers; a detector learns by the last blocks or all')


def climb(
    order: TrainOrder,
    service: Service,
    base: Package,
    store: SampleStore,
    lessons: Lessons | BoxLessons,
    at: Workplace,
) -> Made:
    """Climb the rung of the order: a detector learns BoxLessons and a classifier Lessons.

    Raises NetworkError for a model that cannot learn so, and as `scene.looked_at`, `head.relearned`,
    `retraining.retrained` and `tuning.tune` do.
    """
    pupil: ClassifierPupil | DetectorPupil
    if isinstance(lessons, BoxLessons):
        pupil = DetectorPupil(read_detector(base), base, lessons, at)
    else:
        pupil = ClassifierPupil(read_network(base), base, lessons, at)
    network, spec = pupil.network, base.manifest.input
    notes = list(lessons.notes)
    if lessons.new:
        notes.append(f"new: {', '.join(lessons.new)}")
    write: Callable[[Path], None]
    recipe, seen = None, 0
    if order.rung == "batchnorm":
        shown, usable = scene.looked_at(store, service, lessons.judge.pictures, spec, pupil.cut, at)
        write, seen = scene.reestimated(network, shown, usable, at).save, len(usable)
    elif order.rung == "head":
        learned, said = pupil.relearned()
        notes += said
        write = learned.save
    elif order.rung == "cloud":
        retrained = retraining.retrained(order, network, base, lessons, at)
        notes += retrained.notes
        write = retrained.write
    else:
        settings = tuning.settings_for(
            order.rung,
            pupil.taught(),
            spec,
            seed=order.seed,
            seconds=order.max_seconds,
            budget=order.budget,
            boxes=pupil.BOXES,
        )
        tuned = tuning.tune(order.rung, network, pupil.start, lessons, spec, settings, base.digest, at)
        write, recipe = tuned.write, tuning.recipe_of(tuned)
    return Made(
        base=base,
        service=service,
        name=order.name,
        version=order.version,
        job=order.job,
        rung=order.rung,
        dataset=order.dataset,
        logits=pupil.logits,
        write=write,
        recipe=recipe,
        scene=seen,
        notes=notes,
    )
