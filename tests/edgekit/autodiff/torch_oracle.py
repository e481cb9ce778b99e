"""PyTorch as the oracle: evaluates a forward ONNX graph with torch's own functions, so that autograd gives the
gradients.

It calls the kernels that an eager `nn.Module` would call, so it also is what the benchmarks compare with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class TorchModel:
    """Weights as leaves, buffers for running statistics, and a forward function."""

    def __init__(self, model: onnx.ModelProto, train_bn: bool, double: bool = False) -> None:
        import torch

        self.torch = torch
        self._train_bn = train_bn
        self._nodes = [
            (n.op_type, list(n.input), list(n.output), {a.name: _plain(a) for a in n.attribute})
            for n in model.graph.node
        ]
        kind = torch.float64 if double else torch.float32
        self.tensors = {}
        for one in model.graph.initializer:
            tensor = torch.from_numpy(np.array(numpy_helper.to_array(one)))
            self.tensors[one.name] = tensor.to(kind) if tensor.is_floating_point() else tensor
        self.output = model.graph.output[0].name

    def parameters(self, names: list[str]) -> list[Any]:
        for name in names:
            self.tensors[name].requires_grad_(True)
        return [self.tensors[name] for name in names]

    def __call__(self, x: Any) -> Any:
        env = dict(self.tensors)
        env["x"] = x
        for op, inputs, outputs, attributes in self._nodes:
            env[outputs[0]] = self._apply(op, [env[i] if i else None for i in inputs], attributes)
        return env[self.output]

    def _apply(self, op: str, v: list[Any], a: dict[str, Any]) -> Any:
        torch, f = self.torch, self.torch.nn.functional
        if op == "Conv":
            x, pads = v[0], a.get("pads", [0, 0, 0, 0])
            if pads[:2] == pads[2:]:
                pad = pads[:2]
            else:
                x, pad = f.pad(x, (pads[1], pads[3], pads[0], pads[2])), [0, 0]
            bias = v[2] if len(v) > 2 else None
            return f.conv2d(x, v[1], bias, a.get("strides", 1), pad, a.get("dilations", 1), a.get("group", 1))
        if op == "BatchNormalization":
            train = self._train_bn
            return f.batch_norm(v[0], v[3], v[4], v[1], v[2], train, 1 - a.get("momentum", 0.9), a.get("epsilon", 1e-5))
        if op == "MaxPool":
            return f.max_pool2d(v[0], a["kernel_shape"], a["strides"], a.get("pads", [0, 0])[:2])
        if op == "Gemm":
            return f.linear(v[0], v[1] if a.get("transB") else v[1].T, v[2])
        if op == "Clip":
            return f.hardtanh(v[0], float(v[1]), float(v[2]))
        simple = {
            "Relu": lambda: f.relu(v[0]),
            "Add": lambda: v[0] + v[1],
            "Mul": lambda: v[0] * v[1],
            "HardSwish": lambda: f.hardswish(v[0]),
            "HardSigmoid": lambda: f.hardsigmoid(v[0]),
            "Sigmoid": lambda: torch.sigmoid(v[0]),
            "Flatten": lambda: v[0].flatten(1),
            "Identity": lambda: v[0],
            "GlobalAveragePool": lambda: f.adaptive_avg_pool2d(v[0], 1),
        }
        return simple[op]()


def _plain(attribute: onnx.AttributeProto) -> Any:
    return helper.get_attribute_value(attribute)
