"""Invitations: a one-time secret, stored as a hash, that turns exactly one key into an enrolled device.

The token is bound to the first device that redeems it, in the same transaction that writes the device. If cloudd or the
line dies before the device has its certificate, the same device (the same key) may ask again with the same token while
it is valid; any other key is refused. So a token never makes two devices, and a crash never costs a device its place.
"""

from __future__ import annotations

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloudd.config import DEFAULT_TTL_S
from cloudd.devices import audit
from cloudd.devices.fleet import revoked_text
from cloudd.storage import Rows
from cloudd.storage.schema import devices, invites, revocations
from cloudd.web import HttpProblem
from edgekit.faults import crash_point
from edgekit.identity import JoinToken, check_secret, hash_secret, new_token

_KEEP_S = 7 * 86_400.0
_UNKNOWN = "this token is unknown, used or expired; `cloudd invite` prints a new one"


class Invites:
    """Creates and redeems join tokens for the authority with this fingerprint."""

    def __init__(self, rows: Rows, fingerprint: str) -> None:
        self._rows, self._fingerprint = rows, fingerprint
        self._nobody = hash_secret("")  # compared with when the token id is unknown, so that both take the same time

    async def create(self, now: float, ttl_s: float = DEFAULT_TTL_S, name: str = "") -> JoinToken:
        """A new token, valid for `ttl_s` seconds from `now` (seconds since the epoch); `name` is for the device."""
        token = new_token(self._fingerprint)
        async with self._rows.writing() as connection:
            await connection.execute(delete(invites).where(invites.c.expires_at < now - _KEEP_S))
            await connection.execute(
                insert(invites).values(
                    token_id=token.token_id,
                    secret_hash=hash_secret(token.secret),
                    name=name,
                    created_at=now,
                    expires_at=now + ttl_s,
                )
            )
            await audit.note(connection, now, "invite", token.token_id, name)
        return token

    async def check(self, token_id: str, secret: str, now: float) -> None:
        """Raise HttpProblem 403 unless the secret belongs to a token that has not expired."""
        async with self._rows.reading() as connection:
            row = (await connection.execute(select(invites).where(invites.c.token_id == token_id))).mappings().first()
        right = check_secret(secret, row["secret_hash"] if row is not None else self._nobody)
        if row is None or not right:
            raise HttpProblem(403, _UNKNOWN)
        if now >= row["expires_at"]:
            raise HttpProblem(403, "this token has expired; `cloudd invite` prints a new one")

    async def redeem(self, token_id: str, device: str, name: str, serial: str, not_after: float, now: float) -> None:
        """Spend a checked token for this device and write the device, both or neither.

        `serial` and `not_after` are those of the certificate it gets. Raises HttpProblem 403 if another device was
        faster, or if this device was revoked.
        """
        async with self._rows.writing() as connection:
            mine = or_(invites.c.used_by.is_(None), invites.c.used_by == device)
            spent = await connection.execute(
                update(invites)
                .where(invites.c.token_id == token_id, mine, invites.c.expires_at > now)
                .values(used_by=device, used_at=now)
            )
            if spent.rowcount != 1:
                raise HttpProblem(403, "this token was used by another device; `cloudd invite` prints a new one")
            crash_point("invite.spent")
            wanted = await connection.scalar(select(invites.c.name).where(invites.c.token_id == token_id))
            await _write_device(connection, device, wanted or name, serial, not_after, now)
            await audit.note(connection, now, "enroll", device, f"{wanted or name}, token {token_id}")
        crash_point("device.enrolled")


async def _write_device(
    connection: AsyncConnection, device: str, name: str, serial: str, not_after: float, now: float
) -> None:
    if await connection.scalar(select(revocations.c.device_id).where(revocations.c.device_id == device)):
        raise HttpProblem(403, revoked_text(device))
    changed = await connection.execute(
        update(devices).where(devices.c.id == device).values(name=name, serial=serial, not_after=not_after)
    )
    if changed.rowcount == 0:
        await connection.execute(
            insert(devices).values(id=device, name=name, enrolled_at=now, serial=serial, not_after=not_after)
        )
