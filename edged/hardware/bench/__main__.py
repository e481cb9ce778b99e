"""`python -m edged.hardware.bench`: bounds itself, then serves the orders of edged.hardware.wire until input ends."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
import time
from pathlib import Path

import msgspec

from edged.hardware.bench.manners import give_way
from edged.hardware.wire import MAX_LINE, Failed, Hello, Job

_LOOK_S = 1.0


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints goes where nobody takes it for an answer
    orders = os.fdopen(0, "rb", buffering=0)
    job = msgspec.json.decode(_line(orders), type=Job)
    _bound(job.memory_bytes)
    give_way(job.nice)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # Only now: what follows is what the bounds are for.
    from edged.hardware.bench.server import Server

    try:
        server = Server(job)
    except Exception as error:  # a package that cannot be read, a library that is missing
        _say(answers, Failed(kind="load", reason=f"{error}"[:1000]))
        sys.exit(1)
    _say(answers, Hello())
    while line := _line(orders):
        _say(answers, server.answer(line))


def _bound(memory_bytes: int) -> None:
    """No core files, little priority when memory runs out, and an end to private memory.

    RLIMIT_DATA counts what can be written; RLIMIT_AS would count the address space too, of which GPU runtimes reserve
    hundreds of gigabytes that they never touch.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with(parent: int) -> None:
    """End this process after its parent, even while a library hangs."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


def _line(stream: object) -> bytes:
    read = stream.readline  # type: ignore[attr-defined]
    line: bytes = read(MAX_LINE)
    return line


def _say(descriptor: int, answer: msgspec.Struct) -> None:
    view = memoryview(msgspec.json.encode(answer) + b"\n")
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    main()
