"""Reading the directory of a package without ever following a link out of it.

Every path is walked from one directory descriptor, component by component, with O_NOFOLLOW: a symlink in any place, a
FIFO, a socket or a device is an error and never opened for reading.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit import toml
from edgekit.packages.manifest import MAX_FILES, PackageError

MAX_FILE_SIZE = 4 << 30
"""Bytes of one file."""
MAX_TOTAL_SIZE = 8 << 30
"""Bytes of one package."""
_MAX_DEPTH = 16
_CHUNK = 1 << 20


@contextmanager
def open_root(root: Path) -> Iterator[int]:
    """A descriptor of the package directory. Raises PackageError if it is none or cannot be read."""
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PackageError(f"{root} cannot be opened as a package directory: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def open_file(root: int, path: str) -> Iterator[tuple[int, int]]:
    """Open a regular file below `root`; yields (descriptor, size). Raises PackageError on anything else."""
    *folders, name = path.split("/")
    opened: list[int] = []
    try:
        here = root
        for folder in folders:
            here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            opened.append(here)
        # O_NONBLOCK: opening a FIFO must not wait for its writer. It changes nothing for a regular file.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
        opened.append(descriptor)
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise PackageError(f"{toml.show(path)} is {_kind(state.st_mode)}; only regular files are allowed")
        if state.st_size > MAX_FILE_SIZE:
            raise PackageError(f"{toml.show(path)} has {state.st_size} bytes; {MAX_FILE_SIZE} are allowed")
        yield descriptor, state.st_size
    except OSError as error:
        raise PackageError(_why(root, path, error)) from None
    finally:
        for descriptor in reversed(opened):
            os.close(descriptor)


def digest_file(descriptor: int, write: Callable[[bytes], object] | None = None) -> tuple[str, int]:
    """SHA-256 (hex) and size of an open file; hands each block to `write`. Raises PackageError above MAX_FILE_SIZE."""
    digest = hashlib.sha256()
    size = 0
    while block := os.read(descriptor, _CHUNK):
        size += len(block)
        if size > MAX_FILE_SIZE:  # it grows while it is read
            raise PackageError(f"a file has more than {MAX_FILE_SIZE} bytes")
        digest.update(block)
        if write is not None:
            write(block)
    return digest.hexdigest(), size


def read_file(root: int, path: str, max_bytes: int) -> bytes:
    """The bytes of one small file. Raises PackageError if it is larger than `max_bytes` or not a regular file."""
    with open_file(root, path) as (descriptor, size):
        if size > max_bytes:
            raise PackageError(f"{toml.show(path)} has {size} bytes; {max_bytes} are allowed")
        blocks = []
        left = max_bytes + 1
        while left and (block := os.read(descriptor, min(left, _CHUNK))):
            blocks.append(block)
            left -= len(block)
        if not left:
            raise PackageError(f"{toml.show(path)} has more than {max_bytes} bytes")
        return b"".join(blocks)


def list_files(root: int) -> list[str]:
    """Every regular file below `root`, sorted. Raises PackageError on links, special files, too many or too deep."""
    found: list[str] = []
    _scan(root, "", 0, found)
    return sorted(found)


def _scan(folder: int, prefix: str, depth: int, found: list[str]) -> None:
    if depth > _MAX_DEPTH:
        raise PackageError(f"{toml.show(prefix)} is nested deeper than {_MAX_DEPTH} directories")
    with os.scandir(folder) as entries:
        names = [(entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries]
    for name, mode in names:
        path = prefix + name
        if stat.S_ISDIR(mode):
            try:
                child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            except OSError as error:
                raise PackageError(f"{toml.show(path)} cannot be read: {error.strerror}") from None
            try:
                _scan(child, path + "/", depth + 1, found)
            finally:
                os.close(child)
        elif stat.S_ISREG(mode):
            found.append(path)
            if len(found) > MAX_FILES + 1:  # and package.toml
                raise PackageError(f"it holds more than {MAX_FILES} files")
        else:
            raise PackageError(f"{toml.show(path)} is {_kind(mode)}; only regular files are allowed")


def _why(root: int, path: str, error: OSError) -> str:
    """Name the component that stopped the walk: a link looks like ELOOP or ENOTDIR, depending on where it stands."""
    here = ""
    for part in path.split("/"):
        here = f"{here}/{part}" if here else part
        try:
            mode = os.stat(here, dir_fd=root, follow_symlinks=False).st_mode
        except OSError:
            break
        if stat.S_ISLNK(mode):
            return f"{toml.show(here)} is a symbolic link; only regular files are allowed"
    if isinstance(error, FileNotFoundError):
        return f"{toml.show(path)} is missing"
    return f"{toml.show(path)} cannot be read: {error.strerror}"


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    return "a device or socket"
