"""Heads with one prediction for each cell of a grid: FastestDet, and CenterNet's heat map.

Both exist with the channels in front and, converted to LiteRT, with the channels last; both orders are read.
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
    agree,
    best_of,
    corners,
    find_tensors,
    probabilities,
    sigmoid,
    strongest,
    values_of,
)

FASTESTDET_STRIDE = 16
CENTERNET_STRIDE = 4


class FastestDet:
    """[1, 5+C, H, W]: objectness, offset x, y, width, height, then one score per class.

    centre = (cell + tanh(offset)) / grid, size = sigmoid(value), as fractions of the input; score = objectness^0.6 *
    class^0.4 (`handle_preds` in FastestDet). Objectness and classes come as probabilities; as logits they get a
    sigmoid and a softmax, which the upstream model has inside.
    """

    overlap = 0.5

    def __init__(self, config: HeadConfig, tensors: Sequence[TensorInfo]) -> None:
        self._config = config
        _, height, width = _grid(config, FASTESTDET_STRIDE)
        self._slot = _grid_slot("objectness, box and class scores", 5 + config.classes, height, width)
        [(self._at, self._tensor)] = find_tensors("fastestdet", [self._slot], config.outputs, tensors)
        self._kind = config.scores or "probabilities"
        self._size = np.array([config.width, config.height], np.float32)

    def decode(self, outputs: Sequence[NDArray[Any]]) -> Candidates:
        """See Head.decode."""
        values = _planar(values_of(outputs[self._at], self._tensor, self._slot), self._slot)
        grid = np.array([values.shape[2], values.shape[1]], np.float32)
        cells = values.reshape(len(values), -1)
        objects = probabilities(cells[0], self._kind, sigmoid)
        classes = probabilities(cells[5:], self._kind, _softmax_over_first)
        scores = objects**0.6 * classes**0.4
        kept = strongest(scores.max(axis=0), self._config.floor, self._config.max_candidates)
        rows, columns = np.divmod(kept, values.shape[2])
        centres = (np.stack([columns, rows], axis=1) + np.tanh(cells[1:3, kept].T)) / grid
        boxes = corners(np.asarray(centres * self._size, np.float32), sigmoid(cells[3:5, kept].T) * self._size)
        return Candidates(boxes, *best_of(scores[:, kept].T))


class CenterNet:
    """Heat map [1, C, H, W], size [1, 2, H, W], offset [1, 2, H, W]: one object for each peak of the heat map.

    A peak is a value that none of its eight neighbours exceeds, as 3x3 max pooling finds it; centre = (cell + offset)
    * stride, size * stride (Zhou et al. 2019, arXiv 1904.07850). The heat map comes as logits. `detection.outputs`
    has to name the three, since the shapes of size and offset are the same.
    """

    overlap = 1.0

    def __init__(self, config: HeadConfig, tensors: Sequence[TensorInfo]) -> None:
        self._config = config
        self._stride, height, width = _grid(config, CENTERNET_STRIDE)
        self._slots = (
            _grid_slot("heat map", config.classes, height, width),
            _grid_slot("size", 2, height, width),
            _grid_slot("offset", 2, height, width),
        )
        self._found = find_tensors("centernet", self._slots, config.outputs, tensors)
        self._kind = config.scores or "logits"

    def decode(self, outputs: Sequence[NDArray[Any]]) -> Candidates:
        """See Head.decode."""
        raw, sizes, offsets = (
            _planar(values_of(outputs[at], tensor, slot), slot)
            for (at, tensor), slot in zip(self._found, self._slots, strict=True)
        )
        heat = probabilities(raw, self._kind, sigmoid)
        labels, rows, columns = _peaks(heat, self._config.floor)
        kept = strongest(heat[labels, rows, columns], self._config.floor, self._config.max_candidates)
        labels, rows, columns = labels[kept], rows[kept], columns[kept]
        scores = heat[labels, rows, columns]
        others = heat[:, rows, columns]
        others[labels, np.arange(len(labels))] = 0
        centres = (np.stack([columns, rows], axis=1) + offsets[:, rows, columns].T) * self._stride
        boxes = corners(np.asarray(centres, np.float32), sizes[:, rows, columns].T * self._stride)
        return Candidates(boxes, scores, labels.astype(np.int32), others.max(axis=0))


def _grid(config: HeadConfig, usual: int) -> tuple[int, int, int]:
    """Stride, and rows and columns of the grid."""
    stride = config.strides[0] if config.strides else usual
    if config.width % stride or config.height % stride:
        raise ModelError(f"detection.strides: {stride} does not divide the input of {config.width}x{config.height}")
    return stride, config.height // stride, config.width // stride


def _grid_slot(what: str, channels: int, height: int, width: int) -> Slot:
    return Slot(what, ((1, channels, height, width), (1, height, width, channels)))


def _planar(values: Floats, slot: Slot) -> Floats:
    """[channels, height, width] of either order; channels in front where both would fit."""
    planar = agree(values.shape, slot.shapes[0])
    return np.asarray(values[0] if planar else values[0].transpose(2, 0, 1), np.float32)


def _softmax_over_first(values: Floats) -> Floats:
    powers = np.exp(values - values.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0), np.float32)


def _peaks(heat: Floats, floor: float) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Class, row and column of every value of at least `floor` that no neighbour of its class exceeds."""
    labels, rows, columns = np.nonzero(heat >= floor)
    around = np.pad(heat, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    values = heat[labels, rows, columns]
    highest = np.ones(len(values), bool)
    for down in range(3):
        for across in range(3):
            highest &= values >= around[labels, rows + down, columns + across]
    return labels[highest], rows[highest], columns[highest]
