"""The YOLO family: one tensor, a row for each anchor or cell, with box and scores.

What the usual exports give, read in their source: Ultralytics YOLOv8 to YOLO12 (`Detect._inference`: centre form in
pixels, sigmoid applied), YOLOv5 and YOLOv7 (`Detect.forward`, the same with an objectness), YOLOX (`demo_postprocess`:
centres and sizes relative to a grid, sigmoid applied to the scores), YOLOv10 and YOLO26 (end to end: corners, score and
label, suppressed by training).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.runtimes.base import ModelError, TensorInfo
from edgekit.vision.detection.heads.base import (
    Candidates,
    Floats,
    HeadConfig,
    Slot,
    best_of,
    corners,
    exponential,
    find_tensors,
    probabilities,
    scale_of,
    sigmoid,
    strongest,
    values_of,
)

YOLOX_STRIDES = (8, 16, 32)


class YoloV8:
    """[1, 4+C, N] or [1, N, 4+C]: centre x, y, width, height, then one score per class."""

    overlap = 0.5

    def __init__(self, config: HeadConfig, tensors: Sequence[TensorInfo]) -> None:
        row = 4 + config.classes
        self._config = config
        self._slot = Slot("boxes with class scores", ((1, row, None), (1, None, row)))
        [(self._at, self._tensor)] = find_tensors("yolov8", [self._slot], config.outputs, tensors)
        self._scale = scale_of(config, config.unit or "pixel")
        self._kind = config.scores or "probabilities"

    def decode(self, outputs: Sequence[NDArray[Any]]) -> Candidates:
        """See Head.decode."""
        values = values_of(outputs[self._at], self._tensor, self._slot)[0]
        if values.shape[0] != 4 + self._config.classes:
            values = values.T
        scores = probabilities(values[4:], self._kind, sigmoid)
        kept = strongest(scores.max(axis=0), self._config.floor, self._config.max_candidates)
        boxes = corners(values[:2, kept].T, values[2:4, kept].T) * self._scale
        return Candidates(boxes, *best_of(scores[:, kept].T))


class YoloV5:
    """[1, N, 5+C]: centre x, y, width, height, objectness, then one score per class; a score is their product."""

    overlap = 0.5

    def __init__(self, config: HeadConfig, tensors: Sequence[TensorInfo], name: str = "yolov5") -> None:
        self._config = config
        self._slot = Slot("boxes with objectness and class scores", ((1, self._rows(), 5 + config.classes),))
        [(self._at, self._tensor)] = find_tensors(name, [self._slot], config.outputs, tensors)
        self._scale = scale_of(config, config.unit or "pixel")
        self._kind = config.scores or "probabilities"

    def decode(self, outputs: Sequence[NDArray[Any]]) -> Candidates:
        """See Head.decode."""
        values = values_of(outputs[self._at], self._tensor, self._slot)[0]
        objects = probabilities(values[:, 4], self._kind, sigmoid)
        likely = np.flatnonzero(objects >= self._config.floor)  # a product is never above its factor
        scores = probabilities(values[likely, 5:], self._kind, sigmoid) * objects[likely, np.newaxis]
        kept = strongest(scores.max(axis=1, initial=0), self._config.floor, self._config.max_candidates)
        return Candidates(self._boxes(values[likely[kept], :4], likely[kept]), *best_of(scores[kept]))

    def _rows(self) -> int | None:
        return None

    def _boxes(self, values: Floats, rows: NDArray[np.intp]) -> Floats:
        """Corners in pixels of the input of the raw values [n, 4], which stood in these rows."""
        return corners(values[:, :2], values[:, 2:]) * self._scale


class YoloX(YoloV5):
    """As YoloV5, but centre = (value + cell) * stride and size = e^value * stride; grids stand in order of stride.

    A YOLOX export that decodes its boxes itself has the head yolov5.
    """

    def __init__(self, config: HeadConfig, tensors: Sequence[TensorInfo]) -> None:
        strides = config.strides or YOLOX_STRIDES
        cells, steps = [], []
        for stride in strides:
            if config.width % stride or config.height % stride:
                raise ModelError(
                    f"detection.strides: {stride} does not divide the input of {config.width}x{config.height}"
                )
            rows, columns = config.height // stride, config.width // stride
            cells.append(np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=2).reshape(-1, 2))
            steps.append(np.full((rows * columns, 1), stride))
        self._cells = np.concatenate(cells).astype(np.float32)
        self._steps = np.concatenate(steps).astype(np.float32)
        super().__init__(config, tensors, "yolox")

    def _rows(self) -> int | None:
        return len(self._cells)

    def _boxes(self, values: Floats, rows: NDArray[np.intp]) -> Floats:
        centres = (values[:, :2] + self._cells[rows]) * self._steps[rows]
        return corners(centres, exponential(values[:, 2:]) * self._steps[rows])


class YoloV10:
    """[1, N, 6]: left, top, right, bottom, score, label. The model suppresses repeated boxes itself."""

    overlap = 1.0

    def __init__(self, config: HeadConfig, tensors: Sequence[TensorInfo]) -> None:
        self._config = config
        self._slot = Slot("corners, score and label", ((1, None, 6),))
        [(self._at, self._tensor)] = find_tensors("yolov10", [self._slot], config.outputs, tensors)
        self._scale = scale_of(config, config.unit or "pixel")

    def decode(self, outputs: Sequence[NDArray[Any]]) -> Candidates:
        """See Head.decode."""
        values = values_of(outputs[self._at], self._tensor, self._slot)[0]
        scores = probabilities(values[:, 4], "probabilities", sigmoid)
        kept = strongest(scores, self._config.floor, self._config.max_candidates)
        labels = np.rint(values[kept, 5])
        if ((labels < 0) | (labels >= self._config.classes)).any():
            raise ModelError(
                f"the model gave the label {labels.max():.0f} or {labels.min():.0f}, "
                f"but there are {self._config.classes} labels"
            )
        boxes = np.asarray(values[kept, :4] * self._scale, np.float32)
        return Candidates(boxes, scores[kept], labels.astype(np.int32), np.zeros(len(kept), np.float32))
