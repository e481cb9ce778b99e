"""Single-shot detectors with one row for each prior box: class scores in one tensor, boxes or locations in another.

Scores have one column per label, or one more in front for the background, which is then part of the softmax and is
never a label. Formula of the locations: Liu et al. 2016 (arXiv 1512.02325), as `convert_locations_to_boxes` of
Linzaer's face detector has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.runtimes.base import ModelError, TensorInfo, shape_text
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

VARIANCES = (0.1, 0.2)


class Ssd:
    """Scores [1, N, C] or [1, N, 1+C], boxes [1, N, 4] as corners, by default as fractions of the input."""

    overlap = 0.5

    def __init__(
        self, config: HeadConfig, tensors: Sequence[TensorInfo], name: str = "ssd", rows: int | None = None
    ) -> None:
        self._config = config
        columns = (config.classes + 1, config.classes)
        scores = Slot("scores", tuple((1, rows, count) for count in columns))
        boxes = Slot("boxes" if rows is None else "locations", ((1, rows, 4),))
        self._slots = (scores, boxes)
        self._found = find_tensors(name, self._slots, config.outputs, tensors)
        counts = [tensor.shape[1] for _, tensor in self._found]
        if None not in counts and counts[0] != counts[1]:
            raise ModelError(
                f'the model has {counts[0]} rows of "{self._found[0][1].name}", '
                f'but {counts[1]} of "{self._found[1][1].name}"'
            )
        self._scale = scale_of(config, config.unit or "fraction")
        self._kind = config.scores or "probabilities"

    def decode(self, outputs: Sequence[NDArray[Any]]) -> Candidates:
        """See Head.decode."""
        (scores_at, scores_tensor), (boxes_at, boxes_tensor) = self._found
        raw = values_of(outputs[scores_at], scores_tensor, self._slots[0])[0]
        boxes = values_of(outputs[boxes_at], boxes_tensor, self._slots[1])[0]
        if len(raw) != len(boxes):
            raise ModelError(f"the model gave {len(raw)} scores, but {len(boxes)} boxes")
        background = raw.shape[1] > self._config.classes
        scores = probabilities(raw, self._kind, _softmax if background else sigmoid)[:, background:]
        kept = strongest(scores.max(axis=1, initial=0), self._config.floor, self._config.max_candidates)
        return Candidates(self._boxes(boxes[kept], kept), *best_of(scores[kept]))

    def _boxes(self, values: Floats, rows: NDArray[np.intp]) -> Floats:
        """Corners in pixels of the input of the raw values [n, 4], which stood in these rows."""
        return np.asarray(values * self._scale, np.float32)


class SsdRaw(Ssd):
    """As Ssd, but locations relative to priors, and scores that are logits by default.

    centre = prior centre + location * variance * prior size; size = prior size * e^(location * variance).
    """

    def __init__(self, config: HeadConfig, tensors: Sequence[TensorInfo]) -> None:
        priors = config.priors
        if priors is None or priors.ndim != 2 or priors.shape[1] != 4 or not np.isfinite(priors).all():
            found = "nothing" if priors is None else shape_text(priors.shape)
            raise ModelError(f'detection.priors: "priors" must be Nx4 finite numbers, not {found}')
        if (priors[:, 2:] <= 0).any():
            raise ModelError("detection.priors: a prior has no width or no height; wanted are centre, width and height")
        self._priors = priors.astype(np.float32)
        self._variances = config.variances or VARIANCES
        super().__init__(config, tensors, "ssd_raw", len(priors))
        self._kind = config.scores or "logits"
        self._scale = scale_of(config, "fraction")

    def _boxes(self, values: Floats, rows: NDArray[np.intp]) -> Floats:
        priors = self._priors[rows]
        centres = priors[:, :2] + values[:, :2] * np.float32(self._variances[0]) * priors[:, 2:]
        sizes = exponential(values[:, 2:] * np.float32(self._variances[1])) * priors[:, 2:]
        return np.asarray(corners(centres, sizes) * self._scale, np.float32)


def _softmax(values: Floats) -> Floats:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
