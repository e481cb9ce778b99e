"""Gradients of activation functions and of softmax.

A mask with one limit is HardSigmoid with a very steep slope, `min(1, max(0, 2**100 * x))`: one threaded, vectorised
pass. With two limits, comparisons joined as booleans (a quarter of the bytes) and cast once are a fifth faster than two
of these. At a kink the slope is 0, as in PyTorch's relu and hardtanh.
"""

from __future__ import annotations

import math

import onnx

from edgekit.autodiff.builder import GraphBuilder, Node, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.rules.registry import Gradients, Needs, rule

_STEEP = 2.0**100
_FAR = 1e8
"""A bound of Clip as large as this is none: exporters write the largest float for it."""


def above(b: GraphBuilder, x: Value, bound: float = 0.0) -> Value:
    """1 where x > bound, else 0, as floats."""
    return b.emit("HardSigmoid", [x], {"alpha": _STEEP, "beta": -_STEEP * bound})


def masked(b: GraphBuilder, g: Value, x: Value, low: float | None, high: float | None) -> Value:
    """g where low < x < high, else 0."""
    has_low, has_high = low is not None and low > -_FAR, high is not None and high < _FAR
    if low is not None and high is not None and has_low and has_high:
        over = b.emit("Greater", [x, b.scalar(low, x.rank)])
        inside = b.emit("And", [over, b.emit("Less", [x, b.scalar(high, x.rank)])])
        return b.mul(g, b.emit("Cast", [inside], {"to": onnx.TensorProto.FLOAT}))
    if low is not None and has_low:
        return b.mul(g, above(b, x, low))
    if high is not None and has_high:
        return b.mul(g, b.emit("HardSigmoid", [x], {"alpha": -_STEEP, "beta": _STEEP * high}))
    return g


def bounds(b: GraphBuilder, node: Node) -> tuple[float | None, float | None]:
    """The limits of a Clip. Raises AutodiffError when they are computed."""
    result: list[float | None] = []
    for index in (1, 2):
        value = node.optional(index)
        array = b.literal(value)
        if value is not None and array is None:
            raise AutodiffError("the bounds of Clip must be constants of the model")
        result.append(None if array is None else float(array.reshape(-1)[0]))
    return result[0], result[1]


@rule("Relu")
def _relu(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [b.mul(g, above(b, node.outputs[0]))]  # of the output, so that the input's memory is free


@rule("Clip")
def _clip(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [masked(b, g, node.outputs[0], *bounds(b, node))]


@rule("LeakyRelu")
def _leaky_relu(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    alpha = float(node.get("alpha", 0.01))
    x = node.input(0)
    slope = b.add(b.scaled(above(b, x), 1.0 - alpha), b.scalar(alpha, x.rank))
    return [b.mul(g, slope)]


@rule("PRelu")
def _prelu(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x, slope = node.input(0), node.input(1)
    positive = above(b, x)
    negative = b.sub(b.scalar(1.0, x.rank), positive)
    dx = b.mul(g, b.add(positive, b.mul(negative, slope))) if needs[0] else None
    return [dx, b.unbroadcast(b.mul(g, b.mul(x, negative)), slope) if needs[1] else None]


@rule("Sigmoid")
def _sigmoid(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    y = node.outputs[0]
    return [b.mul(g, b.sub(y, b.mul(y, y)))]


@rule("Tanh")
def _tanh(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    y = node.outputs[0]
    return [b.sub(g, b.mul(g, b.mul(y, y)))]


@rule("HardSigmoid")
def _hard_sigmoid(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [masked(b, b.scaled(g, float(node.get("alpha", 0.2))), node.outputs[0], 0.0, 1.0)]


@rule("HardSwish")
def _hard_swish(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """With h = min(1, max(0, x/6 + 1/2)) the slope is h + (h - 1/2) where 0 < h < 1, and h elsewhere."""
    x = node.input(0)
    h = b.emit("HardSigmoid", [x], {"alpha": 1.0 / 6.0, "beta": 0.5})
    return [b.mul(g, b.add(h, masked(b, b.sub(h, b.scalar(0.5, x.rank)), x, -3.0, 3.0)))]


@rule("Softplus")
def _softplus(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [b.mul(g, b.emit("Sigmoid", [node.input(0)]))]


@rule("Softsign")
def _softsign(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x = node.input(0)
    width = b.add(b.emit("Abs", [x]), b.scalar(1.0, x.rank))
    return [b.div(g, b.mul(width, width))]


@rule("Elu", "Celu", "Selu")
def _elu(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """For x < 0: Elu a(e^x - 1), slope y + a. Celu a(e^(x/a) - 1), slope y/a + 1. Selu c a(e^x - 1), slope y + c a."""
    x, y = node.input(0), node.outputs[0]
    alpha = float(node.get("alpha", 1.6732632 if node.op == "Selu" else 1.0))
    gamma = float(node.get("gamma", 1.050701)) if node.op == "Selu" else 1.0
    if node.op == "Celu":
        left = b.add(b.scaled(y, 1.0 / alpha), b.scalar(1.0, x.rank))
    else:
        left = b.add(y, b.scalar(gamma * alpha, x.rank))
    right = b.scalar(gamma, x.rank)
    return [b.mul(g, b.emit("Where", [b.emit("Greater", [x, b.scalar(0.0, x.rank)]), right, left]))]


@rule("Gelu")
def _gelu(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """Exact: Phi(x) + x phi(x). With approximate="tanh", of 1/2 x (1 + tanh(c (x + 0.044715 x^3)))."""
    x = node.input(0)
    one, half = b.scalar(1.0, x.rank), 0.5
    squared = b.mul(x, x)
    if node.get("approximate", "none") == "tanh":
        c = math.sqrt(2.0 / math.pi)
        inner = b.mul(x, b.add(b.scaled(squared, 0.044715 * c), b.scalar(c, x.rank)))
        t = b.emit("Tanh", [inner])
        slope = b.add(b.scaled(squared, 3 * 0.044715 * c), b.scalar(c, x.rank))
        left = b.scaled(b.add(one, t), half)
        right = b.scaled(b.mul(b.mul(x, b.sub(one, b.mul(t, t))), slope), half)
    else:
        left = b.scaled(b.add(one, b.emit("Erf", [b.scaled(x, 1.0 / math.sqrt(2.0))])), half)
        right = b.mul(x, b.scaled(b.emit("Exp", [b.scaled(squared, -0.5)]), 1.0 / math.sqrt(2.0 * math.pi)))
    return [b.mul(g, b.add(left, right))]


@rule("Mish")
def _mish(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """x tanh(softplus(x)): with t = tanh(softplus(x)), t + x (1 - t^2) sigmoid(x)."""
    x = node.input(0)
    t = b.emit("Tanh", [b.emit("Softplus", [x])])
    steep = b.sub(b.scalar(1.0, x.rank), b.mul(t, t))
    return [b.mul(g, b.add(t, b.mul(b.mul(x, steep), b.emit("Sigmoid", [x]))))]


@rule("Softmax")
def _softmax(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    y, axis = node.outputs[0], int(node.get("axis", -1))
    weighted = b.mul(g, y)
    return [b.sub(weighted, b.mul(y, b.reduce_sum(weighted, [axis], keepdims=True)))]


@rule("LogSoftmax")
def _log_softmax(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    y, axis = node.outputs[0], int(node.get("axis", -1))
    return [b.sub(g, b.mul(b.emit("Exp", [y]), b.reduce_sum(g, [axis], keepdims=True)))]
