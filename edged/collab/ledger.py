"""The record of what left the device: written and synced before the first byte goes, never changed afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Literal, NamedTuple

from edged.collab.commits import CommitError, Commits
from edged.store import Database
from edgekit.messages import HardSample

log = logging.getLogger("edged.collab")

Outcome = Literal["answered", "rejected", "unanswered", "unsent"]

MAX_RECORDS = 1_000_000
"""About 250 MB; the oldest go first. At one hard sample every 10 s this is four months."""

_MIGRATIONS = [
    """
    CREATE TABLE left_device (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at REAL NOT NULL,
        sample_id TEXT NOT NULL,
        service TEXT NOT NULL,
        reason TEXT NOT NULL,
        late INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        authority TEXT NOT NULL,
        outcome TEXT NOT NULL DEFAULT '',
        label TEXT NOT NULL DEFAULT ''
    );
    CREATE TRIGGER left_device_is_append_only
        BEFORE UPDATE OF seq, at, sample_id, service, reason, late, bytes, sha256, authority ON left_device
        BEGIN SELECT raise(ABORT, 'the record of what left the device is append-only'); END;
    CREATE TRIGGER left_device_outcome_is_final
        BEFORE UPDATE OF outcome, label ON left_device WHEN OLD.outcome <> ''
        BEGIN SELECT raise(ABORT, 'the record of what left the device is append-only'); END;
    """,
    """
    ALTER TABLE left_device ADD COLUMN regions INTEGER NOT NULL DEFAULT 0;
    DROP TRIGGER left_device_is_append_only;
    CREATE TRIGGER left_device_is_append_only
        BEFORE UPDATE OF seq, at, sample_id, service, reason, late, bytes, sha256, authority, regions ON left_device
        BEGIN SELECT raise(ABORT, 'the record of what left the device is append-only'); END;
    """,
    """
    ALTER TABLE left_device ADD COLUMN cut TEXT NOT NULL DEFAULT '';
    DROP TRIGGER left_device_is_append_only;
    CREATE TRIGGER left_device_is_append_only
        BEFORE UPDATE OF seq, at, sample_id, service, reason, late, bytes, sha256, authority, regions, cut
        ON left_device
        BEGIN SELECT raise(ABORT, 'the record of what left the device is append-only'); END;
    """,
]


class Ledger:
    """One row for each attempt to send a picture; the outcome is added when it is known."""

    def __init__(
        self,
        path: Path,
        executor: Executor,
        *,
        wall: Callable[[], float] = time.time,
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        """`make_room` frees disk space for the database (see Database). Opens nothing yet."""
        self._path = path
        self._wall = wall
        self._make_room = make_room
        self._commits = Commits(self._open, executor)
        self._background: set[asyncio.Task[None]] = set()

    async def record(self, header: HardSample, picture: bytes, authority: str) -> int:
        """Durably note that this picture is about to leave; the number for `outcome`. Raises CommitError.

        `authority` is the fingerprint of the authority whose cloudd will get it.
        """
        known = (self._wall(), header.sample_id, header.service, header.reason, header.late, len(picture))
        regions = 0 if header.mosaic is None else len(header.mosaic.regions())
        cut = "" if header.features is None else header.features.cut

        def insert(connection: sqlite3.Connection) -> int:
            row = (
                *known,
                hashlib.sha256(picture).hexdigest(),
                authority,
                regions,
                cut,
            )  # hashed here: this is not the event loop
            sql = (
                "INSERT INTO left_device (at, sample_id, service, reason, late, bytes, sha256, authority, regions,"
                " cut) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            )
            return int(connection.execute(sql, row).lastrowid or 0)

        try:
            return await self._commits.run(insert)
        except CommitError:
            if not self._make_room():
                raise
            return await self._commits.run(insert)

    def outcome(self, number: int, outcome: Outcome, label: str = "") -> None:
        """Note how it ended, in the background; after a power cut it stays open, which says "it may have left"."""

        async def update() -> None:
            sql = "UPDATE left_device SET outcome = ?, label = ? WHERE seq = ?"
            try:
                await self._commits.run(lambda connection: connection.execute(sql, (outcome, label, number)))
            except CommitError as error:
                log.warning("The outcome of a sent picture could not be recorded: %s", error)

        task = asyncio.create_task(update())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Write what is still to be written, then close."""
        if self._background:
            await asyncio.wait(self._background)
        await self._commits.close()

    def _open(self) -> Database:
        database = Database(self._path, _MIGRATIONS, wall=self._wall, make_room=self._make_room)
        if database.quarantined is not None:
            log.error(
                "The record of what left was damaged; it was moved to %s and a new one begun.", database.quarantined
            )
        database.execute("DELETE FROM left_device WHERE seq <= (SELECT max(seq) FROM left_device) - ?", (MAX_RECORDS,))
        return database


class Taught(NamedTuple):
    """A labelled picture that goes to cloudd to be learned from (`edged.train.retraining`)."""

    sample_id: str
    bytes: int  # that are sent
    sha256: str  # of these, hex


def record_taught(state_dir: Path, service: str, authority: str, pictures: Sequence[Taught], at: float) -> None:
    """Durably note that these pictures are about to leave; one that is on record for it already is not noted again.

    `at`: seconds since the epoch. Nothing answers them one by one, so the outcome says that each may have arrived.
    Raises StoreError, sqlite3.Error.
    """
    with Database(state_dir / "spool" / "left.db", _MIGRATIONS) as database:
        database.executemany(
            "INSERT INTO left_device (at, sample_id, service, reason, late, bytes, sha256, authority, outcome)"
            " SELECT ?1, ?2, ?3, 'retraining', 0, ?4, ?5, ?6, 'unanswered' WHERE NOT EXISTS (SELECT 1 FROM left_device"
            " WHERE sample_id = ?2 AND service = ?3 AND reason = 'retraining' AND sha256 = ?5 AND authority = ?6)",
            [(at, one.sample_id, service, one.bytes, one.sha256, authority) for one in pictures],
        )
