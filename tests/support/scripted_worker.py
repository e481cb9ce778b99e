"""A worker process that speaks the supervisor's protocol and misbehaves on demand: the service's deadline says how.

Run as `python scripted_worker.py CONTROL_FD HTTP_FD LOG`. It appends `start PID name:deadline...`, `drain PID` to LOG.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import msgspec

from edgekit.envelope import FrameReader, seal
from edgekit.messages import (
    Configure,
    Drain,
    Event,
    ModelReport,
    ModelWanted,
    Ready,
    ServiceReport,
    SpoolReport,
    ToWorker,
    WorkerReport,
)
from edgekit.services import parse_service

SEGFAULT, FAIL, HANG, EXIT, TROUBLE, ASK = 601, 602, 603, 604, 605, 606
BAD_MODEL = "bad@1"
"""A model without a service that cannot be loaded."""


def main() -> None:
    control, log = socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[3])
    frames = FrameReader(max_payload=0)

    def say(text: str) -> None:
        with log.open("a") as file:
            file.write(f"{text}\n")

    ready = False
    reports: list[ServiceReport] = []
    control.settimeout(0.2)
    while True:
        try:
            data = control.recv(65_536)
        except TimeoutError:
            if ready:
                spool = SpoolReport(items=0, bytes=0, quota=1)
                control.sendall(seal(WorkerReport(services=reports, spool=spool, rss=1 << 20)))
            continue
        if not data:
            os._exit(0)
        for header, _ in frames.feed(data):
            message = msgspec.json.decode(header, type=ToWorker)
            if isinstance(message, Configure):
                services = [parse_service(text, "test") for text in message.services]
                say(f"start {os.getpid()} " + " ".join(f"{s.name}:{s.deadline_ms:g}:{s.model}" for s in services))
                say(f"configure {msgspec.json.encode(message).decode()}")
                deadlines = {service.deadline_ms for service in services}
                if SEGFAULT in deadlines:
                    os.kill(os.getpid(), signal.SIGSEGV)
                if EXIT in deadlines:
                    os._exit(9)
                while HANG in deadlines:
                    time.sleep(1)
                reports = [
                    ServiceReport(
                        name=service.name,
                        model=service.model,
                        state="failed" if service.deadline_ms == FAIL else "ready",
                        detail="the model said no" if service.deadline_ms == FAIL else "",
                    )
                    for service in services
                ]
                models = [
                    ModelReport(
                        model=ref,
                        state="failed" if ref == BAD_MODEL else "ready",
                        detail="it does not load" if ref == BAD_MODEL else "",
                    )
                    for ref in message.models
                ]
                control.sendall(seal(Ready(services=reports, models=models)))
                if ASK in deadlines:
                    control.sendall(seal(ModelWanted(ticket=7, ref="m")))
                ready = True
                for service in services:
                    if service.deadline_ms == TROUBLE:
                        code = f"folder:{service.name}"
                        control.sendall(seal(Event(level="warning", code=code, text="no folder", at=time.time())))
            elif isinstance(message, Drain):
                say(f"drain {os.getpid()}")
                for code, passing in (("output-lost:/x", True), ("last-words", False)):
                    word = Event(level="error", code=code, text="3 decisions", at=time.time(), passing=passing)
                    control.sendall(seal(word))
                os._exit(0)
            else:
                say(f"got {type(message).__name__}")


if __name__ == "__main__":
    main()
