"""A child process that gets one order, says how far it is, and ends: `edged.train` and `edged.federation`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from edged.spawn import worker_environment
from edgekit.messages.learning import MAX_LINE, FromTraining

T = TypeVar("T")

_decoder: msgspec.json.Decoder[FromTraining] = msgspec.json.Decoder(FromTraining)


async def launch(order: msgspec.Struct, directory: Path, command: Sequence[str]) -> asyncio.subprocess.Process:
    """Start `command` in the existing, empty `directory` and give it its order. Raises OSError."""
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
    return process


class ChildProcess(ABC, Generic[T]):
    """One run, whose outcome is a T. Belongs to one event loop."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        """Follows a launched process from now on; `name` is that of the task."""
        self._process = process
        self.ended: asyncio.Task[T] = asyncio.create_task(self._follow(), name=f"{name} {process.pid}")
        """Done, with the outcome, when it has ended."""

    @property
    def outcome(self) -> T | None:
        """How it ended, None while it works."""
        return self.ended.result() if self.ended.done() else None

    async def stop(self, timeout_s: float) -> T:
        """Let it save and end; kill it after the time."""
        self._signal(signal.SIGTERM)
        done, _ = await asyncio.wait([self.ended], timeout=timeout_s)
        if not done:
            self._kill()
        return await self.ended

    @abstractmethod
    async def _follow(self) -> T:
        """Listen to its `_events`, wait for its end, and say what came of it."""

    async def _events(self) -> AsyncIterator[FromTraining]:
        """What it says. Raises msgspec.DecodeError, or ValueError for a line without an end."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            yield _decoder.decode(line)

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
