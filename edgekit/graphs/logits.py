"""The end of a classifier: its logits, and the last layer that makes one value a class of the features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray

from edgekit.graphs.editing import THROUGH, attributes, called, drop_unused, keep_outputs, makers
from edgekit.graphs.errors import NetworkError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LastLayer:
    """The layer that makes one value a class of the features."""

    node: onnx.NodeProto
    bias_node: onnx.NodeProto | None  # an Add behind a MatMul
    features: str  # name of its input
    weight: Floats  # [classes, features]
    bias: Floats  # [classes]


def keep_logits(model: onnx.ModelProto, output: str, *, probabilities: bool) -> str:
    """Leave what makes the logits, as the only output of `model`; returns their name.

    They are `output` itself, or, where that gives `probabilities`, what the Softmax before it gets. Raises NetworkError
    if something else makes those, or nothing is called so.
    """
    keep_outputs(model, [output])
    if not probabilities:
        return output
    maker = makers(model.graph).get(output)
    if maker is None or maker.op_type != "Softmax":
        raise NetworkError(
            f"the probabilities are made by {called(maker, output)}; only those of a Softmax can be learned"
        )
    model.graph.output[0].name = maker.input[0]
    drop_unused(model)
    return str(maker.input[0])


def last_layer(graph: onnx.GraphProto, logits: str) -> LastLayer:
    """The Gemm, MatMul or 1x1 Conv before the value `logits`. Raises NetworkError if it has none."""
    made_by = makers(graph)
    node = made_by.get(logits)
    while node is not None and node.op_type in THROUGH:
        node = made_by.get(node.input[0])
    bias_node, product = None, node
    if node is not None and node.op_type == "Add":
        sides = [made_by.get(name) for name in node.input]
        product = next((one for one in sides if one is not None and one.op_type == "MatMul"), None)
        bias_node = node
    if product is None or product.op_type not in ("Gemm", "MatMul", "Conv"):
        raise NetworkError(
            f"the classes are made by {called(node)}; a last layer that can be learned anew is a Gemm, a MatMul or "
            "a 1x1 Conv"
        )
    arrays = {one.name: one for one in graph.initializer}
    weight = _weight(product, arrays)
    bias = _bias(product, bias_node, arrays, len(weight))
    return LastLayer(product, bias_node, product.input[0], weight, bias)


def _weight(node: onnx.NodeProto, arrays: Mapping[str, onnx.TensorProto]) -> Floats:
    """[classes, features]"""
    said, name = attributes(node), (node.name or node.output[0])[:100]
    tensor = arrays.get(node.input[1])
    if tensor is None:
        raise NetworkError(f"the weights of the last layer {name} are computed, so it cannot be replaced")
    weight = np.asarray(onnx.numpy_helper.to_array(tensor), np.float64)
    if node.op_type == "Conv":
        plain = all(said.get(one, [1, 1]) == [1, 1] for one in ("strides", "dilations")) and said.get("group", 1) == 1
        if weight.ndim != 4 or weight.shape[2:] != (1, 1) or not plain or any(said.get("pads", [0])):
            raise NetworkError(f"the last layer {name} is a Conv that is not 1x1, so it cannot be replaced")
        return weight[:, :, 0, 0]
    if weight.ndim != 2:
        raise NetworkError(f"the weights of the last layer {name} are no matrix, so it cannot be replaced")
    if node.op_type == "Gemm":
        if said.get("transA", 0) or said.get("alpha", 1.0) != 1.0 or said.get("beta", 1.0) != 1.0:
            raise NetworkError(f"the last layer {name} is a Gemm with factors, so it cannot be replaced")
        return weight if said.get("transB", 0) else weight.T
    return weight.T


def _bias(
    node: onnx.NodeProto, bias_node: onnx.NodeProto | None, arrays: Mapping[str, onnx.TensorProto], classes: int
) -> Floats:
    name = ""
    if bias_node is not None:
        name = next((one for one in bias_node.input if one not in node.output), "")
    elif len(node.input) > 2:
        name = node.input[2]
    if not name:
        return np.zeros(classes)
    tensor = arrays.get(name)
    bias = None if tensor is None else np.asarray(onnx.numpy_helper.to_array(tensor), np.float64).reshape(-1)
    if bias is None or len(bias) != classes:
        raise NetworkError(f"the last layer's bias {name[:100]} is no list of one value a class")
    return bias
