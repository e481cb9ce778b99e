"""The updates of a real device to a head of one round: sums over the features of its own labelled pictures."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.federation.files import JobFolder
from edged.federation.shared import Shared
from edged.federation.updates import SourceError, Stopped
from edged.train.lessons import Lessons, Part
from edged.train.pace import Halted, Pace
from edgekit.datasets.dataset import DatasetError
from edgekit.federated.errors import FederatedError
from edgekit.federated.head_jobs import FEATURES_FILE, HeadStrategy
from edgekit.federated.strategy import LocalResult, LocalTerm, State
from edgekit.learning.budget import Budget, Sensors, unlimited
from edgekit.packages import InputSpec
from edgekit.runtimes import ModelError, Session, SessionOptions, open_session
from edgekit.training import MODEL_FILE, WEIGHTS_FILE, TrainingError, replace_weights
from edgekit.vision.classification import softmax


class HeadSource:
    """A `Source`. Use it from one thread at a time, `stop` from any."""

    def __init__(
        self,
        shared: Shared,
        folder: JobFolder,
        lessons: Lessons | None,
        spec: InputSpec,
        *,
        threads: int = 1,
        budget: Budget | None = None,
        sensors: Sensors = unlimited,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`lessons` None: this device takes its sums out, and needs no picture for it.

        Raises SourceError for a job that is no head, or pictures that do not fit it.
        """
        head = shared.rules.head
        if head is None:
            raise SourceError("the job is no head of one round")
        self._head: HeadStrategy = head
        self._shared, self._folder, self._lessons, self._spec = shared, folder, lessons, spec
        self._options = SessionOptions(threads=threads)
        self._budget, self._sensors, self._clock = budget or Budget(), sensors, clock
        self._stop = threading.Event()
        self._pace: Pace | None = None
        if lessons is not None and lessons.classes != shared.job.labels:
            raise SourceError("the job's labels are not those of the model that this service runs, and new ones")
        if lessons is not None and not (lessons.learn.pictures or lessons.choose.pictures):
            raise SourceError("this device has no labelled picture to learn from")

    @property
    def samples(self) -> int:
        """See Source. A device that leaves has as many as it has in the totals."""
        if self._lessons is not None:
            return len(self._lessons.learn.pictures) + len(self._lessons.choose.pictures)
        if self._shared.memory is None:
            return 0
        counts = self._shared.memory[: len(self._shared.job.labels)]
        return int(np.asarray(counts, np.float64).sum() * 2.0**-self._head.settings.fraction_bits)

    @property
    def logits(self) -> str:
        """Name of the model's output. Raises ModelError."""
        with closing(open_session(self._path(MODEL_FILE), "onnxruntime", self._options, [WEIGHTS_FILE])) as session:
            return session.outputs[0].name

    def stop(self) -> None:
        """See Source."""
        self._stop.set()
        pace = self._pace
        if pace is not None:
            pace.pause("the round goes on without it")

    def train(self, state: State, term: LocalTerm, version: int) -> LocalResult:
        """See Source."""
        self._stop.clear()
        try:
            if self._lessons is None:
                return self._head.result(np.zeros((0, 0)), np.zeros(0, np.int64))
            parts = (self._lessons.learn, self._lessons.choose)
            rows = self._features(parts, "features")
            return self._head.result(rows, np.concatenate([part.labels for part in parts]))
        except FederatedError as error:
            raise SourceError(f"this device's sums cannot be a part of the head: {error}") from None

    def evaluate(self, state: State) -> tuple[NDArray[np.int64], float]:
        """See Source."""
        self._stop.clear()
        count = len(self._shared.job.labels)
        confusion = np.zeros((count, count), np.int64)
        if self._lessons is None or not len(self._lessons.judge.labels):
            return confusion, 0.0
        truth = self._lessons.judge.labels
        rows = self._features((self._lessons.judge,), "judging")
        try:
            layer = self._head.layer(state)
        except FederatedError as error:
            raise SourceError(f"the shared head cannot be judged here: {error}") from None
        logits = (rows @ layer.weight.T + layer.bias).astype(np.float32)
        np.add.at(confusion, (truth, logits.argmax(axis=1)), 1)
        said = softmax(logits)[np.arange(len(truth)), truth]
        return confusion, float(-np.log(np.maximum(said, np.finfo(np.float32).tiny)).mean())

    def write_model(self, state: State, target: Path) -> None:
        """Put the model with the head of a state into a folder. Raises TrainingError, SourceError, OSError."""
        try:
            layer = self._shared.rules.tensors(state)
        except FederatedError as error:
            raise SourceError(f"there is no shared head: {error}") from None
        for file in (MODEL_FILE, WEIGHTS_FILE):
            shutil.copyfile(self._path(file), target / file)
        replace_weights(target / WEIGHTS_FILE, layer)

    # --- features ---------------------------------------------------------------------------------------------------

    def _features(self, parts: tuple[Part, ...], step: Any) -> NDArray[np.float64]:
        """[n, d] of all pictures of the parts, at the pace that is allowed. Raises SourceError, Stopped."""
        self._pace = pace = Pace(self._budget, self._sensors, self._clock, self._nap, lambda progress: None)
        if self._stop.is_set():
            raise Stopped("the round goes on without it")
        total = sum(len(part.pictures) for part in parts)
        rows = np.empty((total, self._head.base.features))
        try:
            with closing(
                open_session(self._path(FEATURES_FILE), "onnxruntime", self._options, [WEIGHTS_FILE])
            ) as session:
                for at, row in enumerate(pace.through(step, self._each(session, parts), total)):
                    if row.shape != rows.shape[1:]:
                        raise SourceError(f"a picture has {row.size} features; the head has {rows.shape[1]}")
                    rows[at] = row
        except Halted as error:
            if error.asked:
                raise Stopped(str(error)) from None
            raise SourceError(str(error)) from None
        except (ModelError, TrainingError, DatasetError) as error:
            raise SourceError(f"the features of a picture cannot be computed: {error}") from None
        finally:
            self._pace = None
        return rows

    def _each(self, session: Session, parts: tuple[Part, ...]) -> Iterator[NDArray[Any]]:
        assert self._lessons is not None
        for part in parts:
            pictures = self._lessons.pictures(part, self._spec, cache_bytes=0)
            for at in range(len(part.pictures)):
                image = pictures.tensor(pictures.fitted(at).image)
                yield np.asarray(session.run({session.inputs[0].name: image})[0], np.float64).reshape(-1)

    def _nap(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def _path(self, file: str) -> Path:
        return self._folder.files / file
