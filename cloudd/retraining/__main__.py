"""`python -m cloudd.retraining`: reads one WorkOrder from stdin, tells events on stdout, ends with one Ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import msgspec

from cloudd.retraining.order import Ended, Event, Progress, WorkOrder

NICE = 19
_EVERY_S = 0.5
_LOOK_S = 0.5
_MAX_ORDER = 1 << 16


def main() -> NoReturn:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until there is somebody who hears it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches us too, but cloudd decides
    events = os.dup(1)
    os.dup2(2, 1)  # what a library prints goes where nobody takes it for an event
    _end_with_parent()
    os.nice(max(0, NICE - os.nice(0)))
    try:
        order = msgspec.json.decode(sys.stdin.buffer.read(_MAX_ORDER), type=WorkOrder)
    except msgspec.MsgspecError as error:
        _end(events, Ended(kind="failed", reason=f"the order cannot be read: {error}"))
    with (Path(order.folder) / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one that lost its daemon notices in a moment
        _end(events, _work(order, events))


def _work(order: WorkOrder, events: int) -> Ended:
    from cloudd.retraining.course import Pausing
    from cloudd.retraining.working import run

    pausing = Pausing()
    signal.signal(signal.SIGTERM, lambda *_: pausing.ask())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    told = ("", 0.0)

    def say(text: str, done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if text != told[0] or now - told[1] >= _EVERY_S:
            told = text, now
            _say(events, Progress(text=text, done=done, total=total))

    try:
        return run(order, pausing, say)
    except Exception as error:  # a fault of ours must not look like a crash of the machine
        import traceback

        traceback.print_exc()
        return Ended(kind="failed", reason=f"{type(error).__name__}: {error}"[:1000])


def _end_with_parent() -> None:
    """What was saved stays, and the next process goes on from there."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _say(descriptor: int, event: Event) -> None:
    view = memoryview(msgspec.json.encode(event) + b"\n")
    while view:
        view = view[os.write(descriptor, view) :]


def _end(descriptor: int, event: Ended) -> NoReturn:
    """Say the last word and leave, without waiting for threads of libraries."""
    with contextlib.suppress(BrokenPipeError):
        _say(descriptor, event)
    sys.stderr.flush()
    os._exit(0 if event.kind in ("done", "paused") else 1)


if __name__ == "__main__":
    main()
