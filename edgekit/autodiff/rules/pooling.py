"""Gradients of pooling and of resizing."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.reference
from numpy.typing import NDArray

from edgekit.autodiff.builder import GraphBuilder, Node, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.rules.geometry import Window, joined, padded, window
from edgekit.autodiff.rules.registry import Gradients, Needs, rule

MAX_RESIZE = 4096
"""Largest size of a resized axis; its interpolation is written as a matrix."""

FEW_POSITIONS = 9
"""Positions of a window up to which a pool that overlaps is differentiated position by position."""
_LOWEST = np.array(np.finfo(np.float32).min, np.float32)


@rule("GlobalAveragePool")
def _global_average(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x = node.input(0)
    spread = b.scaled(g, 1.0 / math.prod(x.sizes(2)))
    return [b.emit("Expand", [spread, b.emit("Shape", [x])], shape=x.shape)]


@rule("GlobalMaxPool")
def _global_max(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x = node.input(0)
    hits = b.emit("Cast", [b.emit("Equal", [x, node.outputs[0]])], {"to": 1})
    return [b.mul(hits, b.div(g, b.reduce_sum(hits, list(range(2, x.rank)), keepdims=True)))]


@rule("MaxPool")
def _max_pool(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """Windows that do not overlap: where the input equals the enlarged output. Overlapping ones: by the pool's indices.

    In windows that do not overlap, values that are the maximum together share its gradient; PyTorch gives it to the
    first.
    """
    x, y = node.input(0), node.outputs[0]
    kernel = [int(one) for one in node.get("kernel_shape", ())]
    move = window(node, kernel, x, y)
    whole = all(move.out[i] * move.kernel[i] == move.size[i] for i in (0, 1))
    if move.kernel == move.strides and not any(move.pads) and move.dilations == (1, 1) and whole:
        hits = _hits(b, x, _enlarged(b, y, x, move))
        count = _sums(b, hits, x, move)
        return [b.mul(hits, _enlarged(b, b.div(g, count), x, move))]
    if move.points <= FEW_POSITIONS:
        return [_by_positions(b, x, y, g, move)]
    attributes = {**node.attributes, "storage_order": 0}
    indices = b.emit_many("MaxPool", [x], attributes, count=2)[1]
    zeros = b.emit("ConstantOfShape", [b.emit("Shape", [b.reshape(x, [-1])])])
    flat = b.emit(
        "ScatterElements", [zeros, b.reshape(indices, [-1]), b.reshape(g, [-1])], {"axis": 0, "reduction": "add"}
    )
    return [b.reshape_like(flat, x)]


def _by_positions(b: GraphBuilder, x: Value, y: Value, g: Value, move: Window) -> Value:
    """For every position of the window where it holds the maximum; then the shares are summed over the windows.

    A pool that gives indices takes about 14 times as long as one that does not (`research/edge-training.md`). Along a
    row, all positions are taken side by side by a product with a matrix of zeros and ones, in half of the time of
    slices with a stride; so are their sums.
    """
    pick, edge, spread = _row_matrices(move)
    around = b.emit("MatMul", [x, b.constant(pick)])
    rows = move.pads[0], move.pads[2]
    if any(rows):
        around = b.emit("Pad", [around, b.ints(*rows), b.constant(_LOWEST), b.ints(2)])
    # What a position does not see of the row is a zero here, which a maximum beyond all numbers keeps from being one.
    maxima = b.emit("Gemm", [b.reshape(y, [-1, move.out[1]]), b.constant(spread), b.constant(edge)])
    maxima = b.reshape(maxima, [-1, *y.sizes(1)[:-1], spread.shape[1]])
    seen = []
    for row in range(move.kernel[0]):
        start = row * move.dilations[0]
        end = start + move.strides[0] * (move.out[0] - 1) + 1
        seen.append(b.emit("Slice", [around, b.ints(start), b.ints(end), b.ints(2), b.ints(move.strides[0])]))
    hits = [_hits(b, one, maxima) for one in seen]
    count = b.emit("MatMul", [b.total(hits), b.transpose(b.constant(spread), [1, 0])])
    share = b.emit("MatMul", [b.div(g, count), b.constant(spread)])
    back = b.transpose(b.constant(pick), [1, 0])
    pixels = move.out[0] * move.size[1]
    parts = [b.reshape(b.emit("MatMul", [b.mul(hit, share), back]), [-1, x.size(1), 1, pixels]) for hit in hits]
    columns = b.reshape(joined(b, parts, 2), [-1, x.size(1) * move.kernel[0], pixels])
    along = {"strides": [move.strides[0], 1], "dilations": [move.dilations[0], 1], "pads": [rows[0], 0, rows[1], 0]}
    sizes = b.ints(*move.size), b.ints(move.kernel[0], 1)
    return b.emit("Col2Im", [columns, *sizes], along, shape=x.shape)


@functools.lru_cache(maxsize=64)
def _row_matrices(move: Window) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Of a row: [columns, positions * columns out], 1 where a position sees a column; what keeps out those without one;
    [columns out, positions * columns out], which repeats a row for every position.
    """
    pick = np.zeros((move.size[1], move.kernel[1], move.out[1]), np.float32)
    for position in range(move.kernel[1]):
        for column in range(move.out[1]):
            source = column * move.strides[1] + position * move.dilations[1] - move.pads[1]
            if 0 <= source < move.size[1]:
                pick[source, position, column] = 1.0
    edge = np.where(pick.any(0), np.float32(0), -_LOWEST).reshape(-1)
    spread = np.tile(np.eye(move.out[1], dtype=np.float32), (1, move.kernel[1]))
    return pick.reshape(move.size[1], -1), edge, spread


def _hits(b: GraphBuilder, values: Value, maxima: Value) -> Value:
    """1 where a value is its maximum, else 0: a steep ramp, as their difference is 0 there and below it elsewhere."""
    return b.emit("HardSigmoid", [b.sub(values, maxima)], {"alpha": 2.0**100, "beta": 1.0})


def _enlarged(b: GraphBuilder, value: Value, like: Value, move: Window) -> Value:
    scales = b.constant(np.array([1, 1, *move.kernel], np.float32))
    attributes = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    return b.emit("Resize", [value, None, scales], attributes, shape=like.shape)


def _sums(b: GraphBuilder, value: Value, like: Value, move: Window) -> Value:
    attributes = {"kernel_shape": list(move.kernel), "strides": list(move.strides)}
    return b.scaled(b.emit("AveragePool", [value], attributes), float(move.points))


@rule("AveragePool")
def _average_pool(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """A depthwise transposed convolution of the shares with a kernel of ones."""
    x, y = node.input(0), node.outputs[0]
    kernel = [int(one) for one in node.get("kernel_shape", ())]
    move = window(node, kernel, x, y)
    channels = x.size(1)
    ones = b.constant(np.ones((channels, 1, *move.kernel), np.float32))
    share = b.mul(g, b.constant((1.0 / _counts(move, bool(node.get("count_include_pad", 0))))[None, None]))
    attributes = {
        "strides": list(move.strides),
        "dilations": list(move.dilations),
        "group": channels,
    }
    # Without pads, so that the result covers the padded input; then the pads are cut and what no window saw is added.
    reach = [(move.kernel[i] - 1) * move.dilations[i] + 1 for i in (0, 1)]
    covered = [(move.out[i] - 1) * move.strides[i] + reach[i] for i in (0, 1)]
    full = b.emit("ConvTranspose", [share, ones], attributes, shape=(*x.shape[:2], *covered))
    top, left = move.pads[:2]
    after = [move.size[i] + move.pads[i] - covered[i] for i in (0, 1)]
    return [padded(b, full, (-top, -left, after[0], after[1]), (2, 3))]


def _counts(move: Window, include_pads: bool) -> NDArray[np.float32]:
    """How many values every window averages, [Oh, Ow]."""
    axes = []
    for i in (0, 1):
        first = np.arange(move.out[i])[:, None] * move.strides[i] - move.pads[i]
        seen = first + np.arange(move.kernel[i])[None, :] * move.dilations[i]
        low, high = (-move.pads[i], move.size[i] + move.pads[i + 2]) if include_pads else (0, move.size[i])
        axes.append(((seen >= low) & (seen < high)).sum(1))
    counts: NDArray[np.float32] = np.maximum(np.outer(axes[0], axes[1]), 1).astype(np.float32)
    return counts


@rule("Resize")
def _resize(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """Resizing is linear and separable: y = A_h x A_w^T, so the gradient is A_h^T g A_w, whatever the mode.

    Enlarging by whole factors with the nearest pixel is a sum over blocks, which is one average pool.
    """
    x, y = node.input(0), node.outputs[0]
    if x.rank != 4 or x.shape[1] != y.shape[1]:
        raise AutodiffError("only the two spatial axes of [N, C, H, W] can be resized in training")
    size, out = x.sizes(2), y.sizes(2)
    factors = [out[i] // size[i] for i in (0, 1)]
    blocks = (node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel"))
    floor = node.get("nearest_mode", "round_prefer_floor") == "floor"
    plain = (blocks == ("nearest", "asymmetric") and floor) or (blocks == ("nearest", "half_pixel") and not floor)
    if plain and all(factors[i] * size[i] == out[i] for i in (0, 1)):
        attributes = {"kernel_shape": factors, "strides": factors}
        return [b.scaled(b.emit("AveragePool", [g], attributes, shape=x.shape), float(math.prod(factors)))]
    if max(*size, *out) > MAX_RESIZE:
        raise AutodiffError(f"an axis of more than {MAX_RESIZE} pixels is resized")
    rows = b.constant(_interpolation(b, node, size, out, 0).T)
    columns = b.constant(_interpolation(b, node, size, out, 1))
    return [b.emit("MatMul", [b.emit("MatMul", [rows, g]), columns], shape=x.shape)]


def _interpolation(b: GraphBuilder, node: Node, size: list[int], out: list[int], axis: int) -> NDArray[np.float32]:
    """The matrix [out, size] of one axis, read off the operator itself by resizing the unit vectors."""
    length = size[axis]
    unit = np.eye(length, dtype=np.float32)
    probe = unit[:, None, :, None] if axis == 0 else unit[:, None, None, :]
    if node.optional(3) is not None:
        wanted = [length, 1, out[0], 1] if axis == 0 else [length, 1, 1, out[1]]
        extra: list[tuple[str, NDArray[np.generic]]] = [("sizes", np.array(wanted, np.int64))]
    else:
        scales = b.literal(node.optional(2))
        if scales is None or scales.size != 4:
            raise AutodiffError("the scales of Resize must be a constant of 4 numbers")
        both = [1.0, 1.0, float(scales[2]), 1.0] if axis == 0 else [1.0, 1.0, 1.0, float(scales[3])]
        extra = [("scales", np.array(both, np.float32))]
    slots = ["x", "", *(["", "sizes"] if extra[0][0] == "sizes" else ["scales"])]
    made = onnx.helper.make_node("Resize", slots, ["y"], **node.attributes)
    graph = onnx.helper.make_graph(
        [made],
        "resize",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in extra],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    found: Any = onnx.reference.ReferenceEvaluator(model).run(None, {"x": probe})
    result = np.asarray(found[0])
    matrix = result[:, 0, :, 0] if axis == 0 else result[:, 0, 0, :]
    turned: NDArray[np.float32] = np.ascontiguousarray(matrix.T, dtype=np.float32)
    return turned
