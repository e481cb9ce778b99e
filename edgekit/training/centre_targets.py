"""What a centre-point detector must learn from the boxes of a picture: heat map, sizes, offsets, and where they count.

Zhou et al. 2019 (arXiv 1904.07850), section 3, with the radius of Law and Deng 2018 (arXiv 1808.01244), section 3.2.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

MIN_OVERLAP = 0.7
"""A centre moved by the radius still gives a box with this IoU, so near misses are punished less."""


def centre_targets(
    boxes: Floats, labels: NDArray[np.intp], classes: int, height: int, width: int, stride: int
) -> dict[str, Floats]:
    """Maps of `height` x `width` cells for boxes [n, 4] in pixels of the input, one cell being `stride` pixels.

    "heat" [classes, H, W]: 1 at each centre, falling off around it as a Gaussian. "size" [2, H, W]: width and height in
    cells, "offset" [2, H, W]: from the cell's corner to the centre, 0..1; both where "centres" [1, H, W] is 1. Of two
    boxes with one cell the smaller one, which is harder to find, keeps it. A box whose centre lies outside is left out.
    """
    heat = np.zeros((classes, height, width), np.float32)
    size, offset = np.zeros((2, height, width), np.float32), np.zeros((2, height, width), np.float32)
    centres = np.zeros((1, height, width), np.float32)
    cells = boxes.astype(np.float64) / stride
    spans = cells[:, 2:] - cells[:, :2]
    for box in np.argsort(-spans.prod(axis=1), kind="stable"):
        across, down = (cells[box, :2] + cells[box, 2:]) / 2
        column, row = math.floor(across), math.floor(down)
        if not (0 <= column < width and 0 <= row < height) or not spans[box].min() > 0:
            continue
        _draw(heat[labels[box]], row, column, gaussian_radius(spans[box, 1], spans[box, 0]))
        size[:, row, column] = spans[box]
        offset[:, row, column] = across - column, down - row
        centres[0, row, column] = 1
    return {"heat": heat, "size": size, "offset": offset, "centres": centres}


def gaussian_radius(height: float, width: float, overlap: float = MIN_OVERLAP) -> float:
    """How far both corners of a box may move so that it keeps the IoU `overlap` with itself; in the box's own unit.

    The smallest of the three cases of Law and Deng (one corner in and one out, both in, both out), with the roots as
    the published erratum has them.
    """
    total, area = height + width, height * width
    mixed = _smaller_root(1.0, total, area * (1 - overlap) / (1 + overlap))
    inside = _smaller_root(4.0, 2 * total, (1 - overlap) * area)
    outside = (-2 * overlap * total + math.sqrt((2 * overlap * total) ** 2 + 16 * overlap * (1 - overlap) * area)) / (
        8 * overlap
    )
    return min(mixed, inside, outside)


def _smaller_root(a: float, b: float, c: float) -> float:
    """Of a r^2 - b r + c = 0."""
    return (b - math.sqrt(max(b * b - 4 * a * c, 0.0))) / (2 * a)


def _draw(heat: Floats, row: int, column: int, radius: float) -> None:
    """Raise `heat` to a Gaussian around one cell, with a third of the diameter as its standard deviation."""
    reach = max(0, int(radius))
    deviation = (2 * reach + 1) / 6
    top, bottom = max(0, row - reach), min(heat.shape[0], row + reach + 1)
    left, right = max(0, column - reach), min(heat.shape[1], column + reach + 1)
    down = np.arange(top, bottom)[:, np.newaxis] - row
    across = np.arange(left, right)[np.newaxis, :] - column
    values = np.exp(-(down**2 + across**2) / (2 * deviation**2)).astype(np.float32)
    np.maximum(heat[top:bottom, left:right], values, out=heat[top:bottom, left:right])
