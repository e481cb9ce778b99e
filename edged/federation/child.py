"""`edged.federation` in a process of its own, as the supervisor sees it: an order in, an exit status and a word out."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edged.child_process import ChildProcess, launch
from edged.federation.order import FederationOrder
from edgekit.messages.learning import FromTraining, TrainProgress


def federation_command() -> list[str]:
    """The command line. -P keeps the working directory out of the module path."""
    return [sys.executable, "-P", "-m", "edged.federation"]


class Child(ChildProcess[int]):
    """One run of the process; its outcome is the exit status, where negative is minus the signal number."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__(process, "federation")
        self.last: FromTraining | None = None
        """Its last word, of an order to finish."""

    @classmethod
    async def start(cls, order: FederationOrder, directory: Path, command: Sequence[str]) -> Child:
        """Start it in the existing, empty `directory` and give it its order. Raises OSError."""
        return cls(await launch(order, directory, command))

    async def _follow(self) -> int:
        try:
            async for event in self._events():
                if not isinstance(event, TrainProgress):
                    self.last = event
        except (msgspec.DecodeError, ValueError):
            self._kill()
        return await self._process.wait()
