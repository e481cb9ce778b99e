"""The worker's side of a candidate: hands live pictures to its process, one at a time and seldom enough.

A thread of its own talks to the process, so that the event loop does no more than put a decided picture where the
thread finds it. One picture waits, and the newest takes its place: a candidate slower than the line sees some of them.
Whatever happens to the candidate or its process ends the shadow, never the service.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from edged.serve.shadow.wire import (
    MAX_PICTURE,
    Answered,
    FromShadow,
    Loaded,
    Look,
    Looked,
    Order,
    Refused,
    ToShadow,
)
from edged.spawn import worker_environment
from edgekit.envelope import EnvelopeError, FrameReader, seal
from edgekit.messages import UNSEEN, Answer, Decision, HardSample, Level, ShadowReport

log = logging.getLogger("edged.serve")

SHARE = 0.25
"""Of one CPU, for all candidates of a worker together."""
MAX_ANSWERS = 1000
"""Late answers that may wait for the process."""
ANSWER_S = 600.0
"""Seconds without an answer after which the process hangs. It gives way to everybody, so it may have to wait long."""
END_S = 5.0
"""A process that has closed its end gets so long to end."""
_READ = 1 << 20


class Notify(Protocol):
    """ControlChannel.notify."""

    def __call__(self, level: Level, code: str, text: str, *, passing: bool = False) -> None: ...


class ShadowError(RuntimeError):
    """The candidate cannot look at pictures, or no longer; the text says why."""


class Shadow:
    """One service's candidate. Use it on the event loop; `start` it when everything else is loaded."""

    def __init__(
        self,
        service: str,
        order: Order,
        notify: Notify,
        share: float = SHARE,
        failure: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`share`: of one CPU, over 0 and up to 1. `failure`: why it cannot run at all, "" if it may be tried."""
        self._service, self._order, self._notify, self._clock = service, order, notify, clock
        self._rest = 1 / share - 1  # seconds of rest for each second of work
        self._changed = threading.Condition()
        # Under its lock:
        self._next: tuple[Look, bytes] | None = None
        self._answers: deque[Answered] = deque(maxlen=MAX_ANSWERS)
        self._process: _Process | None = None
        self._over = False
        self._skipped = 0
        self._report = ShadowReport(candidate=order.candidate)
        if failure:
            self._fail(failure)

    def start(self) -> None:
        """Load the candidate, then look. Returns at once."""
        if not self._over:
            threading.Thread(target=self._run, name=f"shadow-{self._service}", daemon=True).start()

    def offer(self, decision: Decision, picture: bytes | bytearray) -> None:
        """A picture was decided. Never raises, and never waits for more than another thread's assignment."""
        if self._over or decision.edge.label == UNSEEN or len(picture) > MAX_PICTURE:
            return
        cloud = decision.cloud.label if decision.cloud is not None else None
        look = Look(sample_id=decision.sample_id, present=decision.edge.label, sent=decision.sent, cloud=cloud)
        with self._changed:
            self._skipped += self._next is not None
            self._next = look, bytes(picture)
            self._changed.notify()

    def answered(self, header: HardSample, answer: Answer) -> None:
        """The cloud's answer to a sample came after its decision. Never raises."""
        if self._over or header.mosaic is not None:
            return
        cloud = answer.verdict.label
        with self._changed:
            if self._next is not None and self._next[0].sample_id == header.sample_id:
                look, picture = self._next
                self._next = msgspec.structs.replace(look, cloud=cloud), picture
                return
            self._answers.append(Answered(sample_id=header.sample_id, cloud=cloud))
            self._changed.notify()

    def report(self) -> ShadowReport:
        """What it has counted until now; the newest answers are a picture behind."""
        return msgspec.structs.replace(self._report, skipped=self._skipped)

    def stop(self) -> None:
        """End it. Returns at once; what it looks at now is not counted."""
        with self._changed:
            self._over, self._next = True, None
            if self._process is not None:
                self._process.kill()
            self._changed.notify()

    # --- in its thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            process = _Process()
        except OSError as error:
            self._fail(f"its process cannot be started: {error.strerror or error}")
            return
        try:
            with self._changed:
                self._process = process
                if self._over:
                    return
            process.load(self._order)
            log.info("%s looks at the pictures of %s from now on", self._order.candidate, self._service)
            self._look(process)
        except ShadowError as error:
            self._fail(str(error))
        except Exception as error:  # a fault of ours must not look like a shadow that goes on
            log.exception("the shadow of %s failed in a way it should not", self._service)
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            with self._changed:
                self._process = None
            process.end()

    def _look(self, process: _Process) -> None:
        free_at = 0.0
        while (taken := self._take(free_at)) is not None:
            looked = process.ask(*taken)
            free_at = max(free_at, self._clock() + looked.busy_s * self._rest)
            self._report = looked.report

    def _take(self, free_at: float) -> tuple[ToShadow, bytes] | None:
        """The next frame, as soon as there is one and, for a picture, it has rested; None: it is over."""
        with self._changed:
            while not self._over:
                rest = free_at - self._clock()
                if self._answers:
                    return self._answers.popleft(), b""
                if self._next is not None and rest <= 0.0:
                    taken, self._next = self._next, None
                    return taken
                self._changed.wait(rest if self._next is not None else None)
        return None

    def _fail(self, reason: str) -> None:
        with self._changed:
            if self._over:  # told to stop: that is no failure
                return
            self._over, self._next = True, None
        self._report = msgspec.structs.replace(self._report, failure=reason)
        text = f"The candidate {self._order.candidate} does not look at the pictures of {self._service}: {reason}."
        self._notify("warning", f"shadow:{self._service}", text, passing=True)


class _Process:
    """The candidate's process. For one thread, but for `kill`."""

    def __init__(self) -> None:
        """Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-P", "-m", "edged.serve.shadow", "--fd", str(theirs.fileno())],
                    env=worker_environment(),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
            except BaseException:
                ours.close()
                raise
        ours.settimeout(ANSWER_S)
        self._connection = ours
        self._reader = FrameReader(0)
        self._decoder: msgspec.json.Decoder[FromShadow] = msgspec.json.Decoder(FromShadow)

    def load(self, order: Order) -> None:
        """Raises ShadowError."""
        reply = self._exchange(order, b"")
        if isinstance(reply, Refused):
            raise ShadowError(reply.reason)
        if not isinstance(reply, Loaded):
            raise ShadowError("its process answered its order with something else")

    def ask(self, message: ToShadow, picture: bytes) -> Looked:
        """Raises ShadowError."""
        reply = self._exchange(message, picture)
        if not isinstance(reply, Looked):
            raise ShadowError("its process answered a picture with something else")
        return reply

    def kill(self) -> None:
        """From any thread; who waits for an answer hears of it."""
        self._child.kill()

    def end(self) -> None:
        """Take its exit status."""
        self._child.kill()
        self._child.wait()
        self._connection.close()

    def _exchange(self, message: Order | ToShadow, payload: bytes) -> FromShadow:
        try:
            self._connection.sendall(seal(message, payload))
            while data := self._connection.recv(_READ):
                for header, _ in self._reader.feed(data):
                    return self._decoder.decode(header)
        except TimeoutError:
            raise ShadowError(f"its process did not answer within {ANSWER_S:.0f} s") from None
        except (EnvelopeError, msgspec.MsgspecError) as error:
            raise ShadowError(f"its process sent something that is no answer: {error}") from None
        except OSError as error:
            log.debug("the process of a candidate: %s", error)
        raise ShadowError(self._obituary())

    def _obituary(self) -> str:
        try:
            status = self._child.wait(END_S)
        except subprocess.TimeoutExpired:
            return "its process hung up"
        if status == -signal.SIGKILL:
            return "its process was killed, as the system does when memory runs out"
        if status < 0:
            return f"its process was ended by {signal.Signals(-status).name}"
        return f"its process ended with the status {status}"
