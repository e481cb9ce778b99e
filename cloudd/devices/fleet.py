"""The fleet: one row a device, with what it should run and what it says it runs."""

from __future__ import annotations

import hashlib
import logging

import msgspec
from sqlalchemy import RowMapping, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from cloudd.devices.tables import devices
from cloudd.web import HttpProblem
from edgekit.identity import IdentityError, parse_device_id, short_id
from edgekit.messages import Hello, Report
from edgekit.services import ServiceError, parse_service

log = logging.getLogger("cloudd.devices")

MAX_DESIRED = 512 * 1024
"""Bytes of all service definitions of one device together."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One enrolled device. Times are seconds since the epoch."""

    device_id: str
    name: str
    enrolled_at: float
    certificate_until: float
    revoked_at: float | None = None
    seen_at: float | None = None
    online_until: float = 0.0
    version: str = ""
    machine: str = ""
    reported: Report | None = None
    desired: list[str] | None = None  # service definition texts; None: nobody has set any
    desired_revision: str = ""

    def online(self, now: float) -> bool:
        """Its heartbeat is not overdue."""
        return self.revoked_at is None and now < self.online_until


class Fleet:
    """Reads and changes device rows."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def check(self, device: str) -> None:
        """Raise HttpProblem 403 unless the device is enrolled and not revoked."""
        async with self._engine.connect() as connection:
            row = (await connection.execute(select(devices.c.revoked_at).where(devices.c.device_id == device))).first()
        if row is None:
            raise HttpProblem(403, "this cloudd does not know the device; join again with a new token")
        if row.revoked_at is not None:
            raise HttpProblem(403, "this device was revoked")

    async def get(self, device: str) -> Device | None:
        """One device, None if there is none with exactly this id."""
        async with self._engine.connect() as connection:
            row = (await connection.execute(select(devices).where(devices.c.device_id == device))).mappings().first()
        return None if row is None else _device(row)

    async def all(self) -> list[Device]:
        """Every device, by name."""
        async with self._engine.connect() as connection:
            rows = (await connection.execute(select(devices).order_by(devices.c.name, devices.c.device_id))).mappings()
            return [_device(row) for row in rows]

    async def find(self, text: str) -> Device:
        """The device a person means: full id, its first group, or its name. Raises HttpProblem 404 or 409."""
        try:
            wanted = parse_device_id(text)
        except IdentityError:
            wanted = ""
        fleet = await self.all()
        short = text.strip().upper()
        found = [one for one in fleet if one.device_id == wanted]
        found = found or [one for one in fleet if one.name == text or short_id(one.device_id) == short]
        if not found:
            raise HttpProblem(404, f"there is no device {text[:80]!r}; `cloudd devices list` shows them all")
        if len(found) > 1:
            which = ", ".join(short_id(one.device_id) for one in found)
            raise HttpProblem(409, f"{len(found)} devices are called {text[:80]!r}; name one by its id: {which}")
        return found[0]

    async def renewed(self, device: str, serial: str, certificate_until: float) -> None:
        """Note the new certificate of a device."""
        await self._change(device, certificate_serial=serial, certificate_until=certificate_until)

    async def connected(self, device: str, hello: Hello, now: float, silence_s: float) -> Device | None:
        """A control channel opened; the device is online for `silence_s` seconds. None if it is revoked or unknown."""
        known = await self._change(
            device, seen_at=now, online_until=now + silence_s, version=hello.version[:32], machine=hello.machine[:128]
        )
        return await self.get(device) if known else None

    async def reported(self, device: str, report: Report, now: float, silence_s: float) -> bool:
        """Keep the newest report; False if the device was revoked meanwhile."""
        text = msgspec.json.encode(report).decode()
        return await self._change(device, seen_at=now, online_until=now + silence_s, reported=text)

    async def disconnected(self, device: str, now: float) -> None:
        """The control channel ended."""
        await self._change(device, seen_at=now, online_until=0.0)

    async def revoke(self, device: str, now: float) -> None:
        """Put the device's key on the deny-list. Its certificate is refused from the next request on."""
        async with self._engine.begin() as connection:
            await connection.execute(
                update(devices).where(devices.c.device_id == device).values(revoked_at=now, online_until=0.0)
            )

    async def restore(self, device: str) -> None:
        """Take a revocation back."""
        async with self._engine.begin() as connection:
            await connection.execute(update(devices).where(devices.c.device_id == device).values(revoked_at=None))

    async def set_desired(self, device: str, services: list[str]) -> str:
        """Set the services a device should run; returns the revision. Raises HttpProblem: 422 naming what is
        wrong, 409 for a revoked device.

        The revision is a hash of the definitions: setting the same again changes nothing on the device.
        """
        if sum(len(text.encode()) for text in services) > MAX_DESIRED:
            raise HttpProblem(422, f"the service definitions are larger than {MAX_DESIRED} bytes together")
        names: set[str] = set()
        for number, text in enumerate(services, 1):
            try:
                service = parse_service(text, f"definition {number}")
            except ServiceError as error:
                raise HttpProblem(422, str(error)) from None
            if service.name in names:
                raise HttpProblem(422, f"two definitions have the same name {service.name!r}")
            names.add(service.name)
        packed = msgspec.json.encode(services)
        revision = hashlib.sha256(packed).hexdigest()[:16]
        if not await self._change(device, desired=packed.decode(), desired_revision=revision):
            raise HttpProblem(409, "this device was revoked; restore it before you give it work")
        return revision

    async def _change(self, device: str, **values: object) -> bool:
        """Update a device that is not revoked; False if there is none."""
        changed = update(devices).where(devices.c.device_id == device, devices.c.revoked_at.is_(None)).values(**values)
        async with self._engine.begin() as connection:
            return (await connection.execute(changed)).rowcount == 1


def _device(row: RowMapping) -> Device:
    values = {key: row[key] for key in Device.__struct_fields__ if key not in {"reported", "desired"}}
    reported: Report | None = None
    if row["reported"]:
        try:
            reported = msgspec.json.decode(row["reported"], type=Report)
        except msgspec.DecodeError:  # written by another release; the next report replaces it
            log.info("the stored report of %s cannot be read", row["device_id"])
    desired = None if row["desired"] is None else msgspec.json.decode(row["desired"], type=list[str])
    return Device(reported=reported, desired=desired, **values)
