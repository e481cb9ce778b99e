"""The rows of all galleries of a device: sealed one by one in one SQLite file that several processes may open.

A removed row is overwritten, in the file and in its log. Free of numpy.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import msgspec

from edged.collab.sealing import Kek, SealError
from edged.gallery.records import MAX_PICTURES, MAX_ROWS, MAX_STRANGERS, Enrolled, GalleryError
from edged.store import Database

DIRECTORY = "gallery"
"""Of the state directory."""
_MAX_SEALED = 1 << 20
_MIGRATIONS = (
    """
    CREATE TABLE enrolled (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        service TEXT NOT NULL,
        sealed BLOB NOT NULL
    );
    CREATE INDEX enrolled_service ON enrolled (service, seq);
    """,
)


class GalleryStore:
    """Methods block on the disk and raise StoreError, sqlite3.Error or OSError besides what they name. Any thread."""

    def __init__(self, path: Path, kek: Kek, device_id: str) -> None:
        """Open or make the file. Raises StoreError."""
        self._kek, self._device_id = kek, device_id
        self._database = Database(path, _MIGRATIONS)
        self._database.query("PRAGMA secure_delete=ON")

    @classmethod
    def open(cls, state_dir: Path, device_id: str) -> GalleryStore:
        """That of a state directory, with the device's key; both are made where there are none.

        Raises SealError for a damaged key, StoreError or OSError.
        """
        environment = os.environ.get("CREDENTIALS_DIRECTORY")
        kek = Kek.open(state_dir / "keys" / "kek", Path(environment) if environment else None)
        return cls(path_in(state_dir), kek, device_id)

    @property
    def quarantined(self) -> Path | None:
        """Where a damaged file was moved to, if there was one."""
        return self._database.quarantined

    def version(self) -> int:
        """Another number once somebody else has changed anything; own changes do not count."""
        row = self._database.one("PRAGMA data_version")
        assert row is not None
        return int(row[0])

    def ids(self, service: str) -> list[str]:
        """Of a service's rows, the oldest first."""
        found = self._database.query("SELECT id FROM enrolled WHERE service = ? ORDER BY seq", (service,))
        return [row["id"] for row in found]

    def services(self) -> list[str]:
        """Names of the services that anybody was ever enrolled for."""
        return [row[0] for row in self._database.query("SELECT DISTINCT service FROM enrolled ORDER BY service")]

    def read(self, service: str, id: str) -> Enrolled:
        """One row. Raises KeyError if there is none (any more), SealError if it does not open."""
        row = self._database.one("SELECT sealed FROM enrolled WHERE service = ? AND id = ?", (service, id))
        if row is None:
            raise KeyError(id)
        plain = self._kek.unseal(bytes(row["sealed"]), self._device_id, _bound(service, id))
        try:
            found = msgspec.msgpack.decode(plain, type=Enrolled)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SealError(f"the enrolled picture {id} of {service} cannot be read: {error}") from None
        if not found.embedding or len(found.embedding) % 4:
            raise SealError(f"the enrolled picture {id} of {service} holds no embedding")
        return found

    def all(self, service: str) -> tuple[dict[str, Enrolled], list[str]]:
        """Every row that opens by its id, the oldest first; and the ids of those that do not."""
        found, closed = {}, []
        for id in self.ids(service):
            try:
                found[id] = self.read(service, id)
            except KeyError:
                continue
            except SealError:
                closed.append(id)
        return found, closed

    def add(self, service: str, enrolled: Enrolled, before: Iterable[str] = ()) -> str:
        """Store a row; its id. `before` are the ids of the same identity's, the oldest first: too many of them go.

        Raises GalleryError if the gallery is full.
        """
        before = list(before)
        most = MAX_PICTURES if enrolled.identity else MAX_STRANGERS
        id = secrets.token_hex(8)
        plain = msgspec.msgpack.encode(enrolled)
        if len(plain) > _MAX_SEALED:
            raise GalleryError(f"an embedding of {len(enrolled.embedding)} bytes cannot be enrolled")
        sealed = self._kek.seal(plain, self._device_id, _bound(service, id))
        with self._database.transaction() as connection:
            count = connection.execute("SELECT count(*) FROM enrolled WHERE service = ?", (service,)).fetchone()[0]
            if count >= MAX_ROWS:
                raise GalleryError(f"the gallery of {service} is full: it has {MAX_ROWS} pictures")
            connection.execute("INSERT INTO enrolled (id, service, sealed) VALUES (?, ?, ?)", (id, service, sealed))
            for old in before[: max(0, len(before) + 1 - most)]:
                connection.execute("DELETE FROM enrolled WHERE service = ? AND id = ?", (service, old))
        return id

    def remove(self, service: str, ids: Iterable[str]) -> int:
        """Forget rows for ever; how many there were."""
        removed = self._database.executemany(
            "DELETE FROM enrolled WHERE service = ? AND id = ?", [(service, id) for id in ids]
        )
        self._purge()
        return removed

    def clear(self, service: str) -> int:
        """Forget everybody of a service; how many rows there were."""
        removed = self._database.execute("DELETE FROM enrolled WHERE service = ?", (service,))
        self._purge()
        return removed

    def close(self) -> None:
        """Close the file; whatever returned is on the disk."""
        self._database.close()

    def _purge(self) -> None:
        """What is gone is overwritten in the file, but its log still has it until it is folded in."""
        try:
            self._database.query("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError:  # somebody reads just now: the next one does it, or closing
            return


def path_in(state_dir: Path) -> Path:
    """Where the galleries of a state directory lie."""
    return state_dir / DIRECTORY / "gallery.db"


def _bound(service: str, id: str) -> str:
    return f"gallery {service} {id}"
