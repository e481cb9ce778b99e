"""What losses share: finding the model's output, and sums of a whole tensor that broadcast cheaply."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from edgekit.autodiff.builder import GraphBuilder, Value
from edgekit.autodiff.errors import AutodiffError


def find_output(outputs: Mapping[str, Value], name: str, loss: str, rank: int | None = None) -> tuple[str, Value]:
    """The output called `name`, or the only one for "". Raises AutodiffError that says which there are."""
    have = ", ".join(f"{key} {list(value.shape)}" for key, value in outputs.items()) or "none"
    if not name:
        if len(outputs) != 1:
            raise AutodiffError(f"{loss} must be told which of the model's outputs it judges; these are {have}")
        name = next(iter(outputs))
    value = outputs.get(name)
    if value is None:
        raise AutodiffError(f'{loss}: the model has no output "{name}"; it has {have}')
    if value.dtype != np.float32 or (rank is not None and value.rank != rank):
        wanted = "any number of" if rank is None else str(rank)
        raise AutodiffError(
            f'{loss} wants float32 with {wanted} axes; the output "{name}" is {value.dtype} {list(value.shape)}'
        )
    return name, value


def total(builder: GraphBuilder, value: Value) -> Value:
    """The sum of all values, of rank 0."""
    return builder.emit("ReduceSum", [value], {"keepdims": 0})


def one_over(builder: GraphBuilder, scalar: Value) -> Value:
    """1 / scalar, of rank 0."""
    return builder.emit("Reciprocal", [scalar])


def one_over_size(builder: GraphBuilder, value: Value) -> Value:
    """1 / the number of values in a tensor whose batch is open, of rank 0."""
    count = builder.emit("Cast", [builder.emit("Size", [value])], {"to": onnx.TensorProto.FLOAT})
    return one_over(builder, count)


def times(builder: GraphBuilder, value: Value, scalar: Value) -> Value:
    """value * scalar, the scalar of rank 0 brought to the tensor's rank, since onnxruntime is slow otherwise."""
    return builder.mul(value, builder.ranked(scalar, value.rank))


def as_float(builder: GraphBuilder, value: Value) -> Value:
    """Truth values as 0 and 1."""
    return builder.emit("Cast", [value], {"to": onnx.TensorProto.FLOAT})


def less(builder: GraphBuilder, left: Value, right: Value) -> Value:
    """1 where left < right, else 0."""
    return as_float(builder, builder.emit("Less", [left, right]))
