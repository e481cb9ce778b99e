"""`edged.federation` in a process of its own, as the supervisor sees it: an order in, an exit status and a word out."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edged.federation.order import FederationOrder
from edged.spawn import worker_environment
from edgekit.messages.learning import MAX_LINE, FromTraining, TrainProgress

_decoder: msgspec.json.Decoder[FromTraining] = msgspec.json.Decoder(FromTraining)


def federation_command() -> list[str]:
    """The command line. -P keeps the working directory out of the module path."""
    return [sys.executable, "-P", "-m", "edged.federation"]


class Child:
    """One run of the process. Belongs to one event loop."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.last: FromTraining | None = None
        """Its last word, of an order to finish."""
        self.ended: asyncio.Task[int] = asyncio.create_task(self._follow(), name=f"federation {process.pid}")
        """Done with its exit status when it has ended."""

    @classmethod
    async def start(cls, order: FederationOrder, directory: Path, command: Sequence[str]) -> Child:
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
        return cls(process)

    @property
    def status(self) -> int | None:
        """Its exit status, None while it works; negative is minus the signal number."""
        return self.ended.result() if self.ended.done() else None

    async def stop(self, timeout_s: float) -> int:
        """Let it save and end; kill it after the time."""
        self._signal(signal.SIGTERM)
        done, _ = await asyncio.wait([self.ended], timeout=timeout_s)
        if not done:
            self._signal(signal.SIGKILL)
        return await self.ended

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _follow(self) -> int:
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                event = _decoder.decode(line)
                if not isinstance(event, TrainProgress):
                    self.last = event
        except (msgspec.DecodeError, ValueError):  # ValueError: a line without an end
            self._signal(signal.SIGKILL)
        return await self._process.wait()
