"""BatchNormalization in training: with the running statistics (frozen) or with those of the batch.

Frozen behind a convolution it is written into the convolution's weight, in the graph, so that neither direction passes
over the activations once more: with s = scale / sqrt(var + eps), conv(x, w s) + (bias - mean) s + shift. The gradients
of weight, scale and shift then follow from the ordinary rules, on tensors of the weight's size.

With the batch's statistics the forward pass is the operator itself in training mode (momentum 0 makes it give the plain
mean and variance). The backward pass uses the operator once more, as the affine map that it is: Mul and Add over
channels take 2 to 4 times as long (`research/edge-training.md`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgekit.autodiff.builder import GraphBuilder, Node, Value
from edgekit.autodiff.joining import join, split
from edgekit.autodiff.rules.geometry import Window
from edgekit.autodiff.rules.reduction import count_of
from edgekit.autodiff.rules.registry import RULES, Gradients, Needs, rule

EPSILON = 1e-5
MOMENTUM = 0.9
"""The operator's defaults."""
LONG_ROW = 256
"""From so many pixels a picture on, operators that work row by row are the faster ones: sums over products of two maps
are products of rows, and an affine map is a convolution of every channel."""


def affine(b: GraphBuilder, x: Value, scale: Value | None, shift: Value | None) -> Value:
    """x * scale + shift with vectors over the channels (axis 1), in one pass."""
    channels = x.size(1)
    zeros, ones = b.constant(np.zeros(channels, np.float32)), b.constant(np.ones(channels, np.float32))
    return b.emit("BatchNormalization", [x, scale or ones, shift or zeros, zeros, ones], {"epsilon": 0.0})


def inverse_deviation(b: GraphBuilder, variance: Value, epsilon: float) -> Value:
    """1 / sqrt(variance + epsilon), a vector."""
    return b.emit("Reciprocal", [b.emit("Sqrt", [b.add(variance, b.scalar(epsilon, 1))])])


def folded(b: GraphBuilder, norm: Node, weight: Value, bias: Value | None, values: list[Value]) -> tuple[Value, Value]:
    """Weight and bias of a convolution that does the work of the frozen normalisation behind it as well.

    values: scale, shift, mean and variance of the normalisation.
    """
    scale, shift, mean, variance = values
    factor = b.mul(scale, inverse_deviation(b, variance, float(norm.get("epsilon", EPSILON))))
    centre = b.emit("Neg", [mean]) if bias is None else b.sub(bias, mean)
    new_weight = b.mul(weight, b.reshape(factor, [weight.size(0), *[1] * (weight.rank - 1)]))
    return new_weight, b.add(b.mul(centre, factor), shift)


def _dot(b: GraphBuilder, g: Value, x: Value, axes: Sequence[int]) -> Value:
    """The sum of g x for every channel, a vector."""
    pixels = math.prod(x.sizes(2))
    if pixels < LONG_ROW:
        return b.reduce_sum(b.mul(g, x), axes)
    # One product of a row and a column for every picture and channel: g x is never written.
    rows_g, rows_x = (b.reshape(one, [-1, x.size(1), 1, pixels]) for one in (g, x))
    return b.reduce_sum(b.emit("MatMul", [rows_g, b.transpose(rows_x, [0, 1, 3, 2])]), [0, 2, 3])


def update_running(b: GraphBuilder, layers: Sequence[BatchStatistics], momentum: float) -> None:
    """Write the running statistics of all layers after this batch; `momentum` is the share of the old that is kept."""
    states = [state for layer in layers for state in layer.running]
    old = join(b, states)
    new = join(b, [value for layer in layers for value in layer.estimates(b)])
    mixed = b.add(b.mul(old, b.scalar(momentum, 1)), b.mul(new, b.scalar(1.0 - momentum, 1)))
    for state, value in zip(states, split(b, mixed, states), strict=True):
        b.update(state.name, value)


@rule("BatchNormalization")
def _frozen(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """Frozen, behind something else than a convolution: an affine map with fixed mean and variance."""
    x, scale, mean, variance = node.input(0), node.input(1), node.input(3), node.input(4)
    inverse = inverse_deviation(b, variance, float(node.get("epsilon", EPSILON)))
    axes = [0, *range(2, x.rank)]
    d_shift = b.reduce_sum(g, axes) if needs[1] or needs[2] else None
    d_scale = None
    if needs[1] and d_shift is not None:
        d_scale = b.mul(b.sub(b.reduce_sum(b.mul(g, x), axes), b.mul(mean, d_shift)), inverse)
    dx = affine(b, g, b.mul(scale, inverse), None) if needs[0] else None
    return [dx, d_scale, d_shift if needs[2] else None]


class BatchStatistics:
    """A normalisation with the statistics of the batch: the nodes forward, and its gradient."""

    def __init__(self, b: GraphBuilder, node: Node, values: tuple[Value, Value, Value, Value, Value]) -> None:
        """Write the forward pass. values: x, scale, shift, running mean and running variance."""
        self.x, self.scale, self.shift, mean, variance = values
        x = self.x
        self.running = (mean, variance)
        self._epsilon = float(node.get("epsilon", EPSILON))
        attributes = {"epsilon": self._epsilon, "momentum": 0.0, "training_mode": 1}
        # onnxruntime writes the statistics over these two inputs, so they must be tensors that nothing else reads.
        inputs = [x, self.scale, self.shift, b.sub(mean, mean), b.sub(variance, variance)]
        self.y, self.mean, self.variance = b.emit_many("BatchNormalization", inputs, attributes, count=3, shape=x.shape)
        self._axes = [0, *range(2, x.rank)]
        count = count_of(b, x, self._axes)
        self._count = b.scalar(count, 1) if isinstance(count, float) else b.ranked(count, 1)

    def estimates(self, b: GraphBuilder) -> tuple[Value, Value]:
        """Mean and variance of this batch, as the running ones take them in: unbiased, as PyTorch does."""
        return self.mean, b.mul(self.variance, b.div(self._count, b.sub(self._count, b.scalar(1.0, 1))))

    def _sums(self, b: GraphBuilder, g: Value) -> tuple[Value, Value, Value]:
        """1 / deviation, and the gradients of scale and shift."""
        inverse = inverse_deviation(b, self.variance, self._epsilon)
        d_shift = b.reduce_sum(g, self._axes)
        along = b.sub(_dot(b, g, self.x, self._axes), b.mul(self.mean, d_shift))
        return inverse, b.mul(along, inverse), d_shift

    def backward(self, b: GraphBuilder, g: Value, needs: Needs) -> Gradients:
        """Gradients of x, scale and shift.

        With r = 1 / deviation and t = sum g (x - mean): d scale = t r, d shift = sum g, and with q = scale r / n
        dx = scale r g - (q d scale r (x - mean) + q d shift), of which the operator itself gives both terms.
        """
        inverse, d_scale, d_shift = self._sums(b, g)
        dx = None
        if needs[0]:
            part = b.mul(self.scale, b.div(inverse, self._count))
            zeros = b.constant(np.zeros(g.size(1), np.float32))
            through = [g, self.scale, zeros, zeros, self.variance]
            across = [self.x, b.mul(part, d_scale), b.mul(part, d_shift), self.mean, self.variance]
            attributes = {"epsilon": self._epsilon}
            dx = b.sub(*(b.emit("BatchNormalization", one, attributes) for one in (through, across)))
        return [dx, d_scale if needs[1] else None, d_shift if needs[2] else None]


def takes_the_scale(w: Value, move: Window) -> bool:
    """Whether `ConvolutionStatistics` is the faster way: the map is the larger tensor, not the weight."""
    return 4 * move.pixels_out >= w.size(1) * move.points


class ConvolutionStatistics(BatchStatistics):
    """A normalisation behind a convolution that takes over a part of its gradient.

    With dz the gradient of what the convolution gives and a = scale / deviation, dz = a dz', and the factor a of every
    channel goes to the weight: d x follows from dz' and a w, and d w is a times what follows from dz'. So one pass over
    the map is saved.
    """

    def __init__(
        self, b: GraphBuilder, node: Node, values: tuple[Value, Value, Value, Value, Value], made: Node
    ) -> None:
        """Write the normalisation; `made` is the convolution, whose first output is values[0]."""
        super().__init__(b, node, values)
        self._made = made

    def backward(self, b: GraphBuilder, g: Value, needs: Needs) -> Gradients:
        """Gradients of the convolution's input and weight, and of scale and shift."""
        weight = self._made.input(1)
        inverse, d_scale, d_shift = self._sums(b, g)
        means = [b.div(one, self._count) for one in (d_scale, d_shift)]
        if math.prod(self.x.sizes(2)) < LONG_ROW:
            values = [*means, self.mean, self.variance]
            across = b.emit("BatchNormalization", [self.x, *values], {"epsilon": self._epsilon})
        else:  # the same map as a convolution of every channel, which uses all threads
            slope = b.mul(means[0], inverse)
            kernel = b.reshape(slope, [g.size(1), 1, 1, 1])
            rest = b.sub(means[1], b.mul(slope, self.mean))
            across = b.emit("Conv", [self.x, kernel, rest], {"group": g.size(1)}, shape=self.x.shape)
        factor = b.reshape(b.mul(self.scale, inverse), [weight.size(0), *[1] * (weight.rank - 1)])
        scaled = replace(self._made, inputs=(self._made.inputs[0], b.mul(weight, factor)))
        dx, dw = RULES["Conv"](b, scaled, b.sub(g, across), needs[:2])[:2]
        dw = b.mul(dw, factor) if dw is not None else None
        return [dx, dw, d_scale if needs[2] else None, d_shift if needs[3] else None]
