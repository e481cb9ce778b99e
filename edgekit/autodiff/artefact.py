"""Writes a train step to files: small graphs, and beside them the numbers as plain little-endian float32.

Weights lie outside the graphs so that a trained model is made by overwriting bytes, without the `onnx` package. Handing
weights to a session by `SessionOptions.add_initializer` instead gives wrong results silently, because graph fusions
have used the old values by then (`research/edge-training.md`, pitfall 1). Small constants (shapes, axes) stay in the
graph: a session needs their values to load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray

from edgekit import tensors
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.forward import Forward
from edgekit.autodiff.manifest import (
    APPLY,
    MANIFEST,
    MODEL,
    MODEL_DATA,
    STATE_DATA,
    STEP,
    STEP_DATA,
    StepManifest,
    check_absent,
)
from edgekit.graphs.editing import copied, read_from

ALIGN = 64
"""Bytes to which the values of every tensor are aligned."""
SMALL = 1024
"""Bytes up to which a frozen tensor stays in the graph."""


def model_with_weights(forward: Forward) -> onnx.ModelProto:
    """The forward model as it was read: opset 18 or later, constants folded, weights by their names."""
    graph = forward.graph
    for name, value in forward.outputs.items():
        if name not in graph.outputs:
            graph.output(name, value)
    return graph.build("model")


def save_step(
    graph: onnx.ModelProto,
    apply: onnx.ModelProto | None,
    model: onnx.ModelProto,
    manifest: StepManifest,
    initial: Mapping[str, NDArray[np.float32]],
    folder: Path,
    weights: Path | None = None,
) -> None:
    """Write all files of an artefact; see `TrainStep.save`. Frozen weights of the step lie in the model's file.

    Raises AutodiffError when `folder` holds one already, or `weights` other tensors than the model.
    """
    check_absent(folder)
    folder.mkdir(parents=True, exist_ok=True)
    changed = {one.name for one in manifest.states if one.role in ("parameter", "batch_norm")}
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    if weights is None:
        with (folder / MODEL_DATA).open("wb") as file:
            places = {name: _append(file, array) for name, array in arrays.items() if name in changed or _large(array)}
    else:
        places = _linked(weights, folder / MODEL_DATA, arrays)
        if not changed & arrays.keys() <= places.keys():
            raise AutodiffError(f"{weights} lacks {sorted(changed & arrays.keys() - places.keys())[0]}")
    _write(model, folder / MODEL, {name: (MODEL_DATA, offset) for name, offset in places.items()})
    _write(graph, folder / STEP, _places_of_step(graph, arrays, places, folder))
    if apply is not None:
        (folder / APPLY).write_bytes(apply.SerializeToString())
    specs = []
    with (folder / STATE_DATA).open("wb") as file:
        for one in manifest.states:
            array, place = initial[one.name], places.get(one.name)
            offset = _append(file, array) if place is None and array.any() else None
            specs.append(msgspec.structs.replace(one, offset=offset, model_offset=place))
    manifest = msgspec.structs.replace(manifest, states=tuple(specs))
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def _large(array: NDArray[Any]) -> bool:
    return array.dtype == np.float32 and array.nbytes > SMALL


def _places_of_step(
    graph: onnx.ModelProto, model: Mapping[str, NDArray[Any]], places: Mapping[str, int], folder: Path
) -> dict[str, tuple[str, int]]:
    """File and offset of the step's large tensors: what the model has as well is there, the rest is written."""
    found: dict[str, tuple[str, int]] = {}
    rest: dict[str, NDArray[Any]] = {}
    for tensor in graph.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if not _large(array):
            continue
        if tensor.name in places and np.array_equal(array, model[tensor.name]):
            found[tensor.name] = MODEL_DATA, places[tensor.name]
        else:
            rest[tensor.name] = array
    if rest:
        with (folder / STEP_DATA).open("wb") as file:
            found |= {name: (STEP_DATA, _append(file, array)) for name, array in rest.items()}
    return found


def _linked(weights: Path, target: Path, model: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Give a safetensors file the second name `target`, or copy it; returns where it has the tensors of the model."""
    data = weights.read_bytes()
    found = tensors.load(data, len(data))
    for name, array in found.items():
        if name not in model or not np.array_equal(array, model[name]):
            raise AutodiffError(f"{weights} has other values of {name[:100]} than the model")
    try:
        target.hardlink_to(weights)
    except OSError:  # not every file system knows a second name
        target.write_bytes(data)
    return {name: offset for name, (offset, _) in tensors.places(data).items()}


def _write(model: onnx.ModelProto, path: Path, places: Mapping[str, tuple[str, int]]) -> None:
    """Write a graph whose tensors named in `places` are read from that file beside it, from that byte on."""
    light = copied(model)
    for tensor in light.graph.initializer:
        if tensor.name in places:
            file, offset = places[tensor.name]
            read_from(tensor, file, offset, 4 * math.prod(tensor.dims))
    path.write_bytes(light.SerializeToString())


def _append(file: BinaryIO, array: NDArray[Any]) -> int:
    file.write(b"\0" * (-file.tell() % ALIGN))
    offset = file.tell()
    file.write(np.asarray(array, "<f4", order="C").tobytes())
    return offset
