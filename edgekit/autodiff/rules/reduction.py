"""Gradients of reductions over axes, of cumulative sums and of the k largest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.autodiff.builder import GraphBuilder, Node, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.rules.registry import Gradients, Needs, rule, rule_of_many


def axes_of(b: GraphBuilder, node: Node) -> list[int]:
    """The axes of a reduction, sorted, none negative. Raises AutodiffError when they are computed."""
    rank = node.input(0).rank
    value = node.optional(1)
    array = b.literal(value)
    if value is not None and array is None:
        raise AutodiffError(f"the axes of {node.op} must be constants of the model")
    given = array.reshape(-1).tolist() if array is not None else node.get("axes")
    if not given:
        return [] if node.get("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(int(axis) % rank for axis in given)


def _kept(b: GraphBuilder, node: Node, value: Value, axes: list[int]) -> Value:
    """A reduced tensor with its reduced axes as 1 again."""
    return value if node.get("keepdims", 1) or not axes else b.emit("Unsqueeze", [value, b.ints(*axes)])


def count_of(b: GraphBuilder, x: Value, axes: Sequence[int]) -> Value | float:
    """How many values a reduction over `axes` takes together: a number, or a scalar [1] * rank where it depends on the
    batch.
    """
    sizes = [x.shape[axis] for axis in axes]
    fixed = math.prod(size for size in sizes if isinstance(size, int))
    if all(isinstance(size, int) for size in sizes):
        return float(fixed)
    opened = [size for size in sizes if not isinstance(size, int)]
    if len(opened) == 1 and isinstance(opened[0], str):
        # Every layer has the batch of what is fed: its size is looked up once.
        for one in b.inputs.values():
            if one.shape and one.shape[0] == opened[0]:
                return b.ranked(b.scaled(b.batch_size(one), float(fixed)), x.rank)
    shape = b.emit("Gather", [b.emit("Shape", [x]), b.ints(*axes)])
    number = b.emit("Cast", [b.emit("ReduceProd", [shape], {"keepdims": 0})], {"to": 1})
    return b.ranked(number, x.rank)


def _expanded(b: GraphBuilder, value: Value, like: Value) -> Value:
    return b.emit("Expand", [value, b.emit("Shape", [like])], shape=like.shape)


@rule("ReduceSum")
def _sum(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [_expanded(b, _kept(b, node, g, axes_of(b, node)), node.input(0))]


@rule("ReduceMean")
def _mean(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x, axes = node.input(0), axes_of(b, node)
    count = count_of(b, x, axes)
    g = _kept(b, node, g, axes)
    g = b.scaled(g, 1.0 / count) if isinstance(count, float) else b.div(g, count)
    return [_expanded(b, g, x)]


@rule("ReduceMax", "ReduceMin")
def _extreme(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """Values that are the extreme together share its gradient, as in PyTorch's amax."""
    x, axes = node.input(0), axes_of(b, node)
    hits = b.emit("Cast", [b.emit("Equal", [x, _kept(b, node, node.outputs[0], axes)])], {"to": 1})
    share = b.div(_kept(b, node, g, axes), b.reduce_sum(hits, axes, keepdims=True))
    return [b.mul(hits, share)]


@rule("ReduceL2")
def _l2(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """x / |x|; 0 for the zero vector, as in PyTorch."""
    x, axes = node.input(0), axes_of(b, node)
    norm = _kept(b, node, node.outputs[0], axes)
    safe = b.emit("Max", [norm, b.scalar(float(np.finfo(np.float32).tiny), x.rank)])
    return [b.mul(x, b.div(_kept(b, node, g, axes), safe))]


@rule("ReduceL1")
def _l1(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x, axes = node.input(0), axes_of(b, node)
    return [b.mul(b.emit("Sign", [x]), _kept(b, node, g, axes))]


@rule("ReduceSumSquare")
def _sum_square(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x, axes = node.input(0), axes_of(b, node)
    return [b.mul(b.add(x, x), _kept(b, node, g, axes))]


@rule("ReduceLogSumExp")
def _log_sum_exp(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x, axes = node.input(0), axes_of(b, node)
    weights = b.emit("Exp", [b.sub(x, _kept(b, node, node.outputs[0], axes))])
    return [b.mul(weights, _kept(b, node, g, axes))]


@rule("CumSum")
def _cumulative(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    flags = {"exclusive": int(node.get("exclusive", 0)), "reverse": 1 - int(node.get("reverse", 0))}
    return [b.emit("CumSum", [g, node.input(1)], flags), None]


@rule_of_many("TopK")
def _top_k(b: GraphBuilder, node: Node, grads: Sequence[Value | None], needs: Needs) -> Gradients:
    x, g = node.input(0), grads[0]
    if g is None:
        return [None, None]
    zeros = b.mul(x, b.scalar(0.0, x.rank))
    axis = int(node.get("axis", -1)) % x.rank
    return [b.emit("ScatterElements", [zeros, node.outputs[1], g], {"axis": axis}), None]
