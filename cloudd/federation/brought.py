"""Sums of the upper job on their way to a site's job: files that grow part by part, named by their hash."""

from __future__ import annotations

from pathlib import Path

from cloudd.federation.vectors import Vectors

_MOST = 64
"""Files at a time: a robust job publishes one sum a bucket. Beyond, all begin anew."""


class Brought:
    """Below `folder`, each of `size` bytes. Blocking: for threads, one at a time."""

    def __init__(self, folder: Path, size: int) -> None:
        self._vectors = Vectors(folder, size)

    def write(self, sha256: str, offset: int, data: bytes) -> int:
        """Append a part, which may be empty; returns the bytes that are there.

        Raises FederationError for a part that does not go on there and where the disk has no room, OSError.
        """
        node, folder = bytes.fromhex(sha256), self._vectors.folder
        if not self._vectors.received(node):
            if folder.is_dir() and sum(1 for _ in folder.iterdir()) >= _MOST:
                self._vectors.remove()
            self._vectors.prepare(1)
        return self._vectors.write(node, offset, data) if data else self._vectors.received(node)

    def read(self, sha256: str) -> bytes:
        """A whole sum with this hash. Raises FederationError, and forgets a wrong one; OSError."""
        node = bytes.fromhex(sha256)
        self._vectors.settle(node, sha256)
        return self._vectors.read(node, 16).tobytes()

    def remove(self) -> None:
        """Remove everything."""
        self._vectors.remove()
