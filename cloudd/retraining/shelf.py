"""The records of all jobs, stored before they count, and who has asked for them of late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from cloudd.retraining.errors import RetrainingError
from cloudd.retraining.folders import RESULT, WORK, DeviceFolder, folders
from cloudd.retraining.record import JobRecord
from edgekit.messages.retraining import ENDED

KEPT_S = 30 * 86_400.0
"""So long pictures and candidates stay after their job has ended, or was begun and never filled."""
ABSENT_S = 2 * 3600.0
"""A device that waits asks every five minutes."""


class Key(NamedTuple):
    """Of a job."""

    device: str
    job: str


class Shelf:
    """Belongs to one event loop; what blocks runs in threads. `wall` gives seconds since the epoch. Raises OSError."""

    def __init__(self, root: Path, wall: Callable[[], float] = time.time) -> None:
        self._root, self.wall = root, wall
        self.changing = asyncio.Lock()
        """Held while jobs come or go."""
        self.records: dict[Key, JobRecord] = {}
        self._asked: dict[Key, float] = {}  # monotonic

    def folder(self, device: str) -> DeviceFolder:
        """What lies on the disk for a device. Raises RetrainingError for what is no device's name."""
        return DeviceFolder(self._root, device)

    def record(self, key: Key) -> JobRecord:
        """Where a job stands. Raises RetrainingError without one."""
        record = self.records.get(key)
        if record is None:
            raise RetrainingError(404, "this device has no such job here")
        return record

    async def keep(self, key: Key, record: JobRecord) -> None:
        """Where a job stands from now on."""
        await asyncio.to_thread(self.folder(key.device).keep, key.job, record)
        self.records[key] = record

    async def close(self, key: Key, why: str, removed: bool = False) -> None:
        """A job is over for its device; `clear` it (`strip` it if `removed`) when nothing works on it any more."""
        closed = replace(
            self.record(key),
            stage="closed",
            text=why,
            ended_at=self.wall(),
            files=(),
            digest="",
            removed=removed,
        )
        await self.keep(key, closed)

    async def clear(self, key: Key) -> None:
        """Remove what was computed for a job, and its candidate."""
        await asyncio.to_thread(self.folder(key.device).clear, key.job, WORK, RESULT)

    async def strip(self, key: Key) -> None:
        """Nothing of a closed job stays but its record, so that its device learns what became of it."""
        await asyncio.to_thread(self.folder(key.device).strip, key.job)

    async def drop(self, key: Key) -> None:
        """Forget an ended job, with the files that only it names."""
        folder = self.folder(key.device)
        await asyncio.to_thread(folder.drop, key.job)
        self.records.pop(key, None)
        await asyncio.to_thread(folder.remove_unused)

    async def forget_ended(self, device: str) -> None:
        """Forget the ended jobs of a device, with the files that only they name."""
        folder = self.folder(device)
        for key in [key for key, record in self.records.items() if key.device == device and record.stage in ENDED]:
            await asyncio.to_thread(folder.drop, key.job)
            self.records.pop(key)
        await asyncio.to_thread(folder.remove_unused)

    async def upkeep(self, busy: Key | None = None) -> None:
        """Forget what is old, but nothing of a device whose job is `busy`, and know what is left."""

        def look() -> dict[Key, JobRecord]:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = {}
            for folder in folders(self._root):
                if busy is None or busy.device != folder.device:
                    folder.forget(self.wall() - KEPT_S)
                found.update({Key(folder.device, job): record for job, record in folder.jobs()})
            return found

        async with self.changing:
            found = await asyncio.to_thread(look)
            self.records = {key: self.records.get(key, record) for key, record in found.items()}

    # --- who waits ----------------------------------------------------------------------------------------------------

    def ask(self, key: Key) -> None:
        """Its device has asked for a job."""
        self._asked[key] = time.monotonic()

    def waits(self, key: Key) -> bool:
        """Whether its device has asked for it within ABSENT_S."""
        asked = self._asked.get(key)
        return asked is not None and time.monotonic() - asked < ABSENT_S
