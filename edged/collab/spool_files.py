"""The files of the spool: whole or absent, in 256 directories, with a ballast that a full disk can throw off."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from edgekit.atomic import fsync_dir, write_file

BLOCK = 4096
"""Bytes. Sizes are counted in blocks, because that is what a file costs on the disk."""
BALLAST = 8 << 20
"""Bytes: 2x the log limit of each of the four databases on the disk, so that SQLite can delete on a full one."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def blocks(size: int) -> int:
    """Bytes that a file of `size` bytes takes on the disk."""
    return -(-size // BLOCK) * BLOCK


def is_no_space(error: OSError) -> bool:
    """True if the write failed because there is no room (or the user's quota is used up)."""
    return error.errno in _NO_SPACE


class SampleFiles:
    """Files named by sample id under `root`/<first byte of the id's SHA-256 in hex>/."""

    def __init__(self, root: Path) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root = root

    def path(self, sample_id: str) -> Path:
        """Raises ValueError if the id could be anything but a plain file name."""
        if not _ID.fullmatch(sample_id):
            raise ValueError(f"{sample_id[:80]!r} is no sample id: use 1 to 64 letters, digits, - and _")
        return self._root / hashlib.sha256(sample_id.encode()).hexdigest()[:2] / sample_id

    def write(self, sample_id: str, sealed: bytes) -> None:
        """Durable when it returns: file, name and directory are synced. Raises OSError and leaves nothing behind."""
        path = self.path(sample_id)
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            fsync_dir(self._root)
        write_file(path, sealed)

    def read(self, sample_id: str) -> bytes:
        """Raises OSError."""
        return self.path(sample_id).read_bytes()

    def remove(self, sample_id: str) -> None:
        """Unlink; a file that is gone already is fine. A power cut may bring it back, which recovery handles."""
        self.path(sample_id).unlink(missing_ok=True)

    def exists(self, sample_id: str) -> bool:
        return self.path(sample_id).is_file()

    def scan(self, sweep: bool) -> Iterator[str]:
        """Ids of all whole files; with `sweep` the temporary files of interrupted writes are removed on the way."""
        for directory in self._root.glob("[0-9a-f][0-9a-f]"):
            for entry in list(os.scandir(directory)):
                if entry.name.startswith("."):
                    if sweep:
                        Path(entry.path).unlink(missing_ok=True)
                elif entry.is_file(follow_symlinks=False) and _ID.fullmatch(entry.name):
                    yield entry.name

    def free(self) -> int:
        """Bytes that an ordinary user can still write on this file system."""
        status = os.statvfs(self._root)
        return status.f_bavail * status.f_frsize


class Ballast:
    """A file of no use but its size: removing it gives a full disk the room that deleting rows needs."""

    def __init__(self, path: Path, size: int = BALLAST) -> None:
        self._path = path
        self.size = size

    @property
    def present(self) -> bool:
        return self._path.exists()

    def make(self) -> bool:
        """Allocate it; False if the disk does not allow that now."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self.size)
            finally:
                os.close(descriptor)
        except OSError:
            self.release()
            return False
        return True

    def release(self) -> bool:
        """Remove it; False if there was none to remove."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True
