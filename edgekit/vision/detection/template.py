"""Comparison with a golden picture: a detector for bare boards and prints that needs no training.

A picture is laid over the golden one, its grey levels are matched to it, and every pixel is then allowed the range of
grey that the golden picture has within `tolerance` pixels, in both directions: the golden picture may be found within
that distance in the picture, or the picture in the golden one. So an edge may lie a little aside, and yet a missing
thin trace and a narrow gap in a wide one are both found. What lies outside of the range is gathered into regions.

The score of a region is 1 - 2^(-e / area), where e is the sum over its pixels of the difference as a share of the
golden contrast: a difference of `area` pixels and full contrast gets 0.5, one of three times as much 0.875.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from edgekit.runtimes.base import ModelError
from edgekit.vision import MAX_PIXELS
from edgekit.vision.detection.alignment import Aligner, Grey, Limits
from edgekit.vision.detection.heads import Candidates
from edgekit.vision.preprocess import cropped, fit

if TYPE_CHECKING:
    from edgekit.packages import InputSpec, TemplateSpec

MISSING, EXCESS = 0, 1
"""Labels: material that the golden picture has and the other has not, and the reverse."""
MIN_CORRELATION = 0.5
"""Below it two pictures do not show the same board, and a comparison would mean nothing."""
MIN_CONTRAST = 16.0
"""Grey levels between what is bright and what is dark."""


class GoldenPicture:
    """A golden picture, ready to be compared with others. May be used from several threads."""

    def __init__(self, golden: Grey, spec: InputSpec, how: TemplateSpec, floor: float) -> None:
        """`golden` is HxW grey; it is prepared as every picture is. Raises ModelError if it cannot be compared with."""
        if spec.width * spec.height > MAX_PIXELS:
            raise ModelError(f"input: {spec.width}x{spec.height} pixels exceed the limit of {MAX_PIXELS} pixels")
        self._spec, self._how, self._floor = spec, how, floor
        self._golden = self.prepare(golden)
        self._kernel = _disc(how.tolerance)
        self._low, self._high = cv2.erode(self._golden, self._kernel), cv2.dilate(self._golden, self._kernel)
        level, _ = cv2.threshold(self._golden, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        # Away from the edges, where a little misalignment changes nothing.
        self._bright, self._dark = self._low > level, self._high <= level
        if not self._bright.any() or not self._dark.any():
            raise ModelError("the golden picture has no areas of light and dark that could be compared")
        self._levels = _levels(self._golden, self._bright, self._dark)
        if self._levels[1] - self._levels[0] < MIN_CONTRAST:
            raise ModelError("the golden picture has too little contrast to be compared with")
        self._aligner = Aligner(self._golden, Limits(how.max_shift, how.max_rotation, how.max_scale))

    def prepare(self, image: NDArray[np.uint8]) -> Grey:
        """A picture as it is compared: cut and resized as the package says."""
        return np.ascontiguousarray(fit(cropped(image, self._spec), self._spec))

    def find(self, picture: Grey) -> Candidates:
        """The differences of a prepared picture, boxes in its own pixels.

        A picture that cannot be laid over the golden one gives one difference as large as the picture, of score 1 and
        as likely missing as excess: it is reported, and nothing about it is certain.
        """
        warp, correlation = self._aligner.align(picture)
        if correlation < MIN_CORRELATION:
            return self._everything()
        size = picture.shape[1], picture.shape[0]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        moved = np.asarray(cv2.warpAffine(picture, warp, size, flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8)
        shown = cv2.warpAffine(np.full(picture.shape, 255, np.uint8), warp, size, flags=flags)
        # At the border an edge may lie within the tolerance and yet out of the picture, so nothing is judged there.
        shown = cv2.erode(shown, self._kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0) == 255
        dark, bright = _levels(moved, self._bright & shown, self._dark & shown)
        if bright - dark < MIN_CONTRAST:
            return self._everything()
        matched = cv2.LUT(moved, _match((dark, bright), self._levels))
        low, high = cv2.erode(matched, self._kernel), cv2.dilate(matched, self._kernel)
        bright_found = cv2.max(cv2.subtract(matched, self._high), cv2.subtract(low, self._golden))
        dark_found = cv2.max(cv2.subtract(self._low, matched), cv2.subtract(self._golden, high))
        lighter = EXCESS if self._how.material == "bright" else MISSING
        parts = [
            self._regions(np.where(shown, bright_found, 0), lighter),
            self._regions(np.where(shown, dark_found, 0), 1 - lighter),
        ]
        boxes = np.concatenate([part.boxes for part in parts])
        return Candidates(
            _moved(boxes, warp),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.seconds for part in parts]),
        )

    def _regions(self, difference: NDArray[np.uint8], label: int) -> Candidates:
        contrast = self._levels[1] - self._levels[0]
        differs = np.asarray(difference >= self._how.contrast * contrast, np.uint8)
        gathered = (
            cv2.morphologyEx(differs, cv2.MORPH_CLOSE, _disc((self._how.join + 1) // 2)) if self._how.join else differs
        )
        count, numbers, stats, _ = cv2.connectedComponentsWithStats(gathered, connectivity=8)
        inside = differs > 0
        weights = np.minimum(difference[inside] / contrast, 1.0)
        energy = np.bincount(numbers[inside], weights=weights, minlength=count)[1:]
        scores = 1 - np.exp2(-energy / self._how.area)
        kept = np.flatnonzero(scores >= self._floor)
        left, top, width, height = (stats[1:][kept, column] for column in range(4))
        grow = self._how.grow
        boxes = np.stack([left - grow, top - grow, left + width + grow, top + height + grow], axis=1)
        return Candidates(
            boxes.astype(np.float32),
            scores[kept].astype(np.float32),
            np.full(len(kept), label, np.int32),
            np.zeros(len(kept), np.float32),
        )

    def _everything(self) -> Candidates:
        box = np.array([[0, 0, self._spec.width, self._spec.height]], np.float32)
        one = np.ones(1, np.float32)
        return Candidates(box, one, np.array([MISSING], np.int32), one)


def _disc(radius: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)), np.uint8)


def _levels(picture: Grey, bright: NDArray[np.bool_], dark: NDArray[np.bool_]) -> tuple[float, float]:
    """The usual grey level of the dark and the bright parts; (0, 0) where one of them is not in view."""
    if not bright.any() or not dark.any():
        return 0.0, 0.0
    return float(np.median(picture[dark])), float(np.median(picture[bright]))


def _match(have: tuple[float, float], want: tuple[float, float]) -> NDArray[np.uint8]:
    """Table that brings the two grey levels `have` to `want`, and all others along a straight line."""
    gain = (want[1] - want[0]) / (have[1] - have[0])
    return np.asarray(np.clip(np.rint(want[0] + (np.arange(256) - have[0]) * gain), 0, 255), np.uint8)


def _moved(boxes: NDArray[np.float32], warp: NDArray[np.float64]) -> NDArray[np.float32]:
    """The upright boxes around boxes of the golden picture, where these lie in the other picture."""
    corners = np.stack([boxes[:, [0, 1]], boxes[:, [2, 1]], boxes[:, [2, 3]], boxes[:, [0, 3]]], axis=1)
    placed = (corners - 0.5) @ warp[:, :2].T + warp[:, 2] + 0.5  # pixel centres are whole in a warp, edges in a box
    return np.concatenate([placed.min(axis=1), placed.max(axis=1)], axis=1).astype(np.float32)
