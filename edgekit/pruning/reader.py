"""Follows channels through the operators of a convolutional network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.shape_inference
from numpy.typing import NDArray

from edgekit.pruning.channels import Atoms, Channels, Joined, Layer, Slot
from edgekit.pruning.errors import PruningError

_EACH = frozenset(
    ("Relu", "LeakyRelu", "Clip", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Mish", "Gelu", "Tanh",
     "Softplus", "Softsign", "ThresholdedRelu", "Abs", "Neg", "Exp", "Sqrt", "Reciprocal", "Erf", "Identity", "Dropout",
     "Cast", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization")
)  # fmt: skip
"""Operators that make channel i of channel i alone."""
_PAIRS = frozenset(("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sum", "Mean", "PRelu"))
_REDUCTIONS = frozenset(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"))
_MIXED = frozenset(("Softmax", "LogSoftmax", "LRN"))
_KNOWN = (
    "convolutions, normalisation by batch, activations, pooling, sums and products of channels, concatenation, "
    "flattening and dense layers"
)


def read_channels(model: onnx.ModelProto) -> Channels:
    """Read the channels of a model that `surgery.tidied` made ready.

    Raises PruningError, which names the node, for an operator that carries channels in a way that is not known here.
    """
    return _Reader(model).run()


class _Reader:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._constants = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
        self._shapes = _shapes(model)
        self._joined = Joined()
        self._tensors: dict[str, Atoms] = {}
        self._slots: dict[Slot, Atoms] = {}
        self._layers: list[Layer] = []
        self._depthwise: list[str] = []
        self._flattened: dict[str, str] = {}
        self._rules: dict[str, Callable[[onnx.NodeProto], Atoms]] = {
            "Conv": self._convolution,
            "ConvTranspose": self._transposed,
            "Gemm": self._dense,
            "MatMul": self._product,
            "BatchNormalization": self._normalisation,
            "Concat": self._concatenation,
            "Flatten": self._flatten,
            "Reshape": self._reshape,
            "Squeeze": self._squeeze,
            "Pad": self._pad,
            "Resize": self._resize,
            **dict.fromkeys(_EACH, self._each),
            **dict.fromkeys(_PAIRS, self._pair),
            **dict.fromkeys(_REDUCTIONS, self._reduction),
            **dict.fromkeys(_MIXED, self._mixed),
        }

    def run(self) -> Channels:
        for info in self._graph.input:
            if info.name not in self._constants:
                self._tensors[info.name] = self._fixed(info.name, "")
        for node in self._graph.node:
            rule = self._rules.get(node.op_type)
            if rule is None or node.domain not in ("", "ai.onnx"):
                rule = self._unknown
            made = rule(node)
            for name in node.output:
                if name:
                    self._tensors[name] = made
        for info in self._graph.output:
            if info.name not in self._tensors:
                raise PruningError(f'the output "{info.name}" is made by no node')
            self._joined.keep(self._tensors[info.name])
        units = self._joined.units
        return Channels(
            slots={slot: units(atoms) for slot, atoms in self._slots.items()},
            tensors={name: units(atoms) for name, atoms in self._tensors.items()},
            groups=self._joined.groups(),
            layers=tuple(self._layers),
            depthwise=tuple(self._depthwise),
            flattened=self._flattened,
        )

    # ------------------------------------------------------------ what rules share

    def _shape(self, name: str) -> list[int | None]:
        if name in self._constants:
            return list(self._constants[name].shape)
        return self._shapes.get(name, [])

    def _fixed(self, name: str, layer: str) -> Atoms:
        """Atoms that stay, for a tensor that nothing takes channels out of."""
        shape = self._shape(name)
        size = shape[1] if len(shape) > 1 else 1
        return self._joined.make(size or 1, layer, stays=True)

    def _input(self, node: onnx.NodeProto, place: int = 0) -> Atoms:
        name = node.input[place]
        known = self._tensors.get(name)
        if known is None:
            if name not in self._constants:
                raise refused(node, f'it reads "{name}", which no node before it makes')
            known = self._fixed(name, node.name)
        return known

    def _weight(self, node: onnx.NodeProto, place: int) -> NDArray[Any]:
        name = node.input[place]
        if name not in self._constants:
            raise refused(node, f'its weight "{name}" is computed while the model runs')
        return self._constants[name]

    def _slot(self, node: onnx.NodeProto, name: str, axis: int, atoms: Atoms) -> None:
        """These places of a weight belong to these atoms."""
        if self._constants[name].shape[axis] != len(atoms):
            size = self._constants[name].shape[axis]
            raise refused(node, f'axis {axis} of its weight "{name}" has {size} places for {len(atoms)} channels')
        known = self._slots.setdefault((name, axis), atoms)
        self._joined.join(known, atoms)

    def _vector(self, node: onnx.NodeProto, place: int, atoms: Atoms) -> None:
        """An optional weight with one value a channel."""
        if place < len(node.input) and node.input[place]:
            self._weight(node, place)
            self._slot(node, node.input[place], 0, atoms)

    # ------------------------------------------------------------ layers

    def _convolution(self, node: onnx.NodeProto) -> Atoms:
        weight, atoms, groups = self._weight(node, 1), self._input(node), attribute(node, "group", 1)
        if groups == 1:
            made = self._joined.make(weight.shape[0], node.name)
            self._slot(node, node.input[1], 1, atoms)
            self._layers.append(Layer(node.name, node.input[0], node.input[1], 1))
        elif groups == len(atoms):
            made = self._joined.make(weight.shape[0], node.name)
            self._joined.join(made, np.repeat(atoms, weight.shape[0] // groups))
            self._depthwise.append(node.name)
        else:  # groups of several channels would have to keep equal widths
            self._joined.keep(atoms)
            made = self._joined.make(weight.shape[0], node.name, stays=True)
        self._slot(node, node.input[1], 0, made)
        self._vector(node, 2, made)
        return made

    def _transposed(self, node: onnx.NodeProto) -> Atoms:
        weight, atoms, groups = self._weight(node, 1), self._input(node), attribute(node, "group", 1)
        if groups != 1:
            self._joined.keep(atoms)
        made = self._joined.make(weight.shape[1] * groups, node.name, stays=groups != 1)
        self._slot(node, node.input[1], 0, atoms)
        if groups == 1:
            self._slot(node, node.input[1], 1, made)
            self._layers.append(Layer(node.name, node.input[0], node.input[1], 0))
        self._vector(node, 2, made)
        return made

    def _dense(self, node: onnx.NodeProto) -> Atoms:
        if attribute(node, "transA", 0):
            raise refused(node, "it turns its input over")
        made = self._matrix(node, 1 if attribute(node, "transB", 0) else 0)
        if len(node.input) > 2 and node.input[2]:
            bias = self._weight(node, 2)
            if bias.ndim and bias.shape[-1] == len(made):
                self._slot(node, node.input[2], bias.ndim - 1, made)
            elif bias.size != 1:
                raise refused(node, f"its bias has the shape {list(bias.shape)}")
        return made

    def _product(self, node: onnx.NodeProto) -> Atoms:
        if len(self._shape(node.input[0])) != 2 or self._weight(node, 1).ndim != 2:
            return self._unknown(node)
        return self._matrix(node, 0)

    def _matrix(self, node: onnx.NodeProto, axis: int) -> Atoms:
        """A dense layer whose inputs lie along this axis of its weight."""
        weight = self._weight(node, 1)
        self._slot(node, node.input[1], axis, self._input(node))
        self._layers.append(Layer(node.name, node.input[0], node.input[1], axis))
        made = self._joined.make(weight.shape[1 - axis], node.name)
        self._slot(node, node.input[1], 1 - axis, made)
        return made

    def _normalisation(self, node: onnx.NodeProto) -> Atoms:
        atoms = self._input(node)
        for place in range(1, 5):
            self._vector(node, place, atoms)
        return atoms

    # ------------------------------------------------------------ what carries channels on

    def _each(self, node: onnx.NodeProto) -> Atoms:
        atoms = self._input(node)
        if node.op_type == "InstanceNormalization":
            self._vector(node, 1, atoms)
            self._vector(node, 2, atoms)
        return atoms

    def _pair(self, node: onnx.NodeProto) -> Atoms:
        """Element by element, after broadcasting: equal channels are joined, a single one goes to all."""
        rank = max(len(self._shape(name)) for name in node.input)
        if rank < 2:
            return self._unknown(node)
        found: Atoms | None = None
        for name in node.input:
            if name in self._constants:
                continue
            atoms = self._tensors.get(name)
            if atoms is None or len(self._shape(name)) != rank:
                return self._unknown(node)
            if found is None:
                found = atoms
            elif len(found) == len(atoms):
                self._joined.join(found, atoms)
            elif 1 in (len(found), len(atoms)):  # a single channel that is spread over many cannot go with any of them
                self._joined.keep(min(found, atoms, key=len))
                found = max(found, atoms, key=len)
            else:
                return self._unknown(node)
        if found is None:
            return self._fixed(node.output[0], node.name)
        for name in node.input:
            if name in self._constants:
                self._spread(node, name, rank, found)
        return found

    def _spread(self, node: onnx.NodeProto, name: str, rank: int, atoms: Atoms) -> None:
        """A constant of an element-wise operator: one value a channel, or the same for all."""
        array = self._constants[name]
        axis = 1 - (rank - array.ndim)
        if axis < 0 or array.shape[axis] == 1:
            if array.ndim > rank or (axis >= 0 and len(atoms) == 1 and array.shape[axis] > 1):
                raise refused(node, f'its constant "{name}" makes more channels')
            return
        self._slot(node, name, axis, atoms)

    def _concatenation(self, node: onnx.NodeProto) -> Atoms:
        if attribute(node, "axis") not in (1, 1 - len(self._shape(node.output[0]))):
            return self._unknown(node)
        return np.concatenate([self._input(node, place) for place in range(len(node.input))])

    def _flatten(self, node: onnx.NodeProto) -> Atoms:
        if attribute(node, "axis", 1) != 1:
            return self._unknown(node)
        return self._unrolled(node)

    def _unrolled(self, node: onnx.NodeProto) -> Atoms:
        """[N, C, ...] as [N, C ...]: every channel is as many places as it has pixels."""
        rest = self._shape(node.input[0])[2:]
        if any(size is None for size in rest):
            raise refused(node, f"the size of {node.input[0]} is not fixed")
        return np.repeat(self._input(node), math.prod(size for size in rest if size is not None))

    def _reshape(self, node: onnx.NodeProto) -> Atoms:
        target = self._constants.get(node.input[1])
        before = self._shape(node.input[0])
        if target is None or len(target) != 2 or len(before) < 2:
            return self._unknown(node)
        made = self._unrolled(node)
        if target[1] not in (-1, len(made)) or target[0] not in (-1, 0, 1):
            return self._unknown(node)
        if target[1] != -1:
            self._flattened[node.input[1]] = node.output[0]
        return made

    def _squeeze(self, node: onnx.NodeProto) -> Atoms:
        rank = len(self._shape(node.input[0]))
        axes = self._constants.get(node.input[1]) if len(node.input) > 1 else attribute(node, "axes")
        if axes is None or any(axis % rank in (0, 1) for axis in np.atleast_1d(axes).tolist()):
            return self._unknown(node)
        return self._input(node)

    def _reduction(self, node: onnx.NodeProto) -> Atoms:
        rank = len(self._shape(node.input[0]))
        axes = self._constants.get(node.input[1]) if len(node.input) > 1 else attribute(node, "axes")
        if axes is None or rank < 2 or any(axis % rank in (0, 1) for axis in np.atleast_1d(axes).tolist()):
            return self._unknown(node)
        return self._input(node)

    def _mixed(self, node: onnx.NodeProto) -> Atoms:
        """Every channel depends on all of them: they stay."""
        atoms = self._input(node)
        self._joined.keep(atoms)
        return atoms

    def _pad(self, node: onnx.NodeProto) -> Atoms:
        rank = len(self._shape(node.input[0]))
        pads = self._constants.get(node.input[1]) if len(node.input) > 1 else attribute(node, "pads")
        axes = len(node.input) > 3 and node.input[3]
        if pads is None or axes or len(pads) != 2 * rank or pads[1] or pads[1 + rank]:
            return self._unknown(node)
        return self._input(node)

    def _resize(self, node: onnx.NodeProto) -> Atoms:
        scales = self._constants.get(node.input[2]) if len(node.input) > 2 else None
        if scales is None or len(scales) < 2 or not np.array_equal(scales[:2], [1, 1]):
            return self._unknown(node)
        return self._input(node)

    def _unknown(self, node: onnx.NodeProto) -> Atoms:
        """Nothing is known about the operator: it may stand where nothing is taken away, as before the first layer."""
        for name in node.input:
            atoms = self._tensors.get(name)
            if atoms is not None and not self._joined.kept(atoms):
                raise refused(node, f"how it carries channels is not known; known are {_KNOWN}")
        return self._fixed(node.output[0], node.name)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value, `default` where the node does not state it."""
    for one in node.attribute:
        if one.name == name:
            return onnx.helper.get_attribute_value(one)
    return default


def refused(node: onnx.NodeProto, why: str) -> PruningError:
    """The error that names a node."""
    return PruningError(f'no channels can be taken out around the node "{node.name}" ({node.op_type}): {why}')


def _shapes(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """The sizes of every activation; None for one that is open."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except Exception as error:  # onnx's own exceptions share no base class but Exception
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PruningError(f"the shapes inside of the model cannot be followed: {lines[-1][:300]}") from error
    found: dict[str, list[int | None]] = {}
    for info in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = info.type.tensor_type.shape.dim
        found[info.name] = [int(one.dim_value) if one.HasField("dim_value") else None for one in dims]
    return found
