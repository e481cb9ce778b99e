"""Adds forward nodes to a graph: evaluates what is constant and follows shapes that are computed from shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.reference
from numpy.typing import NDArray

from edgekit.autodiff.builder import Dim, GraphBuilder, Value
from edgekit.autodiff.errors import AutodiffError

MAX_FOLDED = 1 << 22
"""Values of a tensor that is evaluated; larger ones are left to the runtime."""
_RANDOM = ("Random", "Bernoulli", "Multinomial")
_ELEMENTWISE = {"Add": int.__add__, "Sub": int.__sub__, "Mul": int.__mul__, "Div": int.__floordiv__}


class Folder:
    """Adds nodes of a forward model, in order, to `graph`."""

    def __init__(self, graph: GraphBuilder, fixed_batch: int | None) -> None:
        self.graph = graph
        self._fixed_batch = fixed_batch
        self._weights = set(graph.constants)
        self._sizes: dict[str, tuple[Dim, ...]] = {}  # integers that are computed from shapes, as far as known

    def add(
        self, op: str, inputs: Sequence[Value | None], attributes: Mapping[str, Any], names: Sequence[str]
    ) -> tuple[Value, ...]:
        """One node; returns its outputs, which may be constants or values that existed before."""
        attributes = dict(attributes)
        inputs = list(inputs)
        if op == "Constant":
            return (self._constant(attributes, names[0]),)
        if op == "CastLike" and inputs[0] is not None and inputs[1] is not None:
            op, attributes = "Cast", {"to": int(onnx.helper.np_dtype_to_tensor_dtype(inputs[1].dtype))}
            inputs = inputs[:1]
        if op == "Cast" and inputs[0] is not None:
            wanted = onnx.helper.tensor_dtype_to_np_dtype(int(attributes["to"]))
            if inputs[0].dtype == wanted:
                return (inputs[0],)
        known = self._follow(op, inputs, attributes)
        if known is not None and all(isinstance(one, int) for one in known):
            scalar = op in ("Gather", "Squeeze", "Size", *_ELEMENTWISE) and self._is_scalar(op, inputs)
            array = np.array(known[0] if scalar else known, np.int64)
            return (self.graph.constant(array, name=names[0]),)
        shape = self._settle(op, inputs)
        values = self._emit(op, inputs, attributes, names, shape)
        if known is not None:
            self._sizes[values[0].name] = known
        return values

    def _emit(
        self,
        op: str,
        inputs: list[Value | None],
        attributes: Mapping[str, Any],
        names: Sequence[str],
        shape: tuple[Dim, ...] | None,
    ) -> tuple[Value, ...]:
        before = len(self.graph.nodes)
        wishes = [name or None for name in names]
        values = self.graph.emit_many(op, inputs, attributes, count=len(names), shape=shape, names=wishes)
        if len(self.graph.nodes) == before or not self._foldable(op, inputs, values):
            return values
        arrays = _evaluate(op, inputs, attributes, len(names), self.graph)
        if arrays is None:
            return values
        self.graph.drop_last()
        return tuple(
            self.graph.constant(array, array.dtype, name=value.name)
            for array, value in zip(arrays, values, strict=True)
        )

    def _foldable(self, op: str, inputs: Sequence[Value | None], values: Sequence[Value]) -> bool:
        if op.startswith(_RANDOM) or op in ("DequantizeLinear", "QuantizeLinear"):
            return False
        for one in inputs:
            if one is None:
                continue
            if one.name not in self.graph.constants:
                return False
            if one.name in self._weights and one.dtype.kind == "f" and math.prod(one.sizes()) > 1:
                return False
        sizes = [size for value in values for size in value.shape]
        if not all(isinstance(size, int) for size in sizes):
            return False
        return sum(math.prod(value.sizes()) for value in values) <= MAX_FOLDED

    def _constant(self, attributes: Mapping[str, Any], name: str) -> Value:
        for key, given in attributes.items():
            if key == "value":
                array = onnx.numpy_helper.to_array(given)
            elif key in ("value_float", "value_floats"):
                array = np.array(given, np.float32)
            elif key in ("value_int", "value_ints"):
                array = np.array(given, np.int64)
            else:
                break
            return self.graph.constant(array, array.dtype, name=name)
        raise AutodiffError("a Constant of text or of sparse values cannot be trained with")

    # -------------------------------------------------------------- integers computed from shapes

    def _known(self, value: Value | None) -> tuple[Dim, ...] | None:
        array = self.graph.literal(value)
        if array is not None:
            return (
                tuple(int(one) for one in array.reshape(-1)) if array.dtype.kind == "i" and array.size <= 64 else None
            )
        return None if value is None else self._sizes.get(value.name)

    def _is_scalar(self, op: str, inputs: Sequence[Value | None]) -> bool:
        if op == "Gather":
            return inputs[1] is not None and inputs[1].rank == 0
        if op in _ELEMENTWISE:
            return all(one is not None and one.rank == 0 for one in inputs)
        return op in ("Squeeze", "Size")

    def _follow(self, op: str, inputs: Sequence[Value | None], attributes: Mapping[str, Any]) -> tuple[Dim, ...] | None:
        """What a node that computes with shapes gives, as far as known; None for any other node."""
        first = inputs[0] if inputs else None
        if first is None:
            return None
        if op == "Shape":
            return first.shape[attributes.get("start", 0) : attributes.get("end", None)]
        if op == "Size":
            return (math.prod(first.sizes()),) if all(isinstance(one, int) for one in first.shape) else (None,)
        if op == "Cast" and onnx.helper.tensor_dtype_to_np_dtype(int(attributes["to"])).kind != "i":
            return None  # sizes as real numbers, as attention divides by them, are values like any others
        known = [self._known(one) for one in inputs]
        if any(one is None for one in known) or first.dtype.kind != "i":
            return None
        parts = [one for one in known if one is not None]
        if op in ("Cast", "Unsqueeze", "Squeeze", "Identity", "Reshape"):
            return parts[0]
        if op == "Concat":
            return tuple(one for part in parts for one in part)
        if op == "Gather" and first.rank == 1:
            return tuple(
                parts[0][int(i)] for i in parts[1] if isinstance(i, int) and -len(parts[0]) <= i < len(parts[0])
            )
        if op == "Slice" and first.rank == 1:
            limits = [part[0] for part in (*parts[1:3], *parts[4:5])]
            start, end, step = (*limits, 1)[:3]
            if isinstance(start, int) and isinstance(end, int) and isinstance(step, int) and step:
                return parts[0][start:end:step]
            return None
        if (
            op in _ELEMENTWISE
            and len(parts) == 2
            and (len(parts[0]) == len(parts[1]) or 1 in (len(parts[0]), len(parts[1])))
        ):
            length = max(len(parts[0]), len(parts[1]))
            left, right = (part * length if len(part) == 1 else part for part in parts[:2])
            return tuple(_combined(op, one, other) for one, other in zip(left, right, strict=True))
        return None

    def _settle(self, op: str, inputs: list[Value | None]) -> tuple[Dim, ...] | None:
        """Make the computed shape of a Reshape constant where it can be; returns the output's shape if known better."""
        if op not in ("Reshape", "Expand", "ConstantOfShape") or not inputs or inputs[-1] is None:
            return None
        target = self._known(inputs[-1])
        if target is None:
            return None
        x = inputs[0]
        if op == "Reshape" and x is not None:
            wanted = self._reshaped(x, target)
            if wanted is not None:
                inputs[1] = self.graph.ints(*wanted)
            return None
        if op == "Expand" and x is not None:
            length = max(x.rank, len(target))
            left = (1,) * (length - x.rank) + x.shape
            right = (1,) * (length - len(target)) + target
            return tuple(other if one == 1 else one for one, other in zip(left, right, strict=True))
        return target

    def _reshaped(self, x: Value, target: tuple[Dim, ...]) -> list[int] | None:
        """The shape of a Reshape as constants, the open batch as -1 (or 0, which copies it)."""
        opened = [i for i, one in enumerate(target) if not isinstance(one, int)]
        if not opened and target and x.rank and not isinstance(x.shape[0], int) and target[0] == self._fixed_batch:
            # The exporter wrote the batch of its example into the shape.
            rest, others = target[1:], x.shape[1:]
            if all(isinstance(one, int) for one in others):
                free = -1 in rest
                if free or math.prod(int(one or 0) for one in rest) == math.prod(int(one or 0) for one in others):
                    opened = [0]
        if not opened:
            return None
        if len(opened) == 1 and all(one != -1 for i, one in enumerate(target) if i != opened[0]):
            return [-1 if i == opened[0] else int(one or 0) for i, one in enumerate(target)]
        if opened == [0] and x.rank and x.shape[0] == (target[0] if isinstance(target[0], str) else x.shape[0]):
            return [0, *(int(one or 0) for one in target[1:])]
        return None


def _combined(op: str, one: Dim, other: Dim) -> Dim:
    if isinstance(one, int) and isinstance(other, int):
        return None if op == "Div" and not other else _ELEMENTWISE[op](one, other)
    if op in ("Mul", "Div") and other == 1:
        return one
    if op == "Mul" and one == 1:
        return other
    return None


def _evaluate(
    op: str, inputs: Sequence[Value | None], attributes: Mapping[str, Any], count: int, graph: GraphBuilder
) -> list[NDArray[Any]] | None:
    """What the node makes of constants; None where onnx's evaluator cannot say."""
    feeds = {one.name: graph.constants[one.name] for one in inputs if one}
    names = [f".out{index}" for index in range(count)]
    node = onnx.helper.make_node(op, [one.name if one else "" for one in inputs], names, **attributes)
    infos = [
        onnx.helper.make_tensor_value_info(key, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape))
        for key, array in feeds.items()
    ]
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in names]
    opsets = [onnx.helper.make_opsetid("", graph.opset)]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "fold", infos, outputs), opset_imports=opsets)
    try:
        found = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # an operator that the evaluator lacks; the node then stays in the graph
        return None
    arrays = [np.asarray(one, order="C") for one in found]
    return arrays if all(array.dtype.kind in "fiub" for array in arrays) else None
