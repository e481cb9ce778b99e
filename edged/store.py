"""A thin wrapper around sqlite3 for everything edged keeps in tables: durable commits, migrations, quarantine."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

WAL_LIMIT = 1 << 20
"""Bytes. SQLite checkpoints at this size and truncates the log to it, so a ballast of 2x this frees a full disk."""

_PAGE = 4096
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


class StoreError(RuntimeError):
    """The database cannot be used: it is from a newer version, or the directory cannot be written."""


def is_corrupt(error: BaseException) -> bool:
    """True if SQLite says that the file is damaged or is no database at all."""
    return isinstance(error, sqlite3.DatabaseError) and _primary_code(error) in _CORRUPT


def is_disk_full(error: BaseException) -> bool:
    """True if SQLite could not write: no space left, or the write failed (which is how some file systems say it)."""
    return isinstance(error, sqlite3.DatabaseError) and _primary_code(error) in _FULL


def _says_disk_full(error: sqlite3.Error) -> bool:
    """While opening, a full disk also shows as "unable to open": the file for the shared index cannot be made."""
    return is_disk_full(error) or _primary_code(error) == sqlite3.SQLITE_CANTOPEN


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


class Database:
    """One SQLite file: WAL, `synchronous=FULL`, migrations counted in `user_version`.

    A committed transaction survives a power cut. A damaged file is moved aside as `NAME.bad-<seconds>` and an empty
    database takes its place; `quarantined` then names the old file, so that the owner can say so and rebuild.
    One connection behind one lock: safe to use from several threads; several processes may open the same file.
    """

    def __init__(
        self,
        path: Path,
        migrations: Sequence[str],
        *,
        wall: Callable[[], float] = time.time,
        make_room: Callable[[], bool] = lambda: False,
        alone: bool = False,
    ) -> None:
        """Open or create `path` (0600). `migrations[i]` is an SQL script that lifts version i to i + 1; never edit one.

        Even opening writes a little. `make_room` is called when the disk is full, frees some of it (True if it did),
        and opening, `execute` or `executemany` is tried once more. `alone`: no other process needs the file, so that a
        disk without any room keeps nobody from opening it: the log's index is then in memory instead of a file.
        Raises StoreError if the file was written by a newer version or cannot be opened.
        """
        self.path = path
        self.quarantined: Path | None = None
        self._migrations = tuple(migrations)
        self._make_room = make_room
        self._lock = threading.RLock()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as error:
                if is_corrupt(error):
                    self.quarantined = quarantine(path, wall())
                elif not _says_disk_full(error) or not (make_room() or alone):
                    raise
                try:
                    self._connection = self._open()
                except sqlite3.DatabaseError as again:
                    if not (alone and _says_disk_full(again)):
                        raise
                    self._connection = self._open(shared=False)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot open the database {path}: {error}") from error

    def _open(self, shared: bool = True) -> sqlite3.Connection:
        # Only a file that is not there is opened: to close one is to lose this process's locks on it (POSIX), and then
        # another process that ends removes the log of a connection that we have on it.
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self.path, timeout=5.0, isolation_level=None, check_same_thread=False)
        try:
            connection.row_factory = sqlite3.Row
            if not shared:  # said before the first access, SQLite keeps the log's index on the heap
                connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint={WAL_LIMIT // _PAGE}")
            connection.execute(f"PRAGMA journal_size_limit={WAL_LIMIT}")
            connection.execute("PRAGMA foreign_keys=ON")
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                damaged = sqlite3.DatabaseError(str(verdict))
                damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise damaged
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        if connection.execute("PRAGMA user_version").fetchone()[0] == len(self._migrations):
            return
        connection.execute("BEGIN IMMEDIATE")  # another process may be migrating the same file
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > len(self._migrations):
                raise StoreError(
                    f"the database {self.path} was written by a newer version of edged "
                    f"(schema {version}, this one knows {len(self._migrations)}); update edged or move the file away"
                )
            for script in self._migrations[version:]:
                for statement in _statements(script):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version={len(self._migrations)}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a SELECT. Columns are reachable by name and by position."""
        with self._lock:
            return self._connection.execute(sql, parameters).fetchall()

    def one(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        """First row of a SELECT, None if there is none."""
        with self._lock:
            row: sqlite3.Row | None = self._connection.execute(sql, parameters).fetchone()
            return row

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run one statement as its own durable transaction; the number of rows it changed."""
        return self._write(lambda connection: connection.execute(sql, parameters).rowcount)

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Run one statement for each row of parameters, in one durable transaction; the number of rows changed."""
        return self._write(lambda connection: connection.executemany(sql, rows).rowcount)

    def _write(self, work: Callable[[sqlite3.Connection], int]) -> int:
        try:
            with self.transaction() as connection:
                return work(connection)
        except sqlite3.OperationalError as error:
            if not (is_disk_full(error) and self._make_room()):
                raise
            with self.transaction() as connection:
                return work(connection)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Several statements, all or none. Durable when the block has been left without an exception.

        Raises sqlite3.OperationalError when the disk is full (see is_disk_full) or locked by others for 5 s.
        """
        with self._lock:
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connection; the log is folded into the file. Closing twice is allowed."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_reader(path: Path) -> sqlite3.Connection:
    """A read-only connection for another process than the owner. Raises sqlite3.OperationalError if there is none."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2.0, isolation_level=None)
    connection.row_factory = sqlite3.Row
    return connection


def quarantine(path: Path, now: float) -> Path:
    """Move a damaged database and its log files aside; the new name of the main file."""
    target = path.with_name(f"{path.name}.bad-{int(now)}")
    while target.exists():
        target = target.with_name(target.name + "x")
    for suffix in ("-wal", "-shm", ""):
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.rename(target.with_name(target.name + suffix))
    return target


def _statements(script: str) -> Iterator[str]:
    """Split an SQL script. `executescript` would commit the surrounding transaction, so it cannot be used here."""
    statement = ""
    for piece in script.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip() != ";":
                yield statement
            statement = ""
    if statement.strip(" \n\t;"):
        raise ValueError(f"incomplete SQL statement: {statement.strip()}")
