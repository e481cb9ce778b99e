"""Optimisers as parts of an ONNX graph.

Fed at each step: `learning_rate`, a float32 scalar. Weight decay leaves vectors alone by default: biases and the scales
of normalisations gain nothing from being small (He et al. 2019, arXiv 1812.01187, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgekit.autodiff.builder import GraphBuilder, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.interfaces import Optimiser, Parameter

Decay = Literal["matrices", "all"]
"""What weight decay acts on: parameters with two axes or more, or every one."""

LEARNING_RATE = "learning_rate"
"""Name of the input that every optimiser asks for."""
STEP = "optimiser.step"
"""Name of AdamW's state that counts its steps."""


@dataclass(frozen=True)
class Sgd:
    """v <- momentum v + g; w <- w - learning_rate (v, or with `nesterov` g + momentum v). PyTorch's SGD.

    Weight decay is added to the gradient: g + weight_decay w.
    """

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decay: Decay = "matrices"

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1 or not 0 <= self.weight_decay <= 1:
            raise AutodiffError(
                f"SGD: momentum is {self.momentum} and weight decay {self.weight_decay}; they lie from 0 to below 1, "
                "and from 0 to 1"
            )

    def emit(self, builder: GraphBuilder, parameters: Sequence[Parameter]) -> None:
        """See Optimiser.emit. State: NAME.momentum."""
        rate = builder.input(LEARNING_RATE, ())
        for parameter in parameters:
            weight, step = parameter.value, parameter.gradient
            if self.weight_decay and decays(parameter, self.decay):
                step = builder.add(step, builder.scaled(weight, self.weight_decay))
            if self.momentum:
                velocity = _accumulated(builder, f"{parameter.name}.momentum", self.momentum, step)
                step = builder.add(step, builder.scaled(velocity, self.momentum)) if self.nesterov else velocity
            change = builder.mul(step, builder.ranked(rate, weight.rank))
            builder.update(parameter.name, builder.sub(weight, change))


@dataclass(frozen=True)
class AdamW:
    """m <- b1 m + (1-b1) g; v <- b2 v + (1-b2) g^2; w <- w - rate (m' / (sqrt(v') + epsilon) + weight_decay w).

    m' = m / (1 - b1^t), v' = v / (1 - b2^t) at step t. Loshchilov and Hutter 2019 (arXiv 1711.05101); PyTorch's AdamW.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    decay: Decay = "matrices"

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas) or not 0 < self.epsilon < 1 or not 0 <= self.weight_decay <= 1:
            raise AutodiffError(
                f"AdamW: betas are {self.betas}, epsilon {self.epsilon} and weight decay {self.weight_decay}; "
                "betas lie from 0 to below 1, epsilon above 0, weight decay from 0 to 1"
            )

    def emit(self, builder: GraphBuilder, parameters: Sequence[Parameter]) -> None:
        """See Optimiser.emit. States: NAME.first, NAME.second, and one `optimiser.step`."""
        rate = builder.input(LEARNING_RATE, ())
        step = builder.add(builder.state(STEP, np.zeros(1, np.float32)), builder.scalar(1.0, 1))
        builder.update(STEP, step)
        corrections = [
            builder.sub(builder.scalar(1.0, 1), builder.emit("Pow", [builder.scalar(beta, 1), step]))
            for beta in self.betas
        ]
        scale = builder.div(builder.ranked(rate, 1), corrections[0])
        spread = builder.emit("Sqrt", [corrections[1]])
        for parameter in parameters:
            weight, gradient = parameter.value, parameter.gradient
            first = self._average(builder, f"{parameter.name}.first", gradient, self.betas[0])
            square = builder.mul(gradient, gradient)
            second = self._average(builder, f"{parameter.name}.second", square, self.betas[1])
            root = builder.div(builder.emit("Sqrt", [second]), builder.ranked(spread, weight.rank))
            root = builder.add(root, builder.scalar(self.epsilon, weight.rank))
            change = builder.mul(builder.div(first, root), builder.ranked(scale, weight.rank))
            if self.weight_decay and decays(parameter, self.decay):
                shrink = builder.scaled(builder.ranked(rate, weight.rank), self.weight_decay)
                change = builder.add(change, builder.mul(weight, shrink))
            builder.update(parameter.name, builder.sub(weight, change))

    @staticmethod
    def _average(builder: GraphBuilder, state: str, value: Value, beta: float) -> Value:
        kept = builder.scaled(builder.state(state, np.zeros(_shape(value), np.float32)), beta)
        average = builder.add(kept, builder.scaled(value, 1 - beta))
        builder.update(state, average)
        return average


@dataclass(frozen=True)
class Clipped:
    """Shortens all gradients together to the norm `max_norm`: PyTorch's clip_grad_norm_ (Pascanu et al. 2013).

    The norm before clipping is the output `gradient_norm`.
    """

    optimiser: Optimiser
    max_norm: float

    def __post_init__(self) -> None:
        if not 0 < self.max_norm < math.inf:
            raise AutodiffError(f"the norm of the gradients is clipped to {self.max_norm}; it must be above 0")

    def emit(self, builder: GraphBuilder, parameters: Sequence[Parameter]) -> None:
        """See Optimiser.emit."""
        squares = [builder.emit("ReduceSumSquare", [one.gradient], {"keepdims": 0}) for one in parameters]
        norm = builder.emit("Sqrt", [builder.total(squares)])
        builder.output("gradient_norm", norm)
        shorter = builder.div(builder.scalar(self.max_norm), builder.add(norm, builder.scalar(_NORM_SLACK)))
        factor = builder.emit("Min", [shorter, builder.scalar(1.0)])
        clipped = [
            replace(one, gradient=builder.mul(one.gradient, builder.ranked(factor, one.gradient.rank)))
            for one in parameters
        ]
        self.optimiser.emit(builder, clipped)


def _accumulated(builder: GraphBuilder, state: str, share: float, step: Value) -> Value:
    """`share` of what the state was and `step`, which is its next value.

    Where the step is a matrix product, perhaps reshaped, the product itself adds to the state, which then has the shape
    of the product: two passes over the weights less than by Mul and Add.
    """
    product = builder.maker(step)
    while product is not None and product.op == "Reshape":
        product = builder.maker(product.input(0))
    if product is None or product.op != "Gemm" or len(product.inputs) > 2:
        velocity = builder.state(state, np.zeros(_shape(step), np.float32))
        velocity = builder.add(builder.scaled(velocity, share), step)
        builder.update(state, velocity)
        return velocity
    velocity = builder.state(state, np.zeros(_shape(product.outputs[0]), np.float32))
    velocity = builder.emit("Gemm", [*product.inputs, velocity], {**product.attributes, "beta": share})
    builder.update(state, velocity)
    return builder.reshape_like(velocity, step)


_NORM_SLACK = 1e-6  # what PyTorch adds to the norm


def decays(parameter: Parameter, decay: Decay) -> bool:
    """Whether weight decay acts on a parameter."""
    return decay == "all" or parameter.value.rank >= 2


def _shape(value: Value) -> tuple[int, ...]:
    return tuple(value.sizes())
