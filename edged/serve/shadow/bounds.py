"""What a candidate's process may take: what is left now, and nothing that a service needs."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable
from pathlib import Path

from edged.hardware.bench.manners import give_way, leave_a_cpu
from edged.memory import SPARE, Memory, room

BASE = 96 << 20
"""Private bytes of such a process without a model."""
PATIENCE_S = 60.0
"""At a swap the worker before still holds its memory while it drains."""
_LOOK_S = 2.0
_NICE = 19


def yield_to_others() -> None:
    """The last to get a CPU, and the first to go when memory runs out."""
    give_way(_NICE)
    leave_a_cpu()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def need(ref: str, directory: str) -> int:
    """Bytes that the process with this package will probably need."""
    return BASE + Memory().of(ref, {ref: Path(directory)})


def left() -> int:
    """Bytes that this process may have without taking what somebody else needs; below zero where they are missing."""
    found = room()
    return min(found.available - SPARE, found.process)


def await_memory(
    wanted: int,
    there_is: Callable[[], int] = left,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[int, str]:
    """The bytes there are and "", as soon as they are enough; or those there are after PATIENCE_S, and a sentence."""
    until = clock() + PATIENCE_S
    while (found := there_is()) < wanted:
        if clock() >= until:
            return found, f"it would need about {wanted >> 20} MiB of memory, and {max(0, found) >> 20} MiB are left"
        sleep(_LOOK_S)
    return found, ""


def limit_memory(most: int) -> None:
    """Bound what this process may write to. A candidate that wants more fails, and nobody else does."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
