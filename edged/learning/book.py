"""Where learning is durable: one row for each service, and the record of every decision."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edged.learning.parts import MAX_LOG
from edged.learning.place import Place
from edged.store import Database
from edgekit.learning.records import Record

MIGRATIONS = [
    """
    CREATE TABLE places (service TEXT PRIMARY KEY, place TEXT NOT NULL);
    CREATE TABLE records (seq INTEGER PRIMARY KEY AUTOINCREMENT, service TEXT NOT NULL, record TEXT NOT NULL);
    CREATE INDEX records_of_service ON records (service, seq);
    """,
]


class Book:
    """Blocks; safe to use from several threads. The database is made by the first write."""

    def __init__(self, directory: Path) -> None:
        self._path, self._opening = directory / "learning.db", threading.Lock()
        self._database: Database | None = None
        self.quarantined: Path | None = None
        """A damaged database that was moved here."""

    def load(self) -> dict[str, Place]:
        """Every service's place. Raises StoreError.

        One that cannot be read (a release before this one wrote it) is left out: its service begins anew.
        """
        if not self._path.exists():
            return {}
        found: dict[str, Place] = {}
        for row in self._open().query("SELECT service, place FROM places"):
            try:
                found[row["service"]] = msgspec.json.decode(row["place"], type=Place)
            except msgspec.MsgspecError:
                continue
        return found

    def save(self, service: str, place: Place, records: Sequence[Record] = ()) -> None:
        """Store a place with what was decided: all or nothing, durable on return. Raises sqlite3.Error, StoreError."""
        with self._open().transaction() as connection:
            text = msgspec.json.encode(place).decode()
            connection.execute("INSERT OR REPLACE INTO places VALUES (?, ?)", (service, text))
            _record(connection, service, records)

    def remove(self, service: str) -> None:
        """Forget a service with its records. Raises sqlite3.Error, StoreError."""
        with self._open().transaction() as connection:
            connection.execute("DELETE FROM places WHERE service = ?", (service,))
            connection.execute("DELETE FROM records WHERE service = ?", (service,))

    def records(self, service: str, limit: int) -> list[Record]:
        """What was decided, the newest first. Raises sqlite3.Error, StoreError."""
        if not self._path.exists():
            return []
        rows = self._open().query(
            "SELECT record FROM records WHERE service = ? ORDER BY seq DESC LIMIT ?", (service, limit)
        )
        return [msgspec.json.decode(row["record"], type=Record) for row in rows]

    def close(self) -> None:
        """Close the database; closing twice is allowed."""
        if self._database is not None:
            self._database.close()

    def _open(self) -> Database:
        with self._opening:
            if self._database is None:
                self._database = Database(self._path, MIGRATIONS, alone=True)
                self.quarantined = self._database.quarantined
            return self._database


def _record(connection: sqlite3.Connection, service: str, records: Sequence[Record]) -> None:
    for record in records:
        text = msgspec.json.encode(record).decode()
        connection.execute("INSERT INTO records (service, record) VALUES (?, ?)", (service, text))
    if records:
        connection.execute(
            "DELETE FROM records WHERE service = ?1 AND seq <="
            " (SELECT seq FROM records WHERE service = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
            (service, MAX_LOG),
        )
