"""A package's float model as an ONNX graph that can be learned with, whatever its task. Needs the package onnx."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray

from edgekit.training import write_model


class NetworkError(ValueError):
    """The model cannot learn in this way; the message is a clause that names the node and says why."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph with its weights inside; `model` is never changed, every method gives a new one."""

    model: onnx.ModelProto
    image: str  # name of its input

    @property
    def normalised(self) -> bool:
        """Whether it has BatchNormalization that is not folded into other weights."""
        return any(node.op_type == "BatchNormalization" for node in self.model.graph.node)

    def with_weights(self, weights: dict[str, NDArray[Any]]) -> Self:
        """The same network with other values of the named weights; those that it does not have are an error.

        Raises NetworkError.
        """
        model = copied(self.model)
        places = {one.name: one for one in model.graph.initializer}
        for name, array in weights.items():
            tensor = places.get(name)
            if tensor is None or tuple(tensor.dims) != array.shape or not np.isfinite(array).all():
                raise NetworkError(f'"{name[:100]}" is no weight of the network with this shape, or is not finite')
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        return replace(self, model=model)

    def save(self, folder: Path) -> None:
        """Write it into `folder` as MODEL_FILE and WEIGHTS_FILE. Raises TrainingError, OSError."""
        write_model(self.model, folder)


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that may be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove what the outputs do not need: nodes, weights, and what is said about other tensors."""
    graph = model.graph
    needed = {one.name for one in graph.output}
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


def free_name(name: str, taken: Collection[str]) -> str:
    """`name`, with a number behind it if it is taken."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}.{number}"
    return found
