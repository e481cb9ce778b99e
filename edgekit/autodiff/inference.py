"""What an operator makes of its inputs: shapes and types, by onnx's own inference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.shape_inference
from numpy.typing import NDArray

from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.values import Dim, Shape, Value

IR_VERSION = 10
"""Version of the file format; onnxruntime 1.18 and later read it."""


def infer(
    op: str,
    inputs: Sequence[Value | None],
    attributes: Mapping[str, Any],
    count: int,
    constants: Mapping[str, NDArray[Any]],
    opset: int,
) -> list[tuple[Shape | None, np.dtype[Any]]]:
    """Shape (None: unknown) and type of each of a node's `count` outputs.

    Raises AutodiffError: no such operator, inputs that do not fit it, a type that cannot be known.
    """
    names = [v.name if v else "" for v in inputs]
    outputs = [f".out{index}" for index in range(count)]
    types, data = {}, {}
    for value in inputs:
        if value is None:
            continue
        element = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        types[value.name] = onnx.helper.make_tensor_type_proto(element, list(value.shape))
        array = constants.get(value.name)
        if array is not None and array.size <= 1024:
            data[value.name] = onnx.numpy_helper.from_array(array, value.name)
    try:
        made = onnx.helper.make_node(op, names, outputs, **attributes)
        schema = onnx.defs.get_schema(op, opset, "")
        found = onnx.shape_inference.infer_node_outputs(
            schema,
            made,
            types,
            data,
            opset_imports=[onnx.helper.make_opsetid("", opset)],
            ir_version=IR_VERSION,
        )
    except Exception as error:  # onnx's own exceptions share no base class but Exception
        line = str(error).strip().splitlines()[-1][:300] if str(error).strip() else type(error).__name__
        shapes = ", ".join(f"{v.name} {list(v.shape)}" for v in inputs if v)
        raise AutodiffError(f"operator {op} does not fit its inputs ({shapes}): {line}") from error
    result: list[tuple[Shape | None, np.dtype[Any]]] = []
    for output in outputs:
        tensor = found[output].tensor_type if output in found else None
        if tensor is None or not tensor.elem_type:
            raise AutodiffError(f"the type of what operator {op} makes of {', '.join(names)} cannot be known")
        shape = None
        if tensor.HasField("shape"):
            shape = tuple(read_dim(one) for one in tensor.shape.dim)
            if op == "Reshape" and inputs[0] is not None:
                shape = _named(shape, inputs[0].shape)
        result.append((shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))))
    return result


def _named(shape: Shape, source: Shape) -> Shape:
    """The shape after a Reshape, its one unknown size called as the one open size before where it must be the same."""
    opened = [size for size in source if not isinstance(size, int)]
    if shape.count(None) != 1 or len(opened) != 1:
        return shape
    before, after = (math.prod(size for size in one if isinstance(size, int)) for one in (source, shape))
    return tuple(opened[0] if size is None and before == after else size for size in shape)


def read_dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    """One size of a shape as the format writes it."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return dim.dim_param or None
