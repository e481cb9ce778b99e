"""Where jobs are computed: one at a time, the devices in turn, each in a process of its own.

A job whose device has not asked for so long as ABSENT_S rests: nothing is computed for whom nobody waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping

from msgspec.structs import replace

from cloudd.retraining.folders import RESULT, WORK
from cloudd.retraining.order import Ended, Progress, WorkOrder
from cloudd.retraining.process import Working
from cloudd.retraining.record import JobRecord
from cloudd.retraining.shelf import Key, Shelf
from edgekit import packages
from edgekit.faults import crash_point
from edgekit.identity import short_id
from edgekit.messages import FileEntry
from edgekit.packages import MANIFEST_NAME, Package, PackageError

log = logging.getLogger("cloudd.retraining")

BREAKS = 3
"""Of a job's process: then it has failed."""
_RETRY_S = 60.0
_UPKEEP_S = 3600.0
_LOOK_S = 30.0


class Bench:
    """`run` as a task, then `close`. `seconds`: of computing for one job."""

    def __init__(self, shelf: Shelf, seconds: float, threads: int) -> None:
        self._shelf, self._seconds, self._threads = shelf, seconds, threads
        self._not_before: dict[Key, float] = {}  # monotonic
        self._served: dict[str, float] = {}  # device -> when a job of it was begun last, monotonic
        self._running: tuple[Key, Working] | None = None
        self._progress: Progress | None = None
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def progress(self, key: Key) -> Progress | None:
        """How far the process of this job is; None if it has none."""
        if self._running is None or self._running[0] != key:
            return None
        return self._progress or Progress(text="begins", done=0, total=0)

    async def stop(self, key: Key) -> None:
        """End the process of this job, if it has one."""
        if self._running is not None and self._running[0] == key:
            await self._running[1].stop()

    async def close(self) -> None:
        """End the process, once `run` was cancelled; it saves what it has, and the next start goes on."""
        if self._running is not None:
            await self._running[1].stop()
            self._running = None

    async def run(self) -> None:
        """One job after another, until cancelled. What cannot be stored now is tried again."""
        cleaned = time.monotonic()
        while True:
            self._wake.clear()
            try:
                if time.monotonic() - cleaned >= _UPKEEP_S:
                    cleaned = time.monotonic()
                    await self._shelf.upkeep()
                if (key := self._next()) is not None:
                    await self._compute(key)
                    continue
            except OSError as error:
                log.error("retraining waits for the disk: %s", error)
                await asyncio.sleep(_RETRY_S)
            except Exception:  # a bug in one job must not keep all others from theirs for good
                log.exception("retraining met an error that it does not know")
                await asyncio.sleep(_RETRY_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._wake.wait()

    def _next(self) -> Key | None:
        now = time.monotonic()
        ready = {
            key: record
            for key, record in self._shelf.records.items()
            if record.stage == "waiting" and self._shelf.waits(key) and self._not_before.get(key, 0.0) <= now
        }
        return whose_turn(ready, self._served)

    async def _compute(self, key: Key) -> None:
        """A job in its process, until that ends or nobody waits any more."""
        folder = self._shelf.folder(key.device)
        order = WorkOrder(
            folder=str(folder.job(key.job)), files=str(folder.files), seconds=self._seconds, threads=self._threads
        )
        try:
            working = await Working.start(order, self._say)
        except OSError as error:
            await self._broke(key, f"its process cannot be started: {error}")
            return
        self._running, self._progress = (key, working), None
        self._served[key.device] = time.monotonic()
        try:
            outcome = await self._attended(key, working)
            record = self._shelf.records.get(key)
            if record is None or record.stage != "waiting":  # closed meanwhile, or forgotten
                await self._shelf.clear(key)
            elif isinstance(outcome, str):
                await self._broke(key, outcome)
            else:
                await self._ended(key, outcome)
        finally:
            if working.over:
                self._running = None

    async def _attended(self, key: Key, working: Working) -> Ended | str:
        while True:
            try:
                async with asyncio.timeout(_LOOK_S):
                    return await working.ended()
            except TimeoutError:
                if not self._shelf.waits(key):
                    log.info("nobody waits for the retraining of device %s; it rests", short_id(key.device))
                    return await working.stop()

    async def _ended(self, key: Key, outcome: Ended) -> None:
        record, now = self._shelf.record(key), self._shelf.wall()
        if outcome.kind == "paused":
            return
        if outcome.kind == "failed":
            await self._broke(key, outcome.reason)
            return
        folder = self._shelf.folder(key.device)
        if outcome.kind == "refused":
            refused = replace(record, stage="refused", text=outcome.reason[:1000], ended_at=now)
            await self._shelf.keep(key, refused)
        else:
            try:
                package = await asyncio.to_thread(packages.open_package, folder.job(key.job) / RESULT)
            except PackageError as error:
                folder.clear(key.job, RESULT)
                await self._broke(key, f"its package is damaged: {error}")
                return
            done = replace(record, stage="done", ended_at=now, digest=package.digest, files=_files(package))
            crash_point("retraining.made")
            await self._shelf.keep(key, done)
        await asyncio.to_thread(folder.clear, key.job, WORK)
        log.info("the retraining of device %s ended: %s", short_id(key.device), outcome.reason or outcome.kind)

    async def _broke(self, key: Key, how: str) -> None:
        """The same job once more, unless its process broke too often."""
        record = self._shelf.record(key)
        record = replace(record, breaks=record.breaks + 1)
        if record.breaks >= BREAKS:
            text = f"its process broke {BREAKS} times: {how}"[:1000]
            record = replace(record, stage="failed", text=text, ended_at=self._shelf.wall())
        log.warning("the retraining of device %s broke: %s", short_id(key.device), how)
        self._not_before[key] = time.monotonic() + _RETRY_S
        await self._shelf.keep(key, record)

    def _say(self, progress: Progress) -> None:
        self._progress = progress


def whose_turn(ready: Mapping[Key, JobRecord], served: Mapping[str, float]) -> Key | None:
    """The oldest job of the device that was served longest ago, so that one with many jobs delays nobody."""
    return min(ready, key=lambda key: (served.get(key.device, 0.0), ready[key].created_at), default=None)


def _files(package: Package) -> tuple[FileEntry, ...]:
    hashes = {**package.manifest.files, MANIFEST_NAME: package.digest}
    sizes = {**package.sizes, MANIFEST_NAME: (package.root / MANIFEST_NAME).stat().st_size}
    return tuple(FileEntry(path=path, sha256=sha256, size=sizes[path]) for path, sha256 in sorted(hashes.items()))
