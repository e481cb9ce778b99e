"""Gradients of normalisations whose statistics are the sample's own; BatchNormalization is in `batchnorm`."""

from __future__ import annotations

from edgekit.autodiff.builder import GraphBuilder, Node, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.rules.registry import Gradients, Needs, rule


def _standardised(b: GraphBuilder, x: Value, axes: list[int], epsilon: float) -> tuple[Value, Value]:
    """(x - mean) / deviation over `axes`, and 1 / deviation."""
    centred = b.sub(x, b.reduce_mean(x, axes, keepdims=True))
    variance = b.reduce_mean(b.mul(centred, centred), axes, keepdims=True)
    inverse = b.emit("Reciprocal", [b.emit("Sqrt", [b.add(variance, b.scalar(epsilon, x.rank))])])
    return b.mul(centred, inverse), inverse


def _through(b: GraphBuilder, g: Value, x_hat: Value, inverse: Value, axes: list[int]) -> Value:
    """The gradient before standardising from the one after it."""
    mean = b.reduce_mean(g, axes, keepdims=True)
    along = b.reduce_mean(b.mul(g, x_hat), axes, keepdims=True)
    return b.mul(inverse, b.sub(b.sub(g, mean), b.mul(x_hat, along)))


@rule("InstanceNormalization")
def _instance(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x, scale = node.input(0), node.input(1)
    axes = list(range(2, x.rank))
    x_hat, inverse = _standardised(b, x, axes, float(node.get("epsilon", 1e-5)))
    dx = _through(b, b.mul(g, b.column(scale, x.rank)), x_hat, inverse, axes) if needs[0] else None
    d_scale = b.reduce_sum(b.mul(g, x_hat), [0, *axes]) if needs[1] else None
    return [dx, d_scale, b.reduce_sum(g, [0, *axes]) if needs[2] else None]


@rule("LayerNormalization")
def _layer(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x, scale, bias = node.input(0), node.input(1), node.optional(2)
    first = int(node.get("axis", -1)) % x.rank
    axes = list(range(first, x.rank))
    x_hat, inverse = _standardised(b, x, axes, float(node.get("epsilon", 1e-5)))
    dx = _through(b, b.mul(g, scale), x_hat, inverse, axes) if needs[0] else None
    d_scale = b.unbroadcast(b.mul(g, x_hat), scale) if needs[1] else None
    d_bias = b.unbroadcast(g, bias) if bias is not None and needs[2] else None
    return [dx, d_scale, d_bias]


@rule("GroupNormalization")
def _group(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """Opset 21 and later: scale and bias of one number a channel. Opset 18's, of one a group, is not supported."""
    x, scale = node.input(0), node.input(1)
    groups, channels = int(node.get("num_groups", 1)), x.size(1)
    if scale.size(0) != channels or b.opset < 21:
        raise AutodiffError("GroupNormalization before opset 21 has no rule; export it as InstanceNormalization")
    sizes, spatial = x.sizes(2), list(range(2, x.rank))
    grouped = b.reshape(x, [-1, groups, channels // groups, *sizes])
    axes = list(range(2, grouped.rank))
    x_hat, inverse = _standardised(b, grouped, axes, float(node.get("epsilon", 1e-5)))
    dx = d_scale = None
    if needs[0]:
        scaled = b.reshape(b.mul(g, b.column(scale, x.rank)), [-1, groups, channels // groups, *sizes])
        dx = b.reshape(_through(b, scaled, x_hat, inverse, axes), [-1, channels, *sizes], shape=x.shape)
    if needs[1]:
        flat = b.reshape(x_hat, [-1, channels, *sizes], shape=x.shape)
        d_scale = b.reduce_sum(b.mul(g, flat), [0, *spatial])
    return [dx, d_scale, b.reduce_sum(g, [0, *spatial]) if needs[2] else None]


@rule("LpNormalization")
def _lp(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """x / |x|: the part of g along y is removed, then divided by the length."""
    x, y = node.input(0), node.outputs[0]
    if int(node.get("p", 2)) != 2:
        raise AutodiffError("LpNormalization has a gradient rule for p = 2 only")
    axis = [int(node.get("axis", -1)) % x.rank]
    length = b.emit("ReduceL2", [x, b.ints(*axis)], {"keepdims": 1})
    return [b.div(b.sub(g, b.mul(y, b.reduce_sum(b.mul(g, y), axis, keepdims=True))), length)]
