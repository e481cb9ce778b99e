"""A leader's second home: what the upper cloudd has certified, beside the identity at the site's own cloudd.

The key is the device's own, so its id is the same in both places, and in both rosters.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from edged.api import ApiError, Done
from edged.federation.order import FederationOrder
from edged.link.address import cloud_url
from edged.link.enroll import enroll
from edged.link.errors import LinkError
from edged.link.renew import renew, renewal_time
from edgekit.atomic import write_file
from edgekit.identity import Identity, IdentityError, IdentityStore, parse_token, short_id

log = logging.getLogger("edged.federation")

FOLDER = "upper-identity"
"""Of the state directory."""
RETRY_S = 3600.0


class Upward:
    """Belongs to the supervisor's event loop. `address` is `federation.upper`."""

    def __init__(self, state_dir: Path, address: str, wall: Callable[[], float] = time.time) -> None:
        self.url = cloud_url(address) if address else ""
        self._own = state_dir / "identity" / "device-key.pem"
        self._folder, self._wall = state_dir / FOLDER, wall
        self._store: IdentityStore | None = None
        self._tried = 0.0

    async def identity(self) -> Identity | None:
        """What the upper cloudd has certified; None before `join`. Raises IdentityError, OSError."""
        if not self.url or not self._folder.exists():
            return None
        return await asyncio.to_thread(lambda: self._opened().current())

    async def joined(self, token: str) -> Done:
        """Enrol at the upper cloudd with a one-time token of it. Raises ApiError."""
        if not self.url:
            raise ApiError(409, "federation.upper names no upper cloudd in edged.toml: this device leads no site")
        try:
            store = await asyncio.to_thread(self._opened)
            certificate = await enroll(self.url, parse_token(token), store, short_id(store.device_id))
            await asyncio.to_thread(store.install, certificate.certificate_pem, certificate.authority_pem)
        except IdentityError as error:
            raise ApiError(422, str(error)) from None
        except (LinkError, OSError) as error:
            raise ApiError(502, f"the upper cloudd at {self.url} was not joined: {error}") from None
        return Done(text=f"Joined the upper cloudd at {self.url}. There too this device is {store.device_id}.")

    async def against(self) -> str:
        """Why this device can lead no site now; "" if it can."""
        if not self.url:
            return "this device is to lead its site in it, and federation.upper names no upper cloudd"
        try:
            joined = await self.identity() is not None
        except (IdentityError, OSError) as error:
            return f"what the upper cloudd has certified cannot be read: {error}"
        return "" if joined else "this device has not joined the upper cloudd: edged fl join TOKEN"

    async def leading(self, order: FederationOrder) -> FederationOrder:
        """The order to lead, with a certificate that is not about to end. Raises ApiError."""
        await self.renewed()
        try:
            upper = await self.identity()
        except (IdentityError, OSError) as error:
            raise ApiError(409, f"what the upper cloudd has certified cannot be read: {error}") from None
        if upper is None:
            raise ApiError(409, "this device has not joined the upper cloudd")
        return msgspec.structs.replace(order, leads=True, upper=self.url, upper_identity=str(upper.directory))

    async def renewed(self) -> bool:
        """Renew the certificate if it is time, at most once an hour; True if there is a new one."""
        now = self._wall()
        try:
            found = await self.identity()
            due = found is not None and now >= renewal_time(found.not_before, found.not_after, 0.5)
            if found is None or not due or now - self._tried < RETRY_S:
                return False
            self._tried = now
            certificate = await renew(self.url, found, self._opened())
            await asyncio.to_thread(self._opened().install, certificate.certificate_pem, certificate.authority_pem)
        except (LinkError, IdentityError, OSError) as error:
            log.warning("The certificate of the upper cloudd cannot be renewed: %s.", error)
            return False
        return True

    def _opened(self) -> IdentityStore:
        if self._store is None:
            key = self._folder / "device-key.pem"
            if not key.exists():
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_file(key, self._own.read_bytes(), 0o600)
            self._store = IdentityStore(self._folder)
            self._store.sweep()
        return self._store
