"""The end of a worker that has a successor, or has made room for one: it drains, and what it gave away waits."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

from edged.worker import Worker

DRAIN_S = 15.0
"""In-flight inspections have deadlines far below this; systemd's TimeoutStopSec=30 leaves room for the kill."""

LEAVE_S = 5.0
"""A drained worker gives the inference address up within milliseconds; one that hangs holds up no swap for longer."""

log = logging.getLogger("edged.parting")


class Parting:
    """Sees workers out, one at a time. Its `parked` end of a socket holds idle connections for the next worker."""

    def __init__(self, ended: Callable[[Worker], None], successor: Callable[[], Worker | None]) -> None:
        """`ended` hears of a worker that has gone; `successor` tells who has taken over, if anybody has."""
        self._ended, self._successor = ended, successor
        self._leaving: asyncio.Task[None] | None = None
        self.parked: socket.socket | None = None
        """Where the next worker gets the idle connections of one that has ended."""

    async def begin(self, worker: Worker) -> None:
        """See it out while others go on. Returns when new connections come to its successor only."""
        self._leaving = asyncio.create_task(self.retire(worker))
        either: list[asyncio.Future[Any]] = [worker.left, worker.exited]
        done, _ = await asyncio.wait(either, timeout=LEAVE_S, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            log.warning(
                "The worker %d still has the inference address %.0f s after its end began.", worker.pid, LEAVE_S
            )

    async def finish(self) -> None:
        """Wait until the one before has ended."""
        if self._leaving is not None:
            await self._leaving
            self._leaving = None

    async def retire(self, worker: Worker) -> None:
        """See a worker out and keep what it counted to the last. Its idle connections go to its successor."""
        await worker.drain(DRAIN_S, handover=True)
        self._ended(worker)
        self.park(worker.handed)
        successor = self._successor()
        if successor is not None and successor.alive:
            self.park(None)  # it has a copy of its own

    def park(self, end: socket.socket | None) -> None:
        """Keep the receiving end of what a worker gave away, and let go of the one before."""
        if self.parked is not None:
            self.parked.close()
        self.parked = end
