"""What processes have used so far, from /proc: CPU in nanoseconds, memory, when they started."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

_TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """The process and all its descendants; empty if it has ended."""
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.Error:
        return []


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds of all living threads of these processes.

    The scheduler's own count is in nanoseconds; the usual one is in ticks of 10 ms, too coarse for a burst. Take the
    difference of two calls only while no thread ends.
    """
    total = 0
    for pid in pids:
        for task in _tasks(pid):
            try:
                total += int((task / "schedstat").read_bytes().split()[0])
            except (OSError, IndexError):  # it ended meanwhile
                continue
    return total / 1e9


def rss_mb(pids: Iterable[int]) -> float:
    """Resident memory, MiB; shared pages count in each process."""
    total = 0
    for pid in pids:
        try:
            total += psutil.Process(pid).memory_info().rss
        except psutil.Error:
            continue
    return total / (1 << 20)


def age_s(pid: int) -> float:
    """Seconds since the process was started, to 10 ms. Raises FileNotFoundError if it has ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / _TICKS


def descriptors(pid: int) -> int:
    """Open file descriptors."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
