"""Disks that are really full: somebody else's file takes what is left."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 1 << 20


def fill(disk: Path, leave: int = 0) -> Path:
    """Somebody else's file takes everything but `leave` bytes."""
    hog = disk / "hog"
    with hog.open("ab", buffering=0) as file:
        while True:
            status = os.statvfs(disk)
            space = status.f_bavail * status.f_frsize - leave
            if space <= 0:
                return hog
            try:
                file.write(b"\0" * min(space, MIB))
            except OSError:
                return hog


@contextmanager
def mounted(mount: Path, mebibytes: int) -> Iterator[None]:
    """A file system of that size on a folder; skips the test where mounting is not permitted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(mount)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)
