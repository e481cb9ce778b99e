"""Rungs `last-blocks` and `full`: gradient steps on labels or boxes, old ones replayed among the new.

The train step is derived once and lies in the job's folder with its checkpoint; a job that was killed goes on from
there to the same weights, bit for bit.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from numpy.typing import NDArray

from edged.train.box_lessons import BoxLessons
from edged.train.detector import DetectorNetwork
from edged.train.graph import Graph
from edged.train.lessons import Lessons
from edged.train.lineage import Recipe
from edged.train.network import Network
from edged.train.pace import Halted, Pace, Workplace
from edgekit.atomic import whole_folder
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.forward import read_forward
from edgekit.autodiff.interfaces import Loss
from edgekit.autodiff.losses import CentrePointLoss, CrossEntropy
from edgekit.autodiff.optimisers import AdamW, Clipped
from edgekit.autodiff.run import StepRunner
from edgekit.autodiff.schedules import Schedule
from edgekit.autodiff.selection import trainable_weights
from edgekit.autodiff.step import build_step
from edgekit.faults import crash_point
from edgekit.graphs.errors import NetworkError
from edgekit.learning.budget import Budget
from edgekit.packages import InputSpec
from edgekit.training import (
    FORWARD_FILE,
    MODEL_FILE,
    STEP_FOLDER,
    WEIGHTS_FILE,
    Augmentation,
    BoxedExamples,
    CentrePointEvaluator,
    CheckpointFile,
    ClassifierEvaluator,
    EarlyStopping,
    Evaluator,
    ForwardModel,
    LabelledExamples,
    Paused,
    Rest,
    Saved,
    Settings,
    Started,
    StepDone,
    StepEngine,
    Trainer,
    job_name,
    replace_weights,
    write_plan,
)

TuningRung = Literal["last-blocks", "full"]
CHECKPOINT = "checkpoint"
PLAN = "plan"
SMOOTHING, WEIGHT_DECAY, CLIP = 0.05, 0.02, 5.0
AUGMENTATION = Augmentation(rotation=8.0, scale=0.1, shift=0.05, brightness=0.1, contrast=0.15, noise=5.0)
"""Small changes that every camera makes by itself, as in `cloudd train`."""
BOX_AUGMENTATION = msgspec.structs.replace(AUGMENTATION, rotation=2.0)
"""The upright box around a turned one is larger than the object."""

_SHARE = 0.25
"""Of the layers with weights, from the last one on, that count as the last blocks; two at least."""
_PEAK: dict[TuningRung, float] = {"last-blocks": 1e-3, "full": 5e-4}
_BOX_PEAK: dict[TuningRung, float] = {"last-blocks": 4e-3, "full": 2e-3}
_SHOWN: dict[TuningRung, int] = {"last-blocks": 6_000, "full": 12_000}
"""Pictures that are shown in all, the same one many times; `_EPOCHS` bounds what follows from it."""
_EPOCHS = (4, 40)
_BOX_EPOCHS = (4, 60)
_FEWEST_BOXES = 20
"""Boxes from which an epoch is chosen by them. By fewer it would be chosen by luck, and the last one is as good."""
_LOOKS = 4
_BATCH, _SMALL_BATCH = 16, 8
_LARGE = 128 * 128
"""Pixels of the input above which a batch is small, so that a step fits into a device's memory."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """A finished training. `write` puts MODEL_FILE and WEIGHTS_FILE into a folder."""

    write: Callable[[Path], None]
    settings: Settings
    trained: int  # weights that were trained
    epoch: int
    score: float | None
    ended: str


def recipe_of(tuned: Tuned) -> Recipe:
    """For the record."""
    settings = tuned.settings
    return Recipe(
        epochs=settings.epochs,
        batch=settings.batch,
        peak=settings.schedule.peak,
        balance=settings.balance,
        seed=settings.seed,
        trained=tuned.trained,
        epoch=tuned.epoch,
        score=tuned.score,
        ended=tuned.ended,
    )


def settings_for(
    rung: TuningRung,
    pictures: int,
    spec: InputSpec,
    seed: int,
    seconds: float,
    budget: Budget,
    *,
    boxes: bool = False,
) -> Settings:
    """How that many pictures are learned from, or views of pictures with `boxes`."""
    batch = _BATCH if spec.width * spec.height <= _LARGE and not boxes else _SMALL_BATCH
    fewest, most = _BOX_EPOCHS if boxes else _EPOCHS
    epochs = min(max(fewest, math.ceil(_SHOWN[rung] / max(1, pictures))), most)
    steps = epochs * max(1, pictures // batch)
    return Settings(
        epochs=epochs,
        batch=batch,
        schedule=Schedule(peak=(_BOX_PEAK if boxes else _PEAK)[rung], warm_up=min(50, steps // 10)),
        balance="root",
        early_stopping=EarlyStopping(patience=0),
        evaluate_every=max(1, epochs // _LOOKS),
        max_seconds=seconds,
        budget=budget,
        seed=seed,
    )


def last_blocks(network: Graph) -> list[str]:
    """The weights of the last quarter of the layers, and all behind the first of them. Raises AutodiffError."""
    forward = read_forward(network.model)
    names = trainable_weights(forward)
    layers = [at for at, name in enumerate(names) if forward.weights[name].rank >= 2]
    if not layers:
        raise NetworkError("the model has no weights that can be trained")
    return names[layers[-min(len(layers), max(2, math.ceil(_SHARE * len(layers))))] :]


def tune(
    rung: TuningRung,
    network: Network | DetectorNetwork,
    start: Callable[[], Network | DetectorNetwork],
    lessons: Lessons | BoxLessons,
    spec: InputSpec,
    settings: Settings,
    digest: str,
    at: Workplace,
) -> Tuned:
    """Train, or go on. `start` gives the network to begin with, and is asked only where nothing has begun yet.

    `network` has the same input and output, `digest` names the package that it is of; a classifier learns Lessons and a
    detector BoxLessons. Raises NetworkError, TrainingError, CheckpointError, DatasetError, ModelError, Halted, OSError.
    """
    plan = at.folder / PLAN
    try:
        if not plan.exists():
            _derive(rung, start(), plan)
        # `budget` says how fast it may be done, not what comes out: another one goes on with the same training.
        named = msgspec.structs.replace(settings, budget=Budget())
        runner = StepRunner(plan / STEP_FOLDER, threads=at.threads, spin=False)
        taught, changes = _taught(network, lessons, spec, settings.seed)
        forward = ForwardModel(plan / FORWARD_FILE, at.threads)
        try:
            trainer = Trainer(
                StepEngine(runner),
                taught,
                _evaluator(network, lessons, spec, forward),
                settings,
                job=job_name((named, changes), (rung, lessons.digest, digest)),
                checkpoints=CheckpointFile(at.folder / CHECKPOINT),
                clock=at.clock,
                sensors=at.sensors,
            )
            _run(trainer, at.pace)
        finally:
            forward.close()
    except AutodiffError as error:
        raise NetworkError(f"it cannot be trained: {error}") from None
    progress, weights = trainer.progress, trainer.result()
    trained = sum(math.prod(one.shape) for one in runner.manifest.of("parameter"))
    return Tuned(
        lambda target: _write(plan, weights, target),
        settings,
        trained,
        progress.best.epoch or progress.epoch,
        progress.best.score,
        progress.ended,
    )


def _taught(
    network: Network | DetectorNetwork, lessons: Lessons | BoxLessons, spec: InputSpec, seed: int
) -> tuple[LabelledExamples | BoxedExamples, Augmentation]:
    """What it learns from, and how that is changed."""
    if isinstance(network, DetectorNetwork):
        assert isinstance(lessons, BoxLessons), "a detector learns boxes"
        part, changes = lessons.learn, BOX_AUGMENTATION
        return lessons.examples(
            part, spec, network.stride, seed=seed, augmentation=changes, image=network.image
        ), changes
    assert isinstance(lessons, Lessons), "a classifier learns labels"
    return lessons.examples(
        lessons.learn, spec, seed=seed, augmentation=AUGMENTATION, image=network.image
    ), AUGMENTATION


def _evaluator(
    network: Network | DetectorNetwork, lessons: Lessons | BoxLessons, spec: InputSpec, forward: ForwardModel
) -> Evaluator | None:
    """Chooses the epoch; None where there is nothing to choose by."""
    if isinstance(network, DetectorNetwork):
        assert isinstance(lessons, BoxLessons), "a detector learns boxes"
        if lessons.choose.boxes < _FEWEST_BOXES:
            return None
        boxes = lessons.examples(lessons.choose, spec, network.stride, image=network.image)
        return CentrePointEvaluator(
            forward, boxes, spec.width, spec.height, outputs=network.outputs, image=network.image, score="ap"
        )
    assert isinstance(lessons, Lessons), "a classifier learns labels"
    if not lessons.choose.pictures:
        return None
    chosen = lessons.examples(lessons.choose, spec, image=network.image)
    return ClassifierEvaluator(forward, chosen, output=network.logits, image=network.image, score="loss")


def _loss(network: Network | DetectorNetwork) -> Loss:
    if isinstance(network, DetectorNetwork):
        heat, size, offset = network.outputs
        return CentrePointLoss(heat=heat, size=size, offset=offset)
    return CrossEntropy(output=network.logits, smoothing=SMOOTHING)


def _derive(rung: TuningRung, network: Network | DetectorNetwork, plan: Path) -> None:
    """Make the plan whole or not at all."""
    step = build_step(
        network.model,
        _loss(network),
        Clipped(AdamW(weight_decay=WEIGHT_DECAY), CLIP),
        last_blocks(network) if rung == "last-blocks" else ".*",
        # The statistics of few labels of some classes are not those of the line; where all weights move, they must.
        batch_norm="train" if rung == "full" and network.normalised else "frozen",
    )
    with whole_folder(plan) as staged:
        write_plan(step, staged)
    crash_point("train.planned")


def _run(trainer: Trainer, pace: Pace) -> None:
    steps = 0
    pace.hand_over(trainer.pause)
    try:
        for event in trainer.run():
            if isinstance(event, Started):
                pace.worked_before(trainer.progress.seconds)
                steps = event.steps
            elif isinstance(event, StepDone):
                pace.tell("training", event.step, steps, f"epoch {event.epoch}, loss {event.loss:.3g}")
                crash_point("train.step")
            elif isinstance(event, Saved):
                crash_point("train.saved")
            elif isinstance(event, Rest):
                pace.tell("training", trainer.progress.step, steps, f"rests: {event.reason}")
                pace.rest(event.seconds)
            elif isinstance(event, Paused):
                raise Halted(event.reason, bool(pace.asked))
    finally:
        pace.hand_over(None)


def _write(plan: Path, weights: dict[str, NDArray[Any]], target: Path) -> None:
    for file in (MODEL_FILE, WEIGHTS_FILE):
        shutil.copyfile(plan / file, target / file)
    replace_weights(target / WEIGHTS_FILE, weights)
