"""Unix sockets in directories with long names: sockaddr_un holds 107 bytes, a path may have 4095."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_LONGEST = 100


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for bind or connect that fits, however long the name of the socket's directory is."""
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
