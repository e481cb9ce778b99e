"""Reads a forward ONNX model into plain nodes: one opset, constants folded, every shape known but the batch.

Folding and shape inference are one walk over the nodes, because exporters compute shapes at run time (Shape, Gather,
Concat, Reshape) that are known once the sizes are. Weights keep their names: nothing is folded that reads a float
tensor of the file, so that what is trained can be written back to where it came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.inliner
import onnx.numpy_helper
import onnx.version_converter
from numpy.typing import NDArray

from edgekit.autodiff.builder import OPSET, Dim, GraphBuilder, Node, Value, read_dim
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.folding import Folder
from edgekit.runtimes import ModelError
from edgekit.runtimes.base import check_model_file
from edgekit.runtimes.onnx_reader import read_references

BATCH = "batch"
"""Name of the open axis."""
LATEST_OPSET = 22
"""Newest operator version whose rules were checked."""
MAX_FORWARD_NODES = 20_000
"""Nodes of a forward model; EfficientNet-B7 has some 1,600."""
MAX_BYTES = (2 << 30) - 1
"""Of all weights together."""


@dataclass(frozen=True)
class Forward:
    """A forward model, ready to be differentiated."""

    graph: GraphBuilder  # its nodes, its inputs and, as constants, its weights and folded values
    weights: Mapping[str, Value]  # the tensors of the file, by name
    outputs: Mapping[str, Value]

    @property
    def nodes(self) -> list[Node]:
        """All nodes in topological order."""
        return self.graph.nodes


def read_forward(model: onnx.ModelProto | Path, sizes: Mapping[str, Sequence[int]] | None = None) -> Forward:
    """Read a model from a file or from memory (which is not changed).

    sizes: for inputs whose height or width is open, the sizes of all axes after the batch.
    Raises AutodiffError: not an ONNX model, too large, external data outside its folder, control flow, operators of
    other domains, an open size, weights that are not float32.
    """
    proto = _load(model)
    _check(proto)
    proto = _modern(proto)
    graph = GraphBuilder(max(OPSET, _opset(proto)))
    weights = {}
    for tensor in proto.graph.initializer:
        array = _array(tensor)
        if array.dtype.kind == "f" and array.size > 1 and array.dtype != np.float32:
            raise AutodiffError(f"weight {tensor.name} is {array.dtype}; export the model in float32 to train it")
        weights[tensor.name] = graph.weight(tensor.name, array)
    fixed = _inputs(proto, graph, weights, sizes or {})
    env: dict[str, Value] = {**graph.inputs, **weights}
    folder = Folder(graph, fixed)
    for node in proto.graph.node:
        _replay(node, folder, env, weights)
    outputs = {}
    for info in proto.graph.output:
        if info.name not in env:
            raise AutodiffError(f"the model's output {info.name} is made by no node")
        outputs[info.name] = env[info.name]
    return Forward(graph, weights, outputs)


# ------------------------------------------------------------------ reading


def _load(model: onnx.ModelProto | Path) -> onnx.ModelProto:
    if not isinstance(model, Path):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    try:
        check_model_file(model)
        references = read_references(model)  # bounds nesting and fields before anything parses them
        for location in references.external:
            name = PurePosixPath(location)
            if len(name.parts) != 1 or name.parts[0] == ".." or "\\" in location:
                raise AutodiffError(f"the model wants to read data from outside its folder ({location[:200]!r})")
            check_model_file(model.parent / location)
        return onnx.load(model)
    except ModelError as error:
        raise AutodiffError(str(error)) from error
    except AutodiffError:
        raise
    except Exception as error:  # protobuf's own exceptions
        raise AutodiffError(f"{model.name} is not an ONNX model: {str(error)[:300]}") from error


def _opset(proto: onnx.ModelProto) -> int:
    return next((int(one.version) for one in proto.opset_import if one.domain in ("", "ai.onnx")), 0)


def _check(proto: onnx.ModelProto) -> None:
    if not 7 <= _opset(proto) <= LATEST_OPSET:
        raise AutodiffError(
            f"the model has version {_opset(proto)} of the standard operators; "
            f"versions 7 to {LATEST_OPSET} can be trained"
        )
    if len(proto.graph.node) > MAX_FORWARD_NODES:
        raise AutodiffError(f"the model has {len(proto.graph.node)} nodes; {MAX_FORWARD_NODES} are allowed")
    if proto.ByteSize() > MAX_BYTES:
        raise AutodiffError(f"the model has {proto.ByteSize()} bytes; {MAX_BYTES} are allowed")
    if proto.graph.sparse_initializer:
        raise AutodiffError("the model has sparse weights; export it with dense ones")


def _modern(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Functions written out, operators of opset 18 or later."""
    try:
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        if _opset(proto) < OPSET:
            proto = onnx.version_converter.convert_version(proto, OPSET)
    except Exception as error:  # the converter's own exceptions
        reason = str(error).strip()[:300]
        raise AutodiffError(
            f"the model cannot be brought to opset {OPSET} ({reason}); export it with opset {OPSET}"
        ) from error
    if len(proto.graph.node) > MAX_FORWARD_NODES:
        raise AutodiffError(f"the model has more than {MAX_FORWARD_NODES} nodes once its functions are written out")
    return proto


def _array(tensor: onnx.TensorProto) -> NDArray[Any]:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise AutodiffError(f"weight {tensor.name} lies in external data; give the path of the model instead")
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # wrong sizes, unknown types
        raise AutodiffError(f"weight {tensor.name} cannot be read: {str(error)[:200]}") from error
    if array.dtype.kind == "f" and array.size > 1 and not np.isfinite(array).all():
        raise AutodiffError(f"weight {tensor.name} has values that are not finite")
    return array


def _inputs(
    proto: onnx.ModelProto, graph: GraphBuilder, weights: Mapping[str, Value], sizes: Mapping[str, Sequence[int]]
) -> int | None:
    """Declare the inputs with an open batch. Returns the batch that the file states, if it states one."""
    fixed: int | None = None
    names = {info.name for info in proto.graph.input} - set(weights)
    unknown = sorted(set(sizes) - names)
    if unknown:
        raise AutodiffError(f"the model has no input {unknown[0]}; its inputs are {', '.join(sorted(names))}")
    for info in proto.graph.input:
        if info.name in weights:  # old exporters list the weights among the inputs
            continue
        tensor = info.type.tensor_type
        if not tensor.elem_type or not tensor.HasField("shape") or not tensor.shape.dim:
            raise AutodiffError(f"input {info.name} is no tensor with a batch axis of known rank")
        dims: list[Dim] = [read_dim(one) for one in tensor.shape.dim]
        if info.name in sizes:
            if len(sizes[info.name]) != len(dims) - 1:
                raise AutodiffError(f"input {info.name} has {len(dims) - 1} axes after the batch, not those given")
            dims[1:] = [int(one) for one in sizes[info.name]]
        if isinstance(dims[0], int):
            fixed = dims[0]
        open_axes = [i for i, size in enumerate(dims) if i and not (isinstance(size, int) and size > 0)]
        if open_axes:
            raise AutodiffError(
                f"input {info.name} has open sizes {dims}; only the batch may be open: "
                "give `sizes` or export with fixed ones"
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        graph.input(info.name, (BATCH, *dims[1:]), dtype)
    if not graph.inputs:
        raise AutodiffError("the model has no input")
    return fixed


# ------------------------------------------------------------------ nodes


def _replay(node: onnx.NodeProto, folder: Folder, env: dict[str, Value], weights: dict[str, Value]) -> None:
    where = f"node {node.name or node.output[0] if node.output else node.name} ({node.op_type})"
    if node.domain not in ("", "ai.onnx"):
        raise AutodiffError(
            f"{where} is of the domain {node.domain[:100]}; only standard ONNX operators can be trained"
        )
    attributes = {}
    for attribute in node.attribute:
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            raise AutodiffError(
                f"{where} holds a subgraph; control flow cannot be trained, export the model without it"
            )
        value = onnx.helper.get_attribute_value(attribute)
        attributes[attribute.name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    inputs: list[Value | None] = []
    for name in node.input:
        if name and name not in env:
            raise AutodiffError(f"{where} reads {name}, which no node before it makes")
        inputs.append(env[name] if name else None)
    while inputs and inputs[-1] is None:
        inputs.pop()
    op = node.op_type
    if op == "Identity" and inputs[0] is not None and node.input[0] in weights:
        # Exporters tie weights that are equal at the start by Identity; each is a weight of its own.
        own = folder.graph.weight(node.output[0], folder.graph.constants[inputs[0].name])
        env[node.output[0]] = weights[own.name] = own
        return
    if op in ("Identity", "Dropout") and inputs and inputs[0] is not None:
        env[node.output[0]] = inputs[0]
        return
    if op == "BatchNormalization":
        attributes.pop("training_mode", None)
        outputs = [node.output[0]]
        _untie(inputs, folder.graph, weights)
    else:
        outputs = list(node.output)
        while outputs and not outputs[-1]:
            outputs.pop()
    try:
        values = folder.add(op, inputs, attributes, outputs)
    except AutodiffError as error:
        raise AutodiffError(f"{where}: {error}") from error
    for name, value in zip(outputs, values, strict=True):
        if name:
            env[name] = value


def _untie(inputs: list[Value | None], graph: GraphBuilder, weights: dict[str, Value]) -> None:
    """Give a normalisation tensors of its own where the file keeps equal ones once for several normalisations."""
    used = {one.name for node in graph.nodes if node.op == "BatchNormalization" for one in node.inputs[1:] if one}
    for place, one in enumerate(inputs[1:], 1):
        if one is not None and one.name in used and one.name in weights:
            own = graph.weight(one.name, graph.constants[one.name])
            inputs[place] = weights[own.name] = own
        if one is not None:
            used.add(one.name)
