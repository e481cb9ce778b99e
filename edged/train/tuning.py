"""Rungs `last-blocks` and `full`: gradient steps on the labels, old ones replayed among the new.

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

from edged.train.lessons import Lessons
from edged.train.network import Network, NetworkError
from edged.train.pace import Halted, Pace, Workplace
from edgekit.atomic import fsync_dir
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.forward import read_forward
from edgekit.autodiff.losses import CrossEntropy
from edgekit.autodiff.optimisers import AdamW, Clipped
from edgekit.autodiff.run import StepRunner
from edgekit.autodiff.schedules import Schedule
from edgekit.autodiff.selection import trainable_weights
from edgekit.autodiff.step import build_step
from edgekit.faults import crash_point
from edgekit.learning.budget import Budget
from edgekit.packages import InputSpec
from edgekit.training import (
    FORWARD_FILE,
    MODEL_FILE,
    STEP_FOLDER,
    WEIGHTS_FILE,
    Augmentation,
    CheckpointFile,
    ClassifierEvaluator,
    EarlyStopping,
    ForwardModel,
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

_SHARE = 0.25
"""Of the layers with weights, from the last one on, that count as the last blocks; two at least."""
_PEAK: dict[TuningRung, float] = {"last-blocks": 1e-3, "full": 5e-4}
_SHOWN: dict[TuningRung, int] = {"last-blocks": 6_000, "full": 12_000}
"""Pictures that are shown in all, the same one many times; `_EPOCHS` bounds what follows from it."""
_EPOCHS = (4, 40)
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


def settings_for(
    rung: TuningRung, pictures: int, spec: InputSpec, seed: int, seconds: float, budget: Budget
) -> Settings:
    """How that many pictures are learned from."""
    batch = _BATCH if spec.width * spec.height <= _LARGE else _SMALL_BATCH
    epochs = min(max(_EPOCHS[0], math.ceil(_SHOWN[rung] / max(1, pictures))), _EPOCHS[1])
    steps = epochs * max(1, pictures // batch)
    return Settings(
        epochs=epochs,
        batch=batch,
        schedule=Schedule(peak=_PEAK[rung], warm_up=min(50, steps // 10)),
        balance="root",
        early_stopping=EarlyStopping(patience=0),
        evaluate_every=max(1, epochs // _LOOKS),
        max_seconds=seconds,
        budget=budget,
        seed=seed,
    )


def last_blocks(network: Network) -> list[str]:
    """The weights of the last quarter of the layers, and all behind the first of them. Raises AutodiffError."""
    forward = read_forward(network.model)
    names = trainable_weights(forward)
    layers = [at for at, name in enumerate(names) if forward.weights[name].rank >= 2]
    if not layers:
        raise NetworkError("the model has no weights that can be trained")
    return names[layers[-min(len(layers), max(2, math.ceil(_SHARE * len(layers))))] :]


def tune(
    rung: TuningRung,
    network: Network,
    start: Callable[[], Network],
    lessons: Lessons,
    spec: InputSpec,
    settings: Settings,
    digest: str,
    at: Workplace,
) -> Tuned:
    """Train, or go on. `start` gives the network to begin with, and is asked only where nothing has begun yet.

    `network` has the same input and output, `digest` names the package that it is of. Raises NetworkError,
    TrainingError, CheckpointError, DatasetError, ModelError, Halted, OSError.
    """
    plan = at.folder / PLAN
    try:
        if not plan.exists():
            _derive(rung, start(), plan)
        # `budget` says how fast it may be done, not what comes out: another one goes on with the same training.
        named = msgspec.structs.replace(settings, budget=Budget())
        runner = StepRunner(plan / STEP_FOLDER, threads=at.threads, spin=False)
        examples = lessons.examples(
            lessons.learn, spec, seed=settings.seed, augmentation=AUGMENTATION, image=network.image
        )
        forward = ForwardModel(plan / FORWARD_FILE, at.threads)
        try:
            evaluator = None
            if lessons.choose.pictures:
                chosen = lessons.examples(lessons.choose, spec, image=network.image)
                evaluator = ClassifierEvaluator(
                    forward, chosen, output=network.logits, image=network.image, score="loss"
                )
            trainer = Trainer(
                StepEngine(runner),
                examples,
                evaluator,
                settings,
                job=job_name((named, AUGMENTATION), (rung, lessons.digest, digest)),
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


def _derive(rung: TuningRung, network: Network, plan: Path) -> None:
    """Make the plan whole or not at all."""
    step = build_step(
        network.model,
        CrossEntropy(output=network.logits, smoothing=SMOOTHING),
        Clipped(AdamW(weight_decay=WEIGHT_DECAY), CLIP),
        last_blocks(network) if rung == "last-blocks" else ".*",
        # The statistics of few labels of some classes are not those of the line; where all weights move, they must.
        batch_norm="train" if rung == "full" and network.normalised else "frozen",
    )
    staged = plan.with_name(f".{plan.name}")
    shutil.rmtree(staged, ignore_errors=True)
    write_plan(step, staged)
    staged.rename(plan)
    fsync_dir(plan.parent)
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
