"""What the present model and a candidate cost: processor time of a picture, and bytes on the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from time import thread_time
from typing import TypeVar

import numpy as np

from edged.train.pace import Workplace
from edgekit.learning.judging import Cost
from edgekit.packages import Package, Variant
from edgekit.runtimes.onnx_reader import read_references
from edgekit.vision.classification import Classifier
from edgekit.vision.detection.detector import Detector

TIMED = 32
"""Pictures on which the run time is measured."""
_TURNS = 5  # of each model on each of them; the fastest counts, since only others lengthen it

T = TypeVar("T")
Model = Classifier | Detector


def cost_of(
    models: tuple[Model, Model],
    runs: tuple[Callable[[T], object], Callable[[T], object]],
    pictures: Sequence[T],
    at: Workplace,
) -> Cost | None:
    """Of the present model and of the candidate; None without pictures. `runs`: each model on one of them.

    Both must compute in the calling thread. Raises Halted, ModelError.
    """
    if not pictures:
        return None
    present, candidate = models
    sizes = _size(present.package, present.variant), _size(candidate.package, candidate.variant)
    return Cost(p95_ms=_p95(runs, pictures, at), bytes=sizes)


def _p95(
    runs: tuple[Callable[[T], object], Callable[[T], object]], pictures: Sequence[T], at: Workplace
) -> tuple[float, float]:
    """Milliseconds of processor time that each model takes for a picture, the 95th percentile over pictures."""
    best = np.full((2, len(pictures)), np.inf)
    for turn in range(_TURNS):
        for column, picture in enumerate(pictures):
            for row in (0, 1) if (turn + column) % 2 else (1, 0):
                started = thread_time()
                runs[row](picture)
                best[row, column] = min(best[row, column], (thread_time() - started) * 1e3)
        at.pace.turn("judging", turn + 1, _TURNS, "run times")
    before, after = np.percentile(best, 95, axis=1)
    return float(before), float(after)


def _size(package: Package, variant: Variant) -> int:
    """Bytes of the file and of those that it reads weights from."""
    files = {variant.file}
    if variant.runtime == "onnxruntime":
        place = PurePosixPath(variant.file).parent
        files |= {str(place / name) for name in read_references(package.path(variant.file)).external}
    return sum(package.sizes[file] for file in files)
