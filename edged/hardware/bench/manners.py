"""Giving way: what a process does to itself so that others hardly notice it. Standard library only."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_AUTOGROUP = Path("/proc/self/autogroup")
_CPUS = Path("/sys/devices/system/cpu")


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


def leave_a_cpu(cpus: Path = _CPUS) -> int:
    """Keep this process off one of its CPUs, the strongest; how many it has left. With one CPU only it keeps that.

    For jobs that compute for minutes. A kernel without preemption gives even the least important process a whole tick
    (4 ms at 250 Hz) when its turn has come: with every CPU busy 1 to 3 % of the answers waited for that, p99 1.3 times
    that of the line alone (`benchmarks.interference`), whatever the niceness or class; with a CPU left, 1.1 times.
    """
    allowed = os.sched_getaffinity(0)
    if len(allowed) > 1:
        allowed -= {max(allowed, key=lambda cpu: (_capacity(cpus, cpu), cpu))}
        os.sched_setaffinity(0, allowed)
    return len(allowed)


def _capacity(cpus: Path, cpu: int) -> int:
    """What a CPU can do, 1024 for the strongest of a board with unequal ones; 0 where they are all alike."""
    try:
        return int((cpus / f"cpu{cpu}" / "cpu_capacity").read_text())
    except (OSError, ValueError):
        return 0
