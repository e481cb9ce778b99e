"""Follows the desired state that cloudd sends: the newest supersedes, and one that is in force already does nothing.

Two things are not up to cloudd: services defined on this device, and paths that the site has not allowed. What cannot
be followed is a health item, which cloudd hears of with every report; the rest is followed all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from edged.api import ApiError
from edged.desired import Change, DesiredStore, Entry, check_desired, parse
from edged.health import Health
from edged.paths import check_paths
from edgekit.faults import crash_point
from edgekit.messages import Desired
from edgekit.services import ServiceError

log = logging.getLogger("edged.follower")

_ORIGIN = "from cloudd"
RETRY_S = 30.0
"""After a change could not be saved, which a full disk does."""


class Follower:
    """Applies desired states one after the other. `arrived` may be called at any time."""

    def __init__(
        self,
        store: DesiredStore,
        change: Callable[[Change], Awaitable[None]],
        health: Health,
        allowed: Sequence[Path],
        retry_s: float = RETRY_S,
        hosts: Sequence[str] = (),
    ) -> None:
        """`change` makes one change durable and has it carried out; it raises ApiError.

        `allowed`: directories below which a service of cloudd's may watch and write; `hosts`: where to it may send.
        """
        self._store, self._change, self._health, self._retry_s = store, change, health, retry_s
        self._allowed, self._hosts = allowed, hosts
        self._newest: Desired | None = None
        self._came = asyncio.Event()
        self.revision = ""
        """Of the desired state in force, "" for none and for one that is followed only in part."""

    def open(self) -> None:
        """Read which revision is in force. A service of cloudd's that the site does not allow any more is taken out.

        Blocks; raises OSError or sqlite3.Error.
        """
        cloud = [entry for entry in self._store.entries() if entry.origin == "cloud"]
        problems = {entry.name: problem for entry in cloud if (problem := self._not_allowed(entry))}
        if problems:
            self._store.apply(Change(remove=problems, origin="cloud", revision=""))
            self._complain(list(problems.values()))
        self.revision = self._store.revision()

    def arrived(self, desired: Desired) -> None:
        """cloudd wants this."""
        self._newest = desired
        self._came.set()

    def look_again(self) -> None:
        """Services were changed on this device: what could not be followed perhaps can now, or the other way round."""
        self._came.set()

    async def run(self) -> None:
        """Apply what arrives until cancelled."""
        while True:
            await self._came.wait()
            self._came.clear()
            self.revision = await asyncio.to_thread(self._store.revision)
            desired = self._newest
            if desired is None or desired.revision == self.revision:
                continue
            try:
                await self._apply(desired)
            except ApiError as error:
                self._health.report("desired", "error", f"The desired state of cloudd is not in force: {error}.")
                try:
                    async with asyncio.timeout(self._retry_s):
                        await self._came.wait()
                except TimeoutError:
                    self._came.set()

    async def _apply(self, desired: Desired) -> None:
        wanted, problems = await asyncio.to_thread(check_desired, desired.services, _ORIGIN, self._allowed, self._hosts)
        entries = {entry.name: entry for entry in await asyncio.to_thread(self._store.entries)}
        local = {name for name, entry in entries.items() if entry.origin == "local"}
        put = {
            name: text
            for name, text in wanted.items()
            if name not in local and (name not in entries or entries[name].text != text)
        }
        conflicts = sorted(name for name in local & wanted.keys() if entries[name].text != wanted[name])
        # A definition that cannot be read may be a newer one of a service that runs: then nothing is taken away.
        remove = [] if problems else [name for name in entries if name not in local and name not in wanted]
        # What is in conflict is not followed; without a revision cloudd knows that, and sends it again.
        revision = "" if conflicts else desired.revision
        if put or remove or revision != self.revision:
            await self._change(Change(put=put, remove=remove, origin="cloud", revision=revision))
        crash_point("supervisor.desired-applied")
        self.revision = revision
        followed = len(wanted) - len(conflicts)
        log.info("The desired state %s of cloudd is in force: %d services.", desired.revision[:12], followed)
        self._complain(problems)
        self._tell_conflicts(conflicts)

    def _complain(self, problems: list[str]) -> None:
        if problems:
            text = "; ".join(problems)
            self._health.report("desired", "error", f"A service that cloudd wants cannot be used: {text}.")
        else:
            self._health.clear("desired", "The desired state of cloudd is in force again.")

    def _tell_conflicts(self, names: list[str]) -> None:
        if not names:
            self._health.clear("desired.conflict", "No service is defined here and differently by cloudd any more.")
            return
        text = (
            f"The service {' and the service '.join(names)} was defined on this device and is defined differently by "
            "cloudd; the one of this device goes on. To run cloudd's, remove it here (edged services remove "
            f"{names[0]}); to keep it, take it out of cloudd's list (cloudd devices desired) or rename one of the two."
        )
        self._health.report("desired.conflict", "warning", text)

    def _not_allowed(self, entry: Entry) -> str:
        """Why this stored service of cloudd's may not run, "" if it may (or cannot be read, so that it does not)."""
        for text in filter(None, (entry.text, entry.good_text)):
            try:
                service = parse(text)
            except ServiceError:
                continue
            try:
                check_paths(service, self._allowed, _ORIGIN, self._hosts)
            except ServiceError as error:
                return str(error)
        return ""
