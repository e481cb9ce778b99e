"""Uploaded vectors: one file a device in the folder of its cohort, grown part by part.

What a part wrote survives the process, not a power cut: the hash that a device gives at the end decides, and a vector
that does not have it begins anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from cloudd.federation.errors import FederationError
from edgekit import atomic
from edgekit.secagg import masks
from edgekit.secagg.masks import Words

_READ = 1 << 20
RESERVE = 500_000_000
"""Bytes of the disk that vectors leave free."""


class WrongOffset(FederationError):
    """A part does not begin where the upload stands."""


class Vectors:
    """The vectors of one cohort below `folder`, each of `size` bytes. Blocking: for a thread, but for `received`."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self._hashed: dict[bytes, tuple[Any, int]] = {}  # node -> SHA-256 of what came so far, bytes; lost at a restart

    def prepare(self, count: int) -> None:
        """Make the folder. Raises FederationError if the disk has no room for `count` vectors and a sum, OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        needed, free = (count + 1) * self.size + RESERVE, shutil.disk_usage(self.folder).free
        if free < needed:
            raise FederationError(
                f"{needed / 1e6:.0f} MB of disk are needed for {count} vectors at {self.folder}, with what is left "
                f"free; {free / 1e6:.0f} MB are free"
            )

    def received(self, node: bytes) -> int:
        """Bytes of a device's vector that are there."""
        try:
            return self._path(node).stat().st_size
        except FileNotFoundError:
            return 0

    def write(self, node: bytes, offset: int, data: bytes | bytearray) -> int:
        """Append a part; returns the bytes that are there. Raises WrongOffset, OSError.

        A part that was received already changes nothing, so that it can be sent again.
        """
        with self._path(node).open("ab") as file:
            have = file.tell()
            if offset + len(data) <= have:
                return have
            if offset != have or offset + len(data) > self.size:
                raise WrongOffset(
                    f"the upload has {have} of {self.size} bytes; a part from {offset} does not go on there"
                )
            file.write(data)
        hasher, hashed = self._hashed.get(node) or (hashlib.sha256(), 0)
        if hashed == have:  # else a part was written by a process before this one, or not to its end
            hasher.update(data)
            self._hashed[node] = hasher, have + len(data)
        return have + len(data)

    def settle(self, node: bytes, sha256: str) -> None:
        """Make a whole vector durable. Raises FederationError, and forgets it, unless it has this hash; OSError."""
        self.check(node, sha256)
        self.sync(node)

    def check(self, node: bytes, sha256: str) -> None:
        """Raises as `settle` does; it is not durable yet."""
        have = self.received(node)
        if have < self.size:
            raise WrongOffset(f"the upload has {have} of {self.size} bytes")
        digest, hashed = self._hashed.pop(node, (None, 0))
        if hashed != have:
            digest = hashlib.sha256()
            with self._path(node).open("rb") as file:
                while block := file.read(_READ):
                    digest.update(block)
        if digest.hexdigest() != sha256:
            self.forget(node)
            raise FederationError("the vector does not have the SHA-256 that was announced; upload it again")

    def sync(self, node: bytes) -> None:
        """Make a checked vector durable. Raises OSError."""
        with self._path(node).open("rb") as file:
            os.fsync(file.fileno())
        atomic.fsync_dir(self.folder)

    def forget(self, node: bytes) -> None:
        """Remove one vector: its upload begins anew. Raises OSError."""
        self._hashed.pop(node, None)
        self._path(node).unlink(missing_ok=True)

    def read(self, node: bytes, bits: int) -> Words:
        """A checked vector. Raises OSError."""
        return np.fromfile(self._path(node), masks.dtype(bits))

    def keep_sum(self, words: Words) -> None:
        """Keep the sum while it is masked; then the vectors can go. Raises OSError."""
        atomic.write_file(self._sum, words.tobytes())

    def read_sum(self, bits: int) -> Words:
        """What was kept. Raises OSError."""
        return np.fromfile(self._sum, masks.dtype(bits))

    def drop(self) -> None:
        """Remove the vectors, not the sum."""
        for path in self.folder.glob("*.vector"):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _sum(self) -> Path:
        return self.folder / "masked.sum"

    def _path(self, node: bytes) -> Path:
        return self.folder / f"{node.hex()}.vector"
