"""An Engine in numpy: softmax regression on all pixels, by gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.packages import InputSpec
from edgekit.training import Augmentation, ClassifierEvaluator, LabelledExamples, Pictures, Settings, Trainer
from edgekit.training.evaluation import Evaluation
from edgekit.vision.images import encode_png

SIDE, CLASSES = 8, 3


class Clock:
    """Seconds that pass when somebody works or rests."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SoftmaxEngine:
    def __init__(self, clock: Clock | None = None, step_seconds: float = 0.1) -> None:
        self._state = {name: np.zeros((SIDE * SIDE, CLASSES), np.float32) for name in ("weight", "weight.momentum")}
        self._clock, self._step_seconds = clock, step_seconds

    def step(self, feeds: Mapping[str, NDArray[Any]], learning_rate: float) -> float:
        if self._clock is not None:
            self._clock.now += self._step_seconds
        x, labels = feeds["image"].reshape(len(feeds["image"]), -1), feeds["labels"]
        logits = x @ self._state["weight"]
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        p = shifted / shifted.sum(axis=1, keepdims=True)
        wrong = p - np.eye(CLASSES, dtype=np.float32)[labels]
        velocity = np.float32(0.9) * self._state["weight.momentum"] + x.T @ wrong / np.float32(len(x))
        weight = self._state["weight"] - np.float32(learning_rate) * velocity
        self._state = {"weight": weight, "weight.momentum": velocity}
        return float(-np.log(p[np.arange(len(x)), labels]).mean())

    def state(self) -> dict[str, NDArray[Any]]:
        return {name: array.copy() for name, array in self._state.items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._state = {name: array.copy() for name, array in state.items()}

    def weights(self) -> dict[str, NDArray[Any]]:
        return {"weight": self._state["weight"].copy()}


def forward(images: Mapping[str, NDArray[Any]], weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    image = images["image"]
    return {"logits": image.reshape(len(image), -1) @ weights["weight"]}


def examples(seed: int, count: int = 24) -> LabelledExamples:
    """Noisy pictures with a bright bar in a third of their own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    files = []
    for label in labels:
        image = rng.integers(0, 120, (SIDE, SIDE), np.uint8)
        image[3 * label : 3 * label + 2] += 100
        files.append(encode_png(image))
    pictures = Pictures(
        files.__getitem__, InputSpec(width=SIDE, height=SIDE, colour="grey", mean=[127.5], scale=[0.01])
    )
    return LabelledExamples(pictures, labels, CLASSES, seed=1, augmentation=Augmentation(noise=20, brightness=0.1))


def evaluator(clock: Clock | None = None, seconds: float = 0.05) -> Any:
    judge = ClassifierEvaluator(forward, examples(99), batch=8)

    def evaluate(weights: Mapping[str, NDArray[Any]]) -> Iterator[Evaluation | None]:
        for result in judge(weights):
            if clock is not None:
                clock.now += seconds
            yield result

    return evaluate


def trainer(checkpoints: Any, settings: Settings, clock: Clock | None = None, **other: Any) -> Trainer:
    clock = clock or Clock()
    return Trainer(
        SoftmaxEngine(clock),
        other.pop("examples", None) or examples(0),
        other.pop("evaluator", evaluator(clock)),
        settings,
        job="job",
        checkpoints=checkpoints,
        clock=clock,
        **other,
    )


def until_killed(folder: str) -> None:
    """Train slowly and for ever, with a checkpoint at each step: for a process that is killed."""
    import time

    from edgekit.training import CheckpointFile

    settings = Settings(epochs=100_000, batch=8, checkpoint_seconds=0.0)
    made = trainer(CheckpointFile(Path(folder) / "checkpoint"), settings)
    for _ in made.run():
        print(made.progress.step, flush=True)
        time.sleep(0.002)
