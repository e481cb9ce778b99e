"""Models that the adaptation benchmark makes: three shapes of CNN with random weights, as floats and quantised.

Only their speed matters. Weights are drawn as He et al. do (variance 2 / fan-in), so that activations stay in range and
the quantised model answers much as the other does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

LABELS = 10


class Net:
    """Collects nodes and weights of one graph that gives one value a label."""

    def __init__(self, seed: int, labels: int = LABELS) -> None:
        self.labels = labels
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._generator = np.random.default_rng(seed)
        self._count = 0

    def weight(self, array: NDArray[np.float32]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: object) -> str:
        self._count += 1
        output = f"t{self._count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"n{self._count}", **attributes))
        return output

    def conv(
        self, x: str, into: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, active: bool = True
    ) -> str:
        fan_in = into // groups * kernel * kernel
        shape = (out, into // groups, kernel, kernel)
        kernels = self._generator.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
        bias = self._generator.normal(0, 0.01, out).astype(np.float32)
        pad = kernel // 2
        y = self.node(
            "Conv", x, self.weight(kernels), self.weight(bias), strides=[stride] * 2, pads=[pad] * 4, group=groups
        )
        return self.node("Relu", y) if active else y

    def classifier(self, x: str, features: int) -> None:
        pooled = self.node("GlobalAveragePool", x)
        flat = self.node("Flatten", pooled, axis=1)
        weights = self._generator.normal(0, np.sqrt(1 / features), (features, self.labels)).astype(np.float32)
        self.nodes.append(
            helper.make_node(
                "Gemm", [flat, self.weight(weights), self.weight(np.zeros(self.labels, np.float32))], ["logits"]
            )
        )

    def save(self, path: Path, side: int, batch: int | str = 1) -> None:
        """`batch`: a name leaves the batch size open."""
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, side, side])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, self.labels])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())


def small(path: Path, side: int = 64) -> None:
    """Four convolutions: a model for a microcontroller, some 0.2 ms on a desktop core."""
    net, x, channels = Net(1), "input", 3
    for out, stride in ((16, 2), (32, 2), (32, 1), (64, 2)):
        x, channels = net.conv(x, channels, out, stride=stride), out
    net.classifier(x, channels)
    net.save(path, side)


def mobilenet_v2(path: Path, side: int = 224, labels: int = LABELS, batch: int | str = 1, seed: int = 2) -> None:
    """The layers of MobileNetV2 1.0 (Sandler et al. 2018, table 2) with batch normalisation folded in."""
    net = Net(seed, labels)
    x, channels = net.conv("input", 3, 32, stride=2), 32
    for expand, out, repeat, first_stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for index in range(repeat):
            stride, wide = first_stride if index == 0 else 1, channels * expand
            y = net.conv(x, channels, wide, kernel=1) if expand > 1 else x
            y = net.conv(y, wide, wide, stride=stride, groups=wide)
            y = net.conv(y, wide, out, kernel=1, active=False)
            x = net.node("Add", x, y) if stride == 1 and channels == out else y
            channels = out
    net.classifier(net.conv(x, channels, 1280, kernel=1), 1280)
    net.save(path, side, batch)


def residual(path: Path, side: int = 128) -> None:
    """The layers of ResNet-18 (He et al. 2015) at half the width: few, large convolutions."""
    net = Net(3)
    x, channels = net.conv("input", 3, 32, kernel=7, stride=2), 32
    x = net.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for out in (32, 64, 128, 256):
        for index in range(2):
            stride = 2 if index == 0 and out != 32 else 1
            y = net.conv(net.conv(x, channels, out, stride=stride), out, out, active=False)
            skip = (
                x
                if stride == 1 and channels == out
                else net.conv(x, channels, out, kernel=1, stride=stride, active=False)
            )
            x, channels = net.node("Relu", net.node("Add", y, skip)), out
    net.classifier(x, channels)
    net.save(path, side)


class _Pictures:
    """Calibration pictures: smooth noise in 0..1, as the benchmark's own inputs are."""

    def __init__(self, side: int, count: int = 8) -> None:
        generator = np.random.default_rng(4)
        coarse = generator.random((count, 1, 3, side // 8, side // 8)).astype(np.float32)
        self._feeds: Iterator[dict[str, NDArray[np.float32]]] = (
            {"input": one.repeat(8, axis=2).repeat(8, axis=3)} for one in coarse
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)


def quantise(source: Path, target: Path, side: int) -> None:
    """QDQ with unsigned activations and signed weights, one scale a channel: what a calibrated package brings."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        str(source),
        str(target),
        _Pictures(side),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
