"""Lay one picture over another that shows the same thing, a little shifted, turned or scaled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
Warp = NDArray[np.float64]
"""[2, 3]: a point (x, y, 1) of the golden picture -> the same point of the other one; pixel centres are whole."""

_COARSE, _FINE = 160, 320  # longer side in pixels of the two sizes at which the search runs
_BLUR = 5  # pixels: what the refinement smooths both pictures with
_STOP = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-5)
_IDENTITY: Warp = np.eye(2, 3)
_GAIN, _GAIN_SHARE = 0.01, 0.5
"""A picture lies beyond the limits if moving it there raises the correlation by more than both: this much, and this
share of what the best movement within the limits leaves unexplained."""


@dataclass(frozen=True)
class Limits:
    """How far a picture may lie from the golden one; a larger movement is no alignment."""

    shift: float  # pixels, of the middle of the picture
    rotation: float  # degrees
    scale: float  # as a share: 0.02 is two per cent larger or smaller

    def allow(self, warp: Warp, width: int, height: int) -> bool:
        """Whether a movement of a picture of this size stays within them."""
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        matrix = warp[:, :2]
        moved = matrix @ middle + warp[:, 2] - middle
        angle = math.degrees(math.atan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1]))
        stretch = np.linalg.svd(matrix, compute_uv=False)
        slack = 1e-6
        return bool(
            np.abs(moved).max() <= self.shift + slack
            and abs(angle) <= self.rotation + slack
            and np.abs(stretch - 1).max() <= self.scale + slack
        )


class Aligner:
    """Finds how pictures of one size lie to the golden picture.

    Phase correlation (Kuglin & Hines 1975) gives a shift; the enhanced correlation coefficient (Evangelidis & Psarakis
    2008, OpenCV's findTransformECC) refines it and adds turn and scale. Neither minds a change of brightness or
    contrast. Where a board repeats itself the shift may be a whole period off, so the search also starts from no
    movement at all; of all results within the limits the best correlated wins.
    """

    def __init__(self, golden: Grey, limits: Limits) -> None:
        self._limits = limits
        self._size = golden.shape[1], golden.shape[0]
        self._coarse, self._fine = _Level(golden, _COARSE), _Level(golden, _FINE)

    def align(self, picture: Grey) -> tuple[Warp, float]:
        """The best warp for `picture`, which has the golden picture's size, and the correlation under it, -1..1.

        -1 for a picture that fits far better where the limits do not allow it: compared as it is, every edge on it
        would count as a defect.
        """
        coarse, fine = self._coarse.shrunk(picture), self._fine.shrunk(picture)
        starts = [_IDENTITY, self._coarse.shift(coarse, self._limits.shift)]
        found = list(starts)
        if self._limits.shift or self._limits.rotation or self._limits.scale:
            for motion in (cv2.MOTION_EUCLIDEAN, cv2.MOTION_AFFINE):
                found += [self._coarse.refined(coarse, start, motion) for start in starts]
            best, _ = self._best(found, fine)
            found += [self._fine.refined(fine, best, cv2.MOTION_AFFINE)]
        return self._best(found, fine)

    def _best(self, warps: list[Warp], fine: Grey) -> tuple[Warp, float]:
        scored = [(warp, self._fine.correlation(fine, warp)) for warp in warps if np.isfinite(warp).all()]
        allowed = [one for one in scored if self._limits.allow(one[0], *self._size)]
        warp, correlation = max(allowed, key=lambda one: one[1])  # no movement at all is always among them
        gain = max(other for _, other in scored) - correlation
        return (warp, -1.0) if gain > max(_GAIN, _GAIN_SHARE * (1 - correlation)) else (warp, correlation)


class _Level:
    """The golden picture at one size. Warps are always those of the full size."""

    def __init__(self, golden: Grey, side: int) -> None:
        height, width = golden.shape
        self._factor = max(1.0, max(width, height) / side)
        self._size = max(1, round(width / self._factor)), max(1, round(height / self._factor))
        # The rounding of the size makes the two directions differ a little.
        self._scale = np.array([width / self._size[0], height / self._size[1]])
        self._golden = self.shrunk(golden)
        self._plain = _smooth(self._golden)
        self._window = np.outer(np.hanning(self._size[1]), np.hanning(self._size[0]))
        self._spectrum = self._transform(self._golden)
        self._everywhere = np.full(self._golden.shape, 255, np.uint8)

    def shrunk(self, picture: Grey) -> Grey:
        return np.asarray(cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA), np.uint8)

    def shift(self, picture: Grey, limit: float) -> Warp:
        """The shift by phase correlation, of at most `limit` pixels of the full size in each direction."""
        power = self._transform(picture) * self._spectrum.conj()
        surface = np.fft.irfft2(power / np.maximum(np.abs(power), 1e-9), s=self._size[::-1])
        steps = [
            np.arange(-min(int(limit / scale), (side - 1) // 2), min(int(limit / scale), (side - 1) // 2) + 1)
            for scale, side in zip(self._scale, self._size, strict=True)
        ]
        near = surface[np.ix_(steps[1], steps[0])]
        row, column = np.unravel_index(int(near.argmax()), near.shape)
        warp = _IDENTITY.copy()
        warp[:, 2] = np.array([steps[0][column], steps[1][row]]) * self._scale
        return warp

    def refined(self, picture: Grey, start: Warp, motion: int) -> Warp:
        """`start` improved by ECC, or as it is where that finds nothing better."""
        small = self._small(start).astype(np.float32)
        try:
            _, improved = cv2.findTransformECC(self._golden, picture, small, motion, _STOP, self._everywhere, _BLUR)
        except cv2.error:  # no structure to hold on to, or pictures that have nothing in common
            return start
        return self._full(np.asarray(improved, np.float64))

    def correlation(self, picture: Grey, warp: Warp) -> float:
        """Pearson's correlation of the smoothed grey levels where both pictures are; 0 where one has no contrast."""
        small = self._small(warp)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        moved = cv2.warpAffine(_smooth(picture), small, self._size, flags=flags)
        shown = cv2.warpAffine(self._everywhere, small, self._size, flags=flags) == 255
        if not shown.any():
            return 0.0
        one, other = self._plain[shown], moved[shown]
        one, other = one - one.mean(dtype=np.float64), other - other.mean(dtype=np.float64)
        power = float(np.dot(one, one) * np.dot(other, other))
        return float(np.dot(one, other)) / math.sqrt(power) if power > 1e-6 else 0.0

    def _transform(self, picture: Grey) -> NDArray[np.complex128]:
        return np.asarray(np.fft.rfft2((picture - picture.mean()) * self._window))

    def _small(self, warp: Warp) -> Warp:
        return rescaled(warp, 1 / self._scale)

    def _full(self, warp: Warp) -> Warp:
        return rescaled(warp, self._scale)


def rescaled(warp: Warp, scale: NDArray[np.float64]) -> Warp:
    """The same movement for pictures `scale` (x, y) times as large.

    The middle of pixel x lies at scale * (x + 1/2) - 1/2 there, so x' = S(A(S^-1(x + 1/2) - 1/2) + t + 1/2) - 1/2.
    """
    half = np.array([0.5, 0.5])
    matrix = warp[:, :2] * scale[:, np.newaxis] / scale[np.newaxis]
    offset = matrix @ half + scale * (warp[:, 2] + half - warp[:, :2] @ half) - half
    return np.concatenate([matrix, offset[:, np.newaxis]], axis=1)


def _smooth(picture: Grey) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(picture.astype(np.float32), (_BLUR, _BLUR), 0), np.float32)
