"""Giving way: what a process does to itself so that others hardly notice it. Standard library only."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_AUTOGROUP = Path("/proc/self/autogroup")


def give_way(nice: int) -> None:
    """Add `nice` to this process's niceness, 0: nothing.

    Where the kernel groups processes by session (sched_autogroup, usual on desktops and in virtual machines), niceness
    counts within a session only, and a child with a session of its own would get as much as all of its parent's. The
    group's own niceness is set too then; never that of a group which others are in.
    """
    if not nice:
        return
    os.nice(nice)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # there is no such grouping, or it is changed too often
            _AUTOGROUP.write_text(str(min(19, nice)))
