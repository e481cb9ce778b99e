"""`edged.train` in a process of its own, as the supervisor sees it: an order in, progress and one last word out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edged.child_process import ChildProcess, launch
from edged.worker import describe_exit
from edgekit.messages.learning import TrainDone, TrainOrder, TrainProgress, TrainStopped

LastWord = TrainDone | TrainStopped


class Died(msgspec.Struct, frozen=True):
    """The process ended without a last word."""

    how: str


class Training(ChildProcess[LastWord | Died]):
    """One run of the process. Belongs to one event loop."""

    def __init__(self, process: asyncio.subprocess.Process, service: str) -> None:
        super().__init__(process, "training")
        self.service = service
        self.progress: TrainProgress | None = None

    @classmethod
    async def start(cls, order: TrainOrder, directory: Path, command: Sequence[str]) -> Training:
        """Start it in the existing, empty `directory` and give it its order. Raises OSError."""
        return cls(await launch(order, directory, command), order.service)

    async def _follow(self) -> LastWord | Died:
        last: LastWord | None = None
        problem = ""
        try:
            async for event in self._events():
                if isinstance(event, TrainProgress):
                    self.progress = event
                else:
                    last = event
        except (msgspec.DecodeError, ValueError) as error:
            last, problem = None, f"it said something that is no event ({error})"
            self._kill()
        status = await self._process.wait()
        if last is not None:
            return last
        return Died(problem or f"it ended with {describe_exit(status)}")
