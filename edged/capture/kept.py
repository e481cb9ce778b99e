"""Which files a service that keeps its files has done: a small table that survives restarts."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from edged.store import Database

_MIGRATIONS = [
    "CREATE TABLE kept (service TEXT, name BLOB, modified_ns INTEGER, size INTEGER, PRIMARY KEY (service, name))"
]


class Kept:
    """The files of one service; a file is known by name, modification time and size."""

    def __init__(self, path: Path, service: str, make_room: Callable[[], bool]) -> None:
        """Open the table at `path`, shared by all services. `make_room`: see Database. Raises StoreError."""
        self._service = service
        self._database = Database(path, _MIGRATIONS, make_room=make_room)
        rows = self._database.query("SELECT name, modified_ns, size FROM kept WHERE service = ?", (service,))
        self._files = {os.fsdecode(row[0]): (int(row[1]), int(row[2])) for row in rows}

    def has(self, name: str, modified_ns: int, size: int) -> bool:
        """Whether this very file was done."""
        return self._files.get(name) == (modified_ns, size)

    def add(self, name: str, modified_ns: int, size: int) -> None:
        """Remember a file durably. Raises sqlite3.Error."""
        row = (self._service, os.fsencode(name), modified_ns, size)
        self._database.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)", row)
        self._files[name] = (modified_ns, size)

    def forget_all_but(self, names: Collection[str]) -> None:
        """Drop the files that are not in the folder any more. Raises sqlite3.Error."""
        gone = self._files.keys() - names
        if not gone:
            return
        rows = [(self._service, os.fsencode(name)) for name in gone]
        self._database.executemany("DELETE FROM kept WHERE service = ? AND name = ?", rows)
        for name in gone:
            del self._files[name]

    def close(self) -> None:
        """Close the database."""
        self._database.close()
