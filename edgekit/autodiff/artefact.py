"""Writes a train step to files: small graphs, and beside them the numbers as plain little-endian float32.

Weights lie outside the graphs so that a trained model is made by overwriting bytes, without the `onnx` package. Handing
weights to a session by `SessionOptions.add_initializer` instead gives wrong results silently, because graph fusions
have used the old values by then (`research/edge-training.md`, pitfall 1). Small constants (shapes, axes) stay in the
graph: a session needs their values to load.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
from numpy.typing import NDArray

from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.forward import Forward
from edgekit.autodiff.manifest import APPLY, MANIFEST, MODEL, MODEL_DATA, STATE_DATA, STEP, STEP_DATA, StepManifest

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
) -> None:
    """Write all files of an artefact. Raises AutodiffError when `folder` holds one already."""
    if (folder / MANIFEST).exists():
        raise AutodiffError(f"{folder} holds a train step already; choose another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    changed = {one.name for one in manifest.states if one.role in ("parameter", "batch_norm")}
    _write(graph, folder, STEP, STEP_DATA, frozenset())
    if apply is not None:
        (folder / APPLY).write_bytes(apply.SerializeToString())
    places = _write(model, folder, MODEL, MODEL_DATA, changed)
    specs = []
    with (folder / STATE_DATA).open("wb") as file:
        for one in manifest.states:
            array, place = initial[one.name], places.get(one.name)
            offset = _append(file, array) if place is None and array.any() else None
            specs.append(msgspec.structs.replace(one, offset=offset, model_offset=place))
    manifest = msgspec.structs.replace(manifest, states=tuple(specs))
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def _write(
    model: onnx.ModelProto, folder: Path, name: str, data: str, always: frozenset[str] | set[str]
) -> dict[str, int]:
    """Write a graph with its large tensors, and those of `always`, in the file `data`. Returns where they lie in it."""
    places: dict[str, int] = {}
    light = onnx.ModelProto()
    light.CopyFrom(model)
    with (folder / data).open("wb") as file:
        for tensor in light.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if tensor.name not in always and (array.dtype != np.float32 or array.nbytes <= SMALL):
                continue
            offset = _append(file, array)
            places[tensor.name] = offset
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", data), ("offset", str(offset)), ("length", str(array.nbytes))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
    (folder / name).write_bytes(light.SerializeToString())
    return places


def _append(file: BinaryIO, array: NDArray[Any]) -> int:
    file.write(b"\0" * (-file.tell() % ALIGN))
    offset = file.tell()
    file.write(np.asarray(array, "<f4", order="C").tobytes())
    return offset
