"""A package's float model as an ONNX graph that can be learned with, whatever its task. Needs the package onnx."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray

from edgekit.graphs.editing import copied
from edgekit.graphs.errors import NetworkError
from edgekit.packages import Package, learning_file
from edgekit.runtimes import TensorInfo
from edgekit.training import write_model

_EMBEDDED = (2 << 30) - 1
"""Bytes of one protobuf message."""


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


def file_to_learn(package: Package) -> str:
    """The un-folded checkpoint, else the first fp32 file for onnxruntime. Raises NetworkError if there is neither."""
    file = learning_file(package.manifest)
    if file is None:
        raise NetworkError(f"{package.ref} has no fp32 file for onnxruntime, and only such a file can learn")
    return file


def load_model(package: Package, file: str, image: TensorInfo) -> onnx.ModelProto:
    """A file of the package that serving has checked, and which has the input `image`, with its weights inside.

    Raises NetworkError for a type of input or a size that cannot learn.
    """
    if image.dtype != "float32":
        raise NetworkError(f"the input of {file} is {image.dtype}, and only float32 can learn")
    model = onnx.load(str(package.path(file)))
    if model.ByteSize() > _EMBEDDED:
        raise NetworkError(f"{file} has {model.ByteSize()} bytes; {_EMBEDDED} are allowed")
    del model.metadata_props[:]
    return model
