"""Writes the forward pass of a train step, in the forms that train fastest, and records what has to be differentiated.

What no trained weight feeds is written as it is, so that onnxruntime folds and fuses it as in inference.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from edgekit.autodiff.batchnorm import (
    MOMENTUM,
    BatchStatistics,
    ConvolutionStatistics,
    folded,
    takes_the_scale,
    update_running,
)
from edgekit.autodiff.builder import GraphBuilder, Node, Value
from edgekit.autodiff.forward import Forward
from edgekit.autodiff.pointwise import PointwiseStatistics, widens
from edgekit.autodiff.reverse import Composite, Tape, only
from edgekit.autodiff.rules import depthwise
from edgekit.autodiff.rules.convolution import fat_convolution, fixed_convolution, is_fat, is_fixed_fat
from edgekit.autodiff.rules.geometry import Window, window
from edgekit.autodiff.selection import depends_on

BatchNormMode = Literal["frozen", "train", "reestimate"]


@dataclass
class Trace:
    """A forward pass in a graph under construction."""

    builder: GraphBuilder
    tape: Tape
    outputs: dict[str, Value] = field(default_factory=dict)  # the model's, by name
    prefix: bool = False  # whether convolutions or products run before anything that is trained


class Tracer:
    """Writes one forward pass; see `trace`."""

    def __init__(
        self,
        forward: Forward,
        builder: GraphBuilder,
        trained: Collection[str],
        batch_norm: BatchNormMode,
        momentum: float | None,
    ) -> None:
        self._forward, self._builder, self._mode, self._momentum = forward, builder, batch_norm, momentum
        self._trained = set(trained)
        self._active = depends_on(forward.nodes, self._trained)
        self._env: dict[str, Value] = {}
        self._users: dict[str, int] = {}
        for node in forward.nodes:
            for one in node.inputs:
                if one is not None:
                    self._users[one.name] = self._users.get(one.name, 0) + 1
        for value in forward.outputs.values():
            self._users[value.name] = self._users.get(value.name, 0) + 1
        self._makers = {one.name: node for node in forward.nodes for one in node.outputs}
        self._norms = {node.input(0).name: node for node in forward.nodes if node.op == "BatchNormalization"}
        self._layers: dict[float, list[BatchStatistics]] = {}  # with the batch's statistics, by their momentum
        self.tape = Tape(builder)

    def run(self) -> Trace:
        """Write all nodes."""
        builder, forward = self._builder, self._forward
        for name, value in forward.graph.inputs.items():
            self._env[name] = builder.input(name, value.shape, value.dtype)
        for name in forward.weights:
            if name in self._trained:
                self._env[name] = builder.state(name, forward.graph.constants[name], "parameter")
                self.tape.watch(self._env[name])
        prefix = False
        for node in forward.nodes:
            if not self._is_active(node):
                prefix = prefix or node.op in ("Conv", "Gemm", "MatMul")
            if node.op == "BatchNormalization":
                self._normalise(node)
            elif self._merged_into(node) is None:
                self._plain(node)
        for momentum, layers in self._layers.items():
            update_running(builder, layers, momentum)
        self.tape.skip()
        outputs = {name: self._value(value) for name, value in forward.outputs.items()}
        return Trace(builder, self.tape, outputs, prefix)

    def _value(self, value: Value) -> Value:
        known = self._env.get(value.name)
        if known is None:  # a constant: a weight that is not trained, or a folded value
            array = self._forward.graph.constants[value.name]
            is_weight = value.name in self._forward.weights
            known = self._builder.weight(value.name, array) if is_weight else self._builder.constant(array, array.dtype)
            self._env[value.name] = known
        return known

    def _is_active(self, node: Node) -> bool:
        return any(one.name in self._active for one in node.outputs)

    def _plain(self, node: Node) -> None:
        inputs = [self._value(one) if one is not None else None for one in node.inputs]
        if node.op == "Conv" and (self._is_active(node) or self._is_fixed(node)):
            weight = inputs[1]
            assert weight is not None
            convolution = self._convolution(node, weight, inputs[2] if len(inputs) > 2 else None)
            self.tape.compose(convolution)
            self._env[node.outputs[0].name] = convolution.outputs[0]
            return
        names = [one.name for one in node.outputs]
        made = self._builder.emit_many(
            node.op, inputs, node.attributes, count=len(names), shape=node.outputs[0].shape, names=names
        )
        self.tape.record()
        self._env.update(zip(names, made, strict=True))

    def _convolution(self, node: Node, weight: Value, bias: Value | None) -> Node:
        """Write a convolution; to the rules it is the node that is returned, whatever was written."""
        builder, x, y = self._builder, self._value(node.input(0)), node.outputs[0]
        if x.rank == 4:
            move = window(node, weight.sizes(2), x, y)
            write = fat_convolution if is_fat(weight, move) else None
            if self._is_fixed(node):
                write = fixed_convolution
            if depthwise.is_small(x, weight, move):
                write = depthwise.convolution
            if write is not None:
                made = write(builder, x, weight, bias, move, y.shape)
                return Node("Conv", made.name, (x, weight, bias), (made,), node.attributes)
        inputs = [x, weight] if bias is None else [x, weight, bias]
        made = builder.emit("Conv", inputs, node.attributes, shape=y.shape, name=y.name)
        return Node("Conv", made.name, tuple(inputs), (made,), node.attributes)

    # ---------------------------------------------------------------- batch normalisation

    def _merged_into(self, node: Node) -> Node | None:
        """The normalisation that is written together with this convolution, if there is one."""
        if node.op != "Conv" or self._users.get(node.outputs[0].name) != 1:
            return None
        norm = self._norms.get(node.outputs[0].name)
        if norm is None or not self._is_active(norm):
            return None
        move = self._window(node)
        if self._mode == "frozen":
            # With few pixels the weight is the larger tensor: it would cost more to change it and differentiate that.
            return None if move is not None and is_fat(node.input(1), move) else norm
        weight = node.input(1)
        return norm if move is not None and (widens(weight, move) or takes_the_scale(weight, move)) else None

    @staticmethod
    def _window(node: Node) -> Window | None:
        """How a two-dimensional convolution's kernel moves."""
        x, weight = node.input(0), node.input(1)
        return window(node, weight.sizes(2), x, node.outputs[0]) if x.rank == 4 else None

    def _is_fixed(self, node: Node) -> bool:
        """Whether it is a convolution of a few pixels with weights that nothing changes."""
        if self._is_active(node) or node.input(1).name not in self._forward.graph.constants:
            return False
        move = self._window(node)
        return move is not None and is_fixed_fat(node.input(1), move)

    def _normalise(self, node: Node) -> None:
        convolution = self._makers.get(node.input(0).name)
        if convolution is not None and self._merged_into(convolution) is not node:
            convolution = None
        if self._mode == "reestimate" or (self._mode == "train" and self._is_active(node)):
            self._with_statistics(node, convolution)
        elif convolution is None:
            self._plain(node)
        else:
            weight = self._value(convolution.input(1))
            given = convolution.optional(2)
            bias = self._value(given) if given is not None else None
            values = [self._value(node.input(i)) for i in (1, 2, 3, 4)]
            new_weight, new_bias = folded(self._builder, node, weight, bias, values)
            self.tape.record()
            made = self._convolution(convolution, new_weight, new_bias)
            self.tape.compose(made)
            self._env[node.outputs[0].name] = made.outputs[0]

    def _with_statistics(self, node: Node, convolution: Node | None) -> None:
        builder = self._builder
        names = [node.input(3).name, node.input(4).name]
        mean, variance = (builder.state(name, self._forward.graph.constants[name], "batch_norm") for name in names)
        scale, shift = self._value(node.input(1)), self._value(node.input(2))
        statistics: BatchStatistics
        if convolution is None:
            inputs = [self._value(node.input(0)), scale, shift]
            statistics = BatchStatistics(builder, node, (inputs[0], scale, shift, mean, variance))
        else:
            x, weight = (self._value(convolution.input(i)) for i in (0, 1))
            inputs = [x, weight, scale, shift]
            given = convolution.optional(2)
            bias = self._value(given) if given is not None else None
            move = self._window(convolution)
            if move is not None and widens(weight, move):
                statistics = PointwiseStatistics(builder, node, x, weight, bias, (scale, shift, mean, variance))
            else:
                made = self._convolution(convolution, weight, bias)
                values = (made.outputs[0], scale, shift, mean, variance)
                statistics = ConvolutionStatistics(builder, node, values, made)
        self.tape.compose(
            Composite(
                node.name,
                tuple(inputs),
                (statistics.y,),
                lambda b, grads, needs: statistics.backward(b, only(grads), needs),
            )
        )
        self._env[node.outputs[0].name] = statistics.y
        momentum = float(node.get("momentum", MOMENTUM)) if self._momentum is None else self._momentum
        self._layers.setdefault(momentum, []).append(statistics)


def trace(
    forward: Forward,
    builder: GraphBuilder,
    trained: Collection[str],
    batch_norm: BatchNormMode = "frozen",
    momentum: float | None = None,
) -> Trace:
    """Write the forward pass into `builder`; the weights named by `trained` become its states.

    batch_norm: "frozen" uses the running statistics everywhere, "train" those of the batch in every normalisation
    that a trained weight feeds, "reestimate" those of the batch everywhere. momentum: the share of the old running
    statistics that is kept; None takes each node's own.
    """
    return Tracer(forward, builder, trained, batch_norm, momentum).run()
