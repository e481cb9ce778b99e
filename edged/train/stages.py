"""Features before the last ones: the maps of a classifier's last resolutions, each by its mean and its maximum.

A network's last features tell apart the classes that it was trained on; what marks a new one, a small hole or a thin
line, often stands out in an earlier map and in one place only, which a mean over all places blurs. A map is taken where
its resolution ends: the last tensor that a convolution or a pooling makes smaller. That is so in every convolutional
classifier; where the graph shows no such place, nothing is found.

An earlier map is first brought to places as large as those of the last one, because a maximum of single points finds
noise. On `pcb-bare` patches with two withheld classes, ten labels of each and 30 draws of the boards, heads on a badly
and on a well trained `tiny_cnn` found .697 and .819 of a class by the last features alone, and .750 and .830 so. With
single points and three resolutions it was .734 and .818; with means over neighbours, too, .746 and .829.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx.helper
import onnx.shape_inference

from edgekit.graphs.editing import THROUGH, copied, makers

RESOLUTIONS = 2
"""A third made the heads no better and the model slower."""
MOST = 2048
"""Features of a last layer, those that it had before among them: the covariance of so many takes 32 MiB."""

_SMALLER = frozenset(
    ("Conv", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax")
) | {"Flatten", "Reshape"}
_HALF = 2
"""A node ends a resolution if it leaves at most one place of so many; a convolution without a border does not."""
MEAN, MAXIMUM = "GlobalAveragePool", "GlobalMaxPool"
_BEFORE = ("Pad", "AveragePool")
"""What may stand between a map and what makes it smaller: an exporter's border, and what is made here."""
_POOLS = {
    MEAN: MEAN,
    "ReduceMean": MEAN,
    "AveragePool": MEAN,
    MAXIMUM: MAXIMUM,
    "ReduceMax": MAXIMUM,
    "MaxPool": MAXIMUM,
}

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Stage:
    """A map [n, channels, h, w], the places that it is brought to, and the operators that make one value a channel."""

    map: str
    channels: int
    window: tuple[int, int]  # height and width of a place, in points
    operators: tuple[str, ...]

    @property
    def features(self) -> int:
        """How many values it gives."""
        return self.channels * len(self.operators)


def more_features(model: onnx.ModelProto, image: str, size: tuple[int, ...], features: str) -> list[Stage]:
    """What the last layer, which reads the tensor `features`, could read besides; the last resolution comes first.

    `size` is the shape of the input `image`. What would make more than MOST features in all is left out. Empty where
    the graph shows nothing, or the features are no vector.
    """
    shapes = _shapes(model, image, size)
    known = shapes.get(features, ())
    if len(known) < 2 or any(one != 1 for one in known[2:]):
        return []
    made_by = makers(model.graph)
    there, left = _read_already(features, made_by, shapes), MOST - known[1]
    found = []
    ends = _ends(model, made_by, shapes)[-RESOLUTIONS:][::-1]
    for name in ends:
        _, channels, height, width = shapes[name]
        rows, columns = shapes[ends[0]][2:]
        operators = []
        for operator in (MEAN, MAXIMUM):
            if (operator, name) not in there and channels <= left:
                operators.append(operator)
                left -= channels
        if operators:
            found.append(Stage(name, channels, (max(1, height // rows), max(1, width // columns)), tuple(operators)))
    return found


def _shapes(model: onnx.ModelProto, image: str, size: tuple[int, ...]) -> Shapes:
    """Of all float tensors whose shape follows from that of the image."""
    asked = copied(model)
    del asked.graph.value_info[:]
    for one in asked.graph.input:
        if one.name == image:
            one.CopyFrom(onnx.helper.make_tensor_value_info(image, onnx.TensorProto.FLOAT, size))
    for one in asked.graph.output:
        one.type.tensor_type.ClearField("shape")
    try:
        told = onnx.shape_inference.infer_shapes(asked, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        return {}
    return {
        one.name: tuple(dim.dim_value for dim in one.type.tensor_type.shape.dim)
        for one in (*told.value_info, *told.output, *told.input)
        if one.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        and one.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in one.type.tensor_type.shape.dim)
    }


def _ends(model: onnx.ModelProto, made_by: Mapping[str, onnx.NodeProto], shapes: Shapes) -> list[str]:
    """The last map of each resolution, in the order of the graph; before the first convolution there are none."""
    ending = set()
    for node in model.graph.node:
        if node.op_type in _SMALLER and _is_smaller(node, shapes):
            ending.add(_source(node.input[0], made_by))
    found: dict[tuple[int, ...], str] = {}
    begun = False
    for node in model.graph.node:
        begun = begun or node.op_type == "Conv"
        for name in node.output:
            if begun and name in ending and len(shapes.get(name, ())) == 4 and _places(shapes[name]) > 1:
                found.pop(shapes[name][2:], None)  # the later one stands behind
                found[shapes[name][2:]] = name
    return list(found.values())


def _source(name: str, made_by: Mapping[str, onnx.NodeProto]) -> str:
    while name in made_by and made_by[name].op_type in _BEFORE:
        name = made_by[name].input[0]
    return name


def _is_smaller(node: onnx.NodeProto, shapes: Shapes) -> bool:
    before, after = shapes.get(node.input[0], ()), shapes.get(node.output[0])
    if len(before) != 4 or after is None:
        return False
    return len(after) != 4 or _HALF * _places(after) <= _places(before)


def _places(shape: tuple[int, ...]) -> int:
    return math.prod(shape[2:])


def _read_already(name: str, made_by: Mapping[str, onnx.NodeProto], shapes: Shapes) -> set[tuple[str, str]]:
    """The pooled maps that these features consist of, as far as they can be told."""
    node = made_by.get(name)
    if node is None:
        return set()
    if node.op_type == "Concat":
        return set().union(*(_read_already(one, made_by, shapes) for one in node.input))
    if node.op_type in THROUGH:
        return _read_already(node.input[0], made_by, shapes)
    before, after = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
    whole = len(before) == 4 and math.prod(after) == before[0] * before[1]
    return {(_POOLS[node.op_type], _source(node.input[0], made_by))} if node.op_type in _POOLS and whole else set()
