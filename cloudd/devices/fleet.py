"""The fleet: one device, what it should run and what it says it runs; and the deny-list."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Mapping

import msgspec
from sqlalchemy import Select, bindparam, delete, insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from cloudd.devices import audit
from cloudd.storage import Rows
from cloudd.storage.schema import desired, devices, reports, revocations
from cloudd.web import HttpProblem
from edgekit.identity import IdentityError, parse_device_id, short_id
from edgekit.messages import Hello, Report
from edgekit.services import ServiceError, parse_service

log = logging.getLogger("cloudd.devices")

MAX_DESIRED = 512 * 1024
"""Bytes of all service definitions of one device together."""


_STANDING = (
    select(devices.c.id, revocations.c.revoked_at)
    .join(revocations, revocations.c.device_id == devices.c.id, isouter=True)
    .where(devices.c.id == bindparam("device"))
)
"""Built once: every request of every device asks this."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One enrolled device. Times are seconds since the epoch."""

    id: str
    name: str
    enrolled_at: float
    not_after: float  # of its certificate
    revoked_at: float | None = None
    seen_at: float | None = None
    online_until: float | None = None
    version: str = ""
    machine: str = ""
    report: Report | None = None
    reported_at: float | None = None
    desired: list[str] | None = None  # service definition texts; None: nobody has set any
    revision: str = ""  # of the desired state

    def online(self, now: float) -> bool:
        """Its heartbeat is not overdue."""
        return self.revoked_at is None and self.online_until is not None and now < self.online_until


def revoked_text(device: str) -> str:
    """Why a revoked device is refused, and what lets it in again; a new token does not."""
    return f"this device was revoked; `cloudd devices restore {short_id(device)}` lets it in again"


class Fleet:
    """Reads and changes what is known about devices."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def check(self, device: str) -> None:
        """Raise HttpProblem 403 unless the device is enrolled and not revoked."""
        async with self._rows.reading(single=True) as connection:
            row = (await connection.execute(_STANDING, {"device": device})).first()
        if row is None:
            raise HttpProblem(403, "this cloudd does not know the device; join again with a new token")
        if row.revoked_at is not None:
            raise HttpProblem(403, revoked_text(device))

    async def get(self, device: str) -> Device | None:
        """One device, None if there is none with exactly this id."""
        async with self._rows.reading(single=True) as connection:
            row = (await connection.execute(_everything().where(devices.c.id == device))).mappings().first()
        return None if row is None else _device(row)

    async def all(self) -> list[Device]:
        """Every device, by name."""
        async with self._rows.reading() as connection:
            rows = (await connection.execute(_everything().order_by(devices.c.name, devices.c.id))).mappings()
            return [_device(row) for row in rows]

    async def find(self, text: str) -> Device:
        """The device a person means: full id, its first group, or its name. Raises HttpProblem 404 or 409."""
        try:
            wanted = parse_device_id(text)
        except IdentityError:
            wanted = ""
        fleet, short = await self.all(), text.strip().upper()
        found = [one for one in fleet if one.id == wanted]
        found = found or [one for one in fleet if one.name == text or short_id(one.id) == short]
        if not found:
            raise HttpProblem(404, f"there is no device {text[:80]!r}; `cloudd devices list` shows them all")
        if len(found) > 1:
            which = ", ".join(short_id(one.id) for one in found)
            raise HttpProblem(409, f"{len(found)} devices are called {text[:80]!r}; name one by its id: {which}")
        return found[0]

    async def renewed(self, device: str, serial: str, not_after: float, now: float) -> None:
        """Note the new certificate of a device."""
        async with self._rows.writing() as connection:
            await _change(connection, device, serial=serial, not_after=not_after)
            await audit.note(connection, now, "renew", device, serial)

    async def connected(self, device: str, hello: Hello, now: float, silence_s: float) -> Device | None:
        """A control channel opened; the device is online for `silence_s` seconds. None if it is revoked or unknown."""
        async with self._rows.writing() as connection:
            known = await _change(
                connection,
                device,
                seen_at=now,
                online_until=now + silence_s,
                version=hello.version[:32],
                machine=hello.machine[:128],
            )
        return await self.get(device) if known else None

    async def reported(self, device: str, report: Report, now: float, silence_s: float) -> bool:
        """Keep the newest report; False if the device was revoked meanwhile."""
        values = {"received_at": now, "report": msgspec.to_builtins(report)}
        async with self._rows.writing() as connection:
            if not await _change(connection, device, seen_at=now, online_until=now + silence_s):
                return False
            changed = await connection.execute(update(reports).where(reports.c.device_id == device).values(**values))
            if changed.rowcount == 0:
                await connection.execute(insert(reports).values(device_id=device, **values))
        return True

    async def disconnected(self, device: str, now: float) -> None:
        """The control channel ended."""
        async with self._rows.writing() as connection:
            await _change(connection, device, seen_at=now, online_until=None)

    async def revoke(self, device: str, now: float, reason: str = "") -> None:
        """Put the device on the deny-list. Its certificate is refused from the next request on."""
        async with self._rows.writing() as connection:
            await connection.execute(delete(revocations).where(revocations.c.device_id == device))
            await connection.execute(insert(revocations).values(device_id=device, revoked_at=now, reason=reason[:500]))
            await connection.execute(update(devices).where(devices.c.id == device).values(online_until=None))
            await audit.note(connection, now, "revoke", device, reason)

    async def restore(self, device: str, now: float) -> None:
        """Take a revocation back."""
        async with self._rows.writing() as connection:
            await connection.execute(delete(revocations).where(revocations.c.device_id == device))
            await audit.note(connection, now, "restore", device)

    async def set_desired(self, device: str, services: list[str], now: float) -> str:
        """Set the services a device should run; returns the revision. Raises HttpProblem 422 naming what is wrong.

        The revision is a hash of the definitions: setting the same again changes nothing on the device.
        """
        _check_services(services)
        revision = hashlib.sha256(msgspec.json.encode(services)).hexdigest()[:16]
        values = {"revision": revision, "services": services, "changed_at": now}
        async with self._rows.writing() as connection:
            changed = await connection.execute(update(desired).where(desired.c.device_id == device).values(**values))
            if changed.rowcount == 0:
                await connection.execute(insert(desired).values(device_id=device, **values))
            await audit.note(connection, now, "desired", device, f"{len(services)} services, revision {revision}")
        return revision

    async def answer_models(self) -> list[str]:
        """The models that desired services ask about hard samples, the one that most services ask first."""
        denied = select(revocations.c.device_id).where(revocations.c.device_id == desired.c.device_id).exists()
        async with self._rows.reading() as connection:
            lists = (await connection.execute(select(desired.c.services).where(~denied))).scalars().all()
        return await asyncio.to_thread(_answer_models, Counter(text for texts in lists for text in texts))


def _answer_models(definitions: Mapping[str, int]) -> list[str]:
    """What these definitions (with their numbers) ask, the most frequent first."""
    asked: Counter[str] = Counter()
    for text, count in definitions.items():
        try:
            service = parse_service(text, "stored definition")
        except ServiceError:  # written by another release
            continue
        if service.hard_samples.asks and service.may_leave == "raw":
            asked[service.hard_samples.answer_model] += count
    return [model for model, _ in asked.most_common()]


def _check_services(services: list[str]) -> None:
    if sum(len(text.encode("utf-8", "surrogatepass")) for text in services) > MAX_DESIRED:
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


async def _change(connection: AsyncConnection, device: str, **values: object) -> bool:
    """Update a device that is not revoked; False if there is none."""
    denied = select(revocations.c.device_id).where(revocations.c.device_id == device).exists()
    changed = await connection.execute(update(devices).where(devices.c.id == device, ~denied).values(**values))
    return changed.rowcount == 1


def _everything() -> Select[tuple[object, ...]]:
    """A query for whole devices; each side table has at most one row a device."""
    columns = [
        *devices.c,
        revocations.c.revoked_at,
        reports.c.received_at.label("reported_at"),
        reports.c.report,
        desired.c.revision,
        desired.c.services.label("desired"),
    ]
    return select(*columns).select_from(
        devices.join(revocations, revocations.c.device_id == devices.c.id, isouter=True)
        .join(reports, reports.c.device_id == devices.c.id, isouter=True)
        .join(desired, desired.c.device_id == devices.c.id, isouter=True)
    )


def _device(row: RowMapping) -> Device:
    values = {key: row[key] for key in Device.__struct_fields__ if key not in {"report", "revision"}}
    report: Report | None = None
    if row["report"] is not None:
        try:
            report = msgspec.convert(row["report"], Report)
        except msgspec.ValidationError:  # written by another release; the next report replaces it
            log.info("the stored report of %s cannot be read", row["id"])
    return Device(report=report, revision=row["revision"] or "", **values)
