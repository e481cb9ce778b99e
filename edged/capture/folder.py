"""A watched folder as a source of pictures: found by polling, decided, recorded, and only then moved or deleted.

Polling, because it works on every file system, network shares included, and after a restart needs no history. A file
is complete when size and modification time have not changed for `settle_ms`. Hidden files, links, special files,
unfinished downloads (.tmp, .part) and the service's own output files are left alone.

What a power cut may and may not do: the decision is durable in every output before the file moves, so no picture is
lost. A crash between the two leaves the file in place with its decision already written. The sample id of a file
follows from its name, modification time and content, so after a restart its line is found in the last megabyte of the
outputs, or in their queues (and copied to an output that lacks it) and the file is moved without being decided again.
With `after = "keep"` a small database remembers what was done.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

from edged.capture.files import MAX_PICTURE, FoundFile, OpenFolder
from edged.capture.outputs import Notify, Output, OutputError
from edged.serve.sample_id import file_id
from edged.store import StoreError
from edgekit.faults import crash_point
from edgekit.messages import Decision
from edgekit.services import Source

log = logging.getLogger("edged.capture")

CONCURRENT = 4
"""Files of one folder under way at a time: some may wait for the cloud while others are decided here."""
PATIENCE_S = 1.0
"""Pause before something that failed is tried again."""
_LOCKED_S = 0.2
_HAND_OVER_S = 20.0  # longer than an old worker takes to finish its files

_Failure = (OSError, StoreError, sqlite3.Error)

T = TypeVar("T")


class Refused(Exception):
    """The picture can never be decided; the text says why. The file goes to refused/."""


class NotNow(Exception):
    """The picture could not be decided now (overload, shutdown); the file stays and is tried again."""


class Inspect(Protocol):
    """Decides about one picture. Raises Refused or NotNow."""

    def __call__(self, picture: bytes, *, sample_id: str, captured_at: float, serial: str) -> Awaitable[Decision]: ...


class Record(Protocol):
    """Returns once the decision is durable in these outputs, or raises OutputError."""

    def __call__(self, decision: Decision, outputs: Collection[str]) -> Awaitable[None]: ...


class FolderSource:
    """Watches one folder for one service. `run` until `stop`.

    Only one process watches a folder at a time (a lock on the folder): while a new worker takes over, it waits until
    the old one has finished its files.
    """

    def __init__(
        self,
        service: str,
        source: Source,
        outputs: Sequence[Output],
        inspect: Inspect,
        record: Record,
        notify: Notify,
        kept_database: Path,
        make_room: Callable[[], bool],
    ) -> None:
        """`make_room` frees disk space for the database (see Database); it is called in a thread."""
        self._service, self._source, self._outputs = service, source, list(outputs)
        self._inspect, self._record, self._notify = inspect, record, notify
        self._kept_database, self._make_room = kept_database, make_room
        self._interval = min(max(source.settle_ms / 2000, 0.05), 0.5)
        self._stopping = asyncio.Event()
        # File operations run beside the loop, in threads of their own: a network share can hang for minutes.
        self._executor = ThreadPoolExecutor(2, thread_name_prefix=f"folder-{service}")
        self._decided: dict[str, tuple[Decision | None, set[str]]] = {}
        self._backlog: list[FoundFile] = []
        self._busy: set[str] = set()
        self._trouble = False
        self._refused = False
        self._stuck: set[str] = set()  # names of files that could not be worked on

    def stop(self) -> None:
        """Take no new file; `run` returns when the files under way are finished."""
        self._stopping.set()

    async def run(self) -> None:
        """Watch until stopped. A folder that is missing or unreadable is reported and waited for."""
        locked_for = 0.0
        try:
            while not self._stopping.is_set():
                try:
                    folder = await self._thread(self._open)
                except Exception as error:  # whatever it is: a folder that nobody watches any more stops a line
                    await self._unhealthy(error)
                    continue
                if folder is None:
                    locked_for += _LOCKED_S
                    if locked_for > _HAND_OVER_S:
                        await self._unhealthy(OSError(errno.EBUSY, "another service or process watches it"))
                    await self._pause(_LOCKED_S)
                    continue
                locked_for = 0.0
                try:
                    await self._watch(folder)
                except Exception as error:
                    await self._unhealthy(error)
                finally:
                    folder.close()
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)

    async def _watch(self, folder: OpenFolder) -> None:
        """Work on an opened folder until stopped. Raises OSError when it cannot be listed any more."""
        tasks: set[asyncio.Task[None]] = set()
        try:
            while not self._stopping.is_set():
                if not self._backlog:
                    busy = frozenset(self._busy)
                    self._backlog = await self._thread(lambda: folder.scan(time.monotonic(), busy))  # noqa: B023
                    self._healthy()
                    if self._stuck:
                        self._unstick(self._stuck - busy - folder.waiting())
                while self._backlog and len(tasks) < CONCURRENT:
                    file = self._backlog.pop(0)
                    self._busy.add(file.name)
                    tasks.add(asyncio.create_task(self._process(folder, file)))
                if tasks:
                    _, tasks = await asyncio.wait(tasks, timeout=self._interval, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await self._pause(self._interval)
        finally:
            self._backlog = []
            if tasks:
                await asyncio.wait(tasks)

    async def _thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _open(self) -> OpenFolder | None:
        ignored = [path for output in self._outputs for path in output.files()]
        folder = OpenFolder.open(self._source, self._service, ignored, self._kept_database, self._make_room)
        if folder is not None:
            # Only with the lock in hand: before that, another worker may still write.
            self._decided = _written(self._outputs, self._service)
        return folder

    def _healthy(self) -> None:
        if self._trouble:
            self._trouble = False
            self._notify("ok", f"folder:{self._service}", f"the folder {self._source.path} is watched again")

    async def _unhealthy(self, error: Exception) -> None:
        if not isinstance(error, _Failure):
            log.error("%s failed on its folder", self._service, exc_info=error)
        if not self._trouble:
            self._trouble = True
            self._notify(
                "warning",
                f"folder:{self._service}",
                f"{self._service} cannot watch the folder {self._source.path}: {_reason(error)}; it is tried again",
            )
        await self._pause(PATIENCE_S)

    # --- one file ---------------------------------------------------------------------------------------------------

    async def _process(self, folder: OpenFolder, file: FoundFile) -> None:
        try:
            await self._decide(folder, file)
            self._unstick({file.name})
        except _Failure as error:
            self._stuck.add(file.name)
            self._notify(
                "warning",
                f"folder-file:{self._service}",
                f"{self._service} cannot work on the file {file.text}: {_reason(error)}",
            )
            await self._pause(PATIENCE_S)
        except Exception:
            log.exception("%s failed on the file %s", self._service, file.text)
            await self._pause(PATIENCE_S)
        finally:
            self._busy.discard(file.name)

    def _unstick(self, names: set[str]) -> None:
        """These files are done with, or gone."""
        stuck = self._stuck
        self._stuck = stuck - names
        if stuck and not self._stuck:
            self._notify("ok", f"folder-file:{self._service}", f"{self._service} works on all of its files again")

    async def _decide(self, folder: OpenFolder, file: FoundFile) -> None:
        data = await self._thread(lambda: folder.read(file))
        if data is None:
            return
        sample_id = file_id(self._service, file.name, file.modified_ns, data)
        decision, recorded = self._decided.get(sample_id, (None, set()))
        missing = [output.key for output in self._outputs if output.key not in recorded]
        if decision is None and missing:
            try:
                decision = await self._ask(file, sample_id, data)
            except Refused as error:
                reason = str(error)
                self._refused = True
                self._notify(
                    "warning",
                    f"picture-refused:{self._service}",
                    f"{self._service} refused the file {file.text}: {reason}",
                )
                await self._thread(lambda: folder.refuse(file, sample_id, reason))
                return
            except NotNow:
                await self._pause(PATIENCE_S)
                return
        if decision is not None and missing and not await self._recorded(decision, missing):
            return  # the file stays; if its line was written after all, the next start finds it
        self._decided[sample_id] = (decision, {output.key for output in self._outputs})  # should it not move
        crash_point("folder.decided")
        await self._thread(lambda: folder.finish(file, sample_id))
        crash_point("folder.moved")
        del self._decided[sample_id]
        if self._refused:
            self._refused = False
            self._notify("ok", f"picture-refused:{self._service}", f"{self._service} reads pictures again")

    async def _ask(self, file: FoundFile, sample_id: str, data: bytes) -> Decision:
        if len(data) > MAX_PICTURE:
            raise Refused(f"the file is larger than {MAX_PICTURE} bytes")
        serial = PurePosixPath(file.text).stem[:200]
        return await self._inspect(data, sample_id=sample_id, captured_at=file.modified_ns / 1e9, serial=serial)

    async def _recorded(self, decision: Decision, outputs: Collection[str]) -> bool:
        """Make the decision durable, however often that has to be tried; False if we are stopped before."""
        while True:
            try:
                await self._record(decision, outputs)
                return True
            except OutputError as error:
                log.warning("%s: %s", self._service, error)
            if self._stopping.is_set():
                return False
            await self._pause(PATIENCE_S)


def _written(outputs: Sequence[Output], service: str) -> dict[str, tuple[Decision | None, set[str]]]:
    """The service's newest decisions by sample id, where an output has them whole, and which outputs have them."""
    found: dict[str, tuple[Decision | None, set[str]]] = {}
    for output in outputs:
        for sample_id, decision in output.written(service).items():
            known, keys = found.get(sample_id, (None, set()))
            found[sample_id] = (known or decision, keys | {output.key})
    return found


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
