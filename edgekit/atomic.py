"""Files that are whole or absent, whatever instruction the power fails at."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)


def fsync_dir(path: Path) -> None:
    """Make the names in a directory durable: a rename is lost in a power cut until its directory is synced."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    The mode is set before the first byte is written, whatever the umask. Raises OSError; then the old file stands and
    nothing is left beside it. (If only the directory cannot be synced, the new one stands but is not durable yet.)
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def sweep(*directories: Path) -> None:
    """Remove what a `write_file` that was killed left in these directories (not below them); missing ones are fine.

    Call it at start, before anything writes there. Raises OSError.
    """
    for directory in directories:
        for entry in directory.iterdir() if directory.is_dir() else ():
            if _TEMPORARY.fullmatch(entry.name):
                entry.unlink(missing_ok=True)
