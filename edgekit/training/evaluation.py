"""How good the weights are on examples that training never sees: one score to stop by, and the figures behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.runtimes.base import TensorInfo
from edgekit.training.errors import TrainingError
from edgekit.training.examples import BoxedExamples, Examples, LabelledExamples
from edgekit.vision.classification import softmax
from edgekit.vision.detection.boxes import Detections, ranked
from edgekit.vision.detection.heads import HeadConfig, make_head
from edgekit.vision.detection.metrics import Truth, average_precision

Weights = Mapping[str, NDArray[Any]]
Forward = Callable[[Mapping[str, NDArray[Any]], Weights], Mapping[str, NDArray[Any]]]
"""(images by input name, weights) -> the model's outputs by name."""

Score = Literal["balanced_accuracy", "accuracy", "macro_f1", "loss"]
"""What counts: a share of right answers, or the cross entropy (the lower the better), which still tells networks apart
that make no mistake on a few held-out pictures."""


@dataclass(frozen=True)
class Evaluation:
    """`score`: higher is better; what early stopping looks at. `figures` are for people."""

    score: float
    figures: Mapping[str, float] = field(default_factory=dict)


class Evaluator(Protocol):
    """Judges weights. The same weights get the same evaluation."""

    def __call__(self, weights: Weights) -> Iterator[Evaluation | None]:
        """None after each batch, so that others get their turn, and the evaluation at last.

        Raises TrainingError where the model gives values that are not numbers.
        """
        ...


@dataclass(frozen=True, eq=False)
class ClassifierEvaluator:
    """Accuracy, recall of each class, F1 and cross entropy of a classifier over `examples`."""

    forward: Forward
    examples: LabelledExamples
    output: str = "logits"
    image: str = "image"
    batch: int = 32
    score: Score = "balanced_accuracy"

    def __call__(self, weights: Weights) -> Iterator[Evaluation | None]:
        """See Evaluator."""
        logits = []
        count = len(self.examples.labels)
        for outputs in _outputs(self.forward, self.examples, count, self.image, self.batch, weights):
            logits.append(outputs[self.output])
            yield None
        figures = classification_figures(np.concatenate(logits), self.examples.labels)
        yield Evaluation(-figures["loss"] if self.score == "loss" else figures[self.score], figures)


@dataclass(frozen=True, eq=False)
class CentrePointEvaluator:
    """Average precision at IoU 0.5 ("ap50"), and COCO's mean from 0.5 to 0.95 ("ap"), of a centre-point detector.

    The mean still tells networks apart that find every box of a few pictures.
    """

    forward: Forward
    examples: BoxedExamples
    width: int  # of the model's input, pixels
    height: int
    outputs: tuple[str, str, str] = ("heat", "size", "offset")
    image: str = "image"
    batch: int = 8
    floor: float = 0.05
    score: Literal["ap50", "ap"] = "ap50"

    def __call__(self, weights: Weights) -> Iterator[Evaluation | None]:
        """See Evaluator. Boxes are compared in pixels of the model's input."""
        stride, classes = self.examples.stride, self.examples.classes
        grid = (self.height // stride, self.width // stride)
        config = HeadConfig(self.width, self.height, classes, self.floor, self.outputs, strides=(stride,))
        channels = (classes, 2, 2)
        tensors = [
            TensorInfo(name, (1, count, *grid), "float32") for name, count in zip(self.outputs, channels, strict=True)
        ]
        head = make_head("centernet", config, tensors)
        found: list[Detections] = []
        count = len(self.examples.truths)
        for outputs in _outputs(self.forward, self.examples, count, self.image, self.batch, weights):
            for row in range(len(outputs[self.outputs[0]])):
                one = head.decode([outputs[name][row : row + 1] for name in self.outputs])
                found.append(ranked(one.boxes, one.scores, one.labels, np.zeros_like(one.scores)))
            yield None
        truths = [Truth(self.examples.boxes(place), truth.labels) for place, truth in enumerate(self.examples.truths)]
        result = average_precision(found, truths, classes)
        figures = {"ap50": result.ap50 or 0.0, "ap": result.ap or 0.0}
        yield Evaluation(figures[self.score], figures)


def classification_figures(logits: NDArray[Any], labels: NDArray[np.int64]) -> dict[str, float]:
    """accuracy, balanced_accuracy, macro_f1, loss, and recall.K and precision.K of each class K that `labels` has.

    Balanced accuracy is the mean recall, macro F1 the mean F1, over these classes.
    """
    guesses = logits.argmax(axis=1)
    probabilities = softmax(logits)[np.arange(len(labels)), labels]
    figures: dict[str, float] = {}
    recalls, scores = [], []
    for one in np.unique(labels):
        right = int(((guesses == one) & (labels == one)).sum())
        wanted, given = int((labels == one).sum()), int((guesses == one).sum())
        figures[f"recall.{one}"] = right / wanted
        figures[f"precision.{one}"] = right / given if given else 0.0
        recalls.append(right / wanted)
        scores.append(2 * right / (wanted + given))
    return {
        "accuracy": float((guesses == labels).mean()),
        "balanced_accuracy": float(np.mean(recalls)),
        "macro_f1": float(np.mean(scores)),
        "loss": float(-np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)).mean()),
        **figures,
    }


def _outputs(
    forward: Forward, examples: Examples, count: int, image: str, batch: int, weights: Weights
) -> Iterator[Mapping[str, NDArray[Any]]]:
    if not count:
        raise TrainingError("there is no example to evaluate on")
    for start in range(0, count, batch):
        feeds = examples.plain(np.arange(start, min(count, start + batch)))
        outputs = forward({image: feeds[image]}, weights)
        for name, array in outputs.items():
            if not np.isfinite(array).all():
                raise TrainingError(f'the model gave NaN or infinity in "{name}" while it was evaluated')
        yield outputs
