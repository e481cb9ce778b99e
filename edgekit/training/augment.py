"""Random changes to a picture that keep its label: flips, turns, scale, shift, light, noise, cut-out.

A picture is changed at the size of the model's input, after the same crop and resize as in serving, so that training
sees the interpolation that serving uses. The geometry is one affine map and thus one pass; light is one look-up.
"""

from __future__ import annotations

import math
from typing import Annotated

import cv2
import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

Affine = NDArray[np.float64]
"""[2, 3]: where a point (x, y, 1) of the picture goes. Pixel centres lie at 0.5, as in boxes."""

_VISIBLE = 0.4
"""Share of a box that must still be in the picture for it to count; the rest of it is cut off."""


class Augmentation(msgspec.Struct, frozen=True, kw_only=True):
    """How far each change may go; every draw is uniform. The defaults change nothing.

    Mirrored or turned text, polarity marks and connectors are other parts: switch on only what the camera could see.
    """

    flip_horizontal: bool = False  # half of the pictures
    flip_vertical: bool = False
    quarter_turns: bool = False  # 0, 90, 180 or 270 degrees; only 0 and 180 where the input is not square
    rotation: Annotated[float, Meta(ge=0.0, le=180.0)] = 0.0  # degrees to both sides
    scale: Annotated[float, Meta(ge=0.0, le=0.9)] = 0.0  # 0.2: between 1/1.2 and 1.2 times as large
    shift: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.0  # share of each side, to both sides
    brightness: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0  # share of the full range, added or taken away
    contrast: Annotated[float, Meta(ge=0.0, le=0.9)] = 0.0  # 0.2: between 1/1.2 and 1.2 times, around mid-grey
    noise: Annotated[float, Meta(ge=0.0, le=64.0)] = 0.0  # greatest standard deviation, grey levels
    cut_out: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.0  # greatest share of each side, in half of the pictures


def augment(
    image: NDArray[np.uint8], boxes: NDArray[np.float32], spec: Augmentation, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.intp]]:
    """A changed copy of `image` (uint8, HxW or HxWxC), and where its boxes went.

    `boxes` [n, 4]: left, top, right, bottom in pixels of `image`. Returned are the boxes [m, 4] of which enough is
    still to be seen, cut off at the border, and their places [m] among `boxes`. The same state of `rng` gives the same
    result. A turned box is the upright one around it.
    """
    height, width = image.shape[:2]
    matrix = draw_affine(width, height, spec, rng)
    if not np.array_equal(matrix, _IDENTITY):
        image = _warp(image, matrix)
    moved, kept = move_boxes(boxes, matrix, width, height)
    levels = _draw_levels(spec, rng)
    if levels is not None:
        image = np.asarray(cv2.LUT(image, levels), np.uint8)
    if spec.noise:
        image = _noisy(image, rng.uniform(0, spec.noise), rng)
    if spec.cut_out and rng.random() < 0.5:
        image = _cut_out(image, spec.cut_out, rng)
    return image, moved, kept


def draw_affine(width: int, height: int, spec: Augmentation, rng: np.random.Generator) -> Affine:
    """A random map of a `width` x `height` picture onto itself. Draws the same numbers whatever `spec` allows."""
    flips, quarter, angle, zoom, shift = (
        rng.random(2),
        rng.integers(4),
        rng.uniform(-1, 1),
        rng.uniform(-1, 1),
        rng.uniform(-1, 1, 2),
    )
    quarters = int(quarter) if spec.quarter_turns else 0
    if width != height:
        quarters -= quarters % 2
    turn = math.radians(spec.rotation * float(angle)) + quarters * math.pi / 2
    factor = (1 + spec.scale) ** float(zoom)
    cosine, sine = (round(value, 12) * factor for value in (math.cos(turn), math.sin(turn)))
    linear = np.array([[cosine, -sine], [sine, cosine]])
    mirror = np.array(
        [
            -1.0 if allowed and drawn < 0.5 else 1.0
            for allowed, drawn in zip((spec.flip_horizontal, spec.flip_vertical), flips, strict=True)
        ]
    )
    linear = linear * mirror
    centre = np.array([width / 2, height / 2])
    offset = centre - linear @ centre + spec.shift * shift * np.array([width, height])
    return np.concatenate([linear, offset[:, np.newaxis]], axis=1)


def move_boxes(
    boxes: NDArray[np.float32], matrix: Affine, width: int, height: int
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Boxes [n, 4] after `matrix`, and which of them are left; see `augment`."""
    if not len(boxes):
        return np.zeros((0, 4), np.float32), np.zeros(0, np.intp)
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).astype(np.float64)
    corners = corners @ matrix[:, :2].T + matrix[:, 2]
    low, high = corners.min(axis=1), corners.max(axis=1)
    limit = np.array([width, height])
    shown_low, shown_high = np.clip(low, 0, limit), np.clip(high, 0, limit)
    whole = np.prod(high - low, axis=1)
    shown = np.prod(shown_high - shown_low, axis=1)
    kept = np.flatnonzero((shown > 0) & (shown >= _VISIBLE * whole))
    return np.concatenate([shown_low, shown_high], axis=1)[kept].astype(np.float32), kept


_IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def _warp(image: NDArray[np.uint8], matrix: Affine) -> NDArray[np.uint8]:
    # OpenCV puts pixel centres at whole numbers: move there by half a pixel and back.
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    size = (image.shape[1], image.shape[0])
    return np.asarray(
        cv2.warpAffine(image, moved, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101), np.uint8
    )


def _draw_levels(spec: Augmentation, rng: np.random.Generator) -> NDArray[np.uint8] | None:
    light, gain = rng.uniform(-1, 1, 2)
    if not spec.brightness and not spec.contrast:
        return None
    factor = (1 + spec.contrast) ** float(gain)
    values = (np.arange(256) - 127.5) * factor + 127.5 + 255 * spec.brightness * light
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def _noisy(image: NDArray[np.uint8], deviation: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(deviation)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def _cut_out(image: NDArray[np.uint8], share: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A rectangle filled with the picture's own mean, anywhere in it (DeVries and Taylor 2017, arXiv 1708.04552)."""
    height, width = image.shape[:2]
    sides = np.maximum(1, np.rint(rng.uniform(0, share, 2) * [height, width])).astype(int)
    top, left = (int(rng.integers(size - side + 1)) for size, side in zip((height, width), sides, strict=True))
    changed = image.copy()
    fill = np.rint(image.reshape(height * width, -1).mean(axis=0)).astype(np.uint8)
    changed[top : top + sides[0], left : left + sides[1]] = fill if image.ndim == 3 else fill[0]
    return changed
