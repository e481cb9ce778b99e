"""Teaches a smaller network to answer as a larger one: distillation (Hinton et al. 2015, arXiv 1503.02531).

The teacher answers exactly what the student sees, changes and mixtures included, so nothing needs a label and nothing
has to keep one (Beyer et al. 2022, arXiv 2106.05237, "a good teacher is patient and consistent"). A half of every batch
are mixtures of two pictures (Zhang et al. 2018, arXiv 1710.09412), which make many out of few.

How long it takes is known after a few steps. What fits into the time is then planned, so that the learning rate comes
down in time. A training for which the time suffices does not depend on the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from cloudd.compress.errors import CompressError
from cloudd.compress.maker import Training
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.losses import CrossEntropy, Distillation
from edgekit.autodiff.optimisers import AdamW, Clipped
from edgekit.autodiff.run import StepRunner
from edgekit.autodiff.schedules import Schedule
from edgekit.autodiff.step import build_step
from edgekit.runtimes import ModelError
from edgekit.training import (
    Augmentation,
    KeptInMemory,
    Pictures,
    Settings,
    StepDone,
    StepEngine,
    Trainer,
    TrainingError,
    augment,
)
from edgekit.training.timing import step_seconds

SHOWN = 50_000
"""Pictures that a student sees, each as often as it takes. A classifier of 110,000 parameters (solder-large, of the
demo, on 932 pictures) at half its width lost 0.49 points of accuracy after 20,000, 0.36 after 31,000, 0.16 after
50,000.
"""
BATCH = 32
RATE = 3e-3
TEMPERATURE = 2.0
CHANGES = Augmentation(shift=0.06, scale=0.06, brightness=0.06, contrast=0.12, noise=3.0)
"""Small ones: what another day, another lamp and another board make of a picture."""

_NORM = 5.0  # of all gradients together; the first steps after pruning are steep
_EPOCH = 512  # pictures at least
_SLACK = 1.5  # times the seconds that were planned for; then a training is cut off
_WARM_UP = 0.05  # share of all steps
_NO_BOXES = np.zeros((0, 4), np.float32)

Teacher = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Pictures as the model wants them -> logits."""


@dataclass(frozen=True)
class Taught:
    """The student with its new weights, and what was done."""

    model: onnx.ModelProto
    shown: int  # pictures, each as often as it was
    complete: bool  # False where the time did not suffice for all of it


class Lessons:
    """Examples for a `Trainer`: changed and mixed pictures, with the teacher's answer to each of them."""

    def __init__(self, training: Training, teacher: Teacher, image: str) -> None:
        self._pictures = Pictures(training.read, training.spec)
        self._teacher, self._image, self._count = teacher, image, training.count

    @property
    def groups(self) -> NDArray[np.intp]:
        """See Examples.groups: all alike. Few pictures count several times, as a trainer does more than learn after
        each epoch.
        """
        return np.zeros(self._count * math.ceil(_EPOCH / self._count), np.intp)

    def feeds(self, places: NDArray[np.intp], epoch: int, start: int) -> dict[str, NDArray[Any]]:
        """See Examples.feeds."""
        rng = np.random.default_rng([epoch, start])
        images = [augment(self._image_at(place), _NO_BOXES, CHANGES, rng)[0] for place in places.tolist()]
        batch = np.concatenate([self._pictures.tensor(image) for image in images])
        share = rng.uniform(0, 1, len(batch)).astype(np.float32)
        share[::2] = 1.0
        share = share.reshape(-1, *[1] * (batch.ndim - 1))
        mixed = batch * share + batch[rng.permutation(len(batch))] * (1 - share)
        return self._asked(np.asarray(mixed, np.float32))

    def plain(self, places: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """See Examples.plain."""
        images = [self._image_at(place) for place in places.tolist()]
        return self._asked(np.concatenate([self._pictures.tensor(image) for image in images]))

    def _image_at(self, place: int) -> NDArray[np.uint8]:
        return self._pictures.fitted(place % self._count).image

    def _asked(self, batch: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        return {self._image: batch, "teacher": self._teacher(batch)}


def distil(student: onnx.ModelProto, output: str, training: Training, teacher: Teacher, folder: Path) -> Taught:
    """Train `student`, whose only input takes the pictures and whose output `output` gives logits [N, C].

    `folder` gets the train step. Raises CompressError where it cannot be trained, and DatasetError for a picture that
    cannot be read.
    """
    try:
        step = build_step(
            student,
            Distillation(hard=CrossEntropy(output=output), temperature=TEMPERATURE, share=1.0),
            Clipped(AdamW(weight_decay=1e-4), _NORM),
            batch_norm="train",
        )
        step.save(folder)
        engine = StepEngine(StepRunner(folder, spin=False))
        lessons = Lessons(training, teacher, student.graph.input[0].name)
        settings, wanted = _plan(engine, lessons, training)
        shown = _train(engine, lessons, settings, training)
    except (AutodiffError, TrainingError, ModelError) as error:
        raise CompressError(f"the smaller network cannot be trained: {error}") from error
    weights = engine.weights()
    for tensor in step.model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(weights[tensor.name]), tensor.name))
    return Taught(step.model, shown, shown >= wanted)


def _plan(engine: StepEngine, lessons: Lessons, training: Training) -> tuple[Settings, int]:
    """What to do, and how many pictures would be shown if there were time enough."""
    count = len(lessons.groups)
    size = min(BATCH, count)
    per_epoch = count // size
    wanted = max(1, round(SHOWN / count))
    allowed = training.seconds / step_seconds(engine, lessons, size, time.monotonic)
    epochs = min(wanted, int(allowed / per_epoch))
    if epochs < 1:
        raise TrainingError(
            f"{training.seconds:g} seconds suffice for {int(allowed)} of the {per_epoch} steps that it takes at least; "
            "give it more time"
        )
    rate = Schedule(peak=RATE, warm_up=int(_WARM_UP * epochs * per_epoch), final=0.01)
    return (
        Settings(
            epochs=epochs,
            batch=size,
            schedule=rate,
            checkpoint_seconds=math.inf,
            max_seconds=_SLACK * training.seconds,
        ),
        wanted * per_epoch * size,
    )


def _train(engine: StepEngine, lessons: Lessons, settings: Settings, training: Training) -> int:
    """Returns how many pictures were shown."""
    steps = settings.epochs * (len(lessons.groups) // settings.batch)
    trainer = Trainer(engine, lessons, None, settings, job="", checkpoints=KeptInMemory(), clock=time.monotonic)
    for event in trainer.run():
        if isinstance(event, StepDone):
            training.progress("teaching", event.step, steps)
    return trainer.progress.step * settings.batch
