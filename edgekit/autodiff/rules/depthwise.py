"""Depthwise convolutions of small maps as products of matrices.

onnxruntime executes a depthwise convolution picture by picture and channel by channel; on maps of 3x3 or 6x6 pixels it
mostly starts and stops. Here every channel gets the matrix [pixels in, pixels out] that its kernel stands for, and all
pictures of the batch go through it in one product: a third of the time at 576 channels of 6x6, less with larger
batches.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from edgekit.autodiff.builder import GraphBuilder, Shape, Value
from edgekit.autodiff.rules.geometry import Window, joined, places

LARGEST = 36 * 36
"""Numbers of one channel's matrix up to which this way is the faster one."""
WIDEST = 128
"""Pixels of a row up to which the weight's gradient is a product of rows; its work grows with the square of it."""


def is_small(x: Value, w: Value, move: Window) -> bool:
    """Whether the convolution is depthwise and its map so small."""
    if move.group == 1 or not move.group == x.size(1) == w.size(0):
        return False
    return math.prod(move.size) * math.prod(move.out) <= LARGEST


def _matrices(b: GraphBuilder, w: Value, move: Window) -> Value:
    """[channels, pixels in, pixels out]."""
    channels = w.size(0)
    flat = b.emit("MatMul", [b.reshape(w, [channels, move.points]), b.constant(places(move))])
    return b.reshape(flat, [channels, math.prod(move.size), math.prod(move.out)])


def _by_channel(b: GraphBuilder, x: Value) -> Value:
    """[N, C, H, W] as [C, N, H * W]."""
    channels, pixels = x.size(1), x.size(2) * x.size(3)
    return b.reshape(b.transpose(x, [1, 0, 2, 3]), [channels, -1, pixels], shape=(channels, x.shape[0], pixels))


def _by_picture(b: GraphBuilder, x: Value, size: tuple[int, int], shape: Shape) -> Value:
    """[C, N, H * W] as [N, C, H, W]."""
    grown = b.reshape(x, [x.size(0), -1, *size], shape=(x.shape[0], shape[0], *size))
    return b.transpose(grown, [1, 0, 2, 3])


def convolution(b: GraphBuilder, x: Value, w: Value, bias: Value | None, move: Window, shape: Shape) -> Value:
    """The convolution itself; `shape` is the output's."""
    product = b.emit("MatMul", [_by_channel(b, x), _matrices(b, w, move)])
    if bias is not None:
        product = b.add(product, b.reshape(bias, [bias.size(0), 1, 1]))
    return _by_picture(b, product, move.out, shape)


def input_gradient(b: GraphBuilder, g: Value, x: Value, w: Value, move: Window) -> Value:
    """d loss / d x."""
    turned = b.transpose(_matrices(b, w, move), [0, 2, 1])
    return _by_picture(b, b.emit("MatMul", [_by_channel(b, g), turned]), move.size, x.shape)


def weight_gradient(b: GraphBuilder, x: Value, g: Value, w: Value, move: Window) -> Value:
    """d loss / d w: of the matrices first, then summed over the entries that one position of the kernel fills."""
    channels = w.size(0)
    matrices = b.emit("MatMul", [b.transpose(_by_channel(b, x), [0, 2, 1]), _by_channel(b, g)])
    flat = b.reshape(matrices, [channels, -1], shape=(channels, math.prod(move.size) * math.prod(move.out)))
    sums = b.emit("MatMul", [flat, b.transpose(b.constant(places(move)), [1, 0])])
    return b.reshape(sums, w.sizes())


# ------------------------------------------------------------------ larger maps


@functools.lru_cache(maxsize=64)
def _row_places(move: Window) -> NDArray[np.float32]:
    """[pixels of an output row * pixels of an input row, columns of the kernel]: 1 where one meets the other."""
    found = np.zeros((move.out[1], move.size[1], move.kernel[1]), np.float32)
    for x in range(move.out[1]):
        for column in range(move.kernel[1]):
            source = x * move.strides[1] + column * move.dilations[1] - move.pads[1]
            if 0 <= source < move.size[1]:
                found[x, source, column] = 1.0
    return found.reshape(-1, move.kernel[1])


def weight_gradient_by_rows(b: GraphBuilder, x: Value, g: Value, w: Value, move: Window) -> Value:
    """d loss / d w for larger maps: for every row of the kernel the products of all pairs of pixels in two rows that it
    brings together, summed over rows and pictures by one product a channel; of these the kernel's columns are
    diagonals. Rows of padding are left out on both sides.
    """
    channels, pairs = w.size(0), move.out[1] * move.size[1]
    seen, given = b.transpose(x, [1, 0, 2, 3]), b.transpose(g, [1, 0, 2, 3])
    stride, products = move.strides[0], []
    for row in range(move.kernel[0]):
        offset = row * move.dilations[0] - move.pads[0]
        first, last = max(0, -(offset // stride)), min(move.out[0] - 1, (move.size[0] - 1 - offset) // stride)
        if first > last:  # this row of the kernel never leaves the padding
            products.append(b.constant(np.zeros((channels, 1, pairs), np.float32)))
            continue
        left = _rows(b, given, first, last, 1)
        right = _rows(b, seen, first * stride + offset, last * stride + offset, stride)
        left = b.transpose(b.reshape(left, [channels, -1, move.out[1]]), [0, 2, 1])
        product = b.emit("MatMul", [left, b.reshape(right, [channels, -1, move.size[1]])])
        products.append(b.reshape(product, [channels, 1, pairs]))
    rows = b.reshape(joined(b, products, 1), [channels * move.kernel[0], -1])
    return b.reshape(b.emit("MatMul", [rows, b.constant(_row_places(move))]), w.sizes())


def _rows(b: GraphBuilder, maps: Value, first: int, last: int, stride: int) -> Value:
    """Every `stride`-th row from `first` to `last` of [C, N, H, W]."""
    if stride == 1 and (first, last) == (0, maps.size(2) - 1):
        return maps
    return b.emit("Slice", [maps, b.ints(first), b.ints(last + 1), b.ints(2), b.ints(stride)])
