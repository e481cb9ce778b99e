"""The supervisor's loops. An error that nobody foresaw is shown and costs a few seconds, not the daemon."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from edged.health import Health

log = logging.getLogger("edged.loops")

RESTART_S = 5.0


class Loops:
    """Tasks that run until they are stopped. Belongs to one event loop."""

    def __init__(self, health: Health, restart_s: float = RESTART_S) -> None:
        self._health, self._restart_s = health, restart_s
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, loops: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
        """Start each of them; the names are for people, and for the codes of their health items."""
        self._tasks += [asyncio.create_task(self._keep_running(name, loop)) for name, loop in loops.items()]

    async def stop(self) -> None:
        """Cancel them all, and wait until they have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_running(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await loop()
            except Exception as error:
                log.exception("The %s met an error that it does not know; it starts again.", name)
                text = f"The {name} met an unexpected error and was started again: {type(error).__name__}: {error}."
                self._health.report(f"internal.{name}", "error", f"{text} Please report it with the daemon's log.")
                await asyncio.sleep(self._restart_s)
