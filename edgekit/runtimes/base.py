"""What every runtime driver offers, and the checks that all of them share."""

from __future__ import annotations

import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
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
    arena: bool = True
    """Keep freed memory for the next run. Off gives it back to the system at some cost of time."""
    provider: str = "cpu"
    """Which part of the runtime does the work: "cpu" or a name of the driver's own table."""
    provider_options: Mapping[str, str] = field(default_factory=dict)
    """Passed on by the driver if its allow-list has the key; anything else is refused."""
    contexts: int = 1
    """Runs that may go on at the same time, for runtimes that need a copy of their state for each."""
    strict: bool = False
    """Refuse a model that the provider cannot run whole, instead of leaving parts of it to the CPU."""
    interpreter: str = ""
    """Path of the Python that runs the driver in a process of its own; "" runs it here."""
    declared: TensorInfo | None = None
    """The input as the package describes it, for runtimes that cannot tell it themselves."""
    cache: str = ""
    """Directory for what a provider compiles (engines, blobs), "" for none. Never taken from a profile or package."""


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


def placement(session: Session) -> dict[str, int]:
    """Provider -> operators (or compiled groups of them) that it runs; empty where the runtime cannot tell.

    Only a session opened with `SessionOptions.strict` is asked to keep the record.
    """
    found = getattr(session, "placement", None)
    return dict(found) if found else {}


def check_options(options: SessionOptions, allowed: Collection[str]) -> None:
    """Raise ModelError for a provider option that is not in the driver's allow-list."""
    for name in options.provider_options:
        if name not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            raise ModelError(f'"{options.provider}" takes no option "{name[:60]}"; allowed are: {known}')


def channels_first(tensor: TensorInfo) -> bool:
    """Whether a picture's batch is laid out as NCHW and not as NHWC."""
    return len(tensor.shape) == 4 and tensor.shape[1] in (1, 3) and tensor.shape[3] not in (1, 3)


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
    if len(feeds) == len(inputs) and all(_fits(feeds.get(tensor.name), tensor) for tensor in inputs):
        return  # the quick way: a small model's run takes little longer than finding the words below
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


def _fits(array: NDArray[Any] | None, tensor: TensorInfo) -> bool:
    return (
        array is not None
        and array.dtype == tensor.dtype  # quicker than asking for its name
        and (array.shape == tensor.shape or tensor.accepts(array.shape))
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
