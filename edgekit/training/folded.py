"""BatchNormalization written into the layer before it: the served form of a network whose checkpoint keeps it apart.

With f = scale / sqrt(variance + epsilon), a layer's weight times f and (bias - mean) f + shift give what layer and
normalisation gave. A normalisation stays where nothing in front of it can take it in: behind an addition or a
concatenation, behind a layer that somebody else reads, too, or with weights that are computed. Needs the package onnx.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray

from edgekit.graphs.editing import attributes, copied, free_name, makers, nested

LIMIT = 1e-3
"""Largest difference between two forms of one network, as a share of an output's largest value: what another order of
sums may make in float32."""
_LAYERS = ("Conv", "ConvTranspose", "Gemm")
_EPSILON = 1e-5
"""The operator's default."""

Floats = NDArray[np.float64]


def normalisations(model: onnx.ModelProto) -> int:
    """How many BatchNormalization nodes there are."""
    return sum(node.op_type == "BatchNormalization" for node in model.graph.node)


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network, with every normalisation folded that can be; the weights must be in `model` itself.

    Inputs, outputs and the names of all other weights stay. A graph with inner graphs is given back as it is.
    """
    made = copied(model)
    graph = made.graph
    if nested(graph):
        return made
    arrays = {one.name: one for one in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(one.name for one in graph.output)
    made_by = makers(graph)
    taken = {*arrays, *made_by, *(one.name for one in graph.input)}
    gone: list[str] = []
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        layer = made_by.get(norm.input[0])
        if layer is None or readers[norm.input[0]] != 1:
            continue
        found = _folded(layer, norm, arrays)
        if found is None:
            continue
        names = []
        for kind, array in zip(("weight", "bias"), found, strict=True):
            name = free_name(f"{norm.output[0]}.{kind}", taken)
            taken.add(name)
            tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name)
            graph.initializer.append(tensor)
            names.append(name)
        gone.append(norm.input[0])
        layer.input[:] = [layer.input[0], *names]
        layer.output[0] = norm.output[0]
        made_by[norm.output[0]] = layer
        graph.node.remove(norm)
    _forget(graph, gone)
    return made


def difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Largest difference as a share of the largest value of `other`; infinity for other sizes or values that are no
    numbers."""
    if one.size != other.size or not one.size:
        return np.inf
    left, right = (np.asarray(x, np.float64).reshape(-1) for x in (one, other))
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return np.inf
    scale = float(np.abs(right).max())
    return float(np.abs(left - right).max()) / scale if scale else float(np.abs(left).max())


def _folded(
    layer: onnx.NodeProto, norm: onnx.NodeProto, arrays: dict[str, onnx.TensorProto]
) -> tuple[Floats, Floats] | None:
    """Weight and bias of the layer that does the work of the normalisation as well; None where it cannot."""
    said, told = attributes(layer), attributes(norm)
    needed = [*layer.input[1:], *norm.input[1:]]
    if layer.op_type not in _LAYERS or len(norm.input) != 5 or any(name not in arrays for name in needed):
        return None
    if told.get("training_mode", 0) or told.get("spatial", 1) != 1 or any(norm.output[1:]):
        return None
    weight, *rest = (np.asarray(onnx.numpy_helper.to_array(arrays[name]), np.float64) for name in layer.input[1:])
    scale, shift, mean, variance = (_array(arrays[name]) for name in norm.input[1:])
    channels = len(scale)
    axis = 0
    if layer.op_type == "ConvTranspose":
        axis = 1
        if said.get("group", 1) != 1:
            return None
    elif layer.op_type == "Gemm":
        axis = 0 if said.get("transB", 0) else 1
        if said.get("alpha", 1.0) != 1.0 or said.get("beta", 1.0) != 1.0:
            return None
    bias = rest[0].reshape(-1) if rest else np.zeros(channels)
    if weight.ndim < 2 or weight.shape[axis] != channels or bias.shape != (channels,):
        return None
    factor = scale / np.sqrt(variance + told.get("epsilon", _EPSILON))
    shape = [1] * weight.ndim
    shape[axis] = channels
    return weight * factor.reshape(shape), (bias - mean) * factor + shift


def _array(tensor: onnx.TensorProto) -> Floats:
    return np.asarray(onnx.numpy_helper.to_array(tensor), np.float64).reshape(-1)


def _forget(graph: onnx.GraphProto, gone: list[str]) -> None:
    """Remove weights that nobody reads any more, and what is said about values that are gone."""
    read = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    missing = set(gone)
    weights = [one for one in graph.initializer if one.name in read]
    said = [one for one in graph.value_info if one.name not in missing]
    listed = {one.name for one in graph.initializer} - read
    inputs = [one for one in graph.input if one.name not in listed]
    for field, values in ((graph.initializer, weights), (graph.value_info, said), (graph.input, inputs)):
        del field[:]
        field.extend(values)
