"""The weights of a model in one safetensors file that is also the external data of its ONNX file.

`model.onnx` holds the graph and, for each weight, its place in `weights.safetensors`. BatchNormalization stays as it
is: a runtime folds it when it loads the file, and the weights file is the un-folded checkpoint that the next training
starts from. A device that trains replaces the weights file and needs no ONNX library for it: a safetensors file with
the same names, types and shapes has every tensor at the same place.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit import atomic, tensors
from edgekit.training.errors import TrainingError

if TYPE_CHECKING:
    import onnx

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "weights.safetensors"
MAX_BYTES = 2 << 30
_MODE = 0o644
_WEIGHTED = frozenset(
    ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization", "LayerNormalization")
)
"""Operators whose inputs from the second on are weights. Others read shapes and scales, which stay in the graph."""


def read_weights(path: Path) -> dict[str, NDArray[np.float32]]:
    """Name -> weight. Raises TrainingError for a file that is no such weights, or holds NaN or infinity."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TrainingError(f"{path.name} has more than {MAX_BYTES} bytes")
        found = tensors.load(path.read_bytes(), MAX_BYTES)
    except OSError as error:
        raise TrainingError(f"{path.name} cannot be read: {error.strerror}") from None
    except tensors.TensorError as error:
        raise TrainingError(f"{path.name} holds no weights: {error}") from None
    _check(found, path.name)
    return found


def replace_weights(path: Path, changed: Mapping[str, NDArray[Any]]) -> None:
    """Put new values into the weights file of a model; those that are not named stay. It is replaced as a whole.

    Raises TrainingError for a name or shape that the file does not have, NaN or infinity; OSError for a full disk.
    """
    weights = read_weights(path)
    for name, array in changed.items():
        known = weights.get(name)
        if known is None or known.shape != array.shape or known.dtype != array.dtype:
            have = "nothing" if known is None else f"{known.dtype} {list(known.shape)}"
            raise TrainingError(f'{path.name} has {have} as "{name}"; {array.dtype} {list(array.shape)} was trained')
    _check(changed, "the training")
    data = tensors.save({**weights, **changed})
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = file.read(length)
    if data[8 : 8 + length] != header:
        raise TrainingError(f"{path.name} was written by another program in another order; export the model anew")
    atomic.write_file(path, data, _MODE)


def write_model(
    model: onnx.ModelProto,
    directory: Path,
    changed: Mapping[str, NDArray[Any]] | None = None,
    names: Collection[str] = (),
) -> None:
    """Write `model` as MODEL_FILE and WEIGHTS_FILE into `directory`, with the values of `changed` in place of its own.

    Weights are the float32 initializers of convolutions, matrix products and normalisations, and those in `names` and
    `changed`. Needs the package onnx. Raises TrainingError for a name that the model does not have, another shape, NaN
    or infinity; OSError.
    """
    import onnx.numpy_helper

    from edgekit.graphs.editing import copied, read_from

    changed = changed or {}
    copy = copied(model)
    kept = {tensor.name: tensor for tensor in copy.graph.initializer}
    for name in {*changed, *names} - set(kept):
        raise TrainingError(f'the model has no weight "{name}"')
    weights: dict[str, NDArray[Any]] = {}
    for name in sorted(_weights_of(copy) | set(changed) | set(names)):
        value = np.asarray(changed.get(name, onnx.numpy_helper.to_array(kept[name])))
        if value.shape != tuple(kept[name].dims) or value.dtype != np.float32:
            raise TrainingError(f'"{name}" is {value.dtype} {list(value.shape)}, not float32 {list(kept[name].dims)}')
        weights[name] = value
    _check(weights, "the model")
    data = tensors.save(weights)
    for name, (offset, length) in tensors.places(data).items():
        read_from(kept[name], WEIGHTS_FILE, offset, length)
    atomic.write_file(directory / WEIGHTS_FILE, data, _MODE)
    atomic.write_file(directory / MODEL_FILE, copy.SerializeToString(deterministic=True), _MODE)


def _weights_of(model: onnx.ModelProto) -> set[str]:
    floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type == tensor.FLOAT and tensor.dims}
    return {name for node in model.graph.node if node.op_type in _WEIGHTED for name in node.input[1:] if name in floats}


def _check(weights: Mapping[str, NDArray[Any]], what: str) -> None:
    for name, array in weights.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise TrainingError(f'"{name}" of {what} is no float32 tensor of finite values')
