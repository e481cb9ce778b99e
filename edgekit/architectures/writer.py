"""Writes a forward graph layer by layer: nodes, weights with their initial values, and which block owns which weight.

Initial values follow torchvision: He et al. 2015 (arXiv 1502.01852), normal with the fan of the outputs, for
convolutions; 1 and 0 for BatchNormalization; normal with OUTPUT_SPREAD for the layers that answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.architectures.network import INPUT, ArchitectureError, Block

if TYPE_CHECKING:
    import onnx

OPSET = 18
IR_VERSION = 9
BATCH = "N"
"""Name of the free dimension."""
EPSILON = 1e-5
MOMENTUM = 0.9
"""Share of the running statistics that one step keeps, as ONNX counts it (PyTorch's momentum of 0.1)."""
OUTPUT_SPREAD = 0.01


class Writer:
    """Collects one network. Every method that adds a layer returns the name of its output."""

    def __init__(self, height: int, width: int, channels: int, rng: np.random.Generator) -> None:
        try:
            import onnx
        except ImportError:
            raise ArchitectureError(
                'building a network needs the package onnx; install it with: pip install "edged-cloudd[cloud]"'
            ) from None
        self._onnx = onnx
        self._rng = rng
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, NDArray[np.float32]] = {}
        self._constants: dict[str, NDArray[np.int64] | NDArray[np.float32]] = {}
        self._blocks: dict[str, list[str]] = {}
        self._block = ""
        self._shapes: dict[str, tuple[int, ...]] = {INPUT: (channels, height, width)}

    def block(self, name: str) -> None:
        """Layers that follow belong to the block `name`, and their names begin with it."""
        self._block = name
        self._blocks[name] = []

    def channels(self, x: str) -> int:
        return self._shapes[x][0]

    def conv(
        self,
        x: str,
        name: str,
        out: int,
        kernel: int = 3,
        stride: int = 1,
        group: int = 1,
        bias: float | None = None,
        spread: float | None = None,
    ) -> str:
        """Convolution with padding (kernel - 1) / 2. `bias`: its initial value; None: there is none.

        `spread`: standard deviation of the initial weights; None: by the fan of the outputs.
        """
        inside, height, width = self._shapes[x]
        if spread is None:
            spread = math.sqrt(2 * group / (out * kernel * kernel))
        shape = (out, inside // group, kernel, kernel)
        names = [x, self._parameter(name, "weight", self._rng.normal(0, spread, shape))]
        if bias is not None:
            names.append(self._parameter(name, "bias", np.full(out, bias)))
        pad = (kernel - 1) // 2
        return self._add(
            "Conv",
            names,
            name,
            (out, -(-height // stride), -(-width // stride)),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
            group=group,
        )

    def norm(self, x: str, name: str) -> str:
        """BatchNormalization with running statistics of 0 and 1."""
        count = self.channels(x)
        names = [
            x,
            self._parameter(name, "scale", np.ones(count)),
            self._parameter(name, "bias", np.zeros(count)),
            self._weight(name, "mean", np.zeros(count)),
            self._weight(name, "variance", np.ones(count)),
        ]
        return self._add("BatchNormalization", names, name, self._shapes[x], epsilon=EPSILON, momentum=MOMENTUM)

    def relu(self, x: str, name: str) -> str:
        return self._add("Relu", [x], name, self._shapes[x])

    def relu6(self, x: str, name: str) -> str:
        return self._add(
            "Clip",
            [x, self._constant("zero", np.float32(0)), self._constant("six", np.float32(6))],
            name,
            self._shapes[x],
        )

    def max_pool(self, x: str, name: str, kernel: int, stride: int) -> str:
        count, height, width = self._shapes[x]
        pad = (kernel - 1) // 2
        high, wide = ((side + 2 * pad - kernel) // stride + 1 for side in (height, width))
        return self._add(
            "MaxPool",
            [x],
            name,
            (count, high, wide),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
        )

    def add(self, x: str, y: str, name: str) -> str:
        return self._add("Add", [x, y], name, self._shapes[x])

    def double(self, x: str, name: str) -> str:
        """Twice the height and width by repeating each value."""
        count, height, width = self._shapes[x]
        scales = self._constant("doubled", np.array([1, 1, 2, 2], np.float32))
        return self._add(
            "Resize",
            [x, "", scales],
            name,
            (count, 2 * height, 2 * width),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def mean(self, x: str, name: str) -> str:
        """Mean over all pixels: [N, channels]."""
        pooled = self._add("GlobalAveragePool", [x], f"{name}.pool", (self.channels(x), 1, 1))
        return self._add("Flatten", [pooled], name, (self.channels(x),), axis=1)

    def linear(self, x: str, name: str, out: int, output: str) -> str:
        """A fully connected layer whose output is called `output`."""
        shape = (out, self.channels(x))
        names = [
            x,
            self._parameter(name, "weight", self._rng.normal(0, OUTPUT_SPREAD, shape)),
            self._parameter(name, "bias", np.zeros(out)),
        ]
        return self._add("Gemm", names, name, (out,), output=output, transB=1)

    def named(self, x: str, output: str) -> str:
        """Give the value that the last layer made the name `output`."""
        node = self._nodes[-1]
        assert list(node.output) == [x]
        node.output[0] = output
        self._shapes[output] = self._shapes.pop(x)
        return output

    def finish(self, name: str, outputs: Sequence[str]) -> tuple[onnx.ModelProto, tuple[Block, ...]]:
        """The model, checked, and its blocks."""
        helper, numpy_helper = self._onnx.helper, self._onnx.numpy_helper
        floats = self._onnx.TensorProto.FLOAT
        values = {**self._weights, **self._constants}
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info(INPUT, floats, [BATCH, *self._shapes[INPUT]])],
            [helper.make_tensor_value_info(out, floats, [BATCH, *self._shapes[out]]) for out in outputs],
            [numpy_helper.from_array(array, key) for key, array in values.items()],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="edgekit",
        )
        self._onnx.checker.check_model(model, full_check=True)
        return model, tuple(Block(block, tuple(names)) for block, names in self._blocks.items())

    def _add(
        self,
        operator: str,
        inputs: Sequence[str],
        name: str,
        shape: tuple[int, ...],
        output: str = "",
        **attributes: Any,
    ) -> str:
        full = f"{self._block}.{name}"
        output = output or full
        assert output not in self._shapes, f"two layers are called {output}"
        self._nodes.append(self._onnx.helper.make_node(operator, list(inputs), [output], name=full, **attributes))
        self._shapes[output] = shape
        return output

    def _parameter(self, layer: str, kind: str, value: NDArray[np.float64]) -> str:
        name = self._weight(layer, kind, value)
        self._blocks[self._block].append(name)
        return name

    def _weight(self, layer: str, kind: str, value: NDArray[np.float64]) -> str:
        name = f"{self._block}.{layer}.{kind}"
        self._weights[name] = value.astype(np.float32)
        return name

    def _constant(self, name: str, value: NDArray[np.float32] | np.float32) -> str:
        self._constants[name] = np.asarray(value)
        return name
