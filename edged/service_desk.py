"""What people and cloudd change about the services: definitions that come and go, gates that begin anew."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable

from edged.api import ApiError, Done, ServiceText
from edged.desired import Change, DesiredStore, Entry
from edged.plan import service_of
from edged.runner import Runner
from edgekit.messages import PurgeSpool, Recalibrate
from edgekit.services import ServiceError, parse_service


class ServiceDesk:
    """Use it on the supervisor's event loop. Methods raise ApiError."""

    def __init__(
        self,
        desired: DesiredStore,
        runner: Runner,
        changing: asyncio.Lock,
        came: Callable[[str, float], Awaitable[bool]],
        changed: Callable[[], None],
        put: Callable[[], None],
    ) -> None:
        """`changing` is held while the wishes change. `came` waits for a model that has to be fetched: False, it cannot
        come now. `changed` is told of every change, `put` of those that people make here.
        """
        self._desired, self._runner, self._changing = desired, runner, changing
        self._came, self._changed, self._put = came, changed, put
        self._standing = runner.standing

    def text(self, name: str) -> ServiceText:
        """The newest definition of one service."""
        entry = self._entry(name)
        return ServiceText(name=name, text=entry.text, refused=entry.refused_why)

    async def change(self, change: Change) -> None:
        """Make a change of the wishes durable and let the worker follow."""
        try:
            async with self._changing:
                await asyncio.to_thread(self._desired.apply, change)
        except (OSError, sqlite3.Error) as error:
            raise ApiError(507, f"the change could not be saved: {error}") from None
        self._runner.changed(by_hand=True)
        self._changed()

    async def add(self, text: str, wait_s: float) -> str:
        """Add or replace a service and wait until it runs, failed, or cannot be waited for; its name."""
        try:
            service = parse_service(text, "the given file")
        except ServiceError as error:
            raise ApiError(400, str(error)) from None
        await self.change(Change(put={service.name: text}))
        self._put()
        await self._settled(service.model, wait_s)
        return service.name

    async def remove(self, name: str) -> Done:
        """Remove a service; samples of it that wait in the spool are still delivered."""
        self._entry(name)
        await self.change(Change(remove=[name]))
        self._put()
        await self._runner.settled(30.0)
        return Done(text=f"The service {name} is removed.")

    def recalibrate(self, name: str) -> Done:
        """Let a service's gate calibrate anew."""
        service = service_of(self._entry(name))
        if service is not None and not service.hard_samples.asks:
            raise ApiError(409, f"the service {name} asks nobody about hard samples, so there is nothing to calibrate")
        self._tell_worker(Recalibrate(service=name))
        if service is not None and service.hard_samples.mode == "filter":
            return Done(text=f"The service {name} forgets what its audits said; its filter stays as it is.")
        return Done(text=f"The service {name} calibrates anew: it sends every sample until it is certified.")

    def purge_spool(self, service: str) -> Done:
        """Remove waiting samples."""
        self._tell_worker(PurgeSpool(service=service))
        return Done(text=f"The waiting samples of {service or 'every service'} are removed.")

    async def _settled(self, model: str, wait_s: float) -> None:
        """Until the service runs or failed, or its model cannot come now."""
        deadline = time.monotonic() + wait_s
        while (left := deadline - time.monotonic()) > 0:
            if not await self._runner.settled(left):
                return
            if model not in self._standing.missing or not await self._came(model, left):
                return

    def _tell_worker(self, message: PurgeSpool | Recalibrate) -> None:
        if not self._runner.send(message):
            raise ApiError(503, "the worker is not running at the moment; try again in a few seconds")

    def _entry(self, name: str) -> Entry:
        entry = self._standing.entries.get(name)
        if entry is None:
            known = ", ".join(sorted(self._standing.entries)) or "none"
            raise ApiError(404, f"there is no service {name[:64]!r} (services: {known})")
        return entry
