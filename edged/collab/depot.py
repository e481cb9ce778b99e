"""The spool as the event loop sees it: work in threads, bounded memory, and a new try after a bad disk."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from edged.collab.sealing import SealError
from edged.collab.spool import Spool, SpoolFull
from edged.store import StoreError
from edgekit.messages import Event, HardSample, SpoolReport

T = TypeVar("T")
log = logging.getLogger("edged.collab")

MAX_PENDING = 64 << 20
"""Bytes of pictures that may wait in memory for a slow disk."""


class Depot:
    """Belongs to one event loop. Without a usable spool it refuses every sample with a sentence until `open` works."""

    def __init__(
        self,
        opener: Callable[[], Spool],
        executor: Executor,
        quota: int,
        on_lost: Callable[[str], None],
        on_event: Callable[[Event], None],
        wall: Callable[[], float],
    ) -> None:
        """`opener` opens the spool in a thread. `on_lost` hears of each sample that could not be stored."""
        self._opener = opener
        self._executor = executor
        self._quota = quota
        self._on_lost = on_lost
        self._on_event = on_event
        self._wall = wall
        self._spool: Spool | None = None
        self._broken = False
        self._pending = 0
        self._tasks: set[asyncio.Task[str]] = set()

    async def open(self) -> bool:
        """Open the spool if it is not open; False (and a health event) if it cannot be used now."""
        if self._spool is not None:
            return True
        try:
            self._spool = await self._thread(self._opener)
        except (StoreError, OSError, SealError, sqlite3.Error) as error:
            if not self._broken:
                self._broken = True
                self._say("error", f"Hard samples cannot be stored: {error}. Local answers go on.")
            return False
        if self._broken:
            self._broken = False
            self._say("ok", "Hard samples are stored again.")
        return True

    def store(self, header: HardSample, picture: bytes, value: float) -> asyncio.Task[str]:
        """Begin to store a sample. The task's result is "" once it is durable, else why it is lost; it never raises.

        The task goes on when nobody waits for it any more.
        """
        task = asyncio.create_task(self._store(header, picture, value))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def run(self, work: Callable[[Spool], T]) -> T | None:
        """Run `work` with the spool in a thread; None if there is no spool or its disk does not play along."""
        spool = self._spool
        if spool is None:
            return None
        try:
            return await self._thread(lambda: work(spool))
        except (sqlite3.Error, OSError, StoreError) as error:
            log.warning("The spool could not be read or written: %s", error)
            return None

    def stats(self) -> SpoolReport:
        """Totals, without touching the disk."""
        return self._spool.stats() if self._spool is not None else SpoolReport(items=0, bytes=0, quota=self._quota)

    def release_ballast(self) -> bool:
        """Make room for another database; may be called from any thread."""
        return self._spool is not None and self._spool.release_ballast()

    async def close(self) -> None:
        """Wait until everything begun is on the disk, then close."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._spool is not None:
            spool, self._spool = self._spool, None
            await self._thread(spool.close)

    async def _store(self, header: HardSample, picture: bytes, value: float) -> str:
        why = ""
        if self._spool is None:
            why = "the spool cannot be used"
        elif self._pending + len(picture) > MAX_PENDING:
            why = "the disk is too slow for so many samples"
        else:
            spool = self._spool
            self._pending += len(picture)
            try:
                await self._thread(lambda: spool.put(header, picture, value))
            except (SpoolFull, ValueError) as error:
                why = str(error)
            except Exception as error:  # a disk can fail in any way; the gate must hear that the sample is gone
                log.exception("A sample could not be stored")
                why = f"the spool failed ({error})"
            finally:
                self._pending -= len(picture)
        if why:
            self._on_lost(header.sample_id)
            log.info("Sample %s of %s was not stored: %s", header.sample_id, header.service, why)
        return why

    async def _thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _say(self, level: str, text: str) -> None:
        self._on_event(
            Event(level="ok" if level == "ok" else "error", code="spool.unusable", text=text, at=self._wall())
        )
