"""`python -m edged.train`: bounds itself, reads one TrainOrder from stdin, tells events on stdout, ends with one."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import msgspec

from edged.background import be_the_only_one, end_with_parent, take_the_least
from edgekit.messages.learning import MAX_LINE, MAX_ORDER, FromTraining, TrainOrder, TrainStopped

LOCK = "lock"


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until there is somebody who hears it
    events = os.dup(1)
    os.dup2(2, 1)  # what a library prints goes where nobody takes it for an event
    end_with_parent()
    data = sys.stdin.buffer.read(MAX_ORDER + 1)
    try:
        if len(data) > MAX_ORDER:
            raise msgspec.MsgspecError(f"it has more than {MAX_ORDER} bytes")
        order = msgspec.json.decode(data, type=TrainOrder)
    except msgspec.MsgspecError as error:
        _end(events, TrainStopped(kind="refused", reason=f"the order cannot be read: {error}", resumable=False))
    take_the_least()
    try:
        scratch = Path(order.scratch)
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        guard = be_the_only_one(scratch / LOCK, "works on this job")
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
    if order.rung == "cloud":
        from edged.train.retraining_client import waits

        if (stopped := waits(order)) is not None:
            return stopped
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
    os._exit(1 if isinstance(event, TrainStopped) and event.kind in ("failed", "refused") else 0)


if __name__ == "__main__":
    main()
