"""What every runtime driver offers, and the checks that all of them share."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_MODEL_BYTES = 4 << 30
"""Bytes. Larger than any model that an edge device can hold; it bounds what a hostile file makes us read."""


class ModelError(ValueError):
    """The model cannot be loaded or run, or gave something it must not give. The text says what and why."""


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a model."""

    name: str
    shape: tuple[int | None, ...]  # None where any size is allowed
    dtype: str  # numpy's name: float32, uint8, int8, int64, ...
    quantisation: tuple[float, int] | None = None  # (scale, zero point): real value = (stored - zero point) * scale

    def accepts(self, shape: Sequence[int]) -> bool:
        """Whether an array of this shape fits."""
        return len(shape) == len(self.shape) and all(
            want is None or want == have for want, have in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True)
class SessionOptions:
    """How a session uses the machine.

    One thread and no spinning is the measured best for a device that runs one session per core: spinning threads cost
    over ten times the CPU between two pictures of a camera.
    """

    threads: int = 1
    spinning: bool = False


class Session(Protocol):
    """A loaded model. `run` may be called from several threads."""

    @property
    def inputs(self) -> list[TensorInfo]: ...

    @property
    def outputs(self) -> list[TensorInfo]: ...

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run once; the results are ordered as `outputs`. Raises ModelError for wrong feeds or a failing model."""
        ...

    def close(self) -> None:
        """Give the memory back. `run` raises ModelError afterwards."""
        ...


def check_model_file(path: Path) -> None:
    """Raise ModelError unless `path` is a regular file (no symlink) of a sane size."""
    try:
        status = path.lstat()
    except OSError as error:
        raise ModelError(f"the model file {path.name} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"the model file {path.name} is not a regular file")
    if not 0 < status.st_size <= MAX_MODEL_BYTES:
        raise ModelError(f"the model file {path.name} has {status.st_size} bytes; 1 to {MAX_MODEL_BYTES} are allowed")


def check_feeds(inputs: Sequence[TensorInfo], feeds: Mapping[str, NDArray[Any]]) -> None:
    """Raise ModelError unless `feeds` gives every input, and only those, with the right type and shape."""
    names = {tensor.name for tensor in inputs}
    unknown = sorted(set(feeds) - names)
    if unknown:
        raise ModelError(f'the model has no input "{unknown[0]}"; its inputs are {", ".join(sorted(names))}')
    for tensor in inputs:
        array = feeds.get(tensor.name)
        if array is None:
            raise ModelError(f'the input "{tensor.name}" is missing')
        if array.dtype.name != tensor.dtype:
            raise ModelError(f'the input "{tensor.name}" must be {tensor.dtype}, not {array.dtype.name}')
        if not tensor.accepts(array.shape):
            raise ModelError(
                f'the input "{tensor.name}" must have the shape {shape_text(tensor.shape)}, '
                f"not {shape_text(array.shape)}"
            )


def dequantise(array: NDArray[Any], tensor: TensorInfo) -> NDArray[np.float32]:
    """Real values of one output as float32, whatever the model stores.

    Floats pass through; quantised integers become (stored - zero point) * scale. Raises ModelError for integers
    without a scale, which have no defined real value.
    """
    if array.dtype.kind == "f":
        return array.astype("float32", copy=False)
    if tensor.quantisation is None:
        raise ModelError(f'the output "{tensor.name}" is {tensor.dtype} and carries no quantisation scale')
    scale, zero_point = tensor.quantisation
    return ((array.astype("float64") - zero_point) * scale).astype("float32")


def shape_text(shape: Sequence[int | None]) -> str:
    """A shape for people: 1x3x224x224, with ? where any size is allowed."""
    return "x".join("?" if size is None else str(size) for size in shape) or "scalar"
