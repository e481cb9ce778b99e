"""The updates of a real device: its own labelled pictures, trained as the job says, at the pace that is allowed."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.federation.files import JobFolder
from edged.federation.shared import Shared
from edged.federation.subject import subject_of
from edged.federation.updates import SourceError, Stopped
from edged.train.box_lessons import BoxLessons
from edged.train.lessons import Lessons
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.manifest import read_states
from edgekit.autodiff.run import StepRunner
from edgekit.datasets.dataset import DatasetError
from edgekit.faults import crash_point
from edgekit.federated.course import rates, schedule_of, steps_of, whole
from edgekit.federated.strategy import LocalResult, LocalTerm, State
from edgekit.learning.budget import Budget, Sensors
from edgekit.packages import DetectionSpec, InputSpec
from edgekit.runtimes import ModelError, SessionOptions, open_session
from edgekit.training import (
    FORWARD_FILE,
    MODEL_FILE,
    STEP_FOLDER,
    WEIGHTS_FILE,
    ForwardModel,
    Paused,
    Rest,
    Saved,
    Settings,
    StepDone,
    StepEngine,
    Stretch,
    Trainer,
    TrainingError,
    job_name,
    replace_weights,
)

CHECKPOINT = "training"
ANCHOR = ".anchor"
"""As `edgekit.autodiff.losses.proximal.ANCHOR`, whose module needs the package onnx; training a job needs none."""
_PERSONAL = "personal-"
_MOMENTS = "optimiser/"
_NAP_S = 0.5

Weights = dict[str, NDArray[np.float32]]


class _Kept(msgspec.Struct, frozen=True):
    version: int


class LocalTrainer:
    """A `Source`. Use it from one thread at a time, `stop` from any."""

    def __init__(
        self,
        shared: Shared,
        folder: JobFolder,
        lessons: Lessons | BoxLessons,
        spec: InputSpec,
        *,
        detection: DetectionSpec | None = None,
        threads: int = 1,
        budget: Budget | None = None,
        sensors: Sensors | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`detection`: of a detector's package. Raises SourceError for a train step or pictures that do not fit."""
        self._shared, self._folder, self._lessons = shared, folder, lessons
        self._local, self._threads, self._clock = shared.job.local, threads, clock
        self._budget = budget or Budget()
        self._sensors: dict[str, Sensors] = {} if sensors is None else {"sensors": sensors}
        if lessons.classes != shared.job.labels:
            raise SourceError("the job's labels are not those of the model that this service runs")
        if not lessons.learn.pictures:
            raise SourceError("this device has no labelled picture to learn from")
        try:
            self._runner = StepRunner(folder.files / STEP_FOLDER, threads=threads, spin=False)
            self._first = read_states(folder.files / STEP_FOLDER, self._runner.manifest)
            self.image, self.logits = _names(folder.files / MODEL_FILE)
        except (AutodiffError, ModelError, OSError) as error:
            raise SourceError(f"the job's train step cannot be used here: {error}") from None
        self._subject = subject_of(lessons, spec, self.logits, detection)
        self._stop = threading.Event()
        self._trainer: Trainer | None = None

    @property
    def samples(self) -> int:
        """See Source."""
        return self._subject.samples

    def stop(self) -> None:
        """See Source."""
        self._stop.set()
        trainer = self._trainer
        if trainer is not None:
            trainer.pause()

    def train(self, state: State, term: LocalTerm, version: int) -> LocalResult:
        """See Source."""
        self._stop.clear()
        weights = self.weights(state, version)
        try:
            steps, after, moments = self._trained(weights, term, version)
            flat = self._shared.rules.strategy.layout.flatten(after)
        except (TrainingError, AutodiffError, DatasetError, ModelError) as error:
            raise SourceError(f"the local training failed: {error}") from None
        mine = {name: after[name] for name in self._shared.rules.strategy.layout.personal}
        if self._local.moments == "kept":
            mine.update({_MOMENTS + name: array for name, array in moments.items()})
        if mine:
            self._folder.write(f"{_PERSONAL}{version:09d}", _Kept(version), mine)
            for name in self._folder.names(_PERSONAL)[:-2]:
                self._folder.remove(name)
        self._folder.remove(CHECKPOINT)
        rate = float(np.mean(rates(self._local, version, self._shared.job.rounds, steps)))
        return LocalResult(delta=flat - state.model, samples=self.samples, steps=steps, learning_rate=rate)

    def evaluate(self, state: State) -> tuple[NDArray[np.int64], float]:
        """See Source."""
        weights = self.weights(state)
        try:
            with closing(ForwardModel(self._folder.files / FORWARD_FILE, self._threads)) as forward:
                return self._subject.judged(lambda batch: forward({self.image: batch}, weights), self.image)
        except (ModelError, TrainingError, DatasetError) as error:
            raise SourceError(f"the shared model cannot be judged here: {error}") from None

    def weights(self, state: State, version: int | None = None) -> Weights:
        """All tensors of the model: shared ones of the state, personal ones as the newest training (before `version`)
        left them.
        """
        layout = self._shared.rules.strategy.layout
        return {**layout.unflatten(state.model), **self._mine(layout.personal, "", version)}

    def _mine(self, names: Iterable[str], prefix: str, version: int | None) -> Weights:
        """Tensors that never leave, as the newest training before `version` left them; the first ones if none did."""
        found: Weights = {name: self._first[name] for name in names}
        for entry in self._folder.names(_PERSONAL):
            kept = self._folder.read(entry, _Kept)
            if kept is None or (version is not None and kept[0].version >= version):
                continue
            if all(prefix + name in kept[1] and kept[1][prefix + name].shape == found[name].shape for name in found):
                found = {name: np.asarray(kept[1][prefix + name], np.float32) for name in found}
        return found

    def write_model(self, state: State, target: Path) -> None:
        """Put the model of a state into a folder: MODEL_FILE and WEIGHTS_FILE. Raises TrainingError, OSError."""
        for file in (MODEL_FILE, WEIGHTS_FILE):
            shutil.copyfile(self._folder.files / file, target / file)
        replace_weights(target / WEIGHTS_FILE, self.weights(state))

    # --- training ---------------------------------------------------------------------------------------------------

    def _trained(self, weights: Weights, term: LocalTerm, version: int) -> tuple[int, Weights, Weights]:
        """Steps made, and all weights and the optimiser's states after them."""
        local, runner = self._local, self._runner
        names = [one.name for one in runner.manifest.of("optimiser")]
        fresh = {name: self._first[name] for name in names}
        runner.load({**(self._mine(names, _MOMENTS, version) if local.moments == "kept" else fresh), **weights})
        parameters = [one.name for one in runner.manifest.of("parameter")]
        anchors = {name + ANCHOR: weights[name] for name in parameters} if term.proximal else {}
        engine = _Corrected(StepEngine(runner, optimiser_inputs=anchors), runner, self._corrections(term, parameters))
        steps = steps_of(local, self.samples)
        stretch = Stretch(steps=steps, skip=version * steps, whole=whole(self._shared.job.rounds, steps))
        settings = Settings(
            epochs=local.epochs,
            batch=local.batch,
            schedule=schedule_of(local, steps),
            balance=local.balance,
            budget=self._budget,
            seed=local.seed,
        )
        named = msgspec.structs.replace(
            settings, budget=Budget()
        )  # how fast it may go changes nothing of what it gives
        examples = self._subject.examples(local, self.image)
        job = job_name((named, local, stretch), (self._shared.digest().hex(), self._lessons.digest))
        trainer = Trainer(
            engine,
            examples,
            None,
            settings,
            job=job,
            checkpoints=_SealedCheckpoint(self._folder, job),
            clock=self._clock,
            stretch=stretch,
            **self._sensors,
        )
        self._trainer = trainer
        try:
            self._run(trainer)
        finally:
            self._trainer = None
        after = {name: np.asarray(one, np.float32) for name, one in engine.state().items()}
        return steps, after, {name: after[name] for name in names}

    def _run(self, trainer: Trainer) -> None:
        for event in trainer.run():
            if self._stop.is_set():
                trainer.pause()
            if isinstance(event, Rest):
                self._stop.wait(event.seconds)
            elif isinstance(event, StepDone):
                crash_point("fl.step")
            elif isinstance(event, Saved):
                crash_point("fl.checkpoint")
            elif isinstance(event, Paused):
                if self._stop.is_set():
                    raise Stopped(event.reason)
                raise SourceError(event.reason)

    def _corrections(self, term: LocalTerm, parameters: list[str]) -> Weights:
        """What SCAFFOLD adds to the gradient of each trained tensor; running statistics have none."""
        if term.correction is None:
            return {}
        found = self._shared.rules.strategy.layout.unflatten(np.asarray(term.correction, np.float32))
        return {name: found[name] for name in parameters if name in found}


class _Corrected:
    """An Engine whose every step also goes against a constant: w -= learning_rate * correction."""

    def __init__(self, engine: StepEngine, runner: StepRunner, corrections: Weights) -> None:
        self._engine, self._runner, self._corrections = engine, runner, corrections

    def step(self, feeds: Mapping[str, NDArray[Any]], learning_rate: float) -> float:
        """See Engine.step."""
        loss = self._engine.step(feeds, learning_rate)
        if self._corrections:
            now, rate = self._runner.parameters(), np.float32(learning_rate)
            self._runner.load({name: now[name] - rate * one for name, one in self._corrections.items()})
        return loss

    def state(self) -> dict[str, NDArray[Any]]:
        """See Engine.state."""
        return self._engine.state()

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See Engine.restore."""
        self._engine.restore(state)

    def weights(self) -> dict[str, NDArray[Any]]:
        """See Engine.weights."""
        return self._engine.weights()


class _SealedCheckpoint:
    """`edgekit.training.Checkpoints` in the job's folder. One that does not open, or of another round, is none."""

    def __init__(self, folder: JobFolder, job: str) -> None:
        self._folder, self._mark = folder, job.encode()

    def read(self) -> bytes | None:
        """See Checkpoints.read."""
        data = self._folder.read_bytes(CHECKPOINT)
        return data[len(self._mark) :] if data is not None and data.startswith(self._mark) else None

    def write(self, data: bytes) -> None:
        """See Checkpoints.write."""
        self._folder.write_bytes(CHECKPOINT, self._mark + data)


def _names(model: Path) -> tuple[str, str]:
    """Of the model's input and of its first output."""
    with closing(open_session(model, "onnxruntime", SessionOptions(threads=1), [WEIGHTS_FILE])) as session:
        return session.inputs[0].name, session.outputs[0].name
