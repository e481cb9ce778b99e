"""One training with its pictures: events while it goes on, trained weights at its end. Owns no clock and no sleep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from cloudd.derived import Progress
from cloudd.train.errors import TrainError
from cloudd.train.job import CHECKPOINT, PLAN_FOLDER, Job
from cloudd.train.parts import Parts, divide
from edgekit import toml
from edgekit.architectures import detection_spec, input_spec
from edgekit.autodiff.run import StepRunner
from edgekit.datasets.dataset import Dataset, DatasetError, Picture, digest
from edgekit.packages import InputSpec
from edgekit.training import (
    FORWARD_FILE,
    STEP_FOLDER,
    Augmentation,
    BoxedExamples,
    CentrePointEvaluator,
    CheckpointFile,
    ClassifierEvaluator,
    Evaluator,
    Event,
    ForwardModel,
    LabelledExamples,
    Pictures,
    StepEngine,
    Trainer,
    TrainingError,
    job_name,
)
from edgekit.vision.detection.metrics import Truth


class Training:
    """A context manager. `threads` of one step; `clock` gives seconds that never go back.

    Raises DatasetError if the pictures are no longer those of the job, or one cannot be used; TrainError or
    AutodiffError if its graphs are damaged.
    """

    def __init__(
        self,
        job: Job,
        dataset: Dataset,
        folder: Path,
        *,
        threads: int,
        clock: Callable[[], float],
        progress: Progress = lambda step, done, total: None,
    ) -> None:
        if dataset.digest != job.digest:
            raise DatasetError(
                f"the pictures or labels at {job.source} changed since this training was begun; remove {folder} and "
                "train anew"
            )
        self.job, self.dataset, self.folder = job, dataset, folder
        self.parts: Parts = divide(dataset)
        recipe = job.recipe
        plan = folder / PLAN_FOLDER
        self._forward = ForwardModel(plan / FORWARD_FILE, threads)
        total = len(self.parts.train) + len(self.parts.val)
        examples = self._examples(self.parts.train, recipe.augmentation, lambda done: progress("reading", done, total))
        evaluator = self._evaluator(lambda done: progress("reading", len(self.parts.train) + done, total))
        self._trainer = Trainer(
            StepEngine(StepRunner(plan / STEP_FOLDER, threads=threads)),
            examples,
            evaluator,
            recipe.settings,
            # The digest of a dataset does not say which part a picture belongs to.
            job=job_name((recipe,), (job.digest, *(digest(pictures) for _, pictures in self.parts.items()))),
            checkpoints=CheckpointFile(folder / CHECKPOINT),
            clock=clock,
        )

    def __enter__(self) -> Training:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._forward.close()

    @property
    def input(self) -> InputSpec:
        """`[input]` of the package."""
        return input_spec(self.job.recipe.network)

    def pause(self, reason: str) -> None:
        """Save and end before the next step. May be called from a signal handler."""
        self._trainer.pause(reason)

    def run(self) -> Iterator[Event]:
        """Train until it is finished or paused; raises as `Trainer.run` does.

        Whoever iterates sleeps where the event is a Rest.
        """
        return self._trainer.run()

    @property
    def ended(self) -> bool:
        """Whether `run` came to the end of the training."""
        return bool(self._trainer.progress.ended)

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights count."""
        return self._trainer.progress.best.epoch

    @property
    def score(self) -> float | None:
        """Of that epoch on the part val: minus the cross entropy, or the average precision at IoU 0.5."""
        return self._trainer.progress.best.score

    @property
    def why_ended(self) -> str:
        """A sentence."""
        return self._trainer.progress.ended

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The trained weights. Raises TrainError before the training has ended."""
        if not self.ended:
            raise TrainError(f"{self.job.ref} is not trained to its end yet")
        return {name: np.asarray(array, np.float32) for name, array in self._trainer.result().items()}

    def _evaluator(self, seen: Callable[[int], None]) -> Evaluator:
        examples = self._examples(self.parts.val, None, seen)
        if isinstance(examples, LabelledExamples):
            # Balanced accuracy hardly tells networks apart on the few pictures that a rare label has here.
            return ClassifierEvaluator(self._forward, examples, score="loss")
        return CentrePointEvaluator(self._forward, examples, self.input.width, self.input.height)

    def _examples(
        self, pictures: Sequence[Picture], augmentation: Augmentation | None, seen: Callable[[int], None]
    ) -> LabelledExamples | BoxedExamples:
        recipe = self.job.recipe
        held = Pictures(lambda place: self.dataset.read(pictures[place]), self.input)
        for place, picture in enumerate(pictures):  # a bad one is told now, and not in an hour
            try:
                held.fitted(place)
            except TrainingError as error:
                raise DatasetError(f"{toml.show(picture.file)}: {error}") from None
            seen(place + 1)
        seed = recipe.settings.seed
        if not recipe.detection:
            labels = np.array([recipe.labels.index(one.label) for one in pictures])
            return LabelledExamples(held, labels, len(recipe.labels), seed=seed, augmentation=augmentation)
        truths = [truth_of(one, recipe.labels) for one in pictures]
        (stride,) = detection_spec().strides
        return BoxedExamples(held, truths, len(recipe.labels), stride, seed=seed, augmentation=augmentation)


def truth_of(picture: Picture, labels: Sequence[str]) -> Truth:
    """The boxes of a picture in its own pixels."""
    boxes = picture.boxes or ()
    sides = np.array([(box.left, box.top, box.right, box.bottom) for box in boxes], np.float32).reshape(-1, 4)
    return Truth(sides, np.array([labels.index(box.label) for box in boxes], np.int64))
