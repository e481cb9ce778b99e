"""What models say about the held-out pictures, and how long they take, all of them on each picture in turn."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cloudd.derived import Progress
from edgekit import toml
from edgekit.datasets.dataset import Dataset, DatasetError, Picture
from edgekit.gates.paired import Answers
from edgekit.gates.scores import hardness
from edgekit.runtimes import ModelError
from edgekit.vision.classification import Classifier
from edgekit.vision.images import ImageError

_WARM_UP = 3


@dataclass
class Observed:
    """What one model did. `fault`: why it first gave no usable answer, "" if it always did."""

    labels: list[int] = field(default_factory=list)
    hardness: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    fault: str = ""

    @property
    def answers(self) -> Answers:
        """For the gate."""
        return Answers(np.array(self.labels, np.int64), np.array(self.hardness, np.float64))

    def percentile_ms(self, percent: float) -> float:
        """Of the CPU time of one picture, which other processes do not lengthen as they do the time on the wall."""
        return float(np.percentile(self.cpu_ms, percent))


def observe(
    models: Mapping[str, Classifier], dataset: Dataset, pictures: Sequence[Picture], progress: Progress
) -> dict[str, Observed]:
    """Ask every model about every picture. The first one's package prepares them for all.

    A model that fails on a picture is noted and goes on. Raises DatasetError for a picture that cannot be decoded.
    """
    found = {name: Observed() for name in models}
    turns = list(models.items())
    for number, picture in enumerate(pictures):
        progress("judging", number, len(pictures))
        tensor = tensor_of(turns[0][1], dataset, picture)
        for _ in range(0 if number else _WARM_UP):
            for _, model in turns:
                _ask(model, tensor, Observed())
        first = number % len(turns)  # nobody always runs with a cache that the same one has left
        for name, model in turns[first:] + turns[:first]:
            _ask(model, tensor, found[name])
    progress("judging", len(pictures), len(pictures))
    return found


def tensor_of(model: Classifier, dataset: Dataset, picture: Picture) -> NDArray[np.float32]:
    """A picture as the model's input. Raises DatasetError, and ModelError if the model takes no such input."""
    try:
        return model.tensor(dataset.read(picture))
    except ImageError as error:
        raise DatasetError(f"{toml.show(picture.file)} cannot be used: {error}") from None


def _ask(model: Classifier, tensor: NDArray[np.float32], observed: Observed) -> None:
    started = time.thread_time()
    try:
        said = model.classify_tensor(tensor)
    except ModelError as error:
        observed.fault = observed.fault or str(error)
        observed.labels.append(-1)
        observed.hardness.append(1.0)
    else:
        observed.labels.append(said.index)
        observed.hardness.append(hardness(said.margin))
    observed.cpu_ms.append((time.thread_time() - started) * 1e3)
