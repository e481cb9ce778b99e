"""What the gates have learned, kept over restarts: every answer as a row, and the gate's state as of some row."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path

import msgspec

from edged.collab.commits import Commits
from edged.store import Database
from edgekit.regions.header import RegionReason

log = logging.getLogger("edged.collab")

KEEP = 20_000
"""Answers kept for each pair of models, so that one which comes again is known; and all that no state contains yet."""

_ALL = (1 << 63) - 1

_MIGRATIONS = [
    """
    CREATE TABLE observations (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        pair TEXT NOT NULL,
        sample_id TEXT NOT NULL,
        score REAL NOT NULL,
        differs INTEGER NOT NULL,
        reason TEXT NOT NULL,
        answered_by TEXT NOT NULL,
        at REAL NOT NULL,
        UNIQUE (pair, sample_id)
    );
    CREATE TABLE gates (
        pair TEXT PRIMARY KEY,
        seq INTEGER NOT NULL,
        answered_by TEXT NOT NULL,
        snapshot BLOB NOT NULL,
        at REAL NOT NULL
    ) WITHOUT ROWID;
    """,
    # Both only where the gate asks for them: what the edge said, and what the cloud did.
    "ALTER TABLE observations ADD COLUMN label TEXT NOT NULL DEFAULT '';"
    "ALTER TABLE observations ADD COLUMN answer TEXT NOT NULL DEFAULT '';",
]


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of the cloud, as the gate takes it."""

    sample_id: str  # of a region: FRAME#k
    score: float  # hardness of the edge's answer, 0..1
    differs: bool  # the cloud's label is not the edge's
    reason: RegionReason
    answered_by: str  # name@version of the model that answered
    label: str = ""  # of a region: the edge's
    answer: str = ""  # of a region: the cloud's
    seq: int = 0  # its number once it is stored


class Recalled(msgspec.Struct, frozen=True):
    """What is known about one pair of models."""

    snapshot: bytes = b""  # b"": none
    answered_by: str = ""  # name@version of the model that answered last
    seq: int = 0  # last observation that the snapshot contains
    later: list[Observation] = []  # observations after it


def pair_key(service: str, edge_model: str, answer_model: str) -> str:
    """A gate's knowledge belongs to one service, one edge model and one answering model."""
    return msgspec.json.encode((service, edge_model, answer_model)).decode()


class GateMemory:
    """gate.db. Belongs to one event loop; every method raises CommitError when the disk does not play along."""

    def __init__(
        self,
        path: Path,
        executor: Executor,
        *,
        wall: Callable[[], float] = time.time,
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        """Opens nothing yet. `make_room` frees disk space for the database (see Database)."""
        self._path = path
        self._wall = wall
        self._make_room = make_room
        self._commits = Commits(self._open, executor)

    async def add(self, pair: str, answers: Sequence[Observation], seq: int) -> list[Observation]:
        """Append answers durably, all or none, but for those of samples whose answer is known already; all answers
        after number `seq`.

        Those of another worker are among them: while it is being replaced, it delivers the same spool.
        """
        now = self._wall()
        rows = [
            (pair, one.sample_id, one.score, one.differs, one.reason, one.answered_by, one.label, one.answer, now)
            for one in answers
        ]

        def insert(connection: sqlite3.Connection) -> list[Observation]:
            connection.executemany(
                "INSERT OR IGNORE INTO observations"
                " (pair, sample_id, score, differs, reason, answered_by, label, answer, at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            return _after(connection, pair, seq)

        return await self._commits.run(insert)

    async def after(self, pair: str, seq: int) -> list[Observation]:
        """All answers after number `seq`, in their order."""
        return await self._commits.run(lambda connection: _after(connection, pair, seq))

    async def save(self, pair: str, snapshot: bytes, seq: int, answered_by: str) -> None:
        """Store the gate's state, which contains every observation up to `seq`; of these only the newest KEEP stay."""
        row = (pair, seq, answered_by, snapshot, self._wall())

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO gates (pair, seq, answered_by, snapshot, at) VALUES (?, ?, ?, ?, ?)", row
            )
            _prune(connection, pair, seq)

        await self._commits.run(write)

    async def recall(self, pair: str) -> Recalled:
        """Everything stored about a pair; the newest KEEP of its observations, and those after the gate's state."""

        def read(connection: sqlite3.Connection) -> Recalled:
            gate = connection.execute("SELECT * FROM gates WHERE pair = ?", (pair,)).fetchone()
            if gate is None:
                _prune(connection, pair, _ALL)
                return Recalled(later=_after(connection, pair, 0))
            later = _after(connection, pair, gate["seq"])
            return Recalled(bytes(gate["snapshot"]), gate["answered_by"], gate["seq"], later)

        return await self._commits.run(read)

    async def close(self) -> None:
        """Finish what is under way, then close."""
        await self._commits.close()

    def _open(self) -> Database:
        database = Database(self._path, _MIGRATIONS, wall=self._wall, make_room=self._make_room)
        if database.quarantined is not None:
            log.error("The gates' memory was damaged; it was moved to %s, they calibrate anew.", database.quarantined)
        return database


def _prune(connection: sqlite3.Connection, pair: str, known: int) -> None:
    """Drop observations up to number `known`, but for the newest KEEP of all."""
    connection.execute(
        "DELETE FROM observations WHERE pair = ?1 AND seq <= ?2 AND seq <="
        " (SELECT seq FROM observations WHERE pair = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?3)",
        (pair, known, KEEP),
    )


def _after(connection: sqlite3.Connection, pair: str, seq: int) -> list[Observation]:
    rows = connection.execute(
        "SELECT seq, sample_id, score, differs, reason, answered_by, label, answer FROM observations"
        " WHERE pair = ? AND seq > ? ORDER BY seq",
        (pair, seq),
    )
    return [msgspec.convert(dict(row), Observation, strict=False) for row in rows]
