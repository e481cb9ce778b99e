"""A pointwise convolution that widens, with batch normalisation behind it, in training.

The statistics of z = W x need not be read off z, the wide tensor: with the covariance C of x, which is narrow, the
variance of channel i is W_i C W_i^T. So the normalisation is known before the convolution and becomes part of its
weight, and an activation behind it is fused by the runtime: the wide tensor is written once and not read again.
Backward, what has to be summed over z follows from P = sum g x^T, the product that the weight's gradient needs anyway.

With x centred, n values a channel, r = 1 / deviation, a = scale r, t = row sums of W * P, s = sum g:

    d scale = t r,    d shift = s,    dW = a P - a r^2 t (W C),
    dx = (a W)^T g - W^T (a r^2 t / n W) x - W^T (a s / n).

It is exact, and pays where the output has at least twice the channels of the input: the expansions of MobileNets.
"""

from __future__ import annotations

import math

from edgekit.autodiff.batchnorm import EPSILON, BatchStatistics, inverse_deviation
from edgekit.autodiff.builder import GraphBuilder, Node, Value
from edgekit.autodiff.rules.convolution import product_over_pixels
from edgekit.autodiff.rules.geometry import Window
from edgekit.autodiff.rules.reduction import count_of
from edgekit.autodiff.rules.registry import Gradients, Needs


def widens(w: Value, move: Window) -> bool:
    """Whether this way is the faster one."""
    wide = move.pointwise and move.group == 1 and w.size(0) >= 2 * w.size(1)
    return wide and 4 * math.prod(move.out) >= w.size(1)  # else the products with C cost more than reading z


class PointwiseStatistics(BatchStatistics):
    """Such a convolution and normalisation: the nodes forward, and the gradient."""

    def __init__(  # it shares how running statistics are kept, not how those of the batch are found
        self,
        b: GraphBuilder,
        norm: Node,
        x: Value,
        weight: Value,
        bias: Value | None,
        values: tuple[Value, Value, Value, Value],
    ) -> None:
        """Write the forward pass. values: scale, shift, running mean and running variance."""
        self.weight = weight
        self.scale, self.shift, running_mean, running_variance = values
        self.running = (running_mean, running_variance)
        self._epsilon = float(norm.get("epsilon", EPSILON))
        outputs, inputs = weight.size(0), weight.size(1)
        count = count_of(b, x, [0, 2, 3])
        self._count = b.scalar(count, 1) if isinstance(count, float) else b.ranked(count, 1)
        mean = b.reduce_mean(x, [0, 2, 3], keepdims=True)
        self.x = b.sub(x, mean)
        self._matrix = b.reshape(weight, [outputs, inputs])
        covariance = b.div(product_over_pixels(b, self.x, self.x), b.ranked(self._count, 2))
        self._spread = b.emit("MatMul", [self._matrix, covariance])
        self.variance = b.reduce_sum(b.mul(self._spread, self._matrix), [1])
        self.mean = b.reshape(b.emit("MatMul", [self._matrix, b.reshape(mean, [inputs, 1])]), [outputs])
        if bias is not None:  # it moves nothing but the mean
            self.mean = b.add(self.mean, bias)
        self._inverse = inverse_deviation(b, self.variance, self._epsilon)
        self._factor = b.reshape(b.mul(self.scale, self._inverse), [outputs, 1])
        self._scaled = b.mul(self._matrix, self._factor)
        kernel = b.reshape(self._scaled, [outputs, inputs, 1, 1])
        self.y = b.emit("Conv", [self.x, kernel, self.shift], shape=(x.shape[0], outputs, *x.shape[2:]))

    def backward(self, b: GraphBuilder, g: Value, needs: Needs) -> Gradients:
        """Gradients of x, weight, scale and shift."""
        outputs, inputs = self.weight.size(0), self.weight.size(1)
        d_shift = b.reduce_sum(g, [0, 2, 3])
        product = product_over_pixels(b, self.x, g)
        d_scale = b.mul(b.reduce_sum(b.mul(product, self._matrix), [1]), self._inverse)
        along = b.mul(self._factor, b.reshape(b.mul(d_scale, self._inverse), [outputs, 1]))
        dx = dw = None
        if needs[1]:
            matrix = b.sub(b.mul(product, self._factor), b.mul(self._spread, along))
            dw = b.reshape(matrix, self.weight.sizes())
        if needs[0]:
            turned = b.transpose(self._matrix, [1, 0])
            part = b.emit("Neg", [b.div(along, b.ranked(self._count, 2))])
            inner = b.emit("MatMul", [turned, b.mul(self._matrix, part)])
            mean = b.emit(
                "Neg", [b.div(b.mul(self._factor, b.reshape(d_shift, [outputs, 1])), b.ranked(self._count, 2))]
            )
            rest = b.reshape(b.emit("MatMul", [turned, mean]), [inputs])
            through = b.emit(
                "Conv", [g, b.reshape(b.transpose(self._scaled, [1, 0]), [inputs, outputs, 1, 1])], shape=self.x.shape
            )
            across = b.emit("Conv", [self.x, b.reshape(inner, [inputs, inputs, 1, 1]), rest], shape=self.x.shape)
            dx = b.add(through, across)
        return [dx, dw, d_scale if needs[2] else None, d_shift if needs[3] else None]
