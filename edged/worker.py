"""One worker process as its supervisor sees it: frames both ways, drain, and when to start the next one.

A worker gets a socket pair that carries envelopes of ToWorker and FromWorker, and the listening inference socket, which
the supervisor keeps open so that connections queue while there is no worker. Two more bring it the idle connections of
the worker before and take its own to the next one (`edged.handover`); their numbers are in its configuration. The
worker ends itself when its parent dies (PR_SET_PDEATHSIG) and when the control socket closes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable

import msgspec

from edged.spawn import Spawned
from edgekit.envelope import EnvelopeError, FrameReader, seal
from edgekit.messages import (
    Configure,
    Drain,
    Event,
    FromWorker,
    ModelWanted,
    Ready,
    RunSetting,
    SettingFailed,
    ToWorker,
    WorkerReport,
)

log = logging.getLogger("edged.worker")

CRASHES = 5
"""Five crashes in a row (within 8 s of waiting) are no accident: the health list says so, the retries become slow."""
PEACE_S = 60.0
"""Seconds between two crashes after which they do not belong together. Longer than SLOW_DELAY_S and a usual start."""
FIRST_DELAY_S = 0.5
SLOW_DELAY_S = 30.0
_TERMINATE_S = 3.0
_READ = 65_536

Told = Event | SettingFailed | ModelWanted
"""What a worker says that is neither Ready nor a report."""

_decoder: msgspec.json.Decoder[FromWorker] = msgspec.json.Decoder(FromWorker)


class RestartPolicy:
    """How long to wait before the next start. Pure: the caller passes a monotonic time in seconds.

    The first crash is answered at once; then the wait doubles from 0.5 s to 30 s. A long enough peace forgives.
    """

    def __init__(self) -> None:
        self._streak = 0
        self._last = 0.0

    def crashed(self, now: float) -> float:
        """Record a crash at `now`; the seconds to wait before the next start."""
        self._streak = 1 if now - self._last > PEACE_S else self._streak + 1
        self._last = now
        return 0.0 if self._streak == 1 else min(FIRST_DELAY_S * 2.0 ** (self._streak - 2), SLOW_DELAY_S)

    def looping(self, now: float) -> bool:
        """True from the fifth crash of a streak on, until the peace has lasted."""
        return self._streak >= CRASHES and now - self._last <= PEACE_S

    def forget(self) -> None:
        """Somebody changed something: start afresh."""
        self._streak = 0


class Worker:
    """A started worker process. Create it with `Worker.start` inside a running event loop."""

    def __init__(self, spawned: Spawned) -> None:
        self.pid = spawned.process.pid
        self.handed = spawned.handed
        """Here come the idle connections that it gives away when it is drained. Whoever drains it closes this."""
        self.started_at = time.time()
        self.ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Exit status; negative is minus the signal number."""
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Drained for a successor: what a client begins from then on goes to that one."""
        self.report: WorkerReport | None = None
        self.settings: dict[str, RunSetting] = {}
        """How its services' models run. What it could not use while it loaded is not in it."""
        self.last_seen = time.monotonic()
        self._process = spawned.process
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._pidfd = os.pidfd_open(spawned.process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @classmethod
    async def start(cls, configure: Configure, spawned: Spawned, on_event: Callable[[Worker, Told], None]) -> Worker:
        """Configure a worker that has been spawned. Raises OSError if it cannot be watched."""
        worker = cls(spawned)
        reader, worker._writer = await asyncio.open_unix_connection(sock=spawned.control)
        worker._task = asyncio.create_task(worker._read(reader, on_event), name=f"worker {worker.pid}")
        worker.settings = dict(configure.settings)
        worker.send(msgspec.structs.replace(configure, send_fd=spawned.send_fd, receive_fd=spawned.receive_fd))
        return worker

    @property
    def alive(self) -> bool:
        return not self.exited.done()

    def send(self, message: ToWorker) -> None:
        """Queue one frame. A worker that is gone or going does not mind."""
        if self._writer is not None and not self._writer.is_closing() and self.alive:
            self._writer.write(seal(message))

    async def drain(self, timeout_s: float, *, handover: bool = False) -> int:
        """Let it finish what is in flight, then see it out: Drain, SIGTERM, SIGKILL. Returns its exit status.

        `handover`: it sends its idle connections to `handed`.
        """
        self.send(Drain(handover=handover))
        for wait_s, then in ((timeout_s, signal.SIGTERM), (_TERMINATE_S, signal.SIGKILL)):
            done, _ = await asyncio.wait([self.exited], timeout=wait_s)
            if done:
                break
            log.warning("The worker %d did not end within %.0f s; sending it %s.", self.pid, wait_s, then.name)
            self._signal(then)
        return await self.exited

    def kill(self) -> None:
        """End it at once. Await `exited` to know that it is gone."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.alive:
            self._process.send_signal(number)

    async def _read(self, reader: asyncio.StreamReader, on_event: Callable[[Worker, Told], None]) -> None:
        frames = FrameReader(max_payload=0)
        try:
            while data := await reader.read(_READ):
                for header, _ in frames.feed(data):
                    self._take(_decoder.decode(header), on_event)
        except (EnvelopeError, msgspec.DecodeError) as error:
            log.error("The worker %d sent something that is no message (%s); it is ended.", self.pid, error)
            self.kill()
        except ConnectionError:
            pass  # the exit status says the rest
        finally:
            if self._writer is not None:
                self._writer.close()

    def _take(self, message: FromWorker, on_event: Callable[[Worker, Told], None]) -> None:
        self.last_seen = time.monotonic()
        if isinstance(message, Ready):
            if not self.ready.done():
                self.ready.set_result(message)
        elif isinstance(message, WorkerReport):
            self.report = message
            if message.leaving and not self.left.done():
                self.left.set_result(None)
        else:
            if isinstance(message, SettingFailed) and not self.ready.done():
                self.settings.pop(message.service, None)
            on_event(self, message)

    def _reap(self) -> None:
        status = self._process.poll()
        if status is None:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.exited.set_result(status)


def describe_exit(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
