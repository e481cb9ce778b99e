"""What a device keeps of one job: one directory, whose private parts are sealed with the device's key.

    job.json               as cloudd gave it
    files/                 the train step and rosters, by their names in the job
    state.sealed           the model after the newest sum, and what the strategy remembers of this device
    update.sealed          what the local training gave, until it is in a sum or too old
    vector.bin             the newest masked words, which count if the seat has their hash; they are no secret
    personal-N.sealed      tensors that never leave, as the training of version N left them
    training.sealed        where a training stands that was interrupted

Everything here can be lost. The seat in a round lies in the book, beside the ledger.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.collab.sealing import SealError
from edgekit import atomic, tensors

Tensors = dict[str, NDArray[Any]]
Sealer = Callable[[bytes, str], bytes]
"""(content, name that it is bound to) -> other bytes, or the other way round (raises SealError)."""

MAX_SEALED = 8 << 30
_HEADER, _TENSOR = "header", "tensor/"

T = TypeVar("T", bound=msgspec.Struct)


class JobFolder:
    """Methods block on the disk and raise OSError."""

    def __init__(self, root: Path, job: str, seal: Sealer, unseal: Sealer) -> None:
        """`root`/`job` is made (0700)."""
        self.path = root / job
        self.files = self.path / "files"
        self.vector = self.path / "vector.bin"
        self._job, self._seal, self._unseal = job, seal, unseal
        self.files.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic.sweep(self.path)

    def root_beside(self, name: str) -> Path:
        """A folder beside the one that holds all jobs; it may not be there."""
        return self.path.parent.with_name(name)

    def beside(self, name: str, job: str) -> JobFolder:
        """The folder of a job in `root_beside`, made, sealed with the same key."""
        return JobFolder(self.root_beside(name), job, self._seal, self._unseal)

    def write(
        self,
        name: str,
        header: msgspec.Struct,
        arrays: Mapping[str, NDArray[Any]] | None = None,
        *,
        durable: bool = True,
    ) -> None:
        """Keep a header and tensors under a name, whole or not at all.

        `durable` False: it outlives this process, and after a power cut it may be gone or open no more.
        """
        named: Tensors = {_HEADER: np.frombuffer(msgspec.msgpack.encode(header), np.uint8)}
        for key, value in (arrays or {}).items():
            named[_TENSOR + key] = value
        self.write_bytes(name, tensors.save(named), durable=durable)

    def read(self, name: str, kind: type[T]) -> tuple[T, Tensors] | None:
        """What was kept; None if there is none, or it does not open any more."""
        data = self.read_bytes(name)
        if data is None:
            return None
        try:
            named = tensors.load(data, MAX_SEALED)
            header = msgspec.msgpack.decode(named.pop(_HEADER).tobytes(), type=kind)
        except (tensors.TensorError, KeyError, msgspec.MsgspecError):
            return None
        return header, {key.removeprefix(_TENSOR): value for key, value in named.items()}

    def write_bytes(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Keep bytes under a name, whole or not at all. `durable` as in `write`."""
        path, sealed = self._path(name), self.sealed(name, data)
        if durable:
            atomic.write_file(path, sealed)
            return
        part = path.with_name(f".{path.name}.part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(sealed)
        part.replace(path)

    def read_bytes(self, name: str) -> bytes | None:
        """What was kept; None if there is none, or it does not open any more."""
        path = self._path(name)
        try:
            if path.stat().st_size > MAX_SEALED:
                return None
            return self.opened(name, path.read_bytes())
        except FileNotFoundError:
            return None

    def sealed(self, name: str, data: bytes) -> bytes:
        """Bytes that only this device opens, and under this name only."""
        return self._seal(data, self._bound(name))

    def opened(self, name: str, data: bytes) -> bytes | None:
        """The other way round; None if they do not open."""
        try:
            return self._unseal(data, self._bound(name))
        except SealError:
            return None

    def write_vector(self, data: bytes | memoryview) -> None:
        """Put masked words into `vector`, durably. A crash may leave a part: only who has their hash may use them."""
        new = not self.vector.exists()
        descriptor = os.open(self.vector, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.ftruncate(descriptor, len(data))
            os.fsync(descriptor)
        if new:
            atomic.fsync_dir(self.path)

    def remove(self, name: str, *, durable: bool = True) -> None:
        """Forget it."""
        with contextlib.suppress(FileNotFoundError):
            self._path(name).unlink()
            if durable:
                atomic.fsync_dir(self.path)

    def names(self, prefix: str) -> list[str]:
        """What is kept under names that begin so."""
        return sorted(path.stem for path in self.path.glob(f"{prefix}*.sealed"))

    def clear(self) -> None:
        """Remove everything of this job."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.path / f"{name}.sealed"

    def _bound(self, name: str) -> str:
        return f"federation {self._job} {name}"
