"""Trains a network: batches in, steps, evaluations, checkpoints, and events out. Owns no clock, file, sensor or sleep.

    trainer = Trainer(engine, examples, evaluator, settings, job=..., checkpoints=..., clock=time.monotonic)
    for event in trainer.run():
        if isinstance(event, Rest):
            time.sleep(event.seconds)
    weights = trainer.result()

The same engine, examples and settings give the same weights, bit for bit on one machine, however often the training
was paused or killed in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta
from numpy.typing import NDArray

from edgekit.autodiff.schedules import Schedule, learning_rate
from edgekit.learning.budget import Budget, Governor, Sensors, Stop, Wait, unlimited
from edgekit.training.checkpoint import Checkpoint, Checkpoints, Progress, Tensors, decode, encode
from edgekit.training.early_stopping import EarlyStopping, exhausted, observe
from edgekit.training.errors import TrainingError
from edgekit.training.evaluation import Evaluation, Evaluator
from edgekit.training.events import EpochDone, Event, Finished, Paused, Rest, Saved, Started, StepDone
from edgekit.training.examples import Examples
from edgekit.training.order import Balance, batches, epoch_order


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a network is trained, whatever it is and whatever it learns."""

    epochs: Annotated[int, Meta(ge=1, le=100_000)] = 30
    batch: Annotated[int, Meta(ge=1, le=4096)] = 16
    schedule: Schedule = Schedule(peak=0.02)
    balance: Balance = "none"  # how much more often rare classes are shown
    early_stopping: EarlyStopping = EarlyStopping()
    evaluate_every: Annotated[int, Meta(ge=1)] = 1  # epochs
    checkpoint_seconds: Annotated[float, Meta(ge=0.0)] = 60.0  # of computing between two checkpoints
    max_seconds: Annotated[float, Meta(gt=0.0)] | None = None  # of computing in all, over all runs
    budget: Budget = Budget()
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a longer training: `steps` steps behind the first `skip` of `whole` in all.

    Order, augmentation and learning rate are those of that place, so stretches that follow each other do what one
    training does, whoever holds the state in between. Of the settings, `epochs` means nothing then.
    """

    steps: Annotated[int, Meta(ge=1)]
    skip: Annotated[int, Meta(ge=0)]
    whole: Annotated[int, Meta(ge=1)]


class Engine(Protocol):
    """Executes train steps and holds the state between them: `edgekit.training.engine` does it with onnxruntime."""

    def step(self, feeds: Mapping[str, NDArray[Any]], learning_rate: float) -> float:
        """Learn from one batch; returns its loss. Raises TrainingError for feeds that do not fit."""
        ...

    def state(self) -> Tensors:
        """Copies of all that a step takes and hands on: weights, running statistics, momenta."""
        ...

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from such copies. Raises TrainingError for other names or shapes."""
        ...

    def weights(self) -> Tensors:
        """Copies of the weights and running statistics only: what the trained model needs."""
        ...


class Trainer:
    """One training. `job` names what a checkpoint belongs to: a hash of settings, dataset version and train graph.

    `clock` gives seconds that never go back. `evaluator` None: nothing is evaluated and the last weights count.
    `stretch` None: all epochs.
    """

    def __init__(
        self,
        engine: Engine,
        examples: Examples,
        evaluator: Evaluator | None,
        settings: Settings,
        *,
        job: str,
        checkpoints: Checkpoints,
        clock: Callable[[], float],
        sensors: Sensors = unlimited,
        stretch: Stretch | None = None,
    ) -> None:
        self._stretch = stretch
        self._engine, self._examples, self._evaluator, self._settings = engine, examples, evaluator, settings
        self._job, self._checkpoints, self._clock, self._sensors = job, checkpoints, clock, sensors
        self._governor = Governor(settings.budget)
        self._progress = Progress()
        self._best: Tensors = {}
        self._saved_at = 0.0  # seconds of computing
        self._pause = ""

    @property
    def progress(self) -> Progress:
        """Where the training stands."""
        return self._progress

    def pause(self, reason: str = "it was asked to pause") -> None:
        """Save and end before the next step. May be called from another thread or a signal handler."""
        self._pause = reason

    def result(self) -> Tensors:
        """The weights of the best evaluation, or the last ones where there was none."""
        return dict(self._best) or self._engine.weights()

    def run(self) -> Iterator[Event]:
        """Train until it is finished or paused. Raises TrainingError if the loss is no number any more.

        Raises OSError where a picture cannot be read or a checkpoint not be written; the checkpoint before it stands,
        and CheckpointError for one that is damaged or of another job.
        """
        groups = self._examples.groups
        size = min(self._settings.batch, len(groups))
        per_epoch = len(batches(epoch_order(groups, 0, self._settings.seed), size))
        steps = whole = per_epoch * self._settings.epochs
        skip = 0
        if self._stretch is not None:
            steps, skip, whole = self._stretch.steps, self._stretch.skip, self._stretch.whole
        if not self._restore():
            self._progress = Progress(epoch=skip // per_epoch, batch=skip % per_epoch)
        yield Started(self._progress.step, steps, self._progress.epoch, len(groups))
        while not self._progress.ended:
            order = epoch_order(groups, self._progress.epoch, self._settings.seed, self._settings.balance)
            for places in batches(order, size)[self._progress.batch :]:
                if self._out_of_time() or self._progress.step >= steps:
                    break
                if (yield from self._halted()):
                    return
                rate = learning_rate(self._settings.schedule, skip + self._progress.step, whole)
                yield self._step(places, rate, self._progress.batch * size)
                if self._progress.seconds - self._saved_at >= self._settings.checkpoint_seconds:
                    yield self._save()
            done = yield from self._end_epoch()
            if done is None:
                return
            yield done
            yield self._save()
        best = self._progress.best
        yield Finished(self._progress.ended, best.epoch if self._best else None, best.score)

    def _step(self, places: NDArray[Any], rate: float, start: int) -> StepDone:
        started = self._clock()
        loss = self._engine.step(self._examples.feeds(places, self._progress.epoch, start), rate)
        seconds = self._worked(started)
        step = self._progress.step + 1
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of step {step} is {loss}: the learning rate ({rate:.3g}) is probably too high; train with a "
                "tenth of it, a warm-up, or clipped gradients"
            )
        self._progress = msgspec.structs.replace(
            self._progress,
            step=step,
            batch=self._progress.batch + 1,
            loss_sum=self._progress.loss_sum + loss,
        )
        return StepDone(step, self._progress.epoch + 1, loss, rate, seconds)

    def _out_of_time(self) -> bool:
        limit = self._settings.max_seconds
        return limit is not None and self._progress.seconds >= limit

    def _end_epoch(self) -> Generator[Event, None, EpochDone | None]:
        """Evaluate where it is due and count the epoch; None where the training was halted before."""
        progress, settings = self._progress, self._settings
        epoch = progress.epoch + 1
        due = epoch % settings.evaluate_every == 0 or bool(self._over(epoch))
        evaluation: Evaluation | None = None
        if self._evaluator is not None and due:
            evaluation = yield from self._evaluate(self._evaluator)
            if evaluation is None:
                return None
        best = progress.best
        if evaluation is not None:
            best = observe(best, evaluation.score, epoch, settings.early_stopping)
            if best.epoch == epoch:
                self._best = self._engine.weights()
        ended = self._over(epoch)
        if not ended and exhausted(best, settings.early_stopping):
            ended = f"{best.waited} evaluations in a row did not beat epoch {best.epoch}"
        self._progress = msgspec.structs.replace(
            self._progress, epoch=epoch, batch=0, loss_sum=0.0, best=best, ended=ended
        )
        shown = min(progress.batch, progress.step)  # a stretch may begin in the middle of an epoch
        return EpochDone(epoch, progress.loss_sum / max(1, shown), evaluation, best.epoch == epoch)

    def _over(self, epoch: int) -> str:
        """Why the training is over after this epoch whatever it came to, "" if it is not."""
        settings, stretch = self._settings, self._stretch
        if stretch is None and epoch >= settings.epochs:
            return f"all {settings.epochs} epochs are done"
        if stretch is not None and self._progress.step >= stretch.steps:
            return f"all {stretch.steps} steps are done"
        if self._out_of_time():
            return f"{settings.max_seconds:g} seconds of computing were allowed"
        return ""

    def _evaluate(self, evaluator: Evaluator) -> Generator[Event, None, Evaluation | None]:
        evaluations = evaluator(self._engine.weights())
        while True:
            if (yield from self._halted()):
                return None
            started = self._clock()
            evaluation = next(evaluations)
            self._worked(started)
            if evaluation is not None:
                return evaluation

    def _halted(self) -> Generator[Event, None, bool]:
        """Rest as long as the budget asks for it; True after a pause, for which everything was saved."""
        while True:
            verdict = self._governor.verdict(self._sensors())
            reason = verdict.reason if isinstance(verdict, Stop) else self._pause
            if reason:
                self._pause = ""
                yield self._save()
                yield Paused(reason)
                return True
            if not isinstance(verdict, Wait):
                return False
            started = self._clock()
            yield Rest(verdict.seconds, verdict.reason)
            self._governor.rested(self._clock() - started)

    def _worked(self, started: float) -> float:
        seconds = self._clock() - started
        self._governor.worked(seconds)
        self._progress = msgspec.structs.replace(self._progress, seconds=self._progress.seconds + seconds)
        return seconds

    def _save(self) -> Saved:
        checkpoint = Checkpoint(job=self._job, progress=self._progress, state=self._engine.state(), best=self._best)
        self._checkpoints.write(encode(checkpoint))
        self._saved_at = self._progress.seconds
        return Saved(self._progress.step)

    def _restore(self) -> bool:
        data = self._checkpoints.read()
        if data is None:
            return False
        checkpoint = decode(data, self._job)
        self._engine.restore(checkpoint.state)
        self._progress, self._best = checkpoint.progress, checkpoint.best
        self._saved_at = self._progress.seconds
        return True
