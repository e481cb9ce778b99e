"""Follows the desired state that cloudd sends: the newest supersedes, and one that is in force already does nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from edged.api import ApiError
from edged.desired import Change, DesiredStore, check_desired
from edged.health import Health
from edgekit.faults import crash_point
from edgekit.messages import Desired

log = logging.getLogger("edged.follower")

RETRY_S = 30.0
"""After a change could not be saved, which a full disk does."""


class Follower:
    """Applies desired states one after the other. `arrived` may be called at any time."""

    def __init__(
        self, store: DesiredStore, change: Callable[[Change], Awaitable[None]], health: Health, retry_s: float = RETRY_S
    ) -> None:
        """`change` makes one change durable and has it carried out; it raises ApiError."""
        self._store, self._change, self._health, self._retry_s = store, change, health, retry_s
        self._newest: Desired | None = None
        self._came = asyncio.Event()
        self.revision = ""
        """Of the desired state in force, "" for none."""

    def open(self) -> None:
        """Read which revision is in force."""
        self.revision = self._store.revision()

    def arrived(self, desired: Desired) -> None:
        """cloudd wants this."""
        self._newest = desired
        self._came.set()

    async def run(self) -> None:
        """Apply what arrives until cancelled."""
        while True:
            await self._came.wait()
            self._came.clear()
            desired = self._newest
            if desired is None or desired.revision == self.revision:
                continue
            try:
                await self._apply(desired)
            except ApiError as error:
                self._health.report("desired", "error", f"The desired state of cloudd is not in force: {error}.")
                try:
                    await asyncio.wait_for(self._came.wait(), self._retry_s)
                except TimeoutError:
                    self._came.set()

    async def _apply(self, desired: Desired) -> None:
        wanted, problems = check_desired(desired.services, "from cloudd")
        entries = {entry.name: entry for entry in await asyncio.to_thread(self._store.entries)}
        put = {
            name: text
            for name, text in wanted.items()
            if name not in entries or (entries[name].text, entries[name].origin) != (text, "cloud")
        }
        # A definition that cannot be read may be a newer one of a service that runs: then nothing is taken away.
        gone = [name for name, entry in entries.items() if entry.origin == "cloud" and name not in wanted]
        remove = [] if problems else gone
        await self._change(Change(put=put, remove=remove, origin="cloud", revision=desired.revision))
        crash_point("supervisor.desired-applied")
        self.revision = desired.revision
        log.info("The desired state %s of cloudd is in force: %d services.", desired.revision[:12], len(wanted))
        if problems:
            text = "; ".join(problems)
            self._health.report("desired", "error", f"A service that cloudd wants cannot be used: {text}.")
        else:
            self._health.clear("desired", "The desired state of cloudd is in force again.")
