"""Federated learning as the supervisor holds it: next to nothing, while edged.toml has no `[federation]` table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edged.api import ApiError
from edged.federation.notes import JobView

if TYPE_CHECKING:  # the supervisor's memory is counted
    from edged.federation.around import Around
    from edged.federation.desk import FederationDesk
    from edged.federation.settings import Federation


class Subject(NamedTuple):
    """A service that could learn with others: its definition, and an installed package that it is defined to run."""

    definition: str
    ref: str  # name@version
    package: Path


class FederationFront:
    """Makes the desk when there is a table. Belongs to the supervisor's event loop."""

    def __init__(self, policy: Federation | None, around: Callable[[Federation], Around]) -> None:
        """`around` is asked once, and only where there is a table."""
        self._policy, self._around = policy, around
        self._desk: FederationDesk | None = None

    def open(self) -> None:
        """Make the desk and read what is stored (blocking). Raises StoreError, OSError."""
        if self._policy is None:
            return
        from edged.federation.desk import FederationDesk

        self._desk = FederationDesk(self._around(self._policy))
        self._desk.open()

    async def run(self) -> None:
        """Take part in jobs, until cancelled."""
        if self._desk is None:
            await asyncio.Event().wait()
        else:
            await self._desk.run()

    async def close(self) -> None:
        """End what goes on; the next start goes on with it."""
        if self._desk is not None:
            await self._desk.close()

    def jobs(self) -> list[JobView]:
        """As they were at the last look, those that go on first."""
        return self._desk.jobs() if self._desk is not None else []

    @property
    def desk(self) -> FederationDesk:
        """Everything else. Raises ApiError where there is no table."""
        if self._desk is None:
            raise ApiError(409, "this device takes part in no federated job: edged.toml has no table [federation]")
        return self._desk
