"""Durable rows without blocking the event loop: what is asked for at the same time is committed with one fsync."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from edged.store import Database, StoreError, is_corrupt

T = TypeVar("T")


class CommitError(RuntimeError):
    """The rows could not be written; the disk is full or the database cannot be opened. Trying later may work."""


class Commits:
    """Group commit for one database, which is opened by the first call and again after it broke.

    Belongs to one event loop. Every action runs in a thread inside a shared transaction; if one fails, all fail.
    """

    def __init__(self, opener: Callable[[], Database], executor: Executor) -> None:
        """`opener` opens the database; it runs in the executor and may raise StoreError."""
        self._opener = opener
        self._executor = executor
        self._database: Database | None = None
        self._waiting: list[tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]]] = []
        self._flushing: asyncio.Task[None] | None = None

    async def run(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Run `action` in a transaction; durable on return. Raises CommitError.

        The rows may be written although the caller was cancelled.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((action, future))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())
        return await future

    async def close(self) -> None:
        """Finish what was asked for, then close the database."""
        while self._flushing is not None:
            await asyncio.wait([self._flushing])
        if self._database is not None:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._database.close)
            self._database = None

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                try:
                    results = await loop.run_in_executor(self._executor, self._commit, [action for action, _ in batch])
                except Exception as error:  # every waiter must hear of it, whatever it is
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                            future.exception()  # a caller that left does not make it "never retrieved"
                    continue
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)
        finally:
            self._flushing = None

    def _commit(self, actions: list[Callable[[sqlite3.Connection], Any]]) -> list[Any]:
        try:
            if self._database is None:
                self._database = self._opener()
            with self._database.transaction() as connection:
                return [action(connection) for action in actions]
        except (StoreError, sqlite3.Error) as error:
            if self._database is not None and is_corrupt(error):
                self._database.close()  # the next call opens it again, which moves a damaged file aside
                self._database = None
            raise CommitError(str(error)) from error
