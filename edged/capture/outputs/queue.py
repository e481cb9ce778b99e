"""The durable queue of one network output: an SQLite file that two workers may share while they change over.

Decisions get rising numbers as they are committed. Those up to `through` are done with; the newest of these stay for a
while, so that a decision that comes again (after a crash, from a watched folder) is known by its sample id. The numbers
of what waits are kept in the same transaction, so that nothing is ever counted through.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edged.store import Database
from edgekit.messages import Decision

HISTORY = 1000
"""Decisions that stay known after their delivery."""
MAX_REFUSED = 1000
"""Refused decisions that are kept for people to look at."""
_MIGRATIONS = [
    """
    CREATE TABLE queue (id INTEGER PRIMARY KEY AUTOINCREMENT, sample_id TEXT NOT NULL UNIQUE, content BLOB NOT NULL);
    CREATE TABLE state (through INTEGER NOT NULL, waiting INTEGER NOT NULL, bytes INTEGER NOT NULL);
    INSERT INTO state VALUES (0, 0, 0);
    CREATE TABLE refused (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, sample_id TEXT NOT NULL,
                          reason TEXT NOT NULL, content BLOB NOT NULL);
    """
]


def lock(path: Path) -> int:
    """The descriptor of a lock that one process has at a time. Raises BlockingIOError, or another OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.utime(held)  # says when the queue was last in use
    except BaseException:
        os.close(held)
        raise
    return held


@dataclass(frozen=True, slots=True)
class Message:
    """A decision as the receiver gets it."""

    number: int
    sample_id: str
    content: bytes  # JSON


@dataclass(frozen=True, slots=True)
class Stored:
    """What has become of a batch."""

    waiting: int  # in the queue now
    dropped: int  # the oldest, for lack of room


class Queue:
    """Everything here blocks on the disk and raises StoreError, sqlite3.Error or OSError when that does not play along.

    Used by one thread at a time.
    """

    def __init__(self, path: Path, max_rows: int, max_bytes: int, make_room: Callable[[], bool]) -> None:
        """Opens nothing yet. `make_room` frees disk space (see Database)."""
        self._path = path
        self._max_rows, self._max_bytes, self._make_room = max_rows, max_bytes, make_room
        self._database: Database | None = None
        self._identity = (0, 0)
        self.quarantined: Path | None = None  # a damaged file of this queue was moved here

    def put(self, batch: Sequence[tuple[str, bytes]]) -> Stored:
        """Append sample ids and contents, durably; known ids are left out. The oldest go where room is missing."""
        with self._open().transaction() as connection:
            added = size = 0
            for sample_id, content in batch:
                sql = "INSERT OR IGNORE INTO queue (sample_id, content) VALUES (?, ?)"
                if connection.execute(sql, (sample_id, content)).rowcount:
                    added, size = added + 1, size + len(content)
            connection.execute("UPDATE state SET waiting = waiting + ?, bytes = bytes + ?", (added, size))
            dropped = self._fit(connection)
            return Stored(_waiting(connection), dropped)

    def _fit(self, connection: sqlite3.Connection) -> int:
        """Give up the oldest until the rest fits; how many."""
        through, waiting, size = connection.execute("SELECT through, waiting, bytes FROM state").fetchone()
        rows = connection.execute("SELECT id, length(content) FROM queue WHERE id > ? ORDER BY id", (through,))
        last = None
        while waiting > self._max_rows or size > self._max_bytes:
            row = rows.fetchone()
            if row is None:
                break
            last, waiting, size = row[0], waiting - 1, size - row[1]
        rows.close()
        return _advance(connection, last) if last is not None else 0

    def head(self, limit: int) -> list[Message]:
        """The oldest that wait, in their order."""
        rows = self._open().query(
            "SELECT id, sample_id, content FROM queue WHERE id > (SELECT through FROM state) ORDER BY id LIMIT ?",
            (limit,),
        )
        return [Message(*row) for row in rows]

    def waiting(self) -> int:
        """How many wait."""
        row = self._open().one("SELECT waiting FROM state")
        return row[0] if row is not None else 0

    def delivered(self, number: int) -> int:
        """Everything up to this number has arrived; how many still wait."""
        with self._open().transaction() as connection:
            _advance(connection, number)
            return _waiting(connection)

    def refused(self, message: Message, reason: str, now: float) -> int:
        """The oldest one that waits will never be taken: put it aside; how many still wait."""
        with self._open().transaction() as connection:
            row = (now, message.sample_id, reason, message.content)
            connection.execute("INSERT INTO refused (at, sample_id, reason, content) VALUES (?, ?, ?, ?)", row)
            connection.execute("DELETE FROM refused WHERE id <= (SELECT max(id) FROM refused) - ?", (MAX_REFUSED,))
            _advance(connection, message.number)
            return _waiting(connection)

    def known(self, service: str) -> Mapping[str, Decision | None]:
        """The newest decisions of a service, waiting and done, by sample id. They are kept whole."""
        newest = "SELECT sample_id, content FROM queue ORDER BY id DESC LIMIT ?"
        found: dict[str, Decision | None] = {}
        for sample_id, content in self._open().query(newest, (2 * HISTORY,)):
            try:
                decision = msgspec.json.decode(content, type=Decision)
            except (msgspec.MsgspecError, UnicodeDecodeError):  # damaged on the disk
                continue
            if decision.service == service:
                found[sample_id] = decision
        return found

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _open(self) -> Database:
        """The open database; anew if its file was moved away (another worker found it damaged) or removed."""
        if self._database is not None and self._identity != _identity(self._path):
            self.close()
        if self._database is None:
            database = Database(self._path, _MIGRATIONS, make_room=self._make_room)
            self.quarantined = database.quarantined or self.quarantined
            self._database, self._identity = database, _identity(self._path)
        return self._database


def _advance(connection: sqlite3.Connection, number: int) -> int:
    """Everything up to `number` is done with, if it was not before; how many that were."""
    through = connection.execute("SELECT through FROM state").fetchone()[0]
    if number <= through:
        return 0
    sums = "SELECT count(*), coalesce(sum(length(content)), 0) FROM queue WHERE id > ? AND id <= ?"
    count, size = connection.execute(sums, (through, number)).fetchone()
    connection.execute("UPDATE state SET through = ?, waiting = waiting - ?, bytes = bytes - ?", (number, count, size))
    connection.execute("DELETE FROM queue WHERE id <= ?", (number - HISTORY,))
    return int(count)


def _waiting(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT waiting FROM state").fetchone()[0])


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return status.st_dev, status.st_ino
