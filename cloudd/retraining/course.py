"""What both trainings of a job share: a plan that fits into the time, checkpoints, events, a pause.

How long a step takes is known after a few. What fits into the time is then planned, so that the learning rate comes
down in time; the plan is stored, and a training that is killed goes on with it to the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from cloudd.retraining.errors import Unteachable
from cloudd.retraining.lineage import Figures, Run
from cloudd.retraining.material import Pace
from edgekit import atomic
from edgekit.autodiff.schedules import Schedule
from edgekit.faults import crash_point
from edgekit.training import (
    CheckpointFile,
    EarlyStopping,
    Evaluator,
    Examples,
    Paused,
    Saved,
    Settings,
    Started,
    StepDone,
    StepEngine,
    Trainer,
    job_name,
)
from edgekit.training.evaluation import Weights
from edgekit.training.timing import step_seconds

CHECKPOINT, PLANNED = "checkpoint", "planned.json"
_SLACK = 1.5  # times the seconds that were planned for; then a training is cut off
_LOOKS = 4  # evaluations of one training, of which the best counts
_WARM_UP = 0.05  # share of all steps

Say = Callable[[int, int], None]
"""Hears how many steps are done, of how many."""


class Interrupted(Exception):
    """It was asked to stop, and everything is saved."""


class Pausing:
    """Tells the training that goes on, if there is one, that it is to end."""

    def __init__(self) -> None:
        self.asked = False
        self._trainer: Trainer | None = None

    def ask(self) -> None:
        """For a signal handler."""
        self.asked = True
        if self._trainer is not None:
            self._trainer.pause()

    def attend(self, trainer: Trainer) -> None:
        """This one is to hear of it from now on."""
        self._trainer = trainer
        if self.asked:
            trainer.pause()


def plan(engine: StepEngine, examples: Examples, folder: Path, pace: Pace, *, seconds: float, seed: int) -> Settings:
    """How it is trained, so that pictures are shown as often as `pace` says, or as often as fits into `seconds`.

    Decided once, and then read from `folder`. The engine is as it was afterwards. Raises Unteachable if not even one
    epoch fits, OSError.
    """
    path = folder / PLANNED
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=Settings)
    count = len(examples.groups)
    size = min(pace.batch, count)
    per_epoch = max(1, count // size)
    fits = int(seconds / (step_seconds(engine, examples, size, time.monotonic) * per_epoch))
    if fits < 1:
        raise Unteachable(
            f"{seconds:.0f} s of computing do not suffice to show {count} pictures once (retraining_hours)"
        )
    epochs = min(max(1, round(pace.shown / count)), fits)
    settings = Settings(
        epochs=epochs,
        batch=size,
        schedule=Schedule(peak=pace.peak, warm_up=int(_WARM_UP * epochs * per_epoch), final=0.01),
        balance="root",
        early_stopping=EarlyStopping(patience=0),
        evaluate_every=max(1, epochs // _LOOKS),
        max_seconds=_SLACK * seconds,
        seed=seed,
    )
    atomic.write_file(path, msgspec.json.encode(settings))
    return settings


def train(
    engine: StepEngine,
    examples: Examples,
    evaluator: Evaluator,
    settings: Settings,
    folder: Path,
    digests: tuple[str, ...],
    pausing: Pausing,
    say: Say,
) -> tuple[dict[str, NDArray[Any]], Run]:
    """Train, or go on. Returns the best weights, and what was done. Raises Interrupted, and as Trainer.run."""
    trainer = Trainer(
        engine,
        examples,
        evaluator,
        settings,
        job=job_name((settings,), digests),
        checkpoints=CheckpointFile(folder / CHECKPOINT),
        clock=time.monotonic,
    )
    pausing.attend(trainer)
    steps = 0
    for event in trainer.run():
        if isinstance(event, Started):
            steps = event.steps
        elif isinstance(event, StepDone):
            say(event.step, steps)
            crash_point("retraining.step")
        elif isinstance(event, Saved):
            crash_point("retraining.saved")
        elif isinstance(event, Paused):
            raise Interrupted(event.reason)
    weights = trainer.result()
    progress = trainer.progress
    return weights, Run(
        epochs=settings.epochs,
        batch=settings.batch,
        peak=settings.schedule.peak,
        epoch=progress.best.epoch or progress.epoch,
        ended=progress.ended,
        figures=figures(evaluator, weights),
    )


def figures(evaluator: Evaluator, weights: Weights) -> Figures:
    """Of these weights. Raises TrainingError for values that are not numbers."""
    said = next(one for one in evaluator(weights) if one is not None).figures
    return Figures(
        loss=said.get("loss"),
        balanced_accuracy=said.get("balanced_accuracy"),
        ap50=said.get("ap50"),
        ap=said.get("ap"),
    )
