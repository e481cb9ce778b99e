"""The record of who was let in and what was changed, written in the transaction of the change itself."""

from __future__ import annotations

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from cloudd.storage import schema


async def note(connection: AsyncConnection, at: float, action: str, subject: str, detail: str = "") -> None:
    """Add one line: a stable word for the action, what it was done to (device id, token id), details for people."""
    await connection.execute(insert(schema.audit).values(at=at, action=action, subject=subject, detail=detail[:500]))
