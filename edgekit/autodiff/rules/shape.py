"""Gradients of operators that move values without changing them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.autodiff.builder import GraphBuilder, Node, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.rules.registry import Gradients, Needs, rule, rule_of_many

_HIGHEST = 2**63 - 1


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [b.reshape_like(g, node.input(0))]


@rule("Transpose")
def _transpose(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    order = list(node.get("perm") or range(g.rank)[::-1])
    return [b.transpose(g, [order.index(axis) for axis in range(g.rank)])]


@rule("Expand")
def _expand(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [b.unbroadcast(g, node.input(0))]


@rule("Tile")
def _tile(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x, repeats = node.input(0), b.literal(node.input(1))
    if repeats is None:
        raise AutodiffError("the repeats of Tile must be constants of the model")
    sizes: list[int] = []
    for axis, count in enumerate(repeats.tolist()):
        sizes += [int(count), x.size(axis) if isinstance(x.shape[axis], int) else -1]
    parts = b.reshape(g, sizes)
    return [b.reshape_like(b.reduce_sum(parts, list(range(0, 2 * x.rank, 2))), x)]


@rule("Concat")
def _concat(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    axis = int(node.get("axis", 0)) % g.rank
    inputs = [one for one in node.inputs if one]
    if len(inputs) == 1:
        return [g]
    sizes = b.ints(*(one.size(axis) for one in inputs))
    parts = b.emit_many("Split", [g, sizes], {"axis": axis}, count=len(inputs))
    return [part if needs[i] else None for i, part in enumerate(parts)]


@rule_of_many("Split")
def _split(b: GraphBuilder, node: Node, grads: Sequence[Value | None], needs: Needs) -> Gradients:
    axis = int(node.get("axis", 0)) % node.input(0).rank
    parts = []
    for g, output in zip(grads, node.outputs, strict=True):
        parts.append(g or b.mul(output, b.scalar(0.0, output.rank)))
    return [b.emit("Concat", parts, {"axis": axis}, shape=node.input(0).shape)]


@rule("Slice")
def _slice(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """Zeros around; with a step, by scattering to the places that were read."""
    x = node.input(0)
    given = [b.literal(node.optional(i)) for i in (1, 2, 3, 4)]
    starts, ends = given[0], given[1]
    if starts is None or ends is None or any(node.optional(i) and given[i - 1] is None for i in (3, 4)):
        raise AutodiffError("the limits of a Slice must be constants of the model")
    axes = given[2] if given[2] is not None else np.arange(len(starts))
    steps = given[3] if given[3] is not None else np.ones(len(starts), np.int64)
    before, after = [0] * x.rank, [0] * x.rank
    for axis, start, end, step in zip(axes.tolist(), starts.tolist(), ends.tolist(), steps.tolist(), strict=True):
        axis %= x.rank
        size = x.shape[axis]
        if not isinstance(size, int):
            if start == 0 and end >= 2**31 - 1 and step == 1:
                continue
            x.size(axis)  # raises: says which axis is open
            continue
        places = range(*slice(start, None if step < 0 and end < -size else end, step).indices(size))
        if step != 1:
            index = b.ints(*places)
            g = _placed(b, g, index, axis, size)
            continue
        before[axis], after[axis] = places.start, size - max(places.stop, places.start)
    if any(before) or any(after):
        g = b.emit("Pad", [g, b.ints(*before, *after)], shape=x.shape)
    return [g, None, None, None, None]


def _placed(b: GraphBuilder, g: Value, index: Value, axis: int, size: int) -> Value:
    """g at the places `index` of a longer axis, zeros elsewhere; places named twice are added up."""
    chosen = np.zeros((size, index.size(0)), np.float32)
    places = b.literal(index)
    assert places is not None
    np.add.at(chosen, (places, np.arange(index.size(0))), 1.0)
    order = [i for i in range(g.rank) if i != axis] + [axis]
    moved = b.emit("MatMul", [b.transpose(g, order), b.constant(chosen.T)])
    return b.transpose(moved, [order.index(i) for i in range(g.rank)])


@rule("Gather")
def _gather(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x, indices = node.input(0), b.literal(node.input(1))
    axis = int(node.get("axis", 0)) % x.rank
    if indices is not None and indices.ndim <= 1:
        size = x.size(axis)
        index = b.ints(*(int(one) % size for one in indices.reshape(-1)))
        if indices.ndim == 0:
            g = b.emit("Unsqueeze", [g, b.ints(axis)])
        return [_placed(b, g, index, axis, size), None]
    if axis != 0 or x.rank != 2:
        raise AutodiffError("Gather with computed indices has a gradient rule for rows of a matrix only (an embedding)")
    zeros = b.constant(np.zeros((x.size(0), x.size(1)), np.float32))
    rows = b.reshape(g, [-1, x.size(1)])
    places = b.reshape(node.input(1), [-1, 1])
    return [b.emit("ScatterND", [zeros, places, rows], {"reduction": "add"}), None]


@rule("GatherElements")
def _gather_elements(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x = node.input(0)
    zeros = b.mul(x, b.scalar(0.0, x.rank))
    attributes = {"axis": int(node.get("axis", 0)) % x.rank, "reduction": "add"}
    return [b.emit("ScatterElements", [zeros, node.input(1), g], attributes), None]


@rule("Pad")
def _pad(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x, pads = node.input(0), b.literal(node.input(1))
    axes = b.literal(node.optional(3))
    if pads is None or (node.optional(3) is not None and axes is None) or node.get("mode", "constant") != "constant":
        raise AutodiffError("Pad has a gradient rule for constant pads in the mode constant only")
    places = axes.tolist() if axes is not None else list(range(x.rank))
    half = len(places)
    numbers = [int(one) for one in pads.tolist()]
    if any(one < 0 for one in numbers):
        around = [0] * (2 * x.rank)
        for i, axis in enumerate(places):
            around[axis % x.rank], around[axis % x.rank + x.rank] = -numbers[i], -numbers[i + half]
        return [b.emit("Pad", [g, b.ints(*around)], shape=x.shape)]
    ends = [-one if one else _HIGHEST for one in numbers[half:]]
    return [b.emit("Slice", [g, b.ints(*numbers[:half]), b.ints(*ends), b.ints(*places)], shape=x.shape)]


@rule("DepthToSpace")
def _depth_to_space(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    block = int(node.get("blocksize", 1))
    x = node.input(0)
    if node.get("mode", "DCR") == "DCR":
        return [b.emit("SpaceToDepth", [g], {"blocksize": block}, shape=x.shape)]
    channels, height, width = x.sizes(1)
    parts = b.reshape(g, [-1, channels // block // block, height, block, width, block])
    return [b.reshape(b.transpose(parts, [0, 1, 3, 5, 2, 4]), [-1, channels, height, width], shape=x.shape)]


@rule("SpaceToDepth")
def _space_to_depth(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [b.emit("DepthToSpace", [g], {"blocksize": int(node.get("blocksize", 1))}, shape=node.input(0).shape)]
