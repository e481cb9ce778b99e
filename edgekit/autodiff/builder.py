"""Writes ONNX graphs node by node: fresh names, constants of the right rank, inferred shapes, shared subexpressions.

Everything that adds nodes to a train step (gradient rules, losses, optimisers) goes through one GraphBuilder. Two rules
of onnxruntime's CPU kernels are built in. A scalar of rank 0 or 1 is broadcast over a tensor of rank 4 about 85 times
slower than one of shape [1, 1, 1, 1] (`research/edge-training.md`, pitfall 3), so `scalar` takes a rank. And an equal
node is never emitted twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
from numpy.typing import ArrayLike, NDArray

from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.inference import IR_VERSION, infer, read_dim
from edgekit.autodiff.values import Dim, Node, Shape, State, StateKind, Value

OPSET = 18
"""Version of the standard operators, unless the forward model has a later one."""
MAX_NODES = 200_000
"""Nodes of one train step; MobileNetV2 with every weight trained has some 3,000."""


class GraphBuilder:
    """A graph under construction. Nodes are kept in the order of emission, which is topological."""

    def __init__(self, opset: int = OPSET) -> None:
        self.opset = opset
        self.nodes: list[Node] = []
        self.inputs: dict[str, Value] = {}  # what is fed at each step
        self.outputs: dict[str, Value] = {}  # what is fetched, by the name under which it is
        self.states: dict[str, State] = {}  # by the name of the input
        self.constants: dict[str, NDArray[Any]] = {}
        self._taken: set[str] = set()
        self._reserved: set[str] = set()
        self._counts: dict[str, int] = {}
        self._constant_of: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._node_of: dict[Any, tuple[Value, ...]] = {}
        self._maker_of: dict[str, Node] = {}

    # ---------------------------------------------------------------- names and leaves

    def fresh(self, stem: str) -> str:
        """A name that nothing in the graph has: `stem` itself where it is free, else with a number."""
        name = stem
        while name in self._taken or name in self._reserved:
            self._counts[stem] = self._counts.get(stem, 0) + 1
            name = f"{stem}_{self._counts[stem]}"
        self._taken.add(name)
        return name

    def reserve(self, name: str) -> None:
        """Keep a name from `fresh` until an input, state, weight or output is called so."""
        self._reserved.add(name)

    def input(self, name: str, shape: Shape, dtype: Any = np.float32) -> Value:
        """A tensor that the caller feeds at each step. Asked again for the same name, the same tensor.

        Raises AutodiffError when the name is taken by something else or by an input of another type or rank.
        """
        known = self.inputs.get(name)
        if known is not None:
            if known.dtype != np.dtype(dtype) or known.rank != len(shape):
                raise AutodiffError(f"input {name} is asked for twice, with different types or ranks")
            return known
        value = self.inputs[name] = Value(self._claim(name), tuple(shape), np.dtype(dtype))
        return value

    def state(self, name: str, initial: NDArray[Any], kind: StateKind = "optimiser") -> Value:
        """A tensor kept from step to step, starting as `initial`; give its next value to `update`."""
        value = Value(self._claim(name), tuple(initial.shape), initial.dtype)
        self.states[name] = State(value, kind, initial)
        return value

    def update(self, name: str, value: Value) -> None:
        """Name the next value of a state. The step's output is called `NAME.new`."""
        state = self.states[name]
        if state.updated is not None:
            raise AutodiffError(f"state {name} is updated twice in one step")
        state.updated = value

    def in_place(self, name: str) -> bool:
        """Whether the next value of a state may be written over it: one node alone reads it, element by element, and
        the next value is made by that node or the one behind it.
        """
        state = self.states[name]
        readers = [node for node in self.nodes if any(one and one.name == state.value.name for one in node.inputs)]
        last = self.maker(state.updated) if state.updated is not None else None
        if len(readers) != 1 or last is None or readers[0].op not in ("Mul", "Add", "Gemm"):
            return False
        reader = readers[0]
        if reader.op == "Gemm" and reader.optional(2) != state.value:
            return False
        return reader is last or (last.op == "Add" and reader.outputs[0] in last.inputs)

    def output(self, name: str, value: Value) -> None:
        """Let the caller fetch `value` as `name`. Raises AutodiffError when an output has that name."""
        if name in self.outputs:
            raise AutodiffError(f"the step has two outputs called {name}; rename one")
        self.outputs[name] = value

    def constant(self, data: ArrayLike, dtype: Any = None, name: str | None = None) -> Value:
        """An array that is part of the graph; equal ones are kept once. Without `dtype`, floats become float32."""
        array = np.asarray(data, dtype)
        if dtype is None and array.dtype == np.float64:
            array = array.astype(np.float32)
        array = np.asarray(array, order="C")  # ascontiguousarray would make a vector of a scalar
        key = (array.dtype.str, array.shape, array.tobytes() if array.size <= 4096 else id(array).to_bytes(8, "little"))
        known = self._constant_of.get(key)
        if known is None:
            known = Value(self.fresh(name or "const"), tuple(array.shape), array.dtype)
            self.constants[known.name] = array
            self._constant_of[key] = known
        return known

    def scalar(self, number: float, rank: int = 0) -> Value:
        """A float32 of shape [1] * rank. Give it the rank of the tensor it meets; a lower one is very slow."""
        return self.constant(np.full([1] * rank, number, np.float32))

    def ints(self, *numbers: int) -> Value:
        """A vector of int64: axes, shapes, pads."""
        return self.constant(np.array(numbers, np.int64))

    def weight(self, name: str, data: NDArray[Any]) -> Value:
        """A named constant of its own, even where an equal one exists: a frozen weight of the model."""
        name = name if name not in self._taken else self.fresh(name)
        self._taken.add(name)
        value = Value(name, tuple(data.shape), data.dtype)
        self.constants[name] = data
        return value

    def literal(self, value: Value | None) -> NDArray[Any] | None:
        """The array behind a constant; None for what is computed, fed or absent."""
        return None if value is None else self.constants.get(value.name)

    # ---------------------------------------------------------------- nodes

    def emit(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        shape: Shape | None = None,
        name: str | None = None,
    ) -> Value:
        """Add a node of one output and return it; an equal node that exists already is returned instead.

        `inputs` has None for an optional input left out. The output's shape is inferred; `shape` overrides that, for
        operators whose shape depends on the batch. `name` is the wish for the output's name. Raises AutodiffError when
        the operator does not exist, the types do not fit or the rank cannot be known.
        """
        return self.emit_many(op, inputs, attributes, count=1, shape=shape, names=(name,))[0]

    def emit_many(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        count: int,
        shape: Shape | None = None,
        names: Sequence[str | None] = (),
    ) -> tuple[Value, ...]:
        """As `emit`, for a node of `count` outputs. `shape` is the first one's."""
        given = dict(attributes or {})
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        key = (op, tuple(v.name if v else "" for v in inputs), _frozen(given), count)
        known = self._node_of.get(key)
        if known is not None:
            return known
        if len(self.nodes) >= MAX_NODES:
            raise AutodiffError(f"the train step would have more than {MAX_NODES} nodes; train fewer layers")
        types = infer(op, inputs, given, count, self.constants, self.opset)
        wishes = [*names, *[None] * count][:count]
        outputs = []
        for index, (inferred, dtype) in enumerate(types):
            known_shape = shape if index == 0 and shape is not None else inferred
            if known_shape is None:
                raise AutodiffError(
                    f"the rank of what {op} makes of {', '.join(v.name for v in inputs if v)} cannot be known; "
                    "export the model with fixed sizes for all axes but the batch"
                )
            outputs.append(Value(self.fresh(wishes[index] or op.lower()), tuple(known_shape), dtype))
        node = Node(op, outputs[0].name, tuple(inputs), tuple(outputs), given)
        self.nodes.append(node)
        self._node_of[key] = node.outputs
        self._maker_of[node.name] = node
        return node.outputs

    def maker(self, value: Value) -> Node | None:
        """The node whose first output a value is, None for what is fed, a state or a constant."""
        return self._maker_of.get(value.name)

    def drop_last(self) -> None:
        """Take back the node that was emitted last, whose outputs nothing may have used yet."""
        node = self.nodes.pop()
        self._node_of.popitem()  # dicts keep the order of insertion
        self._maker_of.popitem()
        self._taken.difference_update(one.name for one in node.outputs)

    # ---------------------------------------------------------------- arithmetic that rules share

    def add(self, left: Value, right: Value) -> Value:
        """left + right with broadcasting."""
        return self.emit("Add", [left, right])

    def sub(self, left: Value, right: Value) -> Value:
        """left - right with broadcasting."""
        return self.emit("Sub", [left, right])

    def mul(self, left: Value, right: Value) -> Value:
        """left * right with broadcasting."""
        return self.emit("Mul", [left, right])

    def div(self, left: Value, right: Value) -> Value:
        """left / right with broadcasting."""
        return self.emit("Div", [left, right])

    def scaled(self, value: Value, factor: float) -> Value:
        """value * factor; `value` itself for 1."""
        return value if factor == 1.0 else self.mul(value, self.scalar(factor, value.rank))

    def total(self, values: Sequence[Value]) -> Value:
        """The sum of tensors of one shape."""
        result = values[0]
        for value in values[1:]:
            result = self.add(result, value)
        return result

    def reduce_sum(self, value: Value, axes: Sequence[int], keepdims: bool = False) -> Value:
        """Sum over `axes`."""
        return self.emit("ReduceSum", [value, self.ints(*axes)], {"keepdims": int(keepdims)})

    def reduce_mean(self, value: Value, axes: Sequence[int], keepdims: bool = False) -> Value:
        """Mean over `axes`."""
        return self.emit("ReduceMean", [value, self.ints(*axes)], {"keepdims": int(keepdims)})

    def reshape(self, value: Value, sizes: Sequence[int], shape: Shape | None = None) -> Value:
        """The same values with other axes; -1 is worked out and 0 copies a size, as in ONNX."""
        return self.emit("Reshape", [value, self.ints(*sizes)], shape=shape)

    def reshape_like(self, value: Value, like: Value) -> Value:
        """`value` with the axes of `like`, whose batch may be open."""
        if value.shape == like.shape and None not in like.shape:
            return value
        if sum(not isinstance(size, int) for size in like.shape) <= 1:
            sizes = [size if isinstance(size, int) else -1 for size in like.shape]
            return self.emit("Reshape", [value, self.ints(*sizes)], shape=like.shape)
        return self.emit("Reshape", [value, self.emit("Shape", [like])], shape=like.shape)

    def transpose(self, value: Value, permutation: Sequence[int]) -> Value:
        """`value` with its axes in another order; `value` itself for the same order."""
        if list(permutation) == list(range(value.rank)):
            return value
        return self.emit("Transpose", [value], {"perm": list(permutation)})

    def column(self, vector: Value, rank: int) -> Value:
        """A vector [C] of channels as [C, 1, ...] that broadcasts over a tensor [N, C, ...] of `rank` axes."""
        return self.reshape(vector, [vector.size(0), *[1] * (rank - 2)])

    def ranked(self, scalar: Value, rank: int) -> Value:
        """A computed or fed scalar of rank 0 as [1] * rank; see `scalar` for why."""
        return scalar if scalar.rank == rank else self.reshape(scalar, [1] * rank)

    def batch_size(self, value: Value) -> Value:
        """The size of axis 0 as a float32 scalar of rank 0."""
        size = value.shape[0]
        if isinstance(size, int):
            return self.scalar(size)
        first = self.emit("Gather", [self.emit("Shape", [value]), self.constant(np.array(0, np.int64))])
        return self.emit("Cast", [first], {"to": onnx.TensorProto.FLOAT})

    def unbroadcast(self, gradient: Value, like: Value) -> Value:
        """Sum a gradient over the axes along which `like` was repeated, down to the shape of `like`."""
        if gradient.shape == like.shape:
            return gradient
        lead = gradient.rank - like.rank
        axes = list(range(lead))
        axes += [lead + i for i, size in enumerate(like.shape) if size == 1 and gradient.shape[lead + i] != 1]
        if axes:
            gradient = self.reduce_sum(gradient, axes, keepdims=True)
        if lead:
            gradient = self.emit("Squeeze", [gradient, self.ints(*range(lead))])
        return Value(gradient.name, like.shape, gradient.dtype)

    # ---------------------------------------------------------------- the finished graph

    def build(self, name: str, producer: str = "edgekit") -> onnx.ModelProto:
        """The graph as a model. Its inputs are those fed and the states; its outputs those named and `NAME.new` of
        every state that is updated.

        Nodes and constants that no output needs are left out.
        """
        fetched = dict(self.outputs)
        for key, state in self.states.items():
            if state.updated is not None:
                fetched[f"{key}.new"] = state.updated
        leaves = {**self.inputs, **{key: state.value for key, state in self.states.items()}}
        needed = {value.name for value in fetched.values()}
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if any(one.name in needed for one in node.outputs):
                kept.append(node)
                needed.update(one.name for one in node.inputs if one)
        kept.reverse()
        made = {one.name for node in kept for one in node.outputs}
        rename: dict[str, str] = {}  # a computed tensor takes the name under which it is fetched first
        copies = []
        for key, value in fetched.items():
            if value.name in made and value.name not in rename and (key == value.name or key not in self._taken):
                rename[value.name] = key
            else:
                copies.append((value, key))
        protos = [_proto(node, needed, rename) for node in kept]
        for value, key in copies:
            source = rename.get(value.name, value.name)
            protos.append(onnx.helper.make_node("Identity", [source], [key], name=f"fetch.{key}"))
        outputs = [_info(Value(key, value.shape, value.dtype)) for key, value in fetched.items()]
        graph = onnx.helper.make_graph(
            protos,
            name,
            [_info(value) for value in leaves.values() if value.name in needed or value.name in self.inputs],
            outputs,
            [onnx.numpy_helper.from_array(array, key) for key, array in self.constants.items() if key in needed],
        )
        opsets = [onnx.helper.make_opsetid("", self.opset)]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name=producer)

    def _claim(self, name: str) -> str:
        if name in self._taken:
            raise AutodiffError(f"the name {name} is taken by another tensor of the graph")
        self._taken.add(name)
        return name


def _proto(node: Node, needed: set[str], rename: Mapping[str, str]) -> onnx.NodeProto:
    inputs = [rename.get(one.name, one.name) if one else "" for one in node.inputs]
    whole = node.op == "Split"  # onnxruntime crashes where one of its outputs has no name
    outputs = [
        rename.get(one.name, one.name) if whole or i == 0 or one.name in needed else ""
        for i, one in enumerate(node.outputs)
    ]
    return onnx.helper.make_node(node.op, inputs, outputs, name=node.name, **node.attributes)


def _info(value: Value) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(
        value.name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), list(value.shape)
    )


def _frozen(attributes: Mapping[str, Any]) -> tuple[Any, ...]:
    def parts() -> Iterator[Any]:
        for key, value in sorted(attributes.items()):
            if isinstance(value, list | tuple):
                yield key, tuple(value)
            elif isinstance(value, onnx.TensorProto):
                yield key, value.SerializeToString()
            else:
                yield key, value

    return tuple(parts())


__all__ = ["OPSET", "Dim", "GraphBuilder", "Node", "Shape", "State", "StateKind", "Value", "read_dim"]
