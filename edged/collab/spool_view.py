"""Reads what waits in the spool, and the record of what left, for another process than the owner. Changes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edged.store import open_reader

T = TypeVar("T", bound=msgspec.Struct)


class SpooledSample(msgspec.Struct, frozen=True, kw_only=True):
    """One sample that waits on disk. Times are seconds since the epoch."""

    id: str
    service: str
    answer_model: str
    reason: str  # hard | audit | calibrating | safe-mode, "" if unreadable
    value: float  # the least valuable is evicted first
    captured_at: float
    stored_at: float
    bytes: int  # on the disk
    state: str  # waiting | held (nothing may leave) | finished (is being removed) | unreadable (does not open)


class LeftRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One picture, or mosaic of its regions, or features of it that left. Times are seconds since the epoch."""

    at: float
    sample_id: str
    service: str
    reason: str
    late: bool  # it came from the spool
    bytes: int  # of the picture
    sha256: str  # of the picture, hex
    authority: str  # fingerprint of the authority whose cloudd received it
    outcome: str  # answered | rejected | unanswered (it may have arrived) | unsent | "" (the power failed meanwhile)
    label: str  # the cloud's answer, "" without one
    regions: int = 0  # it was a mosaic of so many regions; 0: a whole picture
    cut: str = ""  # it was no picture, but the features of this cut of the answer model


def spooled(state_dir: Path, service: str = "", limit: int = 100) -> list[SpooledSample]:
    """The samples that wait, the most valuable first; of one service, or of all. [] before there is a spool."""
    return _read(
        state_dir / "spool" / "index.db",
        SpooledSample,
        "SELECT id, service, answer_model, reason, value, captured_at, stored_at, bytes,"
        " CASE WHEN held AND state = 'waiting' THEN 'held' ELSE state END AS state FROM samples"
        " WHERE ? IN ('', service) ORDER BY value DESC, stored_at LIMIT ?",
        (service, limit),
    )


def totals(state_dir: Path) -> dict[str, int]:
    """items, bytes, evicted, delivered, rejected, expired, purged. {} before there is a spool."""
    rows = _rows(state_dir / "spool" / "index.db", "SELECT name, n FROM totals", ())
    return {row["name"]: row["n"] for row in rows}


def left(state_dir: Path, service: str = "", limit: int = 100) -> list[LeftRecord]:
    """What left the device, the newest first; of one service, or of all. [] before anything did."""
    return _read(
        state_dir / "spool" / "left.db",
        LeftRecord,
        "SELECT * FROM left_device WHERE ? IN ('', service) ORDER BY seq DESC LIMIT ?",
        (service, limit),
    )


def _read(path: Path, kind: type[T], sql: str, parameters: Sequence[Any]) -> list[T]:
    return [msgspec.convert(dict(row), kind, strict=False) for row in _rows(path, sql, parameters)]


def _rows(path: Path, sql: str, parameters: Sequence[Any]) -> list[sqlite3.Row]:
    """No file, no table yet, or a damaged file that its owner is about to replace: nothing to show."""
    try:
        connection = open_reader(path)
    except sqlite3.Error:
        return []
    try:
        return connection.execute(sql, parameters).fetchall()
    except sqlite3.Error:
        return []
    finally:
        connection.close()
