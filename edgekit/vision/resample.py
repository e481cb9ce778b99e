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
    """Resize uint8 HxW or HxWxC to `height` x `width`, as Pillow's BILINEAR does.

    Horizontally first, rounded to bytes, then vertically: the order and the rounding are Pillow's, so the result is
    too, but for a grey level in some ten thousand where its fixed-point weights round the other way.
    """
    columns = np.ascontiguousarray(image.swapaxes(0, 1))  # W x H (x C): the axis to shrink comes first
    narrow = _along_first_axis(columns, width).swapaxes(0, 1)
    return _along_first_axis(np.ascontiguousarray(narrow), height)


def _along_first_axis(values: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if values.shape[0] == size:
        return values
    flat = values.reshape(values.shape[0], -1)
    result = np.empty((size, flat.shape[1]), np.uint8)
    for row, (start, weights) in enumerate(_triangles(values.shape[0], size)):
        window = flat[start : start + len(weights)].astype(np.float32)
        # einsum is as fast as BLAS here and starts no threads. The weights sum to 1, so the sum stays within a byte.
        result[row] = np.einsum("k,kc->c", weights, window) + 0.5
    return result.reshape(size, *values.shape[1:])


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
