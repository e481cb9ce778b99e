"""Small models for the tests of splitting, and a strategy that draws convolutional networks with branches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE = 12
CHANNELS = 4
"""Of every map in a drawn network, so that any two of one size can be added."""


def value(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def kernels(name: str, out: int, into: int, side: int = 3, seed: int = 0) -> onnx.TensorProto:
    scale = np.sqrt(2 / (into * side * side))
    array = np.random.default_rng(seed).normal(0, scale, (out, into, side, side))
    return numpy_helper.from_array(array.astype(np.float32), name)


def conv(x: str, weight: str, y: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, weight], [y], **{"pads": [1, 1, 1, 1], **attributes})


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto] = (),
    *,
    inputs: Sequence[onnx.ValueInfoProto] = (value("x", 1, 3, SIDE, SIDE),),
    outputs: Sequence[onnx.ValueInfoProto] = (value("y", 1, CHANNELS, SIDE, SIDE),),
    domains: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    ir_version: int = 8,
) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=ir_version)
    path.write_bytes(model.SerializeToString())
    return path


def picture(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, shape or (1, 3, SIDE, SIDE)).astype(np.float32)


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """A network of 2 to 9 operators that take any maps made before them, so that branches cross cuts in every way.

    One or two outputs; maps have SIDE, SIDE / 2 or SIDE / 4 values a side. The first operator is a convolution.
    """
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    maps: list[tuple[str, int, int]] = []  # name, channels, side

    def weigh(out: int, into: int, groups: int = 1) -> str:
        weights.append(kernels(f"w{len(weights)}", out, into // groups, seed=len(weights)))
        return weights[-1].name

    def put(kind: str, inputs: Sequence[str], channels: int, side: int, **attributes: Any) -> None:
        name = f"t{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        maps.append((name, channels, side))

    put("Conv", ["x", weigh(CHANNELS, 3)], CHANNELS, SIDE, pads=[1] * 4)
    for _ in range(draw(st.integers(1, 8))):
        name, channels, side = draw(st.sampled_from(maps))
        others = [one for one in maps if one[2] == side]
        kinds = ["Conv", "Depthwise", "Relu", "Sigmoid", "Add", "Concat"] + ["MaxPool"] * (side > SIDE // 4)
        kind = draw(st.sampled_from(kinds))
        if kind == "Conv":
            put("Conv", [name, weigh(CHANNELS, channels)], CHANNELS, side, pads=[1] * 4)
        elif kind == "Depthwise":
            put("Conv", [name, weigh(channels, channels, channels)], channels, side, pads=[1] * 4, group=channels)
        elif kind == "Add":
            same = [one for one in others if one[1] == channels]
            put("Add", [name, draw(st.sampled_from(same))[0]], channels, side)
        elif kind == "Concat":
            other = draw(st.sampled_from(others))
            put("Concat", [name, other[0]], channels + other[1], side, axis=1)
        elif kind == "MaxPool":
            put("MaxPool", [name], channels, side // 2, kernel_shape=[2, 2], strides=[2, 2])
        else:
            put(kind, [name], channels, side)
    ends = [maps[-1]]
    if draw(st.booleans()) and len(maps) > 2:
        ends.append(draw(st.sampled_from(maps[:-1])))
    outputs = [value(name, 1, channels, side, side) for name, channels, side in ends]
    graph = helper.make_graph(nodes, "drawn", [value("x", 1, 3, SIDE, SIDE)], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
