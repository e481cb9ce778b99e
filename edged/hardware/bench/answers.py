"""What a model says to the same pictures in two settings, and how far that differs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.vision.detection.boxes import Detections, iou

MAX_BOXES = 1000
"""Boxes of one picture that are compared, the best ones."""
SAME_BOX = 0.5
"""IoU from which two settings' boxes are about the same thing."""


@dataclass(frozen=True)
class Answers:
    """The answers of one setting to all pictures.

    Of a detector there are boxes as well, before suppression, for two reasons. Its tensor may hold positions of
    hundreds of pixels beside scores of 0 to 1, which then vanish in a share of the range; and a model that sorts its
    own boxes gives rows whose order means nothing, so that it has no tensors here.
    """

    tensors: list[NDArray[np.float32]] = field(default_factory=list)  # every output of every picture, flat
    boxes: list[Detections] = field(default_factory=list)  # of a detector, for each picture

    @property
    def tells(self) -> bool:
        """Whether anything was said that could be wrong."""
        return bool(self.tensors) or any(len(found) for found in self.boxes)


def save_answers(path: Path, answers: Answers) -> None:
    """Write the reference that other settings are compared with."""
    rows = [
        np.column_stack([found.boxes, found.scores, found.labels, found.margins]).astype(np.float32)
        for found in answers.boxes
    ]
    arrays = {f"tensor_{index}": array for index, array in enumerate(answers.tensors)}
    arrays |= {f"boxes_{index}": array for index, array in enumerate(rows)}
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type] # numpy's stub takes the arrays for its options


def load_answers(path: Path) -> Answers:
    """Read a reference. Raises OSError or ValueError."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return Answers(
        [arrays[name] for name in arrays if name.startswith("tensor_")],
        [
            Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int32), rows[:, 6])
            for name, rows in arrays.items()
            if name.startswith("boxes_")
        ],
    )


def disagreement(answers: Answers, reference: Answers, floor: float = 0.0) -> float:
    """The larger one of the differences of tensors and boxes. `floor`: the score from which a detector gives boxes."""
    between_boxes = float("inf")
    if len(answers.boxes) == len(reference.boxes):
        pairs = list(zip(answers.boxes, reference.boxes, strict=True))
        between_boxes = max((max(_apart(a, b, floor), _apart(b, a, floor)) for a, b in pairs), default=0.0)
    return max(_between(answers.tensors, reference.tensors), between_boxes)


def _between(answers: list[NDArray[np.float32]], reference: list[NDArray[np.float32]]) -> float:
    """Largest difference of an output to its reference, as a share of the reference's range; infinity if they do not
    match in number or size. A reference that hardly varies is measured by its magnitude instead."""
    if [one.size for one in answers] != [one.size for one in reference]:
        return float("inf")
    worst = 0.0
    for mine, other in zip(answers, reference, strict=True):
        if not mine.size:
            continue
        scale = max(float(other.max() - other.min()), 0.05 * float(np.abs(other).max()), 1e-6)
        worst = max(worst, float(np.abs(mine - other).max()) / scale)
    return worst


def _apart(mine: Detections, other: Detections, floor: float) -> float:
    """Largest difference of the score between one of my boxes and the other's box in the same place.

    Where there is none, the other may have one just under its floor. For a box that counts, another label differs by as
    much as it would take to tip it: the margin.
    """
    if not len(mine):
        return 0.0
    least = float(other.scores.min()) if len(other) >= MAX_BOXES else floor
    alone = np.asarray(mine.scores, np.float64) - least
    if not len(other):
        return float(alone.max())
    shared = iou(mine.boxes, other.boxes)
    partner = shared.argmax(axis=1)
    apart = np.abs(np.asarray(mine.scores, np.float64) - other.scores[partner])
    relabelled = (mine.labels != other.labels[partner]) & (mine.scores >= 0.5)
    apart = np.where(relabelled, np.maximum(apart, mine.margins), apart)
    return float(np.where(shared.max(axis=1) >= SAME_BOX, apart, alone).max())
