"""Where a pixel of a model's input lies in the picture: the way back through crop, resize and reduced decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.vision.detection.boxes import Boxes, clip
from edgekit.vision.preprocess import fraction_box

if TYPE_CHECKING:
    from edgekit.packages import InputSpec

_FACTORS = (1, 2, 4, 8)  # what a JPEG may be reduced by


@dataclass(frozen=True)
class Placement:
    """Input pixel (x, y) shows the picture at (left + x * across, top + y * down).

    `seen` is the part of the picture that the model saw at all: left, top, right, bottom.
    """

    left: float
    top: float
    across: float
    down: float
    seen: tuple[float, float, float, float]

    def to_picture(self, boxes: NDArray[Any]) -> Boxes:
        """Boxes [n, 4] of the input, in pixels of the picture and cut off at the edges of what was seen."""
        factors = np.array([self.across, self.down] * 2)
        offsets = np.array([self.left, self.top] * 2)
        return np.asarray(clip(boxes * factors + offsets, self.seen), np.float32)

    def to_input(self, boxes: NDArray[Any]) -> Boxes:
        """Boxes [n, 4] of the picture in pixels of the input, not cut off."""
        factors = np.array([self.across, self.down] * 2)
        offsets = np.array([self.left, self.top] * 2)
        return np.asarray((boxes - offsets) / factors, np.float32)


def placement(spec: InputSpec, width: int, height: int) -> Placement:
    """How `preprocess.prepare` places a picture of this size in the model's input; it follows `preprocess.fit`."""
    left, top, right, bottom = (0, 0, width, height) if spec.crop is None else fraction_box(spec.crop, width, height)
    part_width, part_height = right - left, bottom - top
    if spec.resize == "letterbox":
        factor = min(spec.width / part_width, spec.height / part_height)
        shown_width, shown_height = max(1, round(part_width * factor)), max(1, round(part_height * factor))
        across, down = part_width / shown_width, part_height / shown_height
        origin_x = left - (spec.width - shown_width) // 2 * across
        origin_y = top - (spec.height - shown_height) // 2 * down
        return Placement(origin_x, origin_y, across, down, (left, top, right, bottom))
    if spec.resize == "crop":
        factor = min(part_width / spec.width, part_height / spec.height)
        cut_width, cut_height = max(1, round(spec.width * factor)), max(1, round(spec.height * factor))
        left, top = left + (part_width - cut_width) // 2, top + (part_height - cut_height) // 2
        right, bottom = left + cut_width, top + cut_height
    seen = (left, top, right, bottom)
    return Placement(left, top, (right - left) / spec.width, (bottom - top) / spec.height, seen)


def reduction(full: int, decoded: int) -> int:
    """By what factor a side of `full` pixels was reduced in decoding to `decoded` pixels: 1, 2, 4 or 8.

    A decoder rounds the size up, so the last pixel may show less than the others; all of them lie on the factor's grid.
    """
    return next((factor for factor in _FACTORS if -(-full // factor) == decoded), 1)
