"""The worker's side: recognises whom an embedding shows, enrols, and follows what other processes change.

Whoever looks at a picture uses the newest `View` and touches no disk. Rows are read in a thread of their own, once they
have changed; a gallery that cannot be read any more goes on as it was.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from edged.collab.sealing import SealError
from edged.gallery.records import Enrolled, EnrolReply, Taken, check_name
from edged.gallery.store import GalleryStore
from edged.gallery.view import View
from edged.store import StoreError
from edgekit.messages import Level
from edgekit.packages import EmbeddingSpec
from edgekit.services.definition import Gallery as Rules
from edgekit.vision.classification import Classified
from edgekit.vision.embedding import Embedding

log = logging.getLogger("edged.gallery")

T = TypeVar("T")

LOOK_S = 0.5
"""How often it is asked whether anything has changed."""
_PAUSE = 20.0
"""Times as long as calibrating a threshold took, until it is calibrated again."""
SAME = 0.999995
"""Cosine from which two pictures are the same one."""

Notify = Callable[[Level, str, str], None]


@dataclass
class _Member:
    """One service."""

    service: str
    model: str
    spec: EmbeddingSpec
    rules: Rules
    view: View
    rows: dict[str, Enrolled] = field(default_factory=dict)
    due: float = 0.0  # monotonic time from which the threshold is calibrated again
    stale: bool = False  # rows have changed since it was


class Galleries:
    """Those of a worker's services. Belongs to one event loop; `run` it, `close` it."""

    def __init__(
        self,
        state_dir: Path,
        device_id: str,
        notify: Notify,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state_dir, self._device_id = state_dir, device_id
        self._notify, self._wall, self._clock = notify, wall, clock
        self._store: GalleryStore | None = None
        self._members: dict[str, _Member] = {}
        self._version = -1
        self._troubled = False
        self._changing = asyncio.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="edged-gallery")

    def __contains__(self, service: str) -> bool:
        return service in self._members

    def add(self, service: str, model: str, spec: EmbeddingSpec, rules: Rules | None) -> None:
        """A service; `model` is name@version and digest of its package. Its gallery is empty until `follow`."""
        rules = rules or Rules()
        self._members[service] = _Member(service, model, spec, rules, View({}, 0, model, spec, rules))

    def recognise(self, service: str, embedding: Embedding) -> Classified:
        """Whom it shows. From any thread."""
        return self._members[service].view.recognise(embedding)

    def sentence(self, service: str) -> str:
        """Where the gallery of a service stands, for people."""
        return self._members[service].view.sentence()

    async def follow(self) -> None:
        """Take what has changed. Never raises for trouble with the disk; that is told."""
        async with self._changing:
            await self._follow()

    async def run(self) -> None:
        """Follow until cancelled."""
        while self._members:
            await asyncio.sleep(LOOK_S)
            await self.follow()

    async def enrol(
        self, service: str, identity: str, embedding: Embedding, by: str, force: bool = False
    ) -> EnrolReply:
        """Enrol a picture, "" for a stranger's; it counts once this returns.

        Raises Taken if it looks like somebody else's (unless `force`), GalleryError for a name nobody can have or a
        full gallery, StoreError, SealError, sqlite3.Error or OSError if it cannot be stored.
        """
        if identity:
            check_name(identity)
        async with self._changing:
            await self._follow()
            member = self._members[service]
            view = member.view
            ids = view.ids.get(identity, [])
            if any(_same(member.rows[id], embedding) for id in ids):
                return EnrolReply(identity=identity, pictures=len(ids), new=False)
            found = view.match(embedding)
            if not force and found is not None and found.known and found.name != identity and view.threshold.trusted:
                raise Taken(
                    f"this picture looks like {found.name} ({found.similarity:.2f}), not like "
                    f"{identity or 'a stranger'}; if that is right all the same, enrol it with --force"
                )
            data = np.asarray(embedding, "<f4").tobytes()
            row = Enrolled(identity=identity, model=member.model, embedding=data, at=self._wall(), by=by)
            await self._thread(lambda: self._opened().add(service, row, ids))
            await self._read(member)
            return EnrolReply(identity=identity, pictures=len(member.view.ids.get(identity, ())))

    async def close(self) -> None:
        """Close the store."""
        async with self._changing:
            store, self._store = self._store, None
            if store is not None:
                await self._thread(store.close)
        self._executor.shutdown(wait=False)

    async def _follow(self) -> None:
        try:
            version = await self._thread(lambda: self._opened().version())
            if version != self._version:
                for member in self._members.values():
                    await self._read(member)
                self._version = version
            for member in self._members.values():
                if member.stale and self._clock() >= member.due:
                    await self._read(member)
            self._works()
        except (StoreError, SealError, OSError, sqlite3.Error) as error:
            self._trouble(error)

    async def _read(self, member: _Member) -> None:
        member.rows, member.view, took = await self._thread(lambda: self._made(member))
        member.stale = took is None
        if took is not None:
            member.due = self._clock() + took * _PAUSE

    def _made(self, member: _Member) -> tuple[dict[str, Enrolled], View, float | None]:
        """In the thread: rows that are known are not opened again; and for how long the threshold was calibrated.

        Where many are enrolled one by one in a large gallery, the threshold of before holds on for a while (None), so
        that calibrating takes a small share of the time only.
        """
        store = self._opened()
        rows: dict[str, Enrolled] = {}
        closed = 0
        for id in store.ids(member.service):
            try:
                rows[id] = member.rows.get(id) or store.read(member.service, id)
            except KeyError:
                continue
            except SealError as error:
                log.warning("%s: %s", member.service, error)
                closed += 1
        began = self._clock()
        before = member.view.threshold
        known = before if before.value is not None and began < member.due else None
        view = View(rows, closed, member.model, member.spec, member.rules, known)
        return rows, view, self._clock() - began if known is None else None

    def _opened(self) -> GalleryStore:
        """In the thread."""
        if self._store is None:
            self._store = GalleryStore.open(self._state_dir, self._device_id)
            if self._store.quarantined is not None:
                text = f"The galleries were damaged and were moved to {self._store.quarantined}: enrol everybody anew."
                self._notify("error", "gallery.quarantined", text)
        return self._store

    async def _thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _trouble(self, error: Exception) -> None:
        if not self._troubled:
            self._troubled = True
            text = f"Galleries cannot be read: {error}. Who was known before is known still."
            self._notify("error", "gallery.unusable", text)

    def _works(self) -> None:
        if self._troubled:
            self._troubled = False
            self._notify("ok", "gallery.unusable", "Galleries can be read again.")


def _same(row: Enrolled, embedding: Embedding) -> bool:
    stored = np.frombuffer(row.embedding, "<f4")
    return stored.size == embedding.size and float(stored @ embedding) >= SAME
