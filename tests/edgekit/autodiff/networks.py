"""Forward ONNX models for the tests and benchmarks of autodiff: written by hand, seeded, with BatchNormalization
unfolded.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


class Network:
    """Adds layers; every method takes and returns the name of a tensor."""

    def __init__(self, seed: int = 0, channels: int = 3, size: int = 32) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._input = [channels, size, size]
        self._channels = {"x": channels}

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        if inputs and inputs[0] in self._channels:
            self._channels[name] = self._channels[inputs[0]]
        return name

    def weight(self, name: str, array: NDArray[Any]) -> str:
        self._weights.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def conv(self, x: str, name: str, out: int, k: int = 3, s: int = 1, group: int = 1, bias: bool = False) -> str:
        inputs = self._channels[x]
        fan = inputs // group * k * k
        shape = (out, inputs // group, k, k)
        names = [self.weight(f"{name}.weight", self._rng.normal(0, math.sqrt(2 / fan), shape))]
        if bias:
            names.append(self.weight(f"{name}.bias", self._rng.normal(0, 0.1, out)))
        pads = [k // 2] * 4
        y = self.node("Conv", x, *names, kernel_shape=[k, k], strides=[s, s], pads=pads, group=group)
        self._channels[y] = out
        return y

    def norm(self, x: str, name: str) -> str:
        c = self._channels[x]
        names = [
            self.weight(f"{name}.weight", self._rng.uniform(0.5, 1.5, c)),
            self.weight(f"{name}.bias", self._rng.normal(0, 0.1, c)),
            self.weight(f"{name}.running_mean", self._rng.normal(0, 0.1, c)),
            self.weight(f"{name}.running_var", self._rng.uniform(0.5, 1.5, c)),
        ]
        return self.node("BatchNormalization", x, *names, epsilon=1e-5, momentum=0.9)

    def cbn(self, x: str, name: str, out: int, k: int = 3, s: int = 1, group: int = 1) -> str:
        return self.norm(self.conv(x, f"{name}.conv", out, k, s, group), f"{name}.bn")

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def relu6(self, x: str) -> str:
        low, high = (f"{bound}_{len(self._nodes)}" for bound in ("low", "high"))
        self._weights += [numpy_helper.from_array(np.float32(v), n) for v, n in ((0.0, low), (6.0, high))]
        return self.node("Clip", x, low, high)

    def pool(self, x: str, k: int = 2, s: int = 2, pad: int = 0) -> str:
        return self.node("MaxPool", x, kernel_shape=[k, k], strides=[s, s], pads=[pad] * 4)

    def head(self, x: str) -> str:
        y = self.node("Flatten", self.node("GlobalAveragePool", x))
        self._channels[y] = self._channels[x]
        return y

    def linear(self, x: str, name: str, out: int) -> str:
        c = self._channels[x]
        w = self.weight(f"{name}.weight", self._rng.normal(0, math.sqrt(1 / c), (out, c)))
        y = self.node("Gemm", x, w, self.weight(f"{name}.bias", self._rng.normal(0, 0.1, out)), transB=1)
        self._channels[y] = out
        return y

    def build(self, y: str) -> onnx.ModelProto:
        self._nodes.append(helper.make_node("Identity", [y], ["logits"], name="logits"))
        graph = helper.make_graph(
            self._nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self._input])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", self._channels[y]])],
            self._weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model)
        return model


def small(size: int = 64, classes: int = 4, bn: bool = False, seed: int = 0) -> onnx.ModelProto:
    """Four 3x3 convolutions and two dense layers."""
    n = Network(seed, size=size)
    x = "x"
    for i, out in enumerate((16, 32, 64, 64)):
        x = n.cbn(x, f"features.{i}", out) if bn else n.conv(x, f"features.{i}.conv", out, bias=True)
        x = n.relu(x)
        if i < 3:
            x = n.pool(x)
    return n.build(n.linear(n.relu(n.linear(n.head(x), "fc1", 64)), "fc2", classes))


def resnet18(size: int = 64, classes: int = 4, seed: int = 0) -> onnx.ModelProto:
    """ResNet-18."""
    n = Network(seed, size=size)
    x = n.pool(n.relu(n.cbn("x", "stem", 64, 7, 2)), 3, 2, 1)
    for stage, out in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            name, s = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = n.cbn(n.relu(n.cbn(x, f"{name}.1", out, 3, s)), f"{name}.2", out)
            x = n.relu(n.node("Add", y, x if s == 1 else n.cbn(x, f"{name}.down", out, 1, s)))
    return n.build(n.linear(n.head(x), "fc", classes))


def mobilenet_v2(size: int = 96, classes: int = 4, seed: int = 0) -> onnx.ModelProto:
    """MobileNetV2, width 1."""
    n = Network(seed, size=size)
    x, inputs, index = n.relu6(n.cbn("x", "features.0", 32, 3, 2)), 32, 1
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for t, out, count, stride in table:
        for i in range(count):
            name, s, hidden = f"features.{index}", stride if i == 0 else 1, inputs * t
            y = n.relu6(n.cbn(x, f"{name}.expand", hidden, 1)) if t > 1 else x
            y = n.relu6(n.cbn(y, f"{name}.depth", hidden, 3, s, hidden))
            y = n.cbn(y, f"{name}.project", out, 1)
            x = n.node("Add", x, y) if s == 1 and inputs == out else y
            inputs, index = out, index + 1
    x = n.relu6(n.cbn(x, f"features.{index}", 1280, 1))
    return n.build(n.linear(n.head(x), "classifier", classes))


def mobilenet_v3(size: int = 96, classes: int = 4, seed: int = 0) -> onnx.ModelProto:
    """MobileNetV3-Small."""
    n = Network(seed, size=size)

    def act(x: str, kind: str) -> str:
        return n.node("HardSwish", x) if kind == "hs" else n.relu(x)

    x, inputs = act(n.cbn("x", "features.0", 16, 3, 2), "hs"), 16
    table = (
        *((16, 16, 3, 2, 1, "re"), (72, 24, 3, 2, 0, "re"), (88, 24, 3, 1, 0, "re"), (96, 40, 5, 2, 1, "hs")),
        *((240, 40, 5, 1, 1, "hs"), (120, 48, 5, 1, 1, "hs"), (288, 96, 5, 2, 1, "hs"), (576, 96, 5, 1, 1, "hs")),
    )
    for index, (hidden, out, k, s, se, kind) in enumerate(table, 1):
        name = f"features.{index}"
        y = act(n.cbn(act(n.cbn(x, f"{name}.expand", hidden, 1), kind), f"{name}.depth", hidden, k, s, hidden), kind)
        if se:
            q = n.node("GlobalAveragePool", y)
            q = n.conv(n.relu(n.conv(q, f"{name}.se1", hidden // 4, 1, bias=True)), f"{name}.se2", hidden, 1, bias=True)
            y = n.node("Mul", y, n.node("HardSigmoid", q, alpha=1 / 6, beta=0.5))
        y = n.cbn(y, f"{name}.project", out, 1)
        x = n.node("Add", x, y) if s == 1 and inputs == out else y
        inputs = out
    x = n.head(act(n.cbn(x, "features.9", 576, 1), "hs"))
    return n.build(n.linear(n.node("HardSwish", n.linear(x, "c1", 1024)), "c2", classes))
