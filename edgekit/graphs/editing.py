"""Small steps on an ONNX graph that every change of one is made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import onnx
import onnx.helper

from edgekit.graphs.errors import NetworkError

THROUGH = frozenset(("Flatten", "Identity", "Dropout", "Squeeze", "Reshape"))
"""What moves values and changes none of them."""


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that may be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def makers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Name of a value -> the node that makes it."""
    return {name: node for node in graph.node for name in node.output}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Those that the node says, by name; what it leaves out has the operator's default."""
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def nested(graph: onnx.GraphProto) -> bool:
    """Whether a node has a graph inside (If, Loop), which may read any value of this one."""
    return any(one.HasField("g") or one.graphs for node in graph.node for one in node.attribute)


def called(node: onnx.NodeProto | None, value: str = "") -> str:
    """How an error names a node, or that there is none: its operator and its name, or else that of its `value`."""
    return "nothing" if node is None else f"{node.op_type} ({node.name or value or node.output[0]})"[:200]


def free_name(name: str, taken: Collection[str]) -> str:
    """`name`, with a number behind it if it is taken."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}.{number}"
    return found


def keep_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Leave these outputs in this order, and what they need. Raises NetworkError for one that is not there."""
    graph = model.graph
    made = {one.name: one for one in graph.output}
    for name in names:
        if name not in made:
            raise NetworkError(f'the model has no output "{name[:100]}"')
    kept = [made[name] for name in names]
    del graph.output[:]
    graph.output.extend(kept)
    drop_unused(model)


def drop_unused(model: onnx.ModelProto, ends: Iterable[str] | None = None) -> None:
    """Remove what the values `ends`, else the outputs, do not need: nodes, weights, and what is said about others."""
    graph = model.graph
    needed = {one.name for one in graph.output} if ends is None else set(ends)
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    nodes, weights = kept[::-1], [one for one in graph.initializer if one.name in needed]
    said = [one for one in graph.value_info if one.name in needed]
    inputs = [one for one in graph.input if one.name in needed]
    for field, values in (
        (graph.node, nodes),
        (graph.initializer, weights),
        (graph.value_info, said),
        (graph.input, inputs),
    ):
        del field[:]
        field.extend(values)


def read_from(tensor: onnx.TensorProto, file: str, offset: int, length: int) -> None:
    """Let a weight have its values in `file` beside the model, `length` bytes from the byte `offset` on."""
    for field in ("raw_data", "float_data", "external_data"):
        tensor.ClearField(field)
    tensor.data_location = tensor.EXTERNAL
    for key, value in (("location", file), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
