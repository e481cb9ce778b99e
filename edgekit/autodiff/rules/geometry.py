"""Windows of convolutions and pools: attributes made explicit, and the strided views that im2col is made of."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.autodiff.builder import GraphBuilder, Node, Value
from edgekit.autodiff.errors import AutodiffError


@dataclass(frozen=True)
class Window:
    """How a kernel moves over the two spatial axes of [N, C, H, W]."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]  # top, left, bottom, right
    group: int
    size: tuple[int, int]  # of the input
    out: tuple[int, int]  # of the output

    @property
    def points(self) -> int:
        """Positions of the kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def pixels_in(self) -> int:
        """Pixels of an input map."""
        return self.size[0] * self.size[1]

    @property
    def pixels_out(self) -> int:
        """Pixels of an output map."""
        return self.out[0] * self.out[1]

    @property
    def pointwise(self) -> bool:
        """Whether every output pixel sees exactly the input pixel at its place."""
        return self.points == 1 and self.strides == (1, 1) and not any(self.pads)


def window(node: Node, kernel: Sequence[int], x: Value, y: Value) -> Window:
    """The window of a convolution or pool that reads `x` and writes `y`. Raises AutodiffError: not two-dimensional."""
    if x.rank != 4:
        raise AutodiffError(f"{node.op} over {x.rank - 2} spatial axes has no gradient rule, only over 2")
    size, out = (x.size(2), x.size(3)), (y.size(2), y.size(3))
    strides, dilations = _pair(node, "strides"), _pair(node, "dilations")
    pads = [int(one) for one in node.get("pads") or (0, 0, 0, 0)]
    auto = node.get("auto_pad", "NOTSET")
    if auto == "VALID":
        pads = [0, 0, 0, 0]
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        reach = [(kernel[i] - 1) * dilations[i] + 1 for i in (0, 1)]
        both = [max((math.ceil(size[i] / strides[i]) - 1) * strides[i] + reach[i] - size[i], 0) for i in (0, 1)]
        first = [one // 2 if auto == "SAME_UPPER" else one - one // 2 for one in both]
        pads = [*first, *(both[i] - first[i] for i in (0, 1))]
    group = int(node.get("group", 1))
    k = (int(kernel[0]), int(kernel[1]))
    return Window(k, strides, dilations, (pads[0], pads[1], pads[2], pads[3]), group, size, out)


def _pair(node: Node, name: str) -> tuple[int, int]:
    given = node.get(name) or (1, 1)
    return int(given[0]), int(given[1])


def padded(b: GraphBuilder, x: Value, pads: Sequence[int], axes: tuple[int, int]) -> Value:
    """x with zeros around its two spatial `axes`; negative pads cut."""
    cut = [max(-one, 0) for one in pads]
    if any(cut):
        ends = [x.size(axes[i]) - cut[i + 2] for i in (0, 1)]
        x = b.emit("Slice", [x, b.ints(*cut[:2]), b.ints(*ends), b.ints(*axes)])
    grown = [max(one, 0) for one in pads]
    if not any(grown):
        return x
    shape = list(x.shape)
    for i, axis in enumerate(axes):
        shape[axis] = x.size(axis) + grown[i] + grown[i + 2]
    return b.emit("Pad", [x, b.ints(*grown), None, b.ints(*axes)], shape=tuple(shape))


def views(b: GraphBuilder, x: Value, w: Window, axes: tuple[int, int]) -> list[Value]:
    """What every position of the kernel sees of `x` and the padding around it: strided slices, row by row."""
    around = padded(b, x, w.pads, axes)
    if w.points == 1 and w.strides == (1, 1):
        return [around]
    found = []
    for row in range(w.kernel[0]):
        for column in range(w.kernel[1]):
            start = (row * w.dilations[0], column * w.dilations[1])
            if start == w.pads[:2] and w.strides == (1, 1) and w.out == w.size:  # exactly what is there
                found.append(x)
                continue
            end = [start[i] + w.strides[i] * (w.out[i] - 1) + 1 for i in (0, 1)]
            found.append(b.emit("Slice", [around, b.ints(*start), b.ints(*end), b.ints(*axes), b.ints(*w.strides)]))
    return found


def joined(b: GraphBuilder, values: Sequence[Value], axis: int) -> Value:
    """Concatenated along `axis`; a single one as it is."""
    return values[0] if len(values) == 1 else b.emit("Concat", list(values), {"axis": axis})


@functools.lru_cache(maxsize=64)
def places(move: Window) -> NDArray[np.float32]:
    """[kernel positions, pixels in * pixels out]: 1 where a position of the kernel leads from a pixel to a pixel."""
    found = np.zeros((*move.kernel, *move.size, *move.out), np.float32)
    for row in range(move.kernel[0]):
        for column in range(move.kernel[1]):
            for y in range(move.out[0]):
                for x in range(move.out[1]):
                    at_y = y * move.strides[0] + row * move.dilations[0] - move.pads[0]
                    at_x = x * move.strides[1] + column * move.dilations[1] - move.pads[1]
                    if 0 <= at_y < move.size[0] and 0 <= at_x < move.size[1]:
                        found[row, column, at_y, at_x, y, x] = 1.0
    return found.reshape(move.points, -1)


@functools.lru_cache(maxsize=64)
def unfolding(move: Window) -> NDArray[np.float32]:
    """[pixels in, kernel positions * pixels out]: a map times it is what every position sees, padding included."""
    one = places(move).reshape(move.points, move.pixels_in, move.pixels_out)
    return np.ascontiguousarray(one.transpose(1, 0, 2)).reshape(move.pixels_in, -1)


@functools.lru_cache(maxsize=64)
def folding(move: Window) -> NDArray[np.float32]:
    """The transpose of `unfolding`: sums what the positions of the kernel give to each input pixel."""
    return np.ascontiguousarray(unfolding(move).T)
