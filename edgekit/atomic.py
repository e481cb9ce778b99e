"""Files and folders that are whole or absent, whatever instruction the power fails at."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to be filled, which becomes `path` when the block ends; then all in it is durable.

    It is hidden beside `path`, under a name of its own that the next try for the same path takes over: one writer at a
    time. Where the block raises, nothing stays. Raises OSError, also if `path` is there and is not an empty folder.
    """
    staged = path.with_name(f".{path.name}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
        sync_tree(staged)
        staged.rename(path)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    fsync_dir(path.parent)


def sync_tree(root: Path) -> None:
    """Make every file and name below a folder durable; what is no ordinary file is passed over. Raises OSError."""
    for folder, _, names in os.walk(root, topdown=False, onerror=_fail):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                fsync_file(path)
        fsync_dir(Path(folder))


def fsync_file(path: Path) -> None:
    """Make the content of a file durable. Raises OSError, also for a link."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fail(error: OSError) -> None:
    raise error


def sweep(*directories: Path) -> None:
    """Remove what a `write_file` that was killed left in these directories (not below them); missing ones are fine.

    Call it at start, before anything writes there. Raises OSError.
    """
    for directory in directories:
        for entry in directory.iterdir() if directory.is_dir() else ():
            if _TEMPORARY.fullmatch(entry.name):
                entry.unlink(missing_ok=True)
