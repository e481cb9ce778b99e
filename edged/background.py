"""What every process does that learns in the background: take the least of everything, be the only one, end in time."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import threading
import time
from io import BufferedWriter
from pathlib import Path

from edged.hardware.bench.manners import give_way, leave_a_cpu

NICE = 19
_LOOK_S = 1.0
_LOCK_S = 10.0
"""So long another process, which lost its supervisor, may take to notice."""
_MMAP_THRESHOLD, _LARGE = -3, 131072
"""glibc's M_MMAP_THRESHOLD and its first value, bytes."""


def take_the_least() -> None:
    """No core files, the least priority, a CPU left to the line, and first to go when memory runs out."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # numpy's own threads are none that the order allows
        os.environ.setdefault(name, "1")
    give_memory_back()
    give_way(max(0, NICE - os.nice(0)))
    leave_a_cpu()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    import psutil

    with contextlib.suppress(OSError, psutil.Error):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def give_memory_back() -> None:
    """From now on every large block that is freed goes back to the system at once.

    glibc raises the threshold by itself with every such block, up to 32 MiB, and keeps what is freed below it: after a
    network of 45 MB was opened, 14 to 19 MiB stayed that nothing used. A training step takes as long as before.
    """
    with contextlib.suppress(AttributeError):  # another C library, which does not keep them
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


def be_the_only_one(path: Path, what: str) -> BufferedWriter:
    """Hold the lock `path` as long as the file is open; `what` the other one does, for people. Raises OSError."""
    file = path.open("ab")
    end = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                file.close()
                raise OSError(f"another process {what} ({path})") from None
            time.sleep(0.1)
        else:
            return file


def end_with_parent() -> None:
    """From now on this process ends after its parent. What was saved stays, and the next one goes on from there."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
