"""The supervisor's side of the sample store: everything that people ask of it, in threads of its own.

The store is opened when it is first needed, because most devices have nothing in it and memory is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from edged.api import ApiError, Done
from edged.samples.bodies import AddHeader, AddReply, LabelBody, MakeBody, PicturesPage, RemoveBody, TagBody
from edgekit.messages import Event
from edgekit.services.definition import Samples

if TYPE_CHECKING:
    from edged.samples.reading import Filter
    from edged.samples.records import Sample, SampleDetail, SampleStats, VersionInfo
    from edged.samples.store import SampleStore

T = TypeVar("T")

UPKEEP_EVERY_S = 60.0
OVERVIEW_S = 30.0


class SampleDesk:
    """Belongs to one event loop. Methods raise ApiError."""

    def __init__(
        self,
        state_dir: Path,
        device_id: Callable[[], str],
        reserve: int,
        policy: Callable[[str], Samples],
        on_event: Callable[[Event], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """As edged.samples.opening.open_store. `on_event` comes in the event loop."""
        self._state_dir, self._device_id, self._reserve = state_dir, device_id, reserve
        self._policy, self._on_event, self._wall = policy, on_event, wall
        self._opening = asyncio.Lock()
        self._store: SampleStore | None = None
        # Not the loop's own threads: a store that waits for its lock must not keep services from being saved.
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="edged-desk")
        self._overview: tuple[float, SampleStats] | None = None

    @property
    def exists(self) -> bool:
        """Whether anything has ever been kept here."""
        return (self._state_dir / "samples" / "index.db").exists()

    async def select(self, which: Filter, limit: int) -> list[Sample]:
        """The newest first."""
        return await self._ask(lambda store: store.select(which, limit), [])

    async def queue(self, service: str, limit: int) -> list[Sample]:
        """What a person should label, the most useful first."""
        return await self._ask(lambda store: store.queue(service, limit), [])

    async def stats(self, service: str) -> SampleStats:
        """Numbers of one service, or of all."""
        from edged.samples.records import SampleStats

        none = SampleStats(
            service=service,
            items=0,
            bytes=0,
            sources={},
            labelled={},
            labels={},
            unusable=0,
            near=0,
            damaged=0,
            other_key=0,
        )
        return await self._ask(lambda store: store.stats(service), none)

    async def labelled(self, service: str) -> int:
        """Samples of a service that have a label."""
        return sum((await self.stats(service)).labels.values())

    async def overview(self) -> SampleStats:
        """Numbers of all samples, at most OVERVIEW_S old: counting reads every row, and metrics are asked for ever."""
        if self._overview is None or self._wall() - self._overview[0] > OVERVIEW_S:
            self._overview = (self._wall(), await self.stats(""))
        return self._overview[1]

    async def sample(self, id: str) -> SampleDetail:
        """Everything about one sample; the beginning of its id will do."""
        return await self._do(lambda store: store.sample(id))

    async def picture(self, id: str) -> bytes:
        """The encoded picture."""
        return await self._do(lambda store: store.picture(store.find(id)))

    async def add(self, header: AddHeader, picture: bytes) -> AddReply:
        """Keep a picture that somebody brings."""
        added = await self._do(lambda store: store.add(header.new, picture, header.label))
        return AddReply(id=added.id, new=added.new)

    async def label(self, id: str, body: LabelBody) -> Sample:
        """What a person says about a sample."""
        from edged.samples.records import LabelRecord

        record = LabelRecord(label=body.label, kind="operator", author=body.author, at=self._wall())
        return await self._do(lambda store: store.label(store.find(id), record))

    async def tag(self, id: str, body: TagBody) -> Sample:
        """Change the tags of a sample."""
        return await self._do(lambda store: store.tag(store.find(id), body.add, body.remove))

    async def remove(self, body: RemoveBody) -> Done:
        """Remove samples for ever."""
        if [bool(body.ids), body.unreadable, bool(body.service)].count(True) != 1:
            raise ApiError(400, "name samples, or a service, or those that cannot be read")

        def work(store: SampleStore) -> int:
            if body.ids:
                return store.remove([store.find(id) for id in body.ids])
            return store.remove_unreadable() if body.unreadable else store.remove_service(body.service)

        removed = await self._do(work)
        return Done(text=f"{removed} sample{'' if removed == 1 else 's'} removed for ever.")

    async def make(self, body: MakeBody) -> VersionInfo:
        """Make a dataset version."""
        from edged.samples.reading import Filter

        kinds: dict[str, Literal["labels", "boxes"] | None] = {"": None, "labels": "labels", "boxes": "boxes"}
        if body.kind not in kinds:
            raise ApiError(400, f'kind is {body.kind[:32]!r}; "labels" or "boxes" belongs there')
        which = Filter(service=body.service, since=body.since, until=body.until, tag=body.tag)
        return await self._do(lambda store: store.versions.make(body.name, which, kinds[body.kind]))

    async def versions(self) -> list[VersionInfo]:
        """All dataset versions, the newest first."""
        return await self._ask(lambda store: store.versions.all(), [])

    async def version(self, name: str) -> VersionInfo:
        """One dataset version."""
        return await self._do(lambda store: store.versions.show(name))

    async def pictures(self, name: str, after: int, limit: int) -> PicturesPage:
        """Some of the pictures of a version."""
        good, bad = await self._do(lambda store: store.versions.page(name, after, limit))
        return PicturesPage(pictures=good, left_out=[picture.file for picture in bad])

    async def delete_version(self, name: str) -> Done:
        """Forget a dataset version."""
        await self._do(lambda store: store.versions.delete(name))
        return Done(text=f"The dataset version {name} is deleted; its samples stay.")

    async def run(self) -> None:
        """Upkeep once a minute, as the worker does while it runs, until cancelled."""
        while True:
            await asyncio.sleep(UPKEEP_EVERY_S)
            if self._store is not None:
                with contextlib.suppress(ApiError):  # who asks next is told
                    await self._do(lambda store: store.maintain())

    async def close(self) -> None:
        """Close the store."""
        async with self._opening:
            store, self._store = self._store, None
        if store is not None:
            await self._thread(store.close)
        self._executor.shutdown(wait=False)

    async def _ask(self, work: Callable[[SampleStore], T], none: T) -> T:
        """As `_do`, but a store that was never made stays unmade."""
        return await self._do(work) if self._store is not None or self.exists else none

    async def _do(self, work: Callable[[SampleStore], T]) -> T:
        from edged.collab.sealing import SealError
        from edged.samples.records import SampleError
        from edged.samples.store import SamplesFull
        from edged.samples.versions import VersionError
        from edged.store import StoreError
        from edgekit.vision.sniff import ImageError

        try:
            async with self._opening:
                if self._store is None:
                    loop = asyncio.get_running_loop()
                    self._store = await self._thread(lambda: self._open(loop))
                store = self._store
            return await self._thread(lambda: work(store))
        except KeyError as error:
            raise ApiError(404, str(error.args[0])) from None
        except (SampleError, VersionError, ImageError) as error:
            raise ApiError(400, str(error)) from None
        except SamplesFull as error:
            raise ApiError(507, str(error)) from None
        except (SealError, StoreError, OSError, sqlite3.Error) as error:
            raise ApiError(503, f"the samples cannot be used: {error}") from None

    async def _thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _open(self, loop: asyncio.AbstractEventLoop) -> SampleStore:
        from edged.samples.opening import open_store

        def say(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens any more
                loop.call_soon_threadsafe(self._on_event, event)

        return open_store(self._state_dir, self._device_id(), self._policy, self._reserve, say, self._wall)
