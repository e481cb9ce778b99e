"""`python -m edged.train`: bounds itself, reads one TrainOrder from stdin, tells events on stdout, ends with one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import sys
import threading
import time
from io import BufferedWriter
from pathlib import Path
from typing import NoReturn

import msgspec

from edged.hardware.bench.manners import give_way, leave_a_cpu
from edgekit.messages.learning import MAX_LINE, MAX_ORDER, FromTraining, TrainOrder, TrainStopped

NICE = 19
LOCK = "lock"
_LOOK_S = 1.0
_LOCK_S = 10.0
"""So long a process of the same job that lost its supervisor may take to notice."""


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until there is somebody who hears it
    events = os.dup(1)
    os.dup2(2, 1)  # what a library prints goes where nobody takes it for an event
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    data = sys.stdin.buffer.read(MAX_ORDER + 1)
    try:
        if len(data) > MAX_ORDER:
            raise msgspec.MsgspecError(f"it has more than {MAX_ORDER} bytes")
        order = msgspec.json.decode(data, type=TrainOrder)
    except msgspec.MsgspecError as error:
        _end(events, TrainStopped(kind="refused", reason=f"the order cannot be read: {error}", resumable=False))
    _bound()
    try:
        scratch = Path(order.scratch)
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        guard = _lock(scratch / LOCK)
    except OSError as error:
        reason = f"its folder cannot be used: {error.strerror or error}"
        _end(events, TrainStopped(kind="failed", reason=reason, resumable=True))
    with guard:
        _end(events, _work(order, events))


def _work(order: TrainOrder, events: int) -> FromTraining:
    # Only now: what follows is what the bounds are for.
    from edged.hardware.host import RealHost
    from edged.train.pace import Pace
    from edged.train.sensors import machine

    sensors = machine(RealHost())
    pace = Pace(order.budget, sensors, time.monotonic, time.sleep, lambda progress: _say(events, progress))
    signal.signal(signal.SIGTERM, lambda *_: pace.pause("it was asked to pause"))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    try:
        from edged.train.job import run
    except ImportError as error:
        reason = f'{error.name or error} is not installed; install it with: pip install "edged-cloudd[train]"'
        return TrainStopped(kind="refused", reason=reason, resumable=False)
    try:
        return run(order, pace, time.monotonic, sensors)
    except Exception as error:  # a fault of ours must not look like a crash of the machine
        import traceback

        traceback.print_exc()
        return TrainStopped(
            kind="failed", reason=f"{type(error).__name__}: {error}"[:1000], resumable=False, seconds=pace.seconds
        )


def _bound() -> None:
    """No core files, the least of everything, and first to go when memory runs out."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # numpy's own threads are none that the order allows
        os.environ.setdefault(name, "1")
    give_way(max(0, NICE - os.nice(0)))
    leave_a_cpu()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    import psutil

    with contextlib.suppress(OSError, psutil.Error):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def _lock(path: Path) -> BufferedWriter:
    """Be the only process of this job. Raises OSError."""
    file = path.open("ab")
    end = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                file.close()
                raise OSError(f"another process works on this job ({path})") from None
            time.sleep(0.1)
        else:
            return file


def _end_with(parent: int) -> None:
    """End this process after its parent. What was saved stays, and the next process goes on from there."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


def _say(descriptor: int, event: FromTraining) -> None:
    data = msgspec.json.encode(event)
    assert len(data) < MAX_LINE
    view = memoryview(data + b"\n")
    while view:
        view = view[os.write(descriptor, view) :]


def _end(descriptor: int, event: FromTraining) -> NoReturn:
    """Say the last event and leave, without waiting for threads of libraries."""
    with contextlib.suppress(BrokenPipeError):
        _say(descriptor, event)
    sys.stderr.flush()
    os._exit(1 if isinstance(event, TrainStopped) and event.kind != "paused" else 0)


if __name__ == "__main__":
    main()
