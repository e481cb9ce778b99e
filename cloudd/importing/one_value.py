"""A classifier of two labels that gives one value, the probability of the second, gives two logits instead.

Who trains for yes or no mostly ends with one value and a Sigmoid. With the logits -z/2 and z/2 the softmax over two is
the Sigmoid of z, so the answers stay. Where the last layer stands right before the Sigmoid it is written as a layer of
two rows, and devices can learn with the model as with any other classifier; else one small product is put behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
from numpy.typing import NDArray

from cloudd.importing.errors import ImportRefused
from edgekit.graphs.editing import free_name, makers, nested

Ending = Literal["", "softmax", "sigmoid", "value"]
"""What stood behind the logits of an output: nothing, or what was taken off; `value`: one logit became two."""
WHY_NOT = {
    "litert": "it gives one value for two labels, and only ONNX can be changed to give two; import it as ONNX, or end "
    "it with two values and a softmax",
    "onnxruntime": "it gives one value for two labels, and that comes from no Sigmoid; if it is the logit of the "
    "second label, say --output kind=logits, else end it with two values and a softmax",
}
"""Why one value stays one, by the runtime of the file."""
_HALVES = (-0.5, 0.5)
_THROUGH = frozenset(("Flatten", "Identity", "Reshape", "Squeeze"))
"""What moves values and changes none of them."""
_FEWEST = {**dict.fromkeys(_THROUGH, 1), "Sigmoid": 1, "Gemm": 2, "MatMul": 2, "Add": 2}
"""Inputs of an operator; a graph with fewer is damaged."""
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def split_value(model: onnx.ModelProto, source: Path, output: str, logit: bool) -> Ending:
    """Let an output of one value give two logits under its own name; "" where it is nothing of the kind.

    `logit`: the user says that the value is the logit of the second label; else only a Sigmoid can be told. `source` is
    the file that external data lies beside. Raises ImportRefused for a weight that cannot be read.
    """
    graph = model.graph
    info = next((one for one in graph.output if one.name == output), None)
    made_by = makers(graph)
    damaged = any(len(node.input) < _FEWEST.get(node.op_type, 0) for node in graph.node)
    if info is None or nested(graph) or damaged or _readers(graph, output) != 1:
        return ""
    value, gone = _moved(graph, made_by, output)
    ending: Ending = "value" if logit else ""
    if value in made_by and made_by[value].op_type == "Sigmoid":
        ending = "sigmoid"
        gone.append(made_by[value])
        value, more = _moved(graph, made_by, made_by[value].input[0])
        gone += more
    dims = info.type.tensor_type.shape.dim
    if not ending or value not in made_by or info.type.tensor_type.elem_type not in _FLOATS:
        return ""
    wide = _widened(graph, source, value, output)
    for node in gone:
        graph.node.remove(node)
    if not wide:
        _append(graph, info, value)
    batch = onnx.TensorShapeProto.Dimension()
    if dims:
        batch.CopyFrom(dims[0])
    del dims[:]
    dims.extend([batch, onnx.TensorShapeProto.Dimension(dim_value=2)])
    kept = [one for one in graph.value_info if one.name not in (value, output)]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return ending


def _moved(
    graph: onnx.GraphProto, made_by: Mapping[str, onnx.NodeProto], value: str
) -> tuple[str, list[onnx.NodeProto]]:
    """What `value` is before it was only moved, and the nodes that do that for nobody else."""
    gone = []
    while value in made_by and made_by[value].op_type in _THROUGH and _readers(graph, made_by[value].input[0]) == 1:
        gone.append(made_by[value])
        value = made_by[value].input[0]
    return value, gone


def _readers(graph: onnx.GraphProto, name: str) -> int:
    """How many nodes read a value; to be an output counts, too."""
    read = [one for node in graph.node for one in node.input] + [one.name for one in graph.output]
    return read.count(name)


def _widened(graph: onnx.GraphProto, source: Path, value: str, output: str) -> bool:
    """Write the layer that makes `value` with two rows, giving `output`; False where it is no such layer."""
    arrays = {one.name: one for one in graph.initializer}
    made_by = makers(graph)
    last = product = made_by[value]
    bias = last.input[2] if last.op_type == "Gemm" and len(last.input) > 2 else ""
    if last.op_type == "Add":
        bias = next((name for name in last.input if name in arrays), "")
        product = made_by.get(next((name for name in last.input if name != bias), ""), last)
        if not bias or _readers(graph, product.output[0]) != 1:
            return False
    kinds = ("MatMul",) if last.op_type == "Add" else ("Gemm", "MatMul")
    if product.op_type not in kinds or product.input[1] not in arrays or (bias and bias not in arrays):
        return False
    if _readers(graph, value) != 1:
        return False
    turned = product.op_type == "Gemm" and any(one.name == "transB" and one.i for one in product.attribute)
    axis = 0 if turned else 1
    weight = _array(arrays[product.input[1]], source)
    offset = _array(arrays[bias], source) if bias else None
    if weight.ndim != 2 or weight.shape[axis] != 1 or (offset is not None and offset.size != 1):
        return False
    taken = {*arrays, *made_by}
    both = np.concatenate([half * weight for half in _HALVES], axis=axis).astype(weight.dtype)
    product.input[1] = _constant(graph, f"{product.input[1]}.two", both, taken)
    if offset is not None:
        pair = np.array([half * offset.item() for half in _HALVES], offset.dtype)
        last.input[list(last.input).index(bias)] = _constant(graph, f"{bias}.two", pair, taken)
    last.output[0] = output
    read = {one for node in graph.node for one in node.input}
    kept = [one for one in graph.initializer if one.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return True


def _append(graph: onnx.GraphProto, info: onnx.ValueInfoProto, value: str) -> None:
    """Put a product behind the value, which gives `info`."""
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {one.name for one in graph.initializer}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    if value == info.name:
        maker = next(node for node in graph.node if value in node.output)
        value = _named(f"{info.name}.one", taken)
        maker.output[list(maker.output).index(info.name)] = value
    row = _named(f"{info.name}.row", taken)
    shape = _constant(graph, f"{info.name}.shape", np.array([-1, 1], np.int64), taken)
    halves = _constant(graph, f"{info.name}.halves", np.array([_HALVES], dtype), taken)
    graph.node.append(onnx.helper.make_node("Reshape", [value, shape], [row], name=row))
    graph.node.append(onnx.helper.make_node("MatMul", [row, halves], [info.name], name=f"{info.name}.logits"))


def _constant(graph: onnx.GraphProto, name: str, array: NDArray[Any], taken: set[str]) -> str:
    """A new weight; its name."""
    name = _named(name, taken)
    graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name


def _named(name: str, taken: set[str]) -> str:
    """`free_name`, which is taken from now on."""
    found = free_name(name, taken)
    taken.add(found)
    return found


def _array(tensor: onnx.TensorProto, source: Path) -> NDArray[Any]:
    try:
        return onnx.numpy_helper.to_array(tensor, str(source.parent))
    except Exception as error:  # wrong sizes, unknown types: numpy's, onnx's and protobuf's own
        raise ImportRefused(f"the weight {tensor.name[:100]} cannot be read: {str(error)[:200]}") from None
