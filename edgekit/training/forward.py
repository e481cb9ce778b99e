"""The forward model with its weights as inputs: they are evaluated without a file or a new session for them.

Making one needs the package onnx, running one only onnxruntime.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.runtimes import SessionOptions, open_session
from edgekit.training.errors import TrainingError

if TYPE_CHECKING:
    import onnx


def weights_as_inputs(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy of `model` whose initializers `names` are inputs. Raises TrainingError for a name that it lacks."""
    import onnx.helper

    from edgekit.graphs.editing import copied

    copy = copied(model)
    wanted = set(names)
    moved = [tensor for tensor in copy.graph.initializer if tensor.name in wanted]
    for name in wanted - {tensor.name for tensor in moved}:
        raise TrainingError(f'the model has no weight "{name}"')
    kept = [tensor for tensor in copy.graph.initializer if tensor.name not in wanted]
    listed = {value.name for value in copy.graph.input}  # old exporters list weights as inputs, too
    for tensor in moved:
        if tensor.name not in listed:
            copy.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    return copy


class ForwardModel:
    """Runs the file that `weights_as_inputs` made; a `Forward` for the evaluators. Raises ModelError for a bad file."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._session = open_session(path, "onnxruntime", SessionOptions(threads=threads))
        self._inputs = {tensor.name for tensor in self._session.inputs}
        self._outputs = [tensor.name for tensor in self._session.outputs]

    def __call__(
        self, images: Mapping[str, NDArray[Any]], weights: Mapping[str, NDArray[Any]]
    ) -> Mapping[str, NDArray[np.float32]]:
        """The outputs by name. Weights that the model does not take are left out. Raises ModelError."""
        taken = {name: array for name, array in weights.items() if name in self._inputs}
        return dict(zip(self._outputs, self._session.run({**taken, **images}), strict=True))

    def close(self) -> None:
        """Give the memory back."""
        self._session.close()
