"""How good the model is, over all devices, from one masked sum: no device's accuracy is known to anybody else.

Each device judges the same model on samples that it held out and contributes its confusion matrix and the sum of its
losses, as two digits of a whole number. The counts are exact, so accuracy, recall, precision and F1 are those of all
held-out samples together. A detector's matrix has one row more for false alarms, and one column for what it missed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edgekit.federated.errors import FederatedError
from edgekit.federated.strategy import Contribution
from edgekit.federated.sums import Room, RoundNumbers, Sum, to_values, whole_numbers

_LOSS = 256.0
"""Codes to one unit of loss."""
_MAX_LOSS = 1e4


class Evaluation(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="strategy", tag="evaluation"
):
    """Settings."""

    labels: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=128)], ...], Meta(min_length=1, max_length=1024)
    ]
    room: Room
    boxes: bool = False  # of a detector

    @property
    def side(self) -> int:
        """Rows of the matrix, and columns."""
        return len(self.labels) + self.boxes


@dataclass(frozen=True, eq=False)
class Figures:
    """Of all devices together."""

    labels: tuple[str, ...]
    confusion: NDArray[np.int64]  # [c, c]: rows are what samples are, columns what the model says; of boxes one more
    loss: float  # mean over the samples
    devices: int

    @property
    def samples(self) -> int:
        """Held-out samples; of a detector its boxes, true ones and false alarms."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of samples that were told right."""
        return float(np.trace(self.confusion)) / self.samples

    @property
    def recall(self) -> NDArray[np.float64]:
        """Of each class; NaN for one without samples."""
        return self._shares(np.diag(self.confusion), self.confusion.sum(axis=1))

    @property
    def precision(self) -> NDArray[np.float64]:
        """Of each class; NaN for one that the model never says."""
        return self._shares(np.diag(self.confusion), self.confusion.sum(axis=0))

    @property
    def f1(self) -> NDArray[np.float64]:
        """Of each class; NaN for one that neither occurs nor is said."""
        return self._shares(2 * np.diag(self.confusion), self.confusion.sum(axis=0) + self.confusion.sum(axis=1))

    def _shares(self, part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of each label."""
        return _ratio(part, whole)[: len(self.labels)]


def numbers(settings: Evaluation) -> RoundNumbers:
    """Of an evaluation round."""
    return whole_numbers(settings.side**2 + 2, settings.room)


def contribution(settings: Evaluation, confusion: NDArray[np.integer], loss: float) -> Contribution[None]:
    """Of one device: its confusion matrix [c, c] and the mean loss of its samples (above 10,000 counts as that).

    Raises FederatedError for another shape, a negative count, or more samples than a round has room for.
    """
    classes = settings.side
    counts = np.asarray(confusion)
    if counts.shape != (classes, classes) or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise FederatedError(f"a confusion matrix of {classes} classes has {classes} x {classes} counts from 0")
    if not math.isfinite(loss) or loss < 0:
        raise FederatedError(f"a mean loss of {loss} cannot be")
    high, low = divmod(round(min(loss, _MAX_LOSS) * int(counts.sum()) * _LOSS), settings.room.most + 1)
    return Contribution(to_values(np.append(counts.ravel().astype(np.int64), [high, low]), settings.room), 1)


def figures(settings: Evaluation, total: Sum) -> Figures:
    """Of the published sum. Raises FederatedError if it can be none: too short, negative, or of no sample."""
    classes = settings.side
    if total.codes.shape != (classes**2 + 2,):
        raise FederatedError(f"a sum of {total.codes.size} values; the evaluation has {classes**2 + 2}")
    codes = total.codes.astype(np.int64)
    confusion = codes[:-2].reshape(classes, classes)
    if (codes < 0).any() or not confusion.any():
        raise FederatedError("the sum holds negative counts or no sample: some device contributed nonsense")
    loss = (int(codes[-2]) * (settings.room.most + 1) + int(codes[-1])) / _LOSS / float(confusion.sum())
    return Figures(settings.labels, confusion, loss, total.survivors)


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
