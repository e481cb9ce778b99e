"""The antialiased bilinear resize that models are trained with in Pillow and torchvision, which OpenCV does not have.

OpenCV's linear resize looks at two pixels per axis however much the picture shrinks, so thin solder bridges vanish
between its samples; its area resize is a box. Pillow's BILINEAR is a triangle as wide as the shrinking needs. A model
that learned from one is measurably worse with another, so the package says which one it wants.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def antialiased(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Resize uint8 HxW or HxWxC to `height` x `width`; equals Pillow's BILINEAR to within one grey level.

    Pillow rounds to bytes between its two passes. Keeping floats, and shrinking the long rows first, is twice as fast.
    """
    if 4 * image.shape[0] * width < height * image.shape[1]:
        # A picture of a few very long rows (3 kB of PNG can be 1 x 1,000,000 pixels) would take gigabytes on the way.
        return np.ascontiguousarray(antialiased(image.swapaxes(0, 1), height, width).swapaxes(0, 1))
    rows = _along_first_axis(image.reshape(image.shape[0], -1), height)  # height x (W * C)
    columns = rows.reshape(height, image.shape[1], -1).swapaxes(0, 1).reshape(image.shape[1], -1)  # W x (height * C)
    result = _along_first_axis(columns, width).reshape(width, height, *image.shape[2:]).swapaxes(0, 1)
    # The weights sum to 1, so nothing leaves 0..255 but by a rounding error far below the added half.
    return np.ascontiguousarray((result + 0.5).astype(np.uint8))


def _along_first_axis(values: NDArray[np.uint8] | NDArray[np.float32], size: int) -> NDArray[np.float32]:
    result = np.empty((size, values.shape[1]), np.float32)
    for row, (start, weights) in enumerate(_triangles(values.shape[0], size)):
        window = values[start : start + len(weights)].astype(np.float32, copy=False)
        np.einsum("k,kc->c", weights, window, out=result[row])  # as fast as BLAS here, and starts no threads
    return result


@lru_cache(maxsize=64)
def _triangles(source: int, target: int) -> list[tuple[int, NDArray[np.float32]]]:
    """Per output pixel: the first input pixel it looks at and the weights, which sum to 1.

    As in Pillow's Resample.c: the centre of output pixel i lies at (i + 0.5) * scale in the input, and the triangle
    reaches max(scale, 1) pixels to both sides of it.
    """
    scale = source / target
    reach = max(scale, 1.0)
    windows: list[tuple[int, NDArray[np.float32]]] = []
    for index in range(target):
        centre = (index + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        last = min(int(centre + reach + 0.5), source)
        distance = np.abs(np.arange(first, last) - centre + 0.5) / reach
        weights = np.maximum(1 - distance, 0)
        windows.append((first, (weights / weights.sum()).astype(np.float32)))
    return windows
