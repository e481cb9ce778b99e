"""Where a training stands, in one file that is whole or absent: every tensor, every counter, and a hash over both.

The file is safetensors. Counters are JSON in a tensor of bytes, and the SHA-256 over all other tensors is one, too, so
that a checkpoint which was damaged on the disk is refused and never trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit import atomic, tensors
from edgekit.training.early_stopping import Best
from edgekit.training.errors import CheckpointError

Tensors = dict[str, NDArray[Any]]

MAX_BYTES = 4 << 30
"""A checkpoint holds the weights three to four times; this is a network of 250 M parameters."""
_PROGRESS, _HASH = "progress", "sha256"
_STATE, _BEST = "state/", "best/"


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """The counters of a training. Everything random follows from them and the seed."""

    step: int = 0  # steps done in all
    epoch: int = 0  # epochs done
    batch: int = 0  # batches done in the epoch that is under way
    loss_sum: float = 0.0  # over these batches
    seconds: float = 0.0  # of computing, over all runs
    best: Best = Best()
    ended: str = ""  # why it ended; "" while it goes on


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A training between two steps. `job` names what it belongs to, a hash of settings, data and train graph."""

    job: str
    progress: Progress
    state: Tensors  # what the train step takes and gives: weights, running statistics, momenta
    best: Tensors  # the weights of the best evaluation; empty before the first one


class Checkpoints(Protocol):
    """Where checkpoints are kept. Only the latest one counts."""

    def read(self) -> bytes | None:
        """The latest checkpoint, None if there is none."""
        ...

    def write(self, data: bytes) -> None:
        """Replace it: after a power cut the old or the new one is there, whole. Raises OSError; the old one stands."""
        ...


class CheckpointFile:
    """One file. A process that is killed while it writes leaves the old one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> bytes | None:
        """See Checkpoints.read. Raises CheckpointError for a file that is too large."""
        try:
            if self._path.stat().st_size > MAX_BYTES:
                raise CheckpointError(f"{self._path.name} has more than {MAX_BYTES} bytes; remove it to start again")
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def write(self, data: bytes) -> None:
        """See Checkpoints.write."""
        atomic.write_file(self._path, data)


class KeptInMemory:
    """For a training that nobody will resume after this process."""

    def __init__(self) -> None:
        self._data: bytes | None = None

    def read(self) -> bytes | None:
        """See Checkpoints.read."""
        return self._data

    def write(self, data: bytes) -> None:
        """See Checkpoints.write."""
        self._data = data


def encode(checkpoint: Checkpoint) -> bytes:
    """The bytes of a checkpoint. Raises CheckpointError for tensors that hold NaN or infinity."""
    named: Tensors = {}
    for prefix, group in ((_STATE, checkpoint.state), (_BEST, checkpoint.best)):
        for name, array in group.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise CheckpointError(f'the tensor "{name}" holds NaN or infinity and is not saved')
            named[prefix + name] = array
    header = msgspec.json.encode({"job": checkpoint.job, "progress": checkpoint.progress})
    named[_PROGRESS] = np.frombuffer(header, np.uint8)
    named[_HASH] = np.frombuffer(_digest(named), np.uint8)
    return tensors.save(named)


def decode(data: bytes, job: str) -> Checkpoint:
    """The checkpoint in `data`. Raises CheckpointError if it is damaged or belongs to another job."""
    try:
        named = tensors.load(data, MAX_BYTES)
        expected = named.pop(_HASH).tobytes()
        if _digest(named) != expected:
            raise CheckpointError("the checkpoint was damaged: its hash is another one; remove it to start again")
        header = msgspec.json.decode(named.pop(_PROGRESS).tobytes(), type=_Header)
    except (tensors.TensorError, KeyError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"this is no checkpoint of a training ({error}); remove it to start again") from None
    if header.job != job:
        raise CheckpointError(
            f"the checkpoint belongs to the job {header.job[:16]}, not to {job[:16]}: settings, data or model were "
            "changed; remove it to start again"
        )
    groups: dict[str, Tensors] = {_STATE: {}, _BEST: {}}
    for name, array in named.items():
        prefix, slash, rest = name.partition("/")
        if prefix + slash not in groups:
            raise CheckpointError(f'the checkpoint has an unknown tensor "{name[:100]}"; remove it to start again')
        groups[prefix + slash][rest] = array
    return Checkpoint(job=header.job, progress=header.progress, state=groups[_STATE], best=groups[_BEST])


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    job: str
    progress: Progress


def _digest(named: Mapping[str, NDArray[Any]]) -> bytes:
    """SHA-256 over names, types, shapes and values in the order of the names."""
    total = hashlib.sha256()
    for name, array in sorted(named.items()):
        total.update(f"{name}\0{array.dtype.str}\0{array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.digest()
