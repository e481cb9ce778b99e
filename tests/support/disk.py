"""Disks that are really full: somebody else's file takes what is left."""

from __future__ import annotations

import os
from pathlib import Path

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
