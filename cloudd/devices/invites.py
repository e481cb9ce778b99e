"""Invitations: a one-time secret, stored as a hash, that turns exactly one key into an enrolled device.

The token is bound to the first device that redeems it, in the same transaction that writes the device. If cloudd or the
line dies before the device has its certificate, the same device (the same key) may ask again with the same token while
it is valid; any other key is refused. So a token never makes two devices, and a crash never costs a device its place.
"""

from __future__ import annotations

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cloudd.devices.tables import devices, invites
from cloudd.web import HttpProblem
from edgekit.faults import crash_point
from edgekit.identity import JoinToken, check_secret, hash_secret, new_token

DEFAULT_TTL_S = 3600.0
MAX_TTL_S = 30 * 86_400.0
_KEEP_S = 7 * 86_400.0
_UNKNOWN = "this token is unknown, used or expired; `cloudd invite` prints a new one"


class Invites:
    """Creates and redeems join tokens for the authority with this fingerprint."""

    def __init__(self, engine: AsyncEngine, fingerprint: str) -> None:
        self._engine, self._fingerprint = engine, fingerprint
        self._nobody = hash_secret("")  # compared with when the token id is unknown, so that both take the same time

    async def create(self, now: float, ttl_s: float = DEFAULT_TTL_S, name: str = "") -> JoinToken:
        """A new token, valid for `ttl_s` seconds from `now` (seconds since the epoch)."""
        token = new_token(self._fingerprint)
        row = {
            "token_id": token.token_id,
            "secret_hash": hash_secret(token.secret),
            "name": name,
            "created_at": now,
            "expires_at": now + ttl_s,
        }
        async with self._engine.begin() as connection:
            await connection.execute(delete(invites).where(invites.c.expires_at < now - _KEEP_S))
            await connection.execute(insert(invites).values(row))
        return token

    async def check(self, token_id: str, secret: str, now: float) -> None:
        """Raise HttpProblem 403 unless the secret belongs to a token that has not expired."""
        async with self._engine.connect() as connection:
            row = (await connection.execute(select(invites).where(invites.c.token_id == token_id))).mappings().first()
        if not check_secret(secret, row["secret_hash"] if row else self._nobody) or row is None:
            raise HttpProblem(403, _UNKNOWN)
        if now >= row["expires_at"]:
            raise HttpProblem(403, "this token has expired; `cloudd invite` prints a new one")

    async def redeem(
        self, token_id: str, device: str, name: str, serial: str, certificate_until: float, now: float
    ) -> None:
        """Spend a checked token for this device and write the device, both or neither.

        Raises HttpProblem 403 if another device was faster, or if this device was revoked.
        """
        async with self._engine.begin() as connection:
            mine = or_(invites.c.spent_by.is_(None), invites.c.spent_by == device)
            spent = await connection.execute(
                update(invites)
                .where(invites.c.token_id == token_id, mine, invites.c.expires_at > now)
                .values(spent_by=device, spent_at=now)
            )
            if spent.rowcount != 1:
                raise HttpProblem(403, "this token was used by another device; `cloudd invite` prints a new one")
            crash_point("invite.spent")
            wanted = await connection.scalar(select(invites.c.name).where(invites.c.token_id == token_id))
            await _write_device(connection, device, wanted or name, serial, certificate_until, now)
        crash_point("device.enrolled")


async def _write_device(
    connection: AsyncConnection, device: str, name: str, serial: str, certificate_until: float, now: float
) -> None:
    known = (await connection.execute(select(devices).where(devices.c.device_id == device))).mappings().first()
    values = {"name": name, "certificate_serial": serial, "certificate_until": certificate_until}
    if known is None:
        await connection.execute(insert(devices).values(device_id=device, enrolled_at=now, **values))
    elif known["revoked_at"] is not None:
        raise HttpProblem(403, f"this device was revoked; `cloudd devices restore {device[:7]}` lets it in again")
    else:
        await connection.execute(update(devices).where(devices.c.device_id == device).values(**values))
