"""What an artefact of a train step holds beside its graphs; read without the `onnx` package."""

from __future__ import annotations

import math
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.autodiff.errors import AutodiffError

STEP, APPLY, MODEL = "step.onnx", "apply.onnx", "model.onnx"
STEP_DATA, STATE_DATA, MODEL_DATA = "step.bin", "state.bin", "model.bin"
MANIFEST = "step.json"
MAX_MANIFEST = 8 << 20
"""Bytes of `step.json`."""
MAX_STATE = 8 << 30
"""Bytes of all states together."""

Role = Literal["parameter", "batch_norm", "optimiser", "accumulator"]


class StateSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A float32 tensor that lives from step to step."""

    name: str
    role: Role
    shape: tuple[int, ...]
    model_offset: int | None = None  # where model.bin has it, bytes: its first values, and where trained ones go
    offset: int | None = None  # of its first values in state.bin; None as well as no model_offset: it starts as zeros
    in_place: bool = False  # whether the step may write its next value over it

    @property
    def bytes(self) -> int:
        """How many bytes it takes."""
        return 4 * math.prod(self.shape)


class StepManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`step.json`."""

    format: Literal["train-step/1"] = "train-step/1"
    kind: Literal["update", "gradients", "accumulate", "reestimate"]
    states: tuple[StateSpec, ...]
    fetched: tuple[str, ...]  # outputs beside the states: the loss, metrics, model outputs
    gradients: tuple[str, ...] = ()  # outputs `NAME.gradient`, where the step gives gradients
    frozen_prefix: bool  # whether much of the graph is inference, which the runtime then lays out for itself

    def of(self, *roles: Role) -> tuple[StateSpec, ...]:
        """The states of some roles."""
        return tuple(one for one in self.states if one.role in roles)


def check_absent(folder: Path) -> None:
    """Raise AutodiffError where a train step lies already."""
    if (folder / MANIFEST).exists():
        raise AutodiffError(f"{folder} holds a train step already; choose another folder or remove it")


def read_manifest(folder: Path) -> StepManifest:
    """Read and check `step.json`. Raises AutodiffError."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise AutodiffError(f"{path} has more than {MAX_MANIFEST} bytes")
        manifest = msgspec.json.decode(path.read_bytes(), type=StepManifest)
    except OSError as error:
        raise AutodiffError(f"{folder} holds no train step: {MANIFEST}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise AutodiffError(f"{path} is no description of a train step: {error}") from error
    total = 0
    for one in manifest.states:
        if any(size < 0 for size in one.shape) or len(one.shape) > 8 or min(one.offset or 0, one.model_offset or 0) < 0:
            raise AutodiffError(f"{path}: state {one.name[:100]} has an impossible shape or place")
        total += one.bytes
    if total > MAX_STATE or len({one.name for one in manifest.states}) != len(manifest.states):
        raise AutodiffError(f"{path}: states of more than {MAX_STATE} bytes, or two of one name")
    return manifest


def read_states(folder: Path, manifest: StepManifest) -> dict[str, NDArray[np.float32]]:
    """The first values of all states. Raises AutodiffError: file too short, values not finite."""
    result: dict[str, NDArray[np.float32]] = {}
    try:
        with (folder / STATE_DATA).open("rb") as others, (folder / MODEL_DATA).open("rb") as model:
            for one in manifest.states:
                file, offset = (others, one.offset) if one.model_offset is None else (model, one.model_offset)
                result[one.name] = np.zeros(one.shape, np.float32) if offset is None else _read(file, offset, one)
    except OSError as error:
        raise AutodiffError(f"the states of {folder} cannot be read: {error.strerror}") from error
    return result


def _read(file: BinaryIO, offset: int, spec: StateSpec) -> NDArray[np.float32]:
    file.seek(offset)
    data = file.read(spec.bytes)
    if len(data) != spec.bytes:
        raise AutodiffError(f"{file.name} ends before the values of {spec.name}")
    array = np.frombuffer(data, "<f4").reshape(spec.shape).copy()
    if not np.isfinite(array).all():
        raise AutodiffError(f"{file.name}: {spec.name} has values that are not finite")
    return array
