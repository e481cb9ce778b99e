"""The way to the desk of learning, which is made when it is first needed.

Most devices learn nothing yet, and the memory of the supervisor is counted.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from edged.plan import Learned, service_of

if TYPE_CHECKING:
    from edged.api import Done
    from edged.learning.bodies import LearningState
    from edged.learning.desk import LearningDesk
    from edged.learning.parts import Parts, Reserved
    from edgekit.learning.records import Record, Rung
    from edgekit.messages.learning import TrainDone


class LearningDoor:
    """As `edged.learning.desk.LearningDesk`, whose methods these are. Belongs to one event loop."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._making = asyncio.Lock()
        self._desk: LearningDesk | None = None

    def open(self) -> None:
        """Blocks. Something may have been learned before: the first plan has to know."""
        if self._needed():
            self._desk = self._new()

    async def run(self) -> None:
        """Look at every service from time to time, until cancelled."""
        # Nobody could set an event: files of services are read again by hand, too.
        while self._desk is None and not await asyncio.to_thread(self._needed):  # noqa: ASYNC110
            await asyncio.sleep(self._parts.look_s)
        await (await self._made()).run()

    async def close(self) -> None:
        """End the job that is being done; the next start goes on with it."""
        if self._desk is not None:
            await self._desk.close()

    def learned(self) -> dict[str, Learned]:
        """For the plan."""
        return self._desk.learned() if self._desk is not None else {}

    def holds(self) -> dict[str, list[str]]:
        """Packages that must stay, and for which services."""
        return self._desk.holds() if self._desk is not None else {}

    def states(self) -> list[LearningState]:
        """Every service that learns, or has learned something."""
        return self._desk.states() if self._desk is not None else []

    def worker_died(self) -> None:
        """A worker failed."""
        if self._desk is not None:
            self._desk.worker_died()

    async def state(self, name: str) -> LearningState:
        """One of them. Raises ApiError."""
        return (await self._made()).state(name)

    async def log(self, name: str, limit: int) -> list[Record]:
        """What was decided, the newest first. Raises ApiError."""
        return await (await self._made()).log(name, limit)

    async def start(self, name: str, rung: Rung | None, by: str) -> Done:
        """Ask for learning now. Raises ApiError."""
        return await (await self._made()).start(name, rung, by)

    async def go(self, name: str, by: str) -> Done:
        """End the present stage of a candidate. Raises ApiError."""
        return await (await self._made()).go(name, by)

    async def stop(self, name: str, by: str) -> Done:
        """End a job, or send a candidate away. Raises ApiError."""
        return await (await self._made()).stop(name, by)

    async def revert(self, name: str, by: str) -> Done:
        """Let the definition's own model decide again. Raises ApiError."""
        return await (await self._made()).revert(name, by)

    async def reserve(self, name: str) -> Reserved:
        """Name for a candidate that is made elsewhere. Raises ApiError."""
        return await (await self._made()).reserve(name)

    async def offer(self, name: str, base_ref: str, done: TrainDone, by: str = "a federated job") -> None:
        """A candidate that was made elsewhere. Raises ApiError."""
        await (await self._made()).offer(name, base_ref, done, by)

    def _needed(self) -> bool:
        if (self._parts.state_dir / "learning" / "learning.db").exists():
            return True
        services = (service_of(entry) for entry in self._parts.entries())
        return any(service is not None and service.learning is not None for service in services)

    async def _made(self) -> LearningDesk:
        async with self._making:
            if self._desk is None:
                self._desk = await asyncio.to_thread(self._new)
            return self._desk

    def _new(self) -> LearningDesk:
        from edged.learning.desk import LearningDesk

        desk = LearningDesk(self._parts)
        desk.open()
        return desk
