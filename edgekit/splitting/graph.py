"""An ONNX graph as splitting sees it: nodes in topological order, what is constant, shapes for one fixed input.

The `onnx` package is imported when a graph is read; only cloudd's installation has it.
"""

from __future__ import annotations

import heapq
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekit.runtimes import ModelError, open_session
from edgekit.runtimes.base import check_model_file
from edgekit.runtimes.onnx_reader import read_references
from edgekit.splitting.features import DTYPES

if TYPE_CHECKING:
    import onnx

MAX_NODES = 100_000
"""Nodes of one graph; the largest public vision models have some 10,000."""
MAX_PROTOBUF = (2 << 30) - 1
"""Bytes of one protobuf message. Larger models keep their weights in files beside it."""
_SHAPE_BYTES = 64 << 10  # of a weight that may be the shape of something

# Their answers differ from run to run, so no two copies of them agree.
_RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout")
)
# Operators that multiply a tensor with kernels: the input that holds the kernels, of shape [out, in / groups, ...].
_CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "DeformConv": 1, "QLinearConv": 3, "ConvTranspose": 1}
_PRODUCTS = frozenset(("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm"))


class CutTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of fixed shape and plain type."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # numpy's name

    @property
    def values(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Node:
    """One node that takes part in the work; constant and unused ones are left out."""

    position: int  # in the file
    inputs: tuple[str, ...]  # also what its subgraphs take from outside; constants too
    outputs: tuple[str, ...]
    macs: int  # multiply-accumulates of a convolution or matrix product, 0 for every other operator
    values: int  # that it writes
    opaque: bool  # holds a subgraph or calls a function of the model, so nothing is known about what it does


@dataclass
class Graph:
    """A model with its input fixed to one shape."""

    model: onnx.ModelProto
    folder: Path  # where the model lies, for weights kept in other files
    inputs: list[str]  # without the weights that old exporters list among them
    outputs: list[str]
    weights: set[str]  # what the file gives a value for
    order: list[int] = field(default_factory=list)  # positions of all nodes in the file, topologically ordered
    producers: dict[str, int] = field(default_factory=dict)  # tensor -> position of the node that writes it
    nodes: list[Node] = field(default_factory=list)  # those that matter for a cut, in topological order
    constants: set[str] = field(default_factory=set)  # tensors that do not depend on the input
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # constants that are the shape of a tensor
    tensors: dict[str, CutTensor] = field(default_factory=dict)  # those whose shape and type are known


def read_graph(path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> Graph:
    """Read the ONNX file at `path` and fix its inputs.

    `shapes` names inputs and gives their shape; without it an open first dimension becomes 1 and every other one must
    be fixed in the file. Weights in other files are not read. Raises ModelError: not a regular file or not an ONNX
    model, an input with an open size, a graph with a cycle or with more than MAX_NODES nodes, `onnx` not installed.
    """
    check_model_file(path)
    read_references(path)  # bounds nesting and fields before anything parses them
    if path.stat().st_size > MAX_PROTOBUF:
        raise ModelError(f"{path.name} has more than {MAX_PROTOBUF} bytes, which is more than one ONNX file can have")
    try:
        import onnx
    except ImportError:
        raise ModelError("splitting a model needs the onnx package; install it with: pip install onnx") from None
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own exceptions
        raise ModelError(f"{path.name} is not an ONNX model: {_line(error)}") from error
    if len(model.graph.node) > MAX_NODES:
        raise ModelError(f"{path.name} has {len(model.graph.node)} nodes; {MAX_NODES} are allowed")
    if not all(isinstance(name, str) for name in _names(model.graph)):  # protobuf gives bytes where it is not UTF-8
        raise ModelError(f"{path.name} has names that are not UTF-8 text")
    weights = _weights(model.graph)
    inputs = [one.name for one in model.graph.input if one.name not in weights]
    graph = Graph(model, path.parent, inputs, [one.name for one in model.graph.output], weights)
    if not graph.inputs or not graph.outputs:
        raise ModelError(f"{path.name} has no input or no output")
    _fix_inputs(graph, shapes or {})
    _sort(graph)
    _infer(graph)
    _constants(graph)
    _ask_runtime(graph)
    _nodes(graph)
    return graph


def uses(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node reads, those that its subgraphs take from outside included; each once."""
    return [name for name in dict.fromkeys((*node.input, *sorted(_captured(node)))) if name]


def _captured(node: onnx.NodeProto) -> set[str]:
    """Tensors that the subgraphs of a node (If, Loop, Scan) take from the graphs around them."""
    found: set[str] = set()
    for body in _bodies(node):
        own = _weights(body) | {one.name for one in body.input}
        own |= {name for inner in body.node for name in inner.output}
        found |= {name for inner in body.node for name in uses(inner)} - own
        found |= {one.name for one in body.output} - own
    return found


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name that nodes, tensors and open dimensions have, also in subgraphs."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield from (value.name, *(dim.dim_param for dim in value.type.tensor_type.shape.dim))
    yield from (one.name for one in graph.initializer)
    yield from (one.values.name for one in graph.sparse_initializer)
    for node in graph.node:
        yield from (*node.input, *node.output, node.op_type, node.domain)
        for body in _bodies(node):
            yield from _names(body)


def _weights(graph: onnx.GraphProto) -> set[str]:
    return {one.name for one in graph.initializer} | {one.values.name for one in graph.sparse_initializer}


def _fix_inputs(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> None:
    for name in shapes:
        if name not in graph.inputs:
            raise ModelError(f'the model has no input "{name[:60]}"; its inputs are {", ".join(graph.inputs)[:300]}')
    for value in graph.model.graph.input:
        if value.name not in graph.inputs:
            continue
        kind = value.type.tensor_type
        dims = kind.shape.dim
        if not kind.HasField("shape") or _dtype(kind.elem_type) not in DTYPES:
            raise ModelError(f'the input "{value.name[:60]}" is no tensor of plain type with a declared shape')
        wanted = shapes.get(value.name, [1, *(0 for _ in dims[1:])] if dims else [])
        if len(wanted) != len(dims):
            raise ModelError(f'the input "{value.name[:60]}" has {len(dims)} dimensions, not {len(wanted)}')
        for axis, (dim, size) in enumerate(zip(dims, wanted, strict=True)):
            if dim.dim_value > 0 and value.name in shapes and dim.dim_value != size:
                raise ModelError(
                    f'dimension {axis} of the input "{value.name[:60]}" is {dim.dim_value} in the model, not {size}'
                )
            fixed = dim.dim_value or size
            if fixed <= 0:
                raise ModelError(
                    f'dimension {axis} of the input "{value.name[:60]}" is open; a cut needs one fixed shape'
                )
            dim.dim_value = fixed  # also drops the name that an open dimension has


def _sort(graph: Graph) -> None:
    """Fill `producers` and `order`; of several nodes that could come next, the first of the file does."""
    nodes = graph.model.graph.node
    producer = graph.producers
    for position, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in producer:
                raise ModelError(f'two nodes of the model write the tensor "{name[:100]}"')
            producer[name] = position
    users: list[list[int]] = [[] for _ in nodes]
    waits = [0] * len(nodes)
    for position, node in enumerate(nodes):
        before = {producer[name] for name in uses(node) if name in producer}
        waits[position] = len(before)
        for one in before:
            users[one].append(position)
    ready = [position for position, count in enumerate(waits) if not count]
    while ready:
        position = heapq.heappop(ready)
        graph.order.append(position)
        for user in users[position]:
            waits[user] -= 1
            if not waits[user]:
                heapq.heappush(ready, user)
    if len(graph.order) < len(nodes):
        raise ModelError("the nodes of the model form a circle")


def _infer(graph: Graph) -> None:
    """Fill `tensors` by ONNX's shape inference, which follows shapes that the graph itself computes."""
    import onnx

    source = graph.model
    bare = onnx.ModelProto(ir_version=source.ir_version, opset_import=source.opset_import, functions=source.functions)
    bare.graph.node.extend(source.graph.node)
    bare.graph.input.extend(source.graph.input)
    # Without what the file says of shapes: an open batch there would win over the fixed input.
    bare.graph.output.extend(onnx.ValueInfoProto(name=name) for name in graph.outputs)
    for weight in source.graph.initializer:
        if weight.ByteSize() <= _SHAPE_BYTES:
            bare.graph.initializer.append(weight)
        else:  # no shape follows from the values of a kernel, and they would be copied four times
            bare.graph.initializer.add(name=weight.name, dims=weight.dims, data_type=weight.data_type)
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except Exception as error:
        raise ModelError(f"the shapes of the model cannot be followed: {_line(error)}") from error
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        _note(graph, value.name, value.type.tensor_type)
    for weight in source.graph.initializer:
        graph.tensors[weight.name] = CutTensor(
            name=weight.name, shape=tuple(weight.dims), dtype=_dtype(weight.data_type)
        )


def _dtype(number: int) -> str:
    """numpy's name of an ONNX element type; "" for one that ONNX does not know."""
    from onnx.helper import tensor_dtype_to_np_dtype

    try:
        return tensor_dtype_to_np_dtype(number).name
    except KeyError:
        return ""


def _note(graph: Graph, name: str, kind: onnx.TypeProto.Tensor) -> None:
    if not kind.elem_type or not kind.HasField("shape"):
        return
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
    if all(size >= 0 for size in shape):
        graph.tensors[name] = CutTensor(name=name, shape=shape, dtype=_dtype(kind.elem_type))


def _constants(graph: Graph) -> None:
    """Add to `constants` all that does not depend on the input, the shapes of tensors of known shape included."""
    functions = {(one.domain, one.name) for one in graph.model.functions}
    graph.constants |= graph.weights
    for position in graph.order:
        node = graph.model.graph.node[position]
        inputs = uses(node)
        if node.op_type == "Shape" and node.domain in ("", "ai.onnx") and inputs and inputs[0] in graph.tensors:
            shape = graph.tensors[inputs[0]].shape
            start, end = (_integer(node, name) for name in ("start", "end"))
            graph.shapes[node.output[0]] = shape[slice(start or 0, end)]
            graph.constants.add(node.output[0])
        elif (node.domain, node.op_type) in functions or any(_bodies(node)) or node.op_type in _RANDOM:
            continue
        elif node.op_type == "Constant" or (inputs and graph.constants.issuperset(inputs)):
            graph.constants.update(name for name in node.output if name)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _integer(node: onnx.NodeProto, name: str) -> int | None:
    return next((one.i for one in node.attribute if one.name == name), None)


def _ask_runtime(graph: Graph) -> None:
    """Shapes that ONNX's inference does not know, because an operator is onnxruntime's own, from onnxruntime."""
    import onnx

    missing = [
        name
        for node in graph.model.graph.node
        for name in node.output
        if name and name not in graph.tensors and name not in graph.constants
    ]
    if not missing or any(one.data_location for one in graph.model.graph.initializer):
        return
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing)
    with tempfile.TemporaryDirectory(prefix="split-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            session = open_session(path, "onnxruntime")
        except ModelError:
            return  # a sequence among them, or no runtime: their cuts are refused for the unknown shape
        for tensor in session.outputs:
            shape = tuple(size for size in tensor.shape if size is not None)
            if len(shape) == len(tensor.shape):
                graph.tensors[tensor.name] = CutTensor(name=tensor.name, shape=shape, dtype=tensor.dtype)


def _nodes(graph: Graph) -> None:
    """Fill `nodes` with those that depend on the input and that an output depends on."""
    functions = {(one.domain, one.name) for one in graph.model.functions}
    wanted = set(graph.outputs)
    for position in reversed(graph.order):
        node = graph.model.graph.node[position]
        outputs = tuple(name for name in node.output if name)
        if wanted.isdisjoint(outputs) or graph.constants.issuperset(outputs):
            continue
        inputs = uses(node)
        wanted.update(inputs)
        known = [graph.tensors[name].values for name in outputs if name in graph.tensors]
        opaque = (node.domain, node.op_type) in functions or any(_bodies(node))
        graph.nodes.append(Node(position, tuple(inputs), outputs, _macs(graph, node), sum(known), opaque))
    graph.nodes.reverse()


def _macs(graph: Graph, node: onnx.NodeProto) -> int:
    """Multiply-accumulates of one convolution or matrix product; 0 for the rest and where a shape is not known."""
    shapes = [graph.tensors[name].shape if name in graph.tensors else None for name in (*node.input, *node.output[:1])]
    kernels = _CONVOLUTIONS.get(node.op_type)
    if kernels is not None and kernels < len(node.input):
        moved, weights = shapes[0 if node.op_type == "ConvTranspose" else -1], shapes[kernels]
        return math.prod(moved) * math.prod(weights[1:]) if moved and weights else 0
    left, out = shapes[0] if shapes else None, shapes[-1]
    if node.op_type in _PRODUCTS and left and out:
        return math.prod(out) * left[0 if node.op_type == "Gemm" and _integer(node, "transA") else -1]
    return 0


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
