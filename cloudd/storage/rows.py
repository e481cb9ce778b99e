"""Rows: SQLAlchemy Core over an engine chosen by URL; SQLite in one file unless somebody wants PostgreSQL.

    rows = await Rows.open("sqlite+aiosqlite:////var/lib/cloudd/cloudd.db")
    async with rows.reading() as connection:
        result = await connection.execute(select(schema.devices))
    async with rows.writing() as connection:          # one transaction: commits at the end, rolls back on an error
        await connection.execute(insert(schema.devices).values(...))

After `writing()` has ended without an error, what was written survives a power cut. Both raise StorageError when the
database itself fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, NoSuchModuleError, ProgrammingError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from cloudd.storage import migrate
from cloudd.storage.errors import StorageError

log = logging.getLogger("cloudd.storage")

_BUSY_MS = 10_000


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return URL.create("sqlite+aiosqlite", database=str(path)).render_as_string()


class Rows:
    """An open database, migrated to this release. Use `open`, not the constructor."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        # SQLite has one writer at a time. Waiting here is fair and costs nothing; its own busy wait polls in a thread.
        self._write_lock = asyncio.Lock() if engine.dialect.name == "sqlite" else None

    @classmethod
    async def open(cls, url: str) -> Rows:
        """Connect, create or migrate the tables (with a log line for each step). Raises StorageError."""
        try:
            parsed = make_url(url)
            ping = parsed.get_backend_name() != "sqlite"  # a server may have gone away; a file has not
            engine = create_async_engine(parsed, pool_size=4, max_overflow=4, pool_pre_ping=ping)
            if engine.dialect.name == "sqlite":
                await asyncio.to_thread(_private_file, parsed.database)
        except (NoSuchModuleError, ModuleNotFoundError, SQLAlchemyError, TypeError) as error:
            raise StorageError(f"the database URL {_shown(url)} cannot be used: {error}") from None
        except OSError as error:
            raise StorageError(f"the database file cannot be created: {error}") from None
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine)
        rows = cls(engine)
        try:
            async with rows.writing() as connection:
                await connection.run_sync(migrate.upgrade)
        except OSError as error:  # a server that refuses the connection
            await engine.dispose()
            raise StorageError(f"the database {_shown(url)} cannot be reached: {error}") from None
        except BaseException:
            await engine.dispose()
            raise
        return rows

    @contextlib.asynccontextmanager
    async def reading(self, *, single: bool = False) -> AsyncIterator[AsyncConnection]:
        """A connection for SELECTs, on one consistent snapshot.

        `single`: for no more than one of them, which needs no transaction and so half the ways to the driver's thread.
        """
        with _explained():
            async with self.engine.connect() as connection:
                if single:
                    connection = await connection.execution_options(cloudd_single=True)
                yield connection

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction. Keep it short, and never await a network peer or a blob inside: other writers wait."""
        with _explained():
            async with self._write_lock or contextlib.nullcontext(), self.engine.connect() as connection:
                connection = await connection.execution_options(cloudd_write=True)
                async with connection.begin():
                    yield connection

    async def close(self) -> None:
        """Close every connection. For SQLite this also folds the write-ahead log into the file."""
        await self.engine.dispose()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """A database that fails (disk full, file damaged, server gone) becomes StorageError; a wrong statement does not."""
    try:
        yield
    except (IntegrityError, ProgrammingError):
        raise
    except DBAPIError as error:
        raise StorageError(f"the database failed: {error.orig}") from error


def _private_file(database: str | None) -> None:
    """Create the database file for its owner only, before SQLite would create it by the umask."""
    if database and database != ":memory:":
        path = Path(database)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600, exist_ok=True)


def _prepare_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not open transactions on its own; `begin` below does
        cursor = connection.cursor()
        for pragma in (
            "journal_mode = WAL",  # readers and the writer do not wait for each other
            "synchronous = FULL",  # a commit is on the disk when it returns
            "foreign_keys = ON",
            f"busy_timeout = {_BUSY_MS}",  # another process may hold the file: the command line, a backup
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        # A transaction that reads first and writes later fails with "database is locked" when somebody wrote between;
        # a writer therefore takes the lock when it begins.
        options = connection.get_execution_options()
        if options.get("cloudd_single", False):
            return
        write = options.get("cloudd_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    @event.listens_for(engine.sync_engine, "invalidate")
    def invalidate(connection: Any, _record: object, _error: BaseException | None) -> None:
        # A task was cancelled in the middle of a statement. SQLAlchemy only closes the connection, and SQLite keeps a
        # closed connection's transaction, with its lock, until the last cursor is garbage.
        connection.rollback()


def _shown(url: str) -> str:
    """A database URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "given"
