"""All jobs of this cloudd: asked for, filled with files, computed one after another, handed out, forgotten.

What counts is on the disk before it counts, so a cloudd that is killed anywhere goes on with the next start, and a
job's process from its last checkpoint. Nothing of one device is ever shown to another.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from cloudd.retraining.bench import Bench
from cloudd.retraining.errors import RetrainingError
from cloudd.retraining.folders import RESULT, DeviceFolder
from cloudd.retraining.record import JobRecord
from cloudd.retraining.shelf import Key, Shelf
from cloudd.retraining.view import RetrainingView
from edgekit.faults import crash_point
from edgekit.identity import short_id
from edgekit.messages.retraining import (
    ENDED,
    MAX_MISSING,
    Lacking,
    Missing,
    RetrainRequest,
    RetrainState,
    Stored,
    fault,
    job_of,
)

log = logging.getLogger("cloudd.retraining")

MOST, MOST_OF_DEVICE = 256, 32
"""Jobs that have not ended."""
_SAID = {"receiving": "waits for its files", "waiting": "has the job in its queue"}


class _Filling:
    """A job that files are still missing of."""

    def __init__(self, request: RetrainRequest, lacking: dict[str, int]) -> None:
        self.request, self.lacking = request, lacking
        self.lock = asyncio.Lock()


class Retraining:
    """`folder` is this room's own on the disk. `hours`: of computing for one model; 0: none is retrained.

    Methods raise RetrainingError for what a device may not, and OSError.
    """

    def __init__(self, folder: Path, hours: float, *, wall: Callable[[], float] = time.time) -> None:
        self._allowed = hours > 0
        self._shelf = Shelf(folder, wall)
        self._bench = Bench(self._shelf, hours * 3600.0, threads=max(1, (os.cpu_count() or 2) // 2))
        self._filling: dict[Key, _Filling] = {}
        self._locked_out: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    async def open(self, revoked: Iterable[str] = ()) -> None:
        """Read what is stored, forget what is old and what is of `revoked` devices, and begin to work."""
        await self._shelf.upkeep()
        for device in revoked:  # cloudd may have been killed before it came to that
            await self.lock_out(device)
        self._task = asyncio.create_task(self._bench.run(), name="retraining")

    async def close(self) -> None:
        """Stop working; the process saves what it has, and the next start goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._bench.close()

    # --- for devices --------------------------------------------------------------------------------------------------

    async def begin(self, device: str, job: str, body: bytes) -> RetrainState:
        """A device asks for a job, or again for the same one."""
        key = Key(device, job)
        if device in self._locked_out:  # it asked before it was, and its question was long under way
            raise RetrainingError(403, "this device is locked out")
        if not self._allowed:
            raise RetrainingError(422, "this cloudd retrains no models (retraining_hours = 0)")
        if job_of(body) != job:
            raise RetrainingError(409, "the request is not the one that the job is named after")
        async with self._shelf.changing:
            if key not in self._shelf.records:
                await self._begin(key, body)
        return self.state(device, job)

    def state(self, device: str, job: str) -> RetrainState:
        """Where a job of this device stands."""
        key = Key(device, job)
        record = self._shelf.record(key)
        self._asked(key)
        if record.stage == "waiting" and (found := self._bench.progress(key)) is not None:
            return RetrainState(stage="training", text=found.text, done=found.done, total=found.total)
        text = record.text or _SAID.get(record.stage, "")
        return RetrainState(stage=record.stage, text=text, digest=record.digest, files=record.files)

    async def missing(self, device: str, job: str) -> Missing:
        """What is not there yet."""
        filling = await self._to_fill(Key(device, job))
        if filling is None:
            return Missing()
        folder, first = self._shelf.folder(device), list(filling.lacking)[:MAX_MISSING]
        have = await asyncio.to_thread(lambda: [Lacking(sha256, folder.have(sha256)) for sha256 in first])
        return Missing(files=tuple(have), total=len(filling.lacking))

    async def store(self, device: str, job: str, sha256: str, offset: int, part: bytes) -> Stored:
        """A part of a file that the job needs."""
        key, folder = Key(device, job), self._shelf.folder(device)
        filling = await self._to_fill(key)
        request = filling.request if filling is not None else await asyncio.to_thread(_read, folder, job)
        size = request.files.get(sha256)
        if size is None:
            raise RetrainingError(404, "the job needs no such file")
        if filling is None or sha256 not in filling.lacking:
            return Stored(have=size, whole=True)
        async with filling.lock:
            have = await asyncio.to_thread(folder.store, sha256, size, offset, part)
            if have < size:
                return Stored(have=have, whole=False)
            filling.lacking.pop(sha256, None)
            crash_point("retraining.stored")
            if not filling.lacking:
                await self._filled(key)
        return Stored(have=size, whole=True)

    async def result(self, device: str, job: str, sha256: str) -> Path:
        """A file of the candidate."""
        record = self._shelf.record(Key(device, job))
        entry = next((one for one in record.files if one.sha256 == sha256), None)
        if record.stage != "done" or entry is None:
            raise RetrainingError(404, "the job has no such result")
        return self._shelf.folder(device).job(job) / RESULT / entry.path

    async def end(self, device: str, job: str, forget: bool = False) -> None:
        """The device has what it wanted, or wants it no longer. Its pictures stay for its next job (KEPT_S).

        `forget`: nothing of the job stays, and of its pictures only those that another job of the device names.
        """
        key = Key(device, job)
        if self._shelf.record(key).stage != "closed":
            await self._close(key, "the device has closed it")
        if forget:
            async with self._shelf.changing:
                await self._shelf.drop(key)

    # --- for operators ------------------------------------------------------------------------------------------------

    def jobs(self) -> list[RetrainingView]:
        """Every job that is on record, the newest first."""
        found = [self._view(key, record) for key, record in self._shelf.records.items()]
        return sorted(found, key=lambda one: (-one.created_at, one.job))

    async def remove(self, device: str, job: str) -> RetrainingView:
        """End a job and remove its pictures, but for those that another job of the device names.

        Its record stays, and tells the device, which would bring everything once more otherwise.
        """
        key = Key(device, job)
        self._shelf.record(key)
        self._filling.pop(key, None)
        async with self._shelf.changing:
            await self._shelf.close(key, "an operator of cloudd has removed it", removed=True)
            crash_point("retraining.removed")
            await self._bench.stop(key)
            await self._shelf.strip(key)
        return self._view(key, self._shelf.record(key))

    async def lock_out(self, device: str) -> None:
        """A device was revoked: nothing that it brought stays, and it begins no job until `admit`."""
        self._locked_out.add(device)
        folder = self._shelf.folder(device)
        async with self._shelf.changing:
            keys = [key for key in self._shelf.records if key.device == device]
            for key in keys:
                self._shelf.records.pop(key)
                self._filling.pop(key, None)
            await asyncio.to_thread(folder.remove)
            for key in keys:
                await self._bench.stop(key)
            if not await asyncio.to_thread(folder.remove):
                log.error("pictures of the revoked device %s are still in %s", short_id(device), folder.path)

    def admit(self, device: str) -> None:
        """A device was restored."""
        self._locked_out.discard(device)

    def _view(self, key: Key, record: JobRecord) -> RetrainingView:
        stage, text, progress = record.stage, record.text or _SAID.get(record.stage, ""), None
        if stage == "waiting" and (progress := self._bench.progress(key)) is not None:
            stage, text = "training", progress.text
        return RetrainingView(
            device_id=key.device,
            short_id=short_id(key.device),
            job=key.job,
            service=record.service,
            stage=stage,
            text=text,
            done=progress.done if progress is not None else 0,
            total=progress.total if progress is not None else 0,
            pictures=record.pictures,
            bytes=record.bytes,
            created_at=record.created_at,
            ended_at=record.ended_at,
            removed=record.removed,
        )

    # --- a job's beginning and end ------------------------------------------------------------------------------------

    async def _begin(self, key: Key, body: bytes) -> None:
        try:
            request = msgspec.json.decode(body, type=RetrainRequest)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RetrainingError(422, f"the request cannot be read: {error}") from None
        if reason := fault(request):
            raise RetrainingError(422, reason)
        records = self._shelf.records
        for one in [one for one, record in records.items() if record.stage not in ENDED]:
            if one.device == key.device and records[one].service == request.service:
                await self._close(one, "a newer job of the service took its place")
        living = [one for one, record in records.items() if record.stage not in ENDED]
        if len(living) >= MOST or sum(one.device == key.device for one in living) >= MOST_OF_DEVICE:
            raise RetrainingError(507, f"{len(living)} jobs are under way here; ask again later")
        folder = self._shelf.folder(key.device)
        lacking = await self._room_for(folder, request)
        record = JobRecord(
            service=request.service,
            stage="receiving" if lacking else "waiting",
            created_at=self._shelf.wall(),
            pictures=len(request.pictures),
            bytes=sum(request.files.values()),
        )
        await asyncio.to_thread(folder.begin, key.job, body, record)
        crash_point("retraining.begun")
        records[key] = record
        if lacking:
            self._filling[key] = _Filling(request, lacking)
        count, device = len(request.pictures), short_id(key.device)
        log.info("device %s asks for %s to be retrained with %d pictures", device, request.service, count)

    async def _room_for(self, folder: DeviceFolder, request: RetrainRequest) -> dict[str, int]:
        """What has to come, for which there is room, made if need be of what ended jobs have left."""
        lacking = await asyncio.to_thread(folder.lacking, request)
        if await asyncio.to_thread(folder.room, sum(lacking.values())):
            await self._shelf.forget_ended(folder.device)
            lacking = await asyncio.to_thread(folder.lacking, request)
            if reason := await asyncio.to_thread(folder.room, sum(lacking.values())):
                raise RetrainingError(507, reason)
        return lacking

    async def _to_fill(self, key: Key) -> _Filling | None:
        """What a job lacks; None if that is nothing. After a restart it is looked up once."""
        record = self._shelf.record(key)
        self._asked(key)
        if record.stage != "receiving":
            return None
        if key not in self._filling:
            folder = self._shelf.folder(key.device)
            request = await asyncio.to_thread(_read, folder, key.job)
            lacking = await asyncio.to_thread(folder.lacking, request)
            if not lacking:  # it was killed before it could say so
                await self._filled(key)
                return None
            self._filling.setdefault(key, _Filling(request, lacking))
        return self._filling[key]

    async def _filled(self, key: Key) -> None:
        """Everything is there."""
        self._filling.pop(key, None)
        await self._shelf.keep(key, replace(self._shelf.record(key), stage="waiting"))
        crash_point("retraining.received")
        self._bench.wake()

    async def _close(self, key: Key, why: str) -> None:
        self._filling.pop(key, None)
        await self._shelf.close(key, why)
        await self._bench.stop(key)
        await self._shelf.clear(key)

    def _asked(self, key: Key) -> None:
        self._shelf.ask(key)
        if self._shelf.record(key).stage == "waiting":
            self._bench.wake()


def _read(folder: DeviceFolder, job: str) -> RetrainRequest:
    """Blocks. Raises RetrainingError for a damaged request, OSError."""
    try:
        return folder.request(job)
    except (FileNotFoundError, msgspec.MsgspecError):
        raise RetrainingError(404, "the job is damaged or removed; ask for it anew") from None
