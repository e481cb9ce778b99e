"""`edged.train` in a process of its own, as the supervisor sees it: an order in, progress and one last word out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edged.spawn import worker_environment
from edged.worker import describe_exit
from edgekit.messages.learning import MAX_LINE, FromTraining, TrainDone, TrainOrder, TrainProgress, TrainStopped

log = logging.getLogger("edged.learning")

_decoder: msgspec.json.Decoder[FromTraining] = msgspec.json.Decoder(FromTraining)

LastWord = TrainDone | TrainStopped


class Died(msgspec.Struct, frozen=True):
    """The process ended without a last word."""

    how: str


class Training:
    """One run of the process. Belongs to one event loop."""

    def __init__(self, process: asyncio.subprocess.Process, service: str) -> None:
        self.service = service
        self.progress: TrainProgress | None = None
        self._process = process
        self._task = asyncio.create_task(self._follow(), name=f"training {process.pid}")

    @classmethod
    async def start(cls, order: TrainOrder, directory: Path, command: Sequence[str]) -> Training:
        """Start it in the existing, empty `directory` and give it its order. Raises OSError."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=directory,
            env=worker_environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE + 1,
        )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(order))
        with contextlib.suppress(ConnectionError):  # how it ended says more
            process.stdin.write_eof()
        return cls(process, order.service)

    @property
    def outcome(self) -> LastWord | Died | None:
        """How it ended, None while it works."""
        return self._task.result() if self._task.done() else None

    @property
    def ended(self) -> asyncio.Task[LastWord | Died]:
        """Done when it has ended."""
        return self._task

    async def stop(self, timeout_s: float) -> LastWord | Died:
        """Let it save and end; kill it after the time."""
        self._signal(signal.SIGTERM)
        done, _ = await asyncio.wait([self._task], timeout=timeout_s)
        if not done:
            self._signal(signal.SIGKILL)
        return await self._task

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _follow(self) -> LastWord | Died:
        last: LastWord | None = None
        problem = ""
        try:
            last = await self._listen()
        except (msgspec.DecodeError, ValueError) as error:  # ValueError: a line without an end
            problem = f"it said something that is no event ({error})"
            self._signal(signal.SIGKILL)
        status = await self._process.wait()
        if last is not None:
            return last
        return Died(problem or f"it ended with {describe_exit(status)}")

    async def _listen(self) -> LastWord | None:
        assert self._process.stdout is not None
        last: LastWord | None = None
        while line := await self._process.stdout.readline():
            event = _decoder.decode(line)
            if isinstance(event, TrainProgress):
                self.progress = event
            else:
                last = event
        return last
